"""What the commands of the embedding stages share: arguments, loading a model, saving it whole."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from datasets import Dataset
from huggingface_hub import upload_folder
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled, unset_hf_deepspeed_config

from ..data.readers import read_rows
from ..jobs.notices import silence_alarms
from ..jobs.settings import CommandParser
from .adapters import find_targets
from .cards import write_card
from .metered_trainer import resolve_decay


@dataclass
class StageArguments:
    """What to train on, beside the recipe's training arguments and TRL's model arguments."""

    data: str = field(metadata={"help": "Training rows: a folder, or a .jsonl, .json, .parquet or .csv file."})
    image_root: str | None = field(
        default=None, metadata={"help": "Where image paths start; the data folder by default."}
    )
    subsets: list[str] | None = field(default=None, metadata={"help": "Subsets to use; all by default."})
    split: str = field(default="original", metadata={"help": "MMEB-train: original or diverse_instruction."})
    rows_per_subset: int | None = field(
        default=None, metadata={"help": "At most that many rows of each subset (papers: 50000)."}
    )
    preset: str | None = field(
        default=None, metadata={"help": "Prompt preset for a stock VLM (default: by its name, else summary)."}
    )
    holdout: int = field(
        default=0, metadata={"help": "Rows of each data set kept for evaluation (eval_strategy, best checkpoint)."}
    )
    lora_components: list[str] = field(
        default_factory=lambda: ["language_model"],
        metadata={"help": "What gets an adapter: language_model, vision_tower, projector."},
    )


def load_model(path, preset: str | None = None, reranker: bool = False, **kwargs):
    """Loads a model in float32: a UniME checkpoint, a stock VLM, or an earlier stage's adapter, merged first.

    A preset that is not the checkpoint's own is what it will be trained for. Without an accelerator, and unless an
    attention is asked for, text attention runs as plain matrix products, whose backward is faster there.
    """
    from ..checkpoints.opening import open_checkpoint

    asked = {"dtype": "float32", **{key: value for key, value in kwargs.items() if value is not None}}
    model = open_checkpoint(path, preset, reranker, change_preset=True, **asked)
    if "attn_implementation" not in asked and not torch.accelerator.is_available():
        plain_attention(model)
    if model.processor.fusion == "sum":
        model.processor.fusion = "joint"  # training reads image and text in one prompt, and so will the trained model
    return model


def read_training_rows(stage: StageArguments, args) -> Dataset:
    """Rows of any layout that [`~unime.data.readers.read_rows`] knows."""
    return read_rows(stage.data, stage.image_root, stage.subsets, stage.split, stage.rows_per_subset)


def read_mined_rows(stage: StageArguments, args) -> Dataset:
    """Rows of any layout, of which some at least have negatives that a judge has scored."""
    rows = read_training_rows(stage, args)
    if not any(rows["negative_scores"]):
        raise ValueError(f"no row of {stage.data} has negatives with judge scores; `unime mine run` makes such rows.")
    return rows


def hold_out(rows: Dataset, count: int) -> tuple[Dataset, Dataset | None]:
    """Training rows, and the last `count` rows of each data set, kept apart."""
    if not count:
        return rows, None
    left = Counter(rows["dataset"])
    if few := sorted(name for name, size in left.items() if size <= count):
        raise ValueError(f"holdout {count} leaves no training row of {few}.")
    train, held = [], []
    for number, name in enumerate(rows["dataset"]):
        (held if left[name] <= count else train).append(number)
        left[name] -= 1
    return rows.select(train), rows.select(held)


def check_processes(world_size: int):
    """Refuses a launch in which processes do not know of each other: each would train on all the rows.

    DeepSpeed without an accelerator does that.
    """
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if world_size != launched:
        raise ValueError(
            f"{launched} processes were launched, and each sees {world_size}. Without an accelerator, train under DDP "
            "(use_cpu: true, ddp_backend: gloo)."
        )


def check_quantized(options):
    """Refuses what cannot be trained, or merged exactly, over quantised weights."""
    if not options.use_peft:
        raise ValueError("quantised weights do not train; add an adapter with use_peft: true (QLoRA).")
    if is_deepspeed_zero3_enabled():
        raise ValueError("QLoRA does not go with ZeRO-3, which would share out packed bits; use multi_gpu.yaml.")
    if (Path(options.model_name_or_path) / "adapter_config.json").exists():
        raise ValueError(
            f"{options.model_name_or_path} is an adapter, which merged into quantised weights would be rounded; merge "
            "it first: unime merge ADAPTER OUT."
        )


def run_command(trainer_class, config_class, read_rows, arguments=None, reranker: bool = False):
    """Reads a recipe and the command line, trains, and saves model, processor and remote code to `output_dir`.

    Args:
        trainer_class, config_class: of the stage.
        read_rows: maps [`StageArguments`] and the config to the training rows.
        arguments (`list[str]`, *optional*): the command line; `sys.argv` by default.
        reranker (`bool`): train a reranker, not an embedder.
    """
    silence_alarms()
    from trl import ModelConfig, TrlParser

    class StageParser(CommandParser, TrlParser):
        """TRL's parser, with the spellings and the one-line errors of every command."""

    # a stage that was started as a module has no other name than __main__
    program = f"unime train {config_class.__module__.rpartition('.')[2]}".removesuffix(" __main__")
    parser = StageParser((StageArguments, config_class, ModelConfig), prog=program)
    try:
        stage, args, options = parser.parse_args_and_config(arguments)
        trainer, source = _prepare(trainer_class, stage, args, options, read_rows, reranker)
    except (ValueError, OSError, yaml.YAMLError) as error:  # of the recipe, the rows or the model, not of the training
        raise SystemExit(f"unime train: {error}") from error
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    save_whole(trainer, source)


