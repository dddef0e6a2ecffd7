"""Qwen3.5, whose layers of linear attention keep a running state: nothing in a batch may leak into it."""

import numpy as np
import pytest
import torch
from conftest import picture
from test_gradient_cache import EVERYTHING, difference, rows, trained

from unime import UniMEModel, UniMERerankerForCausalLM

QUERY = {"text": "which one", "image": picture(3, (84, 56))}
CANDIDATES = ["a", "a much longer candidate than the first", {"image": picture(0, (56, 56))}, "b c"]


@pytest.fixture(scope="module")
def judge(tiny):
    return UniMERerankerForCausalLM.from_backbone(tiny("qwen3_5")[0])


def test_padding_on_either_side_leaves_embeddings_alone(tiny):
    model = UniMEModel.from_backbone(tiny("qwen3_5")[0])
    items = ["x", {"text": "a cat", "image": picture(1)}, "a much longer text " * 9]
    prepared = model.processor.prepare(items)
    alone = torch.stack([model.encode(item, fusion="joint") for item in items])
    for side in ("left", "right"):
        with torch.no_grad():
            embeddings = model(**model.processor.collate(prepared, padding_side=side)).embeddings
        assert (embeddings - alone).abs().max() <= 1e-5


def test_prompts_share_the_state_behind_what_they_begin_with(judge):
    apart = torch.cat([judge.score(QUERY, [candidate], share_prefix=False) for candidate in CANDIDATES])
    assert (judge.score(QUERY, CANDIDATES) - apart).abs().max() <= 1e-5
    assert (judge.score(QUERY, CANDIDATES, batch_tokens=64) - apart).abs().max() <= 1e-5
    assert apart.unique().numel() == 4

    # in one batch and in batches of one, which have no padding
    entries = judge.rank(QUERY, [f"candidate {i}" for i in range(11)], strategy="listwise")
    alone = judge.rank(QUERY, [f"candidate {i}" for i in range(11)], strategy="listwise", batch_tokens=1)
    assert [entry["score"] for entry in entries] == pytest.approx([entry["score"] for entry in alone], abs=1e-5)


def test_frames_of_a_video_are_embedded_and_judged(tiny, judge):
    frames = [np.asarray(picture(seed, (56, 56))) for seed in range(4)]
    video = {"text": "what moves", "video": frames}
    model = UniMEModel.from_backbone(tiny("qwen3_5")[0])
    together = model.encode([video, "x"])
    assert (together[0] - model.encode(video)).abs().max() <= 1e-5
    apart = torch.cat([judge.score(video, [candidate], share_prefix=False) for candidate in CANDIDATES])
    assert (judge.score(video, CANDIDATES) - apart).abs().max() <= 1e-5


def test_the_gradient_cache_gives_the_gradient_of_the_full_batch(tiny, tmp_path):
    data, path = rows(tmp_path), tiny("qwen3_5")[0]
    whole = first_step(trained(path, data, tmp_path, **EVERYTHING))

    # its delta rule is computed in float32 whatever the model is, and its keys are divided by their own small norms
    assert difference(first_step(trained(path, data, tmp_path, graph_tokens=0)), whole) <= 1e-3


def first_step(gradients: dict) -> dict:
    """Those of the first step: a step on these steep weights makes another model of a difference in the last digit."""
    return {name: gradient for name, gradient in gradients.items() if name.endswith(" 0")}
