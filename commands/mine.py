"""The command `unime mine`."""

from ..jobs.engines import open_engine
from ..mining.pipeline import Mining
from ..mining.queries import write_queries
from ..mining.rehearsal import rehearse
from .errors import one_line_errors
from .options import StepCall
from .parsers.mine import read


def execute(call: StepCall):
    """Does a step, which is a method of [`~unime.mining.pipeline.Mining`]."""
    config = call.config
    with one_line_errors("unime mine"):
        if call.step == "queries":
            write_queries(config)
            return
        if config.rehearse or config.rehearse_json:
            return rehearse(config, call.step, call.given).finish(config.rehearse_json)
        with open_engine(config) as engine:
            getattr(Mining(config, engine), call.step)()


def main(arguments=None):
    """The command `unime mine`."""
    execute(read(arguments))


if __name__ == "__main__":
    main()
