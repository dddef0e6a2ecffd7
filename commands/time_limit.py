"""Work that is ended when it takes too long."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

from torch.nn.modules.module import register_module_forward_pre_hook


class OutOfTime(Exception):
    """Raised in work that took too long; no `ValueError` and no `OSError`, which jobs take for the fault of a row."""


def within(seconds: float, work: Callable, *arguments):
    """What `work` returns, if it does in time.

    Otherwise nobody waits for it any longer, and it ends at its next call of a layer, within a batch: a model that
    nobody waits for must not keep the machine busy.

    Args:
        seconds (`float`): how long to wait.
        work, arguments: what is called, in a thread of its own.

    Raises:
        ValueError: it took longer.

    Example:

    ```python
    embeddings = within(120, model.encode, ["a red circle"])
    ```
    """
    deadline = time.monotonic() + seconds

    def limited():
        worker = threading.get_ident()

        def check(module, inputs):
            if threading.get_ident() == worker and time.monotonic() > deadline:
                raise OutOfTime

        with register_module_forward_pre_hook(check):
            return work(*arguments)

    # in the caller's context, where gradio looks for the progress bar
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(copy_context().run, limited).result(seconds)
    except (TimeoutError, OutOfTime) as error:
        raise ValueError(f"the search took longer than {seconds:.0f} seconds.") from error
    finally:
        pool.shutdown(wait=False)
