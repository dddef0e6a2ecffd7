"""The vision towers' attention over packed images: each image attends to itself, whatever the others' sizes."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from unime import attention_unime
from unime.attention_unime import packed_attention


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.booleans())
def test_every_image_attends_to_itself(lengths, trains):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, sum(lengths), 4, dtype=torch.float64).requires_grad_(trains)
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    result, _ = packed_attention(None, query, key, value, scaling=0.5, cu_seq_lens_q=ends)

    images = []
    for start, end in pairwise(ends):
        parts = (states[:, :, start:end] for states in (query, key, value))
        images.append(F.scaled_dot_product_attention(*parts, scale=0.5))
    assert torch.allclose(result, torch.cat(images, dim=2).transpose(1, 2), atol=1e-12)


def test_places_of_images_are_read_once_for_all_layers(embedder):
    """Each reading waits for a GPU."""
    from conftest import picture

    calls = attention_unime._images_by_length.cache_info
    before = calls()
    embedder.encode([picture(1), picture(2, (84, 56))])
    after = calls()
    depth = embedder.config.vlm_config.vision_config.depth
    assert depth > 1 and after.misses - before.misses == 1 and after.hits - before.hits == depth - 1


@pytest.mark.parametrize("threads", [1, 4])
def test_batches_come_in_order_however_many_threads_decode_them(embedder, monkeypatch, threads):
    from conftest import picture

    items = [picture(number) for number in range(6)]
    expected = embedder.encode(items)
    monkeypatch.setattr(f"{type(embedder)._batches.__module__}.decoding_threads", lambda device: threads)
    assert torch.allclose(embedder.encode(items, batch_tokens=1), expected, atol=1e-5)
