"""What the commands of all stages share: arguments, loading a model, saving it whole."""

import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import get_type_hints

import yaml
from datasets import Dataset
from huggingface_hub import upload_folder
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled, unset_hf_deepspeed_config

from ..data.readers import read_rows
from ..jobs.faults import one_line_disk_faults
from ..jobs.notices import is_quiet, silence_alarms, without_quiet
from ..jobs.settings import CommandParser, check_recipe_value, given_settings
from ..prompts_unime import one_of
from .adapters import find_targets
from .cards import write_card
from .metered_trainer import resolve_decay
from .rehearsal import rehearse
from .starting import load_model


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
        default=None,
        metadata={"help": "Preset by which items are read (default: the checkpoint's own, or by a stock VLM's name)."},
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the code of the model's repository; read it first."}
    )
    holdout: int = field(
        default=0, metadata={"help": "Rows of each data set kept for evaluation (eval_strategy, best checkpoint)."}
    )
    rehearse: bool = field(
        default=False,
        metadata={"help": "Print what would be done, from configuration, tokenizer and processor alone, and end."},
    )
    rehearse_json: str | None = field(default=None, metadata={"help": "Rehearse, and write it to this file as JSON."})
    rehearse_processes: int | None = field(
        default=None, metadata={"help": "Processes of the launch that is rehearsed; those of this one by default."}
    )
    lora_components: list[str] = field(
        default_factory=lambda: ["language_model"],
        metadata={"help": "What gets an adapter: language_model, vision_tower, projector."},
    )
    init_lora_weights: str = field(
        default="kaiming", metadata={"help": "How an adapter starts: kaiming (PEFT's own start), or gaussian."}
    )


def read_training_rows(stage: StageArguments, args) -> Dataset:
    """Rows of any layout that [`~unime.data.readers.read_rows`] knows."""
    return read_rows(stage.data, stage.image_root, stage.subsets, stage.split, stage.rows_per_subset)


def read_mined_rows(stage: StageArguments, args) -> Dataset:
    """Rows of any layout, of which some at least have negatives that a judge has scored.

    Raises:
        ValueError: no row has any.
    """
    rows = read_training_rows(stage, args)
    if not any(rows["negative_scores"]):
        raise ValueError(f"no row of {stage.data} has negatives with judge scores; `unime mine run` makes such rows.")
    return rows


def hold_out(rows: Dataset, count: int) -> tuple[Dataset, Dataset | None]:
    """Sets rows apart for evaluation.

    Args:
        rows (`Dataset`): all rows.
        count (`int`): how many of each data set; 0 for none.

    Returns:
        `tuple[Dataset, Dataset | None]`: training rows, and the last `count` rows of each data set.

    Raises:
        ValueError: a data set has no more rows than that.
    """
    if not count:
        return rows, None

    remaining = Counter(rows["dataset"])  # rows of each data set from the present one on
    too_small = sorted(name for name, size in remaining.items() if size <= count)
    if too_small:
        raise ValueError(f"holdout {count} leaves no training row of {too_small}.")

    training = []
    evaluation = []
    for number, name in enumerate(rows["dataset"]):
        if remaining[name] <= count:
            evaluation.append(number)
        else:
            training.append(number)
        remaining[name] -= 1
    return rows.select(training), rows.select(evaluation)


def check_processes(world_size: int):
    """Refuses a launch in which processes do not know of each other: each would train on all the rows.

    DeepSpeed without an accelerator does that.

    Raises:
        ValueError: there are more or fewer processes than the launch has started.
    """
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if world_size != launched:
        raise ValueError(
            f"{launched} processes were launched, and each sees {world_size}. Without an accelerator, train under DDP "
            "(use_cpu: true, ddp_backend: gloo)."
        )


