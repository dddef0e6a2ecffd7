"""What a trainer tells in the card beside a saved model: what it was trained on, how, and how that went."""

import json
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import ModelCard
from transformers import TrainingArguments

from ..checkpoints.cards import Card
from .adapters import without_adapter

# what a reader wants to know of `TrainingArguments`, beside all of a stage's own arguments
_SHARED = (
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optim",
    "weight_decay",
    "max_grad_norm",
    "bf16",
    "fp16",
    "activation_checkpointing",
    "seed",
)


def write_card(trainer, folder):
    """Writes `README.md` into a folder with a saved model or adapter.

    Args:
        trainer: the trainer that made it: its model, arguments, rows and logs are what the card tells.
        folder (`str` or `Path`): where the model lies.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    config = without_adapter(model).config
    stage = type(trainer).__name__.removesuffix("Trainer").lower()
    parts = []
    if trainer.train_dataset is not None:
        rows = Counter(trainer.train_dataset["dataset"])
        parts.append(_table(("data set", "rows"), sorted(rows.items())))
    parts.append(_table(("setting", "value"), _settings(trainer, model)))
    if measured := _last_figures(trainer.state.log_history):
        parts += ["Figures: means over the steps since the log entry before; `eval_` is on rows kept apart."]
        parts.append(_table(("figure", "value"), measured))
    packages = ("torch", "transformers", "peft", "accelerate", "datasets")
    parts.append("Made with " + ", ".join(f"{package} {version(package)}" for package in packages) + ".")
    card = Card(
        config.model_type,
        Path(trainer.args.output_dir).name,
        getattr(config, "backbone", None),
        trainer.processing_class.preset,
        (Path(folder) / "adapter_config.json").exists(),
        f"'s `{stage}` stage ([{trainer.paper}](https://arxiv.org/abs/{trainer.paper})), at step "
        f"{trainer.state.global_step}",
        "\n\n".join(parts),
        tags=(type(trainer).__name__,),
    )
    ModelCard(card.render(trainer.hub_model_id)).save(Path(folder) / "README.md")


def _settings(trainer, model) -> list[tuple[str, str]]:
    """How the model was trained: the stage's own arguments, the shared ones that matter, the adapter, the prompts."""
    args = trainer.args
    own = [name for name in type(args).__dataclass_fields__ if name not in TrainingArguments.__dataclass_fields__]
    found = {name: getattr(args, name) for name in (*_SHARED, *own) if name != "teacher_embeddings"}
    found |= {"processes": args.world_size, "preset": trainer.processing_class.preset}
    if isinstance(found.get("teacher"), str) and Path(found["teacher"]).exists():
        found["teacher"] = Path(found["teacher"]).name
    if getattr(model, "is_quantized", False):
        found["quantised to bits"] = 4 if getattr(model, "is_loaded_in_4bit", False) else 8
    if adapter := getattr(model, "peft_config", {}).get("default"):
        targets = adapter.target_modules
        if not isinstance(targets, str):  # else a pattern
            targets = sorted({name.rpartition(".")[2] for name in targets})
        found |= {
            f"adapter {name}": getattr(adapter, name) for name in ("r", "lora_alpha", "lora_dropout", "use_dora")
        }
        found["adapter targets"] = targets
    return [
        (name, value if isinstance(value, str) else json.dumps(value, default=str)) for name, value in found.items()
    ]


def _last_figures(history: list[dict]) -> list[tuple[str, str]]:
    """The last value of every logged figure."""
    last = {}
    for entry in history:
        last.update(entry)
    skipped = ("epoch", "step", "total_flos", "learning_rate", "train_", "_runtime", "per_second")
    return [
        (name, f"{value:.4g}")
        for name, value in sorted(last.items())
        if isinstance(value, (int, float)) and not any(part in name for part in skipped)
    ]


def _table(head: tuple[str, str], rows: list[tuple]) -> str:
    return "\n".join(f"| {left} | {right} |" for left, right in (head, ("---", "---"), *rows))
