"""Fast attention and patch embedding for vision towers that loop over packed images."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

PACKED_ATTENTION = "unime_packed_flash"  # "flash" makes the Qwen-VL vision towers hand over the whole packed sequence


def packed_attention(module, query, key, value, attention_mask=None, scaling=None, cu_seq_lens_q=None, **kwargs):
    """Attention over images packed into one sequence: one call per distinct image length instead of one per image.

    Shapes: query, key, value `[1, heads, patches, head_dim]`; `cu_seq_lens_q` `[images + 1]`; the result is
    `[1, patches, heads, head_dim]`.
    """
    starts = cu_seq_lens_q.tolist()
    by_length = {}
    for start, end in pairwise(starts):
        by_length.setdefault(end - start, []).append(start)
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # [patches, heads, dim]
    if len(by_length) == 1:
        (length,) = by_length
        q, k, v = (
            x.unflatten(0, (-1, length)).transpose(1, 2) for x in (query, key, value)
        )  # [images, heads, length, dim]
        return _attend(q, k, v, scaling).transpose(1, 2).flatten(0, 1).unsqueeze(0), None
    pieces, rows = [], []
    for length, begins in by_length.items():
        index = torch.tensor(begins, device=query.device)[:, None] + torch.arange(
            length, device=query.device
        )  # [images, length]
        q, k, v = (x[index].transpose(1, 2) for x in (query, key, value))
        pieces.append(_attend(q, k, v, scaling).transpose(1, 2).flatten(0, 1))
        rows.append(index.flatten())
    return torch.cat(pieces)[torch.cat(rows).argsort()].unsqueeze(0), None


def _attend(query, key, value, scaling):
    """SDPA, or plain matmuls where its backward is several times slower (short sequences on CPU)."""
    if query.device.type == "cpu" and query.requires_grad and query.shape[2] <= 512:
        return ((query * scaling) @ key.transpose(-1, -2)).softmax(dim=-1).to(value.dtype) @ value
    return F.scaled_dot_product_attention(query, key, value, scale=scaling)


def patches_as_product(self, patches):
    """The forward of a patch convolution: its stride is its kernel, so it is a matrix product, which is faster."""
    patches = patches.flatten(1)  # [patches, channels * time * height * width]
    return F.linear(patches, self.weight.flatten(1), self.bias)[:, :, None, None, None]


AttentionInterface.register(PACKED_ATTENTION, packed_attention)

__all__ = ["PACKED_ATTENTION", "packed_attention", "patches_as_product"]
