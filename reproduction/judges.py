"""How well a judge tells right candidates from wrong ones."""

import random
from pathlib import Path

import numpy as np

from ..miniature.lessons import make_lesson
from ..miniature.sources import Digits
from ..mining.calibration import area_under_curve
from ..trainers.starting import load_model

LEVEL = 2.7  # of the lessons: seven in ten wrong candidates of what may be near are near misses
SEED = 1_000_003  # the judge's own lessons have others


def auc_of(judge: Path, lessons: int) -> float:
    """The mean over new lessons of how often a right candidate has higher log-odds than a wrong one.

    Args:
        judge (`Path`): its folder.
        lessons (`int`): how many are drawn.
    """
    model = load_model(judge, reranker=True)
    digits = Digits()
    rng = random.Random(SEED)

    areas = []
    for _ in range(lessons):
        lesson = make_lesson(rng, digits, LEVEL)
        right = np.array(lesson.right)
        if right.all() or not right.any():
            continue
        log_odds = model.score(lesson.query, lesson.candidates, output="logit").numpy()
        areas.append(area_under_curve(log_odds, right))
    return float(np.mean(areas))
