"""DeepSpeed ZeRO-2 and ZeRO-3, and FSDP2, on two ranks against DDP: the same losses and weights, saved whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, save_backbone
from peft import LoraConfig
from safetensors.torch import load_file

from unime import UniMEModel, UniMERerankerForCausalLM

CASES = {
    "contrastive": {"stage": "contrastive", "resumes": True},
    "contrastive-lora-accumulated": {"stage": "contrastive", "lora": True, "gradient_accumulation_steps": 2},
    "contrastive-lora-features": {"stage": "contrastive", "lora": True, "batch_tokens": 60, "feature_tokens": 4},
    "alignment-cached": {"stage": "alignment", "batch_tokens": 60, "graph_tokens": 100},
    "distillation": {"stage": "distillation"},
    "reranker": {"stage": "reranker"},
    "reranker-lora-accumulated": {
        "stage": "reranker",
        "lora": True,
        "gradient_accumulation_steps": 2,
        "resumes": True,
    },
}
WORKER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch
import test_sharding as t
t.train_all(Path(sys.argv[2]), sys.argv[3])
torch.distributed.barrier()  # no rank ends while a thread of its group is still busy
torch.distributed.destroy_process_group()
"""


def zero(stage: int) -> dict:
    return {
        "zero_optimization": {
            "stage": stage,
            "stage3_gather_16bit_weights_on_model_save": True,
            "stage3_param_persistence_threshold": 0,  # even the smallest weight is shared out
        },
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }


def share_out_by_fsdp2():
    """What `accelerate launch` with our fsdp2.yaml sets up on GPUs: with `cpu=True`, accelerate leaves the plugin out,
    and would train under plain DDP without a word."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    content = yaml.safe_load((ROOT / "accelerate_configs" / "fsdp2.yaml").read_text())["fsdp_config"]
    settings = {name.removeprefix("fsdp_").replace("offload_params", "cpu_offload"): content[name] for name in content}
    settings["fsdp_version"] = settings.pop("version")
    settings["auto_wrap_policy"] = settings["auto_wrap_policy"].lower()

    AcceleratorState._reset_state()
    Accelerator(cpu=True)
    for state in (PartialState, AcceleratorState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin(**settings)


def check_sharing(trainer, mode: str):
    """That the weights were shared out as the mode says: or DDP would be compared with DDP."""
    from torch.distributed.tensor import DTensor

    assert (type(trainer.model_wrapped).__name__ == "DeepSpeedEngine") == mode.startswith("zero")
    if mode == "fsdp2":
        parameters = list(trainer.model.parameters())
        assert parameters and all(isinstance(parameter, DTensor) for parameter in parameters)
        own = sum(parameter.to_local().numel() for parameter in parameters)
        assert own < 0.6 * sum(parameter.numel() for parameter in parameters)


def resumed(trainer_class, model, args, data, peft, extra) -> list[float]:
    """The losses after step 2 of a training that is begun again from its checkpoint."""
    trainer = trainer_class(model, args, train_dataset=data, peft_config=peft, **extra)
    trainer.train(resume_from_checkpoint=f"{args.output_dir}/checkpoint-2")
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][2:]


def train_all(folder: Path, mode: str):
    """Trains every case in this rank's process and writes losses and final weights."""
    from accelerate import PartialState
    from accelerate.state import AcceleratorState
    from test_gradient_cache import rows, texts_only

    from unime.trainers.alignment import AlignmentConfig, AlignmentTrainer
    from unime.trainers.contrastive import ContrastiveConfig, ContrastiveTrainer
    from unime.trainers.distillation import DistillationConfig, DistillationTrainer
    from unime.trainers.reranker import RerankerConfig, RerankerTrainer
    from unime.trainers.stage import save_whole

    stages = {
        "contrastive": (ContrastiveTrainer, ContrastiveConfig, UniMEModel),
        "alignment": (AlignmentTrainer, AlignmentConfig, UniMEModel),
        "distillation": (DistillationTrainer, DistillationConfig, UniMEModel),
        "reranker": (RerankerTrainer, RerankerConfig, UniMERerankerForCausalLM),
    }
    if mode.startswith("zero"):
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        PartialState(backend="gloo")
    for name, settings in CASES.items():
        settings = {"batch_tokens": 200, **settings}
        trainer_class, config_class, model_class = stages[settings.pop("stage")]
        lora = settings.pop("lora", False)
        resumes = settings.pop("resumes", False) and mode == "fsdp2"
        if mode == "ddp":
            settings |= {"use_cpu": True, "ddp_backend": "gloo"}
        elif mode == "fsdp2":
            share_out_by_fsdp2()
            settings |= {"use_cpu": True, "accelerator_config": {"use_configured_state": True}}
        else:
            AcceleratorState._reset_state()
            settings |= {"deepspeed": zero(int(mode[-1])), "accelerator_config": {"use_configured_state": True}}
        args = config_class(
            output_dir=str(folder / mode / name),
            max_steps=3,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            warmup_steps=0,
            per_device_train_batch_size=2,
            save_strategy="steps" if resumes else "no",
            save_steps=2,
            disable_tqdm=True,
            logging_steps=1,
            bf16=False,
            seed=3,
            **settings,
        )
        peft = LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)") if lora else None
        model = model_class.from_backbone(folder / "backbone")
        data, extra = rows(folder, 12), {}
        if trainer_class is DistillationTrainer:
            data, extra["teacher"] = texts_only(data)
        trainer = trainer_class(model, args, train_dataset=data, peft_config=peft, **extra)
        trainer.train()
        assert args.world_size == 2 and trainer.accelerator.num_processes == 2
        check_sharing(trainer, mode)
        source = {"path": folder / "backbone", "preset": None, "reranker": model_class is UniMERerankerForCausalLM}
        save_whole(trainer, source)
        losses = []
        if resumes:
            model = model_class.from_backbone(folder / "backbone")
            share_out_by_fsdp2()
            losses = resumed(trainer_class, model, args, data, peft, extra)
        if trainer.is_world_process_zero():
            logs = [entry for entry in trainer.state.log_history if "loss" in entry]
            found = {"loss": [log["loss"] for log in logs], "grad_norm": [log["grad_norm"] for log in logs]}
            found["resumed"] = losses
            (folder / mode / name / "logs.json").write_text(json.dumps(found))


