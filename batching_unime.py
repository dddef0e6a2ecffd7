"""Batches of a limited number of padded tokens."""

from collections.abc import Sequence


def plan_chunks(
    lengths: Sequence[int],
    batch_tokens: int,
    max_padding: float = 0.05,
    slack: int = 256,
    boundary: int | None = None,
) -> list[list[int]]:
    """Packs sequences, sorted by length, into chunks of at most `batch_tokens` padded tokens each.

    A chunk is closed when the next, longer sequence would leave more than `max_padding` of it padded, unless that is
    fewer than `slack` tokens: starting another forward pass costs about as much as those. A single sequence above the
    budget gets a chunk of its own.

    Args:
        lengths (`Sequence[int]`): tokens of each sequence.
        batch_tokens (`int`): most padded tokens (longest x count) of one chunk.
        max_padding (`float`, defaults to 0.05): padded share above which a chunk is closed.
        slack (`int`, defaults to 256): padded tokens that are always tolerated.
        boundary (`int`, *optional*): sequences longer than this never share a chunk with shorter ones.

    Returns:
        `list[list[int]]`: indices into `lengths`; every index occurs exactly once, the longest sequences come first.

    Raises:
        ValueError: the budget is not positive.

    Example:

    ```python
    plan_chunks([10, 3, 12], batch_tokens=24)  # [[2], [1, 0]]: 12 tokens, then 2 x 10
    ```
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be positive, got {batch_tokens}.")

    chunks = []
    chunk = []  # the one that is being filled
    chunk_tokens = 0  # of its sequences, without padding

    # from short to long, so that every sequence is the longest of its chunk when it is added
    for index in sorted(range(len(lengths)), key=lambda index: (lengths[index], index)):
        length = lengths[index]
        shortest = lengths[chunk[0]] if chunk else length
        padded_tokens = length * (len(chunk) + 1)
        padding = padded_tokens - chunk_tokens - length

        crosses_boundary = boundary is not None and shortest <= boundary < length
        too_large = padded_tokens > batch_tokens
        too_much_padding = padding > max(slack, max_padding * padded_tokens)

        # an empty chunk takes any sequence, even one that is above the budget by itself
        if chunk and (crosses_boundary or too_large or too_much_padding):
            chunks.append(chunk)
            chunk = []
            chunk_tokens = 0

        chunk.append(index)
        chunk_tokens += length

    if chunk:
        chunks.append(chunk)

    # the longest first: a batch that does not fit the memory fails at once
    return chunks[::-1]
