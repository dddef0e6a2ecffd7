"""What `unime mine` takes: a step, and its settings in a recipe or on the command line."""

from typing import NamedTuple

from ...jobs.settings import given_settings, parse_settings
from ...mining.settings import MiningConfig

STEPS = ("run", "embed", "retrieve", "judge", "select", "saha", "inspect")


class Asked(NamedTuple):
    """What a command line asks for.

    Args:
        step (`str`): one of `STEPS`.
        config ([`~unime.mining.settings.MiningConfig`]): its settings.
        given (`dict[str, str]`): where each setting was given, for a rehearsal.
    """

    step: str
    config: MiningConfig
    given: dict[str, str]


def read(arguments=None) -> Asked:
    """The step and the settings of `unime mine`.

    Args:
        arguments (`list[str]`, *optional*): the command line, by default that of the process.

    Raises:
        SystemExit: help was asked for, or the line cannot be understood (status 2).
    """
    step, config = parse_settings("unime mine", MiningConfig, STEPS, arguments)
    return Asked(step, config, given_settings(arguments))
