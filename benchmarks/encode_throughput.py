"""Encoding speed against sentence-transformers on the same weights, the same items and the same dtype, in one run.

    python benchmarks/encode_throughput.py            # float32 and bfloat16, 512 mixed items, hidden size 384

The peer reads the repository in its own way: `modules.json`, its own batching (32 items sorted by length), its own
preprocessing. Each side encodes once to warm up on 32 items; sides alternate, and the best of `--rounds` counts.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from transformers import Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from unime import UniMEModel
from unime.miniature.backbone import build_config, build_tokenizer
from unime.processing_unime import plan_chunks

WORDS = [
    "a",
    "red",
    "circle",
    "left",
    "of",
    "the",
    "large",
    "blue",
    "star",
    "near",
    "two",
    "small",
    "green",
    "squares",
    "above",
    "one",
    "ring",
]


def make_items(count: int, seed: int = 0) -> list:
    """A third texts of 3 to 300 tokens, a third images of 112 to 672 pixels, a third both."""
    rng, items = random.Random(seed), []
    for number in range(count):
        text = " ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 300)))
        size = (rng.randint(112, 672), rng.randint(112, 672))
        image = Image.effect_noise(size, 90).convert("RGB") if number % 3 else None
        items.append(text if image is None else image if number % 3 == 1 else {"image": image, "text": text})
    return items


def make_repo(folder: Path) -> Path:
    """A UniME repository over a Qwen2-VL of hidden size 384 with random weights, readable by sentence-transformers."""
    tokenizer = build_tokenizer([" ".join(WORDS)], vocab_size=600)
    tokenizer.model_max_length = 4096
    torch.manual_seed(0)
    config = build_config(tokenizer, hidden_size=384, layers=6, vision_size=192, vision_layers=6, patch_size=14)
    config.vision_config.temporal_patch_size = 2
    config.text_config.max_position_embeddings = 4096
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder / "backbone")
    Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}).save_pretrained(
        folder / "backbone"
    )
    tokenizer.save_pretrained(folder / "backbone")
    repo = folder / "repo"
    UniMEModel.from_backbone(folder / "backbone", preset="summary").save_pretrained(repo)
    method = {"method": "forward", "method_output_name": "embeddings"}
    modalities = {"text": method, "image": method, "image+text": method, "message": {**method, "format": "structured"}}
    files = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
        ],
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": modalities,
            "module_output_name": "sentence_embedding",
            "processing_kwargs": {"chat_template": {"add_generation_prompt": True}},
        },
        "config_sentence_transformers.json": {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
    }
    for name, content in files.items():
        (repo / name).write_text(json.dumps(content))
    return repo


def as_messages(items, processor) -> list:
    """The prompts of our preset, spelled out as chat messages, so that both sides feed the same tokens."""
    found = []
    for item in items:
        image = item if isinstance(item, Image.Image) else item.get("image") if isinstance(item, dict) else None
        text = item if isinstance(item, str) else item.get("text", "") if isinstance(item, dict) else ""
        kind = "sentence" if image is None else "image and sentence" if text else "image"
        words = (f"\n{text}" if image is not None and text else text) + f"\nSummary above {kind} in one word:"
        content = [{"type": "image", "image": image}] if image is not None else []
        found.append([{"role": "user", "content": [*content, {"type": "text", "text": words}]}])
    return found


def compare(repo: Path, items: list, dtype: torch.dtype, rounds: int, batch_tokens: int) -> str:
    """One line: items per second of both sides, their ratio, our padding, and how far the embeddings agree."""
    from sentence_transformers import SentenceTransformer

    ours = UniMEModel.from_pretrained(repo, dtype=dtype).eval()
    theirs = SentenceTransformer(str(repo), device="cpu", trust_remote_code=True, model_kwargs={"dtype": dtype})
    theirs[0].model.set_attn_implementation("sdpa")  # the stock vision attention, not ours
    messages = as_messages(items, ours.processor)
    sides = {
        "unime": lambda n: ours.encode(items[:n], batch_tokens=batch_tokens, show_progress=False),
        "peer": lambda n: torch.as_tensor(theirs.encode(messages[:n], batch_size=32, show_progress_bar=False)),
    }
    best, embeddings = {}, {}
    for encode in sides.values():
        encode(32)
    for _ in range(rounds):
        for name, encode in sides.items():
            start = time.perf_counter()
            embeddings[name] = encode(len(items))
            best[name] = min(time.perf_counter() - start, best.get(name, float("inf")))
    lengths = [entry.length for entry in ours.processor.prepare(items)]
    padded = sum(len(c) * max(lengths[i] for i in c) for c in plan_chunks(lengths, batch_tokens))
    agreement = (embeddings["unime"] * embeddings["peer"].float()).sum(1).min().item()
    return (
        f"{dtype!s:15s} unime {len(items) / best['unime']:6.2f} items/s   sentence-transformers "
        f"{len(items) / best['peer']:6.2f} items/s   ratio {best['peer'] / best['unime']:.2f}   padded share "
        f"{1 - sum(lengths) / padded:.3f}   lowest cosine between the two {agreement:.5f}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    options = parser.parse_args()
    items = make_items(options.items)
    with tempfile.TemporaryDirectory() as folder:
        repo = make_repo(Path(folder))
        for dtype in (torch.float32, torch.bfloat16):
            print(compare(repo, items, dtype, options.rounds, options.batch_tokens), flush=True)


if __name__ == "__main__":
    main()
