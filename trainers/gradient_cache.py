"""Contrastive batches of any size in the memory of one chunk (GradCache, 2101.06983).

Pass 1 encodes all chunks without a graph, the loss is taken over the whole table of embeddings, and pass 2 encodes
chunk by chunk with a graph and feeds in the cached gradients. The result equals the gradient of the full batch.
Three things are not done twice: chunks whose graph fits into `graph_tokens` keep it from pass 1 (at least the last
one does), and the features of a frozen vision tower are computed once and reused in pass 2.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ..vlm_unime import image_inputs, vision_parameters
from .adapters import vlm_of


class RandomState:
    """The random state of the CPU and of one accelerator at the moment of creation."""

    def __init__(self, device: torch.device):
        self.device = device
        self.module = None if device.type == "cpu" else torch.get_device_module(device)
        self.cpu = torch.get_rng_state()
        self.accelerator = None if self.module is None else self.module.get_rng_state(device)

    @contextmanager
    def replayed(self):
        """Runs the body with that state and restores the present one afterwards."""
        devices = [] if self.module is None else [self.device]
        with torch.random.fork_rng(devices=devices, device_type=self.device.type if devices else "cuda"):
            torch.set_rng_state(self.cpu)
            if self.module is not None:
                self.module.set_rng_state(self.accelerator, self.device)
            yield


class _Chunk:
    """One chunk of a step: moved to the device only while it runs, its frozen vision features computed once."""

    def __init__(self, tensors: dict, model, vlm, device, autocast):
        self.tensors, self.model, self.vlm, self.device, self.autocast = tensors, model, vlm, device, autocast
        self.features, self.state = None, None

    def encode(self) -> torch.Tensor:
        inputs = {key: value.to(self.device, non_blocking=True) for key, value in self.tensors.items()}
        if self.vlm is not None and "pixel_values" in inputs:
            if self.features is None:
                with torch.no_grad(), self.autocast():
                    self.features = self.vlm.get_image_features(**image_inputs(self.vlm, inputs), return_dict=True)
            del inputs["pixel_values"]
            inputs["mm_encoder_outputs"] = {"image": self.features}
        if self.state is None:  # after the tower, which does not run again
            self.state = RandomState(self.device)
        return self.model(**inputs).embeddings

    def again(self) -> torch.Tensor:
        with self.state.replayed():
            return self.encode()


def frozen_vision(model):
    """The VLM if nothing in its vision tower trains and it takes the tower's output as an argument, else None."""
    vlm = vlm_of(model)
    if "mm_encoder_outputs" not in inspect.signature(vlm.forward).parameters:
        return None
    return None if any(p.requires_grad for p in vision_parameters(vlm)) else vlm


def cached_loss(
    model,
    unwrapped,
    chunks: list[dict],
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    device: torch.device,
    gradient_scale: float = 1.0,
    graph_tokens: int = 0,
    autocast: Callable = nullcontext,
    lockstep: bool = False,
    parameters: Sequence[torch.nn.Parameter] = (),
) -> torch.Tensor:
    """The loss over the embeddings of all chunks, as a scalar whose backward runs pass 2.

    Args:
        model: what is called, possibly wrapped (DDP); returns an output with `embeddings`.
        unwrapped: the bare model inside, to look at its parameters.
        chunks (`list[dict]`): keyword tensors of the model, on any device.
        loss_of: maps embeddings `[T, D]`, in the order of the chunks, to a scalar loss.
        gradient_scale (`float`): multiplies the gradient, not the returned value.
        autocast: makes the mixed-precision context in which `model` runs its forward.
        graph_tokens (`int`): padded tokens whose graphs may be kept from pass 1; the last chunk's always is.
        lockstep (`bool`): all ranks must run as many forwards, as DeepSpeed wants: they keep as many graphs.
        parameters: of the loss itself, the same on all ranks; they get their gradient as it is, not scaled.

    Returns:
        Detached scalar. `backward()` on it (also through `accelerator.backward`, with whatever scaling) accumulates
        the gradients of `gradient_scale * loss` in the parameters; under DDP they are reduced exactly once.
    """
    ddp = isinstance(model, DistributedDataParallel)
    quiet = model.no_sync if ddp else nullcontext
    vision = frozen_vision(unwrapped)
    work = [_Chunk(tensors, model, vision, device, autocast) for tensors in chunks]
    if not torch.is_grad_enabled():
        return loss_of(torch.cat([chunk.encode() for chunk in work]))

    kept = len(work) - 1  # the first chunk whose graph is kept from pass 1
    room = graph_tokens - chunks[-1]["input_ids"].numel()
    while kept > 0 and (room := room - chunks[kept - 1]["input_ids"].numel()) >= 0:
        kept -= 1
    if ddp and len(work) > 1:  # DDP reduces in the backward of the forward that ran last: one chunk is left for that
        kept = max(kept, 1)
    if lockstep and dist.is_initialized():
        most = torch.tensor(kept, device=device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        kept = int(most)
    outputs = []
    for number, chunk in enumerate(work):
        with torch.set_grad_enabled(number >= kept), quiet() if len(work) > 1 else nullcontext():
            outputs.append(chunk.encode())
    leaves = [output.detach().requires_grad_() for output in outputs]
    loss = loss_of(torch.cat(leaves))
    gradients = torch.autograd.grad(loss, [*leaves, *parameters])

    def second_pass(scale):
        for parameter, gradient in zip(parameters, gradients[len(leaves) :]):
            gradient = gradient * scale
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        with torch.enable_grad():
            for output, gradient in zip(outputs[kept:], gradients[kept : len(leaves)]):
                output.backward(gradient * (scale * gradient_scale))
            for number in range(kept):
                with quiet() if number < kept - 1 else nullcontext():
                    output = work[number].again()
                output.backward(gradients[number] * (scale * gradient_scale))

    total = loss.detach().requires_grad_()
    total.register_hook(second_pass)
    return total
