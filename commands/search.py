"""Answers a query from a file of embeddings: the command `unime search`.

unime search index.parquet "a red circle left of a blue star" --top 3
unime search index.parquet --image photo.png --reranker outputs/backbone --json
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from inspect import signature
from pathlib import Path

import numpy as np
from huggingface_hub import try_to_load_from_cache

from ..data.items import Item
from ..jobs.choices import DTYPES, LIBRARIES
from ..jobs.embedding import Embedder
from ..jobs.notices import notice
from ..jobs.reranking import Reranker
from ..preset_files_unime import preset_from
from ..prompts_unime import PRESETS
from .errors import one_line_errors
from .index import Index, read_index
from .inputs import one_item
from .parsers.search import read


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
    def open(
        cls, path, model=None, trust_remote_code: bool = False, confirm: Callable[[str], object] = str
    ) -> "Searcher":
        """Reads what `unime encode` wrote.

        A file names its model as data: it is loaded where it is on this machine, and never downloaded for it.

        Args:
            path: the file.
            model (*optional*): the embedder; by default the one that the file names.
            trust_remote_code (`bool`, defaults to `False`): run the code of the embedder's repository.
            confirm (*optional*): called with the name of that model before it is loaded; raises to refuse.

        Raises:
            ValueError: the file or the model is missing, or the model is not the one that made the file.
        """
        index = read_index(path)
        if model is None:
            model = index.about["source"]
            if not is_present(model):
                raise ValueError(f"{path} names the model {model}, which is not on this machine; give --model.")
            confirm(model)

        embedder = _embedder_of(path, index, model, trust_remote_code)

        # the name of a folder may change, the digest of its files does not
        maker = index.about["settings"]["model"]  # name@digest
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
        item = Item(query.get("text", ""), str(picture), instruction=query.get("instruction", ""))
        (vector,) = self.embedder.encode([item], "query")  # [D]

        # a file says what made it, but anybody may have written it
        width = self.index.embeddings.shape[1]
        if len(vector) != width:
            raise ValueError(f"the index has vectors of width {width}, the model makes {len(vector)}.")

        similarities = self.index.embeddings @ vector  # [N]
        best = np.argsort(-similarities, kind="stable")[:top]  # of equal ones the first stays first
        return [(int(position), float(similarities[position])) for position in best]


def is_present(model: str) -> bool:
    """Whether a model is on this machine: a folder, or a repository that was downloaded before."""
    if Path(model).is_dir():
        return True
    try:
        return isinstance(try_to_load_from_cache(model, "config.json"), str)
    except ValueError:  # not the name of a repository
        return False


def _embedder_of(path, index: Index, model, trust_remote_code: bool) -> Embedder:
    """A model with the settings that an index was made with. These are data: none of them may be more than that."""
    settings = dict(index.about["settings"])
    del settings["model"]
    library = settings.pop("library", "unime")
    preset = settings.pop("preset", None)
    dtype = settings.pop("dtype", "auto")

    if isinstance(preset, dict):
        preset = preset_from(preset, PRESETS, "preset", f"the preset of {path}")
    elif preset not in (None, *PRESETS):
        raise ValueError(f"{path} was made with the preset {preset!r}, which is not known here.")
    if library not in LIBRARIES or dtype not in DTYPES:
        raise ValueError(f"{path} was made in a way that is not known here: {library}, {dtype}.")

    # what is left is for `encode`
    parameters = signature(Embedder).parameters
    for name in settings:
        if name in parameters:
            raise ValueError(f"{path} names {name!r} as an option of `encode`, which it is not.")
    return Embedder(model, library, preset, dtype, trust_remote_code, **settings)


def _confirm(index: Path, model: str):
    """Says which model a file names, and asks whoever sits at a terminal."""
    if not sys.stdin.isatty():
        notice(f"unime search: {index} was made by {model}, which is loaded; --model names another.")
        return

    print(f"{index} names the model {model}. Load it? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise ValueError("nothing was loaded; name the model with --model.")


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
        words = [name]
        if item.image and not item.image.endswith(name):  # a number says nothing of a picture
            words.append(item.image)
        words.append(" ".join(item.text.split())[:80])  # one line
        print(_printable(f"{place:>3}  {cells}  {'  '.join(words)}".rstrip()))


def _printable(text: str) -> str:
    """Without what would move a terminal's cursor or change its colours."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def execute(options):
    """Does what the options of `unime search` say."""
    with one_line_errors("unime search"):
        query = one_item(options.text, options.image, options.instruction)
        confirm = partial(_confirm, options.index)
        searcher = Searcher.open(options.index, options.model, options.trust_remote_code, confirm)
        index = searcher.index

        if options.reranker:
            # it may lift an answer that the embedder has too low to be shown
            matches = searcher.search(query, max(options.top, options.candidates))
            reranker = Reranker(
                options.reranker,
                options.strategy,
                trust_remote_code=options.trust_remote_code,
                preset=options.reranker_preset,
            )
            rows = rerank(reranker, query, index.items, matches)
        else:
            rows = as_rows(searcher.search(query, options.top))
    show(rows[: options.top], index.names, index.items, options.json)


def main(arguments=None):
    """The command `unime search`."""
    execute(read(arguments))


if __name__ == "__main__":
    main()
