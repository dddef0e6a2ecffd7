"""Steps of many forwards and backwards under wrappers whose ranks talk in each of them: DeepSpeed ZeRO and FSDP.

Two things go wrong there without help. Ranks that run different numbers of chunks, or an image chunk where another
rank runs text, wait for each other for ever: [`in_lockstep`] evens them out. And DeepSpeed reduces gradients in every
backward, and may do so only once a step: [`OneReduction`] holds them back until the last.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from accelerate.utils.deepspeed import DeepSpeedEngineWrapper


class OneReduction(DeepSpeedEngineWrapper):
    """Allows any number of backwards in a step: gradients stay on their rank and are reduced once, before the update.

    The price is room for whole, unpartitioned gradients of what trains: nothing to speak of with an adapter.

    Args:
        engine (`DeepSpeedEngine`): around the model.
    """

    def __init__(self, engine):
        super().__init__(engine)
        self.held_back = None  # the context in which gradients are not reduced, while one is open

    def backward(self, loss, sync_gradients=True, **kwargs):
        """As in accelerate; `sync_gradients` belongs to the last backward of a step."""
        if self.held_back is None:
            self.held_back = self.engine.coalesce_grad_reduction()
            self.held_back.__enter__()

        self.engine.set_gradient_accumulation_boundary(is_boundary=sync_gradients)
        self.engine.backward(loss, **kwargs)
        if not sync_gradients:
            return

        # leaving the context reduces what has come together, and restores the boundary as it was on entry
        held_back = self.held_back
        self.held_back = None
        held_back.__exit__(None, None, None)
        self.engine.set_gradient_accumulation_boundary(is_boundary=True)
        self.engine.step()


def in_lockstep(chunks: list, has_images: Callable, spare: Callable, device: torch.device) -> list:
    """The chunks in an order, and with spare ones, so that all ranks run the same modules the same number of times.

    Args:
        chunks (`list`): of this rank.
        has_images: tells whether a chunk runs the vision tower.
        spare: maps whether there must be images to a small chunk that does not count.
        device (`torch.device`): of the process group.

    Returns:
        `list`: the chunks of text, then those with images, each followed by spare ones where another rank has more.
    """
    text_chunks = []
    image_chunks = []
    for chunk in chunks:
        group = image_chunks if has_images(chunk) else text_chunks
        group.append(chunk)

    # how many of each kind the rank with most of them runs
    counts = torch.tensor([len(text_chunks), len(image_chunks)], device=device)
    if dist.is_initialized():
        dist.all_reduce(counts, dist.ReduceOp.MAX)
    text_count, image_count = counts.tolist()

    while len(text_chunks) < text_count:
        text_chunks.append(spare(False))
    while len(image_chunks) < image_count:
        image_chunks.append(spare(True))
    return text_chunks + image_chunks
