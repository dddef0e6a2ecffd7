"""The command `unime mine`."""

from ..jobs.engines import open_engine
from ..jobs.settings import given_settings, parse_settings
from ..mining.pipeline import Mining, MiningConfig
from ..mining.rehearsal import rehearse
from .errors import one_line_errors

STEPS = ("run", "embed", "retrieve", "judge", "select", "saha", "inspect")


def main(arguments=None):
    """The command `unime mine`: a step, which is a method of [`~unime.mining.pipeline.Mining`], and its settings."""
    with one_line_errors("unime mine"):
        step, config = parse_settings("unime mine", MiningConfig, STEPS, arguments)
        if config.rehearse or config.rehearse_json:
            return rehearse(config, step, given_settings(arguments)).finish(config.rehearse_json)
        with open_engine(config) as engine:
            getattr(Mining(config, engine), step)()


if __name__ == "__main__":
    main()
