"""What the embedding stages share: the batch as a table, the gradient cache, one global loss over all ranks.

A stage is a subclass of [`EmbeddingTrainer`] with a `loss` module and a `loss_of` that applies it to the table.
"""

import sys
from dataclasses import dataclass, field

import torch
from torch import nn

from ..data.collators import Batch, EmbeddingCollator
from ..data.schema import content_hash
from .adapters import adapted
from .gathered_table import GatheredTable
from .gradient_cache import ChunkEncoder, cached_loss
from .left_out import refuse_empty
from .losses import LossOutput, MatryoshkaLoss
from .measures import UNNAMED, RetrievalMeasures
from .metered_trainer import MeteredTrainer
from .row_counts import RowCounts
from .sharding import in_lockstep
from .stage_config import StageConfig


@dataclass
class EmbeddingConfig(StageConfig):
    """Arguments of every embedding stage, beside those of [`~unime.trainers.stage_config.StageConfig`].

    Args:
        document_instruction (`str`, *optional*): as `query_instruction`, of positives and negatives.
        graph_tokens (`int`, defaults to 0): padded tokens whose graphs are kept instead of being run again; see
            [`~unime.trainers.gradient_cache.cached_loss`].
        feature_tokens (`int`, defaults to 65,536): image tokens whose features of a frozen vision tower are kept
            between the two passes; those of further images are computed again.
        matryoshka_dims (`list[int]`, *optional*): widths of the prefixes that are trained too; the full width must be
            among them.
        benchmark (`str`, *optional*, defaults to `"mmeb"`): word the rows as the preset does on this kind of benchmark
            (`"mmeb"`, `"retrieval"` or `"sugarcrepe"`); with None, as `encode` does.
    """

    document_instruction: str | None = field(
        default=None,
        metadata={"help": "Put before candidates that come without an instruction, and saved with the model."},
    )
    graph_tokens: int = field(
        default=0,
        metadata={"help": "Padded tokens whose graphs are kept instead of being run again: more memory, less time."},
    )
    feature_tokens: int = field(
        default=65_536,
        metadata={"help": "Image tokens whose features of a frozen tower are kept: more memory, less time."},
    )
    matryoshka_dims: list[int] | None = field(
        default=None, metadata={"help": "Train these prefixes of the embedding too (the full width must be named)."}
    )
    benchmark: str | None = field(
        default="mmeb",
        metadata={"help": "Word rows as the preset does on this kind of benchmark: mmeb, retrieval, sugarcrepe."},
    )


