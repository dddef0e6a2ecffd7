"""Scoring 50 candidates of one image-and-text query: sharing what their prompts begin with, against pair by pair.

    python benchmarks/rerank_prefix.py                # float32 and bfloat16, text and image candidates

Both sides are the same weights (Qwen2-VL of hidden size 384, 8 layers, random) and give the same scores. Sides
alternate; the best of `--rounds` counts. The vision cache is emptied before every round, so no image is known.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from encode_throughput import WORDS
from PIL import Image
from transformers import Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from unime import UniMERerankerForCausalLM
from unime.miniature.backbone import build_config, build_tokenizer
from unime.prompts_unime import POINTWISE_INSTRUCTION


def make_backbone(folder: Path) -> Path:
    tokenizer = build_tokenizer([" ".join(WORDS), POINTWISE_INSTRUCTION, "Query: Candidate: Yes No"], vocab_size=800)
    tokenizer.model_max_length = 4096
    config = build_config(tokenizer, hidden_size=384, layers=8, vision_size=192, vision_layers=6, patch_size=14)
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    pixels = {"shortest_edge": 28 * 28, "longest_edge": 1024 * 28 * 28}
    Qwen2VLImageProcessorPil(patch_size=14, temporal_patch_size=1, merge_size=2, size=pixels).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def timed(reranker, query, candidates, share_prefix) -> tuple[float, torch.Tensor]:
    reranker.vision_cache.entries.clear()
    start = time.perf_counter()
    scores = reranker.score(query, candidates, share_prefix=share_prefix, show_progress=False)
    return time.perf_counter() - start, scores


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    image = lambda seed, side: Image.effect_noise((side, side), 40 + seed).convert("RGB")  # noqa: E731
    query = {"image": image(0, 448), "text": " ".join(WORDS)}
    kinds = {
        "text": [f"{WORDS[i % 17]} {' '.join(WORDS[: 3 + i % 12])} {i}" for i in range(options.candidates)],
        "image": [image(1 + i, 224) for i in range(options.candidates)],
    }
    print(
        "| dtype | candidates | pair by pair s | shared s | ratio | greatest difference |\n|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = make_backbone(Path(folder))
        for dtype in ("float32", "bfloat16"):
            reranker = UniMERerankerForCausalLM.from_backbone(path, dtype=dtype)
            for kind, candidates in kinds.items():
                timed(reranker, query, candidates[:4], True), timed(reranker, query, candidates[:4], False)
                best = {}
                for _ in range(options.rounds):
                    for share in (True, False):
                        seconds, scores = timed(reranker, query, candidates, share)
                        best[share] = (min(seconds, best[share][0]) if share in best else seconds, scores)
                gap = (best[True][1] - best[False][1]).abs().max()
                print(
                    f"| {dtype} | {options.candidates} {kind} | {best[False][0]:.2f} | {best[True][0]:.2f} | "
                    f"{best[False][0] / best[True][0]:.1f} | {gap:.1e} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
