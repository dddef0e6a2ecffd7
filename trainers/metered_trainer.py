"""What all stages share: metrics averaged into the logs, and schedules whose decay is a share of all steps."""

import copy
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
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import seed_worker

from ..data.samplers import HomogeneousSampler, HomogeneousStream, StepBatches
from ..data.sieve import BadItem
from .arguments import setting_names
from .cards import write_card
from .left_out import BAD_ITEMS, LeftOut
from .muon import MuonWithAdamW
from .sharding import OneReduction
from .starting import as_rows, call_model_init, default_output, first_model


class MeteredTrainer(Trainer):
    """A `Trainer` whose subclasses append to `self._metrics["train" | "eval"][name]`; logs show the means.

    Logs also tell how many items and tokens all processes together train on in a second, as far as this process can
    tell: its own count times their number. Every save gets a model card.

    A subclass sets `config_class`, and defines `made_trainable` and `collator_for`.

    Args:
        model (*optional*): a model, possibly wrapped by PEFT, or the name of one, which is loaded in float32.
        args (*optional*): by default those of the stage, with an `output_dir` after model and stage.
        data_collator (*optional*): the stage's own by default.
        train_dataset, eval_dataset (*optional*): see [`~unime.trainers.starting.as_rows`].
        processing_class (`UniMEProcessor`, *optional*): the model's own by default.
        model_init (*optional*): makes the model, in place of `model`; called again when training starts, and for every
            trial of a hyperparameter search. What the loss and the batches are made of is read from `args` once.
        peft_config (`peft.PeftConfig`, *optional*): wrap the model in an adapter.
        kwargs: further arguments of `Trainer`.

    Raises:
        ValueError: the launch asks for FSDP's first version, one process sees several GPUs, which `Trainer` would use
            with `DataParallel`, or there is neither a model nor a function that makes one.
    """

    paper = "2504.17432"  # arXiv number, for the model card
    config_class = TrainingArguments  # of `args`
    tells_rows_apart = False  # whether the answers of other rows are negatives, at `args.temperature`
    reranks = False  # whether it trains rerankers, not embedders
    loss_is_scaled_for_ga = False  # the loss is a mean over one batch; Trainer divides by the accumulation steps

    def __init__(
        self,
        model=None,
        args=None,
        data_collator=None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        model_init=None,
        *,
        peft_config=None,
        **kwargs,
    ):
        if args is None:
            stage = type(self).__name__.removesuffix("Trainer")
            args = self.config_class(output_dir=default_output(model, stage))
        if args.n_gpu > 1:
            raise ValueError(
                "several GPUs in one process are not supported: start with `accelerate launch`, one process a GPU."
            )
        self.check_metrics(args, kwargs.get("compute_metrics"))

        train_dataset = as_rows(train_dataset, "train_dataset")
        if isinstance(train_dataset, IterableDataset):
            train_dataset = self._in_blocks(train_dataset, args)

        model = first_model(model, model_init, self.reranks, args.seed)
        processor = processing_class or model.processor
        self.check_reading(processor)
        keep_resolution(processor, args.resolution)
        keep_instructions(processor, args)
        adapter = copy.deepcopy(peft_config)  # PEFT writes into the one that it uses
        super().__init__(
            model=self.made_trainable(model, args, peft_config),
            args=args,
            data_collator=data_collator or self.collator_for(model, args, processor),
            train_dataset=train_dataset,
            eval_dataset=as_rows(eval_dataset, "eval_dataset"),
            processing_class=processor,
            **kwargs,
        )

        # only `Trainer` knows what the launch asked for
        if self.is_fsdp_enabled and not self.accelerator.is_fsdp2:
            raise ValueError("FSDP's first version is not supported; use FSDP2 (accelerate_configs/fsdp2.yaml).")
        if self.is_fsdp_enabled and getattr(args, "muon", False):
            raise ValueError("muon does not go with FSDP, which shares out what Muon must see whole.")

        # `Trainer` itself would make the first model before there is a processor, and know of no adapter
        if model_init is not None:
            self.model_init = partial(self._fresh_model, model_init, adapter)

        # evaluation reports a loss, although no input is called a label
        self.can_return_loss = True
        self.label_names = []

        self.left_out = LeftOut()
        self.add_callback(self.left_out)

        self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
        self._processed = Counter()  # items and tokens trained on since the last log entry
        self._since = None  # when that entry was written, later by what is not training

    @classmethod
    def check_metrics(cls, args, compute_metrics):
        """Refuses a `compute_metrics` that would never be called.

        Args:
            args: of the training.
            compute_metrics: as in `Trainer`.

        Raises:
            ValueError: there is one, and no predictions for it.
        """
        if compute_metrics is not None:
            raise ValueError(
                f"{cls.__name__} has no predictions for `compute_metrics`; its evaluation reports the loss and its "
                "figures, and `unime evaluate` measures a saved model."
            )

    @classmethod
    def check_reading(cls, processor):
        """Refuses, by a `ValueError`, a model that reads what the stage cannot train; a subclass may define it.

        Args:
            processor (`UniMEProcessor`): of the model.
        """

    def _fresh_model(self, model_init, peft_config, trial):
        """Another model of the user's function, as the first one was made trainable."""
        model = call_model_init(model_init, trial)
        model.processor = self.processing_class
        return self.made_trainable(model, self.args, copy.deepcopy(peft_config))

    @staticmethod
    def _in_blocks(stream: IterableDataset, args) -> IterableDataset:
        """A stream in the order in which it is trained on, which every process reads for itself."""
        args.accelerator_config.dispatch_batches = False  # one process would have to cut up batches of the others
        if not args.homogeneous_batches:
            return stream
        return HomogeneousStream(stream, args.train_batch_size * args.world_size)

    def hyperparameter_search(self, hp_space=None, compute_objective=None, *args, **kwargs):
        """As in `Trainer`; by default the objective is the loss of the evaluation.

        `Trainer` would add up all figures of an evaluation, counts of items among them.

        Args:
            hp_space (`Callable`, *optional*): values of a trial; of settings that `Trainer` itself has.
            compute_objective (`Callable`, *optional*): a number from the figures of an evaluation.
            args, kwargs: as in `Trainer`.

        Raises:
            ValueError: a trial is to change what this trainer has read once, from which every trial would be the same.
        """
        # what is ours is read once, and would not change from trial to trial
        read_once = set(setting_names(self.args)) - set(setting_names(TrainingArguments))

        def checked(trial):
            space = hp_space(trial)
            unread = sorted(read_once & space.keys())
            if unread:
                raise ValueError(
                    f"{', '.join(unread)}: loss and batches are made once, and every trial would be the same; search "
                    "with a trainer for each value."
                )
            return space

        objective = compute_objective or evaluation_loss
        return super().hyperparameter_search(hp_space and checked, objective, *args, **kwargs)

    def _get_dataloader(
        self, dataset, description, batch_size, sampler_fn=None, is_training=False, dataloader_key=None
    ) -> DataLoader:
        """As in `Trainer`, in whole steps: see [`~unime.data.samplers.StepBatches`]; a stream as it comes."""
        if isinstance(dataset, IterableDataset):
            return super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)

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
            self.remove_callback(ChooseOrder)  # of an earlier training, as a search for hyperparameters has many
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

    def create_optimizer(self, model=None):
        """As in `Trainer`, or Muon with AdamW."""
        if self.args.muon and self.optimizer is None:
            self.optimizer = MuonWithAdamW.of(self.model, self.args)
        return super().create_optimizer(model)

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

    @property
    def in_lockstep(self) -> bool:
        """Whether ranks talk in every forward and backward, and so must run as many: under DeepSpeed and FSDP."""
        return self.is_deepspeed_enabled or self.is_fsdp_enabled

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

    def evaluate(self, eval_dataset=None, *args, **kwargs):
        """As in `Trainer`; its time does not count as training."""
        # by name: `Trainer` looks a data set of its own up
        if not isinstance(eval_dataset, str):
            eval_dataset = as_rows(eval_dataset, "eval_dataset")
        with self._clock_stopped():
            return super().evaluate(eval_dataset, *args, **kwargs)

    def predict(self, test_dataset, *args, **kwargs):
        """As in `Trainer`."""
        return super().predict(as_rows(test_dataset, "test_dataset"), *args, **kwargs)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        """As in `Trainer`, with the means of the metrics over these rows alone."""
        self._metrics["eval"].clear()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        for name, values in self._metrics["eval"].items():
            output.metrics[f"{metric_key_prefix}_{name}"] = _mean_of_numbers(values)
        return output

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
        # an evaluation has its figures already, and says nothing about the pace of training
        if not _is_evaluation(logs):
            for name, values in self._metrics["train"].items():
                logs[name] = _mean_of_numbers(values)
            self._metrics["train"].clear()
            if self.left_out.reasons:
                logs["items_left_out"] = len(self.left_out.reasons)
            self._add_pace(logs)
        super().log(logs, start_time)

    def _add_pace(self, logs: dict):
        """Adds items and tokens per second since the last entry."""
        if self._since is None or not self._processed:
            return
        seconds = time.perf_counter() - self._since
        for name, count in self._processed.items():
            logs[f"{name}_per_second"] = round(count * self.args.world_size / seconds, 1)
        self._processed = Counter()
        self._since = time.perf_counter()

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """As in `Trainer`; a decay below 1 is a share of all steps."""
        resolve_decay(self.args, num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)


