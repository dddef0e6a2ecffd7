"""Settings of a command: a dataclass, filled from a YAML file and the command line."""

import argparse
import sys
from pathlib import Path

import yaml
from transformers import HfArgumentParser


def parse_settings(program: str, config_class, steps, arguments=None):
    """Reads `STEP [--config FILE.yaml] [--setting value ...]`; the command line outranks the file.

    Args:
        program (`str`): the command, for messages.
        config_class: dataclass of the settings.
        steps: what there is to do: names, or names with a line of explanation each.

    Returns:
        `(step, config)`.
    """
    said = "; ".join(f"{name}: {text}" for name, text in steps.items()) if isinstance(steps, dict) else "what to do"
    known = argparse.ArgumentParser(prog=program, add_help=False)
    known.add_argument("step", choices=list(steps), help=said)
    known.add_argument("--config", help="YAML file of the settings below")
    parser = HfArgumentParser(config_class, parents=[known], prog=program, description=config_class.__doc__)
    if not {"-h", "--help"} & set(sys.argv[1:] if arguments is None else arguments):
        first, _ = known.parse_known_args(arguments)
        if first.config:
            try:
                settings = yaml.safe_load(Path(first.config).read_text(encoding="utf-8")) or {}
            except (OSError, yaml.YAMLError) as error:
                parser.error(f"the recipe {first.config} cannot be read: {error}")
            if unknown := sorted(settings.keys() - config_class.__dataclass_fields__.keys()):
                parser.error(f"{first.config} has unknown settings {unknown}")
            parser.set_defaults(**settings)
    config, chosen = parser.parse_args_into_dataclasses(arguments)
    return chosen.step, config