def check_quantized(options):
    """Refuses what cannot be trained, or merged exactly, over quantised weights.

    Args:
        options (`trl.ModelConfig`): of the command.

    Raises:
        ValueError: there is no adapter, the weights would be shared out by ZeRO-3, or the model is itself an adapter.
    """
    if not options.use_peft:
        raise ValueError("quantised weights do not train; add an adapter with use_peft: true (QLoRA).")
    if is_deepspeed_zero3_enabled():
        raise ValueError("QLoRA does not go with ZeRO-3, which would share out packed bits; use multi_gpu.yaml.")
    from ..adapters_unime import adapter_folder

    if adapter_folder(Path(options.model_name_or_path)) is not None:
        raise ValueError(
            f"{options.model_name_or_path} is an adapter, which merged into quantised weights would be rounded; merge "
            "it first: unime merge ADAPTER OUT."
        )


def run_command(
    trainer_class,
    config_class,
    read_rows: Callable,
    arguments: list[str] | None = None,
    reranker: bool = False,
    prepare: Callable | None = None,
):
    """Reads a recipe and the command line, trains, and saves model, processor and remote code to `output_dir`.

    Args:
        trainer_class, config_class: of the stage.
        read_rows: maps [`StageArguments`] and the config to the training rows.
        arguments (`list[str]`, *optional*): the command line; `sys.argv` by default.
        reranker (`bool`, defaults to `False`): train a reranker, not an embedder.
        prepare (*optional*): maps the rows and the config to further arguments of the trainer, before the model is
            loaded: to run another model on the rows, for example.

    Raises:
        SystemExit: the recipe, the rows or the model cannot be used, and the message says why; or a rehearsal found
            errors.
    """
    silence_alarms()
    from trl import ModelConfig, TrlParser

    class StageParser(CommandParser, TrlParser):
        """TRL's parser, with the spellings and the one-line errors of every command."""

        def set_defaults_with_config(self, **settings):
            try:
                check_recipe(self.dataclass_types, settings)
            except ValueError as error:
                self.error(str(error))
            return super().set_defaults_with_config(**settings)

    # a stage that was started as a module has no other name than __main__
    program = f"unime train {config_class.__module__.rpartition('.')[2]}".removesuffix(" __main__")
    parser = StageParser((StageArguments, config_class, ModelConfig), prog=program)
    arguments = without_quiet(sys.argv[1:] if arguments is None else list(arguments))
    try:
        stage, args, options, unknown = parser.parse_args_and_config(arguments, return_remaining_strings=True)
        if unknown:
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        args.disable_tqdm = args.disable_tqdm or is_quiet()
        _check_early(args, options)
        source = _model_source(stage, options, reranker)

        rows = read_rows(stage, args)
        if stage.rehearse or stage.rehearse_json:
            rehearsal = _rehearsal(trainer_class, args, stage, options, rows, source, given_settings(arguments))
            return rehearsal.finish(stage.rehearse_json)

        # before the rows are parted: a teacher reads those of the evaluation too
        extra = {}
        if prepare is not None:
            extra = prepare(rows, args)
        train_rows, eval_rows = hold_out(rows, stage.holdout)

        model = load_model(**source, quantization=_quantization(options))
        trainer = trainer_class(
            model,
            args,
            train_dataset=train_rows,
            eval_dataset=eval_rows,
            peft_config=_adapter_config(model, stage, options),
            **extra,
        )
    except (ValueError, OSError, yaml.YAMLError) as error:  # of the recipe, the rows or the model, not of the training
        raise SystemExit(f"unime train: {error}") from error

    with one_line_disk_faults("unime train"):
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        save_whole(trainer, source)


def check_recipe(config_classes, settings: dict):
    """Refuses values of a recipe that are not of their settings' types.

    Args:
        config_classes: dataclasses of settings.
        settings (`dict`): as YAML has them.

    Raises:
        ValueError: a list or an object where one value is due, or the other way round; the message names the setting.
    """
    for config_class in config_classes:
        hints = get_type_hints(config_class)
        for setting in fields(config_class):
            # a text is what the command line has, too, and read as such
            value = settings.get(setting.name)
            if value is not None and not isinstance(value, str):
                check_recipe_value("the recipe", setting, value, hints[setting.name])


