"""The commands `unime convert`, `unime export` and `unime merge`."""

import argparse

from ...jobs.settings import CommandParser
from ..options import add


def read(arguments=None):
    """The options of the command that the first argument names; they are named as the arguments of its function.

    Args:
        arguments (`list[str]`, *optional*): the command line, by default that of the process.

    Raises:
        SystemExit: help was asked for, or the line cannot be understood (status 2).
    """
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
    return parser.parse_args(arguments)


def _add_places(parser: CommandParser):
    """From where, and to where."""
    parser.add_argument("source", help="folder or Hub repository")
    parser.add_argument("out", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")


def _add_kind(parser: CommandParser):
    """What a stock VLM becomes."""
    add(parser, "preset")
    parser.add_argument("--reranker", action="store_true", help="make a reranker, not an embedder")
