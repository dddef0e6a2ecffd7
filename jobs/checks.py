"""Checks of values that people write: settings of recipes, and options that are handed on to a model's methods."""

import difflib
import inspect
import types
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, Union, get_args, get_origin, get_type_hints

_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object"}


def fits(value, hint) -> bool:
    """Whether a value is of an annotated type; what is not annotated takes anything.

    Args:
        value: as JSON or YAML have it.
        hint: such as `int`, `str | None` or `list[str]`.
    """
    if get_origin(hint) in (Union, types.UnionType):
        return any(fits(value, alternative) for alternative in get_args(hint))
    if hint is types.NoneType:
        return value is None

    # true and false count as numbers in Python, but nobody means them
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, (int, float))
    if hint in _WORDS:
        return isinstance(value, hint)

    # of a list every entry, of an object nothing but that it is one
    if get_origin(hint) is list or hint is list:
        (entry_hint,) = get_args(hint) or (Any,)
        return isinstance(value, (list, tuple)) and all(fits(entry, entry_hint) for entry in value)
    if get_origin(hint) is dict:
        return isinstance(value, dict)
    return True


def describe(hint) -> str:
    """What values a type takes, in words."""
    if get_origin(hint) in (Union, types.UnionType):
        # a setting that may be left out is not described as such
        words = []
        for alternative in get_args(hint):
            if alternative is not types.NoneType:
                words.append(describe(alternative))
        return " or ".join(dict.fromkeys(words))
    if get_origin(hint) is list:
        return f"a list, each entry {describe(get_args(hint)[0])}"
    return _WORDS.get(get_origin(hint) or hint, "another value")


def check_settings(config):
    """Checks the values of a dataclass of settings against their types, and against `least` in their metadata.

    Args:
        config: an instance.

    Raises:
        ValueError: a value is of another type, or a number is too small; the message names the setting.
    """
    hints = get_type_hints(type(config))
    for field in fields(config):
        check_setting(field, getattr(config, field.name), hints[field.name])


def check_setting(field, value, hint):
    """Checks one value of a setting; see [`check_settings`]."""
    if not fits(value, hint):
        raise ValueError(f"`{field.name}` is {value!r}; it takes {describe(hint)}.")

    least = field.metadata.get("least")
    if least is not None and value is not None and value < least:
        raise ValueError(f"`{field.name}` is {value}; it must be at least {least}.")


def check_options(title: str, options: dict, methods: Iterable[Callable], taken: Iterable[str] = ()):
    """Checks options that are handed on to methods, by name and type.

    Args:
        title (`str`): what the options are called, for the message.
        options (`dict`): by name.
        methods: those that take them.
        taken: names of arguments that are not options, because the caller sets them.

    Raises:
        ValueError: no method has such an option, or it takes other values; the message names the nearest.

    Example:

    ```python
    check_options("--options", {"resolutoin": 336}, [UniMEModel.encode])  # did you mean 'resolution'?
    ```
    """
    # what any of them takes; **kwargs take nothing of their own
    hints = {}
    for method in methods:
        method_hints = get_type_hints(method)
        for name, parameter in inspect.signature(method).parameters.items():
            if name not in ("self", *taken) and parameter.kind is not inspect.Parameter.VAR_KEYWORD:
                hints[name] = method_hints.get(name, Any)

    # the nearest name is most often the one that is meant
    for name, value in options.items():
        if name not in hints:
            similar = difflib.get_close_matches(name, hints, n=1)
            advice = f"did you mean {similar[0]!r}?" if similar else f"there are {', '.join(hints)}."
            raise ValueError(f"{title} has no {name!r}; {advice}")
        if not fits(value, hints[name]):
            raise ValueError(f"{title}: {name!r} is {value!r}; it takes {describe(hints[name])}.")
