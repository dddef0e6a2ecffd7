"""No code of a model's repository runs unless the caller said so, whichever door the model comes in by."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, fresh_process, picture
from peft import LoraConfig, get_peft_model

from unime import UniMEModel, UniMERerankerForCausalLM
from unime.commands.index import Index, write_index
from unime.data.schema import Item
from unime.jobs.embedding import Embedder

# What every Python file of a trapped repository does when it is run.
TRAP = """
import os, sys
with open(os.environ["MARKERS"], "a") as file:
    file.write(__name__.rpartition(".")[2] + "\\n")
sys.modules.pop(__name__, None)  # so that it runs again, and is seen again
"""
# A class for each slot; the file is run before any of them is looked at.
CLASSES = {
    "AutoConfig": "Config",
    "AutoModel": "Model",
    "AutoModelForCausalLM": "Model",
    "AutoModelForImageTextToText": "Model",
    "AutoProcessor": "Processor",
    "AutoImageProcessor": "Images",
}
CONFIGS = ("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json")


def edit(path: Path, **changes):
    """Changes settings of a JSON file, if it is there."""
    if path.exists():
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def trap(folder: Path, known_classes: bool) -> Path:
    """Puts code behind every slot of a checkpoint that may name some, and in place of every file of code it has.

    Args:
        folder: of the checkpoint.
        known_classes: whether transformers knows the classes that the files name, so that none of the code is needed.
    """
    (folder / "evil.py").write_text(TRAP)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(TRAP)
    for file in folder.glob("*.py"):
        file.write_text(TRAP)

    slots = {slot: f"evil.{name}" for slot, name in CLASSES.items()}
    for name in CONFIGS:
        edit(folder / name, auto_map=slots)
    config = json.loads((folder / "config.json").read_text())
    for key in ("vlm_config", "text_config", "vision_config"):
        if key in config:
            edit(folder / "config.json", **{key: {**config[key], "auto_map": slots}})

    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]})
    if not known_classes:
        edit(folder / "tokenizer_config.json", tokenizer_class="EvilTokenizer")
    return folder


@pytest.fixture(scope="module")
def trapped(backbone, world, tmp_path_factory) -> Path:
    """`known` and `unknown`: an embedder, a reranker, a stock VLM and an adapter each, all with traps."""
    home = tmp_path_factory.mktemp("trapped")
    for name, known_classes in (("known", True), ("unknown", False)):
        folder = home / name
        UniMEModel.from_backbone(backbone).save_pretrained(folder / "embedder")
        UniMERerankerForCausalLM.from_backbone(backbone).save_pretrained(folder / "reranker")
        shutil.copytree(backbone, folder / "backbone")
        lora = LoraConfig(r=2, target_modules=["vlm.language_model.layers.0.self_attn.q_proj"])
        get_peft_model(UniMEModel.from_pretrained(folder / "embedder"), lora).save_pretrained(folder / "adapter")
        edit(folder / "adapter" / "adapter_config.json", base_model_name_or_path=str(folder / "embedder"))
        for kind in ("embedder", "reranker", "backbone"):
            trap(folder / kind, known_classes)
        (folder / "adapter" / "evil.py").write_text(TRAP)

        about = {"source": str(folder / "embedder"), "role": "document"}
        about["settings"] = Embedder(folder / "embedder").settings()
        index = Index(["a"], [Item("a")], [""], np.ones((1, 96), np.float32), about)
        write_index(home / f"{name}.parquet", index)

    (home / "pictures").mkdir()
    picture(1).save(home / "pictures" / "picture.png")
    shutil.copytree(world, home / "world")
    (home / "texts.jsonl").write_text('{"sent0": "a", "sent1": "b"}\n{"sent0": "c", "sent1": "d"}\n')
    (home / "rows.jsonl").write_text('{"query": "a", "positive": "b"}\n{"query": "c", "positive": "d"}\n')
    return home


def try_doors(home: Path, variant: str, trust: bool, out: Path) -> dict:
    """Opens the checkpoints of a variant by every door, in a fresh process."""
    out.mkdir()
    program = (ROOT / "tests" / "trust_doors.py").read_text()
    return fresh_process(program, home, variant, trust, out, timeout=400, HF_MODULES_CACHE=str(out / "modules"))


def test_no_code_runs_where_none_is_needed(trapped, tmp_path):
    results = try_doors(trapped, "known", False, tmp_path / "out")
    assert {name: result["ran"] for name, result in results.items() if result["ran"]} == {}

    # sentence-transformers by itself does not know our classes; whatever is ours opens its own models without trust
    errors = {name: result["error"] for name, result in results.items() if result["error"]}
    assert errors.keys() == {"SentenceTransformer", "CrossEncoder"}
    assert all("trust_remote_code=True" in error for error in errors.values())


def test_code_that_is_needed_is_asked_for_and_does_not_run(trapped, tmp_path):
    results = try_doors(trapped, "unknown", False, tmp_path / "out")
    assert {name: result["ran"] for name, result in results.items() if result["ran"]} == {}
    for name, result in results.items():
        from_stock = "backbone" in name or "convert" in name  # its tokenizer is known by the model's type
        assert ("trust_remote_code=True" in result["error"]) != from_stock, (name, result["error"])
        if name.startswith("unime ") and not from_stock:
            assert "--trust-remote-code" in result["error"], name
            assert result["error"].count("\n") == 0, "one line"


def test_code_runs_where_the_caller_said_so(trapped, tmp_path):
    results = try_doors(trapped, "unknown", True, tmp_path / "out")
    assert {name for name, result in results.items() if not result["ran"]} == set()
