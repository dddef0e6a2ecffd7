"""Puts a saved model on the Hub: the command `unime push`.

    unime push outputs/quickstart/model me/my-embedder --results outputs/eval --license apache-2.0

The model card is written anew, with the repository's name in its examples, the training section of the card that lay
there, and the results that are given.
"""

from pathlib import Path

from ...jobs.settings import CommandParser
from ..options import add, with_new_names

FORMER_NAMES = {"--licence": "--license"}  # for one release


def read(arguments=None):
    """The options of `unime push`.

    Args:
        arguments (`list[str]`, *optional*): the command line, by default that of the process.

    Raises:
        SystemExit: help was asked for, or the line cannot be understood (status 2).
    """
    parser = CommandParser(prog="unime push", description=__doc__)
    parser.add_argument("folder", type=Path, help="what save_pretrained or a trainer wrote")
    parser.add_argument("repo", help="owner/name on the Hub")
    parser.add_argument("--results", nargs="+", default=[], help="results of `unime eval` for the card")
    parser.add_argument("--license", help="as the Hub knows it: apache-2.0, mit, ...")
    parser.add_argument("--private", action="store_true", help="if the repository is new")
    parser.add_argument("--card-only", action="store_true", help="write the card into the folder and upload nothing")
    add(parser, "quiet")
    return parser.parse_args(with_new_names("unime push", arguments, FORMER_NAMES))
