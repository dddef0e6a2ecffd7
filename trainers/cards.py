"""What a trainer tells in the card beside a saved model: what it was trained on, how, and how that went."""

import json
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from datasets import Dataset
from huggingface_hub import ModelCard
from transformers import TrainingArguments

from ..checkpoints.cards import Card
from .adapters import without_adapter
from .teacher import license_of

# what a reader needs to know of `TrainingArguments`, beside all of a stage's own arguments
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
# a path of this machine; the earlier name of batch_tokens; what the card shows with the prompts
_OMITTED = ("teacher_embeddings", "token_budget", "query_instruction", "document_instruction")
_PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets")
# parts of the names of figures that say nothing about the model
_UNINTERESTING = ("epoch", "step", "total_flos", "learning_rate", "train_", "_runtime", "per_second")


def write_card(trainer, folder):
    """Writes `README.md` into a folder with a saved model or adapter.

    Args:
        trainer: the trainer that made it: its model, arguments, rows and logs are what the card tells.
        folder (`str` or `Path`): with the model.
    """
    folder = Path(folder)
    config = without_adapter(trainer.accelerator.unwrap_model(trainer.model)).config
    stage = type(trainer).__name__.removesuffix("Trainer").lower()
    card = Card(
        kind=config.model_type,
        name=Path(trainer.args.output_dir).name,
        base=getattr(config, "backbone", None),
        preset=trainer.processing_class.shown_preset,
        fusion=trainer.processing_class.fusion,
        resolution=trainer.processing_class.resolution,
        instructions=trainer.processing_class.instructions,
        adapter=(folder / "adapter_config.json").exists(),
        origin=(
            f"'s `{stage}` stage ([{trainer.paper}](https://arxiv.org/abs/{trainer.paper})), at step "
            f"{trainer.state.global_step}"
        ),
        training=_training_section(trainer),
        tags=(type(trainer).__name__,),
    )
    ModelCard(card.render(trainer.hub_model_id)).save(folder / "README.md")


def _training_section(trainer) -> str:
    """The card's section on the training, in Markdown: rows, settings, figures and packages."""
    paragraphs = []
    if isinstance(trainer.train_dataset, Dataset):  # of a stream nobody knows them
        rows = Counter(trainer.train_dataset["dataset"])
        paragraphs.append(_table(("data set", "rows"), sorted(rows.items())))
    paragraphs.append(_table(("setting", "value"), _settings(trainer)))

    figures = _last_figures(trainer.state.log_history)
    if figures:
        paragraphs.append("Figures: means over the steps since the log entry before; `eval_` is on rows kept apart.")
        paragraphs.append(_table(("figure", "value"), figures))

    versions = [f"{package} {version(package)}" for package in _PACKAGES]
    paragraphs.append(f"Made with {', '.join(versions)}.")
    return "\n\n".join(paragraphs)


def _settings(trainer) -> list[tuple[str, str]]:
    """How the model was trained: the stage's own arguments, the shared ones that matter, the adapter, the prompts."""
    args = trainer.args
    model = trainer.accelerator.unwrap_model(trainer.model)

    settings = {name: getattr(args, name) for name in _SHARED}
    for name in type(args).__dataclass_fields__:
        if name not in TrainingArguments.__dataclass_fields__ and name not in _OMITTED:
            settings[name] = getattr(args, name)
    settings["processes"] = args.world_size
    settings["preset"] = trainer.processing_class.preset

    # of a teacher on this machine the name, not its path
    teacher = settings.get("teacher")
    if isinstance(teacher, str):
        if license_of(teacher):
            settings["teacher license"] = license_of(teacher)
        if Path(teacher).exists():
            settings["teacher"] = Path(teacher).name

    if getattr(model, "is_quantized", False):
        settings["quantised to bits"] = 4 if getattr(model, "is_loaded_in_4bit", False) else 8

    adapter = getattr(model, "peft_config", {}).get("default")
    if adapter is not None:
        settings.update(_adapter_settings(adapter))

    texts = []
    for name, value in settings.items():
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        texts.append((name, text))
    return texts


def _adapter_settings(adapter) -> dict:
    """What a reader needs to know of PEFT's configuration."""
    settings = {}
    for name in ("r", "lora_alpha", "lora_dropout", "use_dora"):
        settings[f"adapter {name}"] = getattr(adapter, name)

    # a pattern as it is, of paths the last parts
    targets = adapter.target_modules
    if not isinstance(targets, str):
        targets = sorted({name.rpartition(".")[2] for name in targets})
    settings["adapter targets"] = targets
    return settings


def _last_figures(history: list[dict]) -> list[tuple[str, str]]:
    """The last value of every logged figure."""
    last = {}
    for entry in history:
        last.update(entry)

    figures = []
    for name, value in sorted(last.items()):
        is_number = isinstance(value, (int, float))
        if is_number and not any(word in name for word in _UNINTERESTING):
            figures.append((name, f"{value:.4g}"))
    return figures


def _table(head: tuple[str, str], rows: list[tuple]) -> str:
    """A Markdown table with two columns."""
    lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |"]
    for name, value in rows:
        lines.append(f"| {name} | {value} |")
    return "\n".join(lines)
