"""Going on with a training that was interrupted, and what may not have changed since."""

import hashlib
import json
import shutil
from dataclasses import fields
from pathlib import Path

from datasets import Dataset
from transformers import TrainingArguments

from ..files.writing import read_json, write_json
from ..jobs.notices import notice
from .arguments import setting_names

SAMPLE = 10_000  # rows that are compared, at least
RECORD = "training.json"  # in the output folder: what the training was started with

# what decides a step, of transformers' own settings; how long the training is may change
_DECISIVE = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "seed",
    "data_seed",
)
# of ours, what only decides memory and speed
_INDIFFERENT = ("batch_tokens", "token_budget", "graph_tokens")


def last_checkpoint(folder) -> str | None:
    """The newest checkpoint of a training that was written to the end; `None` where there is none.

    Args:
        folder (`str` or `Path`): the training's `output_dir`.
    """
    # the state is the last file that is written
    states = list(Path(folder).glob("checkpoint-*/trainer_state.json"))
    if not states:
        return None

    newest = max(states, key=lambda path: int(path.parent.name.rpartition("-")[2]))
    return str(newest.parent)


def point_of_resumption(args: TrainingArguments, record: dict, fresh: bool) -> str | None:
    """The checkpoint that a training goes on from, which is said; all processes must call this.

    Args:
        args: of the training.
        record (`dict`): what it is started with, from [`record_of`].
        fresh (`bool`): start anew, and remove the checkpoints that are there.

    Returns:
        `str`: the folder of the checkpoint; None for a start.

    Raises:
        ValueError: the checkpoints in `output_dir` are those of a training with other settings, rows or model.
    """
    if args.resume_from_checkpoint:
        return args.resume_from_checkpoint

    folder = Path(args.output_dir)
    checkpoint = last_checkpoint(folder)
    if checkpoint is not None and not fresh:
        _check_same(folder, record)
        if args.process_index == 0:
            notice(f"unime train: goes on from {checkpoint}; --fresh starts anew.")
        return checkpoint

    # one process clears the folder, before any begins to train
    with args.main_process_first(local=False, desc="output folder"):
        if args.process_index == 0:
            for old in folder.glob("checkpoint-*"):
                shutil.rmtree(old)
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / RECORD, record)
    return None


def _check_same(folder: Path, record: dict):
    """Refuses to go on with another training than the one that left its checkpoints in a folder."""
    if not (folder / RECORD).exists():  # of a version that wrote none
        return

    before = read_json(folder / RECORD)
    changes = []
    for name in sorted(before.keys() | record.keys()):
        if before.get(name) != record.get(name):
            changes.append(f"{name} was {before.get(name)!r} and is {record.get(name)!r}")
    if changes:
        raise ValueError(
            f"{folder} holds checkpoints of another training: {'; '.join(changes)}. Start anew with --fresh, which "
            "removes them, or name another output_dir."
        )


def record_of(stage, args: TrainingArguments, options, rows: Dataset) -> dict:
    """What decides the steps of a training, as JSON has it.

    Args:
        stage ([`~unime.trainers.stage.StageArguments`]), args, options (`trl.ModelConfig`): the settings.
        rows (`Dataset`): that are trained on.
    """
    # of a stream only its source is known
    content = stage.data if stage.streaming else digest_of(rows)
    record = {"rows": content, "model_name_or_path": options.model_name_or_path, "preset": stage.preset}
    names = set(setting_names(args)) - set(setting_names(TrainingArguments))
    for name in sorted(names - set(_INDIFFERENT)) + list(_DECISIVE):
        record[name] = _plain(getattr(args, name))

    if options.use_peft:
        for setting in fields(options):
            if setting.name.startswith("lora_"):
                record[setting.name] = _plain(getattr(options, setting.name))
    return record


def _plain(value):
    """A setting as JSON has it."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return list(map(_plain, value))
    return str(value)


def digest_of(rows: Dataset) -> str:
    """A digest of rows in their order: of all of them up to some thousands, and of so many spread over more."""
    step = max(1, len(rows) // SAMPLE)
    digest = hashlib.blake2b(f"{len(rows)}".encode(), digest_size=8)
    for row in rows.select(range(0, len(rows), step)):
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()
