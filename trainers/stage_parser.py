"""The command line of a stage: its own settings first, and the many of transformers behind `--help-all`."""

import argparse

from transformers import TrainingArguments
from trl import ModelConfig, TrlParser

from ..jobs.settings import CommandParser, HelpWithDefaults
from .arguments import StageArguments, check_recipe, setting_names

# of transformers' own settings, those that most trainings set
_USUAL = (
    "output_dir",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "warmup_steps",
    "lr_scheduler_type",
    "bf16",
    "logging_steps",
    "report_to",
    "eval_steps",
    "metric_for_best_model",
    "save_steps",
    "save_total_limit",
    "load_best_model_at_end",
    "seed",
    "use_cpu",
    "push_to_hub",
    "hub_model_id",
)


class StageParser(CommandParser, TrlParser):
    """TRL's parser, with the spellings and the one-line errors of every command.

    Args:
        config_class: dataclass of the stage's settings.
        program (`str`): the command as it is typed.
    """

    def __init__(self, config_class, program: str):
        self.config_class = config_class
        super().__init__(
            (StageArguments, config_class, ModelConfig),
            prog=program,
            usage="%(prog)s --config RECIPE.yaml [--setting value ...]",
            formatter_class=HelpWithDefaults,
        )
        self.add_argument(
            "--help-all",
            action=_HelpAll,
            nargs=0,
            default=argparse.SUPPRESS,  # it is no setting
            help="show all settings of transformers, too",
        )

    def add_argument(self, *names: str, **options):
        """As in `argparse`; of the two spellings that transformers names, both understood anyway, help shows one."""
        spellings = {}
        for name in names:
            spellings.setdefault(name.replace("_", "-"), name)
        return super().add_argument(*spellings.values(), **options)

    def set_defaults_with_config(self, **settings):
        """As in TRL, of settings whose values can be used."""
        try:
            check_recipe(self.dataclass_types, settings)
        except ValueError as error:
            self.error(str(error))
        return super().set_defaults_with_config(**settings)

    def parse_known_args(self, args=None, namespace=None):
        """As in `argparse`; rows to measure on are measured, and who stops early keeps the best."""
        settings, unknown = super().parse_known_args(args, namespace)
        measures = settings.eval_data or settings.holdout
        if measures and settings.eval_strategy == "no":
            settings.eval_strategy = "steps"
            settings.eval_steps = settings.eval_steps or 0.1  # a share of the training

        if settings.early_stopping and measures:
            settings.load_best_model_at_end = True
            settings.metric_for_best_model = settings.metric_for_best_model or "precision@1"
        return settings, unknown

    def format_help(self, everything: bool = False) -> str:
        """The settings by what they are about.

        Args:
            everything (`bool`, defaults to `False`): those of transformers that few trainings set, too.
        """
        inherited = setting_names(TrainingArguments)
        sections = {
            "what to train on": setting_names(StageArguments),
            "this stage": [name for name in setting_names(self.config_class) if name not in inherited],
            "the training": _USUAL,
            "the model and its adapter": setting_names(ModelConfig),
        }
        if everything:
            sections["all other settings of transformers' TrainingArguments"] = sorted(set(inherited) - set(_USUAL))
        sections["more"] = ["help", "help_all"]

        # a flag that is on has a second option, which puts it off
        options = {}
        for action in self._actions:
            options.setdefault(action.dest, action)

        formatter = self._get_formatter()
        formatter.add_usage(self.usage, [], [])
        for title, names in sections.items():
            formatter.start_section(title)
            formatter.add_arguments([options[name] for name in names if name in options])
            formatter.end_section()
        return formatter.format_help()


class _HelpAll(argparse.Action):
    """Prints the help with all settings, and ends the program."""

    def __call__(self, parser, namespace, values, option_string=None):
        print(parser.format_help(everything=True), end="")
        parser.exit()
