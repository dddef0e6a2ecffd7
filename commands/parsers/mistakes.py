"""A page of a measured model's worst mistakes, with pictures, by data set: the command `unime eval errors`.

    unime eval errors outputs/eval/model/pairs-0123456789 --out errors.html

Each shows the query, the right answer and what came first. Where the right answer looks wrong, it is said to be a
likely label error.
"""

from pathlib import Path

from ...jobs.settings import CommandParser
from ..options import add, positive


def read(arguments=None):
    """The options of `unime eval errors`.

    Args:
        arguments (`list[str]`, *optional*): the command line, by default that of the process.

    Raises:
        SystemExit: help was asked for, or the line cannot be understood (status 2).
    """
    parser = CommandParser(prog="unime eval errors", description=__doc__)
    parser.add_argument("results", help="results.json of a model, or a folder with one")
    parser.add_argument("--data", help="where the data is now, if it has moved")
    add(parser, "image-root")
    parser.add_argument("--task", help="one data set; all by default")
    parser.add_argument(
        "--count", type=positive, default=20, help="mistakes of each data set that are shown (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("errors.html"), help="the page (default: %(default)s)")
    add(parser, "quiet")
    return parser.parse_args(arguments)
