"""UniME-V2's stage: judgment-based distribution alignment (2510.13515).

accelerate launch -m unime.trainers.alignment --config recipes/unime-v2/alignment.yaml
"""

from dataclasses import dataclass, field

from .embedding_trainer import EmbeddingConfig, EmbeddingTrainer
from .losses import JudgeAlignment
from .stage import read_mined_rows, run_command


@dataclass
class AlignmentConfig(EmbeddingConfig):
    """Arguments of [`AlignmentTrainer`]; the defaults are the paper's (2510.13515 table 7)."""

    temperature: float = field(default=0.02, metadata={"help": "Temperature of the student's similarities."})
    judge_temperature: float | None = field(
        default=None, metadata={"help": "Temperature of the judge's scores; the student's by default."}
    )
    num_negatives: int = field(default=8, metadata={"help": "Mined negatives used of each row."})
    order: str = field(default="file", metadata={"help": "Which of them: the first of the file, or by judge score."})
    divergence: str = field(default="jeffreys", metadata={"help": "jeffreys, js, or released (1e-8 floor)."})
    unscored: str = field(
        default="drop", metadata={"help": "Rows without usable judge scores: drop, or released (1.0 for negatives)."}
    )
    in_batch_weight: float = field(
        default=0.0, metadata={"help": "Weight of an added InfoNCE against the candidates of the other rows."}
    )


class AlignmentTrainer(EmbeddingTrainer):
    """Trains an embedder with [`~unime.trainers.losses.JudgeAlignment`] on rows that carry judge scores.

    Args:
        args, kwargs: as in [`~unime.trainers.embedding_trainer.EmbeddingTrainer`].

    Example:

    ```python
    rows = read_judged("train_data_Qwen25VL_7B_scores.json", image_root="MMEB-train")
    trainer = AlignmentTrainer(model, AlignmentConfig(output_dir="out"), train_dataset=rows)
    trainer.train()
    ```
    """

    paper = "2510.13515"

    config_class = AlignmentConfig

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        args = self.args
        loss = JudgeAlignment(
            temperature=args.temperature,
            judge_temperature=args.judge_temperature,
            num_negatives=args.num_negatives,
            order=args.order,
            divergence=args.divergence,
            in_batch_weight=args.in_batch_weight,
            unscored=args.unscored,
        )
        self.loss = self.at_all_widths(loss)

    @classmethod
    def negatives_used(cls, args) -> int | None:
        """Negatives that the loss would not look at are not encoded; by score, all must be there to choose from."""
        return args.num_negatives if args.order == "file" else None

    @classmethod
    def shortages(cls, args, rows, batch_candidates) -> list[str]:
        """Data sets whose rows have fewer negatives than the loss takes."""
        return rows.with_fewer_negatives(args.num_negatives, "num_negatives")

    def loss_of(self, embeddings, table):
        """The loss of each row against its own negatives and their judge scores."""
        return self.loss(
            embeddings,
            table.query,
            table.positive,
            table.negatives,
            table.positive_score,
            table.negative_scores,
            table.also_positive,
            table.weight,
        )


def main(arguments=None):
    """The command of this stage."""
    run_command(AlignmentTrainer, AlignmentConfig, read_mined_rows, arguments)


if __name__ == "__main__":
    main()
