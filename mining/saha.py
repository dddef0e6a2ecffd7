"""Self-aware hard negatives: the clusters of SaHa, from "From Generator to Embedder" (2508.00955)."""

import json
from pathlib import Path

import numpy as np

from ..files.names import file_name
from ..files.writing import has_json, write_text
from ..jobs.embedding import image_name
from .retrieval import exact_top_k
from .selection import Pair


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
    for row, (query, _) in enumerate(pairs):
        if query in owners.used:
            continue
        members = members_of(query, pool_size)
        if members:
            result.append((row, members))
            owners.use([row, *members])
        elif owners.row_of_query[query] == row:
            waiting.append(row)  # once for each query

    # pass 2: anchors without a cluster, with twice as many owners, each of which may serve once more
    owners.used.clear()
    for row in waiting:
        members = members_of(pairs[row][0], 2 * pool_size)
        if members:
            result.append((row, members))
            owners.use(members)
    return result


class _Owners:
    """The queries that own candidates, as their positives in some row, and those of them that are used up."""

    def __init__(self, queries: np.ndarray, pairs: list[tuple[int, int]]):
        self.queries = queries  # [Q, D]
        self.pairs = pairs
        self.used: set[int] = set()
        self.row_of_pair: dict[tuple[int, int], int] = {}  # the first row of each
        self.row_of_query: dict[int, int] = {}
        self.positives: dict[int, set[int]] = {}  # of each query
        self.owners: dict[int, list[int]] = {}  # of each candidate, in the order of rows

        for row, (query, positive) in enumerate(pairs):
            self.row_of_query.setdefault(query, row)
            self.positives.setdefault(query, set()).add(positive)
            if (query, positive) not in self.row_of_pair:
                self.row_of_pair[query, positive] = row
                self.owners.setdefault(positive, []).append(query)

    def use(self, rows: list[int]):
        """Marks the queries of some rows as used up."""
        for row in rows:
            query, _ = self.pairs[row]
            self.used.add(query)

    def nearest(self, anchor: int, candidates: list[int], count: int) -> list[tuple[int, float]]:
        """Up to `count` owners of an anchor's nearest candidates: their rows, and how similar their queries are."""
        result = []

        # positives of the anchor and of the owners so far: no two members share one
        covered = set(self.positives[anchor])
        for candidate in candidates:
            if candidate < 0 or candidate in covered:
                continue
            unused = self._unused(candidate, covered)
            if not unused:
                continue

            # of several owners, the one whose query is the most similar
            similarities = self.queries[unused] @ self.queries[anchor]  # [owners]
            best = int(similarities.argmax())
            owner = unused[best]
            result.append((self.row_of_pair[owner, candidate], float(similarities[best])))
            covered |= self.positives[owner]
            if len(result) == count:
                break
        return result

    def _unused(self, candidate: int, covered: set[int]) -> list[int]:
        """The owners of a candidate that are not used up and have no positive among the covered ones."""
        result = []
        for query in self.owners.get(candidate, ()):
            if query not in self.used and self.positives[query].isdisjoint(covered):
                result.append(query)
        return result


def write_clusters(mining, embeddings: dict[str, np.ndarray], folder: Path):
    """The work of `unime mine saha`: writes the clusters of each data set in the layout of the released script.

    Each process of a launch takes every n-th data set. A file that exists already is left as it is: it was written
    whole by an earlier run.

    Args:
        mining ([`~unime.mining.pipeline.Mining`]): a folder in which `embed` is finished.
        embeddings (`dict`): of the pool's `"queries"` `[Q, D]` and `"candidates"` `[N, D]`.
        folder (`Path`): where `<data set>_hard_negatives.json` is written, the name made safe by
            [`~unime.files.names.file_name`].
    """
    pairs_of = {}
    for pair in mining.pairs:
        pairs_of.setdefault(pair.dataset, []).append(pair)

    for number, (name, pairs) in enumerate(pairs_of.items()):
        path = folder / f"{file_name(name)}_hard_negatives.json"
        if number % mining.state.num_processes != mining.state.process_index or has_json(path, list):
            continue

        rows = _cluster_rows(mining, name, pairs, embeddings)
        lines = []
        members = len(rows)  # anchors are members, too
        for row in rows:
            lines.append(json.dumps(row, ensure_ascii=False))
            members += len(row["neg_samples"])
        write_text(path, "[\n" + ",\n".join(lines) + "\n]\n")

        mean_size = members / max(len(rows), 1)
        print(f"{name}: {len(rows)} clusters of {mean_size:.1f} rows on average", flush=True)


def _cluster_rows(mining, name: str, pairs: list[Pair], embeddings: dict[str, np.ndarray]) -> list[dict]:
    """The clusters of one data set as the file has them."""
    config = mining.config

    # the data set's own queries and candidates, numbered from zero
    queries = {}
    candidates = {}
    rows = []
    for pair in pairs:
        # copies of a query are one: the positive of one is none of the other's negatives
        first_copy = mining.first_copies[pair.query]
        query = queries.setdefault(first_copy, len(queries))
        candidate = candidates.setdefault(pair.positive, len(candidates))
        rows.append((query, candidate))
    query_embeddings = embeddings["queries"][list(queries)]  # [Q, D]
    candidate_embeddings = embeddings["candidates"][list(candidates)]  # [N, D]

    # deep enough for pass 2, which looks at twice as many owners
    depth = 2 * config.cluster_size * config.pool_multiplier
    neighbours, _ = exact_top_k(query_embeddings, candidate_embeddings, depth, device=mining.state.device)

    if config.label_datasets is None:
        labels = is_label_type(len(candidates), len(rows))
    else:
        labels = name in config.label_datasets

    groups = clusters(
        query_embeddings,
        candidate_embeddings,
        rows,
        neighbours,
        config.cluster_size,
        config.pool_multiplier,
        labels,
    )

    result = []
    for anchor, members in groups:
        row = _released_row(mining, pairs[anchor])
        row["neg_samples"] = [_released_row(mining, pairs[member]) for member in members]
        result.append(row)
    return result


def _released_row(mining, pair: Pair) -> dict:
    """A pair under the released script's names."""
    query = mining.pool.queries[pair.query]
    return {
        "qry": query.text,
        "qry_image_path": image_name(query, mining.image_root),
        "pos_text": pair.item.text,
        "pos_image_path": image_name(pair.item, mining.image_root),
    }