def _prepare(trainer_class, stage: StageArguments, args, options, read_rows, reranker: bool):
    """The trainer of a command, and how its model is loaded."""
    from trl import get_peft_config

    check_processes(args.world_size)
    if args.max_steps > 0:
        resolve_decay(args, args.max_steps)  # a schedule that does not fit should not cost the loading of a model
    source = {
        "path": options.model_name_or_path,
        "preset": stage.preset,
        "reranker": reranker,
        "dtype": options.dtype,
        "attn_implementation": options.attn_implementation,
        "revision": options.model_revision,
    }
    quantization = "nf4" if options.load_in_4bit else "int8" if options.load_in_8bit else None
    if quantization:
        check_quantized(options)
    train, held = hold_out(read_rows(stage, args), stage.holdout)
    model = load_model(**source, quantization=quantization)
    peft_config = get_peft_config(options)
    if peft_config is not None:
        peft_config.task_type = None  # an embedder is none of PEFT's tasks
        peft_config.target_modules = find_targets(model, options.lora_target_modules, stage.lora_components)
    trainer = trainer_class(model, args, train_dataset=train, eval_dataset=held, peft_config=peft_config)
    return trainer, source


def plain_attention(model):
    """Lets the language model's attention run as plain matrix products; the vision tower keeps its own."""
    config = model.config.vlm_config
    if hasattr(config, "text_config") and hasattr(config, "vision_config"):
        vision = config.vision_config._attn_implementation
        model.vlm.set_attn_implementation({"text_config": "eager", "vision_config": vision})


def save_whole(trainer, source: dict):
    """Saves the trained model to `output_dir`, and to the Hub where `push_to_hub` says so. An adapter is kept in
    `adapter/`, and merged into its base.

    The base is loaded anew for that, by one process: so the merged weights are exact over quantised weights, and
    whole where ranks held parts of them.
    """
    out = trainer.args.output_dir
    whole = not hasattr(trainer.accelerator.unwrap_model(trainer.model), "merge_and_unload")
    trainer.save_model(out if whole else f"{out}/adapter", _internal_call=True)  # else it would push by itself
    if trainer.is_world_process_zero() and not whole:
        from ..checkpoints.opening import load_adapter

        unset_hf_deepspeed_config()  # this process loads alone; nothing is partitioned any more
        merged = load_adapter(load_model(**source), f"{out}/adapter").merge_and_unload()
        merged.processor = trainer.processing_class
        for left in Path(out).glob("adapter_*"):
            left.unlink()  # of a checkpoint on its way to the Hub; it would be applied once more
        merged.save_pretrained(out)
        write_card(trainer, out)
    if trainer.is_world_process_zero() and trainer.args.push_to_hub:
        upload_folder(
            repo_id=trainer.hub_model_id,
            folder_path=out,
            token=trainer.args.hub_token,
            revision=trainer.args.hub_revision,
            commit_message="End of training",
            ignore_patterns=["_*", "checkpoint-*", "*.part"],
            delete_patterns=["adapter_*"],
        )
    trainer.accelerator.wait_for_everyone()
