"""The command lines of programs: both spellings of options, flags, choices, recipes, and errors in one line."""

import importlib
from dataclasses import dataclass, field

import pytest

from unime.jobs.settings import CommandParser, parse_settings


@dataclass
class Config:
    """Settings of a command.

    The second paragraph.
    """

    image_root: str | None = field(default=None, metadata={"help": "Where image paths start."})
    library: str = field(default="unime", metadata={"help": "Of the model.", "choices": ["unime", "other"]})
    top: int = field(default=10, metadata={"help": "How many."})
    partial: bool = False
    retry_failed: bool = False
    small: bool = True
    options: dict | str | None = None

    def __post_init__(self):
        if self.top < 1:
            raise ValueError(f"top must be at least 1, got {self.top}.")


def parse(*arguments, steps=("run", "look")):
    return parse_settings("unime try", Config, steps, list(arguments))


@pytest.mark.parametrize("option", [["--image-root", "photos"], ["--image_root", "photos"], ["--image-root=photos"]])
def test_settings_are_spelled_either_way(option):
    step, config = parse("run", *option)
    assert step == "run" and config == Config(image_root="photos")


@pytest.mark.parametrize("flag", ["--retry_failed", "--retry-failed"])
@pytest.mark.parametrize("value, truth", [([], True), (["true"], True), (["false"], False)])
def test_boolean_settings_are_flags(flag, value, truth):
    assert parse("look", flag, *value) == ("look", Config(retry_failed=truth))
    assert parse("look", flag, *value, "--partial") == ("look", Config(retry_failed=truth, partial=True))
    assert parse("look", "--no-small") == ("look", Config(small=False))


def test_the_command_line_outranks_the_recipe(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("top: 3\nlibrary: other\npartial: true\noptions: {resolution: 336}\n")
    found = Config(library="other", top=3, partial=True, options={"resolution": 336})
    assert parse("run", "--config", str(recipe)) == ("run", found)
    step, config = parse("--config", str(recipe), "run", "--top", "4", "--partial", "false")
    assert (step, config.top, config.partial, config.library) == ("run", 4, False, "other")


@pytest.mark.parametrize(
    "arguments, recipe, message",
    [
        ([], None, "the following arguments are required: step"),
        (["walk"], None, "argument step: invalid choice: 'walk' (choose from "),
        (["run", "--tops", "3"], None, "unrecognized arguments: --tops 3"),
        (["run", "--top", "three"], None, "argument --top: invalid int value: 'three'"),
        (["run", "--top", "0"], None, "top must be at least 1, got 0."),
        (["run", "--library", "third"], None, "argument --library: invalid choice: 'third' (choose from "),
        (["run"], "library: third", "r.yaml: `library` is 'third'; choose from unime, other."),
        (["run"], "top: three", "argument --top: invalid int value: 'three'"),
        (["run"], "tops: 3", "r.yaml has unknown settings ['tops']"),
        (["run"], "- top", "r.yaml must hold `setting: value` lines"),
        (["run"], "top: [", "r.yaml cannot be read"),
        (["run", "--config", "nowhere.yaml"], None, "the recipe nowhere.yaml cannot be read"),
    ],
)
def test_a_mistake_ends_the_command_with_one_line(arguments, recipe, message, tmp_path, capsys):
    if recipe is not None:
        (tmp_path / "r.yaml").write_text(recipe)
        arguments = [*arguments, "--config", str(tmp_path / "r.yaml")]
    with pytest.raises(SystemExit) as error:
        parse(*arguments)
    printed = capsys.readouterr().err
    assert error.value.code == 2 and message in printed
    assert printed.startswith("unime try: ") and printed.endswith(" (see unime try --help)\n")


def test_help_lists_steps_choices_and_defaults(capsys):
    with pytest.raises(SystemExit) as done:
        parse("--help", steps={"run": "do it", "look": "see it"})
    text = " ".join(capsys.readouterr().out.split())
    assert done.value.code == 0 and "{run,look} run: do it; look: see it" in text
    assert (
        "Settings of a command. The second paragraph." in text
        and "{unime,other}" in text
        and "How many. (default: 10)" in text
    )


@pytest.fixture
def parser():
    parser = CommandParser(prog="unime try", description="First line.\n\n  second line")
    parser.add_argument("--no-images", action="store_true")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("check")
    command.add_argument("path")
    command.add_argument("--image-root", default="here", help="where image paths start")
    command.add_mutually_exclusive_group().add_argument("--batch_tokens", type=int)
    return parser


@pytest.mark.parametrize("root, tokens", [("--image-root", "--batch-tokens"), ("--image_root", "--batch_tokens")])
def test_commands_take_both_spellings(parser, root, tokens):
    options = parser.parse_args(["--no_images", "check", "a_b-c", root, "a_b-c", f"{tokens}=4"])
    assert options.no_images and options.path == options.image_root == "a_b-c" and options.batch_tokens == 4
    assert parser.parse_args(["check", "--", "--image_root"]).path == "--image_root"


def test_abbreviations_are_refused_and_similar_options_named(parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(["--no_image", "check", "p"])
    line = "unime try: unrecognized arguments: --no_image; did you mean --no-images? (see unime try --help)\n"
    assert capsys.readouterr().err == line

    # an option of a command is not one of its parent
    with pytest.raises(SystemExit):
        parser.parse_args(["check", "p", "--image", "x"])
    assert capsys.readouterr().err.startswith("unime try: unrecognized arguments: --image x")


def test_commands_keep_their_description_and_say_where_help_is(parser, capsys):
    assert "First line.\n\n  second line" in parser.format_help()
    for arguments, printed in (
        (["check", "p", "--batch-tokens", "x"], "unime try check: argument --batch_tokens: invalid int value: 'x'"),
        (["check", "p", "--nothing"], "unime try: unrecognized arguments: --nothing"),
    ):
        with pytest.raises(SystemExit) as error:
            parser.parse_args(arguments)
        prog = printed.split(":")[0]
        assert error.value.code == 2 and capsys.readouterr().err == f"{printed} (see {prog} --help)\n"


@pytest.mark.parametrize("stage", ["contrastive", "distillation", "alignment", "reranker"])
def test_a_training_without_a_model_is_refused_before_its_data_are_read(stage, tmp_path):
    module = importlib.import_module(f"unime.trainers.{stage}")
    with pytest.raises(SystemExit, match="unime train: `model_name_or_path` is missing"):
        module.main(["--data", str(tmp_path / "none.jsonl"), "--output_dir", str(tmp_path)])
