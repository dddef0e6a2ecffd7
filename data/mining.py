"""Which candidates become hard negatives: pools, UniME-V2's selection by judge scores, SaHa's clusters.

Everything here is plain arithmetic on arrays; `data/pipeline.py` feeds it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .readers import PLACEHOLDER
from .schema import Example, Item


def identity(item: Item) -> tuple[str, str]:
    """What makes two candidates one: equal images, and texts equal but for case, spacing and placeholders."""
    return " ".join(item.text.replace(PLACEHOLDER, " ").split()).casefold(), item.image


class Pair(NamedTuple):
    """A query and a candidate of a pool by their numbers, the data set, and the positive as its own row spells it."""

    query: int
    positive: int
    dataset: str
    item: Item


@dataclass
class Pool:
    """The distinct queries and candidates of some rows, and the distinct pairs of them.

    Args:
        queries (`list[Item]`): distinct queries.
        candidates (`list[Item]`): distinct positives, told apart by [`identity`]; negatives are drawn from them.
        pairs (`list[Pair]`): distinct ones, in the order of the rows.
    """

    queries: list[Item] = field(default_factory=list)
    candidates: list[Item] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)

    @classmethod
    def of(cls, examples: Iterable[Example]) -> "Pool":
        """The pool of some rows."""
        queries, known, pool, pairs = {}, {}, cls(), {}
        for example in examples:
            key = identity(example.positive)
            if key not in known:
                known[key] = len(known)
                pool.candidates.append(example.positive)
            query = queries.setdefault(example.query, len(queries))
            pairs.setdefault(Pair(query, known[key], example.dataset, example.positive))
        pool.queries, pool.pairs = list(queries), list(pairs)
        return pool

    def excluded(self) -> list[list[int]]:
        """For each query, the candidates that cannot be its negatives: all its positives, and the query itself."""
        known = {identity(candidate): number for number, candidate in enumerate(self.candidates)}
        found = [{known[key]} if (key := identity(query)) in known else set() for query in self.queries]
        for pair in self.pairs:
            found[pair.query].add(pair.positive)
        return [sorted(own) for own in found]

    def by_dataset(self) -> dict[str, list[int]]:
        """The candidates of each data set."""
        found = {}
        for pair in self.pairs:
            found.setdefault(pair.dataset, set()).add(pair.positive)
        return {name: sorted(own) for name, own in found.items()}


# UniME-V2: 2510.13515 section 3, and what its released file shows
def released_margin(positive_score: float) -> float:
    """The margin that all rows of the released file keep: a tenth, a hundredth, ..., by the positive's score.

    The paper prints 0.01 for all; the file has no gap below 0.1 where the positive scores above 0.1, below 0.01 where
    it scores above 0.01, and so on.
    """
    return 0.1 if positive_score > 0.1 else 0.01 if positive_score > 0.01 else 0.001


def allowed(positive_score: float, scores: np.ndarray, margin: float | str = 0.01) -> np.ndarray:
    """Which candidates are negatives beyond doubt: `s <= s_pos - margin`; bool `[n]`.

    Args:
        positive_score (`float`): the judge's score of the positive.
        scores (array `[n]`): those of the candidates; NaN is never allowed.
        margin (`float` or `"released"`): beta; the paper's 0.01, or [`released_margin`].
    """
    margin = released_margin(positive_score) if margin == "released" else float(margin)
    return np.asarray(scores, np.float64) <= positive_score - margin


def cyclic_order(count: int, stride: int = 5) -> list[int]:
    """Every `stride`-th of `count` places, then again from the second place on, and so on, until all are taken."""
    if stride < 1:
        raise ValueError(f"the stride must be positive, got {stride}.")
    return [place for offset in range(min(stride, count)) for place in range(offset, count, stride)]


def select(
    positive_score: float, scores, num_negatives: int = 10, margin: float | str = 0.01, stride: int = 5,
    fallback: str = "drop", seed: int = 0,
) -> tuple[list[int], list[float]] | None:  # fmt: skip
    """UniME-V2's choice of hard negatives among the retrieved candidates of one query.

    The allowed candidates, in the order of retrieval, are sampled cyclically; fewer than `num_negatives` are repeated.

    Args:
        positive_score (`float`): the judge's score of the positive.
        scores (array `[n]`): those of the candidates, nearest first; NaN where there is none.
        num_negatives (`int`, defaults to 10).
        margin, stride: see [`allowed`] and [`cyclic_order`].
        fallback (`str`): where no candidate is allowed, `"drop"` the row, take those the judge likes least
            (`"judge_lowest"`), or do as released: a random choice to which the score 1.0 is assigned (`"released"`).
        seed (`int`): of that choice.

    Returns:
        places among the candidates and their scores, `num_negatives` of each; None where the row is dropped.
    """
    scores = np.asarray(scores, np.float64)
    if fallback not in ("drop", "judge_lowest", "released"):
        raise ValueError(f"fallback must be 'drop', 'judge_lowest' or 'released', got {fallback!r}.")
    places = np.flatnonzero(allowed(positive_score, scores, margin))
    present = np.flatnonzero(~np.isnan(scores))
    if len(places):
        order = places[cyclic_order(len(places), stride)]
    elif fallback == "drop" or not len(present):
        return None
    elif fallback == "judge_lowest":
        order = present[np.argsort(scores[present], kind="stable")][:num_negatives]
    else:
        order = np.random.default_rng(seed).permutation(present)[:num_negatives]
        return np.resize(order, num_negatives).tolist(), [1.0] * num_negatives
    order = np.resize(order, num_negatives)
    return order.tolist(), scores[order].tolist()


# From Generator to Embedder: SaHa, 2508.00955
def is_label_type(positives: int, rows: int, ratio: float = 0.05) -> bool:
    """Whether a data set's targets are labels: on average, `1 / ratio` rows or more share one."""
    return positives <= ratio * rows


