"""What a GPU does with two backbones of two billion parameters: one table, in less than ten minutes on an H100.

    pip install sentence-transformers==6.2.0 bitsandbytes    # flash-attn too, if there is a wheel for your torch
    python benchmarks/gpu.py                                 # --tiny runs everything in small, on a CPU

Qwen2-VL-2B and Qwen3-VL-2B in shape, with random weights that are drawn on the spot: nothing is downloaded. In
bfloat16: encoding beside sentence-transformers, contrastive steps, judging with and without shared prefixes, and
weights of four and eight bits. In float32: whether a CPU and the GPU give the same embeddings.

"of peak" is the share of the rate of one large matrix product, measured first: floating point operations that the
model ran, padding included, by that rate and the seconds. A step is forward and backward of the whole batch through
the gradient cache, without optimizer; its batch is made before, its operations are those of all passes.
"""

import argparse
import gc
import importlib.util
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from common import WORDS, load_peer, machine, make_embedder, picture, summary_chat, timed_score
from encode_throughput import make_items
from judging import make_requests
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2VLConfig, Qwen3VLConfig
from transformers.utils import is_flash_attn_2_available

from unime import UniMEModel, UniMERerankerForCausalLM
from unime.data.collators import EmbeddingCollator
from unime.data.schema import Example, Item, to_dataset
from unime.miniature.backbone import build_config, build_tokenizer
from unime.prompts_unime import POINTWISE_INSTRUCTION
from unime.trainers.adapters import adapted, find_targets
from unime.trainers.gradient_cache import ChunkEncoder, cached_loss
from unime.trainers.losses import HardNegativeInfoNCE

PARTS = ("encode", "train", "judge", "quantised", "devices")
COLUMNS = ("backbone", "work", "seconds", "rate", "tokens/s", "of peak", "beside it", "ratio", "GiB")


@dataclass
class Row:
    """A line of the table; an empty cell has nothing to say.

    Args:
        backbone, work (`str`): what was run.
        seconds, rate, tokens, share (`str`): how long, how many items in a second, tokens too, and of the peak.
        beside, ratio (`str`): the same of what it is compared with, and how much faster we are.
        memory (`str`): most GiB of the device that were taken.
    """

    backbone: str
    work: str
    seconds: str = ""
    rate: str = ""
    tokens: str = ""
    share: str = ""
    beside: str = ""
    ratio: str = ""
    memory: str = ""

    def __str__(self):
        return f"| {' | '.join(astuple(self))} |"


@dataclass
class Measured:
    """A call: its seconds, its result, and GiB of the device at its peak."""

    seconds: float
    result: object
    memory: str


@dataclass
class Bench:
    """Where and on what everything runs.

    Args:
        name (`str`): of the backbone.
        folder (`Path`): holds its `backbone`, and a UniME `repo` over it.
        device (`str`): `"cuda"` or `"cpu"`.
        peak (`float`): operations a second of a large matrix product in bfloat16.
        options: of the command line.
    """

    name: str
    folder: Path
    device: str
    peak: float
    options: argparse.Namespace

    def embedder(self, dtype=torch.bfloat16, **kwargs) -> UniMEModel:
        """Our model on the device."""
        return UniMEModel.from_pretrained(self.folder / "repo", dtype=dtype, device_map=self.device, **kwargs).eval()

    def measure(self, call: Callable) -> Measured:
        """Runs something once."""
        self.wait()
        start = time.perf_counter()
        result = call()
        self.wait()
        seconds = time.perf_counter() - start

        memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if self.device == "cuda" else ""
        return Measured(seconds, result, memory)

    def wait(self):
        """Until the device has done all it was asked for."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def clear(self):
        """Gives memory back that nothing refers to, and forgets the peak."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def share(self, operations: float, seconds: float) -> str:
        """Of the peak, in percent."""
        return f"{operations / seconds / self.peak:.0%}"


