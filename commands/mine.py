"""The command `unime mine`."""

from ..jobs.settings import parse_settings
from ..mining.pipeline import Mining, MiningConfig

STEPS = ("run", "embed", "retrieve", "judge", "select", "saha", "inspect")


def main(arguments=None):
    """The command `unime mine`."""
    step, config = parse_settings("unime mine", MiningConfig, STEPS, arguments)
    try:
        getattr(Mining(config), step)()
    except ValueError as error:
        raise SystemExit(f"unime mine: {error}") from error


if __name__ == "__main__":
    main()
