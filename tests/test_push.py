"""Model cards, and `unime push` to a Hub in this process, pulled back in a fresh one."""

import json

import pytest
import yaml
from conftest import fresh_process
from fake_hub import FakeHub
from huggingface_hub import ModelCard

from unime import UniMEModel, UniMERerankerForCausalLM
from unime.checkpoints.cards import read_card, section
from unime.cli import main

PUSH = """
import json, sys
from unime.cli import main
main(["push", *sys.argv[1:]])
print(json.dumps(True))
"""
PULL = """
import importlib.util, json, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder)]
assert importlib.util.find_spec("unime") is None
from sentence_transformers import SentenceTransformer
from transformers import AutoModel
model = AutoModel.from_pretrained("me/embedder", trust_remote_code=True)
sentences = SentenceTransformer("me/embedder", trust_remote_code=True, device="cpu")
print(json.dumps([model.encode("a red circle").tolist(), sentences.encode("a red circle").tolist()]))
"""


def result(benchmark="mmeb"):
    task = {
        "kind": "VQA",
        "split": "OOD",
        "queries": 2,
        "candidates": 4,
        "metric": "precision@1",
        "score": 0.5,
        "ranks": [1, 2],
        "notes": [],
        "ties": 0,
    }
    return {
        "format": 1,
        "benchmark": benchmark,
        "model": "m@0",
        "settings": {},
        "source": {},
        "data": "abc",
        "means": {"VQA": None},
        "tasks": {"GQA": task},
    }


def test_a_pushed_model_comes_back_with_its_card_and_its_results(backbone, tmp_path):
    model = UniMEModel.from_backbone(backbone)
    model.save_pretrained(tmp_path / "mine")
    (tmp_path / "mine" / "checkpoint-5").mkdir()
    (tmp_path / "mine" / "checkpoint-5" / "optimizer.pt").write_bytes(b"0")
    (tmp_path / "results.json").write_text(json.dumps(result()))
    with FakeHub() as hub:
        online = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_none", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        arguments = [tmp_path / "mine", "me/embedder", "--results", tmp_path / "results.json", "--license", "mit"]
        assert fresh_process(PUSH, *arguments, HF_HOME=str(tmp_path / "push"), **online)
        pulled = fresh_process(PULL, HF_HOME=str(tmp_path / "pull"), PYTHONSAFEPATH="1", **online)
    expected = model.encode("a red circle").tolist()
    assert pulled[0] == expected and pulled[1] == pytest.approx(expected, abs=1e-5)
    files = hub.repos["me/embedder"]
    assert "model.safetensors" in files and not any("checkpoint" in name or name.endswith(".pt") for name in files)
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "mit" and card.data.pipeline_tag == "feature-extraction"
    assert card.data.library_name == "sentence-transformers" and "| GQA | 50.0 |" in card.text
    assert 'SentenceTransformer("me/embedder", trust_remote_code=True)' in card.text and str(tmp_path) not in card.text
    (entry,) = yaml.safe_load(files[".eval_results/mmeb.yaml"])
    assert entry["dataset"] == {"id": "TIGER-Lab/MMEB-eval", "task_id": "GQA"} and entry["value"] == 50.0


def test_cards_say_what_a_stranger_needs(backbone, tmp_path):
    UniMEModel.from_backbone(backbone, preset="hierarchical").save_pretrained(tmp_path / "embedder")
    UniMERerankerForCausalLM.from_backbone(backbone).save_pretrained(tmp_path / "reranker")
    for name, use in (("embedder", "SentenceTransformer("), ("reranker", "CrossEncoder(")):
        main(["push", str(tmp_path / name), "me/it", "--card-only"])
        text = (tmp_path / name / "README.md").read_text()
        for title in ("Use", "Limits", "License", "Cite"):
            assert section(text, title)
        assert use in section(text, "Use") and "me/it" in section(text, "Use") and str(backbone) not in text
    prompts = section((tmp_path / "embedder" / "README.md").read_text(), "Prompts")
    assert "| query, text | `{text}\\nRepresent the given text in one word.` |" in prompts
    assert "| document, image | `{image}` |" in prompts


def test_what_was_written_on_training_stays(backbone, tmp_path):
    UniMEModel.from_backbone(backbone).save_pretrained(tmp_path)
    card = read_card(tmp_path)
    card.training = "| setting | value |\n|---|---|\n| lr | 1 |"
    (tmp_path / "README.md").write_text(card.render())
    main(["push", str(tmp_path), "me/it", "--card-only"])
    assert section((tmp_path / "README.md").read_text(), "Training") == card.training


