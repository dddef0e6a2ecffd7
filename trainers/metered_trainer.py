"""What all stages share: metrics averaged into the logs, and schedules whose decay is a share of all steps."""

import math
import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path

import torch
import torch.distributed as dist
from PIL import Image
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import seed_worker

from ..data.samplers import HomogeneousSampler, StepBatches
from ..data.sieve import BadItem
from .cards import write_card
from .left_out import BAD_ITEMS, LeftOut
from .sharding import OneReduction


class MeteredTrainer(Trainer):
    """A `Trainer` whose subclasses append to `self._metrics["train" | "eval"][name]`; logs show the means.

    Logs also tell how many items and tokens all processes together train on in a second, as far as this process can
    tell: its own count times their number. Every save gets a model card.

    Args:
        args, kwargs: as in `Trainer`.

    Raises:
        ValueError: the launch asks for FSDP.
    """

    paper = "2504.17432"  # arXiv number, for the model card
    loss_is_scaled_for_ga = False  # the loss is a mean over one batch; Trainer divides by the accumulation steps

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)

        # only `Trainer` knows what the launch asked for
        if self.is_fsdp_enabled:
            raise ValueError("FSDP could not be tested and is not supported; DeepSpeed ZeRO-3 shards the weights too.")

        # evaluation reports a loss, although no input is called a label
        self.can_return_loss = True
        self.label_names = []

        self.left_out = LeftOut()
        self.add_callback(self.left_out)

        self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
        self._processed = Counter()  # items and tokens trained on since the last log entry
        self._since = None  # when that entry was written, later by what is not training

    def _get_dataloader(
        self, dataset, description, batch_size, sampler_fn=None, is_training=False, dataloader_key=None
    ) -> DataLoader:
        """As in `Trainer`, in whole steps: see [`~unime.data.samplers.StepBatches`]."""
        sampler = None
        if sampler_fn is not None:
            sampler = sampler_fn(dataset)
        if sampler is None:  # of an evaluation on several processes, which `Trainer` leaves to accelerate
            sampler = SequentialSampler(dataset)

        batches = StepBatches(
            sampler, batch_size, self.accelerator.num_processes, drop_last=self.args.dataloader_drop_last
        )

        options = {}
        if is_training:
            self.add_callback(ChooseOrder(batches))
            options["worker_init_fn"] = partial(
                seed_worker, num_workers=self.args.dataloader_num_workers, rank=self.args.process_index
            )

        loader = DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            in_order=self.args.dataloader_in_order,
            **options,
        )
        loader = self.accelerator.prepare_data_loader(loader)

        # workers that go on living belong to a loader that is used again
        if dataloader_key is not None and self.args.dataloader_persistent_workers:
            self._eval_dataloaders = {**getattr(self, "_eval_dataloaders", {}), dataloader_key: loader}
        return loader

    def _get_train_sampler(self, train_dataset=None):
        if train_dataset is None:
            train_dataset = self.train_dataset
        if not self.args.homogeneous_batches:
            return super()._get_train_sampler(train_dataset)

        # a block is what all ranks together read in one step
        block = self._train_batch_size * self.args.world_size
        seed = self.args.data_seed
        if seed is None:
            seed = self.args.seed
        return HomogeneousSampler(train_dataset["dataset"], block, seed)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """As in `Trainer`, with a DeepSpeed engine that takes many backwards."""
        self.adopt_engine(model)
        return super().training_step(model, inputs, num_items_in_batch)

    def train(self, *args, **kwargs):
        """As in `Trainer`; at the end it says which items could not be read, and lists them in `output_dir`."""
        result = super().train(*args, **kwargs)

        # all ranks know of all items, so one speaks for them
        if self.left_out.reasons and self.is_world_process_zero():
            self.left_out.report(Path(self.args.output_dir) / BAD_ITEMS)
        return result

    def leave_out(self, bad_items: list[BadItem]) -> list[BadItem]:
        """Notes what could not be read of a batch, on all ranks alike, which must all call this.

        Args:
            bad_items (`list[BadItem]`): of this rank's batch.

        Returns:
            `list[BadItem]`: those of all ranks.

        Raises:
            ValueError: there is one, and `args.bad_items` is `"stop"`.
        """
        if dist.is_initialized():
            # the items themselves travel only where there are any
            count = torch.tensor(len(bad_items), device=self.args.device)
            dist.all_reduce(count)
            if count:
                gathered = [None] * dist.get_world_size()
                dist.all_gather_object(gathered, bad_items)
                bad_items = list(chain.from_iterable(gathered))

        # each rank has the same list, so all of them stop or none does
        if bad_items and self.args.bad_items == "stop":
            first = bad_items[0]
            raise ValueError(
                f"after step {self.state.global_step}, {first.item} cannot be read: {first.reason} (bad_items: stop; "
                "unime data check --model finds such items before)"
            )
        self.left_out.note(bad_items)
        return bad_items

    def count(self, items: int, tokens: int):
        """Notes what a training batch of this process holds, for `items_per_second` and `tokens_per_second`.

        Args:
            items (`int`): what is encoded.
            tokens (`int`): theirs, without padding.
        """
        self._processed += Counter(items=items, tokens=tokens)

    def adopt_engine(self, model):
        """Under DeepSpeed, makes the engine take many backwards a step."""
        if not self.is_deepspeed_enabled:
            return
        if not isinstance(self.accelerator.deepspeed_engine_wrapped, OneReduction):
            self.accelerator.deepspeed_engine_wrapped = OneReduction(model)

    def backward(self, loss, last: bool):
        """One of several backwards of a micro-batch; under DeepSpeed the last of the last updates the weights."""
        if not self.is_deepspeed_enabled:
            self.accelerator.backward(loss)
            return

        sync = last and self.accelerator.sync_gradients
        self.accelerator.deepspeed_engine_wrapped.backward(loss, sync_gradients=sync, scale_wrt_gas=False)

    def get_batch_samples(self, *args, **kwargs):
        """As in `Trainer`; the clock starts when the first batch is read."""
        if self._since is None:
            self._since = time.perf_counter()
        return super().get_batch_samples(*args, **kwargs)

    def evaluate(self, *args, **kwargs):
        """As in `Trainer`; its time does not count as training."""
        with self._clock_stopped():
            return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, *args, **kwargs):
        with self._clock_stopped():
            return super()._save_checkpoint(*args, **kwargs)

    @contextmanager
    def _clock_stopped(self):
        """Leaves the time of the body out of items and tokens per second."""
        start = time.perf_counter()
        yield
        if self._since is not None:
            self._since += time.perf_counter() - start

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            write_card(self, output_dir or self.args.output_dir)

    def create_model_card(self, *args, **kwargs):
        """Leaves the card that was saved with the model; `Trainer.push_to_hub` would write one of its own over it."""

    def spare_inputs(self, with_image: bool, **kwargs) -> dict:
        """Tensors of the smallest item that the model reads, with or without an image.

        Args:
            with_image (`bool`): an image, or a text.
            kwargs: for the processor's `collate`.
        """
        item = {"text": "."}
        if with_image:
            item = {"image": Image.new("RGB", (32, 32))}
        prepared = self.processing_class.prepare([item])
        return dict(self.processing_class.collate(prepared, **kwargs))

    def log(self, logs: dict, start_time: float | None = None):
        """As in `Trainer`, with the means of the metrics and the throughput since the last entry."""
        prefix = _prefix(logs)
        mode = "eval" if prefix else "train"
        for name, values in self._metrics[mode].items():
            logs[prefix + name] = _mean_of_numbers(values)
        self._metrics[mode].clear()

        if self.left_out.reasons:
            logs["items_left_out"] = len(self.left_out.reasons)

        # an evaluation that is logged says nothing about the pace of training
        if mode == "train" and self._since is not None and self._processed:
            seconds = time.perf_counter() - self._since
            for name, count in self._processed.items():
                logs[f"{name}_per_second"] = round(count * self.args.world_size / seconds, 1)
            self._processed = Counter()
            self._since = time.perf_counter()
        super().log(logs, start_time)

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """As in `Trainer`; a decay below 1 is a share of all steps."""
        resolve_decay(self.args, num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)


