"""The commands `unime convert`, `unime export` and `unime merge`."""

from pathlib import Path

from ..checkpoints.conversion import convert, export, merge
from .errors import one_line_errors
from .parsers.convert import read

RUN = {"convert": convert, "export": export, "merge": merge}


def execute(options):
    """Does what the options of `unime convert`, `unime export` or `unime merge` say."""
    options = vars(options)
    command = options.pop("command")
    overwrite = options.pop("overwrite")
    options.pop("quiet")

    with one_line_errors(f"unime {command}"):
        _check_place(options["source"], Path(options["out"]), overwrite)
        RUN[command](**options)

    print(f"written to {options['out']}")


def _check_place(source: str, out: Path, overwrite: bool):
    """Refuses to write over what is there."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder.")
    if not out.is_dir() or not any(out.iterdir()):
        return

    # weights cannot be read from the file that they are written to
    if Path(source).is_dir() and out.samefile(source):
        raise ValueError(f"{out} is what is read; name another folder.")
    if not overwrite:
        raise ValueError(f"{out} is not empty; name another folder, or write over it with --overwrite.")


def main(arguments=None):
    """The commands `unime convert`, `unime export` and `unime merge`; the first argument says which."""
    execute(read(arguments))


if __name__ == "__main__":
    main()
