"""The mining commands on the miniature world: whole, killed and resumed, over two processes, and refused."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fresh_process, picture
from PIL import Image
from safetensors.numpy import save_file

from unime import UniMERerankerForCausalLM
from unime.commands.mine import main
from unime.data.readers import read_clusters, read_judged
from unime.data.schema import Example, Item, to_example
from unime.jobs.embedding import Embedder, checkpoint_fingerprint
from unime.jobs.shards import read_errors, read_job, run_job
from unime.mining import judging, retrieval
from unime.mining.pipeline import Mining, MiningConfig
from unime.mining.writers import write_judged, write_judged_shards

SUBSETS = ["Shapes_vqa", "Shapes_t2i", "Shapes_same"]


def settings(world, backbone, out, **changes) -> dict:
    found = {
        "data": str(world / "train"),
        "image_root": str(world),
        "out": str(out),
        "subsets": SUBSETS,
        "rows_per_subset": 8,
        "embedder": str(backbone),
        "embedder_preset": "summary",
        "judge": str(backbone),
        "top_k": 6,
        "num_negatives": 4,
        "delta": "none",
        "fallback": "judge_lowest",
        "embed_shard": 9,
        "retrieve_shard": 11,
        "judge_shard": 5,
    }
    return found | changes


@pytest.fixture(scope="module")
def mined(world, backbone, tmp_path_factory) -> Mining:
    out = tmp_path_factory.mktemp("mined")
    Mining(MiningConfig(**settings(world, backbone, out))).run()
    return Mining(MiningConfig(**settings(world, backbone, out)))


def test_mining_that_keeps_nothing_ends_with_an_error_and_advice(mined, world, backbone, tmp_path, capsys):
    changes = {"margin": "1.1", "fallback": "drop"}
    options = [f"--{name}={value}" for name, value in settings(world, backbone, mined.out, **changes).items()]
    options = [option for option in options if not option.startswith(("--subsets", "--rows"))]
    options += ["--subsets", *SUBSETS, "--rows_per_subset", "8"]
    with pytest.raises(SystemExit, match="describes another job .* Another --name writes beside it") as end:
        main(["select", *options])
    with pytest.raises(SystemExit, match=r"none of 24 pairs .* by the margin of 1\.1.*--fallback judge_lowest") as end:
        main(["select", *options, "--name", "strict"])
    assert isinstance(end.value.code, str), "status 1, with the message"
    assert json.loads((mined.out / "strict.report.json").read_text())["written"] == 0

    # a file in the place of the folder
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="file is a file where a folder is needed; name another place"):
        main(["embed", *options, f"--out={tmp_path / 'file' / 'mined'}"])


def test_rows_come_out_with_scored_negatives(mined, world, embedder, reranker):
    rows = [to_example(row) for row in read_judged(mined.out / "judged", world)]
    report = json.loads((mined.out / "judged.report.json").read_text())
    assert len(rows) == report["written"] == len(mined.pool.pairs) and report["failed"] == {}
    assert Counter(row.dataset for row in rows).keys() == set(SUBSETS)
    row = rows[0]
    given = [item.as_input() for item in (row.positive, *row.negatives)]
    scores = reranker.score(row.query.as_input(), given, show_progress=False)
    assert np.allclose(scores, [row.positive_score, *row.negative_scores], atol=1e-5), "scores belong to their items"
    positives = {}
    for row in rows:
        positives.setdefault(row.query, set()).add(row.positive.identity)
    for row in rows:
        negatives = {negative.identity for negative in row.negatives}
        assert 1 <= len(row.negatives) == len(negatives) <= 4 and not negatives & {
            row.query.identity,
            *positives[row.query],
        }
    near = read_job(mined.out / "neighbours")
    pair = mined.pairs[3]
    vectors = embedder.encode([mined.pool.queries[pair.query].as_input(), pair.item.as_input()])
    assert np.isclose(near["positive_similarity"][3], float(vectors[0] @ vectors[1]), atol=1e-5)


def test_a_finished_folder_is_read_again_without_any_model(mined, monkeypatch):
    monkeypatch.setattr(judging, "open_checkpoint", lambda *a, **k: pytest.fail("the judge was loaded"))
    before = contents(mined.out / "judged")
    again = Mining(mined.config)
    again.run()
    assert contents(mined.out / "judged") == before and before


def test_rules_of_retrieval(mined, world, backbone, tmp_path):
    for folder in ("queries", "candidates"):
        os.symlink(mined.out / folder, tmp_path / folder)
    own = Mining(MiningConfig(**settings(world, backbone, tmp_path, delta="positive", pool="dataset", top_k=50)))
    own.retrieve()
    found, pools = read_job(tmp_path / "neighbours"), own.pool.by_dataset()
    queries, candidates = own.embeddings().values()
    for row, pair in enumerate(own.pairs):
        near = found["neighbours"][row][found["neighbours"][row] >= 0]
        possible = [i for i in pools[pair.dataset] if i not in own.pool.excluded(pair.query)]
        scores = {i: float(candidates[i] @ queries[pair.query]) for i in possible}
        limit = found["positive_similarity"][row] - retrieval.COPY
        wanted = sorted((i for i in possible if scores[i] < limit), key=lambda i, scores=scores: -scores[i])
        assert near.tolist() == wanted[:50]
    assert (found["neighbours"] == -1).any() and (found["neighbours"] >= 0).any()
    pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    same = tmp_path / "faiss"
    same.mkdir()
    for folder in ("queries", "candidates"):
        os.symlink(mined.out / folder, same / folder)
    flat = settings(world, backbone, same, delta="positive", pool="dataset", top_k=50, index="flat")
    Mining(MiningConfig(**flat)).retrieve()
    assert (read_job(same / "neighbours")["neighbours"] == found["neighbours"]).all()


def test_what_changed_is_refused_by_name(mined, world, backbone, tmp_path):
    from unime import UniMEModel

    def run(step, **changes):
        getattr(Mining(MiningConfig(**settings(world, backbone, mined.out, **changes))), step)()

    with pytest.raises(ValueError, match="settings.top_k: 6 there, 7 now"):
        run("retrieve", top_k=7)
    with pytest.raises(ValueError, match="settings.margin: 0.01 there, released now"):
        run("select", margin="released")
    with pytest.raises(ValueError, match="settings.preset: summary there, joint now"):
        run("embed", embedder_preset="joint")
    with pytest.raises(ValueError, match="rows: 24 there, 15 now|rows: .* there, .* now"):
        run("embed", rows_per_subset=5)
    with pytest.raises(ValueError, match="was made from other rows"):
        run("judge", rows_per_subset=5)
    for step in ("judge", "select", "inspect"):
        with pytest.raises(ValueError, match=r"neighbours was made from other rows \(\d+, now 15\)"):
            run(step, mined_per_subset=5)
    with pytest.raises(ValueError, match=r"settings.options.answer_format: None there, multiple_choice now"):
        run("judge", judge_options={"answer_format": "multiple_choice"})
    other = UniMEModel.from_backbone(backbone, preset="summary")
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"settings.model: .*@\w+ there, other@\w+ now"):
        run("embed", embedder=str(tmp_path / "other"), embedder_preset=None)
    with pytest.raises(ValueError, match="`unime mine embed` comes first"):
        Mining(MiningConfig(**settings(world, backbone, tmp_path / "new"))).retrieve()
    with pytest.raises(ValueError, match="`out` is missing"):
        Mining(MiningConfig(data="x"))


KILLED = """
import json, os, random, signal, sys, time
import torch
torch.set_num_threads(1)
from unime.mining.pipeline import Mining, MiningConfig
import unime, transformers.models.qwen2_vl.modeling_qwen2_vl
from unime import UniMEModel, UniMERerankerForCausalLM
settings, seed = json.loads(sys.argv[1]), int(sys.argv[2])

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])

