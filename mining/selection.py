"""Which candidates become hard negatives: pools, UniME-V2's selection by judge scores, SaHa's clusters.

Everything here is plain arithmetic on arrays; `mining/pipeline.py` feeds it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..data.schema import Example, Item


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
        candidates (`list[Item]`): distinct positives, told apart by `Item.identity`; negatives are drawn from them.
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
            key = example.positive.identity
            if key not in known:
                known[key] = len(known)
                pool.candidates.append(example.positive)
            query = queries.setdefault(example.query, len(queries))
            pairs.setdefault(Pair(query, known[key], example.dataset, example.positive))
        pool.queries, pool.pairs = list(queries), list(pairs)
        return pool

    def excluded(self) -> list[list[int]]:
        """For each query, the candidates that cannot be its negatives: all its positives, and the query itself."""
        known = {candidate.identity: number for number, candidate in enumerate(self.candidates)}
        found = [{known[key]} if (key := query.identity) in known else set() for query in self.queries]
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
    positive_score: float,
    scores,
    num_negatives: int = 10,
    margin: float | str = 0.01,
    stride: int = 5,
    fallback: str = "drop",
    seed: int = 0,
) -> tuple[list[int], list[float]] | None:
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
