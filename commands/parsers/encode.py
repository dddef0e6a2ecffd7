"""Embeddings of texts and images as a file: the command `unime encode`.

unime encode photos/ captions.jsonl --model outputs/quickstart/model --out index.parquet
"""

from ...data.choices import ROLES, SOURCES
from ...jobs.settings import CommandParser
from ..options import add, add_embedder, add_engine, add_output


def read(arguments=None):
    """The options of `unime encode`.

    Args:
        arguments (`list[str]`, *optional*): the command line, by default that of the process.

    Raises:
        SystemExit: help was asked for, or the line cannot be understood (status 2).
    """
    parser = CommandParser(prog="unime encode", description=__doc__)
    parser.add_argument("sources", nargs="+", help=SOURCES)
    add_embedder(parser)
    parser.add_argument("--out", required=True, help=".parquet or .npz file to write")
    add(parser, "trust-remote-code")

    # how the sources are read
    add(parser, "role", default="document")
    add(parser, "image-root")
    parser.add_argument("--column", choices=ROLES, help="take this of rows of queries and positives, as items")
    add(parser, "columns")
    add(parser, "allow-urls")

    # what is done with them
    parser.add_argument("--update", action="store_true", help="embed only what the file lacks or what has changed")
    add(parser, "verify")
    add_engine(parser)
    add_output(parser)
    return parser.parse_args(arguments)
