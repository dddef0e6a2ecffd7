"""Answers a query from a file of embeddings: the command `unime search`.

unime search index.parquet "a red circle left of a blue star" --top 3
unime search index.parquet --image photo.png --reranker outputs/backbone --json
"""

from pathlib import Path

from ...jobs.settings import CommandParser
from ..options import add, add_output, add_query, add_reranker


def read(arguments=None):
    """The options of `unime search`.

    Args:
        arguments (`list[str]`, *optional*): the command line, by default that of the process.

    Raises:
        SystemExit: help was asked for, or the line cannot be understood (status 2).
    """
    parser = CommandParser(prog="unime search", description=__doc__)
    parser.add_argument("index", type=Path, help="file made by `unime encode`")
    parser.add_argument("text", nargs="?", help="what to look for")
    add_query(parser)
    add(parser, "top")
    add(parser, "model", help="the embedder (default: the one that the index names, if it is on this machine)")
    add_reranker(parser)
    add(parser, "trust-remote-code")
    add(parser, "candidates")
    add_output(parser)
    return parser.parse_args(arguments)
