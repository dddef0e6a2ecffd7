"""Which hidden states become an embedding, which tokens see which, and what an embedder returns."""

from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

POOLINGS = ("last", "mean", "image")
ATTENTIONS = ("native", "bidirectional")


@dataclass
class UniMEOutput(ModelOutput):
    """What an embedder returns.

    Args:
        embeddings (`FloatTensor` `[N, D]`): in float32.
        last_hidden_state (`Tensor` `[N, L, D]`): in the model's dtype.
        past_key_values (`Cache`, *optional*): with `use_cache=True`.
        hidden_states (`tuple[Tensor]`, *optional*): `[N, L, D]` before each layer and after the last, with
            `output_hidden_states=True`.
        attentions (`tuple[Tensor]`, *optional*): `[N, heads, L, L]` of each layer, with `output_attentions=True`.
    """

    embeddings: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


def pool(hidden: torch.Tensor, attention_mask: torch.Tensor, is_image=None, pooling: str = "last") -> torch.Tensor:
    """One vector for each sequence, whichever side its padding is on.

    Args:
        hidden (`FloatTensor` `[N, L, D]`): last hidden states.
        attention_mask (`LongTensor` `[N, P + L]`): 0 at padding; also of P tokens that were run before, if any.
        is_image (`Tensor` `[N, L]`, *optional*): above 0 at the tokens of images; needed by `"image"`.
        pooling (`str`): `"last"` attended token; `"mean"` of all attended tokens; `"image"`: the mean over the tokens
            of an item's images and the marker on either side of each, or over all tokens where it has none.

    Returns:
        `FloatTensor` `[N, D]`, in float32 and not normalised, on the device of `hidden`.
    """
    # of several devices, the inputs are on the first and the hidden states on the last
    attention_mask = attention_mask[:, -hidden.shape[1] :].to(hidden.device)  # [N, L]
    if pooling == "last":
        columns = torch.arange(attention_mask.shape[1], device=hidden.device)  # [L]
        last = (attention_mask * columns).argmax(dim=1)  # [N]
        return hidden[torch.arange(len(hidden), device=hidden.device), last].float()

    weights = attention_mask.bool()  # [N, L]
    if pooling == "image" and is_image is not None:
        span = with_neighbours(is_image.to(hidden.device) > 0)
        has_image = span.any(dim=1, keepdim=True)  # [N, 1]
        weights = torch.where(has_image, span & weights, weights)
    weights = weights.float()
    sums = (hidden.float() * weights[:, :, None]).sum(dim=1)  # [N, D]
    return sums / weights.sum(dim=1, keepdim=True)


def with_neighbours(mask: torch.Tensor) -> torch.Tensor:
    """A mask `[N, L]` with the places directly before and after every one that is set."""
    wider = mask.clone()
    wider[:, :-1] |= mask[:, 1:]
    wider[:, 1:] |= mask[:, :-1]
    return wider


def bidirectional_mask(attention_mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to attention scores `[N, 1, L, L]` so that every token sees all but the padding.

    Args:
        attention_mask (`LongTensor` `[N, L]`): 0 at padding.
        dtype (`torch.dtype`): of the model.
    """
    length = attention_mask.shape[1]
    is_padding = attention_mask[:, None, None, :].expand(-1, 1, length, -1) == 0  # [N, 1, L, L]
    mask = torch.zeros(is_padding.shape, dtype=dtype, device=attention_mask.device)
    return mask.masked_fill(is_padding, torch.finfo(dtype).min)


__all__ = ["ATTENTIONS", "POOLINGS", "UniMEOutput", "bidirectional_mask", "pool", "with_neighbours"]
