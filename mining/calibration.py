"""How far a judge can be trusted, where rows have known answers: its reliability curve, and the area under its ROC."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files.writing import write_whole
from .saha import is_label_type

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Judgements whose scores lie between two bounds.

    Args:
        low, high (`float`): the bounds.
        count (`int`): how many there are.
        score (`float`): the mean of their scores.
        right (`float`): the share of candidates that are right.
    """

    low: float
    high: float
    count: int
    score: float
    right: float


@dataclass(frozen=True)
class Calibration:
    """What a judge's scores are worth on candidates of which it is known whether they are right.

    Args:
        count (`int`): judgements.
        auc (`float`): how often a right candidate scores higher than a wrong one; ties count half.
        error (`float`): the mean distance of score and share of right candidates over bins, weighted by counts.
        bins (`list[Bin]`): those that hold judgements.
    """

    count: int
    auc: float
    error: float
    bins: list[Bin]


def area_under_curve(scores: np.ndarray, right: np.ndarray) -> float:
    """The share of pairs of a right and a wrong candidate in which the right one scores higher; ties count half.

    Args:
        scores (array `[N]`).
        right (bool array `[N]`): some are, some are not.

    Example:

    ```python
    area_under_curve(np.array([0.9, 0.4, 0.5]), np.array([True, True, False]))  # 0.5
    ```
    """
    wrong = np.sort(scores[~right])
    below = np.searchsorted(wrong, scores[right], "left")  # wrong ones below each right one
    not_above = np.searchsorted(wrong, scores[right], "right")
    return float((below + not_above).mean() / (2 * len(wrong)))


def calibrate(scores: np.ndarray, right: np.ndarray) -> Calibration:
    """The calibration of probabilities.

    Args:
        scores (array `[N]`): in [0, 1].
        right (bool array `[N]`): some are, some are not.
    """
    edges = np.linspace(0, 1, BINS + 1)
    places = np.digitize(scores, edges[1:-1])  # [N], 0 to BINS - 1

    bins = []
    for place in np.unique(places):
        inside = places == place
        mean_score = float(scores[inside].mean())
        share = float(right[inside].mean())
        bins.append(Bin(float(edges[place]), float(edges[place + 1]), int(inside.sum()), mean_score, share))

    error = sum(group.count * abs(group.score - group.right) for group in bins) / len(scores)
    return Calibration(len(scores), area_under_curve(scores, right), error, bins)


def known_answers(mining) -> tuple[np.ndarray, np.ndarray]:
    """Scores of candidates of which it is known whether they are right, and whether they are, `[N]` each.

    Known are the answers of data sets whose targets are labels (on average, twenty rows or more share one): the
    positive is right, and every other label is wrong. Elsewhere a candidate that is not the positive may be right too.

    Args:
        mining ([`~unime.mining.pipeline.Mining`]): a folder in which `judge` is finished.
    """
    labels = _labels(mining)
    scores = []
    right = []
    for row in mining.judged:
        own_labels = labels.get(row["pair"].dataset)
        if own_labels is None:
            continue

        # in a pool of all data sets, candidates of others may be retrieved
        candidate_scores = row["scores"][np.isin(row["candidates"], own_labels)]
        scores += [row["positive_score"], *candidate_scores.tolist()]
        right += [True] + [False] * len(candidate_scores)
    return np.array(scores, np.float64), np.array(right, bool)


def _labels(mining) -> dict[str, np.ndarray]:
    """The numbers of the candidates that are positives of each data set whose targets are labels."""
    pool = mining.pool
    dataset_of = pool.dataset_of[mining.pair_numbers]
    positive_of = pool.positive_of[mining.pair_numbers]

    # whether targets are labels shows in how often each occurs
    labels = {}
    for number in np.unique(dataset_of):
        rows = dataset_of == number
        positives = np.unique(positive_of[rows])
        if is_label_type(len(positives), int(rows.sum())):
            labels[pool.datasets[number]] = positives
    return labels


def sentence(mining, path: Path) -> str:
    """What the page says of the judge's calibration; where answers are known, the reliability curve is drawn.

    Args:
        mining ([`~unime.mining.pipeline.Mining`]): a folder in which `judge` is finished.
        path (`Path`): PNG to write.
    """
    scores, right = known_answers(mining)
    if right.all() or not right.any():
        return "No data set has labels for targets, so that it is not known which candidates are right."

    calibration = calibrate(scores, right)
    draw(calibration, path)
    return (
        f"Of {calibration.count:,} judgements it is known whether the candidate is right, as the targets are labels: "
        f"the area under the curve is {calibration.auc:.3f} (0.5 is chance), and scores are off by "
        f"{calibration.error:.3f} on average ({path.name}). The wrong ones are the nearest labels, so that they are "
        "harder than most."
    )


def draw(calibration: Calibration, path: Path):
    """Draws the reliability curve: the share of right candidates over the judge's score, beside the ideal.

    Args:
        calibration ([`Calibration`]).
        path (`Path`): PNG to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 4.6), layout="constrained")
    axis.plot([0, 1], [0, 1], color="#a0aec0", linestyle="--", label="ideal")
    scores = [group.score for group in calibration.bins]
    shares = [group.right for group in calibration.bins]
    axis.plot(scores, shares, color="#2b6cb0", marker="o", label="judge")
    for group in calibration.bins:
        axis.annotate(f"{group.count:,}", (group.score, group.right), (4, 4), textcoords="offset points", fontsize=7)

    title = f"AUC {calibration.auc:.3f}, off by {calibration.error:.3f} on average"
    axis.set(xlabel="judge score", ylabel="share of right candidates", xlim=(0, 1), ylim=(0, 1), title=title)
    axis.legend()
    write_whole(path, lambda draft: figure.savefig(draft, dpi=100, format="png"))
    plt.close(figure)
