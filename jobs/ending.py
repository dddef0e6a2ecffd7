"""How a process of a launch ends."""

import atexit
import sys


def leave_group_at_exit():
    """Lets this process leave its group of processes before the interpreter ends.

    Else threads of the group (Gloo's, NCCL's) may still run while the libraries beneath them are taken down, which
    now and then ends a process that has done all its work in SIGABRT, and the launch with it. After a failure the
    group is left alone: others may wait in it, and the launcher ends them.
    """
    atexit.register(_leave_group)


def _leave_group():
    distributed = sys.modules.get("torch.distributed")  # a light command has not imported it
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
