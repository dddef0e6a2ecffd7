"""Presets of one's own: read from YAML or JSON with errors that name key and file, and saved beside a model."""

import difflib
import os
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from types import NoneType, UnionType
from typing import Union, get_args, get_origin, get_type_hints

import yaml

from .images_unime import Resolution
from .pooling_unime import ATTENTIONS, POOLINGS
from .preset_unime import BENCHMARKS, Preset, Prompts

SUFFIXES = (".yaml", ".yml", ".json")
_CHOICES = {
    "fusion": ("joint", "sum"),
    "pooling": POOLINGS,
    "attention": ATTENTIONS,
    "positions": ("native", "flat"),
    "padding_side": ("left", "right"),
    "anyres_padding": ("even", "legacy"),
    "video": ("tokens", "frames"),
    "instruction.place": ("text", "turn", "slot", "system", "none"),
    "judging.output": ("probability", "logit"),
}
_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
_HINTS = get_type_hints(Preset)
_EXTENDS = "extends"  # the preset of the table that the file starts from
_PROMPTS = "prompts"  # of queries and documents alike


def is_preset_file(preset) -> bool:
    """Whether what was given for a preset is a file of one's own, and not a name."""
    return isinstance(preset, os.PathLike) or (isinstance(preset, str) and preset.endswith(SUFFIXES))


def read_preset(path, presets: Mapping[str, Preset]) -> Preset:
    """A preset from a file.

    Its keys are the arguments of [`~unime.preset_unime.Preset`]; `prompts` stands for `query` and `document` where
    they are alike, and `extends` names a preset of the table, which is taken where the file says nothing.

    Args:
        path (`str` or path): a YAML or JSON file.
        presets (`Mapping`): the table.

    Returns:
        [`Preset`], named after the file.

    Raises:
        ValueError: the file cannot be read, or a key or value is not one of a preset; the message names both.

    Example:

    ```yaml
    extends: summary
    prompts: {text: "{text}", image: "{image}", both: "{image}{text}"}
    instruction: {place: system, default: "Represent the user's input."}
    pooling: mean
    ```
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"the preset {path} cannot be read: {' '.join(str(error).split())}") from error
    name = os.path.splitext(os.path.basename(path))[0]
    return preset_from(content, presets, name, str(path))


def preset_from(content, presets: Mapping[str, Preset], name: str, where: str) -> Preset:
    """A preset from what a file holds.

    Args:
        content: of the file.
        presets (`Mapping`): the table.
        name (`str`): of the new preset.
        where (`str`): the file, for messages.

    Raises:
        ValueError: as [`read_preset`].
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} holds no settings of a preset, but {_shown(content)}.")
    content = dict(content)

    base = {}
    if _EXTENDS in content:
        extended = content.pop(_EXTENDS)
        if not isinstance(extended, str) or extended not in presets:
            raise ValueError(f"{where}: extends: there is no preset {extended!r}; there are {', '.join(presets)}.")
        base = vars(presets[extended])
    if _PROMPTS in content:
        prompts = content.pop(_PROMPTS)
        content = {"query": prompts, "document": prompts, **content}

    values = dict(base)
    for key, value in content.items():
        if key not in _HINTS or key == "name":
            raise ValueError(f"{where}: there is no setting {key!r} of a preset{_nearest(key, _HINTS)}.")
        values[key] = _typed(value, _HINTS[key], key, where)
    for key in ("query", "document"):
        if key not in values:
            raise ValueError(f"{where}: {key} is missing: its prompts by kind of item, text, image and both.")

    preset = replace(Preset(**values), name=name)
    _check(preset, presets, where)
    return preset


def preset_content(preset: Preset) -> dict:
    """A preset as JSON: what [`preset_from`] makes the same preset of."""
    content = {}
    for entry in fields(preset):
        value = getattr(preset, entry.name)
        default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
        if value != default and entry.name != "name":
            content[entry.name] = _plain(value)
    return content


def _plain(value):
    """A value as JSON has it."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {key: _plain(entry) for key, entry in value._asdict().items()}
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value


def _typed(value, hint, key: str, where: str):
    """A value of a file as the preset's type has it."""
    if get_origin(hint) in (Union, UnionType):
        return _one_of_types(value, get_args(hint), key, where)
    if get_origin(hint) is tuple:
        return _list(value, get_args(hint), key, where)
    if hasattr(hint, "_fields"):
        return _section(value, hint, key, where)
    if isinstance(get_origin(hint), type) and issubclass(get_origin(hint), Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: {key} must be an object, not {_shown(value)}.")
        return {name: _typed(entry, str, f"{key}.{name}", where) for name, entry in value.items()}

    # true and false count as numbers in Python, but nobody means them
    takes = (int, float) if hint is float else hint
    if not isinstance(value, takes) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where}: {key} must be {_WORDS[hint]}, not {_shown(value)}.")
    return value


