"""The command `unime eval`: benchmarks as resumable jobs, reranking, reports, figures."""

import csv
import json
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, save_backbone
from layouts import (
    write_captioned,
    write_mmeb,
    write_sharegpt4v,
    write_sugarcrepe,
    write_urban1k,
    write_video,
    write_visdoc,
)
from PIL import Image
from safetensors.torch import load_file

from unime import UniMEModel, UniMERerankerForCausalLM
from unime.commands.evaluate import main
from unime.commands.parsers.evaluate import STEPS, EvalConfig
from unime.data.schema import Item
from unime.eval.benchmarks import BENCHMARKS
from unime.eval.catalogue import read
from unime.eval.pages import to_markdown
from unime.eval.report import build, load, to_eval_results
from unime.eval.rerank import run_rerank
from unime.eval.runner import run_benchmark, score_task
from unime.eval.tasks import Task, read_world_tasks
from unime.examples import negatives
from unime.jobs.embedding import Embedder
from unime.jobs.reranking import Reranker
from unime.jobs.settings import parse_settings


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two embedders and a stock VLM, as folders."""
    home = tmp_path_factory.mktemp("models")
    for name, seed in (("first", 0), ("second", 1)):
        backbone = save_backbone(home / f"{name}-vlm", seed=seed)
        UniMEModel.from_backbone(backbone).save_pretrained(home / name)
    return home


@pytest.fixture(scope="module")
def measured(saved, world, tmp_path_factory):
    """Results of both embedders on the tiny world."""
    out, tasks = tmp_path_factory.mktemp("results"), read_world_tasks(world)
    source = {"data": str(world), "image_root": None, "tasks": None, "partial": False, "cache": str(out / "images")}
    return {
        name: run_benchmark("world", tasks, Embedder(saved / name), out, world, source) for name in ("first", "second")
    }


def content(path):
    return json.loads(path.read_text())


def write_pairs(root):
    """A file of four rows whose answers are distinct."""
    path = root / "pairs.jsonl"
    path.write_text("".join(json.dumps({"query": f"query {n}", "positive": f"answer {n}"}) + "\n" for n in range(4)))
    return path


# every benchmark, models that know nothing
LAYOUTS = {
    "mmeb": lambda root: write_mmeb(root, queries=4, candidates=4),
    "mmeb-v2-image": lambda root: write_mmeb(root, queries=2, candidates=4, instructions=True),
    "visdoc": write_visdoc,
    "video": write_video,
    "pairs": write_pairs,
    "sugarcrepe": lambda root: write_sugarcrepe(root, 8),
}


def write_layout(benchmark, root):
    if benchmark == "retrieval":
        for name, write in (
            ("flickr30k", write_captioned),
            ("coco", write_captioned),
            ("urban1k", write_urban1k),
            ("sharegpt4v", write_sharegpt4v),
        ):
            (root / name).mkdir(parents=True)
            write(root / name)
        return root
    root.mkdir()
    return LAYOUTS[benchmark](root)


class Pretender(Embedder):
    """An embedder whose embeddings come from `make(count)`."""

    def __init__(self, source, make):
        super().__init__(source)
        self.make, self.asked = make, []

    def load(self):
        return None

    def wording(self, role, task):
        return "query", None

    def settings(self):
        return {"model": "pretender", "make": self.make.__name__}

    def encode(self, items, role, benchmark=None, of_training=False):
        self.asked += items
        return self.make(len(items))


def collapsed(count):
    return np.ones((count, 4), np.float32) / 2


def broken(count):
    return np.full((count, 4), np.nan, np.float32)


def noise(count):
    found = np.random.default_rng(0).standard_normal((count, 16)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("benchmark", list(BENCHMARKS))
def test_models_that_know_nothing_score_nothing(benchmark, tmp_path, world):
    data = world if benchmark == "world" else write_layout(benchmark, tmp_path / "data")
    source = {"data": str(data), "image_root": None, "tasks": None, "partial": True, "cache": str(tmp_path / "images")}
    tasks, root = read(benchmark, source)

    def run(make):
        embedder = Pretender("pretender", make)
        return content(run_benchmark(benchmark, tasks, embedder, tmp_path / make.__name__, root)), embedder.asked

    nothing, asked = run(collapsed)
    assert len(asked) == len({*(i for t in tasks for i in t.queries), *(i for t in tasks for i in t.corpus)})
    large = [own for own in nothing["tasks"].values() if own["candidates"] > 1]
    assert large and all(own["precision@1"] == 0 and own["ties"] == own["queries"] for own in large)
    with pytest.raises(ValueError, match=f"task {tasks[0].name}, query 0: score 0 is nan"):
        run(broken)
    chance = run(noise)[0]["tasks"]
    hits = sum(own["precision@1"] * own["queries"] for own in chance.values())
    expected = [len(task.relevant[i]) / len(task.options(i)) for task in tasks for i in range(len(task.queries))]
    spread = np.sqrt(sum(p * (1 - p) for p in expected))
    assert abs(hits - sum(expected)) <= 4 * spread + 1e-9


# the job
def test_a_killed_evaluation_ends_with_the_same_file(saved, world, measured, tmp_path):
    command = [sys.executable, "-m", "unime.cli", "eval", "world", "--model", str(saved / "first")]
    command += ["--data", str(world), "--shard", "8", "--out", str(tmp_path)]
    env, rng, kills = dict(os.environ), random.Random(0), 0

    def shards():
        return len(list(tmp_path.rglob("rows-*.safetensors")))

    while kills < 3:
        process, target = subprocess.Popen(command, env=env, stdout=-3, stderr=-3), shards() + rng.randint(1, 6)
        while process.poll() is None and shards() < target:
            pass
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills == 3 and not list(tmp_path.rglob("results.json"))
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    (path,) = tmp_path.rglob("results.json")
    whole = subprocess.run(
        [*command[:-1], str(tmp_path / "whole")], env=env, capture_output=True, text=True, check=True
    )
    (other,) = (tmp_path / "whole").rglob("results.json")
    assert str(path) in done.stdout and "Shapes_t2i" in whole.stdout
    first, second = path.read_text(), other.read_text()
    assert first.replace(str(tmp_path), "") == second.replace(str(tmp_path / "whole"), "")
    assert content(path)["tasks"] == content(measured["first"])["tasks"], "whatever the size of a shard"


def test_two_processes_give_what_one_gives(saved, world, measured, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0", "-m", "unime.cli", "eval", "world", "--model", str(saved / "first")]
    command += ["--data", str(world), "--shard", "16", "--out", str(tmp_path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = tmp_path.rglob("results.json")
    assert content(path)["tasks"] == content(measured["first"])["tasks"]
    assert done.stdout.count("Shapes_t2i") == 1, "one process speaks"


def test_results_are_kept_apart_by_model_settings_and_data(saved, world, measured, tmp_path):
    tasks = read_world_tasks(world)[:1]
    one = run_benchmark("world", tasks, Embedder(saved / "first"), tmp_path, world)
    before = one.stat().st_mtime_ns
    assert run_benchmark("world", tasks, Embedder(saved / "first"), tmp_path, world) == one
    assert one.stat().st_mtime_ns == before, "not made again"
    small = run_benchmark("world", tasks, Embedder(saved / "first", resolution="tokens:4"), tmp_path, world)
    other = run_benchmark("world", read_world_tasks(world)[1:2], Embedder(saved / "first"), tmp_path, world)
    assert len({one, small, other}) == 3 and content(small)["settings"]["resolution"] == "tokens:4"
    again = run_benchmark("world", tasks, Embedder(saved / "second"), tmp_path, world)
    assert again.parent.parent.name == "second" and content(again)["model"] != content(one)["model"]


def test_presets_that_word_queries_and_documents_differently_see_both(saved, world, tmp_path):
    tasks = read_world_tasks(world)[:1]
    path = run_benchmark("world", tasks, Embedder(saved / "first-vlm", preset="hierarchical"), tmp_path, world)
    assert (path.parent / "queries").is_dir() and (path.parent / "candidates").is_dir()


def test_an_item_that_cannot_be_read_is_named_and_nothing_is_scored(saved, tmp_path):
    root = write_mmeb(tmp_path / "data", ["GQA"])
    (root / "images" / "GQA" / "1.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit, match=r"1 of 7 items could not be embedded, so there is no result: .*1\.png"):
        main(["mmeb", "--model", str(saved / "first"), "--data", str(root), "--tasks", "GQA", "--out", str(tmp_path)])
    assert not list(tmp_path.rglob("results.json"))


def test_what_failed_is_tried_again_by_the_next_run(tmp_path):
    class Flaky(Pretender):
        well = False

        def encode(self, items, role, benchmark=None, of_training=False):
            if not self.well and any(item.text == "b" for item in items):
                raise OSError("the disk is gone")
            return super().encode(items, role)

    embedder = Flaky("flaky", noise)
    items = [Item(letter) for letter in "abcd"]
    task = Task("t", "VQA", items, items, None, [[0], [1], [2], [3]])
    with pytest.raises(ValueError, match="1 of 4 items could not be embedded.*'b': the disk is gone"):
        run_benchmark("own", [task], embedder, tmp_path)
    embedder.well = True
    assert content(run_benchmark("own", [task], embedder, tmp_path))["tasks"]["t"]["queries"] == 4


def test_of_equal_candidates_wrong_ones_are_kept_first():
    items = [Item(str(i)) for i in range(12)]
    task = Task("t", "VQA", items[:1], items, None, [[0, 5]])
    found, top, _ = score_task(torch.ones(1, 2), torch.ones(12, 2), task, depth=10)
    assert found["ranks"] == [11] and not {0, 5} & set(top[0].tolist())
    corpus = torch.ones(12, 2)
    corpus[5] = 2.0
    found, top, similarity = score_task(torch.ones(1, 2), corpus, task, depth=3)
    assert top[0, 0] == 5 and 0 not in top[0] and similarity[0].tolist() == [4.0, 2.0, 2.0] and found["ranks"] == [1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["mmeb", "--data", "nowhere"], "`model` is missing"),
        (["mmeb", "--model", "m"], "`data` is missing"),
        (["rerank", "--results", "r"], "`reranker` is missing"),
        (["rerank", "--results", "tests", "--reranker", "r"], "must lead to one embedder's results.json"),
        (["report", "nowhere.json"], "nowhere.json cannot be read"),
    ],
)
def test_the_command_says_what_is_missing(arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(arguments)


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes" / "eval").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_read_whole(recipe):
    step, config = parse_settings("unime eval", EvalConfig, STEPS, [recipe.stem, "--config", str(recipe)])
    own = yaml.safe_load(recipe.read_text())
    assert step == recipe.stem and all(getattr(config, key) == value for key, value in own.items())
    assert f"unime eval {step} --config recipes/eval/{recipe.name}" in recipe.read_text().splitlines()[0]


# reranking
class Oracle(Reranker):
    """Scores 1 what is right and 0 what is wrong, or the other way round."""

    def __init__(self, right, flip=False):
        super().__init__("oracle")
        self.right, self.flip = right, flip

    def settings(self):
        return {"reranker": "oracle", "strategy": "pointwise", "flip": self.flip}

    def load(self):
        return None

    def scores(self, query, candidates, similarity, benchmark=None):
        found = [float((repr(query), repr(item)) in self.right) for item in candidates]
        return [1 - score for score in found] if self.flip else found


def test_a_reranker_can_only_win_among_the_candidates_and_losses_are_counted(world, measured):
    tasks = read_world_tasks(world)
    right = {
        (repr(task.queries[i].as_input()), repr(task.corpus[task.options(i)[place]].as_input()))
        for task in tasks
        for i in range(len(task.queries))
        for place in task.relevant[i]
    }
    before = content(measured["first"])["tasks"]
    best = content(run_rerank(measured["first"], tasks, Oracle(right), 5, world))
    for name, own in best["tasks"].items():
        inside = sum(rank <= 5 for rank in before[name]["ranks"])
        assert own["precision@1"] * own["queries"] == pytest.approx(inside), name
        assert own["not among the candidates"] == own["queries"] - inside and own["lost"] == 0
        assert own["gained"] == inside - sum(rank == 1 for rank in before[name]["ranks"])
        assert all(a == b for a, b in zip(own["ranks"], before[name]["ranks"]) if b > 5), "the others stay"
        assert own["before"]["precision@1"] == before[name]["precision@1"]
    worst = content(run_rerank(measured["first"], tasks, Oracle(right, flip=True), 5, world))["tasks"]
    assert all(own["precision@1"] == 0 for name, own in worst.items() if own["candidates"] > 1)
    assert worst["Shapes_t2i"]["lost"] == sum(rank == 1 for rank in before["Shapes_t2i"]["ranks"])


@pytest.mark.parametrize("strategy", ["pointwise", "listwise", "fused"])
def test_reranking_follows_the_rerankers_own_scores(strategy, saved, world, measured):
    main(
        [
            "rerank",
            "--results",
            str(measured["first"]),
            "--reranker",
            str(saved / "second-vlm"),
            "--candidates",
            "3",
            "--strategy",
            strategy,
            "--limit",
            "2",
        ]
    )
    (path,) = measured["first"].parent.glob(f"second-vlm-{strategy}-top3-*/results.json")
    found, task = content(path)["tasks"]["Shapes_i2t"], {t.name: t for t in read_world_tasks(world)}["Shapes_i2t"]
    before = content(measured["first"])["tasks"]["Shapes_i2t"]
    assert found["queries"] == 2 and "the first 2 of 12 queries" in found["notes"]
    (result,) = load([str(path)])
    assert "first 2 queries" in result.name
    result.content["benchmark"] = "mmeb"
    assert to_eval_results(result) == [], "a part of the queries is nothing to publish"
    model = UniMERerankerForCausalLM.from_backbone(saved / "second-vlm")
    kept = load_file(measured["first"].with_name("top.safetensors"))
    for number in range(2):
        best = kept["Shapes_i2t/top"][number, :3].tolist()
        extra = {"retrieval_scores": kept["Shapes_i2t/similarity"][number, :3].tolist()} if strategy == "fused" else {}
        candidates = [task.corpus[i].as_input() for i in best]
        order = model.rank(task.queries[number].as_input(), candidates, strategy, **extra)
        right = task.options(number)[task.relevant[number][0]]
        places = [place for place, entry in enumerate(order, 1) if best[entry["index"]] == right]
        assert found["ranks"][number] == (places[0] if places else before["ranks"][number])


class Writer(Oracle):
    """Writes the number of the candidate that is right, and of a query without one in the list nothing of use."""

    def __init__(self, right):
        super().__init__(right)
        self.strategy = "generate"

    def settings(self):
        return {"reranker": "writer", "strategy": "generate"}

    def pick(self, query, candidates, benchmark=None):
        scores = self.scores(query, candidates, None)
        return scores.index(1.0) if 1.0 in scores else None


def test_written_answers_are_evaluated_and_those_that_name_nothing_counted(world, measured):
    tasks = read_world_tasks(world)
    right = set()
    for task in tasks:
        for number, query in enumerate(task.queries):
            for place in task.relevant[number]:
                right.add((repr(query.as_input()), repr(task.corpus[task.options(number)[place]].as_input())))
    before = content(measured["first"])["tasks"]
    path = run_rerank(measured["first"], tasks, Writer(right), 5, world)
    for name, result in content(path)["tasks"].items():
        absent = sum(rank > 5 for rank in before[name]["ranks"])
        assert result["unparsed"] == absent == result["not among the candidates"]
        assert result["precision@1"] * result["queries"] == pytest.approx(result["queries"] - absent)

    # what is not named stays in the embedder's order
    nothing = content(run_rerank(measured["first"], tasks, Writer(set()), 4, world))["tasks"]
    for name, result in nothing.items():
        assert result["ranks"] == before[name]["ranks"] and result["unparsed"] == result["queries"]
    assert "| written answers that name none |" in to_markdown(build(load([str(path)])))


def test_other_data_and_embedders_are_refused_as_rerankers(saved, world, measured):
    with pytest.raises(ValueError, match="was made from other data"):
        run_rerank(measured["first"], read_world_tasks(world)[:2], Oracle(set()), 5, world)
    with pytest.raises(ValueError, match="60 candidates cannot be reranked here: at least 1, and 50 are kept"):
        run_rerank(measured["first"], read_world_tasks(world), Oracle(set()), 60, world)
    with pytest.raises(SystemExit, match="second is an embedder"):
        main(["rerank", "--results", str(measured["first"]), "--reranker", str(saved / "second"), "--limit", "1"])


# reports
def test_report(measured, tmp_path):
    main(
        [
            "report",
            str(measured["first"]),
            str(measured["second"]),
            "--names",
            "a|b",
            "c",
            "--out",
            str(tmp_path / "r"),
        ]
    )
    text, page = (tmp_path / "r.md").read_text(), (tmp_path / "r.html").read_text()
    score = content(measured["second"])["tasks"]["swap_obj"]["score"]
    row = next(line for line in text.splitlines() if line.startswith("| swap_obj | Compositional"))
    assert row.endswith(f"| {100 * score:.1f} |") and "a\\|b" in text and "minus a|b, in points" in text
    assert page.count("<table>") == 3 and "<script" not in page and "a|b" in page
    assert to_eval_results(load([str(measured["first"])])[0]) == [], "the world is on no Hub"


def test_report_sets_results_beside_what_is_printed_and_says_what_is_wrong_with_that(saved, tmp_path, capsys):
    root = write_mmeb(tmp_path / "data", queries=2)
    for name in ("first", "second"):
        main(["mmeb", "--model", str(saved / name), "--data", str(root), "--out", str(tmp_path / "out")])
    assert "mean: overall" in capsys.readouterr().out
    main(["report", str(tmp_path / "out"), "--out", str(tmp_path / "report")])
    text = (tmp_path / "report.md").read_text()
    assert "| UniME-V2 Qwen2-VL 7B * | 64.0 | 60.1 | 73.1 | 82.8 | 72.0 | 63.0 | 68.0 |" in text
    assert "Classification is printed as 64.0, its data sets give 62.8" in text
    row = next(line for line in text.splitlines() if line.startswith("| DocVQA | VQA | IND | 4 |"))
    assert row.endswith("| 64.4 | 67.6 | 91.2 | 92.6 |")
    entries = yaml.safe_load((tmp_path / "first" / ".eval_results" / "mmeb.yaml").read_text())
    (found,) = (path for path in (tmp_path / "out" / "first").rglob("results.json"))
    value = content(found)["tasks"]["GQA"]["score"]
    entry = next(entry for entry in entries if entry["dataset"]["task_id"] == "GQA")
    assert entry["dataset"]["id"] == "TIGER-Lab/MMEB-eval" and entry["value"] == round(100 * value, 2)
    assert len(entries) == 36 + 8


def test_report_of_retrieval_and_sugarcrepe_has_the_papers_columns(saved, tmp_path):
    out = tmp_path / "out"
    for benchmark in ("retrieval", "sugarcrepe"):
        data = write_layout(benchmark, tmp_path / benchmark)
        main([benchmark, "--model", str(saved / "first"), "--data", str(data), "--out", str(out)])
    main(["report", str(out), "--out", str(tmp_path / "report")])
    text = (tmp_path / "report.md").read_text()
    assert "| UniME-V2 Qwen2-VL 2B | 72.1 | 93.4 |" in text, "R_short and R_long, as 2510.13515 prints them"
    assert "| UniME-V2 Qwen2-VL 2B | 70.9 | 51.2 | 70.2 |" in text
    head = next(line for line in text.splitlines() if line.startswith("| model | flickr30k_t2i"))
    row = next(line for line in text.splitlines() if line.startswith("| UniME-V2 LLaVA-OV 7B | 85.5"))
    columns = dict(zip(head.split(" | "), row.split(" | ")))
    assert columns["coco_i2t"] == "74.1" and columns["urban1k_t2i"] == "96.3"
    assert "published with 5000 and 25000" in text and "it is text to image" in text


def test_files_that_are_no_results_are_refused(measured, tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match=r"x.json is not a results file of format"):
        load([str(tmp_path / "x.json")])
    with pytest.raises(ValueError, match="there is no results.json in"):
        load([str(tmp_path)])
    with pytest.raises(ValueError, match="1 names for 2 results"):
        load([str(measured["first"]), str(measured["second"])], ["one"])


# figures
def opened(path):
    """A figure's size and the rows beside it; that it shows something."""
    with Image.open(path) as image:
        image.load()
        assert len(image.convert("L").getcolors(256)) > 20
    with open(path.with_suffix(".csv"), encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_figures_of_models(saved, world, tmp_path):
    def draw(kind, *more):
        path = tmp_path / f"{kind}.png"
        main(
            [
                "figures",
                kind,
                "--models",
                str(saved / "first"),
                str(saved / "second"),
                "--data",
                str(world),
                "--count",
                "6",
                "--out",
                str(path),
                *more,
            ]
        )
        return opened(path)

    rows = draw("similarity", "--task", "Shapes_t2i")
    assert len(rows) == 72 and {row["panel"] for row in rows} == {"first", "second"}
    places = draw("map")
    assert len(places) == 2 * 2 * 6
    words = draw("next-token", "--head", str(saved / "first-vlm"), "--top", "4")
    assert len(words) == 2 * 6 * 4
    model = UniMERerankerForCausalLM.from_backbone(saved / "first-vlm")
    query = next(t for t in read_world_tasks(world) if t.name.endswith("_i2t")).queries[0]
    entry = model.processor.prepare([{"image": query.image}])[0]
    with torch.inference_mode():
        logits = model(**model.processor.collate([entry])).logits[0, -1, : len(model.processor.tokenizer)]
    expected = logits.softmax(-1).max().item()
    assert float(words[0]["probability"]) == pytest.approx(expected, rel=1e-3), "what the VLM itself would say next"


def test_figures_of_results(measured, world, tmp_path):
    both = [str(measured["first"]), str(measured["second"])]
    main(["figures", "stages", *both, "--names", "one", "two", "--out", str(tmp_path / "stages.png")])
    rows = opened(tmp_path / "stages.png")
    means = content(measured["second"])["means"]
    assert {row["group"]: float(row["mean"]) for row in rows if row["stage"] == "two"} == pytest.approx(means)
    main(["figures", "contact", both[0], "--task", "Shapes_t2i", "--count", "4", "--out", str(tmp_path / "sheet.png")])
    rows = opened(tmp_path / "sheet.png")
    ranks = content(measured["first"])["tasks"]["Shapes_t2i"]["ranks"]
    first = [row for row in rows if row["place"] == "1"]
    hits = min(2, sum(rank == 1 for rank in ranks))
    assert [row["right"] for row in first] == ["1"] * hits + ["0"] * (4 - hits)


def test_figure_of_trainings(tmp_path):
    for name, slope in (("easy", 0.1), ("hard", 0.5)):
        log = [{"step": s, "loss": 2 - slope * s / 10, "grad_norm": slope} for s in range(1, 9)]
        (tmp_path / name / "checkpoint-8").mkdir(parents=True)
        state = {"log_history": [*log, {"step": 8, "train_runtime": 1}]}
        (tmp_path / name / "checkpoint-8" / "trainer_state.json").write_text(json.dumps(state))
    main(["figures", "curves", str(tmp_path / "easy"), str(tmp_path / "hard"), "--out", str(tmp_path / "curves.png")])
    rows = opened(tmp_path / "curves.png")
    assert len(rows) == 16 and rows[-1] == {"run": "hard", "step": "8", "loss": "1.6", "grad_norm": "0.5"}
    with pytest.raises(SystemExit, match="holds no trainer_state.json"):
        main(["figures", "curves", str(tmp_path), "--out", str(tmp_path / "x.png")])
    with pytest.raises(SystemExit, match="a different name for each of the 2 runs"):
        main(["figures", "curves", str(tmp_path / "easy"), str(tmp_path / "easy"), "--out", str(tmp_path / "x.png")])


def test_tasks_with_graded_relevance_are_reranked_too(tmp_path):
    corpus = [Item(letter) for letter in "abcd"]
    task = Task("docs", "Documents", [Item("q")], corpus, None, [[0, 3]], [[1.0, 2.0]], metric="ndcg@5")

    def eye(count):
        return np.eye(5, 4, dtype=np.float32)[:count]

    path = run_benchmark("docs", [task], Pretender("pretender", eye), tmp_path)
    right = {(repr({"text": "q"}), repr({"text": "d"}))}
    with pytest.raises(ValueError, match="4 candidates cannot be reranked here: at least 5"):
        run_rerank(path, [task], Oracle(right), 4)
    found = content(run_rerank(path, [task], Oracle(right), 5))["tasks"]["docs"]
    first = (2 + 1 / np.log2(5)) / (2 + 1 / np.log2(3))  # d first; a last of three equal ones
    assert found["score"] == found["ndcg@5"] == pytest.approx(first) and found["ranks"] == [1]


def test_easy_random_and_hard_negatives_are_drawn_from_three_trainings(backbone, world, tmp_path):
    out = tmp_path / "negatives.png"
    negatives.main(["--model", str(backbone), "--world", str(world), "--steps", "3", "--out", str(out)])
    rows = opened(out)
    assert [row["run"] for row in rows] == ["easy"] * 3 + ["random"] * 3 + ["hard"] * 3
    losses = [float(row["loss"]) for row in rows if row["step"] == "1"]
    assert losses[0] < losses[1] < losses[2], "before the first step the models are the same"
