"""Notices of other libraries that a command has no use for."""

import logging
import os
import sys

# what --quiet sets; tqdm, huggingface_hub and transformers read it when they are imported
QUIET = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}


def without_quiet(words: list[str]) -> list[str]:
    """A command line without `--quiet`, which is acted on.

    Args:
        words (`list[str]`): of the command line; behind `--` they are no options.
    """
    options = words[: words.index("--")] if "--" in words else words
    if "--quiet" not in options:
        return words

    be_quiet()

    # it may be given twice
    place = options.index("--quiet")
    return without_quiet(words[:place] + words[place + 1 :])


def be_quiet():
    """Keeps this program, and those that it starts, free of the bars and warnings of libraries."""
    os.environ.update(QUIET)
    _silence_imported()


def is_quiet() -> bool:
    """Whether `--quiet` was given."""
    return QUIET.items() <= os.environ.items()


def notice(text: str):
    """A line on stderr, which `--quiet` leaves out."""
    if not is_quiet():
        print(text, file=sys.stderr, flush=True)


def _silence_imported():
    """Tells libraries that have read their environment already."""
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()

    # the Hub's library has bars of its own
    if "huggingface_hub" in sys.modules:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()


def silence_alarms():
    """Keeps a command free of bars for a second's work, and of two notices that read like failures on a machine
    without a GPU, but are not.

    For programs only: a library must not change its user's environment or loggers.
    """
    # tqdm reads it when it is imported: a bar is for work that lasts
    os.environ.setdefault("TQDM_DELAY", "2")

    # DeepSpeed warns that it looked for an accelerator, unless it is told which to use.
    import torch

    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")

    # bitsandbytes, on a CPU, recommends a package whenever it is imported.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
