"""The gradient cache gives the gradient of the full batch: any budget, accumulation, LoRA, dropout, two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, picture, save_backbone
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

from unime import UniMEModel
from unime.data.schema import Example, Item, to_dataset, to_example
from unime.trainers.alignment import AlignmentConfig, AlignmentTrainer
from unime.trainers.contrastive import ContrastiveConfig, ContrastiveTrainer
from unime.trainers.distillation import DistillationConfig, DistillationTrainer, TeacherTable, distinct_texts
from unime.trainers.gradient_cache import ChunkEncoder, cached_loss, frozen_vision
from unime.trainers.losses import HardNegativeInfoNCE, LossOutput


def rows(folder: Path, count: int = 8):
    """Texts, images and both, with copies of positives across the batch, and explicit negatives of unequal number."""
    words = ["a", "red", "circle", "left", "of", "a", "blue", "star", "Find", "me", "an", "image"]
    for number in range(4):
        picture(number, (32 + 16 * (number % 2), 32)).save(folder / f"{number}.png")
    examples = []
    for i in range(count):
        query = Item(" ".join(words[: i % 7 + 1]) + f" {i}", str(folder / f"{i % 4}.png") if i % 3 == 0 else "")
        positive = Item(words[i % 5], str(folder / f"{(i + 1) % 4}.png") if i % 4 == 1 else "")
        negatives = [Item(words[(i + n + 2) % 9]) for n in range(i % 3)]
        scores = [0.1 * n + 0.05 * (i % 4) for n in range(i % 3)]
        examples.append(Example(query, positive, negatives, 0.6 + 0.04 * i, scores, dataset="A"))
    return to_dataset(examples)


def load(backbone, lora: bool, dropout: float = 0.0):
    model = UniMEModel.from_backbone(backbone)
    if not lora:
        return model
    torch.manual_seed(5)
    config = LoraConfig(
        r=4,
        lora_dropout=dropout,
        target_modules=r".*language_model.*\.(q_proj|v_proj|up_proj)",
        init_lora_weights=False,
    )
    return get_peft_model(model, config)


class Gradients(TrainerCallback):
    """Copies the gradients before each optimizer step."""

    def __init__(self):
        self.found = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.grad is not None:
                self.found[f"{name.removeprefix('module.')} {state.global_step}"] = parameter.grad.detach().clone()


STAGES = {
    "contrastive": (ContrastiveTrainer, ContrastiveConfig, {"num_hard_negatives": 3}),
    "alignment": (AlignmentTrainer, AlignmentConfig, {"num_negatives": 2, "in_batch_weight": 0.5}),
    "distillation": (DistillationTrainer, DistillationConfig, {}),
    "clusters": (ContrastiveTrainer, ContrastiveConfig, {"num_hard_negatives": 3, "learn_temperatures": True}),
}


def clusters(data):
    """The rows as SaHa's clusters of unequal sizes: every negative has a query of its own."""
    examples = [to_example(row) for row in data]
    for number, example in enumerate(examples):
        example.negative_queries = [Item(f"what owns it {number}{i}") for i in range(len(example.negatives))]
        example.dataset = "AB"[number % 2]
    return to_dataset(examples)


def texts_only(data):
    """The texts of the rows, and a teacher of them that is the same in every process."""
    examples = [Example(Item(row["query"]["text"]), Item(row["positive"]["text"]), dataset="A") for row in data]
    data = to_dataset(examples)
    texts = distinct_texts(data)
    return data, TeacherTable(texts, np.random.default_rng(0).normal(size=(len(texts), 16)))


def trained(backbone, data, folder, lora=False, dropout=0.0, stage="contrastive", **settings):
    """The gradients of every optimizer step of a short run."""
    trainer_class, config_class, own = STAGES[stage]
    settings, extra = {**own, **settings}, {}
    if stage == "clusters":
        data = clusters(data)
    if stage == "distillation":
        data, extra["teacher"] = texts_only(data)
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "batch_tokens": 60, **settings}
    args = config_class(
        output_dir=str(folder),
        max_steps=2 // settings["gradient_accumulation_steps"],
        learning_rate=0.01,
        lr_scheduler_type="constant",
        warmup_steps=0,
        max_grad_norm=0,
        optim="sgd",
        weight_decay=0.0,
        temperature=0.1,
        save_strategy="no",
        disable_tqdm=True,
        logging_strategy="no",
        use_cpu=True,
        bf16=False,
        seed=3,
        **settings,
    )
    gradients, processor = Gradients(), load(backbone, False).processor
    model = load(backbone, lora, dropout)
    trainer_class(model, args, train_dataset=data, processing_class=processor, callbacks=[gradients], **extra).train()
    return gradients.found


