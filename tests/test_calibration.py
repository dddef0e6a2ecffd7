"""How far a judge can be trusted: its area under the curve, its reliability, and whose answers are known."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

from unime.mining.calibration import area_under_curve, calibrate, draw, known_answers, sentence


def judgements(seed: int, count: int = 400):
    """Scores that are right as often as they say."""
    rng = np.random.default_rng(seed)
    scores = rng.random(count)
    return scores, rng.random(count) < scores


def test_the_area_is_that_of_scikit_learn_with_ties():
    scores, right = judgements(0)
    for values in (scores, np.round(scores, 1), np.zeros(400)):
        assert area_under_curve(values, right) == pytest.approx(roc_auc_score(right, values))


def test_bins_are_those_of_scikit_learn_and_a_true_judge_is_hardly_off():
    scores, right = judgements(1, 4000)
    calibration = calibrate(scores, right)
    shares, means = calibration_curve(right, scores, n_bins=10)
    assert [part.right for part in calibration.bins] == pytest.approx(shares)
    assert [part.score for part in calibration.bins] == pytest.approx(means)
    assert sum(part.count for part in calibration.bins) == calibration.count == 4000
    assert calibration.error < 0.03

    # a judge that is always sure is off by how often it is wrong
    sure = calibrate(np.ones(4000), right)
    assert sure.error == pytest.approx(1 - right.mean()) and sure.auc == 0.5 and len(sure.bins) == 1


def mining(labels: int):
    """Sixty rows of a data set with so many labels, of which two were judged, and one row of another data set."""
    positives = np.arange(60) % labels
    return SimpleNamespace(
        pool=SimpleNamespace(
            dataset_of=np.array([0] * 60 + [1]), positive_of=np.append(positives, 90), datasets=["labels", "captions"]
        ),
        pair_numbers=np.arange(61),
        judged=[
            row("labels", [1, 2, 90], 0.9, [0.2, 0.4, 0.6]),
            row("labels", [0], 0.3, [0.8]),
            row("captions", [0, 1], 0.5, [0.1, 0.1]),
        ],
    )


def row(dataset, candidates, positive_score, scores):
    return {
        "pair": SimpleNamespace(dataset=dataset),
        "candidates": candidates,
        "positive_score": positive_score,
        "scores": np.array(scores),
    }


def test_answers_are_known_among_the_labels_of_a_data_set_alone(tmp_path):
    scores, right = known_answers(mining(labels=3))
    assert scores.tolist() == [0.9, 0.2, 0.4, 0.3, 0.8], "neither another data set's candidate nor its rows"
    assert right.tolist() == [True, False, False, True, False]

    # of the six pairs of right and wrong, (0.9, ...) wins three and (0.3, ...) one
    path = tmp_path / "judged.calibration.png"
    assert "Of 5 judgements" in sentence(mining(labels=3), path) and "0.667" in sentence(mining(labels=3), path)
    assert min(Image.open(path).size) > 300


def test_without_labels_nothing_is_claimed(tmp_path):
    said = sentence(mining(labels=30), tmp_path / "x.png")
    assert "not known" in said and not (tmp_path / "x.png").exists()


def test_the_curve_is_drawn(tmp_path):
    draw(calibrate(*judgements(2)), tmp_path / "curve.png")
    assert min(Image.open(tmp_path / "curve.png").size) > 300
