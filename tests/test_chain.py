"""The whole chain on a world of a few rows: every stage runs its recipe, and a second call does nothing again."""

import json

from unime.data.readers import read_judged
from unime.examples import chain
from unime.examples.mining import METHODS

TINY = {
    "world": {"train_rows": 16, "test_rows": 12, "pretrain_rows": 64},
    "backbone": {"max_steps": 2, "warmup_steps": 0, "save_steps": 2, "disable_tqdm": True},
    "teacher_epochs": 0.5,
    "judge": {
        "max_steps": 2,
        "warmup_steps": 0,
        "save_steps": 2,
        "per_device_train_batch_size": 3,
        "disable_tqdm": True,
    },
    "mining": {"mined_per_subset": 3, "top_k": 4, "delta": "none", "fallback": "judge_lowest", "count": 4},
    "steps": {
        "distillation": {"max_steps": 2, "warmup_steps": 0, "per_device_train_batch_size": 8},
        "contrastive": {"max_steps": 4, "warmup_steps": 1, "per_device_train_batch_size": 8},
        "mined": {"max_steps": 2, "warmup_steps": 0, "per_device_train_batch_size": 4},
        "reranker": {"max_steps": 2, "warmup_steps": 0, "per_device_train_batch_size": 2},
    },
}


def test_the_chain_runs_every_stage_and_does_nothing_twice(tmp_path, capsys, monkeypatch):
    chain.run(tmp_path, 1, TINY)
    first = capsys.readouterr().out
    for title in (
        "raw backbone",
        "stage 1",
        "stage 2 alone",
        "stages 1 + 2",
        "+ contrastive, mined",
        "+ alignment",
        "+ reranker",
    ):
        assert title in first
    table = json.loads((tmp_path / "chain" / "table.json").read_text())
    assert set(table["stage 1"][0]) >= {"Retrieval", "VQA", "Compositional"}
    assert len(read_judged(tmp_path / "chain" / "mined" / "judged", tmp_path / "world")) == 11 * 3
    shares = json.loads((tmp_path / "chain" / "false_negatives.json").read_text())
    assert set(shares) == set(METHODS) and all(
        0 <= share <= 1 for found in shares.values() for share in found.values()
    )
    assert "retrieval + judge" in first
    for stage in (chain.distillation, chain.contrastive, chain.alignment, chain.reranker):
        monkeypatch.setattr(stage, "main", None)
    chain.run(tmp_path, 1, TINY)
    assert capsys.readouterr().out.splitlines()[-8:] == first.splitlines()[-8:]
