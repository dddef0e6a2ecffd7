"""Pushing to a Hub and pulling back in fresh processes, against a Hub that runs inside the test."""

from conftest import fresh_process
from fake_hub import FakeHub

PUSH = """
import json, sys
from unime import UniMEModel, UniMERerankerForCausalLM
embedder, reranker = (cls.from_backbone(sys.argv[1]) for cls in (UniMEModel, UniMERerankerForCausalLM))
embedder.push_to_hub("me/embedder", max_shard_size="300KB")
reranker.push_to_hub("me/reranker")
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


def test_push_and_pull_give_the_same_numbers(backbone, tmp_path):
    with FakeHub() as hub:
        online = {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": "hf_none",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        pushed = fresh_process(PUSH, backbone, HF_HOME=str(tmp_path / "push"), **online)
        pulled = fresh_process(PULL, HF_HOME=str(tmp_path / "pull"), PYTHONSAFEPATH="1", **online)
    assert pulled == pushed
    embedder = hub.repos["me/embedder"]
    assert {
        "config.json",
        "modeling_unime.py",
        "processing_unime.py",
        "processor_config.json",
        "tokenizer.json",
    } <= embedder.keys()
    assert sum(name.endswith(".safetensors") for name in embedder) > 1, "sharded"
