"""Stage 1: the resumable teacher, the table of its embeddings, and training on text alone."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import fresh_process, launch_stage

from unime import UniMEModel
from unime.data.readers import read_text_pairs
from unime.data.schema import Item
from unime.jobs.shards import read_job, run_job
from unime.trainers.distillation import DistillationConfig, DistillationTrainer, TeacherTable, distinct_texts

COLOURS, SHAPES = ("red", "blue", "green", "white"), ("circle", "star", "square", "ring")
PAIRS = [(f"a {c} {s}", f"one {s} that is {c}") for c in COLOURS for s in SHAPES]


def write_pairs(path):
    lines = ["sent0,sent1,hard_neg"] + [f"{a},{b},a {SHAPES[i % 4]}" for i, (a, b) in enumerate(PAIRS)]
    path.write_text("\n".join(lines))
    return path


def teach(texts):
    """A teacher that knows colours and shapes and nothing else."""
    known = [[word in text for word in (*COLOURS, *SHAPES)] for text in texts]
    return TeacherTable(texts, np.array(known, dtype=np.float32) + 0.01)


def doubled(part):
    return {"values": np.array([[2.0 * int(row)] for row in part], dtype=np.float32)}


def test_a_stopped_job_goes_on_and_gives_the_same_bytes(tmp_path):
    rows, calls = [str(i) for i in range(10)], []

    def stops(part):
        calls.append(part[0])
        if part[0] == "6":
            raise KeyboardInterrupt
        return doubled(part)

    with pytest.raises(KeyboardInterrupt):
        run_job(tmp_path / "a", rows, stops, {"k": 1}, shard_size=3)
    with pytest.raises(ValueError, match="is not finished: 2 of 4 shards are missing"):
        read_job(tmp_path / "a")
    run_job(tmp_path / "a", rows, lambda part: calls.append(part[0]) or doubled(part), {"k": 1}, shard_size=3)
    assert calls == ["0", "3", "6", "6", "9"], "finished shards are not done again"
    for rank in (1, 0):
        run_job(tmp_path / "b", rows, doubled, {"k": 1}, shard_size=3, rank=rank, world_size=2)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    assert read_job(tmp_path / "a")["values"].tolist() == [[2.0 * i] for i in range(10)]


def test_another_job_is_refused_with_what_differs(tmp_path):
    rows = ["1", "2"]
    run_job(tmp_path, rows, doubled, {"model": "a"})
    with pytest.raises(ValueError, match="describes another job .settings.model: a there, b now"):
        run_job(tmp_path, rows, doubled, {"model": "b"})
    with pytest.raises(ValueError, match="fingerprint"):
        run_job(tmp_path, ["1", "3"], doubled, {"model": "a"})
    with pytest.raises(RuntimeError, match="results for 2 rows from row 0 on"):
        run_job(tmp_path / "short", rows, lambda part: doubled(part[:1]), {})
    with pytest.raises(ValueError, match=r"holds no job: it has no manifest\.json"):
        read_job(tmp_path / "none")


KILLED = """
import json, os, signal, sys
import numpy as np
from unime.jobs.shards import read_job, run_job
def work(part):
    if sys.argv[2] == "kill" and part[0] == "4":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"values": np.array([len(row) for row in part])}