class ChooseOrder(TrainerCallback):
    """Chooses the order of every epoch, also of one that several processes resume in its middle.

    There accelerate wraps the batches once more, and `Trainer` does not reach them.

    Args:
        batches ([`~unime.data.samplers.StepBatches`]): of the training.
    """

    def __init__(self, batches: StepBatches):
        self.batches = batches

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Takes the epoch's number; in the middle of an epoch it is a fraction above it."""
        self.batches.set_epoch(int(state.epoch))


def keep_resolution(processor, resolution):
    """Reads images at the resolution of a training from now on, where the preset's method evaluates at it.

    UniME trains and evaluates at 336 (2504.17432, table 6); UniME-V2 trains at 672 and evaluates at 1344, so that its
    presets keep their own.

    Args:
        processor ([`~unime.processing_unime.UniMEProcessor`]): of the model, which is saved with it.
        resolution (`str`, *optional*): of the training; None where it is the processor's.
    """
    if resolution is not None and processor.rules.evaluates_as_trained:
        processor.resolution = resolution


def _prefix(logs: dict) -> str:
    """What the figures of an evaluation begin with, such as `"eval_"`; empty for a log entry of training."""
    for key in logs:
        if key.endswith("_runtime") and key != "train_runtime":
            return key.removesuffix("runtime")
    return ""


def _mean_of_numbers(values: list[float]) -> float:
    """The mean without NaN, which a batch gives where it has nothing to measure, such as no negative."""
    numbers = [value for value in values if not math.isnan(value)]
    if not numbers:
        return float("nan")
    return sum(numbers) / len(numbers)


def resolve_decay(args: TrainingArguments, steps: int):
    """Reads `num_decay_steps` below 1 as a share of all steps (as `warmup_steps` is), and writes the number into
    `args.lr_scheduler_kwargs`.

    Args:
        args (`TrainingArguments`): of the training.
        steps (`int`): its optimizer steps.

    Raises:
        ValueError: warm-up and decay together take more steps.
    """
    decay = (args.lr_scheduler_kwargs or {}).get("num_decay_steps")
    if decay is None:
        return

    if 0 < decay < 1:
        decay = int(decay * steps)
        args.lr_scheduler_kwargs = {**args.lr_scheduler_kwargs, "num_decay_steps": decay}

    warmup = args.get_warmup_steps(steps)
    if warmup + decay > steps:
        raise ValueError(
            f"{warmup} warm-up steps (warmup_steps) and {decay} decay steps (num_decay_steps of "
            f"lr_scheduler_kwargs) do not fit into {steps} steps; train longer, or lower one of them, which may also "
            "be a share below 1."
        )