def difference(first, second):
    """Largest absolute difference relative to the largest entry."""
    assert first.keys() == second.keys()
    scale = max(float(value.abs().max()) for value in second.values())
    assert scale > 1e-4, "there is a gradient to compare"
    return max(float((first[name] - second[name]).abs().max()) for name in first) / scale


EVERYTHING = {"batch_tokens": 10**6, "graph_tokens": 10**6}


@pytest.mark.parametrize("stage", sorted(STAGES))
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_cached_step_equals_the_full_batch(backbone, tmp_path, lora, accumulation, stage):
    data, settings = rows(tmp_path), {"lora": lora, "gradient_accumulation_steps": accumulation, "stage": stage}
    whole = trained(backbone, data, tmp_path, **settings, **EVERYTHING)
    for graph_tokens in (0, 100):
        assert difference(trained(backbone, data, tmp_path, **settings, graph_tokens=graph_tokens), whole) <= 1e-5


def test_cache_equals_one_forward_written_out_by_hand(backbone, tmp_path):
    """Independent of Trainer and collator: every item by itself, the loss over all of them, one backward."""
    data, loss = rows(tmp_path, 4), HardNegativeInfoNCE(0.1, None, None)
    model = load(backbone, False)
    items = [Item(**row[role]) for row in data for role in ("query", "positive")]
    batches = [model.processor.collate(model.processor.prepare([item.as_input()])) for item in items]
    index = torch.arange(len(items))
    whole = loss(torch.cat([model(**batch).embeddings for batch in batches]), index[::2], index[1::2]).loss
    whole.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    prepared = model.processor.prepare([item.as_input() for item in items])
    chunks = [dict(model.processor.collate(prepared[i : i + 3])) for i in range(0, len(prepared), 3)]
    encoder = ChunkEncoder(model, torch.device("cpu"))
    total = cached_loss(encoder, chunks, lambda e: loss(e, index[::2], index[1::2])).loss
    total.backward()
    assert total.item() == pytest.approx(whole.item(), abs=1e-5)
    assert difference({name: p.grad for name, p in model.named_parameters()}, expected) <= 1e-5


@pytest.mark.parametrize("lora", [False, True], ids=["attention dropout", "lora dropout"])
def test_dropout_is_replayed(tmp_path, lora):
    """With the same chunks and seed, running chunks again gives what keeping all their graphs gives."""
    backbone, data = save_backbone(tmp_path / "dropout", dropout=0.3), rows(tmp_path)
    settings = {"lora": lora, "dropout": 0.3, "batch_tokens": 60}
    kept = trained(backbone, data, tmp_path, **settings, graph_tokens=10**6)
    again = trained(backbone, data, tmp_path, **settings)
    assert difference(again, kept) <= 1e-5
    other = trained(save_backbone(tmp_path / "plain"), data, tmp_path, **{**settings, "dropout": 0.0})
    assert difference(other, kept) > 1e-3, "dropout was on"


@pytest.mark.parametrize("feature_tokens", [0, 8])
def test_features_of_a_frozen_tower_that_are_computed_again_change_nothing(tmp_path, feature_tokens):
    data = rows(tmp_path)
    dropping = save_backbone(tmp_path / "dropping", dropout=0.4)
    settings = {"lora": True, "dropout": 0.4}
    kept = trained(dropping, data, tmp_path, **settings)
    again = trained(dropping, data, tmp_path, **settings, feature_tokens=feature_tokens)
    assert difference(again, kept) <= 1e-5


