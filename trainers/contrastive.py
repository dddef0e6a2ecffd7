"""Stage 2 of UniME: hard-negative enhanced instruction tuning, and its in-batch baselines.

accelerate launch -m unime.trainers.contrastive --config recipes/shapes/contrastive.yaml
"""

from dataclasses import dataclass, field

from ..data.readers import read_mmeb_train
from .embedding_trainer import EmbeddingConfig, EmbeddingTrainer
from .losses import HardNegativeInfoNCE


@dataclass
class ContrastiveConfig(EmbeddingConfig):
    """Arguments of [`ContrastiveTrainer`]; the defaults are the paper's (2504.17432 section 4.1)."""

    temperature: float = field(default=0.02, metadata={"help": "Temperature of the softmax over similarities."})
    num_hard_negatives: int | None = field(
        default=8, metadata={"help": "Most similar in-batch candidates used as negatives; 0 uses all (plain InfoNCE)."}
    )
    false_negative_margin: float | None = field(
        default=0.1, metadata={"help": "Candidates more similar than the positive plus this margin are dropped."}
    )


class ContrastiveTrainer(EmbeddingTrainer):
    """Trains an embedder with [`~unime.trainers.losses.HardNegativeInfoNCE`] over the batches of all ranks.

    Example:

    ```python
    rows = read_mmeb_train("MMEB-train")
    trainer = ContrastiveTrainer(model, ContrastiveConfig(output_dir="out"), train_dataset=rows)
    trainer.train()
    ```
    """

    def __init__(self, model, args: ContrastiveConfig, **kwargs):
        super().__init__(model, args, **kwargs)
        self.loss = HardNegativeInfoNCE(args.temperature, args.num_hard_negatives or None, args.false_negative_margin)

    def loss_of(self, embeddings, table):
        return self.loss(embeddings, table.query, table.positive, table.negatives)


@dataclass
class DataArguments:
    """What to train on."""

    data: str = field(metadata={"help": "Folder in the layout of TIGER-Lab/MMEB-train."})
    image_root: str | None = field(
        default=None, metadata={"help": "Where image paths start; the data folder by default."}
    )
    subsets: list[str] | None = field(default=None, metadata={"help": "Subsets to use; all by default."})
    split: str = field(default="original", metadata={"help": "original or diverse_instruction."})
    rows_per_subset: int | None = field(
        default=None, metadata={"help": "At most that many rows of each subset (papers: 50000)."}
    )
    preset: str | None = field(default=None, metadata={"help": "Prompt preset for a stock VLM (default: summary)."})


def load_model(path, preset: str | None = None, **kwargs):
    """Loads an embedder in float32: a UniME checkpoint, a stock VLM, or an earlier stage's adapter, merged first."""
    from ..checkpoints import open_checkpoint

    model = open_checkpoint(
        path, preset, **{"dtype": "float32", **{key: value for key, value in kwargs.items() if value is not None}}
    )
    if model.processor.fusion == "sum":
        model.processor.fusion = "joint"  # stage 2 reads image and text in one prompt, and so will the trained model
    return model


def save_whole(trainer: ContrastiveTrainer):
    """Saves the trained embedder to `output_dir`; an adapter is merged into it and kept in `adapter/`."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not hasattr(model, "merge_and_unload"):
        trainer.save_model()
    elif trainer.is_world_process_zero():
        model.save_pretrained(f"{trainer.args.output_dir}/adapter")
        merged = model.merge_and_unload()
        merged.processor = trainer.processing_class
        merged.save_pretrained(trainer.args.output_dir)


def main(arguments=None):
    """Reads a recipe and the command line, trains, and saves model, processor and remote code to `output_dir`."""
    from trl import ModelConfig, TrlParser, get_peft_config

    parser = TrlParser((DataArguments, ContrastiveConfig, ModelConfig))
    data, args, options = parser.parse_args_and_config(arguments)
    if options.load_in_4bit or options.load_in_8bit:
        raise ValueError("this trainer does not train over quantised weights; drop load_in_4bit and load_in_8bit.")
    peft_config = get_peft_config(options)
    if peft_config is not None:
        peft_config.task_type = None  # an embedder is none of PEFT's tasks
    model = load_model(
        options.model_name_or_path, data.preset, dtype=options.dtype, attn_implementation=options.attn_implementation,
        revision=options.model_revision,
    )  # fmt: skip
    rows = read_mmeb_train(data.data, data.subsets, data.split, data.image_root, data.rows_per_subset)
    trainer = ContrastiveTrainer(model, args, train_dataset=rows, peft_config=peft_config)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    save_whole(trainer)


if __name__ == "__main__":
    main()
