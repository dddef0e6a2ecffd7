"""Batches by a budget of padded tokens."""

from collections.abc import Sequence


def plan_chunks(
    lengths: Sequence[int],
    token_budget: int,
    max_padding: float = 0.05,
    slack: int = 256,
    boundary: int | None = None,
) -> list[list[int]]:
    """Packs sequences, sorted by length, into chunks of at most `token_budget` padded tokens each.

    A chunk is closed when the next, longer sequence would leave more than `max_padding` of it padded, unless that is
    fewer than `slack` tokens: starting another forward pass costs about as much as those. A single sequence above the
    budget gets a chunk of its own.

    Args:
        lengths (`Sequence[int]`): tokens of each sequence.
        token_budget (`int`): most padded tokens (longest x count) in one chunk.
        max_padding (`float`, defaults to 0.05): padded share above which a chunk is closed.
        slack (`int`, defaults to 256): padded tokens that are always tolerated.
        boundary (`int`, *optional*): sequences longer than this never share a chunk with shorter ones.

    Returns:
        `list[list[int]]`: indices into `lengths`; every index occurs exactly once, the longest sequences come first.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget must be positive, got {token_budget}.")
    chunks, tokens = [], 0
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        padded = lengths[index] * (len(chunks[-1]) + 1) if chunks else 0
        padding = padded - tokens - lengths[index]
        crosses = chunks and boundary is not None and lengths[chunks[-1][0]] <= boundary < lengths[index]
        if not chunks or crosses or padded > token_budget or padding > max(slack, max_padding * padded):
            chunks.append([])
            tokens = 0
        chunks[-1].append(index)
        tokens += lengths[index]
    return chunks[::-1]