TRAIN = """
import json, sys
from importlib import import_module
from peft import LoraConfig
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from unime import UniMEModel
from unime.data.readers import read_rows
from unime.trainers.contrastive import ContrastiveConfig, ContrastiveTrainer
backbone, data, out = sys.argv[1:]
words = StaticEmbedding(Tokenizer.from_file(f"{backbone}/tokenizer.json"), embedding_dim=8)
SentenceTransformer(modules=[words]).save(f"{out}/teacher")
common = ["--max_steps", "1", "--per_device_train_batch_size", "2", "--save_strategy", "no", "--use_cpu", "true"]
common += ["--model_name_or_path", backbone, "--bf16", "false", "--push_to_hub", "true", "--disable_tqdm", "true"]
for stage in ("contrastive", "alignment", "reranker", "distillation"):
    own = ["--data", data, "--output_dir", f"{out}/{stage}", "--hub_model_id", f"me/{stage}"]
    if stage == "distillation":
        own += ["--teacher", f"{out}/teacher"]
    if stage == "alignment":  # checkpoints of an adapter go to the Hub before the whole model does
        own += ["--use_peft", "--lora_r", "2", "--max_steps", "2", "--save_strategy", "steps", "--save_steps", "1"]
    import_module(f"unime.trainers.{stage}").main([*common, *own])
model = UniMEModel.from_backbone(backbone)
args = ContrastiveConfig(f"{out}/adapter", max_steps=1, per_device_train_batch_size=2, use_cpu=True, bf16=False,
                         hub_model_id="me/adapter", save_strategy="no")
adapter = LoraConfig(r=2, target_modules=["q_proj"])
trainer = ContrastiveTrainer(model, args, train_dataset=read_rows(data), peft_config=adapter)
trainer.train()
trainer.push_to_hub()
print(json.dumps(UniMEModel.from_pretrained(f"{out}/alignment").encode("a").tolist()))
"""
PULL_ALL = """
import importlib.util, json, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder)]
from transformers import AutoModel, AutoModelForCausalLM
for name in ("contrastive", "distillation"):
    AutoModel.from_pretrained(f"me/{name}", trust_remote_code=True)
AutoModelForCausalLM.from_pretrained("me/reranker", trust_remote_code=True).score("a", ["b"])
print(json.dumps(AutoModel.from_pretrained("me/alignment", trust_remote_code=True).encode("a").tolist()))
"""


def test_every_trainer_pushes_what_it_made(backbone, tmp_path):
    row = {
        "query": "a ring",
        "positive": "two",
        "negatives": ["a", "b"],
        "positive_score": 0.9,
        "negative_scores": [0.1, 0.2],
    }
    rows = [{**row, "query": f"ring {n}", "positive": f"number {n}"} for n in range(4)]
    rows = [{**row, "sent0": row["query"], "sent1": row["positive"]} for row in rows]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with FakeHub() as hub:
        online = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_none", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        arguments = [backbone, tmp_path / "rows.jsonl", tmp_path / "out"]
        pushed = fresh_process(TRAIN, *arguments, HF_HOME=str(tmp_path / "push"), **online)
        pulled = fresh_process(PULL_ALL, HF_HOME=str(tmp_path / "pull"), PYTHONSAFEPATH="1", **online)
    assert pulled == pushed
    for name in ("contrastive", "alignment", "reranker", "distillation"):
        files = hub.repos[f"me/{name}"]
        assert {"model.safetensors", "modeling_unime.py", "processor_config.json", "modules.json"} <= files.keys()
        card = files["README.md"].decode()
        assert f'"me/{name}"' in card and section(card, "Training") and str(tmp_path) not in card
    assert "adapter/adapter_model.safetensors" in hub.repos["me/alignment"]
    assert "adapter_model.safetensors" not in hub.repos["me/alignment"]
    assert "adapter" not in section(hub.repos["me/alignment"]["README.md"].decode(), "Use")
    adapter = hub.repos["me/adapter"]
    assert "adapter_model.safetensors" in adapter and "model.safetensors" not in adapter
    assert "unime merge me/adapter merged" in adapter["README.md"].decode()


def test_what_cannot_be_pushed_is_an_error(backbone, tmp_path):
    with pytest.raises(SystemExit, match="has no saved model"):
        main(["push", str(tmp_path), "me/it"])
    with pytest.raises(SystemExit, match="holds a qwen2_vl model, not a UniME model"):
        main(["push", str(backbone), "me/it"])
    UniMEModel.from_backbone(backbone).save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match="me/it was not uploaded: "):  # the tests are offline
        main(["push", str(tmp_path), "me/it"])
