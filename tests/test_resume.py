"""Every trainer, with full weights and LoRA, killed by SIGKILL and resumed, ends with the bits of an unbroken run."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import save_backbone
from safetensors.torch import load_file
from test_trainer import SETTINGS, write_judged

KINDS = [stage + lora for stage in ("contrastive", "alignment", "reranker", "distillation") for lora in ("", "-lora")]

RUN = """
import json, os, signal, sys
from pathlib import Path
import torch
import numpy as np
from peft import LoraConfig
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from unime import UniMEModel, UniMERerankerForCausalLM
from unime.data.readers import read_judged, read_mmeb_train, read_text_pairs
from unime.trainers.alignment import AlignmentConfig, AlignmentTrainer
from unime.trainers.contrastive import ContrastiveConfig, ContrastiveTrainer
from unime.trainers.distillation import DistillationConfig, DistillationTrainer, TeacherTable, distinct_texts
from unime.trainers.reranker import RerankerConfig, RerankerTrainer
torch.set_num_threads(1)
folder, world, name, settings, kill_at, *kinds = sys.argv[1:]
folder, settings = Path(folder), json.loads(settings)
class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == int(kill_at):
            os.kill(os.getpid(), signal.SIGKILL)
TRAINERS = {
    "contrastive": (ContrastiveTrainer, ContrastiveConfig),
    "alignment": (AlignmentTrainer, AlignmentConfig),
    "reranker": (RerankerTrainer, RerankerConfig),
    "distillation": (DistillationTrainer, DistillationConfig),
}
for kind in kinds:
    stage, _, lora = kind.partition("-")
    out, extra, own = folder / name / kind, {}, dict(settings)
    if lora:
        extra["peft_config"] = LoraConfig(r=4, lora_dropout=0.2, target_modules=r".*language_model.*(q_proj|v_proj)")
    model = (UniMERerankerForCausalLM if stage == "reranker" else UniMEModel).from_backbone(folder / "backbone")
    if stage == "contrastive":
        rows = read_mmeb_train(world + "/train", ["Shapes_vqa", "Shapes_t2i", "Shapes_same"], image_root=world)
    elif stage == "distillation":
        rows = read_text_pairs(world + "/nli/nli_for_simcse.csv")
        texts = distinct_texts(rows)
        extra["teacher"] = TeacherTable(texts, np.random.default_rng(0).normal(size=(len(texts), 16)))
    else:
        rows = read_judged(folder / "judged.json", world)
    if stage == "reranker":
        own.pop("temperature")
    trainer_class, config = TRAINERS[stage]
    trainer = trainer_class(model, config(output_dir=str(out), **own), train_dataset=rows, callbacks=[Kill()], **extra)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(out)) if out.exists() else None)
    trainer.save_model(str(out / "final"))
"""


def run(folder, world, name, kill_at, *kinds):
    command = [
        sys.executable,
        "-c",
        RUN,
        str(folder),
        str(world),
        name,
        json.dumps(SETTINGS | {"save_total_limit": 10}),
        str(kill_at),
        *kinds,
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment, check=False)


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    """Unbroken runs of all trainers, and runs that were killed and then resumed."""
    folder = tmp_path_factory.mktemp("resume")
    save_backbone(folder / "backbone", dropout=0.2)
    write_judged(world, folder / "judged.json")
    whole = run(folder, world, "whole", 0, *KINDS)
    assert whole.returncode == 0, whole.stderr[-3000:]
    for kind in KINDS:
        killed = run(folder, world, "broken", 5, kind)
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    resumed = run(folder, world, "broken", 0, *KINDS)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(folder, kind):
    name = "adapter_model.safetensors" if kind.endswith("lora") else "model.safetensors"
    first, second = (load_file(folder / run / kind / "final" / name) for run in ("whole", "broken"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    early = load_file(folder / "whole" / kind / "checkpoint-2" / name)
    assert any(not torch.equal(first[key], early[key]) for key in first), "training moved weights"
