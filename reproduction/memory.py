"""What the gradient cache costs and gives: claim F13."""

import weakref

import torch
from torch import nn

from ..batching_unime import plan_chunks
from ..data.schema import Item
from ..trainers.gradient_cache import ChunkEncoder, cached_loss
from ..trainers.losses import HardNegativeInfoNCE
from ..trainers.starting import load_model
from .findings import Comparison, Finding
from .laboratory import Laboratory

CHUNK = 256  # padded tokens: a fraction of the smallest batch
FLAT = 1.1  # times the memory of the smallest batch
CLOSE = 1e-4  # relative difference of gradients, in float32


def cache_is_flat_and_exact(laboratory: Laboratory) -> Finding:
    """F13: with the gradient cache memory is flat in the batch, and gradients are the full batch's."""
    batches = laboratory.settings["memory_batches"]
    table = {}
    differences = []
    for batch in batches:
        cached_gradients, cached_bytes = _step(laboratory, batch, graph_tokens=0)
        whole_gradients, whole_bytes = _step(laboratory, batch, graph_tokens=2**40)
        differences.append(_relative_difference(cached_gradients, whole_gradients))
        table[f"{batch} pairs"] = {
            "with the cache, MB": f"{cached_bytes / 1e6:.2f}",
            "without, MB": f"{whole_bytes / 1e6:.2f}",
            "gradients differ by": f"{differences[-1]:.1e}",
        }

    first = table[f"{batches[0]} pairs"]
    last = table[f"{batches[-1]} pairs"]
    growth = float(last["with the cache, MB"]) / float(first["with the cache, MB"])
    growth_without = float(last["without, MB"]) / float(first["without, MB"])
    times = batches[-1] / batches[0]
    comparisons = [
        _exact(
            f"{times:.0f} times the batch with the cache: memory stays below {FLAT} times by", FLAT - growth, "times"
        ),
        _exact(
            f"{times:.0f} times the batch without the cache: memory grows more, by", growth_without - growth, "times"
        ),
        _exact(
            f"gradients with and without the cache: they differ by less than {CLOSE:.0e} by",
            CLOSE - max(differences),
            "",
        ),
    ]
    return Finding(
        "The bytes of all tensors that autograd keeps for the backward pass, at their highest in one step of "
        f"contrastive training of the miniature backbone, in chunks of {CHUNK} padded tokens; and the largest "
        "relative difference between the gradients of a step with the cache and of one without.",
        comparisons,
        table,
        notes=["Both numbers are exact: a repetition gives the same, so that the interval is the number itself."],
    )


def _exact(name: str, value: float, unit: str) -> Comparison:
    """A comparison of numbers that do not vary."""
    return Comparison(name, value, value, value, unit=unit)


def _step(laboratory: Laboratory, batch: int, graph_tokens: int) -> tuple[dict[str, torch.Tensor], int]:
    """One forward and backward pass over a batch: the gradients, and the most bytes kept for them."""
    model = load_model(laboratory.backbone, "joint").train()
    queries, positives, chunks = _batch(laboratory, model, batch)
    loss = HardNegativeInfoNCE(temperature=0.05, num_hard_negatives=None)

    with Kept() as kept:
        output = cached_loss(
            ChunkEncoder(model, model.device),
            chunks,
            lambda embeddings: loss(embeddings, queries, positives),
            graph_tokens=graph_tokens,
        )
        output.loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return gradients, kept.most


def _batch(laboratory: Laboratory, model: nn.Module, batch: int) -> tuple[torch.Tensor, torch.Tensor, list[dict]]:
    """Places of queries `[B]` and positives `[B]` in the table of embeddings, and the chunks that give it."""
    rows = laboratory.training_rows(["Shapes_t2i"]).select(range(batch))
    items = [Item(**row["query"]).as_input() for row in rows] + [Item(**row["positive"]).as_input() for row in rows]
    prepared = model.processor.prepare(items)
    plan = plan_chunks([entry.length for entry in prepared], CHUNK)

    chunks = [dict(model.processor.collate([prepared[index] for index in chunk])) for chunk in plan]
    order = torch.tensor([index for chunk in plan for index in chunk])
    places = torch.empty(len(order), dtype=torch.long)
    places[order] = torch.arange(len(order))  # of each item in the table
    return places[:batch], places[batch:], chunks


def _relative_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """The norm of the difference of all gradients, over their norm."""
    difference = sum(float((first[name] - second[name]).double().square().sum()) for name in first)
    whole = sum(float(gradient.double().square().sum()) for gradient in second.values())
    return (difference / whole) ** 0.5


class Kept:
    """A context that counts the bytes of the tensors that autograd keeps for a backward pass.

    A storage that several tensors share counts once, and no longer when nothing holds it. Weights are not counted:
    they are there anyway.

    Attributes:
        most (`int`): the most bytes at any time.
    """

    def __init__(self):
        self.bytes_of = {}  # address of a storage -> (bytes, how many kept tensors share it)
        self.now = 0
        self.most = 0

    def __enter__(self) -> "Kept":
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _Saved.tensor_of)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)

    def _pack(self, tensor: torch.Tensor) -> "_Saved":
        saved = _Saved(tensor)
        if isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter):
            return saved

        # counted until autograd lets go of it
        address = tensor.untyped_storage().data_ptr()
        size, holders = self.bytes_of.get(address, (tensor.untyped_storage().nbytes(), 0))
        if holders == 0:
            self.now += size
            self.most = max(self.most, self.now)
        self.bytes_of[address] = (size, holders + 1)
        weakref.finalize(saved, self._release, address)
        return saved

    def _release(self, address: int):
        size, holders = self.bytes_of.pop(address)
        if holders == 1:
            self.now -= size
        else:
            self.bytes_of[address] = (size, holders - 1)


class _Saved:
    """A tensor that autograd keeps, in an object whose end can be noticed."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor

    def tensor_of(self) -> torch.Tensor:
        """The tensor itself."""
        return self.tensor
