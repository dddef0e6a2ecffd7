"""Self-aware hard negatives: the clusters of SaHa, from "From Generator to Embedder" (2508.00955)."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..files.names import file_name
from ..files.writing import has_json, read_json, write_whole
from ..jobs.embedding import image_name
from ..jobs.results import JobResults, SomeRows, StoredArray
from ..jobs.shards import MANIFEST, processes
from .pools import Pair, numbered
from .retrieval import exact_top_k

NEIGHBOURS = "saha-neighbours"  # folder of what is needed until the clusters are written
IN_MEMORY = 2**29  # bytes of a data set's embeddings up to which they are read whole


def is_label_type(positives: int, rows: int, ratio: float = 0.05) -> bool:
    """Whether a data set's targets are labels: on average, `1 / ratio` rows or more share one.

    Args:
        positives (`int`): distinct positives of the data set.
        rows (`int`): its rows.
        ratio (`float`, defaults to 0.05): the most distinct positives per row.
    """
    return positives <= ratio * rows


def clusters(
    queries: np.ndarray,
    candidates: np.ndarray,
    pairs: list[tuple[int, int]],
    neighbours: np.ndarray,
    size: int = 15,
    pool_multiplier: int = 3,
    labels: bool = False,
) -> list[tuple[int, list[int]]]:
    """Self-aware hard negative sampling: each anchor with rows whose positives look hard and whose queries do not.

    Pass 1 takes anchors in the order of rows. The candidates nearest to the anchor are replaced by the queries that
    own them; of `size * pool_multiplier` owners, the `size` least similar to the anchor's query are kept, because
    their positives are the least likely to fit it (for label sets, which have no such order, the nearest are). Anchors
    and owners are used up. Pass 2 makes clusters of the anchors that found no unused owner; there an owner may be used
    again, once.

    Unlike the released script, two members never share a positive, and a query of several rows keeps them apart.

    Args:
        queries (array `[Q, D]`), candidates (array `[N, D]`): unit-norm embeddings; of the candidates, only the order
            in `neighbours` counts.
        pairs (`list[tuple[int, int]]`): the rows, as query and positive.
        neighbours (array `[Q, 2 * size * pool_multiplier]`): nearest candidates of each query, -1 for none.
        size (`int`, defaults to 15): negatives of a cluster.
        pool_multiplier (`int`, defaults to 3): owners looked at, for each that is kept.
        labels (`bool`, defaults to `False`): whether the positives are labels (see [`is_label_type`]).

    Returns:
        `(row, [rows])`: anchor and members, as indices into `pairs`.

    Example:

    ```python
    neighbours, _ = exact_top_k(queries, candidates, 2 * 15 * 3)
    for anchor, members in clusters(queries, candidates, pairs, neighbours):
        ...
    ```
    """
    pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
    owners = _Owners(queries, pairs)
    pool_size = size * pool_multiplier

    def members_of(anchor: int, count: int) -> list[int]:
        """Rows of the members of an anchor's cluster, from the `count` owners of its nearest candidates."""
        nearest = owners.nearest(anchor, neighbours[anchor].tolist(), count)
        if not labels:
            nearest.sort(key=lambda owner: owner[1])  # the least similar first
        return [row for row, _ in nearest[:size]]

    # pass 1: anchors and members are used up
    result = []
    waiting = []
    for row, query in enumerate(pairs[:, 0].tolist()):
        if owners.used[query]:
            continue
        members = members_of(query, pool_size)
        if members:
            result.append((row, members))
            owners.use([row, *members])
        elif owners.first_row[query] == row:
            waiting.append(row)  # once for each query

    # pass 2: anchors without a cluster, with twice as many owners, each of which may serve once more
    owners.used[:] = False
    for row in waiting:
        members = members_of(int(pairs[row, 0]), 2 * pool_size)
        if members:
            result.append((row, members))
            owners.use(members)
    return result


