"""Answers a query from a file of embeddings: the command `unime search`.

unime search index.parquet "a red circle left of a blue star" --top 3
unime search index.parquet --image photo.png --reranker outputs/backbone --json
"""

import argparse
import json
from pathlib import Path

import numpy as np

from ..data.schema import Item
from ..jobs.embedding import Embedder
from ..jobs.reranking import Reranker
from .index import Index, read_index
from .inputs import one_item, positive


class Searcher:
    """Embeddings with the model that made them.

    Args:
        index ([`~unime.commands.index.Index`]).
        embedder ([`~unime.jobs.embedding.Embedder`]).
    """

    def __init__(self, index: Index, embedder: Embedder):
        self.index, self.embedder = index, embedder

    @classmethod
    def open(cls, path, model=None) -> "Searcher":
        """Reads what `unime encode` wrote.

        Args:
            path: the file.
            model (*optional*): the embedder, where it has moved; by default the one that the file names.

        Raises:
            ValueError: the file or the model is missing, or the model is not the one that made the file.
        """
        index = read_index(path)
        own = dict(index.about["settings"])
        known = {key: own.pop(key) for key in ("model", "library", "preset", "dtype")}
        source = model or index.about["source"]
        embedder = Embedder(source, known["library"], known["preset"], known["dtype"], **own)
        found = embedder.settings()["model"]
        if found.rpartition("@")[2] != known["model"].rpartition("@")[2]:
            raise ValueError(f"{path} was made by {known['model']}, not by {found}; make it again, or name the model.")
        return cls(index, embedder)

    def search(self, query: dict, top: int = 10) -> list[tuple[int, float]]:
        """Positions and cosine similarities of the nearest items, best first.

        Args:
            query (`dict`): an item as `encode` takes it.
            top (`int`, defaults to 10).
        """
        text, picture = query.get("text", ""), query.get("image") or query.get("video") or ""
        (vector,) = self.embedder.encode([Item(text, str(picture))], "query")
        scores = self.index.embeddings @ vector
        best = np.argsort(-scores, kind="stable")[:top]
        return [(int(i), float(scores[i])) for i in best]


def rerank(reranker: Reranker, query: dict, items: list[Item], found: list[tuple[int, float]]) -> list[dict]:
    """The found items in a reranker's order: `{"index", "score", "similarity"}`, best first."""
    scores = reranker.scores(query, [items[i].as_input() for i, _ in found], [similarity for _, similarity in found])
    rows = [{"index": i, "score": score, "similarity": own} for (i, own), score in zip(found, scores)]
    return sorted(rows, key=lambda row: -row["score"])


def show(rows: list[dict], names: list[str], items: list[Item], as_json: bool):
    """Prints ranked items."""
    columns = [key for key in ("score", "similarity") if rows and key in rows[0]]
    if rows and not as_json:
        print(f"{'':>3}  {'  '.join(f'{name:>10}' for name in columns)}  id")
    for place, row in enumerate(rows, 1):
        item = items[row["index"]]
        entry = {"place": place, "id": names[row["index"]], **row, **item.as_input()}
        entry.pop("index")
        if as_json:
            print(json.dumps(entry, ensure_ascii=False))
        else:
            scores = "  ".join(f"{row[key]:>10.4f}" for key in columns)
            print(f"{place:>3}  {scores}  {names[row['index']]}  {' '.join(item.text.split())[:80]}".rstrip())


def main(arguments=None):
    """The command `unime search`."""
    parser = argparse.ArgumentParser(
        prog="unime search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("index", type=Path, help="file made by `unime encode`")
    parser.add_argument("text", nargs="?", help="what to look for")
    parser.add_argument("--image", help="image to look for, alone or with the text")
    parser.add_argument("--instruction", help="put before the text, on a line of its own or after a colon")
    parser.add_argument("--top", type=positive, default=10, help="how many answers")
    parser.add_argument("--model", help="the embedder, if it is no longer where the index says")
    parser.add_argument("--reranker", help="reranker or stock VLM that puts the answers in its own order")
    parser.add_argument("--strategy", default="pointwise", help="of the reranker: pointwise, listwise or fused")
    parser.add_argument("--candidates", type=positive, default=10, help="how many the reranker sees, at least --top")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args(arguments)
    try:
        query = one_item(options.text, options.image, options.instruction)
        searcher = Searcher.open(options.index, options.model)
        index, seen = searcher.index, max(options.top, options.candidates) if options.reranker else options.top
        found = searcher.search(query, seen)
        rows = [{"index": i, "similarity": similarity} for i, similarity in found]
        if options.reranker:
            rows = rerank(Reranker(options.reranker, options.strategy), query, index.items, found)
    except (ValueError, OSError) as error:
        raise SystemExit(f"unime search: {error}") from error
    show(rows[: options.top], index.names, index.items, options.json)


if __name__ == "__main__":
    main()
