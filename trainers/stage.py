"""What the commands of all stages share: arguments, loading a model, saving it whole."""

import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from datasets import Dataset
from datasets import concatenate_datasets as concatenate
from huggingface_hub import upload_folder
from transformers import EarlyStoppingCallback
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled, unset_hf_deepspeed_config

from ..data.readers import read_rows, stream_rows
from ..jobs.ending import leave_group_at_exit
from ..jobs.faults import one_line_disk_faults
from ..jobs.notices import is_quiet, notice, silence_alarms, without_quiet
from ..jobs.settings import given_settings
from ..prompts_unime import one_of
from .adapters import find_targets
from .arguments import StageArguments
from .cards import write_card
from .metered_trainer import resolve_decay
from .rehearsal import rehearse
from .resuming import last_checkpoint, point_of_resumption, record_of
from .row_counts import RowCounts
from .starting import load_model
from .symptoms import Symptoms, fit_symptoms, symptoms_of_rows

PRECISION = "eval_precision@1"  # of the rows of an evaluation, in the logs


def read_training_rows(stage: StageArguments, args) -> Dataset:
    """Rows of any source and layout that [`~unime.data.readers.read_rows`] knows, or a stream of them."""
    if not stage.streaming:
        return read_rows(
            stage.data,
            stage.image_root,
            stage.subsets,
            stage.split,
            stage.rows_per_subset,
            columns=stage.columns,
            allow_urls=stage.allow_urls,
        )

    # what needs all rows beforehand does not go with a stream
    for name in ("subsets", "rows_per_subset", "holdout", "rehearse", "rehearse_json"):
        if getattr(stage, name):
            raise ValueError(f"{name} must know all rows beforehand; leave out streaming, or {name}.")
    return stream_rows(stage.data, stage.image_root, stage.columns, stage.allow_urls)


def read_mined_rows(stage: StageArguments, args) -> Dataset:
    """Rows of any layout, of which some at least have negatives that a judge has scored.

    Raises:
        ValueError: no row has any.
    """
    rows = read_training_rows(stage, args)
    if stage.streaming:
        return rows  # what it holds is known when it was read
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

    # packed bits cannot be shared out
    launched_by_fsdp = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    if is_deepspeed_zero3_enabled() or launched_by_fsdp:
        raise ValueError("QLoRA goes with neither ZeRO-3 nor FSDP, which share out packed bits; use multi_gpu.yaml.")

    # nor can an adapter be merged into them without a loss
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
    from .stage_parser import StageParser

    # a stage that was started as a module has no other name than __main__
    program = f"unime train {config_class.__module__.rpartition('.')[2]}".removesuffix(" __main__")
    parser = StageParser(config_class, program)
    arguments = _with_model_name(without_quiet(sys.argv[1:] if arguments is None else list(arguments)))
    try:
        stage, args, options, unknown = parser.parse_args_and_config(arguments, return_remaining_strings=True)
        if unknown:
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        args.disable_tqdm = args.disable_tqdm or is_quiet()
        _check_early(stage, args, options)
        source = _model_source(stage, options, reranker)

        rows = read_rows(stage, args)
        if stage.rehearse or stage.rehearse_json:
            rehearsal = _rehearsal(trainer_class, args, stage, options, rows, source, given_settings(arguments))
            return rehearsal.finish(stage.rehearse_json)

        # the rows that are measured on; a teacher reads them, too
        train_rows, eval_rows = _parted(rows, stage, args, read_rows, reranker)
        extra = {}
        if prepare is not None:
            extra = prepare(rows if stage.holdout or eval_rows is None else concatenate([rows, eval_rows]), args)

        # before the model is loaded, which may take minutes
        checkpoint = point_of_resumption(args, record_of(stage, args, options, train_rows), stage.fresh)
        model = load_model(**source, quantization=_quantization(options))
        trainer = trainer_class(
            model,
            args,
            train_dataset=train_rows,
            eval_dataset=eval_rows,
            peft_config=_adapter_config(model, stage, options),
            **extra,
        )
        _watch(trainer, stage, train_rows)
    except (ValueError, OSError, yaml.YAMLError) as error:  # of the recipe, the rows or the model, not of the training
        raise SystemExit(f"unime train: {error}") from error

    with one_line_disk_faults("unime train"):
        _train(trainer, checkpoint)
        save_whole(trainer, source)
        _say_how_it_fits(trainer)
    leave_group_at_exit()


def _with_model_name(arguments: list[str]) -> list[str]:
    """A command line with `--model`, as every other command calls the model, under TRL's name."""
    renamed = []
    for word in arguments:
        option, equals, value = word.partition("=")
        renamed.append("--model_name_or_path" + equals + value if option == "--model" else word)
    return renamed