class _Owners:
    """The queries that own candidates, as their positives in some row, and those of them that are used up.

    All of it is columns of numbers: a data set may have millions of rows.
    """

    def __init__(self, queries, pairs: np.ndarray):
        self.queries = queries  # [Q, D]
        self.query_of = pairs[:, 0]
        self.used = np.zeros(len(queries), bool)

        # the first row of each query, and of each pair of a query and a positive
        present, first_rows = np.unique(self.query_of, return_index=True)
        self.first_row = np.full(len(queries), -1)
        self.first_row[present] = first_rows
        _, rows = np.unique(pairs, axis=0, return_index=True)
        rows.sort()
        pairs = pairs[rows]

        # the positives of each query stand together, and so do the owners of each candidate, in the order of rows
        by_query = np.argsort(pairs[:, 0], kind="stable")
        by_candidate = np.argsort(pairs[:, 1], kind="stable")
        self.positives = pairs[by_query, 1]
        self.positive_starts = np.searchsorted(pairs[by_query, 0], np.arange(len(queries) + 1))
        self.owners = pairs[by_candidate, 0]
        self.owner_rows = rows[by_candidate]
        self.owner_starts = np.searchsorted(pairs[by_candidate, 1], np.arange(pairs[:, 1].max(initial=-1) + 2))

    def use(self, rows: list[int]):
        """Marks the queries of some rows as used up."""
        self.used[self.query_of[rows]] = True

    def positives_of(self, query: int) -> list[int]:
        return self.positives[self.positive_starts[query] : self.positive_starts[query + 1]].tolist()

    def nearest(self, anchor: int, candidates: list[int], count: int) -> list[tuple[int, float]]:
        """Up to `count` owners of an anchor's nearest candidates: their rows, and how similar their queries are."""
        result = []
        anchor_embedding = self.queries[anchor]  # [D]

        # positives of the anchor and of the owners so far: no two members share one
        covered = set(self.positives_of(anchor))
        for candidate in candidates:
            if candidate < 0 or candidate in covered:
                continue
            owners, rows = self._unused(candidate, covered)
            if not len(owners):
                continue

            # of several owners, the one whose query is the most similar
            similarities = self.queries[owners] @ anchor_embedding  # [owners]
            best = int(similarities.argmax())
            result.append((int(rows[best]), float(similarities[best])))
            covered.update(self.positives_of(owners[best]))
            if len(result) == count:
                break
        return result

    def _unused(self, candidate: int, covered: set[int]) -> tuple[np.ndarray, np.ndarray]:
        """The owners of a candidate that are not used up and have no positive among the covered ones; and their rows
        with it."""
        if candidate + 1 >= len(self.owner_starts):
            return self.owners[:0], self.owner_rows[:0]

        # the owners of a candidate stand together
        places = np.arange(self.owner_starts[candidate], self.owner_starts[candidate + 1])
        places = places[~self.used[self.owners[places]]]

        # an owner whose positive is in the cluster would be a false negative of it
        free = [covered.isdisjoint(self.positives_of(owner)) for owner in self.owners[places]]
        places = places[np.array(free, bool)]
        return self.owners[places], self.owner_rows[places]


def write_clusters(mining, embeddings: dict[str, StoredArray], folder: Path):
    """The work of `unime mine saha`: writes the clusters of each data set in the layout of the released script.

    The nearest candidates of a large data set are found by all processes, as a job; its clusters by one, because the
    method takes anchors in order. Each process of a launch takes every n-th data set. A file that exists already is
    left as it is: it was written whole by an earlier run.

    Args:
        mining ([`~unime.mining.pipeline.Mining`]): a folder in which `embed` is finished.
        embeddings (`dict`): of the pool's `"queries"` `[Q, D]` and `"candidates"` `[N, D]`.
        folder (`Path`): where `<data set>_hard_negatives.json` is written, the name made safe by
            [`~unime.files.names.file_name`].
    """
    numbers = mining.pair_numbers
    dataset_of = mining.pool.dataset_of[numbers]
    for place, number in enumerate(dict.fromkeys(dataset_of.tolist())):
        name = mining.pool.datasets[number]
        path = folder / f"{file_name(name)}_hard_negatives.json"

        # a data set that is done stays as it is
        if has_json(path, list):
            continue

        dataset = _DataSet.of(mining, numbers[dataset_of == number], embeddings)
        neighbours = _neighbours(mining, dataset, name)

        # a data set is written by one process, as its clusters depend on each other
        if place % mining.state.num_processes == mining.state.process_index:
            _write_clusters(mining, name, dataset, neighbours, path)


