"""Encoding speed against sentence-transformers on the same weights, the same items and the same dtype, in one run.

    python benchmarks/encode_throughput.py            # float32 and bfloat16, 512 mixed items, hidden size 384

The peer reads the repository in its own way: `modules.json`, its own batching (32 items sorted by length), its own
preprocessing. Each side encodes once to warm up on 32 items; sides alternate, and the best of `--rounds` counts.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path

import torch
from common import WORDS, load_peer, machine, make_embedder, picture, summary_chat

from unime import UniMEModel
from unime.miniature.backbone import build_config, build_tokenizer
from unime.processing_unime import plan_chunks


def make_items(count: int, seed: int = 0) -> list[dict]:
    """A third texts of 3 to 300 tokens, a third images of 112 to 672 pixels, a third both."""
    rng = random.Random(seed)
    items = []
    for number in range(count):
        # drawn whether they are used or not
        words = [rng.choice(WORDS) for _ in range(rng.randint(3, 300))]
        width = rng.randint(112, 672)
        height = rng.randint(112, 672)

        item = {}
        if number % 3 != 0:
            item["image"] = picture(width, height, 90)
        if number % 3 != 1:
            item["text"] = " ".join(words)
        items.append(item)
    return items


def make_repo(folder: Path) -> Path:
    """A repository of hidden size 384 with random weights, which reads prompts of up to 4096 tokens."""
    tokenizer = build_tokenizer([" ".join(WORDS)], vocab_size=600)
    tokenizer.model_max_length = 4096
    torch.manual_seed(0)
    config = build_config(tokenizer, hidden_size=384, layers=6, vision_size=192, vision_layers=6, patch_size=14)
    config.text_config.max_position_embeddings = 4096
    return make_embedder(folder, tokenizer, config)


def compare(repo: Path, items: list[dict], dtype: torch.dtype, rounds: int, batch_tokens: int) -> str:
    """One line: items per second of both sides, their ratio, our padding, and how far the embeddings agree."""
    ours = UniMEModel.from_pretrained(repo, dtype=dtype).eval()
    theirs = load_peer(repo, dtype)
    messages = [summary_chat(item.get("text", ""), item.get("image")) for item in items]

    def encode_ours(count):
        return ours.encode(items[:count], batch_tokens=batch_tokens, show_progress=False)

    def encode_theirs(count):
        return torch.as_tensor(theirs.encode(messages[:count], batch_size=32, show_progress_bar=False))

    # warm up
    sides = {"unime": encode_ours, "peer": encode_theirs}
    for encode in sides.values():
        encode(32)

    # sides alternate, so that a slow moment of the machine meets both
    best = {}  # seconds
    embeddings = {}
    for _ in range(rounds):
        for name, encode in sides.items():
            start = time.perf_counter()
            embeddings[name] = encode(len(items))  # [N, D]
            best[name] = min(time.perf_counter() - start, best.get(name, float("inf")))

    # they are of unit norm, so products are cosines
    agreement = (embeddings["unime"] * embeddings["peer"].float()).sum(1).min().item()
    return (
        f"{dtype!s:15s} unime {len(items) / best['unime']:6.2f} items/s   sentence-transformers "
        f"{len(items) / best['peer']:6.2f} items/s   ratio {best['peer'] / best['unime']:.2f}   padded share "
        f"{padded_share(ours, items, batch_tokens):.3f}   lowest cosine between the two {agreement:.5f}"
    )


def padded_share(model: UniMEModel, items: list[dict], batch_tokens: int) -> float:
    """Share of the tokens of all our batches that are padding."""
    lengths = [entry.length for entry in model.processor.prepare(items)]
    # every row of a batch is as long as its longest
    padded = 0
    for chunk in plan_chunks(lengths, batch_tokens):
        padded += len(chunk) * max(lengths[place] for place in chunk)
    return 1 - sum(lengths) / padded


def main():
    """Prints one line for each dtype."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    options = parser.parse_args()

    print(machine())
    items = make_items(options.items)
    with tempfile.TemporaryDirectory() as folder:
        repo = make_repo(Path(folder))
        for dtype in (torch.float32, torch.bfloat16):
            print(compare(repo, items, dtype, options.rounds, options.batch_tokens), flush=True)


if __name__ == "__main__":
    main()