def attempt(out, limit=None):
    "Runs the chain in a child, which is killed after `limit` seconds; returns whether it was."
    child = os.fork()
    if child == 0:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        job = Mining(MiningConfig(**settings, out=out))
        job.run()
        job.saha()
        os._exit(0)
    if limit is not None and signal.sigtimedwait([signal.SIGCHLD], limit) is None:
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    signal.sigtimedwait([signal.SIGCHLD], 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or status == 0, status
    return killed

start = time.monotonic()
attempt("whole")
duration = time.monotonic() - start
rng, kills, runs, places = random.Random(seed), 0, 1, []
while kills < 20:
    if attempt(f"run-{runs}", rng.random() ** 3 * duration):
        kills += 1
        places.append(sum(len(files) for *_, files in os.walk(f"run-{runs}")))
        runs += rng.random() < 0.2
    else:
        runs += 1
for number in range(1, runs + 1):
    assert not attempt(f"run-{number}")
print(json.dumps({"runs": runs, "places": places}))
"""


def contents(folder: Path) -> dict[str, bytes]:
    """Every finished file."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".part"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_killed_at_twenty_moments_it_gives_the_same_bytes(world, backbone, tmp_path):
    wanted = settings(world, backbone, "", embed_shard=4, retrieve_shard=4, judge_shard=2)
    del wanted["out"]
    command = [sys.executable, "-c", KILLED, json.dumps(wanted), "0"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    whole = contents(tmp_path / "whole")
    names = {
        "judged/rows-000000000.parquet",
        "judged.report.json",
        "errors.jsonl",
        "saha/Shapes_vqa_hard_negatives.json",
    }
    assert names <= whole.keys()
    for number in range(1, found["runs"] + 1):
        assert contents(tmp_path / f"run-{number}") == whole, f"run {number} of {found}"
    assert len(set(found["places"])) >= 5, f"the kills fell into many moments, by the files there were: {found}"


def test_two_processes_give_the_bytes_of_one(world, backbone, tmp_path):
    wanted = settings(world, backbone, "one")
    (tmp_path / "mine.json").write_text(json.dumps({**wanted, "out": "two"}))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    module = ["-m", "unime.cli", "mine", "run", "--config", "mine.json"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", *module]
    for command in (torchrun, [sys.executable, *module, "--out", "one"]):
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_model_that_cannot_be_loaded_is_no_failed_row(world, backbone, tmp_path):
    own = settings(world, backbone, tmp_path, embedder_preset="no-such")
    with pytest.raises(ValueError, match="unknown preset 'no-such'"):
        Mining(MiningConfig(**own)).run()
    assert not list((tmp_path / "queries").glob("rows-*"))
    own = settings(world, backbone, tmp_path / "new", image_root=str(tmp_path))
    with pytest.raises(ValueError, match=r"(?s)holds no row that can be used; .*does not exist"):
        Mining(MiningConfig(**own)).run()


def test_what_cannot_be_read_is_reported_and_the_rest_is_mined(world, backbone, tmp_path):
    rows = [json.loads(line) for line in (tmp_path_rows(world, tmp_path)).read_text().splitlines()]
    rows[2]["query"]["image"] = "none.png"
    (tmp_path / "broken.png").write_bytes((tmp_path / rows[0]["query"]["image"]).read_bytes()[:60])
    rows[3]["query"]["image"] = "broken.png"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = settings(world, backbone, tmp_path / "out", data=str(tmp_path / "rows.jsonl"), subsets=None, image_root=None)
    Mining(MiningConfig(**own)).run()
    errors = [json.loads(line) for line in (tmp_path / "out" / "errors.jsonl").read_text().splitlines()]
    assert [error["stage"] for error in errors] == ["read", "queries"]
    assert "rows.jsonl, row 2 (line 3)" in errors[0]["row"] and "'none.png' does not exist" in errors[0]["reason"]
    assert "broken.png" in errors[1]["key"] and "cannot be read" in errors[1]["reason"]
    report = json.loads((tmp_path / "out" / "judged.report.json").read_text())
    assert report["pairs"] == 7 and report["judged"] == report["written"] == 6
    assert report["failed"] == {"read": 1, "queries": 1}


def tmp_path_rows(world, folder: Path) -> Path:
    """Eight rows in our own layout, images beside them."""
    from unime.data.readers import read_mmeb_train

    lines = []
    for row in read_mmeb_train(world / "train", ["Shapes_vqa"], image_root=world, limit=8):
        name = Path(row["query"]["image"]).name
        Image.open(row["query"]["image"]).save(folder / name)
        lines.append(json.dumps({"query": {**row["query"], "image": name}, "positive": row["positive"]["text"]}))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return folder / "rows.jsonl"


def test_saha_writes_clusters_that_the_reader_takes(mined, world):
    mined.saha()
    rows = [to_example(row) for row in read_clusters(mined.out / "saha", world)]
    assert {row.dataset for row in rows} == set(SUBSETS)
    for row in rows:
        positives = [member.positive.identity for member in row.members()]
        assert 2 <= len(positives) <= 16 and len(set(positives)) == len(positives)
    changed = Mining(MiningConfig(**{**vars(mined.config), "cluster_size": 3}))
    with pytest.raises(ValueError, match="cluster_size: 15 there, 3 now"):
        changed.saha()


def test_the_page_shows_what_was_mined_and_why_not(mined):
    Mining(MiningConfig(**{**vars(mined.config), "count": 100})).inspect()
    page = (mined.out / "judged.html").read_text()
    row = mined.judged[0]
    assert page.count("<section>") == len(mined.judged) and f"judge {row['positive_score']:.3f}" in page
    assert "it is not known which candidates are right" in page or "the area under the curve is" in page
    assert "left out: judged too close to the positive" in page and page.count("data:image/png;base64,") > 20
    for name in ("judged.png", "judged.histograms.png"):
        assert min(Image.open(mined.out / name).size) > 300


def test_the_command_takes_a_recipe_and_says_what_is_wrong(mined, world, backbone, tmp_path, capsys):
    import yaml

    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(settings(world, backbone, mined.out)))
    main(["select", "--config", str(recipe), "--name", "twelve", "--num_negatives", "12", "--repeat"])
    assert "twelve: " in capsys.readouterr().out
    assert all(len(row["negatives"]) == 12 for row in read_judged(mined.out / "twelve", world))
    with pytest.raises(SystemExit, match="unime mine: .* describes another job .settings.stride: 5 there, 2 now"):
        main(
            [
                "select",
                "--config",
                str(recipe),
                "--name",
                "twelve",
                "--num_negatives",
                "12",
                "--repeat",
                "--stride",
                "2",
            ]
        )
    recipe.write_text("topk: 3")
    with pytest.raises(SystemExit):
        main(["run", "--config", str(recipe)])
    assert "unknown settings ['topk']" in capsys.readouterr().err


def test_judged_rows_come_back_as_they_were_written(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    image, *others = (str(tmp_path.resolve() / name) for name in ("a.png", "b.png", "c.png"))
    several = Item("", image, tuple(others))
    rows = [
        Example(Item("<|image_1|>\nWas ist das?\n", image), Item('"o"'), [Item("", image)], 0.75, [0.125], "X"),
        Example(Item("q"), Item("p", image), [Item("n"), Item("m")], 0.5, [0.25, 0.0], ""),
        Example(Item("q", instruction="Find."), several, [Item("n", image, (others[0],)), several], 0.5, [0.25, 0.0]),
        Example(several, Item("p"), [Item("n")], 0.5, [0.0], other_positives=[Item("o"), several], weight=0.5),
    ]
    write_judged(tmp_path / "rows.json", iter(rows), tmp_path)
    assert [to_example(row) for row in read_judged(tmp_path / "rows.json")] == rows

    # and from Parquet, whose columns every row has
    (tmp_path / "rows").mkdir()
    write_judged_shards(tmp_path / "rows", len(rows), 3, lambda places: (rows[place] for place in places), tmp_path)
    assert [to_example(row) for row in read_judged(tmp_path / "rows")] == rows

    first = json.loads((tmp_path / "rows.json").read_text())[0]
    assert list(first)[:7] == [
        "query_text",
        "query_image",
        "pos_text",
        "pos_image",
        "query_pos_scores",
        "hard_negatives",
        "hard_negatives_scores",
    ]
    assert first["hard_negatives"] == [["", "a.png"]]


def raise_(error):
    raise error


def test_failed_rows_are_done_again_when_asked_for(tmp_path):
    broken = {"b", "e"}

    def work(part):
        if bad := broken & set(part):
            raise OSError(f"no {sorted(bad)}")
        return {"length": np.array([len(row) for row in part])}

    rows = list("abcdefg")
    run_job(tmp_path / "a", rows, work, {}, shard_size=3)
    assert [error["key"] for error in read_errors(tmp_path / "a")] == ["b", "e"]
    broken.clear()
    run_job(tmp_path / "a", rows, work, {}, shard_size=3)
    assert len(read_job(tmp_path / "a")["row"]) == 5, "not done again unasked"
    run_job(tmp_path / "a", rows, work, {}, shard_size=3, retry_failed=True)
    run_job(tmp_path / "whole", rows, work, {}, shard_size=3)
    assert contents(tmp_path / "a") == contents(tmp_path / "whole"), "and no errors are left behind"


def test_failed_rows_are_tried_twice_and_left_out(tmp_path):
    tries = Counter()

    def work(part):
        for row in part:
            tries[row] += 1
            if row == "bad" or (row == "shaky" and tries[row] < 4):
                raise OSError(f"cannot do {row}")
        return {"length": np.array([len(row) for row in part])}

    rows = ["a", "bb", "bad", "ccc", "shaky", "dddd"]
    run_job(tmp_path, rows, work, {}, shard_size=6)
    found = read_job(tmp_path)
    assert found["row"].tolist() == [0, 1, 3, 4, 5] and found["length"].tolist() == [1, 2, 3, 5, 4]
    assert read_errors(tmp_path) == [{"row": 2, "key": "bad", "reason": "cannot do bad"}]

    def hopeless(part):
        raise ValueError("no such model")

    for size in (16, 3):
        with pytest.raises(ValueError, match=f"all {size} rows from row 0 on failed; .*no such model"):
            run_job(tmp_path / f"b{size}", [str(i) for i in range(20)], hopeless, {}, shard_size=size)
    with pytest.raises(OSError, match="no weights"):
        run_job(tmp_path / "d", rows, work, {}, prepare=lambda: raise_(OSError("no weights")))
    with pytest.raises(ValueError, match="cannot do"):
        run_job(tmp_path / "e", rows, lambda part: raise_(ValueError("cannot do")), {}, failures=())
    with pytest.raises(ZeroDivisionError):
        run_job(tmp_path / "c", rows, lambda part: 1 // 0, {})


def test_embedders_of_both_libraries_agree(tiny, tmp_path):
    from unime import UniMEModel
    from unime.checkpoints.conversion import export

    path, _ = tiny("llava_next")
    UniMEModel.from_backbone(path, "summary", fusion="joint", anyres_padding="even").save_pretrained(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "stock", head=path)
    picture(41, (56, 56)).save(tmp_path / "a.png")
    items = [Item("a red circle"), Item("What is it?", str(tmp_path / "a.png")), Item("", str(tmp_path / "a.png"))]
    ours = Embedder(tmp_path / "ours", fusion="joint")
    theirs = Embedder(tmp_path / "stock", "sentence-transformers")
    for role in ("query", "document"):
        assert np.allclose(ours.encode(items, role), theirs.encode(items, role), atol=1e-5)
    assert theirs.settings()["model"].startswith("stock@") and ours.settings()["fusion"] == "joint"
    with pytest.raises(ValueError, match="'unime' or 'sentence-transformers'"):
        Embedder("x", "faiss")


def test_sentence_transformers_get_texts_images_and_videos(tmp_path):
    class Model:
        modalities = ["text", "image", "video"]

        def encode_document(self, inputs, **options):
            self.inputs = inputs
            return np.zeros((len(inputs), 2))

    embedder = Embedder("x", "sentence-transformers")
    embedder.model = Model()
    embedder.encode([Item("a"), Item("b", "b.png"), Item("", "c.mp4"), Item("d", "d.mp4")], "document")
    assert embedder.model.inputs == [
        {"text": "a"},  # a string could be taken for the address or the path of a picture
        {"text": "b", "image": "b.png"},
        {"video": "c.mp4"},
        {"text": "d", "video": "d.mp4"},
    ]


def test_a_fingerprint_sees_weights_of_adapters_bases_and_large_files(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for folder in (base, adapter):
        folder.mkdir()
    weights = {"a": np.zeros(400_000, np.float32), "small": np.zeros(9, np.float32)}
    weights["b"] = np.zeros(400_000, np.float32)
    save_file(weights, base / "model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    first = checkpoint_fingerprint(adapter)
    (base / "README.md").write_text("changed")
    assert checkpoint_fingerprint(adapter) == first and first.startswith("adapter@")
    weights["small"][4] = 1
    save_file(weights, base / "model.safetensors")
    assert checkpoint_fingerprint(adapter) != first, "a small tensor between large ones"
    seen = checkpoint_fingerprint(base)
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text("{}")
    assert checkpoint_fingerprint(base) != seen


def test_submodules_can_be_imported_first():
    code = "import sys, json\nfrom unime.miniature import backbone\nimport unime\n"
    assert fresh_process(code + "print(json.dumps(unime.UniMEModel.__name__))") == "UniMEModel"


def test_a_judge_is_asked_as_its_preset_says(world, backbone, tmp_path):
    """LamRA-Rank's question, although nothing says that the judge is LamRA-Rank."""
    changes = {"subsets": ["Shapes_t2i"], "rows_per_subset": 3, "top_k": 2, "num_negatives": 1}
    mining = Mining(MiningConfig(**settings(world, backbone, tmp_path, judge_preset="lamra-rank", **changes)))
    mining.run()
    row, *_ = [to_example(row) for row in read_judged(tmp_path / "judged", world)]
    judge = UniMERerankerForCausalLM.from_backbone(backbone, preset="lamra-rank")
    items = [item.as_input() for item in (row.positive, *row.negatives)]
    scores = judge.score(row.query.as_input(), items, show_progress=False)
    assert np.allclose(scores, [row.positive_score, *row.negative_scores], atol=1e-5)

    # scores of another question are not taken for these
    with pytest.raises(ValueError, match="preset"):
        Mining(MiningConfig(**settings(world, backbone, tmp_path, **changes))).judge()
    with pytest.raises(ValueError, match="unknown preset 'lamra'"):
        MiningConfig(**settings(world, backbone, tmp_path, judge_preset="lamra"))
    with pytest.raises(ValueError, match="`judge_preset` is for a judge on this machine"):
        MiningConfig(**settings(world, backbone, tmp_path, judge_preset="lamra-rank", server="http://x/v1"))