def _one_of_types(value, hints: tuple, key: str, where: str):
    """A value that may be of several types."""
    if value is None and NoneType in hints:
        return None

    errors = []
    for hint in hints:
        if hint is NoneType:
            continue
        try:
            return _typed(value, hint, key, where)
        except ValueError as error:
            errors.append(error)
    raise errors[-1]


def _list(value, hints: tuple, key: str, where: str) -> tuple:
    """A value that is a list, of any length or of as many entries as it has types."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{where}: {key} must be a list, not {_shown(value)}.")
    if hints[-1] is Ellipsis:
        hints = hints[:1] * len(value)
    if len(value) != len(hints):
        raise ValueError(f"{where}: {key} must have {len(hints)} entries, not {len(value)}.")
    return tuple(_typed(entry, hint, key, where) for entry, hint in zip(value, hints))


def _section(value, kind, key: str, where: str):
    """A value that has settings of its own: prompts, an instruction, a judge's question."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: {key} must be an object with {', '.join(kind._fields)}, not {_shown(value)}.")

    hints = get_type_hints(kind)
    settings = {}
    for name, entry in value.items():
        if name not in hints:
            raise ValueError(f"{where}: there is no {key}.{name}{_nearest(name, hints)}.")
        settings[name] = _typed(entry, hints[name], f"{key}.{name}", where)
    for name in kind._fields:
        if name not in settings and name not in kind._field_defaults:
            raise ValueError(f"{where}: {key}.{name} is missing.")
    return kind(**settings)


def _check(preset: Preset, presets: Mapping[str, Preset], where: str):
    """Refuses values that no item could be read by."""
    for key, allowed in _CHOICES.items():
        section, _, name = key.rpartition(".")
        holder = getattr(preset, section) if section else preset
        value = getattr(holder, name) if holder is not None else allowed[0]
        if value not in allowed:
            raise ValueError(f"{where}: {key} must be one of {', '.join(allowed)}, not {value!r}.")

    for role in ("query", "document"):
        prompts = getattr(preset, role)
        _check_prompts(prompts, role, where)
        if preset.instruction.place == "slot" and role in preset.instruction.roles:
            _check_slot(prompts, role, where)
    if preset.frame is not None and "{user}" not in preset.frame:
        raise ValueError(f"{where}: frame must hold {{user}}, where the user's turn goes.")
    for key in ("max_length", "num_frames", "max_frames", "video_pixels"):
        if getattr(preset, key) < 1:
            raise ValueError(f"{where}: {key} must be at least 1, not {getattr(preset, key)}.")

    for kind, name in preset.benchmarks.items():
        if kind not in BENCHMARKS or name not in presets:
            raise ValueError(f"{where}: benchmarks: {kind}: {name} is not a kind of benchmark and a preset for it.")
    try:
        Resolution.parse(preset.resolution)
    except ValueError as error:
        raise ValueError(f"{where}: resolution: {error}") from error


def _check_prompts(prompts: Prompts, role: str, where: str):
    """Refuses prompts that leave out what they are to word."""
    needs = {"text": ["{text}"], "image": ["{image}"], "both": ["{image}", "{text}"]}
    for kind, marks in needs.items():
        prompt = getattr(prompts, kind)
        for mark in marks:
            if prompt is not None and mark not in prompt:
                raise ValueError(f"{where}: {role}.{kind} must hold {mark}, where it goes.")


def _check_slot(prompts: Prompts, role: str, where: str):
    """Refuses prompts without the place that an instruction is said to have."""
    for kind in ("text", "image", "both"):
        prompt = getattr(prompts, kind)
        if prompt is not None and "{instruction}" not in prompt:
            raise ValueError(f"{where}: {role}.{kind} must hold {{instruction}}, as instruction.place is slot.")


def _nearest(name, names) -> str:
    """What somebody may have meant, as a message ends with it."""
    similar = difflib.get_close_matches(str(name), [str(entry) for entry in names], n=1)
    return f"; did you mean {similar[0]!r}?" if similar else f"; there are {', '.join(names)}"


def _shown(value) -> str:
    """A value as messages show it."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


__all__ = ["is_preset_file", "preset_content", "preset_from", "read_preset"]