@dataclass(frozen=True)
class _DataSet:
    """One data set, its own queries and candidates numbered from zero.

    Args:
        pairs (array `[n]`): numbers of its pairs in the pool.
        rows (array `[n, 2]`): query and positive of each.
        queries (`[Q, D]`), candidates (`[N, D]`): their embeddings, in memory where they are few.
    """

    pairs: np.ndarray
    rows: np.ndarray
    queries: object
    candidates: object

    @classmethod
    def of(cls, mining, pairs: np.ndarray, embeddings: dict[str, StoredArray]) -> "_DataSet":
        # copies of a query are one: the positive of one is none of the other's negatives
        pool = mining.pool
        first_copies = pool.first_copies[pool.query_of[pairs]]
        positives = pool.positive_of[pairs]
        queries, first_queries = numbered(pa.array(first_copies))
        candidates, first_candidates = numbered(pa.array(positives))
        return cls(
            pairs,
            np.stack([queries, candidates], axis=1),
            _in_memory(SomeRows(embeddings["queries"], first_copies[first_queries])),
            _in_memory(SomeRows(embeddings["candidates"], positives[first_candidates])),
        )


def _in_memory(rows: SomeRows):
    """Embeddings as one array, unless that would be large."""
    return rows[:] if np.prod(rows.shape) * 4 <= IN_MEMORY else rows


def _neighbours(mining, dataset: _DataSet, name: str):
    """The nearest candidates `[Q, depth]` of each query; of a large data set they are found as a job."""
    config = mining.config

    # deep enough for pass 2, which looks at twice as many owners
    depth = 2 * config.cluster_size * config.pool_multiplier
    if len(dataset.queries) <= config.retrieve_shard:
        return exact_top_k(dataset.queries[:], dataset.candidates, depth, device=mining.state.device)[0]

    queries = dataset.queries
    folder = f"{NEIGHBOURS}/{file_name(name)}"
    mining._run_job(
        folder,
        range(len(queries)),
        partial(_nearest, candidates=dataset.candidates, depth=depth),
        {"depth": depth, "manifest": read_json(mining.out / "saha" / MANIFEST)},
        inputs=lambda numbers: queries[numbers.start : numbers.stop],
        shard_size=config.retrieve_shard,
        description=f"Neighbours of {name}",
        failures=(),
    )
    return JobResults(mining.out / folder)["neighbours"]


def _nearest(queries: np.ndarray, candidates, depth: int) -> dict[str, np.ndarray]:
    """The work of that job."""
    neighbours, _ = exact_top_k(queries, candidates, depth, device=processes().device)
    return {"neighbours": neighbours}


def _write_clusters(mining, name: str, dataset: _DataSet, neighbours, path: Path):
    """Writes the clusters of one data set."""
    config = mining.config
    if config.label_datasets is None:
        labels = is_label_type(len(dataset.candidates), len(dataset.rows))
    else:
        labels = name in config.label_datasets
    groups = clusters(
        dataset.queries,
        dataset.candidates,
        dataset.rows,
        neighbours,
        config.cluster_size,
        config.pool_multiplier,
        labels,
    )

    members = len(groups)  # anchors are members, too

    def write(draft: Path):
        nonlocal members
        with open(draft, "w", encoding="utf-8") as file:
            for place, (anchor, others) in enumerate(groups):
                file.write(",\n" if place else "[\n")
                pairs = mining.pool.pairs.take(dataset.pairs[[anchor, *others]])
                row, *negatives = [_released_row(mining, pair) for pair in pairs]
                file.write(json.dumps({**row, "neg_samples": negatives}, ensure_ascii=False))
                members += len(others)
            file.write("\n]\n" if groups else "[\n\n]\n")

    write_whole(path, write)
    print(f"{name}: {len(groups)} clusters of {members / max(len(groups), 1):.1f} rows on average", flush=True)


def _released_row(mining, pair: Pair) -> dict:
    """A pair under the released script's names."""
    return {
        "qry": pair.query_item.text,
        "qry_image_path": image_name(pair.query_item, mining.image_root),
        "pos_text": pair.item.text,
        "pos_image_path": image_name(pair.item, mining.image_root),
    }
