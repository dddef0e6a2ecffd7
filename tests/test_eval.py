"""Metrics and the runner: strict ties, errors for what is not finite, every distinct item encoded once."""

import math

import evaluate
import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from unime.data.schema import Item
from unime.eval.means import summarize
from unime.eval.runner import evaluate as evaluate_tasks
from unime.eval.runner import score_task
from unime.eval.statistics import interval, p_value, resampled
from unime.eval.tasks import Task, read_world_tasks
from unime.jobs.metrics import mean_reciprocal_rank, ndcg_at, places, recall_at, tied


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.data())
@settings(max_examples=200, deadline=None)
def test_places_are_those_of_the_worst_order(scores, data):
    relevant = data.draw(st.lists(st.integers(0, len(scores) - 1), min_size=1, unique=True))
    gains = data.draw(st.lists(st.integers(1, 3), min_size=len(relevant), max_size=len(relevant)))
    gain = dict(zip(relevant, gains))
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], gain.get(i, 0)))
    worst = {i: place for place, i in enumerate(order, 1)}
    found = places(torch.tensor(scores, dtype=torch.float), relevant, gains)
    assert sorted(found) == sorted(worst[i] for i in relevant)
    assert sorted(zip(found, gains)) == sorted((worst[i], gain[i]) for i in relevant)
    best = max(scores[i] for i in relevant)
    wrong = [s for i, s in enumerate(scores) if i not in relevant]
    assert min(found) == 1 + sum(s >= best for s in wrong)
    assert tied(torch.tensor(scores, dtype=torch.float), relevant) == (best in wrong)


def test_ties_and_values_that_are_not_finite():
    assert places(torch.tensor([1.0, 1.0, 0.0]), [0]) == [2] and tied(torch.tensor([1.0, 1.0, 0.0]), [0])
    assert places(torch.tensor([1.0, 1.0, 0.0]), [0, 1]) == [1, 2] and not tied(torch.tensor([1.0, 1.0, 0.0]), [0, 1])
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="score 1 is"):
            places(torch.tensor([1.0, bad]), [0])
    with pytest.raises(ValueError, match="no candidate is relevant"):
        places(torch.tensor([1.0]), [])


def test_metrics_of_a_hand_made_table():
    assert [recall_at([1, 3, 6, 11], k) for k in (1, 5, 10)] == [0.25, 0.5, 0.75]
    assert mean_reciprocal_rank([1, 2, 4]) == pytest.approx((1 + 0.5 + 0.25) / 3, abs=1e-15)
    assert ndcg_at([1, 2], 5) == 1.0 and ndcg_at([6], 5) == 0.0
    assert ndcg_at([3], 5) == pytest.approx(1 / math.log2(4), abs=1e-15)
    expected = (1 / math.log2(2) + 3 / math.log2(3)) / (3 / math.log2(2) + 1 / math.log2(3))
    assert ndcg_at([2, 1], 5, [3.0, 1.0]) == pytest.approx(expected, abs=1e-15)
    for metric in (lambda: recall_at([], 1), lambda: mean_reciprocal_rank([]), lambda: ndcg_at([], 5)):
        with pytest.raises(ValueError, match="no queries"):
            metric()


@given(st.lists(st.floats(0.1, 3.0), min_size=1, max_size=8), st.integers(1, 10), st.randoms())
@settings(max_examples=100, deadline=None)
def test_ndcg_equals_that_of_scikit_learn(gains, k, random):
    scores = list(range(len(gains) + 4))
    random.shuffle(scores)  # no ties
    truth = [*gains, 0, 0, 0, 0]
    found = places(torch.tensor(scores, dtype=torch.float64), list(range(len(gains))), gains)
    assert ndcg_at(found, k, gains) == pytest.approx(ndcg_score([truth], [scores], k=k), abs=1e-12)


def test_the_evaluate_module_agrees(tmp_path):
    module = evaluate.load(str(ROOT / "eval" / "retrieval_metrics"), experiment_id=tmp_path.name)
    scores, gains = [[0.9, 0.5, 0.1], [0.3, 0.3, 0.2]], [[0, 2, 1], [1, 0, 0]]
    found = module.compute(predictions=scores, references=gains, ks=[1, 2])
    second = (2 / math.log2(3)) / (2 + 1 / math.log2(3))
    assert found == {
        "precision@1": 0.0,
        "mrr": 0.5,
        "recall@1": 0.0,
        "recall@2": 1.0,
        "ndcg@1": 0.0,
        "ndcg@2": pytest.approx((second + 1 / math.log2(3)) / 2),
        "ties": 1,
    }
    with pytest.raises(ValueError, match="query 1: score 0 is nan"):
        module.compute(predictions=[[1.0], [float("nan")]], references=[[1], [1]])


class Stub:
    """Embeds by a function of the item and counts what it was asked for."""

    def __init__(self, embed):
        self.embed, self.calls = embed, []

    def encode_query(self, items, **kwargs):
        self.calls.append(len(items))
        return torch.stack([self.embed(item) for item in items])

    encode_document = encode_query


