"""Stage 2 of UniME: hard-negative enhanced instruction tuning, and its in-batch baselines.

accelerate launch -m unime.trainers.contrastive --config recipes/shapes/contrastive.yaml
"""

from dataclasses import dataclass, field

from .embedding_trainer import EmbeddingConfig, EmbeddingTrainer
from .losses import HardNegativeInfoNCE
from .stage import read_training_rows, run_command
from .starting import dataset_names
from .temperatures import DatasetTemperatures, LearnTemperatures


@dataclass
class ContrastiveConfig(EmbeddingConfig):
    """Arguments of [`ContrastiveTrainer`]; the defaults are the paper's (2504.17432 section 4.1)."""

    temperature: float = field(default=0.02, metadata={"help": "Temperature of the softmax over similarities."})
    num_hard_negatives: int | None = field(
        default=8, metadata={"help": "Most similar in-batch candidates used as negatives; 0 uses all."}
    )
    false_negative_margin: float | None = field(
        default=0.1,
        metadata={"help": "Candidates more similar than the positive plus this are dropped; null: none."},
    )
    threshold: str = field(
        default="relative", metadata={"help": "relative: the margin is added to the positive's; absolute: it is not."}
    )
    shortage: str = field(
        default="mask", metadata={"help": "Fewer survivors than negatives: mask, duplicate (paper), or released."}
    )
    selection: str = field(default="hard", metadata={"help": "Which survivors are negatives: hard, random or easy."})
    symmetric: bool = field(default=False, metadata={"help": "Average with the loss from positives to queries."})
    hardness: float = field(default=0.0, metadata={"help": "Weight negatives by exp(hardness * similarity)."})
    learn_temperatures: bool = field(
        default=False, metadata={"help": "Learn a temperature for each data set, starting from `temperature`."}
    )
    temperature_learning_rate: float = field(default=1e-2, metadata={"help": "Adam's, for these logarithms."})


class ContrastiveTrainer(EmbeddingTrainer):
    """Trains an embedder with [`~unime.trainers.losses.HardNegativeInfoNCE`] over the batches of all ranks.

    Args:
        args, kwargs: as in [`~unime.trainers.embedding_trainer.EmbeddingTrainer`].

    Raises:
        ValueError: temperatures are to be learnt in fp16, or of a stream.

    Example:

    ```python
    rows = read_mmeb_train("MMEB-train")
    trainer = ContrastiveTrainer(model, ContrastiveConfig(output_dir="out"), train_dataset=rows)
    trainer.train()
    ```
    """

    config_class = ContrastiveConfig
    tells_rows_apart = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        args = self.args
        loss = HardNegativeInfoNCE(
            temperature=args.temperature,
            num_hard_negatives=args.num_hard_negatives or None,
            false_negative_margin=args.false_negative_margin,
            threshold=args.threshold,
            shortage=args.shortage,
            selection=args.selection,
            symmetric=args.symmetric,
            hardness=args.hardness,
        )
        self.loss = self.at_all_widths(loss)

        if args.learn_temperatures:
            self._learn_temperatures()

    def _learn_temperatures(self):
        """Makes a temperature for each data set, and lets a callback step them with the optimizer."""
        if self.args.fp16:
            raise ValueError("learn_temperatures does not go with fp16, whose gradients are scaled; take bf16.")

        names = dataset_names(self.train_dataset)
        if self.eval_dataset is not None:
            names.extend(dataset_names(self.eval_dataset))

        # a part of the loss module, whose parameters get their gradients from the gradient cache
        self.loss.temperatures = DatasetTemperatures(names, self.args.temperature)
        self.add_callback(LearnTemperatures(self.loss.temperatures, self.args.temperature_learning_rate))

    @classmethod
    def shortages(cls, args, rows, batch_candidates) -> list[str]:
        """Too few candidates for the hard negatives of a query: in a batch, or in a data set that fills one."""
        hardest = args.num_hard_negatives or 0
        if args.homogeneous_batches:
            return rows.with_fewer_candidates(hardest, "num_hard_negatives")

        # beside the positive of the query
        if batch_candidates - 1 < hardest:
            return [f"a batch has {batch_candidates} candidates, too few for num_hard_negatives {hardest}."]
        return []

    def loss_of(self, embeddings, table):
        """The loss of each row against the hardest candidates of the whole batch."""
        temperature = None
        if self.args.learn_temperatures:
            temperature = self.loss.temperatures(table.dataset)  # [B]
        seed = int(table.hashes.sum())  # of random selection, the same on all ranks
        return self.loss(
            embeddings,
            table.query,
            table.positive,
            table.negatives,
            temperature,
            seed,
            also_positive=table.also_positive,
            weight=table.weight,
        )

    def log(self, logs, start_time=None):
        """As in [`~unime.trainers.metered_trainer.MeteredTrainer`], with the learnt temperatures."""
        if self.args.learn_temperatures:
            logs.update(self.loss.temperatures.values())
        super().log(logs, start_time)


def main(arguments=None):
    """The command of this stage."""
    run_command(ContrastiveTrainer, ContrastiveConfig, read_training_rows, arguments)


if __name__ == "__main__":
    main()
