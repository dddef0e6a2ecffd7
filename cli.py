"""The command `unime`: finds the command that is named, and hands it the rest of the line.

Nothing heavy is imported here, so that `unime --help` answers at once.
"""

import difflib
import importlib
import sys
from typing import NamedTuple

from . import __version__
from .jobs.ending import leave_group_at_exit
from .jobs.notices import silence_alarms, without_quiet


class Command(NamedTuple):
    """Where a command is, and what it does.

    Args:
        module (`str`): a file of `commands/`, whose `execute` takes what `read` of the file of the same name in
            `commands/parsers/` makes of the words after the command's name.
        summary (`str`): its line in `unime --help`; at most 64 characters, so that it fits a screen of 80.
    """

    module: str
    summary: str


GROUPS = {
    "Use": {
        "encode": Command("encode", "texts and images -> a file of embeddings"),
        "search": Command("search", "answers from such a file"),
        "rerank": Command("rerank", "texts and images in a reranker's order"),
        "demo": Command("demo", "a page in the browser that searches a folder of images"),
        "serve": Command("serve", "embeddings and scores over HTTP"),
    },
    "Train": {
        "data": Command("data", "check a data file, or fetch a benchmark"),
        "mine": Command("mine", "raw pairs -> judged hard negatives, or SaHa's clusters"),
        "train": Command("", "distillation, contrastive, alignment or reranker"),
    },
    "Measure": {
        "eval": Command("evaluate", "benchmarks, reranking, reports and figures"),
        "reproduce": Command("reproduce", "the papers' claims on drawn pictures, without a GPU"),
    },
    "Share": {
        "convert": Command("convert", "stock VLM -> UniME repository"),
        "merge": Command("convert", "LoRA or DoRA adapter -> whole UniME repository"),
        "export": Command("convert", "UniME repository -> stock VLM and SentenceTransformer"),
        "serve-check": Command("serve_check", "whether a server gives the model's answers, or why not"),
        "presets": Command("presets", "presets with their checkpoints, or one as it is fed"),
        "doctor": Command("doctor", "what stock classes would silently change of a checkpoint"),
        "push": Command("push", "a saved model -> the Hub, with its card"),
    },
}
COMMANDS = {}
for _group in GROUPS.values():
    COMMANDS.update(_group)
STAGES = ("distillation", "contrastive", "alignment", "reranker")

# which extra of the package brings what a command imports beyond the plain installation
_EXTRAS = {"demo": "demo", "serve": "serve", "train": "train", "mine": "mining", "eval": "eval", "reproduce": "eval"}

_STAGE_USAGE = f"usage: unime train {{{','.join(STAGES)}}} --config RECIPE.yaml [--setting value ...]"


def main(arguments=None):
    """Runs the command that a command line names.

    Args:
        arguments (`list[str]`, *optional*): the words after `unime`; by default those the program was started with.

    Raises:
        SystemExit: the command ended with an error, or there is no such command (status 2).

    Example:

    ```python
    main(["search", "index.parquet", "a red circle", "--top", "3"])
    ```
    """
    # before the imports of any command, since libraries read these settings then
    arguments = without_quiet(sys.argv[1:] if arguments is None else list(arguments))
    if not arguments:
        _refuse(_usage())
    name, *rest = arguments

    if name in ("-h", "--help"):
        print(_usage())
        return
    if name == "--version":
        print(f"unime {__version__}")
        return
    if name not in COMMANDS:
        _refuse(f"unime: {_no_such('command', name, COMMANDS)}")

    if name == "train":
        # each stage is a module of its own, which `accelerate launch -m` can start, too
        stage, *rest = _with_stage(rest)
        _run(name, f"trainers.{stage}", "main", rest)
        return

    module = COMMANDS[name].module
    if module == "convert":
        rest = [name, *rest]  # one parser for convert, merge and export

    # help and mistakes end here, before anything is imported that takes seconds
    options = importlib.import_module(f".commands.parsers.{module}", __package__).read(rest)
    _run(name, f"commands.{module}", "execute", options)


def _with_stage(words: list[str]) -> list[str]:
    """The words after `unime train`, of which the first is a stage; without one, the program ends here."""
    if not words:
        _refuse(_STAGE_USAGE)
    if words[0] in ("-h", "--help"):
        print(f"{_STAGE_USAGE}\n\n`accelerate launch -m unime.trainers.STAGE` takes the same, on many processes.")
        raise SystemExit(0)
    if words[0] not in STAGES:
        _refuse(f"unime train: {_no_such('stage', words[0], STAGES)}")
    return words


def _run(name: str, module: str, function: str, options):
    """Imports the module of a command and calls its function."""
    silence_alarms()
    try:
        getattr(importlib.import_module(f".{module}", __package__), function)(options)
        leave_group_at_exit()
    except KeyboardInterrupt:
        raise SystemExit(130) from None  # as shells have it
    except ModuleNotFoundError as error:
        # a module of our own that is missing is our mistake, and shown with its traceback
        if name not in _EXTRAS or error.name is None or error.name.startswith(__package__):
            raise
        raise SystemExit(
            f"unime {name}: {error.name} is not installed; install unime with its extra [{_EXTRAS[name]}]."
        ) from error


def _usage() -> str:
    """What `unime --help` prints: every command under the heading of its group, within 24 lines."""
    # 17 commands, 4 headings, and 2 lines around them: the prompt that follows is the 24th
    lines = ["usage: unime COMMAND ... [--quiet]      (COMMAND --help says more)"]
    for heading, commands in GROUPS.items():
        lines.append(heading)
        for name, command in commands.items():
            lines.append(f"  {name:<12}{command.summary}")

    lines.append("--quiet leaves out progress and notices; --version prints the version.")
    return "\n".join(lines)


def _no_such(kind: str, name: str, names) -> str:
    """That there is no command or stage of this name, and which one may be meant."""
    similar = difflib.get_close_matches(name, names, n=1)
    if similar:
        return f"there is no {kind} '{name}'; did you mean '{similar[0]}'?"
    return f"there is no {kind} '{name}'; there are {', '.join(names)}."


def _refuse(message: str):
    """Ends the program as argparse does where a command line cannot be understood."""
    print(message, file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
