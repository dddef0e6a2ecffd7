"""The work of `unime mine retrieve`: the candidates nearest to each pair's query that its rules allow."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..files.names import file_name
from ..jobs.results import StoredArray
from ..jobs.shards import MANIFEST, processes
from .ivfpq import LEAST, IvfPqIndex, build_ivfpq, measure_recall
from .pools import Pair
from .retrieval import COPY, Corpus


class RetrievalWork:
    """The work of `unime mine retrieve`: the potential hard negatives of pairs (UniME-V2, 2510.13515 section 3).

    Args:
        config ([`~unime.mining.settings.MiningConfig`]): `top_k`, `pool`, `delta` and the index.
        embeddings (`dict`): of the pool's `"queries"` `[Q, D]` and `"candidates"` `[N, D]`. Candidates that have none
            are never retrieved.
        candidates_of_dataset (`dict`): numbers of the candidates of each data set.
        folder (`Path`): for an index on the disk.

    Raises:
        ValueError: `config.pool` is neither `"global"` nor `"dataset"`.
    """

    def __init__(
        self,
        config,
        embeddings: dict[str, StoredArray],
        candidates_of_dataset: dict[str, np.ndarray],
        folder: Path,
    ):
        if config.pool not in ("global", "dataset"):
            raise ValueError(f"the pool must be 'global' or 'dataset', got {config.pool!r}.")

        self.config = config
        self.queries = embeddings["queries"]
        self.candidates = embeddings["candidates"]
        self.candidates_of_dataset = candidates_of_dataset
        self.folder = folder

        # an index may be large, and the rows of a data set stand together: one is held at a time
        self.corpora: dict[str, Corpus | IvfPqIndex] = {}

    def build(self, settings: dict) -> Iterator[str]:
        """Builds what lies on the disk: indices of `ivfpq`, one for each pool that is large enough.

        Args:
            settings (`dict`): what the embeddings were made from.

        Yields:
            `str`: a line about each pool, with the recall that was measured.
        """
        config = self.config
        if config.index != "ivfpq":
            return

        for name in [""] if config.pool == "global" else self.candidates_of_dataset:
            title = name or "all candidates"
            rows = self._rows_of_corpus(name)
            if len(rows) < LEAST:
                yield f"{title}: {len(rows)} candidates are searched exactly, {LEAST} are the least for ivfpq"
                continue

            folder = self._index_folder(name)
            build_ivfpq(folder, self.candidates, rows, settings, config.ivf_lists)
            recall = measure_recall(
                folder,
                IvfPqIndex(folder, self.candidates, config.ivf_probes, config.short_list),
                rows,
                self.queries,
                config.recall_queries,
                config.top_k,
                processes().device,
            )
            yield f"{title}: ivfpq finds {recall:.1%} of the {config.top_k} nearest (recall in {folder / MANIFEST})"

    def neighbours(self, rows: Sequence[tuple[Pair, list[int]]]) -> dict[str, np.ndarray]:
        """The candidates nearest to each pair's query that its rules allow.

        Args:
            rows: pairs, each with the candidates that are excluded.

        Returns:
            `neighbours` `[B, top_k]`, numbers of candidates, best first, -1 where there are fewer; their
            `similarities` `[B, top_k]`; and the `positive_similarity` `[B]` of each pair.
        """
        top_k = self.config.top_k
        neighbours = np.empty((len(rows), top_k), np.int64)
        similarities = np.empty((len(rows), top_k), np.float32)

        queries = self.queries[np.array([pair.query for pair, _ in rows])]  # [B, D]
        positives = self.candidates[np.array([pair.positive for pair, _ in rows])]  # [B, D]
        positive_similarity = np.array([query @ positive for query, positive in zip(queries, positives)], np.float32)

        # pairs that search the same corpus are searched together
        for name, places in self._places_by_corpus(rows).items():
            excluded = [rows[place][1] for place in places]
            below = self._below(positive_similarity[places])
            nearest = self._corpus(name).top_k(queries[places], top_k, below, excluded)
            neighbours[places], similarities[places] = nearest

        return {"neighbours": neighbours, "similarities": similarities, "positive_similarity": positive_similarity}

    def _places_by_corpus(self, rows: Sequence[tuple[Pair, list[int]]]) -> dict[str, list[int]]:
        """The pairs' places by the data set whose candidates they search, `""` for the candidates of all."""
        places = {}
        for place, (pair, _) in enumerate(rows):
            name = "" if self.config.pool == "global" else pair.dataset
            places.setdefault(name, []).append(place)
        return places

    def _corpus(self, name: str) -> Corpus | IvfPqIndex:
        """The candidates of a data set, or of all, that have an embedding."""
        if name not in self.corpora:
            self.corpora = {name: self._new_corpus(name)}
        return self.corpora[name]

    def _new_corpus(self, name: str) -> Corpus | IvfPqIndex:
        config = self.config
        rows = self._rows_of_corpus(name)
        index = config.index
        if index == "ivfpq":
            if len(rows) >= LEAST:
                return IvfPqIndex(self._index_folder(name), self.candidates, config.ivf_probes, config.short_list)
            index = "exact"
        return Corpus(self.candidates, rows, index, config.ivf_lists, config.ivf_probes, processes().device)

    def _rows_of_corpus(self, name: str) -> np.ndarray:
        if self.config.pool == "global":
            return np.flatnonzero(self.candidates.present)
        rows = self.candidates_of_dataset[name]
        return rows[self.candidates.present[rows]]

    def _index_folder(self, name: str) -> Path:
        return self.folder / file_name(name) if name else self.folder

    def _below(self, positive_similarity: np.ndarray) -> np.ndarray | list[float] | None:
        """What the similarities of each pair's candidates must be less than; None for no limit."""
        if self.config.delta == "none":
            return None

        # a copy of the positive may seem a little less similar than the positive itself
        if self.config.delta == "positive":
            return positive_similarity - COPY
        return [float(self.config.delta)] * len(positive_similarity)