def launch(folder: Path, mode: str):
    (folder / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", str(folder / "worker.py")]
    command += [str(ROOT / "tests"), str(folder), mode]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharding")
    save_backbone(folder / "backbone")
    launch(folder, "ddp")
    return folder


@pytest.mark.skipif(" " in sys.prefix, reason="torch cannot build DeepSpeed's extension under a path with a space")
@pytest.mark.parametrize("mode", ["zero2", "zero3"])
def test_zero_equals_ddp(reference, mode):
    launch(reference, mode)
    check_equality(reference, mode)


def test_fsdp2_equals_ddp_and_resumes(reference):
    launch(reference, "fsdp2")
    check_equality(reference, "fsdp2")
    for name, settings in CASES.items():
        logs = json.loads((reference / "fsdp2" / name / "logs.json").read_text())
        if settings.get("resumes"):
            assert logs["resumed"] == pytest.approx(logs["loss"][2:], abs=1e-5), name


def check_equality(reference, mode):
    """Losses, norms of gradients and saved weights of a mode against those under DDP."""
    for name, settings in CASES.items():
        expected, found = (json.loads((reference / m / name / "logs.json").read_text()) for m in ("ddp", mode))
        assert len(expected["loss"]) == 3
        assert found["loss"] == pytest.approx(expected["loss"], abs=1e-4), name
        assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4), name
        files = ("model.safetensors", "adapter/adapter_model.safetensors")[: 1 + bool(settings.get("lora"))]
        for file in files:
            expected, found = (load_file(reference / m / name / file) for m in ("ddp", mode))
            assert expected.keys() == found.keys()
        expected, found = (load_file(reference / m / name / files[0]) for m in ("ddp", mode))
        model_class = UniMERerankerForCausalLM if settings["stage"] == "reranker" else UniMEModel
        start = model_class.from_backbone(reference / "backbone").state_dict()
        moved = sum(float((weight - start[key]).square().sum()) for key, weight in expected.items()) ** 0.5
        apart = sum(float((weight - found[key]).square().sum()) for key, weight in expected.items()) ** 0.5
        assert moved > 0 and apart <= 0.01 * moved, f"{name}: {apart / moved}"
