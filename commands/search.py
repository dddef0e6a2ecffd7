"""Answers a query from a file of embeddings: the command `unime search`.

unime search index.parquet "a red circle left of a blue star" --top 3
unime search index.parquet --image photo.png --reranker outputs/backbone --json
"""

import json
from pathlib import Path

import numpy as np

from ..data.schema import Item
from ..jobs.embedding import Embedder
from ..jobs.reranking import Reranker
from ..jobs.settings import CommandParser
from .errors import one_line_errors
from .index import Index, read_index
from .inputs import one_item
from .options import add, add_output, add_query, add_reranker


class Searcher:
    """Embeddings with the model that made them.

    Args:
        index ([`~unime.commands.index.Index`]): the items and their embeddings.
        embedder ([`~unime.jobs.embedding.Embedder`]): the model that made them, which embeds the queries.

    Example:

    ```python
    searcher = Searcher.open("index.parquet")
    for position, similarity in searcher.search({"text": "a red circle"}, top=3):
        print(searcher.index.names[position], similarity)
    ```
    """

    def __init__(self, index: Index, embedder: Embedder):
        self.index = index
        self.embedder = embedder

    @classmethod
    def open(cls, path, model=None, trust_remote_code: bool = False) -> "Searcher":
        """Reads what `unime encode` wrote.

        Args:
            path: the file.
            model (*optional*): the embedder, where it has moved; by default the one that the file names.
            trust_remote_code (`bool`, defaults to `False`): run the code of the embedder's repository.

        Raises:
            ValueError: the file or the model is missing, or the model is not the one that made the file.
        """
        index = read_index(path)
        settings = dict(index.about["settings"])
        maker = settings.pop("model")  # name@digest
        settings["trust_remote_code"] = trust_remote_code  # whatever the file says
        embedder = Embedder(model or index.about["source"], **settings)

        # the name of a folder may change, the digest of its files does not
        actual = embedder.settings()["model"]
        if actual.rpartition("@")[2] != maker.rpartition("@")[2]:
            raise ValueError(f"{path} was made by {maker}, not by {actual}; make it again, or name the model.")
        return cls(index, embedder)

    def search(self, query: dict, top: int = 10) -> list[tuple[int, float]]:
        """Positions and cosine similarities of the nearest items, best first.

        Args:
            query (`dict`): an item as `encode` takes it.
            top (`int`, defaults to 10): how many.
        """
        picture = query.get("image") or query.get("video") or ""
        item = Item(query.get("text", ""), str(picture))
        (vector,) = self.embedder.encode([item], "query")  # [D]

        similarities = self.index.embeddings @ vector  # [N]
        best = np.argsort(-similarities, kind="stable")[:top]  # of equal ones the first stays first
        return [(int(position), float(similarities[position])) for position in best]


def as_rows(matches: list[tuple[int, float]]) -> list[dict]:
    """Matches as [`show`] takes them: `{"index", "similarity"}`."""
    return [{"index": position, "similarity": similarity} for position, similarity in matches]


def rerank(reranker: Reranker, query: dict, items: list[Item], matches: list[tuple[int, float]]) -> list[dict]:
    """Puts matches in a reranker's order.

    Args:
        reranker ([`~unime.jobs.reranking.Reranker`]): what scores them.
        query (`dict`): an item as `encode` takes it.
        items (`list[Item]`): all items, of which the matches are positions.
        matches (`list[tuple[int, float]]`): positions with their similarities.

    Returns:
        `list[dict]`: `{"index", "score", "similarity"}`, best first.
    """
    candidates = [items[position].as_input() for position, _ in matches]
    similarities = [similarity for _, similarity in matches]

    rows = []
    for entry in reranker.rank(query, candidates, similarities):
        position, similarity = matches[entry["index"]]
        rows.append({"index": position, "score": entry["score"], "similarity": similarity})
    return rows


def show(rows: list[dict], names: list[str], items: list[Item], as_json: bool):
    """Prints ranked items: a table, or one JSON object a line.

    Args:
        rows (`list[dict]`): `index`, with `score`, `similarity` or both, best first.
        names (`list[str]`), items (`list[Item]`): all of them, of which `index` is a position.
        as_json (`bool`): one JSON object a line.
    """
    for place, row in enumerate(rows, 1):
        numbers = dict(row)
        position = numbers.pop("index")
        name = names[position]
        item = items[position]
        if as_json:
            print(json.dumps({"place": place, "id": name, **numbers, **item.as_input()}, ensure_ascii=False))
            continue

        # the table's head, now that its columns are known
        if place == 1:
            titles = "  ".join(f"{title:>10}" for title in numbers)
            print(f"{'':>3}  {titles}  id")
        cells = "  ".join(f"{number:>10.4f}" for number in numbers.values())
        text = " ".join(item.text.split())[:80]  # one line
        print(f"{place:>3}  {cells}  {name}  {text}".rstrip())


def main(arguments=None):
    """The command `unime search`."""
    parser = CommandParser(prog="unime search", description=__doc__)
    parser.add_argument("index", type=Path, help="file made by `unime encode`")
    parser.add_argument("text", nargs="?", help="what to look for")
    add_query(parser)
    add(parser, "top")
    add(parser, "model", help="the embedder, if it is no longer where the index says")
    add_reranker(parser)
    add(parser, "trust-remote-code")
    add(parser, "candidates")
    add_output(parser)

    options = parser.parse_args(arguments)

    with one_line_errors("unime search"):
        query = one_item(options.text, options.image, options.instruction)
        searcher = Searcher.open(options.index, options.model, options.trust_remote_code)
        index = searcher.index
        if options.reranker:
            # it may lift an answer that the embedder has too low to be shown
            matches = searcher.search(query, max(options.top, options.candidates))
            reranker = Reranker(options.reranker, options.strategy, trust_remote_code=options.trust_remote_code)
            rows = rerank(reranker, query, index.items, matches)
        else:
            rows = as_rows(searcher.search(query, options.top))
    show(rows[: options.top], index.names, index.items, options.json)


if __name__ == "__main__":
    main()
