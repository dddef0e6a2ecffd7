"""A batch is a table of distinct items plus indices.

The collator lists every distinct item of a batch once, whatever its role, and `query`, `positive` and `negatives`
point into that table. A label that occurs forty times is encoded once, and a copy of the positive can never be taken
for a negative, because it has the same index.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..batching_unime import plan_chunks
from ..processing_unime import UniMEProcessor
from .schema import to_example


@dataclass
class Batch:
    """The table of a batch, cut into chunks, and the indices of its rows.

    Attributes:
        chunks (`list[dict]`): tensors of the model's forward, at most `batch_tokens` padded tokens each.
        order (`LongTensor` `[T]`): table index of each encoded row, in the order of the chunks.
        hashes (`LongTensor` `[T]`): content hash of each item of the table.
        query, positive (`LongTensor` `[B]`), negatives (`LongTensor` `[B, K]`, -1 pads): indices into the table.
        positive_score (`FloatTensor` `[B]`), negative_scores (`[B, K]`): judge scores, NaN where there are none.
        dataset (`list[str]`): name of the data set of each row.
        tokens (`int`), padded_tokens (`int`): without and with padding.
    """

    chunks: list
    order: torch.Tensor
    hashes: torch.Tensor
    query: torch.Tensor
    positive: torch.Tensor
    negatives: torch.Tensor
    positive_score: torch.Tensor
    negative_scores: torch.Tensor
    dataset: list[str]
    tokens: int
    padded_tokens: int


class EmbeddingCollator:
    """Turns rows (or [`~unime.data.schema.Example`] dicts) into a [`Batch`], clusters into one anchor a member.

    Queries are rendered with the preset's query prompts, all other items with its document prompts.

    Args:
        processor (`UniMEProcessor`): renders and tokenises the items.
        batch_tokens (`int`): most padded tokens of one chunk.
        max_length (`int`, *optional*): cut longer texts.
        max_negatives (`int`, *optional*): use only the first ones of each row.
        length_boundary (`int`, *optional*): see [`~unime.items_unime.plan_chunks`]; the configuration knows it.
        resolution (`str`, *optional*): policy for the size of images; the processor's by default.

    Raises:
        ValueError: an item has text and image, but the processor embeds those as a sum of two embeddings.
    """

    def __init__(
        self,
        processor: UniMEProcessor,
        batch_tokens: int = 8192,
        max_length: int | None = None,
        max_negatives: int | None = None,
        length_boundary: int | None = None,
        resolution: str | None = None,
    ):
        self.processor, self.batch_tokens = processor, batch_tokens
        self.max_length, self.max_negatives, self.length_boundary = max_length, max_negatives, length_boundary
        self.resolution = resolution
        self._most_members = None if max_negatives is None else max_negatives + 1

    def __call__(self, rows: Sequence[dict]) -> dict[str, Batch]:
        examples = [member for row in rows for member in to_example(row).members()[: self._most_members]]
        table: dict = {}  # (role, item) -> index

        def index(role, item):
            return table.setdefault((role, item), len(table))

        query = [index("query", example.query) for example in examples]
        positive = [index("document", example.positive) for example in examples]
        negatives = [[index("document", n) for n in example.negatives[: self.max_negatives]] for example in examples]
        width = max(map(len, negatives))
        prepared = self._prepare(table)
        lengths = [entry.length for entry in prepared]
        chunks = plan_chunks(lengths, self.batch_tokens, boundary=self.length_boundary)[::-1]  # the longest come last
        tensors = [dict(self.processor.collate([prepared[i] for i in chunk])) for chunk in chunks]
        scores = [example.negative_scores[: self.max_negatives] for example in examples]
        batch = Batch(
            chunks=tensors,
            order=torch.tensor([i for chunk in chunks for i in chunk]),
            hashes=torch.tensor([item.content_hash ^ (role == "query") for role, item in table]),
            query=torch.tensor(query),
            positive=torch.tensor(positive),
            negatives=_pad(negatives, width, -1, torch.long),
            positive_score=torch.tensor([_or_nan(example.positive_score) for example in examples]),
            negative_scores=_pad(scores, width, float("nan"), torch.float),
            dataset=[example.dataset for example in examples],
            tokens=sum(entry.length for entry in prepared),
            padded_tokens=sum(chunk["input_ids"].numel() for chunk in tensors),
        )
        return {"batch": batch}

    def _prepare(self, table):
        entries = [None] * len(table)
        for role in ("query", "document"):
            chosen = [(i, item) for (r, item), i in table.items() if r == role]
            inputs, names = [item.as_input() for _, item in chosen], [str(item) for _, item in chosen]
            if self.processor.fusion == "sum" and (
                mixed := [n for (_, i), n in zip(chosen, names) if i.text and i.image]
            ):
                raise ValueError(
                    f"{mixed[0]} has text and image, which the preset {self.processor.preset!r} embeds apart and adds "
                    "up; training reads one prompt: load the model with fusion='joint'."
                )
            found = self.processor.prepare(
                inputs, role=role, max_length=self.max_length, names=names, resolution=self.resolution
            )
            for (i, _), entry in zip(chosen, found):
                entries[i] = entry
        return entries


def _or_nan(value) -> float:
    return float("nan") if value is None else value


def _pad(rows, width, fill, dtype) -> torch.Tensor:
    return torch.tensor([list(row) + [fill] * (width - len(row)) for row in rows], dtype=dtype).reshape(
        len(rows), width
    )
