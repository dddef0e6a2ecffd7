"""The commands `unime convert`, `unime export` and `unime merge`."""

import argparse
from pathlib import Path

from ..checkpoints.conversion import convert, export, merge
from ..jobs.settings import CommandParser
from .errors import one_line_errors
from .options import add

RUN = {"convert": convert, "export": export, "merge": merge}


def main(arguments=None):
    """The commands `unime convert`, `unime export` and `unime merge`; the first argument says which."""
    options = vars(_parser().parse_args(arguments))
    command = options.pop("command")
    overwrite = options.pop("overwrite")
    options.pop("quiet")

    with one_line_errors(f"unime {command}"):
        _check_place(options["source"], Path(options["out"]), overwrite)
        RUN[command](**options)

    print(f"written to {options['out']}")


def _check_place(source: str, out: Path, overwrite: bool):
    """Refuses to write over what is there."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder.")
    if not out.is_dir() or not any(out.iterdir()):
        return

    # weights cannot be read from the file that they are written to
    if Path(source).is_dir() and out.samefile(source):
        raise ValueError(f"{out} is what is read; name another folder.")
    if not overwrite:
        raise ValueError(f"{out} is not empty; name another folder, or write over it with --overwrite.")


def _parser() -> CommandParser:
    """What each command reads; the options are named as the arguments of its function."""
    parser = CommandParser(prog="unime", description="Convert, export and merge checkpoints.")
    commands = parser.add_subparsers(dest="command", required=True)

    text = "stock VLM -> UniME repository"
    command = commands.add_parser("convert", help=text, description=text)
    _add_places(command)
    _add_kind(command)
    command.add_argument("--revision", help="branch, tag or commit of the repository")
    add(command, "trust-remote-code")
    command.add_argument(
        "--fusion",
        choices=("joint", "sum"),
        default=argparse.SUPPRESS,  # the function takes it only where it is given
        help="image and text in one prompt, or the sum of two embeddings (default: the preset's)",
    )
    add(command, "quiet")

    text = "UniME repository -> stock VLM checkpoint and SentenceTransformer"
    command = commands.add_parser("export", help=text, description=text)
    _add_places(command)
    command.add_argument("--head", help="stock checkpoint to take the output head from")
    add(command, "trust-remote-code")
    add(command, "quiet")

    text = "LoRA or DoRA adapter -> whole UniME repository"
    command = commands.add_parser("merge", help=text, description=text)
    _add_places(command)
    _add_kind(command)
    command.add_argument("--base", help="what the adapter was trained on (default: what its file says)")
    add(command, "trust-remote-code")
    add(command, "quiet")
    return parser


def _add_places(parser: CommandParser):
    """From where, and to where."""
    parser.add_argument("source", help="folder or Hub repository")
    parser.add_argument("out", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")


def _add_kind(parser: CommandParser):
    """What a stock VLM becomes."""
    add(parser, "preset")
    parser.add_argument("--reranker", action="store_true", help="make a reranker, not an embedder")


if __name__ == "__main__":
    main()
