"""`unime data check`, the readers of every layout, and what they do with hard cases."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, fresh_process, picture
from fake_hub import FakeHub
from PIL import Image

from unime.cli import main as unime
from unime.commands.data import main
from unime.data.check import check
from unime.data.readers import Findings, read_rows
from unime.data.schema import Item, to_example


def test_every_layout_and_spelling_gives_the_same_rows(tmp_path, world):
    query, positive, image = "<|image_1|>\nWhat?\n", "a ring", "q.png"
    Image.new("RGB", (8, 8)).save(tmp_path / image)
    spelled = [
        {"qry": query, "qry_image_path": image, "pos_text": positive, "pos_image_path": ""},
        {"qry_text": query, "qry_img_path": image, "tgt_text": positive, "tgt_img_path": None},
        {
            "qry": query,
            "qry_image_path": image,
            "pos_text": positive,
            "pos_img_path": "",
            "neg_text": "",
            "neg_image_path": "",
        },
    ]
    own = {"query": {"text": query, "image": image}, "positive": positive}
    expected = (Item(query, str(tmp_path / image)), Item(positive))
    for number, row in enumerate([*spelled, own]):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(json.dumps(row) + "\n\n")
        (found,) = map(to_example, read_rows(path))
        assert (found.query, found.positive) == expected and found.dataset == str(number) and not found.negatives
        pq.write_table(pa.Table.from_pylist([row]), path.with_suffix(".parquet"))
        assert read_rows(path.with_suffix(".parquet"))[0]["query"]["text"] == query
    folder = tmp_path / "mmeb" / "A"
    folder.mkdir(parents=True)
    named = {**spelled[2], "neg_text": "<|image_1|>\n", "neg_image_path": image}
    pq.write_table(pa.Table.from_pylist([spelled[2], named]), folder / "diverse_instruction-0.parquet")
    rows = [to_example(row) for row in read_rows(tmp_path / "mmeb", tmp_path, split="diverse_instruction")]
    assert [len(row.negatives) for row in rows] == [0, 1] and rows[0].dataset == "A"
    assert len(read_rows(world / "train", world, ["Shapes_vqa"], limit=3)) == 3
    assert len(read_rows(world / "nli" / "nli_for_simcse.csv")) == 100
    (tmp_path / "scored.jsonl").write_text(json.dumps({**own, "negatives": ["x", "y"], "negative_scores": [0.1]}))
    with pytest.raises(ValueError, match=r"scored.jsonl, row 0 \(line 1\): 2 negatives for 1 scores"):
        read_rows(tmp_path / "scored.jsonl")
    with pytest.raises(ValueError, match="TIGER-Lab/MMEB-train does not exist here, and as a data set of the Hub"):
        read_rows("TIGER-Lab/MMEB-train")


FROM_HUB = """
import json, sys
from unime.data.readers import read_rows
whole = read_rows("hf://datasets/owner/mmeb", sys.argv[1], ["Shapes_vqa"], limit=2)
one = read_rows("hf://datasets/owner/mmeb/judged.json", sys.argv[1])
print(json.dumps([list(whole["dataset"]), [positive["text"] for positive in one["positive"]]]))
"""


def test_rows_are_read_from_the_hub(tmp_path, world):
    judged = {
        "query_text": "q",
        "query_image": "",
        "pos_text": "p",
        "pos_image": "",
        "query_pos_scores": 0.4,
        "hard_negatives": [],
        "hard_negatives_scores": [],
    }
    with FakeHub() as hub:
        folder = world / "train"
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.parquet")}
        hub.repos["datasets/owner/mmeb"] = {**files, "judged.json": json.dumps([judged]).encode()}
        online = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        names, positives = fresh_process(FROM_HUB, world, HF_HOME=str(tmp_path), **online)
    assert names == ["Shapes_vqa"] * 2 and positives == ["p"]
    fetched = {path.parent.name for path in tmp_path.rglob("original-*.parquet")}
    assert fetched == {"Shapes_vqa"}, "only what was asked for"


def test_bad_rows_are_kept_with_their_place_and_the_rest_is_read(tmp_path):
    good = {"query": "q", "positive": "p", "positive_score": 0.5, "negatives": ["n"], "negative_scores": [0.25]}
    bad = [
        ({**good, "query": " "}, "an item needs a text"),
        ({**good, "query": {"text": "q", "image": "no.png"}}, "'no.png' does not exist"),
        ({**good, "query": {"image": "../x.png"}}, "leaves the image root"),
        ({**good, "negative_scores": [1.5]}, r"1.5 is not a number in [0, 1]"),
        ({**good, "positive_score": float("nan")}, "nan is not a number in [0, 1]"),
        ({**good, "positive": ["p"]}, "an item is a text or has 'text' and 'image'"),
        ({"positive": "p"}, "lacks"),
        ({**good, "query": {"text": 5}}, "must be a string, not 5"),
        ({**good, "negative_scores": 3}, "must be a list, got 3"),
        ({**good, "dataset": 5}, "the data set's name must be a string"),
        ({**good, "query": "half \ud83d"}, "surrogates not allowed"),
        ("no object", "is not an object but 'no object'"),
    ]
    lines = [json.dumps(row) for row in (good, *(row for row, _ in bad), good)]
    lines[2:2] = ["{broken"]
    bad.insert(1, (None, "Expecting property name"))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    findings = Findings()
    assert len(read_rows(tmp_path / "rows.jsonl", findings=findings)) == 2
    assert len(findings.problems) == len(bad)
    assert all(f"row {n} (line {n + 1})" in problem.where for n, problem in enumerate(findings.problems, 1))
    for problem, (_, reason) in zip(findings.problems, bad):
        assert reason in problem.reason
    odd = [{"hard_negatives": 5}, {"query_image": 3, "hard_negatives": [3]}, 7, {"dataset": [1]}]
    (tmp_path / "odd.json").write_text(json.dumps(odd))
    findings = Findings()
    with pytest.raises(ValueError, match="odd.json holds no row"):
        read_rows(tmp_path / "odd.json", findings=findings)
    assert len(findings.problems) == 4
    (tmp_path / "cut.json").write_text('[\n{"query_text": "a"},\n{"query_te')
    with pytest.raises(ValueError, match=r"cut.json, row 1 \(line 3\): the file is broken off"):
        read_rows(tmp_path / "cut.json", findings=Findings())
    (tmp_path / "cut.json").write_text('[{"query_text": "a"} {"b": 1}]')
    with pytest.raises(ValueError, match=r"cut.json, row 0 \(line 1\): is not JSON: Extra data"):
        read_rows(tmp_path / "cut.json", findings=Findings())


def test_sentences_and_negatives_of_mmeb_are_checked_like_other_texts(tmp_path):
    pairs = [{"sent0": "a", "sent1": "b"}, {"sent0": 5, "sent1": "b"}, {"sent0": "a", "sent1": "half \ud83d"}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    findings = Findings()
    assert len(read_rows(tmp_path / "pairs.jsonl", findings=findings)) == 1
    assert "must be a string, not 5" in findings.problems[0].reason
    assert "surrogates not allowed" in findings.problems[1].reason

    row = {"qry": "q", "qry_image_path": "", "pos_text": "p", "pos_image_path": "", "neg_text": "n"}
    (tmp_path / "mmeb.jsonl").write_text(json.dumps(row))  # without a column for the negative's image
    assert to_example(read_rows(tmp_path / "mmeb.jsonl")[0]).negatives == [Item("n")]


def odd_images(folder):
    """Images of every kind that training meets, and some that it must not meet."""
    plain = Image.effect_noise((40, 30), 90).convert("RGB")
    plain.save(folder / "plain.png")
    plain.convert("P").save(folder / "palette.png")
    plain.convert("CMYK").save(folder / "cmyk.jpg")
    plain.convert("RGBA").save(folder / "alpha.png")
    plain.save(folder / "animated.gif", save_all=True, append_images=[Image.new("RGB", (40, 30), "red")])
    (folder / "cut.png").write_bytes((folder / "plain.png").read_bytes()[:600])
    (folder / "text.png").write_text("no image")
    Image.new("1", (30_000, 30_000)).save(folder / "bomb.png")
    return sorted(path.name for path in folder.iterdir())


def test_images_of_all_kinds_are_opened_and_counted(tmp_path, capsys):
    names = odd_images(tmp_path)
    rows = [{"query": {"image": name}, "positive": "p"} for name in [*names, "none.png"]]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = check(tmp_path / "rows.jsonl")
    images = report["images"]
    assert images["distinct"] == 9 and images["missing"] == 1 and images["first missing"][0].endswith("none.png")
    reasons = {entry["image"].rpartition("/")[2]: entry["reason"] for entry in images["unreadable"]}
    assert reasons.keys() == {"cut.png", "text.png", "bomb.png"} and all(reasons.values())
    assert "pixels" in reasons["bomb.png"]
    kinds = images["kinds"]
    assert kinds["mode CMYK"] == kinds["mode RGBA"] == kinds["animated: the first frame counts"] == 1
    assert images["copies"] == 2, "with opaque alpha, and as the first frame of an animation"
    assert kinds["transparent: put on white"] == 1 and report["rows"] == 9 and not report["bad_rows"]
    with pytest.raises(SystemExit) as ended:
        main(["check", str(tmp_path / "rows.jsonl"), "--report", str(tmp_path / "report.json")])
    assert ended.value.code == 1
    assert json.loads((tmp_path / "report.json").read_text()) == report
    printed = capsys.readouterr().out
    assert "9 distinct, 1 missing, 3 unreadable" in printed and "bomb.png" in printed


def test_the_report_counts_what_matters(tmp_path, capsys):
    row = {
        "query_text": "<|image_1|>\nq",
        "query_image": "",
        "pos_text": "p",
        "pos_image": "",
        "query_pos_scores": 0.4,
        "hard_negatives": [["n", ""], ["N ", ""], ["p", ""], ["n", ""]],
        "hard_negatives_scores": [0.1, 0.2, 0.4, 0.1],
    }
    other = {**row, "pos_text": "r", "query_pos_scores": 0.9}
    bad = {**row, "query_pos_scores": 2}
    (tmp_path / "rows.json").write_text(json.dumps([row, row, other, bad], indent=1))
    with pytest.raises(SystemExit):
        unime(["data", "check", str(tmp_path / "rows.json")])
    printed = capsys.readouterr().out
    assert "3 rows, and 1 bad one, at the first of which a training stops" in printed
    report = check(tmp_path / "rows.json")
    assert report["duplicates"] == {
        "repeated rows": 1,
        "queries with several positives": 1,
        "rows that repeat a negative": 3,
        "rows with negatives equal but for case, spacing or file name": 3,
        "rows whose positive is among their negatives": 2,
    }
    assert report["mended"] == {"image placeholders dropped from texts without an image": 3}
    scores = report["scores"]
    assert scores["positives below 0.5"] == 2 and scores["rows with a negative at or above their positive"] == 2
    assert scores["positive"]["greatest"] == 0.9 and report["modalities"] == {"text -> text": 3}
    (problem,) = report["bad_rows"]
    assert problem["where"].endswith("rows.json, row 3 (line 95)") and "2 is not a number" in problem["reason"]


def test_copies_of_pictures_are_counted(tmp_path, capsys):
    picture(0).save(tmp_path / "right.png")
    picture(0).save(tmp_path / "again.bmp")
    picture(1).save(tmp_path / "other.png")
    shutil.copy(tmp_path / "right.png", tmp_path / "copy.png")
    images = [{"image": name} for name in ("copy.png", "again.bmp", "other.png")]
    row = {"query": "q", "positive": {"image": "right.png"}, "negatives": images}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))

    report = check(tmp_path / "rows.jsonl")
    assert report["images"]["distinct"] == 4 and report["images"]["copies"] == 2
    assert report["duplicates"]["rows whose positive is among their negatives"] == 1
    assert report["duplicates"]["rows with negatives equal but for case, spacing or file name"] == 1
    assert report["datasets"]["rows"]["distinct positives"] == 1
    main(["check", str(tmp_path / "rows.jsonl")])
    assert "2  copies of others under other names" in capsys.readouterr().out

    # what is not opened is not compared
    report = check(tmp_path / "rows.jsonl", images=False)
    assert report["duplicates"]["rows whose positive is among their negatives"] == 0


def test_the_released_sample_is_reported(capsys):
    sample = ROOT.parent / "shared" / "data" / "unime_v2_rows.json"
    if not sample.exists():
        pytest.skip("the sample of the released file is not here")
    report = check(sample, images=False)
    assert report["rows"] == 50 and not report["bad_rows"] and report["images"]["missing"] == 239
    assert report["scores"]["positives below 0.5"] == 15 and report["mended"]
    assert report["modalities"]["image + text -> text"] == 31


def test_the_command_lists_its_words(capsys):
    unime(["--help"])
    listed = capsys.readouterr().out
    assert all(word in listed for word in ("convert", "export", "merge", "data", "mine"))
    with pytest.raises(SystemExit, match="2"):
        unime(["mien"])
    assert capsys.readouterr().err == "unime: there is no command 'mien'; did you mean 'mine'?\n"
    with pytest.raises(SystemExit, match="unime data check: .*nothing.json does not exist"):
        unime(["data", "check", "nothing.json"])