@pytest.mark.parametrize("feature_tokens, kept", [(10**6, 1.0), (8, 0.5), (0, 0.0)])
def test_frozen_vision_features_are_computed_once_where_there_is_room(backbone, tmp_path, feature_tokens, kept):
    data = rows(tmp_path)
    calls = []
    model = load(backbone, True)
    base = model.get_base_model()
    assert frozen_vision(model) is not None and frozen_vision(load(backbone, False)) is None
    base.vlm.visual.register_forward_hook(lambda *args: calls.append(1))
    args = ContrastiveConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=8,
        batch_tokens=60,
        feature_tokens=feature_tokens,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
    )
    trainer = ContrastiveTrainer(model, args, train_dataset=data, processing_class=base.processor)
    batch = next(iter(trainer.get_train_dataloader()))["batch"]
    with_images = sum("pixel_values" in chunk for chunk in batch.chunks)
    assert with_images > 1
    trainer.train()
    keeps_graph = "pixel_values" in batch.chunks[-1]  # it runs once, whatever is kept
    again = len(calls) - with_images
    if kept == 0.5:
        assert 0 < again < with_images - keeps_graph
    else:
        assert again == (1 - kept) * (with_images - keeps_graph)


WORKER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch
import test_gradient_cache as t
from conftest import save_backbone
folder = Path(sys.argv[2])
found = {}
for name, settings in json.loads(sys.argv[3]).items():
    data = t.rows(folder)
    change = t.trained(folder / "backbone", data, folder / "out", **settings)
    if torch.distributed.get_rank() == 0:
        torch.save(change, folder / f"{name}.pt")
torch.distributed.barrier()  # no rank ends while a thread of its group is still busy
torch.distributed.destroy_process_group()
"""


def test_two_processes_equal_one(tmp_path):
    """Two gloo ranks with half the batch each, cached and not, full and LoRA, accumulation 1 and 2."""
    save_backbone(tmp_path / "backbone")
    cases = {
        f"{'lora' if lora else 'full'}-{accumulation}-{graph}": {
            "lora": lora,
            "gradient_accumulation_steps": accumulation,
            "per_device_train_batch_size": 2,
            "graph_tokens": graph,
            "ddp_backend": "gloo",
            "homogeneous_batches": True,
        }
        for lora in (False, True)
        for accumulation in (1, 2)
        for graph in (0, 10**6)
    }
    cases |= {stage: {**cases["full-1-0"], "stage": stage} for stage in ("alignment", "distillation", "clusters")}
    (tmp_path / "worker.py").write_text(WORKER)
    for number in range(4):
        picture(number, (32 + 16 * (number % 2), 32)).save(tmp_path / f"{number}.png")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "0",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "127.0.0.1:0",
        str(tmp_path / "worker.py"),
        str(ROOT / "tests"),
        str(tmp_path),
        json.dumps(cases),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    data = rows(tmp_path)
    for name, settings in cases.items():
        alone = {k: v for k, v in settings.items() if k in ("lora", "gradient_accumulation_steps", "stage")}
        expected = trained(tmp_path / "backbone", data, tmp_path / "out", **alone, **EVERYTHING)
        found = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert difference(found, expected) <= 1e-5, name


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl", "llava_next", "llava_onevision", "phi3_v"])
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "whole"])
def test_the_cache_is_exact_on_every_backbone(tiny, kind, frozen):
    """Chunks of mixed items, with and without a frozen vision tower, against one pass with a graph over all."""
    from unime.vlm_unime import vision_parameters

    model = UniMEModel.from_backbone(tiny(kind)[0])
    if frozen:
        for parameter in vision_parameters(model.vlm):
            parameter.requires_grad_(False)
    assert (frozen_vision(model) is not None) == frozen
    items = [
        "a red circle",
        picture(1),
        {"text": "Find it.", "image": picture(2, (90, 40))},
        "x",
        picture(3, (40, 60)),
    ]
    prepared = model.processor.prepare(items)
    chunks = [dict(model.processor.collate([prepared[i] for i in chunk])) for chunk in ([0, 3], [1, 2], [4])]
    weights = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    loss_of = lambda embeddings: ((embeddings * weights).sum(1).exp()).sum().log()  # noqa: E731

    def gradients(run):
        model.zero_grad()
        run().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    whole = gradients(lambda: loss_of(torch.cat([model(**chunk).embeddings for chunk in chunks])))
    encoder = ChunkEncoder(model, torch.device("cpu"))
    cached = gradients(lambda: cached_loss(encoder, chunks, lambda e: LossOutput(loss_of(e), {})).loss)
    assert set(whole) == set(cached)
    scale = max(gradient.abs().max() for gradient in whole.values())
    assert max((whole[name] - cached[name]).abs().max() for name in whole) <= 1e-5 * scale
