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

    Raises:
        ValueError: a score is NaN or infinite, or nothing is relevant.
    """
    if not len(relevant):
        raise ValueError("no candidate is relevant.")
    if not torch.isfinite(scores).all():
        bad = int(torch.isfinite(scores).logical_not().nonzero()[0])
        raise ValueError(f"score {bad} is {scores[bad].item()}; scores must be finite.")
    right = scores[torch.as_tensor(relevant)]  # [R]
    as_good = (scores[None] >= right[:, None]).sum(1) - (right[None] >= right[:, None]).sum(1)  # wrong ones
    values = right.tolist()
    order = sorted(range(len(values)), key=lambda i: (-values[i], gains[i] if gains is not None else 0))
    found = [0] * len(order)
    for before, i in enumerate(order):
        found[i] = 1 + before + int(as_good[i])
    return found


def tied(scores: torch.Tensor, relevant: Sequence[int]) -> bool:
    """Whether a wrong candidate has exactly the score of the best relevant one."""
    right = scores[torch.as_tensor(relevant)]
    best = right.max()
    return int((scores == best).sum()) > int((right == best).sum())


def recall_at(found: Sequence[int], k: int) -> float:
    """Share of queries whose best relevant candidate has rank `k` or better: Recall@k as image-text retrieval counts
    it, also called hit rate; precision@1 for `k = 1`."""
    return fmean(rank <= k for rank in _some(found))


def mean_reciprocal_rank(found: Sequence[int]) -> float:
    """Mean over queries of one over the rank of the best relevant candidate."""
    return fmean(1 / rank for rank in _some(found))


def ndcg_at(places: Sequence[int], k: int, gains: Sequence[float] | None = None) -> float:
    """Normalised discounted cumulative gain of one query, with linear gains: `sum(gain / log2(1 + place))` over the
    relevant candidates among the first `k`, divided by its greatest possible value.

    Args:
        places (`Sequence[int]`): rank of each relevant candidate, as [`places`] gives them.
        k (`int`): how many places count.
        gains (`Sequence[float]`, *optional*): of the relevant candidates, above 0; 1 by default.
    """
    gains = [1.0] * len(_some(places)) if gains is None else gains
    reached = math.fsum(gain / math.log2(1 + place) for place, gain in zip(places, gains) if place <= k)
    best = math.fsum(gain / math.log2(2 + i) for i, gain in enumerate(sorted(gains, reverse=True)[:k]))
    return reached / best


def _some(found):
    if not len(found):
        raise ValueError("there are no queries.")
    return found
