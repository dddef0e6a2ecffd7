"""The contrastive trainer: it learns, logs what it did, and runs as a command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, fresh_process, launch_stage
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel

from unime import UniMEModel
from unime.checkpoints.cards import read_card
from unime.data.readers import read_judged, read_mmeb_train
from unime.trainers.alignment import AlignmentConfig, AlignmentTrainer
from unime.trainers.contrastive import ContrastiveConfig, ContrastiveTrainer
from unime.trainers.metered_trainer import resolve_decay
from unime.trainers.stage import check_processes, hold_out

SETTINGS = {
    "per_device_train_batch_size": 8,
    "max_steps": 6,
    "learning_rate": 1e-3,
    "batch_tokens": 300,
    "save_steps": 2,
    "bf16": False,
    "disable_tqdm": True,
    "logging_steps": 2,
    "temperature": 0.1,
}


def write_judged(world, path):
    """Rows of the world in UniME-V2's layout, with invented judge scores."""
    rows = list(read_mmeb_train(world / "train", ["Shapes_t2i", "Shapes_vqa"], image_root=world))
    name = lambda image: str(Path(image).relative_to(world.resolve())) if image else ""  # noqa: E731
    judged = [
        {
            "query_text": row["query"]["text"],
            "query_image": name(row["query"]["image"]),
            "pos_text": row["positive"]["text"],
            "pos_image": name(row["positive"]["image"]),
            "query_pos_scores": 0.9 - 0.01 * (i % 7),
            "hard_negatives": [
                [rows[(i + n) % len(rows)]["positive"]["text"], name(rows[(i + n) % len(rows)]["positive"]["image"])]
                for n in (1, 2, 3)
            ],
            "hard_negatives_scores": [0.5, 0.3, 0.1 + 0.01 * (i % 5)],
        }
        for i, row in enumerate(rows)
    ]
    Path(path).write_text(json.dumps(judged))


TRAINED_AT = """
import json, sys
from unime import UniMEModel
models = [UniMEModel.from_pretrained(path) for path in sys.argv[1:]]
print(json.dumps([model.processor.resolution for model in models]))
"""


def test_the_resolution_of_a_training_is_saved_where_its_method_evaluates_at_it(backbone, world, tmp_path):
    rows = read_mmeb_train(world / "train", ["Shapes_t2i"], image_root=world)
    settings = {**SETTINGS, "max_steps": 1, "save_strategy": "no", "resolution": "56"}
    image = {"image": rows[0]["positive"]["image"]}
    for preset in ("summary", "unime-v2-qwen2-vl"):
        model = UniMEModel.from_backbone(backbone, preset)
        args = ContrastiveConfig(output_dir=str(tmp_path / preset), **settings)
        trainer = ContrastiveTrainer(model, args, train_dataset=rows)
        trainer.train()
        trainer.save_model()

    folders = [tmp_path / "summary", tmp_path / "unime-v2-qwen2-vl"]
    assert fresh_process(TRAINED_AT, *folders) == ["56", 1344], "UniME-V2 trains at 672 and evaluates at 1344"
    again = UniMEModel.from_pretrained(folders[0])
    assert torch.equal(again.encode(image), again.encode(image, resolution=56))
    assert not torch.allclose(again.encode(image), again.encode(image, resolution="native"), atol=1e-4)
    said = "Images are read at the resolution `56`"
    assert said in (folders[0] / "README.md").read_text() and said in read_card(folders[0]).render()
    assert "Images are read at the resolution `1344`" in (folders[1] / "README.md").read_text()


