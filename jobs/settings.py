"""The command line of a program: options in either spelling, and settings from a YAML file and options."""

import argparse
import difflib
import inspect
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Union, get_args, get_origin, get_type_hints

import yaml

from .checks import check_setting, fits
from .notices import without_quiet


class CommandParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` for the commands of `unime`.

    It differs in four things: long options are understood with hyphens and with underscores, whichever of the two
    they were added with; abbreviations of them are not, since `--max_step` could mean anything next year; an error is
    one line that begins with the command and names its `--help`; and the description keeps its line breaks. Parsers of
    subcommands (`add_subparsers`) are of this class too.

    Args:
        prog (`str`): the command as it is typed, such as `"unime search"`.
        description (`str`): what `--help` prints above the options.
        options: further arguments of `argparse.ArgumentParser`.

    Example:

    ```python
    parser = CommandParser(prog="unime look", description="Looks at images.")
    parser.add_argument("--image-root", required=True, help="where image paths start")
    options = parser.parse_args(["--image_root", "photos"])  # options.image_root == "photos"
    ```
    """

    def __init__(self, *args, **options):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(*args, **options)

    def parse_known_args(self, args=None, namespace=None):
        """As `argparse` does it. `--quiet`, which every command takes, is acted on here where a launcher did not start
        `unime` itself but a module."""
        words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(without_quiet(words), namespace)

    def error(self, message: str):
        """Prints `message` behind the name of the command and exits with 2."""
        line = " ".join(message.split())  # the messages of YAML have several lines
        line += self._similar_options(message)
        self.exit(2, f"{self.prog}: {line} (see {self.prog} --help)\n")

    def _similar_options(self, message: str) -> str:
        """A question, if an option that is not understood looks like one that is."""
        _, _, words = message.partition("unrecognized arguments: ")
        questions = ""
        for word in words.split():
            name = word.partition("=")[0].replace("_", "-")
            spellings = [option.replace("_", "-") for option in self._option_string_actions]

            for similar in difflib.get_close_matches(name, spellings, n=1, cutoff=0.8):
                questions += f"; did you mean {similar}?"
        return questions

    def _parse_optional(self, arg_string: str):
        # every option on a command line passes here, in subcommands and groups of options too
        name, equals, value = arg_string.partition("=")
        if name.startswith("--"):
            arg_string = self._added_spelling(name) + equals + value
        return super()._parse_optional(arg_string)

    def _added_spelling(self, name: str) -> str:
        """The spelling an option was added with; an unknown name stays as it is."""
        if name in self._option_string_actions:
            return name
        spellings = {option.replace("_", "-"): option for option in self._option_string_actions}
        return spellings.get(name.replace("_", "-"), name)


class HelpWithDefaults(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Help that keeps line breaks and shows the default of each setting."""


def _add_settings(parser: CommandParser, config_class):
    """Adds an option for each field of a dataclass. `HfArgumentParser` would do it, but takes seconds to load."""
    hints = get_type_hints(config_class)
    for setting in fields(config_class):
        option = f"--{setting.name.replace('_', '-')}"
        default = setting.default if setting.default_factory is MISSING else setting.default_factory()

        # `least` is checked by the settings themselves, wherever they come from
        details = {name: value for name, value in setting.metadata.items() if name != "least"}
        details.update(dest=setting.name, default=default)

        # a flag may be followed by its value, and one that is on can be put off
        hint = _without_none(hints[setting.name])
        if hint is bool:
            parser.add_argument(option, type=_truth, nargs="?", const=True, **details)
            if default is True:
                parser.add_argument(f"--no-{option[2:]}", dest=setting.name, action="store_false", default=default)
        elif get_origin(hint) is list:
            parser.add_argument(option, type=get_args(hint)[0], nargs="+", **details)
        else:
            parser.add_argument(option, type=hint, **details)


def _without_none(hint):
    """The type that a text of the command line is made into: `int` of `int | None`, `str` of `dict | str`."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    kinds = [kind for kind in get_args(hint) if kind is not types.NoneType]
    return str if str in kinds else kinds[0]


def _truth(text: str) -> bool:
    """True or false, in the words that YAML and people have for them.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    word = text.lower()
    if word in ("true", "yes", "t", "y", "1"):
        return True
    if word in ("false", "no", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def parse_settings(program: str, config_class, steps, arguments: Sequence[str] | None = None):
    """Reads `STEP [--config FILE.yaml] [--setting value ...]`; the command line outranks the file.

    Every field of the dataclass is an option, in both spellings (`--image-root`, `--image_root`). A boolean field is a
    flag: `--partial` and `--partial true` are the same. A field's `metadata` may hold `help` and `choices`, which are
    checked on the command line and in the file. A mistake ends the program with a line on stderr and exit status 2.

    Args:
        program (`str`): the command as it is typed, such as `"unime eval"`.
        config_class: dataclass of the settings; a `ValueError` of its `__post_init__` is reported as a mistake.
        steps (`Sequence[str]` or `dict[str, str]`): what there is to do: names, or names with a line of explanation
            each.
        arguments (`Sequence[str]`, *optional*): the command line, by default that of the process.

    Returns:
        `(step, config)`: one of `steps` and an instance of `config_class`.

    Example:

    ```python
    step, config = parse_settings("unime mine", MiningConfig, ("run", "select"), ["run", "--config", "recipe.yaml"])
    ```
    """
    # the file is read first: its settings are the defaults of the options
    config_parser = CommandParser(prog=program, add_help=False)
    config_parser.add_argument("--config", help="YAML file of the settings below")
    parser = CommandParser(
        parents=[config_parser],
        prog=program,
        description=inspect.getdoc(config_class),
        formatter_class=HelpWithDefaults,
    )
    _add_settings(parser, config_class)
    parser.add_argument("step", choices=list(steps), help=_explain(steps))

    # a mistake in the file is reported like one on the command line
    path = config_parser.parse_known_args(arguments)[0].config
    if path:
        try:
            parser.set_defaults(**_read_config(path, config_class))
        except ValueError as error:
            parser.error(str(error))

    values = vars(parser.parse_args(arguments))
    step = values.pop("step")
    values.pop("config")
    try:
        return step, config_class(**values)
    except ValueError as error:
        parser.error(str(error))


def given_settings(arguments: Sequence[str] | None = None) -> dict[str, str]:
    """Where each setting of a command line was given: `"recipe"` or `"command line"`, which outranks it.

    Args:
        arguments (`Sequence[str]`, *optional*): the command line, by default that of the process.

    Example:

    ```python
    given_settings(["--config", "recipe.yaml", "--max-length", "512"])  # {"data": "recipe", "max_length": ...}
    ```
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    path = parser.parse_known_args(arguments)[0].config

    origins = {}
    if path:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        origins.update(dict.fromkeys(settings, "recipe"))

    # second, as what is typed outranks the file
    for argument in arguments:
        if argument.startswith("--"):
            name = argument[2:].partition("=")[0].replace("-", "_")
            origins[name] = "command line"
    return origins


def _explain(steps) -> str:
    """What the help says of the steps."""
    if not isinstance(steps, Mapping):
        return "what to do"
    return "; ".join(f"{name}: {text}" for name, text in steps.items())


def _read_config(path: str, config_class) -> dict:
    """The settings of a YAML file, whose names and choices are checked."""
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise ValueError(f"the recipe {path} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"the recipe {path} must hold `setting: value` lines, got {str(settings)[:60]!r}.")

    # a mistyped name would otherwise be a setting that does nothing
    unknown = sorted(map(str, settings.keys() - config_class.__dataclass_fields__.keys()))
    if unknown:
        raise ValueError(f"{path} has unknown settings {unknown}")

    hints = get_type_hints(config_class)
    for field in fields(config_class):
        if field.name not in settings:
            continue

        # YAML takes `name: 2026` for a number
        hint = hints[field.name]
        value = settings[field.name]
        if fits(value, float) and fits("", hint) and not fits(value, hint):
            settings[field.name] = str(value)
        check_recipe_value(path, field, settings[field.name], hint)
    return settings


def check_recipe_value(path: str, field, value, hint):
    """Refuses a value of a recipe that is not among the choices, or is not of the setting's type.

    Args:
        path (`str`): of the recipe, for the message.
        field (`dataclasses.Field`), hint: the setting and its type.
        value: as YAML has it.

    Raises:
        ValueError: it cannot be the setting's value; the message names recipe and setting.
    """
    # argparse checks the choices of what is typed, but not those of defaults
    choices = field.metadata.get("choices")
    if choices and value != field.default and value not in choices:
        allowed = ", ".join(map(str, choices))
        raise ValueError(f"{path}: `{field.name}` is {value!r}; choose from {allowed}.")

    # argparse reads numbers and truths from texts
    if isinstance(value, str) and any(fits(probe, hint) for probe in (0, True)):
        return

    try:
        check_setting(field, value, hint)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
