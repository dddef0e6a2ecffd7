"""The command `unime mine`."""

from ..jobs.engines import open_engine
from ..mining.pipeline import Mining
from ..mining.queries import write_queries
from ..mining.rehearsal import rehearse
from .errors import one_line_errors
from .parsers.mine import Asked, read


def execute(asked: Asked):
    """Does a step, which is a method of [`~unime.mining.pipeline.Mining`]."""
    config = asked.config
    with one_line_errors("unime mine"):
        if asked.step == "queries":
            write_queries(config)
            return
        if config.rehearse or config.rehearse_json:
            return rehearse(config, asked.step, asked.given).finish(config.rehearse_json)
        with open_engine(config) as engine:
            getattr(Mining(config, engine), asked.step)()


def main(arguments=None):
    """The command `unime mine`."""
    execute(read(arguments))


if __name__ == "__main__":
    main()
