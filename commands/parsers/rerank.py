"""Puts texts and images in a reranker's order: the command `unime rerank`.

unime rerank photos/ --query "a red circle left of a blue star" --reranker outputs/backbone --top 3
"""

from ...data.choices import SOURCES
from ...jobs.settings import CommandParser
from ..options import add, add_output, add_query, add_reranker, with_new_names

STRATEGIES = ("pointwise", "listwise")  # "fused" needs the similarities of an embedder
FORMER_NAMES = {"--model": "--reranker"}  # for one release


def read(arguments=None):
    """The options of `unime rerank`.

    Args:
        arguments (`list[str]`, *optional*): the command line, by default that of the process.

    Raises:
        SystemExit: help was asked for, or the line cannot be understood (status 2).
    """
    parser = CommandParser(prog="unime rerank", description=__doc__)
    parser.add_argument("sources", nargs="+", help=SOURCES)
    parser.add_argument("--query", help="text to look for")
    add_query(parser)
    add_reranker(parser, required=True, strategies=STRATEGIES)
    add(parser, "dtype")
    add(parser, "trust-remote-code")
    add(parser, "top")
    add_output(parser)
    return parser.parse_args(with_new_names("unime rerank", arguments, FORMER_NAMES))