def clusters(
    queries: np.ndarray, candidates: np.ndarray, pairs: list[tuple[int, int]], neighbours: np.ndarray, size: int = 15,
    pool_multiplier: int = 3, labels: bool = False,
) -> list[tuple[int, list[int]]]:  # fmt: skip
    """Self-aware hard negative sampling: each anchor with rows whose positives look hard and whose queries do not.

    Pass 1 takes anchors in the order of rows. The candidates nearest to the anchor are replaced by the queries that
    own them; of `size * pool_multiplier` owners, the `size` least similar to the anchor's query are kept, because
    their positives are the least likely to fit it (for label sets, which have no such order, the nearest are). Anchors
    and owners are used up. Pass 2 makes clusters of the anchors that found no unused owner; there an owner may be used
    again, once.

    Unlike the released script, two members never share a positive, and a query of several rows keeps them apart.

    Args:
        queries (array `[Q, D]`), candidates (array `[N, D]`): unit-norm embeddings.
        pairs (`list[tuple[int, int]]`): the rows, as query and positive.
        neighbours (array `[Q, 2 * size * pool_multiplier]`): nearest candidates of each query, -1 for none.
        size (`int`, defaults to 15): negatives of a cluster.
        pool_multiplier (`int`, defaults to 3).
        labels (`bool`): whether the positives are labels (see [`is_label_type`]).

    Returns:
        `(row, [rows])`: anchor and members, as indices into `pairs`.
    """
    rows_of_query, owners_of, row_of = {}, {}, {}
    for row, (query, positive) in enumerate(pairs):
        rows_of_query.setdefault(query, []).append(row)
        owners_of.setdefault(positive, {}).setdefault(query)
        row_of.setdefault((query, positive), row)
    positives_of = {query: {pairs[row][1] for row in rows} for query, rows in rows_of_query.items()}
    used, found, left = set(), [], []

    def members(anchor: int, wanted: int, taken: set[int]) -> list[int]:
        """Rows of the owners of an anchor's nearest candidates, in the order in which they are to be kept."""
        own, covered = {}, set(positives_of[anchor])
        for candidate in neighbours[anchor].tolist():
            if candidate < 0 or candidate in covered:
                continue
            free = [
                query for query in owners_of.get(candidate, ())
                if query != anchor and query not in taken and query not in own and not positives_of[query] & covered
            ]  # fmt: skip
            if not free:
                continue
            similarity = queries[free] @ queries[anchor]  # [owners]
            best = int(similarity.argmax())
            own[free[best]] = (candidate, float(similarity[best]))
            covered |= positives_of[free[best]]
            if len(own) == wanted:
                break
        order = list(own) if labels else sorted(own, key=lambda query: own[query][1])
        return [row_of[query, own[query][0]] for query in order[:size]]

    first = size * pool_multiplier
    for row, (query, _) in enumerate(pairs):
        if query in used:
            continue
        if chosen := members(query, first, used | {query}):
            found.append((row, chosen))
            used |= {query, *(pairs[member][0] for member in chosen)}
        elif rows_of_query[query][0] == row:
            left.append(row)
    again = set()
    for row in left:
        if chosen := members(pairs[row][0], 2 * first, again):
            found.append((row, chosen))
            again |= {pairs[member][0] for member in chosen}
    return found
