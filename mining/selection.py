"""Which candidates become hard negatives: UniME-V2's selection by judge scores.

Everything here is plain arithmetic on arrays; `mining/pipeline.py` feeds it.
"""

import numpy as np


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
    repeat: bool = False,
    fallback: str = "drop",
    seed: int = 0,
) -> tuple[list[int], list[float]] | None:
    """UniME-V2's choice of hard negatives among the retrieved candidates of one query.

    The allowed candidates, in the order of retrieval, are sampled cyclically (2510.13515 section 3). Where there are
    fewer than `num_negatives`, the paper repeats them, so that one may stand in a row eight times and weigh as much as
    eight; here the row has fewer, unless `repeat` is set.

    Args:
        positive_score (`float`): the judge's score of the positive.
        scores (array `[n]`): those of the candidates, nearest first; NaN where there is none.
        num_negatives (`int`, defaults to 10): how many are selected.
        margin (`float` or `"released"`, defaults to 0.01): see [`allowed`].
        stride (`int`, defaults to 5): see [`cyclic_order`].
        repeat (`bool`, defaults to `False`): repeat the selected ones until there are `num_negatives`.
        fallback (`str`, defaults to `"drop"`): where no candidate is allowed, `"drop"` the row, take those that the
            judge likes least (`"judge_lowest"`), or do as released: a random choice to which the score 1.0 is
            assigned (`"released"`).
        seed (`int`, defaults to 0): of that choice.

    Returns:
        places among the candidates and their scores, at most `num_negatives` of each; None where the row is dropped.

    Raises:
        ValueError: `fallback` is none of these.

    Example:

    ```python
    select(0.9, [0.95, 0.2, 0.6], num_negatives=3)  # ([1, 2], [0.2, 0.6])
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

    # the repeats begin again with the first
    count = num_negatives if repeat else min(len(order), num_negatives)
    order = np.resize(order, count)
    return order.tolist(), scores[order].tolist()
