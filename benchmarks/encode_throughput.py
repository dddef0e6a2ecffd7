"""Encoding speed against sentence-transformers on the same weights, the same items and the same dtype, in one run.

    python benchmarks/encode_throughput.py            # float32 and bfloat16, 512 mixed items, hidden size 384

The peer reads the repository in its own way: `modules.json`, its own batching (items sorted by length), its own
preprocessing; with its default of 32 items a batch, and with other sizes, the best of which counts as well. Each side
encodes once to warm up on 32 items; sides alternate, and the best of `--rounds` counts.
"""

import argparse
import random
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from common import WORDS, load_peer, machine, make_embedder, picture, summary_chat

from unime import UniMEModel
from unime.miniature.backbone import build_config, build_tokenizer
from unime.processing_unime import plan_chunks
from unime.vlm_unime import most_tokens

PEER_DEFAULT = 32  # items of a batch


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


def compare(repo: Path, items: list[dict], dtype: torch.dtype, options: argparse.Namespace) -> str:
    """One line: items per second of both sides, their ratios, our padding, and how far the embeddings agree."""
    ours = UniMEModel.from_pretrained(repo, dtype=dtype).eval()
    theirs = load_peer(repo, dtype)
    messages = [summary_chat(item.get("text", ""), item.get("image")) for item in items]

    def encode_ours(count):
        return ours.encode(items[:count], batch_tokens=options.batch_tokens, show_progress=False)

    def encode_theirs(count, batch_size):
        return torch.as_tensor(theirs.encode(messages[:count], batch_size=batch_size, show_progress_bar=False))

    # warm up
    sides = {"unime": encode_ours}
    for batch_size in (PEER_DEFAULT, *options.peer_batches):
        sides[batch_size] = partial(encode_theirs, batch_size=batch_size)
    for encode in sides.values():
        encode(32)

    # sides alternate, so that a slow moment of the machine meets both
    best = {}  # seconds
    embeddings = {}
    for _ in range(options.rounds):
        for name, encode in sides.items():
            start = time.perf_counter()
            embeddings[name] = encode(len(items))  # [N, D]
            best[name] = min(time.perf_counter() - start, best.get(name, float("inf")))

    # they are of unit norm, so products are cosines
    agreement = (embeddings["unime"] * embeddings[PEER_DEFAULT].float()).sum(1).min().item()

    ours_seconds = best.pop("unime")
    batch_size = min(best, key=best.get)
    return (
        f"{dtype!s:15s} unime {ours_seconds:.1f} s, {len(items) / ours_seconds:.2f} items/s   sentence-transformers "
        f"{best[PEER_DEFAULT]:.1f} s, ratio {best[PEER_DEFAULT] / ours_seconds:.2f}   at its best, batches of "
        f"{batch_size}: {best[batch_size]:.1f} s, ratio {best[batch_size] / ours_seconds:.2f}   padded share "
        f"{padded_share(ours, items, options.batch_tokens):.3f}   lowest cosine between the two {agreement:.5f}"
    )


def padded_share(model: UniMEModel, items: list[dict], batch_tokens: int) -> float:
    """Share of the tokens of all our batches that are padding."""
    lengths = [entry.length for entry in model.processor.prepare(items)]
    # every row of a batch is as long as its longest
    padded = 0
    batch_tokens = min(batch_tokens, most_tokens(model.device, model.dtype))
    for chunk in plan_chunks(lengths, batch_tokens, slack=min(256, batch_tokens // 32)):
        padded += len(chunk) * max(lengths[place] for place in chunk)
    return 1 - sum(lengths) / padded


def main():
    """Prints one line for each dtype."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--peer-batches", type=int, nargs="*", default=[1, 8], help="beside the peer's default")
    options = parser.parse_args()

    print(machine())
    items = make_items(options.items)
    with tempfile.TemporaryDirectory() as folder:
        repo = make_repo(Path(folder))
        for dtype in (torch.float32, torch.bfloat16):
            print(compare(repo, items, dtype, options), flush=True)


if __name__ == "__main__":
    main()
