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
from common import SENTENCE, load_peer, machine, make_embedder, picture, summary_chat
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from unime import UniMEModel
from unime.data.collators import EmbeddingCollator
from unime.data.schema import Example, Item, to_dataset
from unime.miniature.backbone import build_config, build_tokenizer
from unime.trainers.adapters import adapted, find_targets, without_adapter
from unime.trainers.gradient_cache import ChunkEncoder, cached_loss
from unime.trainers.losses import HardNegativeInfoNCE
from unime.trainers.starting import plain_attention

TEXT = f"{SENTENCE} and some other thing"
TEMPERATURE = 0.05
NEGATIVES = 8
COLUMNS = 2 + NEGATIVES  # anchor, positive, negatives
CASES = ("lora", "full", "repeated")

Row = list[tuple[str, str]]  # a text and the path of an image for each column; either may be empty


# inputs
def make_rows(case: str, count: int, folder: Path) -> list[Row]:
    """The rows of a case; images have sides of 112 to 336 pixels and go to the folder."""
    rows = []
    # texts search among few pictures, so batches repeat them
    if case == "repeated":
        pool = [save_picture(number, folder) for number in range(50)]
        for number in range(count):
            images = random.Random(number).sample(pool, COLUMNS - 1)
            row = [(make_text(number), "")]
            row += [("", image) for image in images]
            rows.append(row)
        return rows

    # every other item has an image, and all are different
    for number in range(count):
        row = []
        for item in range(number * COLUMNS, (number + 1) * COLUMNS):
            image = save_picture(item, folder) if (item + number) % 2 else ""
            row.append((make_text(item), image))
        rows.append(row)
    return rows


def save_picture(number: int, folder: Path) -> str:
    """The path of a picture, which both sides read; its size is a function of its number."""
    path = folder / f"{number}.png"
    if not path.exists():
        rng = random.Random(number)
        width = rng.randint(112, 336)
        height = rng.randint(112, 336)
        picture(width, height, 90).save(path)
    return str(path)


def make_text(number: int) -> str:
    """Eight to 60 words and the number, so that no two texts are equal."""
    rng = random.Random(number)
    words = rng.choices(TEXT.split(), k=rng.randint(8, 60))
    return f"{' '.join(words)} {number}"


def make_repo(folder: Path) -> Path:
    """A repository that both sides read; the tower is 0.4 of the language model."""
    tokenizer = build_tokenizer([TEXT], vocab_size=600)
    torch.manual_seed(0)
    config = build_config(tokenizer, hidden_size=384, layers=8, vision_size=288, vision_layers=6, patch_size=14)
    return make_embedder(folder, tokenizer, config)


# the two sides: each a model, and a function that runs one step from rows to gradients and returns its loss
def with_lora(model):
    """A model with a LoRA over its language model, and everything else frozen."""
    from peft import LoraConfig

    return adapted(model, LoraConfig(r=8, target_modules=find_targets(model)), seed=0)


def our_step(repo: Path, case: str, rows: list[Row], batch_tokens: int, graph_tokens: int):
    """Our collator, loss and gradient cache, with chunks of so many tokens."""
    model = UniMEModel.from_pretrained(repo, dtype=torch.float32)
    processor = model.processor
    plain_attention(model)  # what our commands do on a CPU
    if case == "lora":
        model = with_lora(model)
    model.train()

    data = list(to_dataset(map(as_example, rows)))
    collator = EmbeddingCollator(processor, batch_tokens)
    loss = HardNegativeInfoNCE(TEMPERATURE, num_hard_negatives=None, false_negative_margin=None)
    encoder = ChunkEncoder(model, torch.device("cpu"))

    def step():
        batch = collator(data)["batch"]

        def loss_of(encoded):
            # chunks come in an order of their own
            table = torch.empty_like(encoded).index_copy(0, batch.order, encoded)  # [T, D]
            return loss(table, batch.query, batch.positive, batch.negatives)

        output = cached_loss(encoder, batch.chunks, loss_of, graph_tokens=graph_tokens)
        output.loss.backward()
        return output.loss.item()

    return model, step


def as_example(row: Row) -> Example:
    """A row as our trainers read it."""
    query, positive, *negatives = [Item(text, image) for text, image in row]
    return Example(query, positive, negatives)


def their_step(repo: Path, case: str, rows: list[Row], mini_batch: int):
    """The same with the peer: one call of its preprocessing a column, its loss, its gradient cache."""
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss

    model = load_peer(repo, torch.float32)
    if case == "lora":
        model[0].model = with_lora(model[0].model)
    model.train()
    loss = CachedMultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE, mini_batch_size=mini_batch)

    def step():
        columns = []
        for column in zip(*rows):
            chats = []
            for text, path in column:
                image = Image.open(path).convert("RGB") if path else None
                chats.append(summary_chat(text, image))
            columns.append(model.preprocess(chats))

        value = loss(columns, torch.zeros(len(rows)))  # labels are not used
        value.backward()
        return value.item()

    return model, step


# figures
def floor_flops(model, rows: list[Row]) -> float:
    """FLOPs of one forward and backward over every distinct item alone."""
    # equal items count once
    inputs = {}
    for row in rows:
        for text, image in row:
            inputs[text, image] = Item(text, image).as_input()

    processor = without_adapter(model).processor
    total = 0
    for entry in processor.prepare(list(inputs.values())):
        with FlopCounterMode(display=False) as counter:
            model(**processor.collate([entry])).embeddings.sum().backward()
        total += counter.get_total_flops()
    model.zero_grad()
    return total


def matmul_rate(size: int = 2048) -> float:
    """FLOPs a second of a large float32 matrix product."""
    matrix = torch.randn(size, size)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def resident() -> int:
    """Most MiB this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def run_here(side: str, case: str, folder: Path, options) -> dict:
    """Runs one side of a case in this process, and returns its figures."""
    rows = make_rows(case, options.rows, folder)
    start_mib = resident()
    if side == "unime":
        model, step = our_step(folder / "repo", case, rows, options.batch_tokens, options.graph_tokens)
    else:
        model, step = their_step(folder / "repo", case, rows, options.mini_batch)

    # the first round warms up; every round computes the same gradients
    seconds = []
    for _ in range(1 + options.rounds):
        model.zero_grad()
        start = time.perf_counter()
        loss = step()
        seconds.append(time.perf_counter() - start)
    peak_mib = resident()

    # loss and norm tell whether both sides computed the same
    squares = 0.0
    for parameter in model.parameters():
        if parameter.grad is not None:
            squares += float(parameter.grad.double().square().sum())

    figures = {
        "seconds": min(seconds[1:], default=float("inf")),
        "loss": loss,
        "peak_mib": peak_mib,
        "start_mib": start_mib,
        "gradient_norm": squares**0.5,
    }
    if side == "unime":
        figures["floor_seconds"] = floor_flops(model, rows) / matmul_rate()
    return figures


def run_apart(side: str, case: str, folder: str, options) -> dict:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--rows", str(options.rows), "--rounds", str(options.rounds)]
    command += ["--batch-tokens", str(options.batch_tokens), "--mini-batch", str(options.mini_batch)]
    command += ["--graph-tokens", str(options.graph_tokens), "--one", side, case, folder]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout

    # libraries may print lines before it
    return json.loads(output.strip().splitlines()[-1])


def main():
    """Prints a line for each case."""
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
        print(json.dumps(run_here(side, case, Path(folder), options)))
        return

    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        make_repo(Path(folder))
        for case in options.cases:
            theirs = run_apart("peer", case, folder, options)
            ours = run_apart("unime", case, folder, options)
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
