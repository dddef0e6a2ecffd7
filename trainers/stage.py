"""What the commands of the embedding stages share: arguments, loading a model, saving it whole."""

from dataclasses import dataclass, field

from ..data.readers import read_judged


@dataclass
class StageArguments:
    """What to train on, beside the recipe's training arguments and TRL's model arguments."""

    data: str = field(metadata={"help": "Training rows: a folder or file, see the stage."})
    image_root: str | None = field(
        default=None, metadata={"help": "Where image paths start; the data folder by default."}
    )
    subsets: list[str] | None = field(default=None, metadata={"help": "Subsets to use; all by default."})
    split: str = field(default="original", metadata={"help": "MMEB-train: original or diverse_instruction."})
    rows_per_subset: int | None = field(
        default=None, metadata={"help": "At most that many rows of each subset (papers: 50000)."}
    )
    preset: str | None = field(
        default=None, metadata={"help": "Prompt preset for a stock VLM (default: by its name, else summary)."}
    )


def load_model(path, preset: str | None = None, reranker: bool = False, **kwargs):
    """Loads a model in float32: a UniME checkpoint, a stock VLM, or an earlier stage's adapter, merged first."""
    from ..checkpoints import open_checkpoint

    model = open_checkpoint(
        path,
        preset,
        reranker,
        **{"dtype": "float32", **{key: value for key, value in kwargs.items() if value is not None}},
    )
    if model.processor.fusion == "sum":
        model.processor.fusion = "joint"  # training reads image and text in one prompt, and so will the trained model
    return model


def save_whole(trainer):
    """Saves the trained embedder to `output_dir`; an adapter is merged into it and kept in `adapter/`."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not hasattr(model, "merge_and_unload"):
        trainer.save_model()
    elif trainer.is_world_process_zero():
        model.save_pretrained(f"{trainer.args.output_dir}/adapter")
        merged = model.merge_and_unload()
        merged.processor = trainer.processing_class
        merged.save_pretrained(trainer.args.output_dir)


def read_judged_rows(stage: StageArguments, args):
    """Rows of UniME-V2's JSON layout."""
    return read_judged(stage.data, stage.image_root, stage.subsets, stage.rows_per_subset)


def run_command(trainer_class, config_class, read_rows, arguments=None, reranker: bool = False):
    """Reads a recipe and the command line, trains, and saves model, processor and remote code to `output_dir`.

    Args:
        trainer_class, config_class: of the stage.
        read_rows: maps [`StageArguments`] and the config to the training rows.
        arguments (`list[str]`, *optional*): the command line; `sys.argv` by default.
        reranker (`bool`): train a reranker, not an embedder.
    """
    from trl import ModelConfig, TrlParser, get_peft_config

    parser = TrlParser((StageArguments, config_class, ModelConfig))
    stage, args, options = parser.parse_args_and_config(arguments)
    if options.load_in_4bit or options.load_in_8bit:
        raise ValueError("this trainer does not train over quantised weights; drop load_in_4bit and load_in_8bit.")
    peft_config = get_peft_config(options)
    if peft_config is not None:
        peft_config.task_type = None  # an embedder is none of PEFT's tasks
    model = load_model(
        options.model_name_or_path, stage.preset, reranker, dtype=options.dtype,
        attn_implementation=options.attn_implementation, revision=options.model_revision,
    )  # fmt: skip
    trainer = trainer_class(model, args, train_dataset=read_rows(stage, args), peft_config=peft_config)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    save_whole(trainer)
