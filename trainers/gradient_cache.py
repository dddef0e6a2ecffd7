"""Contrastive batches of any size in the memory of one chunk (GradCache, 2101.06983).

A contrastive loss compares all items of a batch, so it cannot be taken chunk by chunk. [`cached_loss`] does what the
paper does instead:

1. it encodes all chunks without a graph;
2. it takes the loss over the whole table of embeddings, and its gradient with respect to the embeddings;
3. it encodes chunk by chunk with a graph, and feeds in the cached gradients.

The result equals the gradient of the full batch. Two things are not done twice: chunks whose graphs fit into
`graph_tokens` keep them from step 1 (the last chunk always does), and the features of a frozen vision tower are
computed once and used again in step 3, as far as `feature_tokens` reaches.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from accelerate.utils import extract_model_from_parallel
from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from ..vlm_unime import image_inputs, vision_parameters
from .adapters import vlm_of
from .losses import LossOutput


@dataclass(frozen=True)
class ChunkEncoder:
    """How chunks are encoded: the model, and what a trainer puts around it.

    Args:
        model (`nn.Module`): the embedder, possibly wrapped (DDP, DeepSpeed, PEFT); its output has `embeddings`.
        device (`torch.device`): where it runs.
        autocast (`Callable`, defaults to `nullcontext`): makes the mixed-precision context in which `model` runs its
            forward; the vision tower, when it runs by itself, runs in such a context too.
        lockstep (`bool`, defaults to `False`): all ranks must run as many forwards, as DeepSpeed and FSDP require.
    """

    model: nn.Module
    device: torch.device
    autocast: Callable = nullcontext
    lockstep: bool = False

    @property
    def is_ddp(self) -> bool:
        """Whether the gradients of several ranks are reduced by DDP."""
        return isinstance(self.model, DistributedDataParallel)

    def reducing(self, enabled: bool):
        """A context for a forward: its backward reduces the gradients under DDP, or leaves them on their rank."""
        if self.is_ddp and not enabled:
            return self.model.no_sync()
        return nullcontext()


def cached_loss(
    encoder: ChunkEncoder,
    chunks: Sequence[dict],
    loss_of: Callable[[torch.Tensor], LossOutput],
    gradient_scale: float = 1.0,
    graph_tokens: int = 0,
    parameters: Sequence[nn.Parameter] = (),
    feature_tokens: int | None = None,
) -> LossOutput:
    """The loss over the embeddings of all chunks; its `backward()` runs step 3 of the cache.

    Args:
        encoder (`ChunkEncoder`): runs the chunks.
        chunks (`list[dict]`): keyword tensors of the model, on any device.
        loss_of: maps embeddings `[T, D]`, in the order of the chunks, to a [`LossOutput`].
        gradient_scale (`float`, defaults to 1): multiplies the gradient of the embeddings, not the returned loss.
        graph_tokens (`int`, defaults to 0): padded tokens whose graphs may be kept from step 1; the last chunk's
            always is.
        parameters: of the loss itself, the same on all ranks; they get their gradient as it is, not scaled.
        feature_tokens (`int`, *optional*): image tokens whose features of a frozen vision tower may be kept from step
            1 to step 3; those of further chunks are computed again. All are kept by default.

    Returns:
        [`LossOutput`]: the metrics, and the loss without the graph of the chunks. `backward()` on it (also through
        `accelerator.backward`, with whatever scaling) accumulates the gradients of `gradient_scale * loss` in the
        model's parameters; under DDP they are reduced exactly once. Without gradients enabled, there is no step 3.

    Example:

    ```python
    loss = HardNegativeInfoNCE()
    encoder = ChunkEncoder(model, model.device)
    output = cached_loss(encoder, chunks, lambda embeddings: loss(embeddings, query, positive))
    output.loss.backward()
    ```
    """
    vision = frozen_vision(extract_model_from_parallel(encoder.model))
    if not torch.is_grad_enabled():
        return loss_of(torch.cat([_RepeatableChunk(tensors, encoder, vision).encode() for tensors in chunks]))
    first_kept = _first_kept_graph(encoder, chunks, graph_tokens)

    # chunks that keep their graphs are not encoded again
    room = FeatureRoom(encoder, feature_tokens)
    repeatable = []
    for number, tensors in enumerate(chunks):
        repeatable.append(_RepeatableChunk(tensors, encoder, vision, room if number < first_kept else None))

    # step 1: encode all chunks, only the last ones with a graph
    outputs = []
    for number, chunk in enumerate(repeatable):
        with torch.set_grad_enabled(number >= first_kept), encoder.reducing(len(chunks) == 1):
            outputs.append(chunk.encode())  # [N, D]

    # step 2: the loss over the whole table, and its gradient with respect to the embeddings
    leaves = [output.detach().requires_grad_() for output in outputs]
    result = loss_of(torch.cat(leaves))  # of [T, D]
    gradients = torch.autograd.grad(result.loss, [*leaves, *parameters])
    chunk_gradients = gradients[: len(leaves)]
    parameter_gradients = gradients[len(leaves) :]

    # step 3: encode chunk by chunk with a graph, and feed in the cached gradients
    def feed_gradients(scale: torch.Tensor):
        # the loss's own parameters need no second pass
        for parameter, gradient in zip(parameters, parameter_gradients):
            gradient = gradient * scale
            if parameter.grad is not None:
                gradient = parameter.grad + gradient
            parameter.grad = gradient

        with torch.enable_grad():
            # these chunks have their graphs from step 1
            for output, gradient in zip(outputs[first_kept:], chunk_gradients[first_kept:]):
                output.backward(gradient * (scale * gradient_scale))

            # these run again; under DDP the backward of the last one reduces all that has been accumulated
            for number in range(first_kept):
                with encoder.reducing(number == first_kept - 1):
                    output = repeatable[number].encode_again()
                output.backward(chunk_gradients[number] * (scale * gradient_scale))

    # step 3 is a hook on the loss: it runs in the caller's `backward`, with the caller's scale of the loss
    loss = result.loss.detach().requires_grad_()
    loss.register_hook(feed_gradients)
    return LossOutput(loss, result.metrics, result.embeddings, result.row_losses)


def _first_kept_graph(encoder: ChunkEncoder, chunks: Sequence[dict], graph_tokens: int) -> int:
    """The number of the first chunk whose graph is kept from step 1; those behind it keep theirs too."""
    sizes = [chunk["input_ids"].numel() for chunk in chunks]  # padded tokens

    # from the last chunk to the front, as far as the tokens reach
    first = len(chunks) - 1
    kept_tokens = sizes[first]
    while first > 0 and kept_tokens + sizes[first - 1] <= graph_tokens:
        first -= 1
        kept_tokens += sizes[first]

    # DDP reduces in the backward of the forward that ran last: one chunk must be left for step 3
    if encoder.is_ddp and len(chunks) > 1:
        first = max(first, 1)

    # ranks that run as many forwards keep as many graphs
    if encoder.lockstep and dist.is_initialized():
        greatest = torch.tensor(first, device=encoder.device)
        dist.all_reduce(greatest, dist.ReduceOp.MAX)
        first = int(greatest)
    return first


class FeatureRoom:
    """How many image tokens' features are kept between the two passes.

    Args:
        encoder (`ChunkEncoder`): on whose device they lie.
        tokens (`int`, *optional*): most of them; without a limit by default.
    """

    def __init__(self, encoder: ChunkEncoder, tokens: int | None):
        self.encoder = encoder
        self.remaining = float("inf") if tokens is None else tokens

    def takes(self, tokens: int) -> bool:
        """Whether there is room for the features of another chunk of so many image tokens, which then is theirs."""
        # ranks in lockstep run the tower again for the same chunks
        if self.encoder.lockstep and dist.is_initialized():
            greatest = torch.tensor(tokens, device=self.encoder.device)
            dist.all_reduce(greatest, dist.ReduceOp.MAX)
            tokens = int(greatest)

        fits = tokens <= self.remaining
        if fits:
            self.remaining -= tokens
        return fits


class _RepeatableChunk:
    """A chunk that can be encoded twice: on the device while it runs, with the features of a frozen tower if kept."""

    def __init__(self, tensors: dict, encoder: ChunkEncoder, vision, room: FeatureRoom | None = None):
        self.tensors = tensors
        self.encoder = encoder
        self.vision = vision  # the VLM with a frozen tower, or None
        self.room = room  # None for a chunk that is not encoded again
        self.features = None
        self.random_state = None

    def encode(self) -> torch.Tensor:
        """The embeddings `[N, D]` of the chunk's items."""
        device = self.encoder.device
        inputs = {key: value.to(device, non_blocking=True) for key, value in self.tensors.items()}
        is_first = self.random_state is None
        if is_first:
            self.random_state = RandomState(device)

        if self.vision is not None and "pixel_values" in inputs:
            inputs["mm_encoder_outputs"] = {"image": self._vision_features(inputs, is_first)}
            del inputs["pixel_values"]

            # a tower whose features are kept does not run again
            if is_first and self.features is not None:
                self.random_state = RandomState(device)
        return self.encoder.model(**inputs).embeddings

    def encode_again(self) -> torch.Tensor:
        """The same embeddings with the same dropout."""
        with self.random_state.replayed():
            return self.encode()

    def _vision_features(self, inputs: dict, is_first: bool):
        if self.features is not None:
            return self.features

        images = image_inputs(self.vision, inputs)
        with torch.no_grad(), self.encoder.autocast():
            features = image_features_of(self.encoder.model, self.vision)(**images, return_dict=True)

        # the states before the projector are several times as large, and nothing reads them
        features = type(features)(**{key: value for key, value in features.items() if key != "last_hidden_state"})
        if is_first and self.room is not None and self.room.takes(_image_tokens(features)):
            self.features = features
        return features


