"""`unime eval errors`: the worst mistakes of a measured model, and right answers that are likely wrong."""

import json

import numpy as np
import pytest
from conftest import picture

from unime import UniMEModel
from unime.commands.evaluate import main
from unime.data.schema import Item
from unime.eval.mistakes import mistakes_of
from unime.eval.tasks import Task

ANSWERED = "the same query has this answer elsewhere"


def test_the_worst_mistakes_come_first_and_doubtful_answers_are_told(monkeypatch):
    corpus = [Item(f"answer {number}") for number in range(8)]
    queries = [Item("right"), Item("right too"), Item("narrow"), Item("far off"), Item("swapped"), Item("narrow")]
    relevant = [[0], [1], [2], [3], [4], [5]]
    task = Task("t", "text to text", queries, corpus, None, relevant)
    ranks = [1, 1, 2, 7, 6, 2]
    top = np.array([[0, 1], [1, 0], [7, 2], [6, 7], [0, -1], [2, 5]])
    similarity = np.array([[0.9, 0.1], [0.7, 0.1], [0.5, 0.4], [0.3, 0.2], [0.85, 0.0], [0.2, 0.1]])

    # of two right answers nobody can tell how sure the model is where it is right
    assert [mistake.doubt for mistake in mistakes_of(task, ranks, top, similarity)] == ["", "", "", ANSWERED]
    monkeypatch.setattr("unime.eval.mistakes.LEAST", 2)

    mistakes = mistakes_of(task, ranks, top, similarity)
    assert [(mistake.query.text, mistake.rank) for mistake in mistakes] == [
        ("far off", 7),
        ("swapped", 6),
        ("narrow", 2),
        ("narrow", 2),
    ]
    far, swapped, narrow, elsewhere = mistakes
    assert far.doubt == narrow.doubt == "" and far.right == [corpus[3]]
    assert narrow.first == [(corpus[7], 0.5, False), (corpus[2], 0.4, True)]
    assert "as sure of the first" in swapped.doubt and "at 6 of 8" in swapped.doubt  # 0.85 >= 0.8
    assert swapped.first == [(corpus[0], 0.85, False)], "-1 is no candidate"
    assert elsewhere.doubt == ANSWERED

    # nothing right: there is nothing to compare with
    alone = Task("t", "text to text", queries[:1], corpus, None, [[0]])
    (mistake,) = mistakes_of(alone, [8], top[2:3], similarity[2:3])
    assert mistake.doubt == ""


def test_the_command_writes_a_page_with_pictures(backbone, tmp_path, capsys):
    model = tmp_path / "model"
    UniMEModel.from_backbone(backbone).save_pretrained(model)
    rows = []
    for number in range(6):
        picture(number).save(tmp_path / f"{number}.png")
        name = "first" if number < 4 else "second"
        rows.append({"query": f"what <{number}> is", "positive": {"image": f"{number}.png"}, "dataset": name})
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["pairs", "--model", str(model), "--data", str(data), "--out", str(tmp_path / "eval")])
    (path,) = (tmp_path / "eval").rglob("results.json")
    results = json.loads(path.read_text())["tasks"]
    capsys.readouterr()

    out = tmp_path / "pages" / "errors.html"
    main(["errors", str(tmp_path / "eval"), "--out", str(out), "--count", "2"])
    page = out.read_text()
    wrong = {name: sum(rank > 1 for rank in task["ranks"]) for name, task in results.items()}
    assert page.count("<section>") == sum(min(2, count) for count in wrong.values()) > 0
    assert page.count("data:image/png;base64,") >= 2 * page.count("<section>") and "what &lt;" in page
    printed = capsys.readouterr().out
    assert all(f"{name}: {count} mistakes, " in printed for name, count in wrong.items()) and str(out) in printed

    main(["errors", str(path), "--out", str(out), "--task", "second"])
    assert "<h1>first</h1>" not in out.read_text()
    with pytest.raises(SystemExit, match="there is no data set 'third' in .*; there are first, second"):
        main(["errors", str(path), "--task", "third"])
