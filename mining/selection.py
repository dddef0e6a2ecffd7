"""Which candidates become hard negatives: pools, and UniME-V2's selection by judge scores.

Everything here is plain arithmetic on arrays; `mining/pipeline.py` feeds it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..data.copies import Identity, identities_of
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
        candidates (`list[Item]`): distinct positives, told apart by what they show and say (see
            [`~unime.data.copies.identities_of`]); negatives are drawn from them.
        pairs (`list[Pair]`): distinct ones, in the order of the rows.
        identities (`dict[Item, tuple]`, *optional*): of queries and candidates; `Item.identity` by default.
    """

    queries: list[Item] = field(default_factory=list)
    candidates: list[Item] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    identities: dict[Item, Identity] = field(default_factory=dict)

    @classmethod
    def of(cls, examples: Iterable[Example], near_copies: int | None = None) -> "Pool":
        """The pool of some rows; their negatives do not count.

        Args:
            examples (`Iterable[Example]`): the rows, which are read once.
            near_copies (`int`, *optional*): as `near` in [`~unime.data.copies.identities_of`].
        """
        number_of_query = {}
        rows = {}  # a set that keeps its order
        for example in examples:
            query = number_of_query.setdefault(example.query, len(number_of_query))
            rows.setdefault((query, example.positive, example.dataset))

        # all at once: near copies are told by comparing pictures with each other
        positives = dict.fromkeys(positive for _, positive, _ in rows)
        identities = identities_of([*number_of_query, *positives], near_copies)

        # of equal candidates the first spelling is embedded
        number_of_identity = {}
        candidates = []
        pairs = []
        for query, positive, dataset in rows:
            identity = identities[positive]
            if identity not in number_of_identity:
                number_of_identity[identity] = len(candidates)
                candidates.append(positive)
            pairs.append(Pair(query, number_of_identity[identity], dataset, positive))

        return cls(list(number_of_query), candidates, pairs, identities)

    def identity_of(self, item: Item) -> Identity:
        """What tells a query or candidate apart."""
        return self.identities.get(item, item.identity)

    def first_copies(self) -> list[int]:
        """For each query, the number of the first query that is the same by what it shows and says."""
        first_of = {}
        for number, query in enumerate(self.queries):
            first_of.setdefault(self.identity_of(query), number)

        return [first_of[self.identity_of(query)] for query in self.queries]

    def excluded(self) -> list[list[int]]:
        """For each query, the candidates that cannot be its negatives: the query itself, and its positives, also those
        that a copy of the query has."""
        number_of = {self.identity_of(candidate): number for number, candidate in enumerate(self.candidates)}
        first_copies = self.first_copies()

        # a query that is a candidate too would be its own nearest
        excluded_of = {}  # by the first copy of a query
        for number, query in enumerate(self.queries):
            excluded = excluded_of.setdefault(first_copies[number], set())
            own_number = number_of.get(self.identity_of(query))
            if own_number is not None:
                excluded.add(own_number)

        for pair in self.pairs:
            excluded_of[first_copies[pair.query]].add(pair.positive)

        return [sorted(excluded_of[first]) for first in first_copies]

    def by_dataset(self) -> dict[str, list[int]]:
        """The candidates of each data set, by their numbers."""
        numbers_of = {}
        for pair in self.pairs:
            numbers_of.setdefault(pair.dataset, set()).add(pair.positive)
        return {name: sorted(numbers) for name, numbers in numbers_of.items()}


def released_margin(positive_score: float) -> float:
    """The margin that all rows of the released file keep: a tenth, a hundredth, ..., by the positive's score.

    The paper prints 0.01 for all; the file has no gap below 0.1 where the positive scores above 0.1, below 0.01 where
    it scores above 0.01, and so on.

    Args:
        positive_score (`float`): the judge's score of the positive.
    """
    if positive_score > 0.1:
        return 0.1
    if positive_score > 0.01:
        return 0.01
    return 0.001


def probabilities(log_odds: np.ndarray) -> np.ndarray:
    """The probabilities that belong to log-odds of any shape, in float64; NaN stays NaN.

    There they differ up to log-odds of 36, where those in float32 are all 1.0 from 17 on.
    """
    with np.errstate(over="ignore"):  # to infinity, whose inverse is the right probability
        return 1 / (1 + np.exp(-np.asarray(log_odds, np.float64)))


def allowed(positive_score: float, scores: np.ndarray, margin: float | str = 0.01) -> np.ndarray:
    """Which candidates are negatives beyond doubt: `s <= s_pos - margin`; bool `[n]`.

    Args:
        positive_score (`float`): the judge's score of the positive.
        scores (array `[n]`): those of the candidates; NaN is never allowed.
        margin (`float` or `"released"`, defaults to 0.01): beta; the paper's 0.01, or [`released_margin`].
    """
    if margin == "released":
        margin = released_margin(positive_score)
    margin = float(margin)  # it may come as a text, from the command line
    return np.asarray(scores, np.float64) <= positive_score - margin


def cyclic_order(count: int, stride: int = 5) -> list[int]:
    """Every `stride`-th of `count` places, then again from the second place on, and so on, until all are taken.

    Args:
        count (`int`): places.
        stride (`int`, defaults to 5): how far the next place is.

    Raises:
        ValueError: the stride is not positive.

    Example:

    ```python
    cyclic_order(7, stride=3)  # [0, 3, 6, 1, 4, 2, 5]
    ```
    """
    if stride < 1:
        raise ValueError(f"the stride must be positive, got {stride}.")
    order = []
    for offset in range(min(stride, count)):
        order.extend(range(offset, count, stride))
    return order


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

    The allowed candidates, in the order of retrieval, are sampled cyclically; fewer than `num_negatives` are repeated
    (2510.13515 section 3).

    Args:
        positive_score (`float`): the judge's score of the positive.
        scores (array `[n]`): those of the candidates, nearest first; NaN where there is none.
        num_negatives (`int`, defaults to 10): how many are selected.
        margin (`float` or `"released"`, defaults to 0.01): see [`allowed`].
        stride (`int`, defaults to 5): see [`cyclic_order`].
        fallback (`str`, defaults to `"drop"`): where no candidate is allowed, `"drop"` the row, take those that the
            judge likes least (`"judge_lowest"`), or do as released: a random choice to which the score 1.0 is
            assigned (`"released"`).
        seed (`int`, defaults to 0): of that choice.

    Returns:
        places among the candidates and their scores, `num_negatives` of each; None where the row is dropped.

    Raises:
        ValueError: `fallback` is none of these.

    Example:

    ```python
    select(0.9, [0.95, 0.2, 0.6], num_negatives=3)  # ([1, 2, 1], [0.2, 0.6, 0.2])
    ```
    """
    if fallback not in ("drop", "judge_lowest", "released"):
        raise ValueError(f"fallback must be 'drop', 'judge_lowest' or 'released', got {fallback!r}.")
    scores = np.asarray(scores, np.float64)
    places = np.flatnonzero(allowed(positive_score, scores, margin))
    scored = np.flatnonzero(~np.isnan(scores))

    if len(places):
        order = places[cyclic_order(len(places), stride)]
    elif fallback == "drop" or not len(scored):
        return None
    elif fallback == "judge_lowest":
        order = scored[np.argsort(scores[scored], kind="stable")][:num_negatives]
    else:
        order = np.random.default_rng(seed).permutation(scored)[:num_negatives]
        scores = np.ones_like(scores)  # what the released file assigns to them

    # fewer than asked for are repeated from the start
    order = np.resize(order, num_negatives)
    return order.tolist(), scores[order].tolist()