def _image_tokens(features) -> int:
    """How many image tokens a VLM's features of images are of."""
    images = features.pooler_output
    images = [images] if isinstance(images, torch.Tensor) else images
    return sum(image.shape[:-1].numel() for image in images)


def image_features_of(model: nn.Module, vlm) -> Callable:
    """The VLM's `get_image_features`, which FSDP must be told of: it gathers weights before a `forward` alone.

    Args:
        model (`nn.Module`): what is trained, around the VLM.
        vlm: whose vision tower is frozen.
    """
    if not isinstance(model, FSDPModule):
        return vlm.get_image_features
    if not hasattr(model, "frozen_image_features"):
        model.frozen_image_features = vlm.get_image_features
        register_fsdp_forward_method(model, "frozen_image_features")
    return model.frozen_image_features


class RandomState:
    """The random state of the CPU and of one accelerator at the moment of creation.

    Args:
        device (`torch.device`): the accelerator; for a CPU there is only the one state.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.accelerators = [] if device.type == "cpu" else [device]
        self.module = torch.get_device_module(device)
        self.cpu_state = torch.get_rng_state()
        self.accelerator_states = [self.module.get_rng_state(device) for device in self.accelerators]

    @contextmanager
    def replayed(self):
        """Runs the body with that state and restores the present one afterwards."""
        with torch.random.fork_rng(devices=self.accelerators, device_type=self.device.type):
            torch.set_rng_state(self.cpu_state)
            for device, state in zip(self.accelerators, self.accelerator_states):
                self.module.set_rng_state(state, device)
            yield


def frozen_vision(model):
    """The VLM if nothing in its vision tower trains and it takes the tower's output as an argument, else None."""
    vlm = vlm_of(model)
    if "mm_encoder_outputs" not in inspect.signature(vlm.forward).parameters:
        return None
    if any(parameter.requires_grad for parameter in vision_parameters(vlm)):
        return None
    return vlm
