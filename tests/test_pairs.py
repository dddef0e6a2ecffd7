"""`unime eval pairs`: tasks from rows of one's own, metrics of several right answers, and floors without a model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import picture
from hypothesis import given
from hypothesis import strategies as st

from unime import UniMEModel
from unime.commands.evaluate import main
from unime.data.schema import Item
from unime.eval.floors import floors_of
from unime.eval.pairs import read_pairs
from unime.eval.runner import score_task
from unime.eval.tasks import Task
from unime.jobs.metrics import average_precision


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def photos(tmp_path):
    for number in range(4):
        picture(number).save(tmp_path / f"{number}.png")
    shutil.copy(tmp_path / "0.png", tmp_path / "copy.png")
    return tmp_path


def test_equal_queries_and_answers_are_joined_and_copies_of_pictures_too(photos):
    rows = [
        {"query": "a ring", "positive": {"image": "0.png"}, "dataset": "shapes"},
        {"query": "A  ring", "positive": {"image": "1.png"}, "dataset": "shapes"},
        {"query": "a star", "positive": {"image": "copy.png"}, "dataset": "shapes"},
        {"query": "of another", "positive": "a text", "negatives": ["not this"]},
    ]
    shapes, other = read_pairs(write_rows(photos / "rows.jsonl", rows))
    assert (shapes.name, shapes.kind) == ("shapes", "text to image")
    assert [item.text for item in shapes.queries] == ["a ring", "a star"] and len(shapes.corpus) == 2
    assert shapes.relevant == [[0, 1], [0]] and shapes.candidates is None
    assert shapes.notes == ["3 rows have 2 distinct queries"]
    assert (other.name, other.kind, len(other.corpus)) == ("rows", "text to text", 1)


def test_both_ways_and_a_corpus(photos):
    rows = [
        {"query": "a ring", "positive": {"image": "2.png"}},
        {"query": "a star", "positive": {"image": "1.png"}},
        {"query": "it too", "positive": {"image": "1.png"}},
    ]
    path = write_rows(photos / "rows.jsonl", rows)
    corpus = write_rows(photos / "corpus.jsonl", [{"image": f"{number}.png"} for number in range(4)])

    forwards, backwards = read_pairs(path, corpus=corpus, both_ways=True)
    assert forwards.relevant == [[2], [1], [1]] and len(forwards.corpus) == 4
    assert backwards.name == "rows, backwards" and backwards.kind == "image to text"
    assert [item.image[-5:] for item in backwards.queries] == ["2.png", "1.png"]
    assert backwards.relevant == [[0], [1, 2]]

    corpus = write_rows(photos / "corpus.jsonl", [{"image": "2.png"}])
    with pytest.raises(ValueError, match=r"rows.jsonl, good row 2: its positive '.*1.png' is not in .*corpus.jsonl"):
        read_pairs(path, corpus=corpus)


@given(st.sets(st.integers(1, 40), min_size=1, max_size=8))
def test_average_precision_is_the_mean_precision_at_the_right_places(ranks):
    precisions = [sum(other <= rank for other in ranks) / rank for rank in ranks]
    assert average_precision(list(ranks)) == pytest.approx(sum(precisions) / len(precisions))


def test_floors_of_texts_and_of_pictures(photos):
    corpus = [Item("a red ring"), Item("a blue star"), Item("...")]
    texts = Task("t", "text to text", [Item("blue"), Item("a ring"), Item("stars")], corpus, None, [[1], [0], [1]])
    assert floors_of(texts) == pytest.approx({"chance": 1 / 3, "commonest answer": 2 / 3, "BM25": 2 / 3})

    # a smaller drawing of the same picture is found by its pixels, and by its colours
    corpus = [Item(image=str(photos / f"{number}.png")) for number in range(4)]
    picture(2).resize((32, 24)).save(photos / "small.png")
    pictures = Task("p", "image to image", [Item(image=str(photos / "small.png"))], corpus, None, [[2]])
    floors = floors_of(pictures)
    assert floors["chance"] == 0.25 and floors["16 x 16 pixels"] == 1.0 and "BM25" not in floors

    # a task of a text and a picture can only be guessed
    mixed = Task("m", "text to image", [Item("a ring")], corpus, None, [[2]])
    assert floors_of(mixed).keys() == {"chance", "commonest answer"}


def test_the_command_measures_a_file_and_says_what_no_model_is_needed_for(backbone, photos, capsys):
    UniMEModel.from_backbone(backbone).save_pretrained(photos / "model")
    rows = [{"query": {"image": f"{number}.png"}, "positive": {"image": f"{number}.png"}} for number in range(4)]
    rows.append({"query": {"image": "copy.png"}, "positive": {"image": "3.png"}})
    path = write_rows(photos / "held-out.jsonl", rows)

    words = ["pairs", "--model", str(photos / "model"), "--data", str(path), "--out", str(photos / "out")]
    main([*words, "--both-ways"])
    printed = capsys.readouterr().out
    assert "precision@1" in printed and "ndcg@10" in printed and "map" in printed
    assert "held-out: without a model, precision@1 is chance" in printed
    assert "held-out: 16 x 16 pixels alone is as good as this model" in printed

    result = json.loads(Path(printed.strip().splitlines()[-1]).read_text())
    task = result["tasks"]["held-out"]
    assert (task["queries"], task["candidates"], task["precision@1"]) == (4, 4, 1.0)

    # its query has two right answers, of which one is the picture itself
    model = UniMEModel.from_pretrained(photos / "model")
    query = model.encode_query([{"image": str(photos / "0.png")}])
    documents = model.encode_document([{"image": str(photos / f"{number}.png")} for number in range(4)])
    order = (query @ documents.T)[0].argsort(descending=True).tolist()
    expected = average_precision([order.index(0) + 1, order.index(3) + 1])
    assert task["map"] == pytest.approx((3 + expected) / 4)
    assert result["means"] == {"overall": pytest.approx((1.0 + result["tasks"]["held-out, backwards"]["score"]) / 2)}


def test_settings_of_pairs_are_refused_elsewhere(backbone, world, tmp_path):
    words = ["world", "--model", str(backbone), "--data", str(world), "--out", str(tmp_path)]
    for option in (["--both-ways"], ["--corpus", str(tmp_path)]):
        with pytest.raises(SystemExit, match="settings of `unime eval pairs`"):
            main([*words, *option])


def test_nothing_is_counted_twice_when_embeddings_are_equal():
    # two right answers behind a wrong one with the same score as the first
    task = Task("t", "text to text", [Item("q")], [Item("a"), Item("b"), Item("c")], None, [[1, 2]])
    corpus = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    result, _, _ = score_task(torch.tensor([[1.0, 0.0]]), corpus, task)
    assert result["map"] == pytest.approx((1 / 2 + 2 / 3) / 2) and result["ties"] == 1