def _rehearsal(trainer_class, args, stage: StageArguments, options, rows: Dataset, source: dict, given: dict):
    """What this training would do; the model has no weights."""
    train_rows, _ = hold_out(rows, stage.holdout)
    model = load_model(**source, weights=False)
    peft_config = _adapter_config(model, stage, options)

    # weights that are not there cannot be quantised, but their size can be told
    source = {**source, "quantization": _quantization(options)}
    processes = stage.rehearse_processes or args.world_size
    return rehearse(trainer_class, model, args, train_rows, peft_config, source, given, processes)


def _check_early(args, options):
    """Refuses what cannot go well before anything is read or loaded."""
    if options.model_name_or_path is None:
        raise ValueError(
            "`model_name_or_path` is missing: a folder, or a repository such as Qwen/Qwen2-VL-2B-Instruct."
        )
    check_processes(args.world_size)
    if args.max_steps > 0:
        resolve_decay(args, args.max_steps)
    if _quantization(options) is not None:
        check_quantized(options)


def _model_source(stage: StageArguments, options, reranker: bool) -> dict:
    """The arguments with which [`load_model`] loads the model, without its quantisation."""
    return {
        "path": options.model_name_or_path,
        "preset": stage.preset,
        "reranker": reranker,
        "dtype": options.dtype,
        "attn_implementation": options.attn_implementation,
        "revision": options.model_revision,
        "trust_remote_code": stage.trust_remote_code,
    }


def _quantization(options) -> str | None:
    """What [`load_model`] calls the quantisation of the command's options."""
    if options.load_in_4bit:
        return "nf4"
    if options.load_in_8bit:
        return "int8"
    return None


def _adapter_config(model, stage: StageArguments, options):
    """PEFT's configuration of the adapter, or None without one."""
    from trl import get_peft_config

    peft_config = get_peft_config(options)
    if peft_config is None:
        return None
    peft_config.task_type = None  # an embedder is not one of PEFT's tasks

    # PEFT calls its own start True
    start = one_of("init_lora_weights", stage.init_lora_weights, "kaiming", "gaussian")
    peft_config.init_lora_weights = True if start == "kaiming" else start
    peft_config.target_modules = find_targets(model, options.lora_target_modules, stage.lora_components)
    return peft_config


def save_whole(trainer, source: dict):
    """Saves the trained model to `output_dir`, and to the Hub where `push_to_hub` says so. An adapter is saved in
    `adapter/`, and merged into its base.

    The base is loaded anew for that, by one process: so the merged weights are exact over quantised weights, and
    whole where ranks held parts of them.

    Args:
        trainer: after its training.
        source (`dict`): arguments with which [`load_model`] loads the model that it started from, without
            quantisation.
    """
    out = trainer.args.output_dir
    is_adapter = hasattr(trainer.accelerator.unwrap_model(trainer.model), "merge_and_unload")
    trainer.save_model(f"{out}/adapter" if is_adapter else out, _internal_call=True)  # else it would push by itself

    if trainer.is_world_process_zero():
        if is_adapter:
            _save_merged(trainer, source)
        if trainer.args.push_to_hub:
            _push(trainer)
    trainer.accelerator.wait_for_everyone()


def _save_merged(trainer, source: dict):
    """Merges the adapter that was just saved, and saves the whole model beside it."""
    from ..adapters_unime import merge_adapter

    unset_hf_deepspeed_config()  # this process loads alone; nothing is partitioned any more
    out = trainer.args.output_dir
    merged = merge_adapter(load_model(**source), f"{out}/adapter")
    merged.processor = trainer.processing_class

    # of a checkpoint on its way to the Hub; it would be applied once more
    for stale in Path(out).glob("adapter_*"):
        stale.unlink()
    merged.save_pretrained(out)
    write_card(trainer, out)


def _push(trainer):
    """Uploads the model, its card and its adapter, without checkpoints and unfinished files."""
    upload_folder(
        repo_id=trainer.hub_model_id,
        folder_path=trainer.args.output_dir,
        token=trainer.args.hub_token,
        revision=trainer.args.hub_revision,
        commit_message="End of training",
        ignore_patterns=["_*", "checkpoint-*", "*.part"],
        delete_patterns=["adapter_*"],
    )
