"""The model card that lies beside every saved model: where it comes from, what it was trained on, how it did."""

import json
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from transformers import TrainingArguments

from .gradient_cache import without_adapter

_KINDS = {  # model type -> pipeline tag, Auto class, use
    "unime": (
        "feature-extraction",
        "AutoModel",
        'queries = model.encode_query(["a red circle left of a blue star"])\n'
        'images = model.encode_document([{"image": "photo.png"}])\n'
        "print(queries @ images.T)",
    ),
    "unime_reranker": (
        "text-ranking",
        "AutoModelForCausalLM",
        'print(model.rank("a red circle left of a blue star", [{"image": "photo.png"}, {"image": "other.png"}]))',
    ),
}
# what a reader wants to know of `TrainingArguments`, beside all of a stage's own arguments
_SHARED = (
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_steps", "num_train_epochs",
    "per_device_train_batch_size", "gradient_accumulation_steps", "optim", "weight_decay", "max_grad_norm", "bf16",
    "fp16", "activation_checkpointing", "seed",
)  # fmt: skip


def write_card(trainer, folder):
    """Writes `README.md` into a folder with a saved model or adapter.

    Args:
        trainer: the trainer that made it: its model, arguments, rows and logs are what the card tells.
        folder (`str` or `Path`): where the model lies.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    config = without_adapter(model).config
    tag, auto, use = _KINDS[config.model_type]
    base = getattr(config, "backbone", None) or ""
    is_local = Path(base).exists()
    data = ModelCardData(
        library_name="transformers", pipeline_tag=tag, tags=["unime", "multimodal", type(trainer).__name__],
        base_model=base if base and not is_local else None,
    )  # fmt: skip
    name = type(trainer).__name__.removesuffix("Trainer").lower()
    lines = [
        f"# {Path(trainer.args.output_dir).name}",
        f"A multimodal {'reranker' if tag == 'text-ranking' else 'embedder'} made with "
        f"[UniME](https://arxiv.org/abs/{trainer.paper})'s `{name}` stage"
        + (f" from `{Path(base).name if is_local else base}`" if base else "")
        + f", at step {trainer.state.global_step}.",
        "## Use",
        f"```python\nfrom transformers import {auto}\n\n"
        f'model = {auto}.from_pretrained("<this repository>", trust_remote_code=True)\n{use}\n```',
        "## Training",
    ]
    if trainer.train_dataset is not None:
        rows = Counter(trainer.train_dataset["dataset"])
        lines.append(_table(("data set", "rows"), sorted(rows.items())))
    lines.append(_table(("setting", "value"), _settings(trainer, model)))
    if measured := _last_figures(trainer.state.log_history):
        lines += ["## Figures", "Means over the steps since the log entry before; `eval_` is on rows kept apart."]
        lines.append(_table(("figure", "value"), measured))
    packages = ("torch", "transformers", "peft", "accelerate", "datasets")
    lines.append("Made with " + ", ".join(f"{package} {version(package)}" for package in packages) + ".")
    text = f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(lines) + "\n"
    ModelCard(text).save(Path(folder) / "README.md")


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