def test_alignment_lowers_the_loss_and_says_what_it_did(backbone, world, tmp_path):
    write_judged(world, tmp_path / "judged.json")
    rows = read_judged(tmp_path / "judged.json", world)
    settings = {**SETTINGS, "max_steps": 30, "learning_rate": 3e-3, "save_strategy": "no", "logging_steps": 5}
    args = AlignmentConfig(output_dir=str(tmp_path), matryoshka_dims=[96, 32], **settings)
    trainer = AlignmentTrainer(UniMEModel.from_backbone(backbone), args, train_dataset=rows)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logs[-1]["loss"] < 0.8 * logs[0]["loss"] and logs[0]["rows_left_out"] == 0

    # what the loss does not look at is not encoded, unless it has to choose by score
    for order, limit in (("file", 2), ("score", None)):
        args = AlignmentConfig(output_dir=str(tmp_path), num_negatives=2, order=order, **settings)
        trainer = AlignmentTrainer(UniMEModel.from_backbone(backbone), args, train_dataset=rows)
        negatives = trainer.data_collator([rows[0], rows[1]])["batch"].negatives
        assert negatives.shape[1] == (limit or max(len(row["negatives"]) for row in rows.select(range(2))))
    assert logs[-1]["positive_similarity"] > logs[-1]["hardest_negative_similarity"]