def _parted(
    rows: Dataset, stage: StageArguments, args, read_rows: Callable, reranker: bool
) -> tuple[Dataset, Dataset | None]:
    """The rows to train on, and those to measure on, if there are any."""
    if not stage.eval_data:
        return hold_out(rows, stage.holdout)

    # an embedder is measured on pairs, whether or not a judge has scored negatives of them
    if read_rows is read_mined_rows and not reranker:
        read_rows = read_training_rows
    stage = replace(stage, data=stage.eval_data, rows_per_subset=None, streaming=False)
    return rows, read_rows(stage, args)


def _watch(trainer, stage: StageArguments, rows: Dataset):
    """Lets a training stop early, if that is asked for, and say what goes wrong with it."""
    if stage.early_stopping:
        trainer.add_callback(EarlyStoppingCallback(stage.early_stopping))

    args = trainer.args
    batch = args.train_batch_size * args.world_size
    temperature = args.temperature if trainer.tells_rows_apart else None
    lines = []
    if not stage.streaming:  # of a stream nothing is known beforehand
        lines = symptoms_of_rows(RowCounts.of(rows), batch, temperature, args.homogeneous_batches)
    trainer.add_callback(Symptoms(lines))


def _train(trainer, checkpoint: str | None):
    """Trains, from a checkpoint or anew; who interrupts it learns where it stands."""
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except KeyboardInterrupt:
        if trainer.is_world_process_zero():
            print(f"\nunime train: {_standing(trainer)}", file=sys.stderr)
        raise SystemExit(130) from None  # as shells have it


def _say_how_it_fits(trainer):
    """Measures a sample of the training rows as held-out rows were measured, and says what the two mean."""
    held_out = [entry for entry in trainer.state.log_history if PRECISION in entry]
    if trainer.args.load_best_model_at_end:
        held_out = [entry for entry in held_out if entry["step"] == trainer.state.best_global_step]
    if not held_out or is_quiet() or not isinstance(trainer.train_dataset, Dataset):
        return

    # as many rows of each data set, so that there are as many candidates; by chance, as files may be in order
    remaining = Counter(trainer.eval_dataset["dataset"])
    names = trainer.train_dataset["dataset"]
    order = np.random.default_rng(0).permutation(len(names)).tolist()
    numbers = []
    for number in order:
        name = names[number]
        if remaining[name] > 0:
            remaining[name] -= 1
            numbers.append(number)
    if not numbers:
        return

    # not the loader of evaluation, which is kept where its workers are
    loader = trainer.get_test_dataloader(trainer.train_dataset.select(numbers))
    metrics = trainer.evaluation_loop(loader, "Training rows", prediction_loss_only=True).metrics
    if trainer.is_world_process_zero():
        for line in fit_symptoms(metrics[PRECISION], held_out[-1][PRECISION]):
            notice(f"unime train: {line}")


def _standing(trainer) -> str:
    """Where a training stands that was interrupted, and how it goes on."""
    state = trainer.state
    checkpoint = last_checkpoint(trainer.args.output_dir)
    if checkpoint is None:
        rest = "nothing was saved yet, so that it would start anew; save more often (save_steps)."
    else:
        rest = f"{checkpoint} is saved, and the same command goes on from it."
    return f"stopped after step {state.global_step} of {state.max_steps}; {rest}"


def _rehearsal(trainer_class, args, stage: StageArguments, options, rows: Dataset, source: dict, given: dict):
    """What this training would do; the model has no weights."""
    train_rows, _ = hold_out(rows, stage.holdout)
    model = load_model(**source, weights=False)
    peft_config = _adapter_config(model, stage, options)

    # weights that are not there cannot be quantised, but their size can be told
    source = {**source, "quantization": _quantization(options)}
    processes = stage.rehearse_processes or args.world_size
    return rehearse(trainer_class, model, args, train_rows, peft_config, source, given, processes)


def _check_early(stage: StageArguments, args, options):
    """Refuses what cannot go well before anything is read or loaded."""
    if stage.eval_data and stage.holdout:
        raise ValueError("`eval_data` and `holdout` both name rows to measure on; take one of them.")
    if stage.early_stopping and not (stage.eval_data or stage.holdout):
        raise ValueError("`early_stopping` needs rows to measure on: `eval_data` or `holdout`.")
    if options.model_name_or_path is None:
        raise ValueError(
            "`model_name_or_path` is missing: a folder, or a repository such as Qwen/Qwen2-VL-2B-Instruct."
        )

    # what would be an error after the data is read, too
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
