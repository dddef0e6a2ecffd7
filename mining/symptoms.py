"""Signs that a mining does not go as its user wants, each a line with what to do about it.

They go to stderr; `--quiet` leaves them out. docs/troubleshooting.md lists them all.
"""

import numpy as np

from .pools import Pool
from .saha import is_label_type

TELLS = 0.65  # share of candidates that score below their positive, under which a judge hardly tells them apart


def comparisons(positive_scores: np.ndarray, scores: np.ndarray) -> float:
    """How many candidates score below their positive; of equal scores, half count.

    Args:
        positive_scores (array `[P]`): of each pair's positive.
        scores (array `[P, k]`): of its candidates, NaN where there are fewer.
    """
    differences = positive_scores[:, None] - scores  # [P, k]
    return float((differences > 0).sum() + (differences == 0).sum() / 2)


def judge_symptoms(share: float, positive_mean: float, candidate_mean: float) -> list[str]:
    """What is wrong with a judge.

    Args:
        share (`float`): of the candidates that score below their positive; one half where a judge guesses.
        positive_mean (`float`), candidate_mean (`float`): their scores on average.
    """
    if share >= TELLS:
        return []
    return [
        f"this judge cannot tell right from wrong: positives {positive_mean:.3f}, candidates {candidate_mean:.3f}, "
        f"and {share:.0%} of the candidates score below their positive (chance: 50%); try judge_options "
        '{"answer_format": "multiple_choice"}, a higher resolution, or a larger judge.'
    ]


def label_symptoms(pool: Pool, num_negatives: int) -> list[str]:
    """Data sets whose positives are labels, which leave few candidates.

    Args:
        pool ([`~unime.mining.pools.Pool`]): of all rows.
        num_negatives (`int`): that are to be selected of each pair.
    """
    pairs = np.bincount(pool.dataset_of, minlength=len(pool.datasets))

    lines = []
    for (name, positives), count in zip(pool.by_dataset().items(), pairs.tolist()):
        distinct = len(positives)
        if not is_label_type(distinct, count):
            continue

        line = f"{name or 'the rows'}: {distinct} distinct positives in {count} pairs are labels"
        if distinct - 1 < num_negatives:
            line += f", of which {distinct - 1} can be negatives (num_negatives is {num_negatives})"
        lines.append(f"{line}; negatives are other labels, and a judge must know what each of them means.")
    return lines


def nothing_kept(pairs: int, margin: str, positive_scores: np.ndarray) -> str:
    """What to do where no pair has an allowed negative.

    Args:
        pairs (`int`): that were judged.
        margin (`str`): of the selection.
        positive_scores (array `[P]`): of their positives.
    """
    return (
        f"none of {pairs} pairs has a candidate that scores below its positive by the margin of {margin}; positives "
        f"score {positive_scores.mean():.3f} on average. Lower --margin, take a better judge, or keep rows all the "
        "same with --fallback judge_lowest (and another --name); unime mine inspect shows the scores."
    )
