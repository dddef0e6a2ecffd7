"""Puts texts and images in a reranker's order: the command `unime rerank`.

unime rerank photos/ --query "a red circle left of a blue star" --reranker outputs/backbone --top 3
"""

from ..data.item_sources import SOURCES, read_items
from ..jobs.reranking import Reranker
from ..jobs.settings import CommandParser
from .errors import one_line_errors
from .inputs import one_item
from .options import add, add_output, add_query, add_reranker, with_new_names
from .search import rerank, show

STRATEGIES = ("pointwise", "listwise")  # "fused" needs the similarities of an embedder
FORMER_NAMES = {"--model": "--reranker"}  # for one release


def main(arguments=None):
    """The command `unime rerank`."""
    parser = CommandParser(prog="unime rerank", description=__doc__)
    parser.add_argument("sources", nargs="+", help=SOURCES)
    parser.add_argument("--query", help="text to look for")
    add_query(parser)
    add_reranker(parser, required=True, strategies=STRATEGIES)
    add(parser, "dtype")
    add(parser, "trust-remote-code")
    add(parser, "top")
    add_output(parser)

    options = parser.parse_args(with_new_names("unime rerank", arguments, FORMER_NAMES))

    with one_line_errors("unime rerank"):
        query = one_item(options.query, options.image, options.instruction)
        entries = list(read_items(options.sources))
        if not entries:
            raise ValueError(f"there is nothing to rank in {', '.join(options.sources)}.")
        names, items = zip(*entries)

        # every item is a candidate, of a similarity that nobody has measured
        matches = [(position, 0.0) for position in range(len(items))]
        reranker = Reranker(options.reranker, options.strategy, options.dtype, options.trust_remote_code)
        rows = rerank(reranker, query, items, matches)
    for row in rows:
        del row["similarity"]
    show(rows[: options.top], names, items, options.json)


if __name__ == "__main__":
    main()
