"""Contrastive training against sentence-transformers' CachedMultipleNegativesRankingLoss: same weights, same inputs.

    python benchmarks/train_step.py             # LoRA over a frozen tower, full weights, repeated image candidates

A row is an anchor, a positive and eight negatives. In the first two cases half of all items carry an image; in the
third the candidates are images from a pool of 50. A step is everything from rows to gradients, preprocessing
included; each side runs in a process of its own, with chunks that give about the same peak memory. The two losses
are the same number where no candidate repeats, which is checked. The floor beside the figures is the time that the
matrix products of the distinct items alone would take, without padding and each run once, at the rate of a large
matrix product measured in the same run.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from unime import UniMEModel
from unime.data.collators import EmbeddingCollator
from unime.data.schema import Example, Item, to_dataset
from unime.miniature.backbone import build_config, build_tokenizer
from unime.trainers.adapters import adapted, find_targets, without_adapter
from unime.trainers.gradient_cache import ChunkEncoder, cached_loss
from unime.trainers.losses import HardNegativeInfoNCE
from unime.trainers.stage import plain_attention

WORDS = "a red circle left of the large blue star near two small green squares above one ring and some other thing"
TEMPERATURE, NEGATIVES = 0.05, 8
CASES = ("lora", "full", "repeated")


def make_rows(case: str, count: int, folder: Path) -> list[list[tuple[str, str]]]:
    """Rows of ten (text, image path) items; images have sides of 112 to 336 pixels."""
    words = WORDS.split()

    def picture(number):
        path = folder / f"{number}.png"
        if not path.exists():
            draw = random.Random(number)
            size = (draw.randint(112, 336), draw.randint(112, 336))
            Image.effect_noise(size, 90).convert("RGB").save(path)
        return str(path)

    def text(number):
        draw = random.Random(number)
        return " ".join(draw.choices(words, k=draw.randint(8, 60))) + f" {number}"

    if case == "repeated":
        pool = [picture(number) for number in range(50)]
        drawn = [random.Random(row).sample(pool, 1 + NEGATIVES) for row in range(count)]
        return [[(text(row), ""), *(("", image) for image in images)] for row, images in enumerate(drawn)]
    rows = []
    for row in range(count):
        numbers = [row * (2 + NEGATIVES) + column for column in range(2 + NEGATIVES)]
        rows.append([(text(n), picture(n) if (n + row) % 2 else "") for n in numbers])
    return rows


def make_repo(folder: Path) -> Path:
    """A Qwen2-VL with random weights in a repository that both sides read; the tower is 0.4 of the language model."""
    from transformers import Qwen2VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = build_tokenizer([WORDS], vocab_size=600)
    torch.manual_seed(0)
    config = build_config(tokenizer, hidden_size=384, layers=8, vision_size=288, vision_layers=6, patch_size=14)
    config.vision_config.temporal_patch_size = 2
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder / "backbone")
    Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}).save_pretrained(
        folder / "backbone"
    )
    tokenizer.save_pretrained(folder / "backbone")
    UniMEModel.from_backbone(folder / "backbone", preset="summary").save_pretrained(folder / "repo")
    method = {"method": "forward", "method_output_name": "embeddings"}
    modalities = {"text": method, "image": method, "image+text": method, "message": {**method, "format": "structured"}}
    module = "sentence_transformers.base.modules.transformer.Transformer"
    files = {
        "modules.json": [{"idx": 0, "name": "0", "path": "", "type": module}],
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": modalities,
            "module_output_name": "sentence_embedding",
            "processing_kwargs": {"chat_template": {"add_generation_prompt": True}},
        },
        "config_sentence_transformers.json": {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
    }
    for name, content in files.items():
        (folder / "repo" / name).write_text(json.dumps(content))
    return folder / "repo"


def with_lora(model):
    from peft import LoraConfig

    return adapted(model, LoraConfig(r=8, target_modules=find_targets(model)), seed=0)


def our_step(repo: Path, case: str, rows, budget: int, graph_tokens: int):
    """A function that runs one step and returns its loss."""
    model = UniMEModel.from_pretrained(repo, dtype=torch.float32)
    processor = model.processor
    plain_attention(model)  # what our commands do on a CPU
    model = (with_lora(model) if case == "lora" else model).train()
    examples = [Example(*(Item(*item) for item in row[:2]), [Item(*item) for item in row[2:]]) for row in rows]
    data, collator = list(to_dataset(examples)), EmbeddingCollator(processor, budget)
    loss = HardNegativeInfoNCE(TEMPERATURE, num_hard_negatives=None, false_negative_margin=None)
    encoder = ChunkEncoder(model, torch.device("cpu"))

    def step():
        batch = collator(data)["batch"]

        def loss_of(encoded):
            table = torch.empty_like(encoded).index_copy(0, batch.order, encoded)
            return loss(table, batch.query, batch.positive, batch.negatives)

        output = cached_loss(encoder, batch.chunks, loss_of, graph_tokens=graph_tokens)
        output.loss.backward()
        return output.loss.item()

    return model, step


def their_step(repo: Path, case: str, rows, mini_batch: int, _):
    """The same with the peer: one call of its preprocessing a column, its loss, its gradient cache."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss

    model = SentenceTransformer(str(repo), device="cpu", trust_remote_code=True, model_kwargs={"dtype": torch.float32})
    model[0].model.set_attn_implementation("sdpa")  # the stock vision attention, not ours
    if case == "lora":
        model[0].model = with_lora(model[0].model)
    model.train()
    loss = CachedMultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE, mini_batch_size=mini_batch)

    def message(text, image):
        kind = "sentence" if not image else "image and sentence" if text else "image"
        words = (f"\n{text}" if image and text else text) + f"\nSummary above {kind} in one word:"
        content = [{"type": "image", "image": Image.open(image).convert("RGB")}] if image else []
        return [{"role": "user", "content": [*content, {"type": "text", "text": words}]}]

    def step():
        columns = [model.preprocess([message(*row[column]) for row in rows]) for column in range(2 + NEGATIVES)]
        found = loss(columns, torch.zeros(len(rows)))
        found.backward()
        return found.item()

    return model, step


