"""Checkpoints of others wherever a model of ours goes: measured, saved and mined with, on tiny ones."""

import json

import pytest
import torch
from conftest import ROOT, fresh_process, picture

from unime import UniMEModel
from unime.commands.evaluate import main
from unime.files.writing import read_json
from unime.mining.pipeline import Mining, MiningConfig

GOLDENS = ROOT.parent / "shared" / "checkpoints"
EMBEDDERS = (
    "VLM2Vec-Qwen2VL-2B",
    "gme-Qwen2-VL-2B-Instruct",
    "Qwen3-VL-Embedding-2B",
    "WeMM-Embedding-2B",
    "LamRA-Ret",
    "e5-v",
)
pytestmark = pytest.mark.skipif(not GOLDENS.exists(), reason="the tiny published checkpoints are not here")
ALONE = """
import json, sys
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
assert "unime" not in sys.modules
print(json.dumps(model.encode(["a red circle", "a blue star"]).tolist()))
"""


@pytest.mark.parametrize("name", EMBEDDERS)
def test_they_are_measured(name, world, tmp_path, capsys):
    command = ["world", "--model", str(GOLDENS / name), "--data", str(world), "--tasks", "Shapes_t2i"]
    main([*command, "--out", str(tmp_path), "--json"])
    task = read_json(json.loads(capsys.readouterr().out)["results"])["tasks"]["Shapes_t2i"]
    assert len(task["ranks"]) == task["queries"] > 0 and task["ties"] == 0


@pytest.mark.parametrize("name", ["VLM2Vec-Qwen2VL-2B", "WeMM-Embedding-2B"])
def test_a_saved_one_gives_the_same_without_the_package(name, tmp_path):
    model = UniMEModel.from_backbone(GOLDENS / name)
    model.save_pretrained(tmp_path)
    expected = model.encode(["a red circle", "a blue star"])
    assert torch.allclose(torch.tensor(fresh_process(ALONE, tmp_path)), expected, atol=1e-6)
    assert model.encode([picture(1)]).isfinite().all()


def test_vlm2vec_finds_negatives_that_a_plain_vlm_judges(world, tmp_path):
    settings = {
        "data": str(world / "train"),
        "image_root": str(world),
        "out": str(tmp_path),
        "subsets": ["Shapes_t2i"],
    }
    settings |= {"rows_per_subset": 6, "top_k": 3, "num_negatives": 2, "delta": "none", "fallback": "judge_lowest"}
    settings |= {"embedder": str(GOLDENS / "VLM2Vec-Qwen2VL-2B"), "judge": str(GOLDENS / "Qwen2-VL-2B-Instruct")}
    job = Mining(MiningConfig(**settings))
    job.run()
    report = json.loads((tmp_path / "judged.report.json").read_text())
    assert report["written"] == len(job.pool.pairs) > 0 and report["failed"] == {}