class EmbeddingTrainer(MeteredTrainer):
    """Base of the embedding trainers: a subclass sets `self.loss` and defines [`loss_of`].

    Every item of a batch is encoded once, in chunks of bounded size, and the loss is taken over the items of all ranks
    ([`~unime.trainers.gradient_cache.cached_loss`]).

    Args:
        model (`UniMEModel`, possibly wrapped by PEFT, or a name): the embedder.
        args (`EmbeddingConfig`), train_dataset, eval_dataset: as in `Trainer`; rows have the columns of
            [`~unime.data.schema.Example`].
        compute_metrics (*optional*): gets the `predictions` `(queries [N, D], positives [N, D])`, and as `label_ids`
            `[N]` a number of the positive, equal for equal positives; in one process.
        kwargs: as in [`~unime.trainers.metered_trainer.MeteredTrainer`].

    Example:

    ```python
    class MyTrainer(EmbeddingTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.loss = self.at_all_widths(HardNegativeInfoNCE())

        def loss_of(self, embeddings, table):
            return self.loss(embeddings, table.query, table.positive, table.negatives)
    ```
    """

    config_class = EmbeddingConfig
    trains_images = True  # a stage for texts alone leaves open how the model reads images with texts

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        processor = self.processing_class
        self._measures = RetrievalMeasures()  # of the evaluation that is running
        self._names: dict[int, str] = {}  # of the data sets that were met, by the hashes of their names

        # the processor is saved with the model, which will be used as it reads now
        was_sum = processor.fusion == "sum"
        self.keep_reading(self.args, processor)
        if was_sum and processor.fusion == "joint" and self.is_world_process_zero():
            print(
                f"{type(self).__name__}: image and text of an item are trained in one prompt, and the model will read "
                f"them so (fusion: joint); the preset {processor.preset!r} would add up two embeddings.",
                file=sys.stderr,
            )

    @classmethod
    def check_metrics(cls, args, compute_metrics):
        """Refuses `compute_metrics` on several processes, whose rows are not shared out evenly."""
        if compute_metrics is not None and args.world_size > 1:
            super().check_metrics(args, compute_metrics)

    @classmethod
    def keep_reading(cls, args, processor):
        """Lets the trained model read items as it is trained to: in which wordings, and image and text in one prompt.

        A model that was trained with a preset's usual prompts alone has no other wording for any benchmark.

        Args:
            args: of the training.
            processor (`UniMEProcessor`): of the model.
        """
        processor.benchmarks = []
        if args.benchmark:
            processor.benchmarks = list(processor.rules.benchmarks)

        if cls.trains_images:
            processor.fusion = "joint"

    @classmethod
    def made_trainable(cls, model, args, peft_config):
        """The model in its adapter, if it gets one, with what the stage does not train frozen.

        Args:
            model, args, peft_config: as in [`EmbeddingTrainer`].
        """
        return adapted(model, peft_config, args.seed)

    @classmethod
    def collator_for(cls, model, args, processor) -> EmbeddingCollator:
        """What makes batches of the rows.

        Args:
            model, args: as in [`EmbeddingTrainer`].
            processor (`UniMEProcessor`): that reads the items.
        """
        return EmbeddingCollator(
            processor,
            batch_tokens=args.batch_tokens,
            max_length=args.max_length,
            max_negatives=cls.negatives_used(args),
            length_boundary=model.config.length_boundary,
            resolution=args.resolution,
            benchmark=args.benchmark,
        )

    @classmethod
    def negatives_used(cls, args) -> int | None:
        """How many explicit negatives of each row are encoded, the first ones; `None` for all."""
        return None

    @classmethod
    def shortages(cls, args, rows: RowCounts, batch_candidates: int) -> list[str]:
        """What the loss would not have enough of, a message each.

        Args:
            args: of the training.
            rows ([`~unime.trainers.row_counts.RowCounts`]): what the data sets hold.
            batch_candidates (`int`): distinct candidates of one batch of all processes.
        """
        return []

    def at_all_widths(self, loss: nn.Module) -> nn.Module:
        """The loss, or its mean over the widths of `args.matryoshka_dims` where these are set."""
        if not self.args.matryoshka_dims:
            return loss
        return MatryoshkaLoss(loss, self.args.matryoshka_dims)

    def loss_of(self, embeddings: torch.Tensor, table: GatheredTable) -> LossOutput:
        """The loss over all ranks' rows. A subclass defines it.

        Args:
            embeddings (`Tensor` `[T, D]`): of the items of all ranks.
            table (`GatheredTable`): says which of them are queries, positives and negatives.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `loss_of`.")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss over the batches of all ranks; its `backward()` runs step 3 of the gradient cache."""
        batch: Batch = inputs["batch"]
        bad_items = self.leave_out(batch.bad_items)
        device = self.args.device
        table = GatheredTable(batch, device)
        self._names.update((content_hash(name), name) for name in batch.dataset)
        refuse_empty(len(table.query), bad_items)

        # embeddings come in the order of the chunks, and some of them may count for nothing
        chunks, order = self._chunks(batch)
        rows = torch.nonzero(order >= 0).squeeze(1).to(device)  # [t]
        items = order[order >= 0].to(device)  # [t]

        def loss_over_all_ranks(encoded: torch.Tensor) -> LossOutput:
            # on all ranks, no row of this step could be read; the cache still asks for the gradient of each parameter
            if len(table.query) == 0:
                parameters = [parameter.sum() for parameter in self.loss.parameters()]
                return LossOutput(0.0 * sum([encoded.sum(), *parameters]), {})

            embeddings = torch.empty_like(encoded[: len(items)]).index_copy(0, items, encoded[rows])  # [t, D]
            everything = table.gather(embeddings)  # [T, D]
            if not model.training:
                self._measures.add(table, everything, self._names)
            output = self.loss_of(everything, table)
            return LossOutput(output.loss, output.metrics, embeddings.detach(), output.row_losses)

        encoder = ChunkEncoder(model, device, self.accelerator.autocast, lockstep=self.in_lockstep)
        output = cached_loss(
            encoder,
            chunks,
            loss_over_all_ranks,
            gradient_scale=table.world_size,  # DDP averages over ranks, and each has the gradient of its slice only
            graph_tokens=self.args.graph_tokens,
            parameters=list(self.loss.parameters()),
            feature_tokens=self.args.feature_tokens,
        )

        # it is the same on all ranks, so that all of them stop
        if not torch.isfinite(output.loss):
            raise ValueError(
                f"the loss is {output.loss.item()} after step {self.state.global_step}, on "
                f"{sorted(set(batch.dataset))}."
            )

        self._record("train" if model.training else "eval", output, table, batch)
        if model.training:
            self.count(len(batch.hashes), batch.tokens)
        return (output.loss, {"embeddings": output.embeddings}) if return_outputs else output.loss

    def _chunks(self, batch: Batch) -> tuple[list[dict], torch.Tensor]:
        """The chunks to run, and for each row of them its index in the table, -1 where it counts for nothing."""
        if not self.in_lockstep:
            if batch.chunks:
                return batch.chunks, batch.order
            return [self.spare_inputs(with_image=False)], torch.tensor([-1])  # other ranks wait for a forward

        # each chunk with the indices of its rows, and small ones where other ranks run more
        sizes = [len(tensors["input_ids"]) for tensors in batch.chunks]
        chunks = list(zip(batch.chunks, batch.order.split(sizes)))
        chunks = in_lockstep(
            chunks,
            has_images=lambda chunk: not {"pixel_values", "pixel_values_videos"}.isdisjoint(chunk[0]),
            spare=lambda with_image: (self.spare_inputs(with_image), torch.tensor([-1])),
            device=self.args.device,
        )
        tensors, indices = zip(*chunks)
        return list(tensors), torch.cat(indices)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss of an evaluation batch, and the embeddings of its queries and positives."""
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        batch: Batch = inputs["batch"]
        if prediction_loss_only or self.args.world_size > 1 or len(batch.query) == 0:
            return loss.detach(), None, None

        embeddings = outputs["embeddings"]  # [T, D]
        predictions = (embeddings[batch.query], embeddings[batch.positive])  # [B, D] each
        return loss.detach(), predictions, batch.hashes[batch.positive].to(embeddings.device)

    def evaluation_loop(self, dataloader, description, *args, metric_key_prefix="eval", **kwargs):
        """As in `Trainer`, with the measures of retrieval over these rows: see
        [`~unime.trainers.measures.RetrievalMeasures`]."""
        self._measures = RetrievalMeasures()
        output = super().evaluation_loop(dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        for name, value in self._measures.results().items():
            output.metrics[f"{metric_key_prefix}_{name}"] = value
        return output

    def _record(self, mode: str, output: LossOutput, table: GatheredTable, batch: Batch):
        """Notes the figures of a batch for the next log entry; `mode` is `"train"` or `"eval"`."""
        metrics = self._metrics[mode]
        for name, value in output.metrics.items():
            metrics[name].append(value)
        for name, value in self._loss_by_dataset(output, table).items():
            metrics[f"loss/{name}"].append(value)
        metrics["distinct_items"].append(len(batch.hashes))

        # there is no share of a batch of which nothing could be read
        if batch.padded_tokens:
            metrics["padded_share"].append(1 - batch.tokens / batch.padded_tokens)

    def _loss_by_dataset(self, output: LossOutput, table: GatheredTable) -> dict[str, torch.Tensor]:
        """The loss of each data set in a batch, as far as the loss tells: of one data set it is that of the batch."""
        present = [number for number in self._names if bool((table.dataset == number).any())]
        if output.row_losses is None:
            if len(present) != 1:
                return {}
            return {self._names[present[0]] or UNNAMED: output.loss.detach()}

        # a loss of each row can be shared out
        losses = {}
        for number in present:
            losses[self._names[number] or UNNAMED] = output.row_losses[table.dataset == number].mean()
        return losses