def evaluation_loss(metrics: dict[str, float]) -> float:
    """The objective of a search for hyperparameters."""
    return metrics["eval_loss"]


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


def keep_instructions(processor, args):
    """Takes over the default instructions that a training names, which are saved with the model.

    Args:
        processor ([`~unime.processing_unime.UniMEProcessor`]): of the model.
        args: of the training.
    """
    instructions = {}
    for role in ("query", "document"):
        named = getattr(args, f"{role}_instruction", None)  # a reranker's documents have none
        instructions[role] = processor.default_instruction(role) if named is None else named
    processor.instructions = {role: text for role, text in instructions.items() if text}


def _is_evaluation(logs: dict) -> bool:
    """Whether a log entry is that of an evaluation, and not of training."""
    return any(key.endswith("_runtime") and key != "train_runtime" for key in logs)


def _mean_of_numbers(values: list[float | torch.Tensor]) -> float:
    """The mean without NaN, which a batch gives where it has nothing to measure, such as no negative."""
    # those on a GPU are fetched together
    if any(isinstance(value, torch.Tensor) for value in values):
        device = next(value.device for value in values if isinstance(value, torch.Tensor))
        values = torch.stack([torch.as_tensor(value, dtype=torch.float32, device=device) for value in values]).tolist()

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

    # a share of all steps
    if 0 < decay < 1:
        decay = int(decay * steps)
        args.lr_scheduler_kwargs = {**args.lr_scheduler_kwargs, "num_decay_steps": decay}

    # transformers would let one run into the other
    warmup = args.get_warmup_steps(steps)
    if warmup + decay > steps:
        raise ValueError(
            f"{warmup} warm-up steps (warmup_steps) and {decay} decay steps (num_decay_steps of "
            f"lr_scheduler_kwargs) do not fit into {steps} steps; train longer, or lower one of them, which may also "
            "be a share below 1."
        )
