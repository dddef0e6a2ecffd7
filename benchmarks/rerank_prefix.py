"""Scoring 50 candidates of one image-and-text query: sharing what their prompts begin with, against pair by pair.

    python benchmarks/rerank_prefix.py                # float32 and bfloat16, text and image candidates

Both sides are the same weights (Qwen2-VL of hidden size 384, 8 layers, random) and give the same scores. Sides
alternate; the best of `--rounds` counts. The vision cache is emptied before every round, so no image is known.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from common import WORDS, machine, make_judge_backbone, picture, timed_score

from unime import UniMERerankerForCausalLM


def make_candidates(count: int) -> dict[str, list]:
    """Texts of 5 to 16 words, and images of 224 x 224 pixels, all different."""
    texts = []
    images = []
    for number in range(count):
        # texts begin with different words, so that most share no more than the prompt
        words = [WORDS[number % len(WORDS)], *WORDS[: 3 + number % 12], str(number)]
        texts.append(" ".join(words))
        images.append(picture(224, 224, 41 + number))
    return {"text": texts, "image": images}


def compare(
    reranker: UniMERerankerForCausalLM, query: dict, candidates: list, rounds: int
) -> tuple[float, float, float]:
    """Least seconds pair by pair and with a shared prefix, and the greatest difference of their scores."""
    # warm up
    for share in (True, False):
        timed_score(reranker, query, candidates[:4], share)

    # sides alternate, so that a slow moment of the machine meets both
    best = {True: float("inf"), False: float("inf")}
    scores = {}
    for _ in range(rounds):
        for share in (True, False):
            seconds, scores[share] = timed_score(reranker, query, candidates, share)
            best[share] = min(best[share], seconds)

    gap = (scores[True] - scores[False]).abs().max().item()
    return best[False], best[True], gap


def main():
    """Prints a table with a line for each dtype and kind of candidates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    print(f"{machine()}\n")
    torch.manual_seed(0)
    query = {"image": picture(448, 448, 40), "text": " ".join(WORDS)}
    candidates_by_kind = make_candidates(options.candidates)
    print("| dtype | candidates | pair by pair s | shared s | ratio | greatest difference |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        backbone = make_judge_backbone(Path(folder))
        for dtype in ("float32", "bfloat16"):
            reranker = UniMERerankerForCausalLM.from_backbone(backbone, dtype=dtype)
            for kind, candidates in candidates_by_kind.items():
                apart, shared, gap = compare(reranker, query, candidates, options.rounds)
                print(
                    f"| {dtype} | {options.candidates} {kind} | {apart:.2f} | {shared:.2f} | "
                    f"{apart / shared:.1f} | {gap:.1e} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
