"""Pushing to a Hub and pulling back in fresh processes, against a Hub that runs inside the test."""

import pytest
from conftest import fresh_process
from fake_hub import FakeHub

PUSH = """
import json, sys
from unime import UniMEModel, UniMERerankerForCausalLM
embedder, reranker = (cls.from_backbone(sys.argv[1]) for cls in (UniMEModel, UniMERerankerForCausalLM))
embedder.push_to_hub("me/embedder", max_shard_size="300KB")
reranker.push_to_hub("me/reranker")
embedder.save_pretrained(sys.argv[2], push_to_hub=True, repo_id="me/saved")
print(json.dumps([embedder.encode("a red circle").tolist(), reranker.score("a", ["a red circle"]).tolist()]))
"""
PULL = """
import importlib.util, json, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder)]
assert importlib.util.find_spec("unime") is None
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor
embedder = AutoModel.from_pretrained("me/embedder", trust_remote_code=True)
reranker = AutoModelForCausalLM.from_pretrained("me/reranker", trust_remote_code=True)
AutoProcessor.from_pretrained("me/reranker", trust_remote_code=True)
print(json.dumps([embedder.encode("a red circle").tolist(), reranker.score("a", ["a red circle"]).tolist()]))
"""


BY_NAME = """
import json
from unime import UniMEModel
model = UniMEModel.from_backbone("TianchengGu/UniME-V2-Qwen2VL-2B")
print(json.dumps([model.processor.preset, model.config.positions, model.encode("a red circle").tolist()]))
"""


DAMAGED = """
import json
from unime import UniMEModel
from unime.checkpoints.opening import open_checkpoint
messages = []
for load in (UniMEModel.from_pretrained, UniMEModel.from_pretrained, open_checkpoint):
    try:
        load("me/embedder")
    except ValueError as error:
        messages.append(str(error))
print(json.dumps(messages))
"""


def test_a_published_name_is_one_line(tiny, tmp_path):
    from unime import UniMEModel

    path, _ = tiny("qwen2_vl")
    with FakeHub() as hub:
        hub.repos["TianchengGu/UniME-V2-Qwen2VL-2B"] = {file.name: file.read_bytes() for file in path.iterdir()}
        online = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        preset, positions, embedding = fresh_process(BY_NAME, HF_HOME=str(tmp_path / "hub"), **online)
    assert (preset, positions) == ("unime-v2-qwen2-vl", "flat")
    expected = UniMEModel.from_backbone(path, preset="unime-v2-qwen2-vl").encode("a red circle")
    assert embedding == expected.tolist()


def test_push_and_pull_give_the_same_numbers(backbone, tmp_path):
    with FakeHub() as hub:
        online = {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": "hf_none",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        pushed = fresh_process(PUSH, backbone, tmp_path / "saved", HF_HOME=str(tmp_path / "push"), **online)
        pulled = fresh_process(PULL, HF_HOME=str(tmp_path / "pull"), PYTHONSAFEPATH="1", **online)

        # a shard that changed on its way is noticed, and not kept
        shard = max(name for name in hub.repos["me/embedder"] if name.endswith(".safetensors"))
        content = hub.repos["me/embedder"][shard]
        hub.repos["me/embedder"][shard] = content[:-1] + bytes([content[-1] ^ 1])
        messages = fresh_process(DAMAGED, HF_HOME=str(tmp_path / "damaged"), **online)
    assert len(messages) == 3 and all(f"{shard} is not the file that was saved" in message for message in messages)
    for here, there in zip(pulled, pushed, strict=True):
        assert here == pytest.approx(there, abs=1e-6)  # rounding may differ from process to process
    embedder = hub.repos["me/embedder"]
    assert {
        "config.json",
        "modeling_unime.py",
        "processing_unime.py",
        "processor_config.json",
        "tokenizer.json",
    } <= embedder.keys()
    assert sum(name.endswith(".safetensors") for name in embedder) > 1, "sharded"

    # what is uploaded while it is saved is the whole folder, as it is afterwards
    saved = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    assert hub.repos["me/saved"] == saved and "unime_manifest.json" in saved and "tokenizer.json" in saved
