"""Judging 20 queries with 50 candidates each: shared prefixes, pair by pair, and a `CrossEncoder`, in the same run.

    pip install sentence-transformers==6.2.0
    python benchmarks/judging.py

Half of the queries have an image, and half of the candidate lists are images; then queries with an image and short
texts alone. All sides are the same weights (those of `rerank_prefix.py`) in float32 and bfloat16, and alternate query
by query; sentence-transformers reads the saved reranker, with its defaults. The floor is the ratio of the floating
point operations that judging pair by pair and with shared prefixes cannot avoid: products with weights and attention,
over the tokens and image patches that each of them runs.
"""

import argparse
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from common import WORDS, machine, make_judge_backbone, picture, timed_score

from unime import UniMERerankerForCausalLM
from unime.scoring_unime import SharedPrefix


@dataclass
class Request:
    """A query, and the candidates that are judged for it."""

    query: dict
    candidates: list


def make_requests(queries: int, candidates: int, mixture: bool, seed: int = 0) -> list[Request]:
    """Queries with their candidates; without `mixture`, queries with an image and short texts."""
    rng = random.Random(seed)
    requests = []
    for number in range(queries):
        request = Request({"text": " ".join(rng.choices(WORDS, k=20))}, [])
        # of four queries, two have an image, and two have images for candidates: all four combinations
        if not mixture or number % 2:
            request.query["image"] = picture(448, 448, 20 + number % 80)

        for place in range(candidates):
            if mixture and number % 4 >= 2:
                candidate = picture(224, 224, 20 + (1000 * number + place) % 80)
            else:
                words = rng.choices(WORDS, k=rng.randint(2, 10))
                candidate = f"{' '.join(words)} {place}"
            request.candidates.append(candidate)
        requests.append(request)
    return requests


@dataclass
class Timing:
    """Seconds of every round with shared prefixes, pair by pair and by a `CrossEncoder`; the greatest difference
    between the scores of the first and those of the others."""

    shared: list[float]
    apart: list[float]
    encoder: list[float]
    gap: float


def load_encoder(reranker: UniMERerankerForCausalLM, folder: Path, dtype: str):
    """The same weights as a `CrossEncoder` of sentence-transformers, which batches pairs in its own way."""
    from sentence_transformers import CrossEncoder

    repo = str(folder / f"reranker-{dtype}")
    reranker.save_pretrained(repo)
    return CrossEncoder(repo, trust_remote_code=True, device="cpu", model_kwargs={"dtype": dtype})


def time_all(reranker: UniMERerankerForCausalLM, encoder, requests: list[Request], rounds: int) -> Timing:
    """Judges all requests in all ways, query by query."""
    timing = Timing(shared=[], apart=[], encoder=[], gap=0.0)
    for _ in range(rounds):
        shared_seconds = 0.0
        apart_seconds = 0.0
        encoder_seconds = 0.0
        for request in requests:
            seconds, shared_scores = timed_score(reranker, request.query, request.candidates, share_prefix=True)
            shared_seconds += seconds
            seconds, apart_scores = timed_score(reranker, request.query, request.candidates, share_prefix=False)
            apart_seconds += seconds

            start = time.perf_counter()
            encoder_scores = encoder.predict([(request.query, candidate) for candidate in request.candidates])
            encoder_seconds += time.perf_counter() - start

            for scores in (apart_scores, torch.as_tensor(encoder_scores).float()):
                timing.gap = max(timing.gap, (shared_scores - scores).abs().max().item())
        timing.encoder.append(encoder_seconds)
        timing.shared.append(shared_seconds)
        timing.apart.append(apart_seconds)
    return timing


