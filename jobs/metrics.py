"""Retrieval metrics as pure functions. Ties never help: among equal scores, what is less relevant stands first."""

import math
from collections.abc import Sequence
from statistics import fmean

import torch


def places(scores: torch.Tensor, relevant: Sequence[int], gains: Sequence[float] | None = None) -> list[int]:
    """The rank of each relevant candidate, from 1, in the worst order that the scores allow.

    Args:
        scores (`Tensor` `[C]`): one score per candidate.
        relevant (`Sequence[int]`): positions of the relevant ones, all different.
        gains (`Sequence[float]`, *optional*): how relevant each of them is, above 0; all alike by default.

    Returns:
        `list[int]`: one rank for each entry of `relevant`, in the same order.

    Raises:
        ValueError: a score is NaN or infinite, or nothing is relevant.

    Example:

    ```python
    places(torch.tensor([0.9, 0.5, 0.5]), relevant=[1])  # [3]: of two equal scores the wrong one comes first
    ```
    """
    if not len(relevant):
        raise ValueError("no candidate is relevant.")
    if not torch.isfinite(scores).all():
        bad = int(torch.isfinite(scores).logical_not().nonzero()[0])
        raise ValueError(f"score {bad} is {scores[bad].item()}; scores must be finite.")
    right = scores[torch.as_tensor(relevant)]  # [R]

    # how many wrong candidates score at least as much as each relevant one
    at_least = (scores[None] >= right[:, None]).sum(1)  # [R]
    relevant_at_least = (right[None] >= right[:, None]).sum(1)  # [R]
    wrong_before = (at_least - relevant_at_least).tolist()

    # the relevant ones among themselves: by score, and of equal scores the less relevant first
    values = right.tolist()
    if gains is None:
        gains = [1.0] * len(values)
    order = sorted(range(len(values)), key=lambda i: (-values[i], gains[i]))

    ranks = [0] * len(values)
    for relevant_before, i in enumerate(order):
        ranks[i] = 1 + relevant_before + wrong_before[i]
    return ranks


def tied(scores: torch.Tensor, relevant: Sequence[int]) -> bool:
    """Whether a wrong candidate has exactly the score of the best relevant one.

    Args:
        scores (`Tensor` `[C]`): one score per candidate.
        relevant (`Sequence[int]`): positions of the relevant ones, all different.
    """
    right = scores[torch.as_tensor(relevant)]  # [R]
    best = right.max()
    return int((scores == best).sum()) > int((right == best).sum())


def recall_at(ranks: Sequence[int], k: int) -> float:
    """Share of queries whose best relevant candidate has rank `k` or better.

    This is Recall@k as image-text retrieval counts it, also called hit rate; precision@1 for `k = 1`.

    Args:
        ranks (`Sequence[int]`): for each query, the rank of its best relevant candidate, from 1.
        k (`int`): how many places count.

    Raises:
        ValueError: there are no queries.

    Example:

    ```python
    recall_at([1, 3, 6], k=5)  # 0.667
    ```
    """
    return fmean(rank <= k for rank in _not_empty(ranks))


def mean_reciprocal_rank(ranks: Sequence[int]) -> float:
    """Mean over queries of one over the rank of the best relevant candidate.

    Args:
        ranks (`Sequence[int]`): for each query, the rank of its best relevant candidate, from 1.

    Raises:
        ValueError: there are no queries.
    """
    return fmean(1 / rank for rank in _not_empty(ranks))


def ndcg_at(places: Sequence[int], k: int, gains: Sequence[float] | None = None) -> float:
    """Normalised discounted cumulative gain of one query, with linear gains.

    `sum(gain / log2(1 + place))` over the relevant candidates among the first `k`, divided by its greatest possible
    value.

    Args:
        places (`Sequence[int]`): rank of each relevant candidate, as [`places`] gives them.
        k (`int`): how many places count.
        gains (`Sequence[float]`, *optional*): of the relevant candidates, above 0; 1 by default.

    Returns:
        `float`: in [0, 1].

    Raises:
        ValueError: there are no places.

    Example:

    ```python
    ndcg_at([2, 1], k=5, gains=[3.0, 1.0])  # 0.797: the more relevant candidate is only second
    ```
    """
    if gains is None:
        gains = [1.0] * len(_not_empty(places))
    reached = math.fsum(gain / math.log2(1 + place) for place, gain in zip(places, gains) if place <= k)

    # the best order has the greatest gains first
    greatest = sorted(gains, reverse=True)[:k]
    best = math.fsum(gain / math.log2(1 + place) for place, gain in enumerate(greatest, 1))
    return reached / best


def average_precision(places: Sequence[int]) -> float:
    """Average precision of one query: the mean, over its relevant candidates, of the precision at each one's place.

    The mean of it over queries is MAP.

    Args:
        places (`Sequence[int]`): rank of each relevant candidate, as [`places`] gives them; all different.

    Returns:
        `float`: in (0, 1].

    Raises:
        ValueError: there are no places.

    Example:

    ```python
    average_precision([1, 4])  # 0.75: precision 1/1 at the first place, 2/4 at the fourth
    ```
    """
    return fmean(number / place for number, place in enumerate(sorted(_not_empty(places)), 1))


def _not_empty(ranks: Sequence[int]) -> Sequence[int]:
    """The ranks, of which there must be some."""
    if not len(ranks):
        raise ValueError("there are no queries.")
    return ranks
