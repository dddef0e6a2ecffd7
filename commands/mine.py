"""The command `unime mine`."""

from ..jobs.settings import parse_settings
from ..mining.pipeline import Mining, MiningConfig
from .errors import one_line_errors

STEPS = ("run", "embed", "retrieve", "judge", "select", "saha", "inspect")


def main(arguments=None):
    """The command `unime mine`: a step, which is a method of [`~unime.mining.pipeline.Mining`], and its settings."""
    with one_line_errors("unime mine"):
        step, config = parse_settings("unime mine", MiningConfig, STEPS, arguments)
        getattr(Mining(config), step)()


if __name__ == "__main__":
    main()