# backbones
def qwen2_vl(tokenizer) -> Qwen2VLConfig:
    """Qwen2-VL-2B; its vision tower is what the class has by default."""
    text = {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    ids = special_ids(tokenizer, text)
    return Qwen2VLConfig(text_config=text, vision_config={"hidden_size": 1536}, tie_word_embeddings=True, **ids)


def qwen3_vl(tokenizer, tiny: bool = False) -> Qwen3VLConfig:
    """Qwen3-VL-2B, or two thin layers of the kind."""
    text = {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
    }
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    vision = {
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "patch_size": 16,
        "out_hidden_size": 2048,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [5, 11, 17],
    }
    if tiny:
        text |= {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": len(tokenizer)}
        text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
        rope |= {"mrope_section": [4, 2, 2]}
        vision |= {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
        vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}

    text["rope_parameters"] = rope
    ids = special_ids(tokenizer, text)
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)


def special_ids(tokenizer, text: dict) -> dict:
    """The ids that a configuration of the Qwen-VL family names; those of the language model go into `text`."""
    text |= {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text["tie_word_embeddings"] = True
    tokens = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    tokens |= {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
    return {name: tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in tokens.items()}


def make_backbones(folder: Path, device: str, tiny: bool):
    """Yields the name and folder of each backbone, whose files are removed before the next is written."""
    tokenizer = build_tokenizer([" ".join(WORDS), POINTWISE_INSTRUCTION, "Query: Candidate: Yes No"], vocab_size=800)
    tokenizer.model_max_length = 4096
    if tiny:
        configs = {"Qwen2-VL tiny": build_config(tokenizer, 192, 2, vision_size=48, vision_layers=1, patch_size=14)}
        configs["Qwen3-VL tiny"] = qwen3_vl(tokenizer, tiny=True)
    else:
        configs = {"Qwen2-VL-2B": qwen2_vl(tokenizer), "Qwen3-VL-2B": qwen3_vl(tokenizer)}

    for name, config in configs.items():
        with tempfile.TemporaryDirectory(dir=folder) as place:
            torch.manual_seed(0)
            make_embedder(Path(place), tokenizer, config, torch.bfloat16, device)
            yield name, Path(place)


def matmul_peak(device: str, size: int) -> float:
    """Operations a second of a large matrix product in bfloat16."""
    matrix = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    bench = Bench("", Path(), device, 0.0, argparse.Namespace())
    bench.measure(lambda: matrix @ matrix)

    def products():
        for _ in range(10):
            matrix @ matrix

    return 10 * 2 * size**3 / bench.measure(products).seconds


# parts of the table
def encode(bench: Bench):
    """Yields a row for each attention: mixed items, beside sentence-transformers with the same attention."""
    items = make_items(bench.options.items)
    chats = [summary_chat(item.get("text", ""), item.get("image")) for item in items]
    attentions = ["sdpa"]
    if bench.device == "cuda" and is_flash_attn_2_available():
        attentions.append("flash_attention_2")

    operations = None
    for attention in attentions:
        bench.clear()
        model = bench.embedder(attn_implementation=attention)
        tokens = sum(entry.length for entry in model.processor.prepare(items))

        # the first run warms up; kernels of FlashAttention are not counted, so the count is SDPA's
        with FlopCounterMode(display=False) as counter:
            model.encode(items, show_progress=False)
        operations = operations or counter.get_total_flops()
        ours = bench.measure(lambda model=model: model.encode(items, show_progress=False))
        del model

        peer = load_peer(bench.folder / "repo", torch.bfloat16, bench.device, attention)
        peer.encode(chats[:32], batch_size=32, show_progress_bar=False)
        theirs = bench.measure(lambda peer=peer: peer.encode(chats, batch_size=32, show_progress_bar=False))
        del peer

        yield Row(
            bench.name,
            f"encode {len(items)} mixed items, {attention}",
            f"{ours.seconds:.2f}",
            f"{len(items) / ours.seconds:.1f} items/s",
            f"{tokens / ours.seconds:,.0f}",
            bench.share(operations, ours.seconds),
            f"sentence-transformers {len(items) / theirs.seconds:.1f} items/s",
            f"{theirs.seconds / ours.seconds:.2f}",
            ours.memory,
        )


def train(bench: Bench):
    """Yields a row for each way of training and size of batch: texts search for images."""
    for kind in ("LoRA", "full"):
        bench.clear()

        # full weights are trained in float32, with products in bfloat16
        model = bench.embedder(torch.bfloat16 if kind == "LoRA" else torch.float32)
        processor = model.processor
        if kind == "LoRA":
            model = adapted(model, lora_config(model), seed=0)
        model.train()

        # as accelerate does it: the gradient cache calls the forward from a thread of autograd as well
        model.forward = torch.autocast(bench.device, torch.bfloat16)(model.forward)

        for size in bench.options.batches:
            batch = make_batch(processor, size, bench.options.batch_tokens)
            with FlopCounterMode(display=False) as counter:
                step(model, batch, bench.device)
            bench.clear()
            ours = bench.measure(lambda model=model, batch=batch: step(model, batch, bench.device))
            yield Row(
                bench.name,
                f"contrastive step, {kind}, batch {size}",
                f"{ours.seconds:.2f}",
                f"{size / ours.seconds:.1f} rows/s",
                f"{batch.tokens / ours.seconds:,.0f}",
                bench.share(counter.get_total_flops(), ours.seconds),
                memory=ours.memory,
            )


def lora_config(model):
    """An adapter of rank 16 over all layers of the language model."""
    from peft import LoraConfig

    return LoraConfig(r=16, target_modules=find_targets(model))


def make_batch(processor, size: int, batch_tokens: int):
    """Rows of a text and a picture of 336 x 336 pixels."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for number in range(size):
            path = f"{folder}/{number}.png"
            picture(336, 336, 20 + number % 80).save(path)
            rows.append(Example(Item(f"{' '.join(rng.choices(WORDS, k=30))} {number}"), Item(image=path), []))
        return EmbeddingCollator(processor, batch_tokens)(list(to_dataset(rows)))["batch"]


def step(model, batch, device: str):
    """Forward and backward of a whole batch."""
    loss = HardNegativeInfoNCE()
    order = batch.order.to(device)
    query = batch.query.to(device)
    positive = batch.positive.to(device)

    def loss_of(encoded):
        table = torch.empty_like(encoded).index_copy(0, order, encoded)  # [T, D]
        return loss(table, query, positive)

    model.zero_grad()
    cached_loss(ChunkEncoder(model, torch.device(device)), batch.chunks, loss_of).loss.backward()


def judge(bench: Bench):
    """Yields a row: requests with shared prefixes, beside pair by pair."""
    bench.clear()
    backbone = bench.folder / "backbone"
    reranker = UniMERerankerForCausalLM.from_backbone(backbone, dtype=torch.bfloat16, device_map=bench.device).eval()
    requests = make_requests(bench.options.queries, bench.options.candidates, mixture=True)
    pairs = len(requests) * bench.options.candidates
    timed_score(reranker, requests[0].query, requests[0].candidates[:4], share_prefix=True)  # warms up

    # scores come back to the CPU, so that a call ends when the device is done
    shared = sum(timed_score(reranker, request.query, request.candidates, True)[0] for request in requests)
    apart = sum(timed_score(reranker, request.query, request.candidates, False)[0] for request in requests)
    yield Row(
        bench.name,
        f"judge {len(requests)} x {bench.options.candidates} pairs, half images",
        f"{shared:.2f}",
        f"{pairs / shared:.1f} pairs/s",
        beside=f"pair by pair {pairs / apart:.1f} pairs/s",
        ratio=f"{apart / shared:.2f}",
    )


def quantised(bench: Bench):
    """Yields a row for each precision of the weights: how fast, how large, and how near to bfloat16."""
    if importlib.util.find_spec("bitsandbytes") is None:
        yield Row(bench.name, "nf4 and int8", "bitsandbytes is not installed")
        return

    items = make_items(max(4, bench.options.items // 4))
    baseline = None
    for quantization in (None, "nf4", "int8"):
        bench.clear()
        model = bench.embedder(quantization=quantization)
        model.encode(items[:4], show_progress=False)  # warms up
        ours = bench.measure(lambda model=model: model.encode(items, show_progress=False))
        del model

        baseline = baseline or ours
        cosine = (ours.result * baseline.result).sum(dim=1).min().item()
        yield Row(
            bench.name,
            f"encode {len(items)} mixed items, {quantization or 'bfloat16'}",
            f"{ours.seconds:.2f}",
            f"{len(items) / ours.seconds:.1f} items/s",
            beside=f"least cosine with bfloat16 {cosine:.4f}",
            ratio=f"{baseline.seconds / ours.seconds:.2f}",
            memory=ours.memory,
        )


def devices(bench: Bench):
    """Yields a row: how far embeddings in float32 are from those of the CPU."""
    bench.clear()
    items = make_items(6)
    model = bench.embedder(torch.float32)
    ours = model.encode(items, show_progress=False)
    expected = model.to("cpu").encode(items, show_progress=False)
    difference = (ours - expected).abs().max().item()
    yield Row(bench.name, f"encode {len(items)} items in float32, {bench.device} and CPU", beside=f"{difference:.1e}")


def main():
    """Prints the machine, its peak, and the table row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=384, help="items to encode")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 1024], help="rows of a contrastive step")
    parser.add_argument("--batch-tokens", type=int, default=2048, help="padded tokens of a chunk of a step")
    parser.add_argument("--queries", type=int, default=4, help="to judge for")
    parser.add_argument("--candidates", type=int, default=50, help="of each query")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="of the table")
    parser.add_argument("--tiny", action="store_true", help="small shapes and counts, to see that everything runs")
    options = parser.parse_args()
    if options.tiny:
        options.items = 6
        options.batches = [2]
        options.queries = 2
        options.candidates = 3

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.tiny:
        parser.error("there is no GPU here; --tiny runs small shapes on a CPU.")

    name = torch.cuda.get_device_name() if device == "cuda" else "no GPU"
    peak = matmul_peak(device, 256 if options.tiny else 8192)
    print(f"{name}; {machine()}; bfloat16 product {peak / 1e12:.1f} TFLOP/s\n")
    print(f"| {' | '.join(COLUMNS)} |")
    print(f"|{'---|' * len(COLUMNS)}", flush=True)

    parts = {"encode": encode, "train": train, "judge": judge, "quantised": quantised, "devices": devices}
    with tempfile.TemporaryDirectory() as folder:
        for backbone, place in make_backbones(Path(folder), device, options.tiny):
            bench = Bench(backbone, place, device, peak, options)
            for part in options.parts:
                for row in parts[part](bench):
                    print(row, flush=True)


if __name__ == "__main__":
    main()
