"""What would silently change if stock classes of transformers loaded a checkpoint, from its files alone."""

from ...jobs.settings import CommandParser
from ..options import add, add_output


def read(arguments=None):
    """The options of `unime doctor`.

    Args:
        arguments (`list[str]`, *optional*): the command line, by default that of the process.

    Raises:
        SystemExit: help was asked for, or the line cannot be understood (status 2).
    """
    parser = CommandParser(prog="unime doctor", description=__doc__)
    parser.add_argument("model", help="folder or repository of any checkpoint, or of an adapter")
    add(parser, "preset")
    add_output(parser)
    return parser.parse_args(arguments)
