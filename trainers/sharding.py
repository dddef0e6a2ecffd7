"""Steps of many forwards and backwards under wrappers whose ranks talk in each of them: DeepSpeed ZeRO.

Two things go wrong there without help. Ranks that run different numbers of chunks, or an image chunk where another
rank runs text, wait for each other for ever: `in_lockstep` evens them out. And DeepSpeed reduces gradients in every
backward, and may do so only once a step: `OneReduction` holds them back until the last.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from accelerate.utils.deepspeed import DeepSpeedEngineWrapper


class OneReduction(DeepSpeedEngineWrapper):
    """Allows any number of backwards in a step: gradients stay on their rank and are reduced once, before the update.

    The price is room for whole, unpartitioned gradients of what trains: nothing to speak of with an adapter.
    """

    def __init__(self, engine):
        super().__init__(engine)
        self.held_back = None

    def backward(self, loss, sync_gradients=True, **kwargs):
        """As in accelerate; `sync_gradients` belongs to the last backward of a step."""
        if self.held_back is None:
            self.held_back = self.engine.coalesce_grad_reduction()
            self.held_back.__enter__()
        self.engine.set_gradient_accumulation_boundary(is_boundary=sync_gradients)
        self.engine.backward(loss, **kwargs)
        if sync_gradients:
            held_back, self.held_back = self.held_back, None
            held_back.__exit__(None, None, None)
            self.engine.set_gradient_accumulation_boundary(is_boundary=True)  # leaving restored what was on entry
            self.engine.step()


def in_lockstep(chunks: list, has_images: Callable, spare: Callable, device: torch.device) -> list:
    """The chunks in an order, and with spare ones, so that all ranks run the same modules the same number of times.

    Args:
        chunks (`list`): of this rank.
        has_images: tells whether a chunk runs the vision tower.
        spare: maps whether there must be images to a small chunk that does not count.
        device: of the process group.
    """
    groups = [[chunk for chunk in chunks if has_images(chunk) == kind] for kind in (False, True)]
    most = torch.tensor([len(group) for group in groups], device=device)
    if dist.is_initialized():
        dist.all_reduce(most, dist.ReduceOp.MAX)
    missing = [wanted - len(group) for wanted, group in zip(most.tolist(), groups)]
    return [
        chunk
        for kind, group, count in zip((False, True), groups, missing)
        for chunk in group + [spare(kind) for _ in range(count)]
    ]
