"""What the embedding stages share: the batch as a table, the gradient cache, one global loss over all ranks."""

import warnings
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from ..data.collators import Batch, EmbeddingCollator
from ..data.samplers import HomogeneousSampler
from .adapters import adapted
from .gathered_table import GatheredTable
from .gradient_cache import cached_loss
from .losses import LossOutput, MatryoshkaLoss
from .metered_trainer import MeteredTrainer
from .sharding import in_lockstep


@dataclass
class EmbeddingConfig(TrainingArguments):
    """Arguments of every embedding stage, beside those of `TrainingArguments`.

    NOTE: `remove_unused_columns` is always off, and these defaults differ: `learning_rate` 1e-4, `logging_steps` 10,
    `warmup_steps` 0.1 (a share), `bf16` where it is faster, `ddp_find_unused_parameters`
    on (a chunk without images leaves the vision tower idle).
    """

    learning_rate: float = field(default=1e-4, metadata={"help": "Initial learning rate."})
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up steps, or a share of all steps if below 1."})
    ddp_find_unused_parameters: bool | None = field(default=True, metadata={"help": "See torch's DDP."})
    batch_tokens: int = field(
        default=8192, metadata={"help": "Most padded tokens of one chunk: bounds the memory of a step."}
    )
    token_budget: int | None = field(default=None, metadata={"help": "Earlier name of batch_tokens."})
    graph_tokens: int = field(
        default=0,
        metadata={"help": "Padded tokens whose graphs are kept instead of being run again: more memory, less time."},
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Cut texts so that items have at most that many tokens."}
    )
    resolution: str | None = field(
        default=None, metadata={"help": "Resolution policy of training images; the processor's by default."}
    )
    matryoshka_dims: list[int] | None = field(
        default=None, metadata={"help": "Train these prefixes of the embedding too (the full width must be named)."}
    )
    homogeneous_batches: bool = field(default=True, metadata={"help": "Fill each batch from one data set."})
    bf16: bool | None = field(
        default=None, metadata={"help": "bfloat16 mixed precision; by default where it is faster."}
    )
    dataloader_pin_memory: bool = field(default_factory=torch.cuda.is_available, metadata={"help": "Pin host memory."})

    def __post_init__(self):
        if self.token_budget is not None:
            warnings.warn("`token_budget` is now called `batch_tokens`.", FutureWarning, stacklevel=3)
            self.batch_tokens, self.token_budget = self.token_budget, None
        self.remove_unused_columns = False
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        if self.bf16 is None:
            self.bf16 = fast_bf16() and not self.fp16
        super().__post_init__()


def fast_bf16() -> bool:
    """Whether bfloat16 matrix products are faster than float32 ones here: on a recent GPU, or on a CPU with AMX."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported()


class EmbeddingTrainer(MeteredTrainer):
    """Base of the embedding trainers; a subclass has a `loss` and says how it is taken over the gathered table.

    Args:
        model (`UniMEModel`, possibly wrapped by PEFT): the embedder.
        args (`EmbeddingConfig`), train_dataset, eval_dataset: as in `Trainer`; rows have the columns of
            [`~unime.data.schema.Example`].
        processing_class (`UniMEProcessor`, *optional*): the model's own by default.
        peft_config (`peft.PeftConfig`, *optional*): wrap the model in an adapter.
        max_negatives (`int`, *optional*): encode only the first explicit negatives of each row.
    """

    def __init__(
        self,
        model,
        args,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        peft_config=None,
        max_negatives=None,
        **kwargs,
    ):
        if args.n_gpu > 1:
            raise ValueError(
                "several GPUs in one process are not supported: start with `accelerate launch`, one process a GPU."
            )
        processor = processing_class or model.processor
        model = adapted(model, peft_config, args.seed)
        collator = kwargs.pop("data_collator", None) or EmbeddingCollator(
            processor, args.batch_tokens, args.max_length, max_negatives, model.config.length_boundary, args.resolution
        )
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processor,
            **kwargs,
        )

    def at_all_widths(self, loss):
        """The loss, or its mean over the Matryoshka widths of the recipe."""
        return MatryoshkaLoss(loss, self.args.matryoshka_dims) if self.args.matryoshka_dims else loss

    def loss_of(self, embeddings: torch.Tensor, table: "GatheredTable") -> LossOutput:
        """The loss over all ranks' rows; `embeddings` `[T, D]` is the gathered table."""
        raise NotImplementedError(f"{type(self).__name__} must define `loss_of`.")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        batch: Batch = inputs["batch"]
        device, results = self.args.device, []
        table = GatheredTable(batch, device)
        chunks, order = self._chunks(batch)
        real = torch.tensor([row for row, item in enumerate(order) if item is not None], device=device)
        items = torch.tensor([item for item in order if item is not None], device=device)

        def whole_loss(encoded):  # [t, D] in the order of the chunks
            local = torch.empty_like(encoded[: len(items)]).index_copy(0, items, encoded[real])
            results.append(self.loss_of(table.gather(local), table))
            return results[-1].loss

        loss = cached_loss(
            model,
            self.accelerator.unwrap_model(model),
            chunks,
            whole_loss,
            device,
            gradient_scale=table.world_size,
            graph_tokens=self.args.graph_tokens,
            autocast=self.accelerator.autocast,
            lockstep=self.is_deepspeed_enabled,
            parameters=list(self.loss.parameters()),
        )
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss is {loss.item()} after step {self.state.global_step}, on {sorted(set(batch.dataset))}."
            )
        self._record("train" if model.training else "eval", results[-1].metrics, batch)
        if model.training:
            self.count(len(batch.hashes), batch.tokens)
        return (loss, {}) if return_outputs else loss

    def _chunks(self, batch: Batch) -> tuple[list[dict], list[int | None]]:
        """The chunks to run, and the table index of each row in them; None for what only keeps ranks in step."""
        order = iter(batch.order.tolist())
        chunks = [(tensors, [next(order) for _ in tensors["input_ids"]]) for tensors in batch.chunks]
        if self.is_deepspeed_enabled:
            chunks = in_lockstep(
                chunks,
                has_images=lambda chunk: "pixel_values" in chunk[0],
                spare=lambda with_image: (self.spare_inputs(with_image), [None]),
                device=self.args.device,
            )
        return [tensors for tensors, _ in chunks], [item for _, items in chunks for item in items]

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None

    def _record(self, mode: str, metrics: dict, batch: Batch):
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)
        self._metrics[mode]["distinct_items"].append(len(batch.hashes))
        self._metrics[mode]["padded_share"].append(1 - batch.tokens / batch.padded_tokens)

    def _get_train_sampler(self, train_dataset=None):
        train_dataset = train_dataset if train_dataset is not None else self.train_dataset
        if not self.args.homogeneous_batches:
            return super()._get_train_sampler(train_dataset)
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        block = self._train_batch_size * self.args.world_size
        return HomogeneousSampler(train_dataset["dataset"], block, seed)
