"""The campaign itself: it tells the classes of outcome apart, and keeps the smallest case of each fault."""

import json
import os

import campaign
import outcomes
import pytest
from outcomes import CLEAR, HANG, HOLE, OK, TRACEBACK, VAGUE, WRONG, Hole, Outcome, Wrong, observe


def raising(error):
    def action():
        raise error

    return action


@pytest.mark.parametrize(
    ("action", "kind"),
    [
        (lambda: None, OK),
        (raising(ValueError("a.csv, row 3: no text")), CLEAR),
        (raising(SystemExit("unime encode: a.csv is damaged")), CLEAR),
        (raising(ValueError("no text")), VAGUE),
        (raising(KeyError("a.csv")), TRACEBACK),
        (raising(Wrong("a.csv")), WRONG),
        (raising(Hole("a.csv")), HOLE),
    ],
)
def test_classes_are_told_apart(action, kind):
    outcome = observe(action, ["a.csv"])
    assert outcome.kind == kind
    assert outcome.is_right == (kind in (OK, CLEAR))


def test_what_waits_for_ever_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(outcomes, "SECONDS", 0.1)
    os.mkfifo(tmp_path / "pipe")
    assert observe((tmp_path / "pipe").read_bytes, []).kind == HANG


def test_the_smallest_case_of_each_fault_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(outcomes, "CORPUS", tmp_path)
    findings = campaign.Findings(["rows"])
    for text in ("aaaa", "a", "aa", "a"):
        findings.add("rows", {"text": text}, Outcome(WRONG, f"row {len(text)} of '{text}' is lost"), number=1)
    findings.add("rows", {"text": "bb"}, Outcome(TRACEBACK, "KeyError: 7"), number=2)
    findings.add("rows", {"text": "good"}, Outcome(OK), number=2)

    texts = sorted(json.loads(path.read_text())["text"] for path in tmp_path.glob("rows/*.json"))
    assert texts == ["a", "bb"]
    assert findings.wrong("rows") == 4, "a case that comes twice is counted once"
    assert findings.table().splitlines()[-1] == "| rows | 5 | 1 | 0 | 0 | 1 | 3 | 0 | 0 |"
