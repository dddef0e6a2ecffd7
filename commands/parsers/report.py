"""The command `unime eval report`: results beside the published numbers.

    unime eval report outputs/eval --out report

writes `report.md`, `report.html`, and for benchmarks of the Hub `<model>/.eval_results/<benchmark>.yaml`.
"""

from pathlib import Path

from ...jobs.settings import CommandParser
from ..options import add


def read(arguments=None):
    """The options of `unime eval report`.

    Args:
        arguments (`list[str]`, *optional*): the command line, by default that of the process.

    Raises:
        SystemExit: help was asked for, or the line cannot be understood (status 2).
    """
    parser = CommandParser(prog="unime eval report", description=__doc__)
    parser.add_argument("results", nargs="+", help="results.json files, or folders of them; the first is the baseline")
    parser.add_argument("--names", nargs="+", help="what to call them")
    parser.add_argument(
        "--out", type=Path, default=Path("report"), help="where to write, without .md or .html (default: %(default)s)"
    )
    add(parser, "quiet")
    return parser.parse_args(arguments)
