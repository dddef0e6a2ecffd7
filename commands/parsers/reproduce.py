"""The papers' claims, re-enacted on the miniature world without a GPU, each with a verdict.

unime reproduce --out outputs/reproduction
unime reproduce --out outputs/reproduction --claims F4,F10 --seeds 3

Everything that is made stays in the folder: a run that was interrupted goes on, and claims may be measured in several
runs. What is measured is put together in reproduction.json, and shown in reproduction.md and reproduction.html.
"""

from argparse import ArgumentTypeError
from pathlib import Path

from ...jobs.settings import CommandParser

CLAIMS = tuple(f"F{number}" for number in range(1, 14))  # those of `unime.reproduction.claims`


def read(arguments=None):
    """The options of `unime reproduce`.

    Args:
        arguments (`list[str]`, *optional*): the command line, by default that of the process.

    Raises:
        SystemExit: help was asked for, or the line cannot be understood (status 2).
    """
    parser = CommandParser(prog="unime reproduce", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/reproduction"), help="folder of everything (default: %(default)s)"
    )
    parser.add_argument(
        "--claims", type=_claims, default=list(CLAIMS), metavar="F4,F10", help="which claims; all by default"
    )
    parser.add_argument("--seeds", type=_count, default=3, help="how often stages are trained (default: %(default)s)")
    parser.add_argument(
        "--quick", action="store_true", help="a smoke run of minutes on a few rows, whose figures mean nothing"
    )
    parser.add_argument(
        "--merge",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="measure nothing; add what is measured in these folders",
    )
    parser.add_argument("--page", type=Path, help="where to write the page (default: reproduction.md in --out)")
    return parser.parse_args(arguments)


def _claims(text: str) -> list[str]:
    """Names of claims, separated by commas."""
    names = [name.strip().upper() for name in text.split(",")]
    unknown = [name for name in names if name not in CLAIMS]
    if unknown:
        raise ArgumentTypeError(f"there is no claim {', '.join(unknown)}; there are {', '.join(CLAIMS)}.")
    return names


def _count(text: str) -> int:
    """A number of seeds."""
    if not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"a number above 0, not {text!r}.")
    return int(text)
