"""Ranking 50 lists of 10 candidates: one listwise pass, against writing an answer of seven tokens, in the same run.

    python benchmarks/listwise.py

The model is that of `judging.py`, in float32 and bfloat16. A listwise pass shows all candidates in one prompt and
reads the distribution of the number that comes next. The other side is transformers alone: its model `generate`s an
answer to the same prompt, list by list, as UniME-V2 was released to be used; `Ans: (3)` and an end are seven tokens.
Sides alternate list by list, and the vision cache is emptied, so that no image is known.
"""

import argparse
import inspect
import random
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from common import WORDS, machine, make_judge_backbone, picture
from transformers import AutoModelForImageTextToText

from unime import UniMERerankerForCausalLM

ANSWER_TOKENS = 7


def make_lists(lists: int, candidates: int) -> list[tuple[dict, list]]:
    """Queries with their candidates: every other query has an image, and every fourth list is one of images."""
    rng = random.Random(0)
    requests = []
    for number in range(lists):
        query = {"text": " ".join(rng.choices(WORDS, k=20))}
        if number % 2:
            query["image"] = picture(448, 448, 20 + number % 80)

        options = []
        for place in range(candidates):
            if number % 4 == 0:
                options.append(picture(224, 224, 20 + (100 * number + place) % 80))
            else:
                options.append(f"{' '.join(rng.choices(WORDS, k=rng.randint(5, 30)))} {place}")
        requests.append((query, options))
    return requests


def rank(reranker: UniMERerankerForCausalLM, query: dict, candidates: list):
    """One listwise pass, which looks at all images."""
    reranker.vision_cache.entries.clear()
    reranker.rank(query, candidates, strategy="listwise", show_progress=False)


def generate(vlm, processor, query: dict, candidates: list):
    """An answer of so many tokens to the same prompt, by the stock model."""
    messages = processor.rerank_messages(query, candidates, "listwise")
    batch = processor.collate(processor.prepare([messages]), padding_side="left")

    # `generate` refuses what the VLM does not name
    names = inspect.signature(vlm.forward).parameters
    batch = {name: value for name, value in batch.items() if name in names}
    with torch.inference_mode():
        vlm.generate(
            **batch,
            max_new_tokens=ANSWER_TOKENS,
            min_new_tokens=ANSWER_TOKENS,
            do_sample=False,
            pad_token_id=processor.padding_id,
        )


def main():
    """Prints a table with a line for each dtype."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", type=int, default=50)
    parser.add_argument("--candidates", type=int, default=10)
    options = parser.parse_args()

    print(f"{machine()}\n")
    torch.manual_seed(0)
    requests = make_lists(options.lists, options.candidates)
    print(f"| dtype | lists | generation of {ANSWER_TOKENS} tokens s | listwise s | ratio | by list, median |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        backbone = make_judge_backbone(Path(folder))
        for dtype in ("float32", "bfloat16"):
            reranker = UniMERerankerForCausalLM.from_backbone(backbone, dtype=dtype).eval()
            stock = AutoModelForImageTextToText.from_pretrained(backbone, dtype=dtype).eval()
            sides = {"ours": partial(rank, reranker), "theirs": partial(generate, stock, reranker.processor)}
            seconds = {name: [] for name in sides}
            for side in sides.values():
                side(*requests[0])  # warms up

            for request in requests:
                for name, side in sides.items():
                    start = time.perf_counter()
                    side(*request)
                    seconds[name].append(time.perf_counter() - start)

            ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["theirs"])]
            ours = sum(seconds["ours"])
            theirs = sum(seconds["theirs"])
            print(
                f"| {dtype} | {options.lists} x {options.candidates} | {theirs:.1f} | {ours:.1f} | "
                f"{theirs / ours:.1f} | {statistics.median(ratios):.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
