"""The options that several commands share. Each is described once, and means the same wherever it stands.

`search`, `rerank`, `encode`, `demo` and others add them with the functions below, a group at a time; `eval`, whose
settings are a dataclass, takes them with [`setting`].
"""

import argparse
import json
import sys
from dataclasses import fields
from typing import Any, NamedTuple

from ..data.choices import SPLITS
from ..jobs.choices import DTYPES, LIBRARIES, STRATEGIES, EngineSettings

ROLES = ("query", "document")


class StepCall(NamedTuple):
    """What a command line asks of a command that has steps.

    Args:
        step (`str`): one of those of the command.
        config: the settings of that step, or its options.
        given (`dict[str, str]`): where each setting was given, for a rehearsal.
    """

    step: str
    config: Any
    given: dict[str, str]


def json_object(text: str) -> dict:
    """A JSON object of the command line.

    Args:
        text (`str`): such as `'{"resolution": 336}'`.

    Raises:
        argparse.ArgumentTypeError: it is not JSON, or not an object.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON ({error}); write '{{\"resolution\": 336}}'") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object; write '{{\"resolution\": 336}}'")
    return value


def positive(text: str) -> int:
    """A number of the command line that is at least 1.

    Raises:
        ValueError: it is less, or not a whole number.
    """
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def known_preset(text: str) -> str:
    """A preset of the command line: the name of one, or a file that holds one.

    Raises:
        argparse.ArgumentTypeError: there is no such preset.
    """
    # only where one is given: presets are read with a library that takes seconds to load
    from ..prompts_unime import resolve_preset

    try:
        resolve_preset(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


# What argparse is told of each option, except whether it is required.
OPTIONS = {
    # the embedder
    "model": {"help": "the embedder: a folder, or a repository of the Hub"},
    "library": {"default": "unime", "choices": LIBRARIES, "help": "what loads the embedder (default: %(default)s)"},
    "preset": {
        "metavar": "PRESET",
        "type": known_preset,
        "help": "how items are read: a name (`unime presets` lists them), or a file of your own (preset.yaml); by "
        "default as saved, or as the checkpoint's name or files say",
    },
    "dtype": {
        "default": "auto",
        "choices": DTYPES,
        "help": "precision of the weights; auto is the checkpoint's own (default: %(default)s)",
    },
    "trust-remote-code": {
        "action": "store_true",
        "default": False,
        "help": "run the code of the model repositories that are named here; read it first",
    },
    "options": {
        "type": json_object,
        "default": {},
        "metavar": "JSON",
        "help": "for the model's encode: '{\"resolution\": 336}', batch_tokens, max_length, ...",
    },
    # the reranker
    "reranker": {"help": "the reranker, or a stock VLM that is to judge: a folder, or a repository of the Hub"},
    "reranker-preset": {
        "metavar": "PRESET",
        "type": known_preset,
        "help": "how the reranker is asked: a name, or a file of your own; by default as saved, or as its name says",
    },
    "strategy": {
        "default": "pointwise",
        "choices": STRATEGIES,
        "help": "how the reranker orders the candidates (default: %(default)s)",
    },
    "candidates": {
        "type": positive,
        "default": 10,
        "metavar": "N",
        "help": "how many of the embedder's best the reranker sees (default: %(default)s)",
    },
    # the query and its answers
    "image": {"help": "image to look for, alone or with the text"},
    "instruction": {"help": "put before the text, on a line of its own, or on the same after a colon"},
    "top": {
        "type": positive,
        "default": 10,
        "metavar": "N",
        "help": "how many answers are shown (default: %(default)s)",
    },
    # data
    "role": {"choices": ROLES, "help": "as what items are read (default: %(default)s)"},
    "image-root": {"help": "where image paths start; by default the folder of the data"},
    "columns": {
        "nargs": "+",
        "metavar": "WHAT=COLUMN",
        "help": "which columns to take for what, query=caption positive=image; by default as they are recognised",
    },
    "allow-urls": {
        "action": "store_true",
        "default": False,
        "help": "fetch images that rows name by https:// addresses, but none of a private network",
    },
    "split": {
        "default": "original",
        "choices": SPLITS,
        "help": "which texts of a folder of MMEB-train (default: %(default)s)",
    },
    "verify": {
        "action": "store_true",
        "default": False,
        "help": "read every file anew, whatever is remembered of files of the same size and time",
    },
    # what is printed
    "rehearse": {
        "action": "store_true",
        "default": False,
        "help": "print what would be done, from configuration, tokenizer and processor alone, and end",
    },
    "rehearse-json": {"metavar": "FILE", "help": "rehearse, and write it to FILE as JSON"},
    "json": {"action": "store_true", "default": False, "help": "print JSON, not text"},
    "quiet": {"action": "store_true", "default": False, "help": "leave out progress and notices"},
}


def add(parser: argparse.ArgumentParser, name: str, **changes):
    """Adds a shared option to a command.

    Args:
        parser: of the command.
        name (`str`): one of `OPTIONS`, without its hyphens.
        changes: arguments of `add_argument` that differ for this command, such as `required`.
    """
    parser.add_argument(f"--{name}", **{**OPTIONS[name], **changes})


def add_embedder(parser: argparse.ArgumentParser):
    """`--model`, which is required, and how it is loaded and called."""
    add(parser, "model", required=True)
    for name in ("library", "preset", "dtype", "options"):
        add(parser, name)


def add_reranker(parser: argparse.ArgumentParser, required: bool = False, strategies: tuple = STRATEGIES):
    """`--reranker`, `--reranker-preset` and `--strategy`."""
    add(parser, "reranker", required=required)
    add(parser, "reranker-preset")
    add(parser, "strategy", choices=strategies)


def add_engine(parser: argparse.ArgumentParser):
    """The settings of [`~unime.jobs.choices.EngineSettings`] as options."""
    types = {"num_workers": positive, "gpus_per_worker": float}

    # the fields are described once, for recipes and for the command line
    group = parser.add_argument_group("engine")
    for entry in fields(EngineSettings):
        group.add_argument(
            f"--{entry.name.replace('_', '-')}",
            type=types.get(entry.name, str),
            default=entry.default,
            choices=entry.metadata.get("choices"),
            help=entry.metadata["help"],
        )


def add_query(parser: argparse.ArgumentParser):
    """What stands beside the text of a query: `--image` and `--instruction`."""
    add(parser, "image")
    add(parser, "instruction")


def add_output(parser: argparse.ArgumentParser):
    """`--json` and `--quiet`."""
    add(parser, "json")

    # only for the help: `unime` itself takes --quiet out of the line and acts on it before anything is imported
    add(parser, "quiet")


def setting(name: str, **changes) -> dict:
    """A shared option for a dataclass of settings: what `dataclasses.field` takes.

    Args:
        name (`str`): one of `OPTIONS`, without its hyphens.
        changes: what differs for this command, as in [`add`].

    Returns:
        `dict`: the default, and `metadata` with choices and help.

    Example:

    ```python
    @dataclass
    class EvalConfig:
        dtype: str = field(**setting("dtype"))
    ```
    """
    description = {**OPTIONS[name], **changes}
    default = description.pop("default", None)

    # the field's own annotation says the type, and makes an option of a bool a flag
    if description.pop("type", None) is positive:
        description["least"] = 1
    description.pop("action", None)
    if default == {}:
        return {"default_factory": dict, "metadata": description}
    return {"default": default, "metadata": description}


def with_new_names(program: str, arguments: list[str] | None, names: dict[str, str]) -> list[str]:
    """A command line in which options have their present names; every former one is reported on stderr.

    Args:
        program (`str`): the command, for the notice.
        arguments (`list[str]`, *optional*): by default those the program was started with.
        names (`dict[str, str]`): present name by former name: `{"--licence": "--license"}`.
    """
    renamed = []
    for argument in sys.argv[1:] if arguments is None else arguments:
        # `--licence=mit` is one argument
        option, equals, value = argument.partition("=")
        if option in names:
            print(f"{program}: {option} is now called {names[option]}; the old name will go.", file=sys.stderr)
            option = names[option]
        renamed.append(option + equals + value)
    return renamed
