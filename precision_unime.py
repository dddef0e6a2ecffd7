"""Embeddings in fewer bytes."""

import numpy as np
import torch

from .prompts_unime import one_of


def quantize(embeddings, precision: str = "float32", ranges=None) -> torch.Tensor:
    """Embeddings in fewer bytes, with the results of sentence-transformers' `quantize_embeddings`.

    Args:
        embeddings (`FloatTensor` `[N, D]`).
        precision (`str`): `"float32"` leaves them alone; `"int8"` and `"uint8"` map the range of each dimension to
            256 steps; `"binary"` and `"ubinary"` keep the signs, 8 in a byte.
        ranges (`FloatTensor` `[2, D]`, *optional*): least and greatest value of each dimension, for `"int8"` and
            `"uint8"`. Queries and corpus must share them; by default they are those of `embeddings`, at least 100.

    Returns:
        float32 `[N, D]`, int8 or uint8 `[N, D]`, or int8 or uint8 `[N, ceil(D / 8)]`.

    Raises:
        ValueError: the precision is unknown, ranges are missing, or an embedding is not finite.
    """
    one_of("precision", precision, "float32", "int8", "uint8", "binary", "ubinary")
    if precision == "float32":
        return embeddings
    is_finite = torch.isfinite(embeddings).all(dim=1)
    if not is_finite.all():
        row = int(is_finite.logical_not().nonzero()[0])
        raise ValueError(f"embedding {row} holds NaN or infinity, which {precision} has no value for.")

    if precision.endswith("binary"):
        bits = np.packbits(embeddings.numpy() > 0, axis=1)
        return torch.from_numpy(bits if precision == "ubinary" else (bits - 128).astype(np.int8))

    if ranges is None and len(embeddings) < 100:
        raise ValueError(
            f"{precision} needs `ranges`, or at least 100 embeddings to take them from; got {len(embeddings)}."
        )
    if ranges is None:
        ranges = (embeddings.amin(0), embeddings.amax(0))
    lowest, highest = (torch.as_tensor(values, dtype=torch.float32) for values in ranges)
    steps = (highest - lowest) / 255
    steps = torch.where(steps == 0, 1, steps)
    buckets = ((embeddings - lowest) / steps).floor().clamp(0, 255)  # [N, D]
    return buckets.to(torch.uint8) if precision == "uint8" else (buckets - 128).to(torch.int8)


__all__ = ["quantize"]
