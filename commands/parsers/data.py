"""The command `unime data`: look at data, and get it."""

from pathlib import Path

from ...data.choices import KINDS
from ...jobs.settings import CommandParser
from ..options import add, add_output, positive

_FETCH = """Downloads a benchmark into the folders that its reader expects; without a name, all are listed.

A download that is killed goes on where it stopped."""


def read(arguments=None):
    """The options of `unime data`.

    Args:
        arguments (`list[str]`, *optional*): the command line, by default that of the process.

    Raises:
        SystemExit: help was asked for, or the line cannot be understood (status 2).
    """
    parser = CommandParser(prog="unime data", description="Look at data, and get it.")
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("check", help="report on a data file", description="Report on a data file.")
    command.add_argument("path", help=f"{KINDS}; or hf://datasets/<owner>/<name>[/<file>]")
    add(command, "image-root")
    add(command, "columns")
    add(command, "allow-urls")
    add(command, "split")
    command.add_argument("--no-images", action="store_true", help="only look whether images are there")

    # as a training would read it
    add(command, "model", help="read every row as a training of this model would, and list what it cannot read")
    add(command, "preset")
    command.add_argument("--as-reranker", action="store_true", help="the model, a stock VLM, is to become a reranker")
    command.add_argument("--max-length", type=positive, metavar="TOKENS", help="as in the training")
    command.add_argument("--resolution", help="as in the training")
    add(command, "trust-remote-code")
    command.add_argument("--report", type=Path, metavar="FILE", help="write the whole report to this file, as JSON")
    add_output(command)

    command = commands.add_parser("fetch", help="download a benchmark", description=_FETCH)
    command.add_argument("name", nargs="?", help="which; without it, all are listed with their sizes")
    command.add_argument("--out", default="benchmarks-data", help="folder of the benchmarks (default: %(default)s)")
    command.add_argument("--dry-run", action="store_true", help="only say where it comes from and how large it is")
    add(command, "quiet")
    return parser.parse_args(arguments)