def test_training_lowers_the_loss_and_says_what_it_did(backbone, world, tmp_path):
    model = UniMEModel.from_backbone(backbone)
    rows = read_mmeb_train(world / "train", ["Shapes_object"], image_root=world)
    settings = {
        **SETTINGS,
        "max_steps": 40,
        "learning_rate": 3e-3,
        "save_strategy": "no",
        "num_hard_negatives": 0,
        "logging_steps": 4,
    }
    trainer = ContrastiveTrainer(
        model, ContrastiveConfig(output_dir=str(tmp_path), **settings), train_dataset=rows, eval_dataset=rows
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logs[-1]["loss"] < logs[0]["loss"] - 0.1
    for name in (
        "positive_similarity",
        "hardest_negative_similarity",
        "filtered_share",
        "duplicates_masked",
        "distinct_items",
        "padded_share",
        "grad_norm",
        "items_per_second",
        "tokens_per_second",
    ):
        assert name in logs[0]
    measured = trainer.evaluate()
    assert 0 < measured["eval_loss"] < 10 and "eval_positive_similarity" in measured


def test_saved_model_carries_processor_and_code(backbone, world, tmp_path):
    model = UniMEModel.from_backbone(backbone, preset="joint")
    rows = read_mmeb_train(world / "train", ["Shapes_vqa"], image_root=world)
    settings = {**SETTINGS, "max_steps": 1, "save_strategy": "no"}
    trainer = ContrastiveTrainer(model, ContrastiveConfig(output_dir=str(tmp_path), **settings), train_dataset=rows)
    trainer.train()
    trainer.save_model()
    again = UniMEModel.from_pretrained(tmp_path)
    assert again.processor.preset == "joint"
    assert torch.equal(again.encode("a red circle"), model.encode("a red circle"))


def test_lora_trains_only_the_adapter(backbone, world, tmp_path):
    model = UniMEModel.from_backbone(backbone)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    rows = read_mmeb_train(world / "train", ["Shapes_vqa"], image_root=world)
    settings = {**SETTINGS, "max_steps": 2, "save_strategy": "no"}
    peft = LoraConfig(r=4, target_modules=r".*language_model.*q_proj")
    trainer = ContrastiveTrainer(
        model, ContrastiveConfig(output_dir=str(tmp_path), **settings), train_dataset=rows, peft_config=peft
    )
    trainer.train()
    after = trainer.model.state_dict()
    for name, weight in before.items():
        match = after.get(
            f"base_model.model.{name}", after.get(f"base_model.model.{name.replace('q_proj.', 'q_proj.base_layer.')}")
        )
        assert torch.equal(match, weight), name
    assert any("lora_B" in name and weight.abs().max() > 0 for name, weight in after.items())


def launch(backbone, world, folder, *options):
    """Runs the command of the README on a recipe that is the shipped one but for its size and paths."""
    recipe = yaml.safe_load((ROOT / "recipes" / "shapes" / "contrastive.yaml").read_text())
    recipe.update(model_name_or_path=str(backbone), data=str(world / "train"), image_root=str(world))
    recipe.update(output_dir=str(folder / "out"), per_device_train_batch_size=8, subsets=["Shapes_vqa", "Shapes_t2i"])
    recipe.update(save_strategy="no", bf16=False, warmup_steps=1)
    return launch_stage("contrastive", recipe, folder, *options)


def test_command_reads_the_recipe(backbone, world, tmp_path):
    done = launch(backbone, world, tmp_path, "--max_steps", "4")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert UniMEModel.from_pretrained(tmp_path / "out").processor.preset == "joint"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["UniMEModel"]


def test_two_processes_without_a_gpu_train_as_the_docs_say(backbone, world, tmp_path):
    assert "torchrun --nproc_per_node 2 -m unime.trainers.contrastive" in (ROOT / "docs" / "training.md").read_text()
    recipe = {
        "model_name_or_path": str(backbone),
        "preset": "joint",
        "data": str(world / "train"),
        "image_root": str(world),
        "output_dir": str(tmp_path / "out"),
        "max_steps": 2,
        "save_strategy": "no",
        "per_device_train_batch_size": 4,
        "bf16": False,
        "warmup_steps": 0,
        "use_peft": True,
        "lora_r": 2,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0"]  # any free port
    command += ["-m", "unime.trainers.contrastive", "--config", str(tmp_path / "recipe.yaml")]
    command += ["--use_cpu", "true", "--ddp_backend", "gloo"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "| processes | 2 |" in (tmp_path / "out" / "README.md").read_text()
    assert UniMEModel.from_pretrained(tmp_path / "out").encode("a red circle").isfinite().all()


def test_command_with_lora_leaves_a_whole_model_and_its_adapter(backbone, world, tmp_path):
    options = ("--max_steps", "3", "--use_peft", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj")
    done = launch(backbone, world, tmp_path, *options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    merged, plain = UniMEModel.from_pretrained(tmp_path / "out"), UniMEModel.from_backbone(backbone, preset="joint")
    assert not torch.equal(merged.encode("a red circle"), plain.encode("a red circle"))
    adapted = PeftModel.from_pretrained(plain, tmp_path / "out" / "adapter").merge_and_unload()
    assert torch.allclose(adapted.encode("a red circle"), merged.encode("a red circle"), atol=1e-5)


def test_what_the_command_cannot_do_is_said(backbone, world, tmp_path, monkeypatch):
    done = launch(backbone, world, tmp_path, "--max_steps", "3", "--load_in_4bit")
    assert done.returncode != 0 and "quantised weights do not train; add an adapter" in done.stderr
    check_processes(1)
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="2 processes were launched, and each sees 1"):
        patch.setenv("WORLD_SIZE", "2")
        check_processes(1)
    with pytest.raises(ValueError, match="decay steps .* do not fit into 10 steps"):
        resolve_decay(ContrastiveConfig(lr_scheduler_kwargs={"num_decay_steps": 10}, warmup_steps=1), 10)


def test_the_earlier_name_of_batch_tokens_warns_and_has_its_effect(backbone, world, tmp_path):
    settings = {name: value for name, value in SETTINGS.items() if name != "batch_tokens"}
    with pytest.warns(FutureWarning, match="`token_budget` is now called `batch_tokens`"):
        args = ContrastiveConfig(output_dir=str(tmp_path), token_budget=200, **settings)
    assert args.batch_tokens == 200 and args.token_budget is None
    rows = read_mmeb_train(world / "train", ["Shapes_vqa"], image_root=world)
    trainer = ContrastiveTrainer(UniMEModel.from_backbone(backbone), args, train_dataset=rows)
    chunks = next(iter(trainer.get_train_dataloader()))["batch"].chunks
    assert len(chunks) > 1 and all(chunk["input_ids"].numel() <= 200 for chunk in chunks)


def test_a_loss_that_is_not_finite_stops_the_training(backbone, world, tmp_path):
    model = UniMEModel.from_backbone(backbone)
    with torch.no_grad():
        model.vlm.language_model.norm.weight.fill_(float("nan"))
    rows = read_mmeb_train(world / "train", ["Shapes_vqa"], image_root=world)
    trainer = ContrastiveTrainer(model, ContrastiveConfig(output_dir=str(tmp_path), **SETTINGS), train_dataset=rows)
    with pytest.raises(ValueError, match=r"the loss is nan after step 0, on \['Shapes_vqa'\]"):
        trainer.train()


def test_the_best_checkpoint_is_loaded_at_the_end(backbone, world, tmp_path):
    """A learning rate that ruins the model: the checkpoint after the first steps is the best."""
    rows = read_mmeb_train(world / "train", ["Shapes_object"], image_root=world)
    train, held = hold_out(rows, 4)
    assert len(train) == 12 and held[:]["query"] == rows[12:]["query"]
    settings = {**SETTINGS, "learning_rate": 1.0, "eval_strategy": "steps", "eval_steps": 2, "save_only_model": True}
    args = ContrastiveConfig(output_dir=str(tmp_path), load_best_model_at_end=True, **settings)
    trainer = ContrastiveTrainer(UniMEModel.from_backbone(backbone), args, train_dataset=train, eval_dataset=held)
    trainer.train()
    losses = {e["step"]: e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e}
    best = min(losses, key=losses.get)
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    again = UniMEModel.from_pretrained(tmp_path / f"checkpoint-{best}").state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in trainer.model.state_dict().items())
    with pytest.raises(ValueError, match=r"holdout 16 leaves no training row of \['Shapes_object'\]"):
        hold_out(rows, 16)


def test_every_save_has_a_card(backbone, world, tmp_path):
    rows = read_mmeb_train(world / "train", ["Shapes_vqa", "Shapes_t2i"], image_root=world)
    args = ContrastiveConfig(output_dir=str(tmp_path / "my-embedder"), **SETTINGS)
    trainer = ContrastiveTrainer(UniMEModel.from_backbone(backbone), args, train_dataset=rows)
    trainer.train()
    card = ModelCard.load(tmp_path / "my-embedder" / "checkpoint-6" / "README.md")
    assert card.data.pipeline_tag == "feature-extraction" and card.data.base_model is None
    assert "| Shapes_t2i | 16 |" in card.text and "| temperature | 0.1 |" in card.text
    assert "| positive_similarity |" in card.text and "# my-embedder" in card.text
    assert "| batch_tokens | 300 |" in card.text and "token_budget" not in card.text
    assert str(backbone) not in card.text and str(tmp_path) not in card.text, "paths of this machine stay here"


def test_each_data_set_learns_its_own_temperature(backbone, world, tmp_path):
    rows = read_mmeb_train(world / "train", ["Shapes_vqa", "Shapes_t2i"], image_root=world)

    def train(folder, **changes):
        settings = {**SETTINGS, "learn_temperatures": True, "temperature_learning_rate": 0.1}
        args = ContrastiveConfig(output_dir=str(tmp_path / folder), **settings)
        trainer = ContrastiveTrainer(UniMEModel.from_backbone(backbone), args, train_dataset=rows)
        trainer.train(**changes)
        return trainer

    whole = train("whole")
    found = whole.loss.temperatures.log_temperature.exp()
    assert len({0.1, *found.tolist()}) == 3, "both have moved, and apart"
    assert whole.state.log_history[-2]["temperature_Shapes_vqa"] == found[1]
    resumed = train("resumed", resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert torch.equal(resumed.loss.temperatures.log_temperature, whole.loss.temperatures.log_temperature)
    with pytest.raises(ValueError, match="does not go with fp16"):
        args = ContrastiveConfig(output_dir=str(tmp_path), learn_temperatures=True, **{**SETTINGS, "bf16": False})
        args.fp16 = True
        ContrastiveTrainer(UniMEModel.from_backbone(backbone), args, train_dataset=rows)
