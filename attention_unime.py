"""Fast attention and patch embedding for vision towers that loop over packed images."""

from functools import lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

PACKED_ATTENTION = "unime_packed_flash"  # "flash" makes the Qwen-VL vision towers hand over the whole packed sequence


def packed_attention(module, query, key, value, attention_mask=None, scaling=None, cu_seq_lens_q=None, **kwargs):
    """Attention over images packed into one sequence: one call per distinct image length instead of one per image.

    Transformers finds it under the name `PACKED_ATTENTION`; the signature is that of its attention functions.

    Args:
        module: the attention layer; not used.
        query, key, value (`Tensor` `[1, heads, patches, head_dim]`): of all images, one after the other.
        attention_mask: not used, as images attend to all of themselves and to nothing else.
        scaling (`float`): factor of the products of queries and keys.
        cu_seq_lens_q (`IntTensor` `[images + 1]`): where each image begins, and the number of patches at the end.

    Returns:
        the attended values `[1, patches, heads, head_dim]`, and `None` for the attention weights.
    """
    lengths, places, order = _images_by_length(cu_seq_lens_q)
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))  # [patches, heads, head_dim]

    # images of one length lie in the sequence as they are needed: views will do
    if len(lengths) == 1:
        shape = (-1, lengths[0])
        images = (states.unflatten(0, shape) for states in (query, key, value))  # [images, length, heads, dim]
        return _attend_within_images(*images, scaling).unsqueeze(0), None

    # else the images of each length are picked out of the sequence
    results = []
    for index in places:
        results.append(_attend_within_images(query[index], key[index], value[index], scaling))

    # back into the order of the sequence
    return torch.cat(results)[order].unsqueeze(0), None


@lru_cache(maxsize=1)
def _images_by_length(cu_seq_lens: torch.Tensor) -> tuple[list[int], list[torch.Tensor], torch.Tensor]:
    """Packed images by their number of patches, which all layers of a tower ask for with one and the same tensor.

    Reading it waits for the GPU. A tensor is its own key in the cache, and is no other as long as it is held there.

    Args:
        cu_seq_lens (`IntTensor` `[images + 1]`): as in [`packed_attention`].

    Returns:
        the distinct lengths; for each of them the places of its images' patches in the sequence `[images, length]`;
        and the order `[patches]` that leads from these places, one after the other, back to the sequence.
    """
    starts_by_length = {}
    for start, end in pairwise(cu_seq_lens.tolist()):
        starts_by_length.setdefault(end - start, []).append(start)

    # images of a length are looked at together: the places of their patches, a row for each image
    places = []
    for length, starts in starts_by_length.items():
        places.append(torch.tensor(starts)[:, None] + torch.arange(length))

    # what brings the results back into the order in which they were packed
    order = torch.cat([index.flatten() for index in places]).argsort()
    device = cu_seq_lens.device
    return list(starts_by_length), [index.to(device) for index in places], order.to(device)


def _attend_within_images(query, key, value, scaling):
    """Attention within each image: `[images, length, heads, head_dim]` -> `[images * length, heads, head_dim]`."""
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))  # [images, heads, length, dim]
    return _attend(query, key, value, scaling).transpose(1, 2).flatten(0, 1)


def _attend(query, key, value, scaling):
    """SDPA, or plain matmuls where its backward is several times slower (short sequences on CPU)."""
    if query.device.type == "cpu" and query.requires_grad and query.shape[2] <= 512:
        weights = ((query * scaling) @ key.transpose(-1, -2)).softmax(dim=-1)  # [images, heads, length, length]
        return weights.to(value.dtype) @ value
    return F.scaled_dot_product_attention(query, key, value, scale=scaling)


def patches_as_product(self, patches):
    """The forward of a patch convolution: its stride is its kernel, so it is a matrix product, which is faster.

    Args:
        self (`nn.Conv3d`): the convolution whose `forward` this becomes.
        patches (`Tensor` `[patches, channels, time, height, width]`): each as large as the kernel.

    Returns:
        `Tensor` `[patches, width of the tower, 1, 1, 1]`.
    """
    patches = patches.flatten(1)  # [patches, channels * time * height * width]
    return F.linear(patches, self.weight.flatten(1), self.bias)[:, :, None, None, None]


def look_as_trained(vlm):
    """Makes a Mllama of transformers 5 compute what Meta's code and transformers 4 do, in batches of any kind.

    Its tower is to hand over what goes *into* some of its layers; transformers 5.23 takes what comes out of them, one
    layer too late. And its text layers let a row without an image look at the blank one that fills the batch.

    Args:
        vlm: as transformers built it; anything but a Mllama is left alone.
    """
    for module in vlm.modules():
        kind = type(module).__name__
        if kind == "MllamaVisionModel":
            indices = module.config.intermediate_layers_indices
            if min(indices) < 1:
                raise ValueError(f"intermediate_layers_indices must be 1 at least, got {indices}.")
            module.intermediate_layers_indices = [index - 1 for index in indices]
        elif kind == "MllamaCrossAttentionDecoderLayer":
            module.register_forward_hook(_leave_rows_without_image, with_kwargs=True)


def _leave_rows_without_image(layer, arguments, kwargs, output):
    """The layer's output, but for rows without an image what went into it."""
    sees_image = kwargs.get("full_text_row_masked_out_mask")  # [N, 1, L, 1], 1 where a token sees an image
    if sees_image is None:
        return output
    has_image = sees_image[:, 0].bool().any(dim=1, keepdim=True)  # [N, 1, 1]
    hidden = arguments[0] if arguments else kwargs["hidden_states"]
    return torch.where(has_image, output, hidden)


AttentionInterface.register(PACKED_ATTENTION, packed_attention)

__all__ = ["PACKED_ATTENTION", "look_as_trained", "packed_attention", "patches_as_product"]
