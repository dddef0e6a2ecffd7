"""Judging 20 queries with 50 candidates each: with shared prefixes, and pair by pair, in the same run.

    python benchmarks/judging.py

Half of the queries have an image, and half of the candidate lists are images; then queries with an image and short
texts alone. Both sides are the same weights (those of `rerank_prefix.py`) in float32 and bfloat16, and alternate query
by query. The floor is the ratio of the floating point operations that the two sides cannot avoid: products with
weights and attention, over the tokens and image patches that each of them runs.
"""

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
from encode_throughput import WORDS
from PIL import Image
from rerank_prefix import make_backbone

from unime import UniMERerankerForCausalLM
from unime.scoring_unime import SharedPrefix


def picture(seed: int, side: int) -> Image.Image:
    return Image.effect_noise((side, side), 20 + seed % 80).convert("RGB")


def requests(queries: int, candidates: int, mixture: bool, seed: int = 0) -> list[tuple]:
    """Queries with their candidates; without `mixture`, queries with an image and short texts."""
    rng, found = random.Random(seed), []
    for number in range(queries):
        text = " ".join(rng.choices(WORDS, k=20))
        query = {"text": text}
        if not mixture or number % 2:
            query["image"] = picture(number, 448)
        if mixture and number % 4 >= 2:
            others = [picture(1000 * number + i, 224) for i in range(candidates)]
        else:
            others = [" ".join(rng.choices(WORDS, k=rng.randint(2, 10))) + f" {i}" for i in range(candidates)]
        found.append((query, others))
    return found


def judge(reranker, query, others, share: bool) -> tuple[float, torch.Tensor]:
    reranker.vision_cache.entries.clear()
    start = time.perf_counter()
    scores = reranker.score(query, others, share_prefix=share, show_progress=False)
    return time.perf_counter() - start, scores


def flops(reranker, asked) -> tuple[float, float]:
    """Operations pair by pair and with shared prefixes, each image seen once a query in the latter."""
    config = reranker.config.vlm_config
    text, vision = config.text_config, config.vision_config
    layer = sum(p.numel() for p in reranker.vlm.model.language_model.layers[0].parameters() if p.ndim == 2)
    block = sum(p.numel() for p in reranker.vlm.model.visual.blocks[0].parameters() if p.ndim == 2)

    def language(new: int, before: int = 0) -> float:
        attention = 4 * text.hidden_size * (new * before + new * (new + 1) / 2)
        return text.num_hidden_layers * (2 * layer * new + attention)

    def look(tokens: int) -> float:
        patches = 4 * tokens  # four patches are merged to a token
        return vision.depth * (2 * block * patches + 4 * vision.embed_dim * patches**2)

    apart = shared = 0.0
    for query, others in asked:
        turns = [reranker.processor.rerank_messages(query, [other], "pointwise") for other in others]
        prepared = reranker.processor.prepare(turns)
        prefix = SharedPrefix.of(reranker, prepared, 8192)
        apart += sum(language(entry.length) + sum(map(look, entry.image_tokens)) for entry in prepared)
        distinct = {id(i): tokens for entry in prepared for i, tokens in zip(entry.images, entry.image_tokens)}
        shared += language(prefix.length) + sum(map(look, distinct.values()))
        shared += sum(language(entry.length - prefix.length, prefix.length) for entry in prepared)
    return apart, shared


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--candidates", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    torch.manual_seed(0)
    print("| dtype | requests | pair by pair s | shared s | ratio | rounds | floor | pairs/s | greatest difference |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        path = make_backbone(Path(folder))
        for dtype in ("float32", "bfloat16"):
            reranker = UniMERerankerForCausalLM.from_backbone(path, dtype=dtype).eval()
            for name, mixture in (("half images", True), ("image query, short texts", False)):
                asked = requests(options.queries, options.candidates, mixture)
                for share in (True, False):
                    judge(reranker, *requests(1, 4, mixture)[0], share)
                totals, gap = {True: [], False: []}, 0.0
                for _ in range(options.rounds):
                    seconds = {True: 0.0, False: 0.0}
                    for query, others in asked:
                        scores = {}
                        for share in (True, False):
                            took, scores[share] = judge(reranker, query, others, share)
                            seconds[share] += took
                        gap = max(gap, float((scores[True] - scores[False]).abs().max()))
                    for share, value in seconds.items():
                        totals[share].append(value)
                ratios = [apart / shared for apart, shared in zip(totals[False], totals[True])]
                with torch.inference_mode():
                    apart, shared = flops(reranker, asked)
                best = min(totals[True])
                print(
                    f"| {dtype} | {options.queries} x {options.candidates}, {name} | {min(totals[False]):.1f} | "
                    f"{best:.1f} | {statistics.median(ratios):.1f} | {', '.join(f'{r:.1f}' for r in ratios)} | "
                    f"{apart / shared:.1f} | {options.queries * options.candidates / best:.0f} | {gap:.1e} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
