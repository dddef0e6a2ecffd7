"""What the command of every stage takes, beside training arguments and TRL's model arguments."""

from dataclasses import dataclass, field, fields
from typing import get_type_hints

from ..jobs.settings import check_recipe_value


def setting_names(settings) -> list[str]:
    """The names of all settings of a dataclass, or of an object of one, in their order."""
    return [setting.name for setting in fields(settings)]


@dataclass
class StageArguments:
    """What to train on, beside the recipe's training arguments and TRL's model arguments."""

    data: str = field(
        metadata={"help": "Training rows: a file, a folder, or a data set of the Hub (owner/name[:config][:split])."}
    )
    image_root: str | None = field(
        default=None, metadata={"help": "Where image paths start; the data folder by default."}
    )
    columns: list[str] | None = field(
        default=None,
        metadata={"help": "Which columns to take for what (query=caption positive=image); recognised by default."},
    )
    allow_urls: bool = field(
        default=False, metadata={"help": "Fetch images that rows name by https:// addresses (public ones)."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read rows as they are needed, and write no picture to the disk (max_steps)."}
    )
    subsets: list[str] | None = field(default=None, metadata={"help": "Subsets to use; all by default."})
    split: str = field(default="original", metadata={"help": "MMEB-train: original or diverse_instruction."})
    rows_per_subset: int | None = field(
        default=None, metadata={"help": "At most that many rows of each subset (papers: 50000)."}
    )
    preset: str | None = field(
        default=None,
        metadata={"help": "Preset by which items are read (default: the checkpoint's own, or by a stock VLM's name)."},
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the code of the model's repository; read it first."}
    )
    eval_data: str | None = field(
        default=None, metadata={"help": "Rows that the model is measured on while it trains, in any layout of `data`."}
    )
    holdout: int = field(
        default=0, metadata={"help": "In place of eval_data: so many rows of each data set are kept to measure on."}
    )
    early_stopping: int | None = field(
        default=None,
        metadata={
            "help": "Stop when so many measurements in a row were no better by metric_for_best_model (precision@1 by "
            "default), and keep the best model."
        },
    )
    fresh: bool = field(
        default=False,
        metadata={"help": "Start anew; without it, a training goes on from the last checkpoint in output_dir."},
    )
    rehearse: bool = field(
        default=False,
        metadata={"help": "Print what would be done, from configuration, tokenizer and processor alone, and end."},
    )
    rehearse_json: str | None = field(default=None, metadata={"help": "Rehearse, and write it to this file as JSON."})
    rehearse_processes: int | None = field(
        default=None, metadata={"help": "Processes of the launch that is rehearsed; those of this one by default."}
    )
    lora_components: list[str] = field(
        default_factory=lambda: ["language_model"],
        metadata={"help": "What gets an adapter: language_model, vision_tower, projector."},
    )
    init_lora_weights: str = field(
        default="kaiming", metadata={"help": "How an adapter starts: kaiming (PEFT's own start), or gaussian."}
    )


def check_recipe(config_classes, settings: dict):
    """Refuses values of a recipe that are not of their settings' types.

    Args:
        config_classes: dataclasses of settings.
        settings (`dict`): as YAML has them.

    Raises:
        ValueError: a list or an object where one value is due, or the other way round; the message names the setting.
    """
    for config_class in config_classes:
        hints = get_type_hints(config_class)
        for setting in fields(config_class):
            # a text is what the command line has, too, and read as such
            value = settings.get(setting.name)
            if value is not None and not isinstance(value, str):
                check_recipe_value("the recipe", setting, value, hints[setting.name])
