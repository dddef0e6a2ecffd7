"""Retrieval metrics as pure functions. Ties never help: a hit counts only strictly above every wrong candidate."""

from collections.abc import Sequence

import torch


def ranks(scores: torch.Tensor, relevant: Sequence[int]) -> tuple[int, bool]:
    """The rank of the best relevant candidate, counting wrong candidates with an equal score as better.

    Args:
        scores (`Tensor` `[C]`): one score per candidate.
        relevant (`Sequence[int]`): positions of the right ones.

    Returns:
        `(rank, tied)`: rank from 1, and whether a wrong candidate has exactly the score of the best right one.

    Raises:
        ValueError: a score is NaN or infinite, or nothing is relevant.
    """
    if not len(relevant):
        raise ValueError("no candidate is relevant.")
    if not torch.isfinite(scores).all():
        bad = int(torch.isfinite(scores).logical_not().nonzero()[0])
        raise ValueError(f"score {bad} is {scores[bad].item()}; scores must be finite.")
    right = torch.zeros(len(scores), dtype=torch.bool)
    right[torch.as_tensor(relevant)] = True
    best = scores[right].max()
    wrong = scores[~right]
    return 1 + int((wrong >= best).sum()), bool((wrong == best).any())


def recall_at(found: Sequence[int], k: int) -> float:
    """Share of queries whose best relevant candidate has rank `k` or better (precision at 1 for `k = 1`)."""
    if not len(found):
        raise ValueError("there are no queries.")
    return sum(rank <= k for rank in found) / len(found)