class Operations:
    """Counts the floating point operations of a judge: products with weights, and attention.

    Args:
        reranker ([`~unime.UniMERerankerForCausalLM`]): a Qwen2-VL.
    """

    def __init__(self, reranker: UniMERerankerForCausalLM):
        self.reranker = reranker
        self.text = reranker.config.vlm_config.text_config
        self.vision = reranker.config.vlm_config.vision_config
        self.layer_weights = self._weights(reranker.vlm.model.language_model.layers[0])
        self.block_weights = self._weights(reranker.vlm.model.visual.blocks[0])

    @staticmethod
    def _weights(module) -> int:
        """Parameters of the module's matrices."""
        return sum(parameter.numel() for parameter in module.parameters() if parameter.ndim == 2)

    def language(self, new: int, before: int = 0) -> float:
        """Of the language model over new tokens, which also attend to tokens that were run before."""
        # a token attends to all before it and to itself: scores, and then sums of values
        pairs = new * before + new * (new + 1) / 2
        attention = 4 * self.text.hidden_size * pairs
        return self.text.num_hidden_layers * (2 * self.layer_weights * new + attention)

    def images(self, tokens: list[int]) -> float:
        """Of the vision tower over images with so many tokens."""
        total = 0.0
        for count in tokens:
            patches = 4 * count  # four patches are merged to a token
            attention = 4 * self.vision.embed_dim * patches**2
            total += self.vision.depth * (2 * self.block_weights * patches + attention)
        return total

    def ratio(self, requests: list[Request]) -> float:
        """Those of judging pair by pair over those with shared prefixes, where each image is seen once a query."""
        apart = 0.0
        shared = 0.0
        for request in requests:
            turns = []
            for candidate in request.candidates:
                turns.append(self.reranker.processor.rerank_messages(request.query, [candidate], "pointwise"))
            prepared = self.reranker.processor.prepare(turns)
            prefix = SharedPrefix.of(self.reranker, prepared, 8192)

            # the query and the images are run once, the rest of each candidate's prompt behind the query
            shared += self.language(prefix.length)
            distinct = {}  # tokens of each image
            for entry in prepared:
                apart += self.language(entry.length) + self.images(entry.image_tokens)
                shared += self.language(entry.length - prefix.length, prefix.length)
                for image, tokens in zip(entry.images, entry.image_tokens):
                    distinct[id(image)] = tokens
            shared += self.images(distinct.values())
        return apart / shared


def main():
    """Prints a table with a line for each dtype and kind of requests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--candidates", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()

    print(f"{machine()}\n")
    torch.manual_seed(0)
    columns = ("dtype", "requests", "pair by pair s", "CrossEncoder s", "shared s", "ratio to pair by pair", "to it")
    columns += ("floor", "pairs/s", "greatest difference")
    print(f"| {' | '.join(columns)} |")
    print(f"|{'---|' * len(columns)}")
    with tempfile.TemporaryDirectory() as folder:
        backbone = make_judge_backbone(Path(folder))
        for dtype in ("float32", "bfloat16"):
            reranker = UniMERerankerForCausalLM.from_backbone(backbone, dtype=dtype).eval()
            encoder = load_encoder(reranker, Path(folder), dtype)
            for name, mixture in (("half images", True), ("image query, short texts", False)):
                requests = make_requests(options.queries, options.candidates, mixture)
                time_all(reranker, encoder, make_requests(1, 4, mixture), rounds=1)  # warms up
                timing = time_all(reranker, encoder, requests, options.rounds)
                with torch.inference_mode():
                    floor = Operations(reranker).ratio(requests)
                print(
                    f"| {dtype} | {options.queries} x {options.candidates}, {name} | "
                    f"{line(timing, options.queries * options.candidates, floor)} |",
                    flush=True,
                )


def line(timing: Timing, pairs: int, floor: float) -> str:
    """The figures of a line of the table."""
    # of each round, as both sides of a round met the same machine
    to_apart = [apart / shared for apart, shared in zip(timing.apart, timing.shared)]
    to_encoder = [encoder / shared for encoder, shared in zip(timing.encoder, timing.shared)]
    best = min(timing.shared)
    cells = (
        f"{min(timing.apart):.1f}",
        f"{min(timing.encoder):.1f}",
        f"{best:.1f}",
        f"{statistics.median(to_apart):.1f}",
        f"{statistics.median(to_encoder):.1f}",
        f"{floor:.1f}",
        f"{pairs / best:.0f}",
        f"{timing.gap:.1e}",
    )
    return " | ".join(cells)


if __name__ == "__main__":
    main()
