"""Metrics and the runner: strict ties, errors for what is not finite, every distinct item encoded once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unime.data.schema import Item
from unime.data.tasks import Task, read_world_tasks
from unime.eval.metrics import ranks, recall_at
from unime.eval.runner import evaluate, score_task, summarize


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.data())
@settings(max_examples=200, deadline=None)
def test_rank_counts_wrong_candidates_that_are_at_least_as_good(scores, data):
    relevant = data.draw(st.lists(st.integers(0, len(scores) - 1), min_size=1, unique=True))
    best = max(scores[i] for i in relevant)
    wrong = [s for i, s in enumerate(scores) if i not in relevant]
    expected = (1 + sum(s >= best for s in wrong), best in wrong)
    assert ranks(torch.tensor(scores, dtype=torch.float), relevant) == expected


def test_ties_and_values_that_are_not_finite():
    assert ranks(torch.tensor([1.0, 1.0, 0.0]), [0]) == (2, True)
    assert ranks(torch.tensor([1.0, 1.0, 0.0]), [0, 1]) == (1, False)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="score 1 is"):
            ranks(torch.tensor([1.0, bad]), [0])
    with pytest.raises(ValueError, match="no candidate is relevant"):
        ranks(torch.tensor([1.0]), [])


def test_recall_table():
    assert [recall_at([1, 3, 6, 11], k) for k in (1, 5, 10)] == [0.25, 0.5, 0.75]
    with pytest.raises(ValueError, match="no queries"):
        recall_at([], 1)


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


def number(item):
    return int(item["text"].split()[1])


def test_perfect_collapsed_nan_and_random_models():
    eye = torch.eye(40)
    perfect = Stub(lambda item: eye[number(item)])
    results = evaluate(perfect, tasks(), show_progress=False)
    assert results["first"]["precision@1"] == results["second"]["precision@1"] == 1.0 and results["first"]["ties"] == 0
    assert perfect.calls == [40, 40], "each distinct item of both tasks once"
    collapsed = evaluate(Stub(lambda item: torch.ones(4) / 2), tasks(), show_progress=False)["first"]
    assert collapsed["precision@1"] == collapsed["recall@10"] == 0.0 and collapsed["ties"] == 40
    with pytest.raises(ValueError, match="task first, query 0: score 0 is nan"):
        evaluate(Stub(lambda item: torch.full((4,), float("nan"))), tasks(), show_progress=False)
    generator = torch.Generator().manual_seed(0)
    random = evaluate(Stub(lambda item: torch.randn(16, generator=generator)), tasks(), show_progress=False)["first"]
    assert 0 <= random["precision@1"] <= 0.2 and 0.25 <= random["recall@10"] <= 0.75


def test_only_own_candidates_compete():
    task = Task("t", "VQA", [Item("q")], [Item("a"), Item("b"), Item("c")], [[1, 2]], [[0]])
    corpus = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    found = score_task(torch.tensor([[1.0, 0.0]]), corpus, task)
    assert found == {
        "kind": "VQA",
        "queries": 1,
        "candidates": 2,
        "precision@1": 1.0,
        "recall@1": 1.0,
        "recall@5": 1.0,
        "recall@10": 1.0,
        "ties": 0,
    }


def test_summary_means_leave_small_candidate_lists_out():
    results = {
        "a": {"kind": "VQA", "precision@1": 0.2, "candidates": 100},
        "b": {"kind": "VQA", "precision@1": 0.4, "candidates": 100},
        "c": {"kind": "Grounding", "precision@1": 0.6, "candidates": 101},
        "d": {"kind": "Compositional", "precision@1": 1.0, "candidates": 2},
    }
    assert summarize(results) == pytest.approx({"VQA": 0.3, "Grounding": 0.6, "Compositional": 1.0, "mean": 0.4})


def test_an_untrained_model_runs_over_the_world(embedder, world):
    results = evaluate(embedder, read_world_tasks(world), show_progress=False)
    assert set(results) >= {"Shapes_t2i", "Digits_label", "swap_obj"}
    assert all(
        0 <= result["precision@1"] <= result["recall@5"] <= result["recall@10"] <= 1 for result in results.values()
    )
