"""Adapters in training: targets checked against the model, QLoRA, activation checkpointing with the cache."""

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from conftest import launch_stage
from peft import LoraConfig
from test_gradient_cache import EVERYTHING, difference, rows, trained

from unime import UniMEModel, UniMERerankerForCausalLM
from unime.adapters_unime import load_adapter
from unime.data.readers import read_mmeb_train
from unime.trainers.adapters import COMPONENTS, find_targets
from unime.trainers.contrastive import ContrastiveConfig, ContrastiveTrainer
from unime.trainers.stage import load_model, save_whole
from unime.vlm_unime import vision_parameters


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_next", "llava_onevision", "phi3_v"])
def test_components_share_out_all_linear_layers(tiny, kind):
    for model in (
        UniMEModel.from_backbone(tiny(kind)[0], "summary"),
        UniMERerankerForCausalLM.from_backbone(tiny(kind)[0]),
    ):
        parts = {component: set(find_targets(model, components=[component])) for component in COMPONENTS}
        head = model.vlm.get_output_embeddings() if isinstance(model, UniMERerankerForCausalLM) else None
        linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}
        assert set().union(*parts.values()) == linear and sum(map(len, parts.values())) == len(linear)
        outside = {id(parameter) for parameter in vision_parameters(model.vlm)}
        for name in linear:
            assert (name in parts["language_model"]) == (id(model.get_submodule(name).weight) not in outside)


def test_targets_that_match_nothing_are_errors(embedder):
    names = find_targets(embedder, ["q_proj", "v_proj"])
    assert len(names) == 4 and all(name.endswith(("q_proj", "v_proj")) for name in names)
    assert find_targets(embedder, ["fc1"], ["vision_tower"]) and find_targets(embedder, "all-linear")
    with pytest.raises(ValueError, match=r"\['qkv_proj'\] match no linear layer of \['language_model'\]; there are"):
        find_targets(embedder, ["q_proj", "qkv_proj"])
    with pytest.raises(ValueError, match="no linear layer of the projector gets an adapter"):
        find_targets(embedder, ["q_proj"], ["language_model", "projector"])
    with pytest.raises(ValueError, match="lora_components must be among"):
        find_targets(embedder, None, ["head"])


def test_qlora_trains_over_four_bits_and_merges_into_whole_weights(backbone, world, tmp_path):
    source = {"path": str(backbone), "preset": "joint"}
    model = load_model(**source, quantization="nf4")
    targets = find_targets(model, ["q_proj", "v_proj"])
    assert type(model.get_submodule(targets[0])) is Linear4bit
    data = read_mmeb_train(world / "train", ["Shapes_vqa"], image_root=world)
    args = ContrastiveConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=4,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        warmup_steps=0,
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
        batch_tokens=300,
    )
    peft = LoraConfig(r=4, target_modules=targets)
    trainer = ContrastiveTrainer(model, args, train_dataset=data, peft_config=peft)
    assert all("lora" in name for name, p in trainer.model.named_parameters() if p.requires_grad)
    trainer.train()
    save_whole(trainer, source)
    merged, plain = UniMEModel.from_pretrained(tmp_path / "out"), load_model(**source)
    assert merged.dtype == torch.float32 and merged.processor.preset == "joint"
    by_hand = load_adapter(plain, tmp_path / "out" / "adapter").merge_and_unload().state_dict()
    assert all(torch.equal(weight, by_hand[name]) for name, weight in merged.state_dict().items())
    before = UniMEModel.from_backbone(backbone).state_dict()
    moved = {name for name, weight in by_hand.items() if not torch.equal(weight, before[name])}
    assert moved == {f"{target}.weight" for target in targets}


def test_the_command_trains_adapters_on_the_components_it_is_told(backbone, world, tmp_path):
    recipe = {
        "model_name_or_path": str(backbone),
        "preset": "joint",
        "data": str(world / "train"),
        "image_root": str(world),
        "subsets": ["Shapes_vqa"],
        "output_dir": str(tmp_path / "out"),
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "bf16": False,
        "warmup_steps": 0,
        "use_peft": True,
        "lora_r": 4,
        "lora_components": ["language_model", "projector"],
        "holdout": 4,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        "load_best_model_at_end": True,
        "resolution": "32",
    }
    done = launch_stage("contrastive", recipe, tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    again = load_model(tmp_path / "out" / "adapter").state_dict()  # the adapter knows its base
    trained, start = UniMEModel.from_pretrained(tmp_path / "out").state_dict(), UniMEModel.from_backbone(backbone)
    assert all(torch.equal(weight, again[name]) for name, weight in trained.items())
    recipe |= {"model_name_or_path": str(tmp_path / "out" / "adapter"), "load_in_4bit": True}
    done = launch_stage("contrastive", recipe, tmp_path)
    assert (
        done.returncode != 0 and "is an adapter, which merged into quantised weights would be rounded" in done.stderr
    )
    moved = {name for name, weight in start.state_dict().items() if not torch.equal(weight, trained[name])}
    assert any("merger" in name for name in moved) and any("language_model" in name for name in moved)
    assert not any("visual.blocks" in name for name in moved)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| adapter r | 4 |" in card and '"down_proj"' in card and "| preset | joint |" in card
    assert "eval_loss" in card


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_activation_checkpointing_does_not_change_the_gradient(backbone, tmp_path, lora):
    data = rows(tmp_path)
    whole = trained(backbone, data, tmp_path / "out", lora=lora, **EVERYTHING)
    checkpointed = trained(backbone, data, tmp_path / "out", lora=lora, activation_checkpointing=True)
    assert difference(checkpointed, whole) <= 1e-5