def floor_flops(model, rows) -> float:
    """FLOPs of one forward and backward over every distinct item alone."""
    items, total = list(dict.fromkeys(item for row in rows for item in row)), 0
    inputs = [{key: part for key, part in zip(("text", "image"), item) if part} for item in items]
    processor = without_adapter(model).processor
    for entry in processor.prepare(inputs):
        with FlopCounterMode(display=False) as counter:
            model(**processor.collate([entry])).embeddings.sum().backward()
        total += counter.get_total_flops()
    model.zero_grad()
    return total


def matmul_rate(size: int = 2048) -> float:
    """FLOPs a second of a large float32 matrix product."""
    a, best = torch.randn(size, size), float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def one(side: str, case: str, folder: Path, rows: int, size: int, graph_tokens: int, rounds: int) -> dict:
    data = make_rows(case, rows, folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model, step = (our_step if side == "unime" else their_step)(folder / "repo", case, data, size, graph_tokens)
    best, loss = float("inf"), None
    for _ in range(rounds + 1):  # the first warms up
        model.zero_grad()
        start = time.perf_counter()
        loss = step()
        best = min(best, time.perf_counter() - start) if _ else float("inf")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"seconds": best, "loss": loss, "peak_mib": peak // 1024, "start_mib": before // 1024}
    norm = sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None) ** 0.5
    found["gradient_norm"] = norm
    if side == "unime":
        found["floor_seconds"] = floor_flops(model, data) / matmul_rate()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, default=1024, help="ours: padded tokens of a chunk")
    parser.add_argument("--graph-tokens", type=int, default=2048, help="ours: tokens whose graph is kept from pass 1")
    parser.add_argument("--mini-batch", type=int, default=16, help="the peer's: sequences of a chunk")
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES)
    parser.add_argument("--one", nargs=3, metavar=("SIDE", "CASE", "FOLDER"), help="run one side, print JSON")
    options = parser.parse_args()
    if options.one:
        side, case, folder = options.one
        size = options.batch_tokens if side == "unime" else options.mini_batch
        print(json.dumps(one(side, case, Path(folder), options.rows, size, options.graph_tokens, options.rounds)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_repo(Path(folder))
        for case in options.cases:
            found = {}
            for side in ("peer", "unime"):
                command = [sys.executable, __file__, "--rows", str(options.rows), "--rounds", str(options.rounds)]
                command += ["--batch-tokens", str(options.batch_tokens), "--mini-batch", str(options.mini_batch)]
                command += ["--graph-tokens", str(options.graph_tokens)]
                output = subprocess.run(
                    [*command, "--one", side, case, folder], check=True, capture_output=True, text=True
                ).stdout
                found[side] = json.loads(output.strip().splitlines()[-1])
            ours, theirs = found["unime"], found["peer"]
            print(
                f"{case:9s} unime {options.rows / ours['seconds']:6.2f} rows/s   peer "
                f"{options.rows / theirs['seconds']:6.2f} rows/s   ratio {theirs['seconds'] / ours['seconds']:.2f}   "
                f"floor {options.rows / ours['floor_seconds']:.2f} rows/s   peak {ours['peak_mib']} and "
                f"{theirs['peak_mib']} MiB   loss {ours['loss']:.5f} and {theirs['loss']:.5f}   gradient norm "
                f"{ours['gradient_norm']:.5f} and {theirs['gradient_norm']:.5f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
