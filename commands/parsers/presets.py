"""The presets: a list with the checkpoints that were trained with each, or one of them as items will be fed."""

from ...jobs.settings import CommandParser


def read(arguments=None):
    """The options of `unime presets`.

    Args:
        arguments (`list[str]`, *optional*): the command line, by default that of the process.

    Raises:
        SystemExit: help was asked for, or the line cannot be understood (status 2).
    """
    parser = CommandParser(prog="unime presets", description=__doc__)
    parser.add_argument("step", nargs="?", choices=["show"], help="show one preset; without it, all are listed")
    parser.add_argument("preset", nargs="?", help="a name, or a file of your own (preset.yaml)")
    parser.add_argument("--model", help="a checkpoint, whose chat template and image tokens are shown")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code of its repository")
    parser.add_argument("--json", action="store_true", help="print JSON, not text")
    options = parser.parse_args(arguments)
    if options.step and not options.preset:
        parser.error("show needs the name of a preset, or a file.")
    return options
