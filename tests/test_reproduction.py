"""Claims of the papers: intervals and verdicts, parts that are put together, the page, and all of them on few rows."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from transformers import CLIPModel

from unime.commands import reproduce as command
from unime.commands.parsers import reproduce as parser
from unime.data.readers import read_mmeb_train
from unime.reproduction import running, two_towers
from unime.reproduction.claims import CLAIMS, Claim
from unime.reproduction.findings import FAILS, HOLDS, OPEN, Comparison, Finding, compare, compare_values
from unime.reproduction.hierarchy import mean_size
from unime.reproduction.laboratory import Laboratory
from unime.reproduction.memory import Kept
from unime.reproduction.pages import to_html, to_markdown
from unime.reproduction.pictures import contrast_of, named_in, words_spread_over
from unime.reproduction.settings import FULL, QUICK


def test_a_difference_is_the_mean_over_tasks_of_that_over_seeds_and_queries():
    rng = np.random.default_rng(0)
    better = {"a": rng.random((3, 40)) < 0.8, "b": rng.random((3, 10)) < 0.6}
    worse = {"a": rng.random((3, 40)) < 0.3, "b": rng.random((3, 10)) < 0.6}
    comparison = compare("x", better, worse, ["a", "b"])
    expected = 50 * sum(float(better[task].mean()) - float(worse[task].mean()) for task in "ab")
    assert comparison.ours == pytest.approx(expected)
    assert comparison.low < comparison.ours < comparison.high


def test_the_interval_is_that_of_a_bootstrap_over_queries_where_all_seeds_agree():
    rng = np.random.default_rng(1)
    hits = (rng.random(60) < 0.7).astype(float)
    by_seed = {"a": np.stack([hits, hits, hits])}
    nothing = {"a": np.zeros((3, 60))}
    comparison = compare("x", by_seed, nothing, ["a"], draws=20_000)
    error = 100 * np.sqrt(hits.mean() * (1 - hits.mean()) / 60)
    assert comparison.high - comparison.low == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_seeds_that_disagree_widen_the_interval():
    agree = {"a": np.tile(np.repeat([1.0, 0.0], 50), (2, 1))}
    disagree = {"a": np.stack([np.ones(100), np.zeros(100)])}
    nothing = {"a": np.zeros((2, 100))}
    narrow = compare("x", agree, nothing, ["a"])
    wide = compare("x", disagree, nothing, ["a"])
    assert narrow.ours == wide.ours == 50
    assert wide.high - wide.low > 90 > narrow.high - narrow.low


@pytest.mark.parametrize(
    "low, high, least, aim, verdict",
    [
        (1, 3, 0, 0, HOLDS),
        (-1, 3, 0, 0, OPEN),
        (-3, -1, 0, 0, FAILS),
        (-0.5, 1, -1, 0, HOLDS),
        (-0.8, 0.2, -1, 0, HOLDS),
        (1, 3, 0, 5, FAILS),
        (-9, 3, 0, 5, OPEN),
    ],
)
def test_verdicts(low, high, least, aim, verdict):
    comparison = Comparison("x", (low + high) / 2, low, high, least=least, aim=aim)
    assert comparison.verdict == verdict
    sure = Comparison("y", 1, 0.5, 2)
    assert Finding("", [sure, comparison]).verdict == verdict


def test_paired_values():
    pairs = compare_values("x", [3, 5, 4], [1, 3, 2])
    assert (pairs.ours, pairs.low, pairs.high) == pytest.approx((2, 2, 2))
    alone = compare_values("x", [3], [1])
    assert alone.ours == 2 and alone.low is None and alone.verdict == OPEN, "one number has no interval"


def test_numbers_of_pictures_are_drawn_as_answers_to_queries_are():
    rng = np.random.default_rng(0)
    better, worse = rng.random((3, 40)) < 0.8, rng.random((1, 40)) < 0.5
    answers = compare("x", {"a": better}, {"a": np.repeat(worse, 3, axis=0)}, ["a"])
    numbers = compare_values("x", 100 * better, 100 * worse, unit="points")
    assert numbers.ours == pytest.approx(answers.ours)
    assert (numbers.low, numbers.high) == pytest.approx((answers.low, answers.high))


def test_kept_bytes_are_those_that_autograd_holds_at_once():
    weight = torch.nn.Parameter(torch.ones(10, 10))
    rows = torch.ones(5, 10)
    with Kept() as kept:
        first = (rows @ weight).sin()  # keeps the rows and the product, 200 bytes each; the weight does not count
        assert kept.now == 400
        first.sum().backward()
        assert kept.now == 0
        (rows @ weight).sum().backward()
    assert kept.most == 400 and kept.now == 0


# running
def fake(monkeypatch, verdicts):
    """Claims that cost nothing, and the order in which they were asked for."""
    order = []

    def claim(name, low, high):
        def run(laboratory):
            order.append(name)
            return Finding(f"{name} was measured.", [Comparison("a | b", 1, low, high, "+2")], {"x": {"y": "1"}})

        return Claim(f"What {name} says.", "a paper", run, 1)

    claims = {name: claim(name, *bounds) for name, bounds in verdicts.items()}
    monkeypatch.setattr(running, "CLAIMS", claims)
    return order


def test_parts_merge_and_nothing_is_measured_twice(monkeypatch, tmp_path):
    order = fake(monkeypatch, {"F2": (0.5, 2), "F10": (-1, 2), "F1": (-2, -1)})
    out = tmp_path / "one"
    said = []
    running.reproduce(out, ["F10"], 1, QUICK, said.append)
    summary = running.reproduce(out, ["F1", "F2", "F10"], 1, QUICK, said.append)
    assert order == ["F10", "F2", "F1"], "in the order of the table, and F10 once"
    verdicts = {name: claim["verdict"] for name, claim in json.loads(summary.read_text())["claims"].items()}
    assert list(verdicts.items()) == [("F1", FAILS), ("F2", HOLDS), ("F10", OPEN)]
    assert any("1 of 2" in line and "minutes left" in line for line in said)

    # more seeds are measured anew, and win
    running.reproduce(out, ["F2"], 3, QUICK, said.append)
    running.reproduce(tmp_path / "two", ["F2"], 2, QUICK, said.append)
    merged = json.loads(running.merge(tmp_path / "two", [out]).read_text())["claims"]
    assert merged["F2"]["seeds"] == 3 and list(merged) == ["F1", "F2", "F10"]

    with pytest.raises(ValueError, match="another size"):
        running.reproduce(out, ["F2"], 3, FULL)


def test_a_claim_that_fails_leaves_the_others(monkeypatch, tmp_path):
    order = fake(monkeypatch, {"F1": (1, 2), "F2": (1, 2)})
    claims = running.CLAIMS

    def broken(laboratory):
        raise KeyboardInterrupt

    monkeypatch.setitem(claims, "F2", Claim("Breaks.", "a paper", broken, 1))
    with pytest.raises(KeyboardInterrupt):
        running.reproduce(tmp_path, ["F1", "F2"], 1, QUICK, lambda line: None)
    claims["F2"] = Claim("Works.", "a paper", claims["F1"].run, 1)
    summary = running.reproduce(tmp_path, ["F1", "F2"], 1, QUICK, lambda line: None)
    assert order == ["F1", "F1"] and set(json.loads(summary.read_text())["claims"]) == {"F1", "F2"}


def test_command_line(monkeypatch, tmp_path, capsys):
    fake(monkeypatch, {"F1": (1, 2), "F2": (1, 2)})
    command.main(["--quick", "--seeds", "1", "--claims", "f2", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "F2 holds" in printed and str(tmp_path / "reproduction.html") in printed
    for words in (["--claims", "F99"], ["--seeds", "0"]):
        with pytest.raises(SystemExit):
            command.main(words)
    assert "there is no claim F99; there are F1, F2, " in capsys.readouterr().err


def test_a_package_that_is_missing_is_named_before_anything_is_made(monkeypatch, tmp_path):
    monkeypatch.setitem(command.NEEDED, "no_such_module", "no-such-package")
    with pytest.raises(SystemExit, match="pip install no-such-package"):
        command.main(["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


# the page
def claim(verdict=HOLDS, **changes):
    comparison = {**vars(Comparison("a over b", 1.25, 0.5, 2, "+2")), "verdict": verdict}
    return {
        "claim": "Says <this>.",
        "source": "a paper",
        "verdict": verdict,
        "measured": "As it was.",
        "seeds": 3,
        "comparisons": [comparison],
        "table": {"one": {"x": "1"}, "two": {"y": "2"}},
        "notes": ["A note."],
        "pictures": [],
        "tried": ["Once."],
        **changes,
    }


def test_every_claim_has_a_row_with_its_verdict():
    page = to_markdown({"F1": claim(), "F10": claim(OPEN)})
    assert (
        "| F1 | Says <this>. | a paper | holds |" in page
        and "| F10 | Says <this>. | a paper | cannot be told |" in page
    )
    alone = claim()
    alone["comparisons"][0] |= {"low": None, "high": None}
    assert "| none, of one seed |" in to_markdown({"F1": alone})
    assert "| a over b | +1.2 points | [+0.5, +2.0] | above 0 | +2 | holds |" in page
    assert "| one | 1 | - |" in page and "| two | - | 2 |" in page and "A note." in page and "- Once." in page
    assert "Not measured yet: F2, F3," in page
    assert "Not measured" not in to_markdown({name: claim() for name in CLAIMS})
    assert "Says &lt;this&gt;." in to_html({"F1": claim()})


def test_the_claims_are_those_of_the_issue_and_the_sizes_fit_together():
    assert sorted(CLAIMS, key=lambda name: int(name[1:])) == list(parser.CLAIMS)
    assert FULL.keys() == QUICK.keys() and FULL["judges"].keys() == QUICK["judges"].keys()
    assert list(FULL["judges"])[-1] == "best"


def test_the_page_in_the_documentation_has_a_verdict_for_each_of_its_claims():
    page = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (F\d+) \| .* \| (holds|does not hold|cannot be told) \|$", page, re.MULTILINE)
    assert rows and {name for name, _ in rows} <= set(CLAIMS)


def test_the_dual_encoder_reads_every_caption_to_its_end(tmp_path, world):
    """CLIP pools where a text ends; a text that is cut at its limit ends there."""
    laboratory = Laboratory(tmp_path, QUICK, seeds=1)
    laboratory.world = world
    processor = two_towers._build_processor(laboratory)
    torch.manual_seed(0)
    model = CLIPModel(two_towers._build_config(processor)).eval()

    texts = ["a red circle", "a red square", "a " * 200 + "red circle", "a " * 200 + "red square"]
    inputs = processor(text=texts, padding=True, truncation=True, return_tensors="pt")
    end = processor.tokenizer.eos_token_id
    assert inputs["input_ids"].shape[1] == two_towers.LIMIT and (inputs["input_ids"][:, -1] == end).all()
    with torch.inference_mode():
        outputs = model.text_model(**inputs)
        pooled = outputs.pooler_output
        short = processor(text=texts[:1], return_tensors="pt")
        last = model.text_model(**short).last_hidden_state[0, -1]
    assert torch.allclose(pooled[0], last, atol=1e-5) and short["input_ids"][0, -1] == end
    assert not torch.allclose(pooled[0], pooled[1], atol=1e-3), "the last word counts"
    assert torch.allclose(pooled[2], pooled[3], atol=1e-5), "and none behind the limit does"


def test_the_dual_encoder_keeps_the_temperature_at_which_clip_ends(tmp_path, world):
    laboratory = Laboratory(tmp_path, QUICK, seeds=1)
    laboratory.world = world
    model = CLIPModel.from_pretrained(two_towers.dual_encoder(laboratory, 0))
    assert float(model.logit_scale.detach().exp()) == pytest.approx(100)


def test_a_match_stands_out_by_its_cosine_less_the_mean_of_the_others():
    rows = torch.eye(3)
    columns = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8], [0.6, 0.0, 0.8]])
    contrast, spread = contrast_of(rows, columns)
    assert contrast == pytest.approx([1 - 0.3, 0.6 - 0, 0.8 - 0.4])
    assert spread == pytest.approx([0.3, 1e-9, 0.4])


def test_words_of_a_caption_count_in_the_singular_and_the_plural():
    words = ["red", " cross", "crosses", "ring", "two", "circles"]
    assert named_in("two red crosses", words).tolist() == [True, True, True, False, True, False]


def test_probability_is_spread_over_as_many_words_as_share_it_alike():
    assert words_spread_over(torch.tensor([[0.2, 0.2, 0.0, 0.2], [0.0, 0.9, 0.0, 0.0]])) == pytest.approx([3, 1])


def test_a_step_of_clusters_has_as_many_pairs_as_one_of_batches(tmp_path):
    for name, sizes in (("a", (3, 3, 1)), ("b", (0,))):
        rows = [{"neg_samples": [{}] * size} for size in sizes]
        (tmp_path / f"{name}_hard_negatives.json").write_text(json.dumps(rows))
    (tmp_path / "manifest.json").write_text("{}")
    assert mean_size(tmp_path) == (4 + 4 + 2 + 1) / 4


def test_rows_without_negatives_are_the_rows_of_the_world_otherwise(tmp_path, world):
    laboratory = Laboratory(tmp_path, QUICK, seeds=1)
    laboratory.world = world
    bare = read_mmeb_train(laboratory.rows_without_negatives(), image_root=world)
    rows = read_mmeb_train(world / "train", image_root=world)
    assert len(bare) == len(rows) and any(row["negatives"] for row in rows)
    for row, other in zip(bare, rows):
        assert row == {**other, "negatives": []}


def test_a_smoke_run_measures_every_claim(tmp_path, capsys):
    command.main(["--quick", "--seeds", "1", "--out", str(tmp_path)])
    claims = json.loads((tmp_path / "reproduction.json").read_text())["claims"]
    assert set(claims) == set(CLAIMS)
    for measured in claims.values():
        assert measured["comparisons"] and all(np.isfinite(part["ours"]) for part in measured["comparisons"])
        for picture in measured["pictures"]:
            assert (tmp_path / f"reproduction-{picture}").stat().st_size > 1000

    # a claim that is measured again takes everything that it needs from the folder
    before = times_of_kept(tmp_path)
    for name in ("F9", "F11"):
        (tmp_path / f"{name}.json").unlink()
    capsys.readouterr()
    command.main(["--quick", "--seeds", "1", "--out", str(tmp_path)])
    assert before == times_of_kept(tmp_path)
    assert "made again" not in capsys.readouterr().err


def times_of_kept(folder):
    """When each file was written that claims share."""
    times = {}
    for pattern in ("*.safetensors", "positives.json", "*-auc.json"):
        for path in folder.rglob(pattern):
            times[path] = path.stat().st_mtime_ns
    return times
