"""Puts texts and images in a reranker's order: the command `unime rerank`.

unime rerank photos/ --query "a red circle left of a blue star" --model outputs/backbone --top 3
"""

import argparse

from ..jobs.reranking import STRATEGIES, Reranker
from .inputs import one_item, positive, read_items
from .search import rerank, show


def main(arguments=None):
    """The command `unime rerank`."""
    parser = argparse.ArgumentParser(
        prog="unime rerank", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", nargs="+", help="folder of images, image, .jsonl, .txt, or - (JSON lines)")
    parser.add_argument("--query", help="what to look for")
    parser.add_argument("--image", help="image to look for, alone or with the query")
    parser.add_argument("--model", required=True, help="folder or repository of a reranker or stock VLM")
    parser.add_argument("--strategy", default="pointwise", choices=[s for s in STRATEGIES if s != "fused"])
    parser.add_argument("--top", type=positive, help="how many answers; all by default")
    parser.add_argument("--dtype", default="auto", help="bfloat16, ...; auto is the checkpoint's own")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args(arguments)
    try:
        query = one_item(options.query, options.image)
        named = list(read_items(options.sources))
        if not named:
            raise ValueError(f"there is nothing to rank in {', '.join(options.sources)}.")
        names, items = zip(*named)
        reranker = Reranker(options.model, options.strategy, options.dtype)
        rows = rerank(reranker, query, items, [(i, 0.0) for i in range(len(items))])
    except (ValueError, OSError) as error:
        raise SystemExit(f"unime rerank: {error}") from error
    for row in rows:
        del row["similarity"]
    show(rows[: options.top], names, items, options.json)


if __name__ == "__main__":
    main()