def tasks(count=40, candidates=20):
    queries = [Item(f"query {i}") for i in range(count)]
    corpus = [Item(f"answer {i}") for i in range(count)]
    lists = [[i] + [(i + j) % count for j in range(1, candidates)] for i in range(count)]
    first = Task("first", "Retrieval", queries, corpus, lists, [[0]] * count)
    return [first, Task("second", "VQA", queries, corpus, lists, [[0]] * count)]


def test_equal_embeddings_tie_whatever_the_order_of_summation():
    generator = torch.Generator().manual_seed(0)
    row = torch.nn.functional.normalize(torch.randn(1, 1537, generator=generator))
    queries = torch.nn.functional.normalize(torch.randn(5, 1537, generator=generator))
    items = [Item(str(i)) for i in range(999)]
    for candidates in (None, [list(range(999))] * 5):
        task = Task("t", "VQA", items[:5], items, candidates, [[i] for i in range(5)])
        found, *_ = score_task(queries, row.repeat(999, 1), task)
        assert found["precision@1"] == 0 and found["ties"] == 5 and found["ranks"] == [999] * 5


def number(item):
    return int(item["text"].split()[1])


def test_perfect_collapsed_nan_and_random_models():
    eye = torch.eye(40)
    perfect = Stub(lambda item: eye[number(item)])
    results = evaluate_tasks(perfect, tasks(), show_progress=False)
    assert results["first"]["precision@1"] == results["second"]["precision@1"] == 1.0 and results["first"]["ties"] == 0
    assert perfect.calls == [40, 40], "each distinct item of both tasks once"
    collapsed = evaluate_tasks(Stub(lambda item: torch.ones(4) / 2), tasks(), show_progress=False)["first"]
    assert collapsed["precision@1"] == collapsed["recall@10"] == 0.0 and collapsed["ties"] == 40
    with pytest.raises(ValueError, match="task first, query 0: score 0 is nan"):
        evaluate_tasks(Stub(lambda item: torch.full((4,), float("nan"))), tasks(), show_progress=False)
    generator = torch.Generator().manual_seed(0)
    random = evaluate_tasks(Stub(lambda item: torch.randn(16, generator=generator)), tasks(), show_progress=False)[
        "first"
    ]
    assert 0 <= random["precision@1"] <= 0.2 and 0.25 <= random["recall@10"] <= 0.75


def test_only_own_candidates_compete():
    task = Task("t", "VQA", [Item("q")], [Item("a"), Item("b"), Item("c")], [[1, 2]], [[0]])
    corpus = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    found, *_ = score_task(torch.tensor([[1.0, 0.0]]), corpus, task)
    assert found["precision@1"] == 1.0 and found["candidates"] == 2 and found["ranks"] == [1] and not found["ties"]


def test_summary_means_leave_small_candidate_lists_out():
    results = {
        "a": {"kind": "VQA", "precision@1": 0.2, "candidates": 100},
        "b": {"kind": "VQA", "precision@1": 0.4, "candidates": 100},
        "c": {"kind": "Grounding", "precision@1": 0.6, "candidates": 101},
        "d": {"kind": "Compositional", "precision@1": 1.0, "candidates": 2},
    }
    assert summarize(results) == pytest.approx({"VQA": 0.3, "Grounding": 0.6, "Compositional": 1.0, "mean": 0.4})


def test_an_untrained_model_runs_over_the_world(embedder, world):
    results = evaluate_tasks(embedder, read_world_tasks(world), show_progress=False)
    assert set(results) >= {"Shapes_t2i", "Digits_label", "swap_obj"}
    assert all(
        0 <= result["precision@1"] <= result["recall@5"] <= result["recall@10"] <= 1 for result in results.values()
    )


# statistics
def test_captions_of_one_image_are_drawn_together():
    values = np.repeat((np.random.default_rng(0).random(200) < 0.5).astype(float), 5)
    together = np.repeat(np.arange(200), 5)
    one, five = (resampled([values], groups)[0].std() for groups in (None, together))
    assert five / one == pytest.approx(5**0.5, rel=0.1)


def test_bootstrap_intervals_are_those_of_the_binomial():
    values = np.r_[np.ones(300), np.zeros(700)]
    low, high = interval(resampled([values])[0])
    spread = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert low == pytest.approx(0.3 - spread, abs=0.004) and high == pytest.approx(0.3 + spread, abs=0.004)


def test_paired_draws_cancel_what_two_models_share():
    values = (np.random.default_rng(0).random(500) < 0.5).astype(float)
    better = values.copy()
    better[np.flatnonzero(values == 0)[:15]] = 1
    one, other = resampled([values, better])
    assert (other - one).std() < 0.4 * one.std() and interval(other - one)[0] > 0.01
    assert p_value(other - one) <= 0.001 and p_value(one - one) == 1.0
    assert np.array_equal(resampled([values])[0], one), "the same queries, whoever is measured"
