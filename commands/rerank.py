"""Puts texts and images in a reranker's order: the command `unime rerank`.

unime rerank photos/ --query "a red circle left of a blue star" --reranker outputs/backbone --top 3
"""

from ..data.item_sources import read_items
from ..jobs.reranking import Reranker
from .errors import one_line_errors
from .inputs import one_item
from .parsers.rerank import read
from .search import rerank, show


def execute(options):
    """Does what the options of `unime rerank` say."""
    with one_line_errors("unime rerank"):
        query = one_item(options.query, options.image, options.instruction)
        entries = list(read_items(options.sources))
        if not entries:
            raise ValueError(f"there is nothing to rank in {', '.join(options.sources)}.")
        names, items = zip(*entries)

        # every item is a candidate, of a similarity that nobody has measured
        matches = [(position, 0.0) for position in range(len(items))]
        reranker = Reranker(
            options.reranker, options.strategy, options.dtype, options.trust_remote_code, options.reranker_preset
        )
        rows = rerank(reranker, query, items, matches)
    for row in rows:
        del row["similarity"]
    show(rows[: options.top], names, items, options.json)


def main(arguments=None):
    """The command `unime rerank`."""
    execute(read(arguments))


if __name__ == "__main__":
    main()
