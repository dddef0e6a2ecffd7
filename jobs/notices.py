"""Notices of other libraries that a command has no use for."""

import logging
import os


def silence_alarms():
    """Keeps a command free of two notices that read like failures on a machine without a GPU, but are not.

    For programs only: a library must not change its user's environment or loggers.
    """
    # DeepSpeed warns that it looked for an accelerator, unless it is told which to use.
    import torch

    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")

    # bitsandbytes, on a CPU, recommends a package whenever it is imported.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