run_job(sys.argv[1], [str(i) for i in range(8)], work, {}, shard_size=2)
print(json.dumps(read_job(sys.argv[1])["values"].tolist()))
"""


def test_a_killed_job_leaves_whole_shards_only(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "job"), "kill"]
    assert subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == -9
    assert len(list((tmp_path / "job").glob("rows-*.safetensors"))) == 2
    assert fresh_process(KILLED, tmp_path / "job", "go on") == [1] * 8


def test_text_pairs_are_read_and_bad_rows_named(tmp_path):
    rows = read_text_pairs(write_pairs(tmp_path / "nli.csv"))
    assert len(rows) == 16 and rows[0]["query"]["text"] == "a red circle" and rows[0]["dataset"] == "nli"
    assert rows[1]["negatives"][0]["text"] == "a star" and len(read_text_pairs(tmp_path / "nli.csv", limit=3)) == 3
    assert len(distinct_texts(rows)) == 32
    (tmp_path / "bad.jsonl").write_text('{"sent0": "a", "sent1": "b"}\n{"sent0": "a", "sent1": " "}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl, row 1 \(line 2\): an item needs a text"):
        read_text_pairs(tmp_path / "bad.jsonl")
    (tmp_path / "no.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match=r"lacks the columns \['sent0', 'sent1'\]"):
        read_text_pairs(tmp_path / "no.jsonl")
    (tmp_path / "pairs.txt").touch()
    with pytest.raises(ValueError, match=r"rows are read from \.csv, \.tsv, \.jsonl, \.json, \.parquet"):
        read_text_pairs(tmp_path / "pairs.txt")


def test_the_teacher_is_found_by_content():
    table = TeacherTable(["a", "b"], np.eye(2, dtype=np.float32))
    assert table(torch.tensor([Item("b").content_hash, Item("a").content_hash])).tolist() == [[0, 1], [1, 0]]
    with pytest.raises(ValueError, match="1 of 2 texts of a batch have no teacher embedding"):
        table(torch.tensor([Item("b").content_hash, 5]))
    with pytest.raises(ValueError, match="1 teacher embeddings for 2 texts"):
        TeacherTable(["a", "b"], np.eye(1))


def settings(folder, **changes):
    return DistillationConfig(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": 16,
            "max_steps": 30,
            "learning_rate": 3e-3,
            "batch_tokens": 100,
            "bf16": False,
            "disable_tqdm": True,
            "logging_steps": 3,
            "save_strategy": "no",
            "temperature": 0.1,
            **changes,
        }
    )


def test_the_student_comes_to_agree_with_the_teacher(backbone, tmp_path):
    rows = read_text_pairs(write_pairs(tmp_path / "nli.csv"))
    model = UniMEModel.from_backbone(backbone)
    texts = distinct_texts(rows)
    teacher = teach(texts)
    target = torch.nn.functional.normalize(teacher.embeddings, dim=1)
    off = ~torch.eye(len(texts), dtype=torch.bool)

    def agreement():
        student = model.encode(texts)
        pairs = torch.stack([(student @ student.T)[off], (target @ target.T)[off]])
        return float(torch.corrcoef(pairs)[0, 1])

    before, weights = agreement(), {name: w.clone() for name, w in model.state_dict().items()}
    model.vlm.visual.register_forward_hook(lambda *_: pytest.fail("the vision tower has run"))
    DistillationTrainer(model, settings(tmp_path), train_dataset=rows, teacher=teacher).train()
    assert agreement() > max(0.6, before + 0.2)
    moved = {name for name, w in model.state_dict().items() if not torch.equal(w, weights[name])}
    assert moved and all("language_model" in name for name in moved)


def test_without_a_teacher_only_the_baseline_trains(backbone, tmp_path):
    rows, model = read_text_pairs(write_pairs(tmp_path / "nli.csv")), UniMEModel.from_backbone(backbone)
    with pytest.raises(ValueError, match="needs the teacher's embeddings"):
        DistillationTrainer(model, settings(tmp_path), train_dataset=rows)
    trainer = DistillationTrainer(model, settings(tmp_path, baseline=True, max_steps=2), train_dataset=rows)
    trainer.train()
    assert any("positive_similarity" in entry for entry in trainer.state.log_history)


def test_the_command_embeds_with_the_teacher_once_and_trains(backbone, tiny, tmp_path):
    from unime.checkpoints.conversion import export

    teacher = UniMEModel.from_backbone(tiny("llava_next")[0], "summary")
    teacher.save_pretrained(tmp_path / "unime")
    export(tmp_path / "unime", tmp_path / "teacher", head=tiny("llava_next")[0])
    recipe = {
        "model_name_or_path": str(backbone),
        "preset": "summary",
        "data": str(write_pairs(tmp_path / "nli.csv")),
        "output_dir": str(tmp_path / "out"),
        "teacher": str(tmp_path / "teacher"),
        "max_steps": 2,
        "bf16": False,
        "per_device_train_batch_size": 8,
        "warmup_steps": 1,
        "save_strategy": "no",
        "holdout": 4,
        "eval_strategy": "steps",
        "eval_steps": 1,
    }
    for _ in range(2):
        done = launch_stage("distillation", recipe, tmp_path)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found = read_job(tmp_path / "out" / "teacher")["embeddings"]
    expected = teacher.encode([text for pair in PAIRS for text in pair])
    assert np.abs(found - expected.numpy()).max() <= 1e-5
    assert UniMEModel.from_pretrained(tmp_path / "out").processor.preset == "summary"
    assert json.loads((tmp_path / "out/teacher/manifest.json").read_text())["rows"] == 32
