"""A batch is a table of distinct items plus indices.

The collator lists every distinct query of a batch once, and every distinct positive or negative once; `query`,
`positive` and `negatives` point into that table. A label that occurs forty times is encoded once, and a copy of the
positive can never be taken for a negative, because it has the same index.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import NamedTuple

import torch

from ..batching_unime import plan_chunks
from ..items_unime import PreparedItem
from ..processing_unime import UniMEProcessor
from .copies import named_by_content
from .schema import Example, Item, to_example
from .sieve import BadItem, Sieve


class Fed(NamedTuple):
    """One sequence that a model would be fed.

    Args:
        kind (`str`): what it is for, such as `"query (text)"`.
        key: equal for equal sequences, which are fed once.
        prepared ([`~unime.items_unime.PreparedItem`]): its prompt and images.
    """

    kind: str
    key: object
    prepared: PreparedItem


@dataclass
class Batch:
    """The table of a batch, cut into chunks, and the indices of its rows.

    Shapes: a table of T items, B rows, at most K negatives each.

    Attributes:
        chunks (`list[dict]`): tensors of the model's forward, at most `batch_tokens` padded tokens each.
        order (`LongTensor` `[T]`): table index of each encoded row, in the order of the chunks.
        hashes (`LongTensor` `[T]`): content hash of each item of the table.
        query, positive (`LongTensor` `[B]`), negatives (`LongTensor` `[B, K]`, -1 pads): indices into the table.
        positive_score (`FloatTensor` `[B]`), negative_scores (`[B, K]`): judge scores, NaN where there are none.
        dataset (`list[str]`): name of the data set of each row.
        other_positives (`LongTensor` `[B, P]`): content hashes of what is right as well, and so never a negative; 0
            pads.
        weight (`FloatTensor` `[B]`): how much each row counts.
        tokens (`int`), padded_tokens (`int`): of all chunks, without and with padding.
        bad_items (`list[BadItem]`): items that could not be read and were left out; B and T may be 0 without them.
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
    other_positives: torch.Tensor
    weight: torch.Tensor
    tokens: int
    padded_tokens: int
    bad_items: list[BadItem] = field(default_factory=list)

    def pin_memory(self):
        """Puts the chunks into pinned memory, which is copied to a GPU while this computes; data loaders call it."""
        chunks = []
        for chunk in self.chunks:
            chunks.append({key: value.pin_memory() for key, value in chunk.items()})
        return replace(self, chunks=chunks)


class EmbeddingCollator:
    """Turns rows (dicts with the columns of [`~unime.data.schema.Example`]) into a [`Batch`].

    A cluster becomes one row of the batch for each of its members. Queries are rendered with the preset's query
    prompts, all other items with its document prompts, but for data sets whose documents it words as queries. Image
    and text of an item are read in one prompt. Items that cannot be read are left out and named in `bad_items`: a row
    without its query or positive is no row, and without a negative it has one less.

    Args:
        processor (`UniMEProcessor`): renders and tokenises the items.
        batch_tokens (`int`, defaults to 8192): most padded tokens of one chunk.
        max_length (`int`, *optional*): cut longer texts to so many tokens.
        max_negatives (`int`, *optional*): use only so many negatives of each row, the first ones.
        length_boundary (`int`, *optional*): the configuration's, see [`~unime.batching_unime.plan_chunks`].
        resolution (`str`, *optional*): policy for the size of images; the processor's by default.
        benchmark (`str`, *optional*): word items as the preset does on this kind of benchmark.

    Example:

    ```python
    collator = EmbeddingCollator(model.processor, max_negatives=4)
    batch = collator([rows[0], rows[1]])["batch"]
    ```
    """

    def __init__(
        self,
        processor: UniMEProcessor,
        batch_tokens: int = 8192,
        max_length: int | None = None,
        max_negatives: int | None = None,
        length_boundary: int | None = None,
        resolution: str | None = None,
        benchmark: str | None = None,
    ):
        self.processor = processor
        self.batch_tokens = batch_tokens
        self.max_length = max_length
        self.max_negatives = max_negatives
        self.length_boundary = length_boundary
        self.resolution = resolution
        self.benchmark = benchmark

        # it remembers bad items from batch to batch
        self.sieve = Sieve(self._read)

    def __call__(self, rows: Sequence[dict]) -> dict[str, Batch]:
        all_examples = self._anchors(rows)
        examples = self.sieve.rest(all_examples)

        # to try each item by itself takes as long again, so it is done only where a batch fails
        try:
            batch = self._batch(examples)
        except ValueError:
            # one of the items cannot be read; if all can, the batch fails once more
            self.sieve.search(examples)
            batch = self._batch(self.sieve.rest(examples))

        batch.bad_items = self.sieve.bad_items(all_examples)
        return {"batch": batch}

    def bad_items(self, row: dict) -> list[BadItem]:
        """What of a row cannot be read; empty where nothing is wrong with it."""
        examples = self._anchors([row])
        self.sieve.search(examples)
        return self.sieve.bad_items(examples)

    def _read(self, role: str, item: Item):
        """Reads an item as a batch does; a `ValueError` where that fails."""
        self._collate(self._prepare({(role, item): 0}), [0])

    def _batch(self, examples: list[Example]) -> Batch:
        # all queries stand first in the table, then all positives, then what is left of the negatives
        table = {}  # (role, item) -> index
        roles = [self.processor.document_role(example.dataset) for example in examples]  # of documents
        query = [_index(table, "query", example.query) for example in examples]
        positive = [_index(table, role, example.positive) for role, example in zip(roles, examples)]

        negatives = []
        positive_score = []
        negative_scores = []
        dataset = []
        for role, example in zip(roles, examples):
            items = example.negatives[: self.max_negatives]
            negatives.append([_index(table, role, item) for item in items])

            # not every row was judged
            positive_score.append(_or_nan(example.positive_score))
            negative_scores.append(example.negative_scores[: self.max_negatives])
            dataset.append(example.dataset)
        width = max(map(len, negatives), default=0)  # K

        # items of about equal length share a forward pass
        prepared = self._prepare(table)
        lengths = [entry.length for entry in prepared]
        chunks = plan_chunks(lengths, self.batch_tokens, boundary=self.length_boundary)
        chunks.reverse()  # the longest come last
        tensors = [self._collate(prepared, chunk) for chunk in chunks]
        order = list(chain.from_iterable(chunks))

        return Batch(
            chunks=tensors,
            order=torch.tensor(order, dtype=torch.long),  # [T]
            hashes=_hashes(table),  # [T]
            query=torch.tensor(query, dtype=torch.long),  # [B]
            positive=torch.tensor(positive, dtype=torch.long),  # [B]
            negatives=_pad(negatives, width, -1, torch.long),  # [B, K]
            positive_score=torch.tensor(positive_score),  # [B]
            negative_scores=_pad(negative_scores, width, float("nan"), torch.float),  # [B, K]
            dataset=dataset,
            other_positives=_other_hashes(roles, examples),  # [B, P]
            weight=torch.tensor([example.weight for example in examples]),  # [B]
            tokens=sum(lengths),
            padded_tokens=sum(chunk["input_ids"].numel() for chunk in tensors),
        )

    def preview(self, row: dict, read: dict) -> tuple[list[Fed], list[str]]:
        """What a row becomes, without decoding an image: a rehearsal reads rows so.

        Args:
            row (`dict`): with the columns of [`~unime.data.schema.Example`].
            read (`dict`): the items that were read before, to which those of this row are added.

        Returns:
            the items that can be read, of the kinds query, positive and negative; and for each of the others a
            message that names it.
        """
        fed = []
        problems = []
        for example in self._anchors([row]):
            items = [("query", "query", example.query), ("positive", "document", example.positive)]
            for negative in example.negatives[: self.max_negatives]:
                items.append(("negative", "document", negative))

            for kind, role, item in items:
                key = (role, item)
                try:
                    # labels occur in many rows
                    if key not in read:
                        (read[key],) = self._prepare({key: 0})
                except (ValueError, OSError) as error:
                    dataset = example.dataset or "a data set without a name"
                    problems.append(f"{kind} of {dataset}: {error}")
                    continue

                fed.append(Fed(f"{kind} ({item.modality})", key, read[key]))
        return fed, problems

    def _anchors(self, rows: Sequence[dict]) -> list[Example]:
        """The rows of the batch: an example, or the members of a cluster."""
        # a cluster has one member more than its row has negatives
        limit = None
        if self.max_negatives is not None:
            limit = self.max_negatives + 1

        examples = []
        for row in rows:
            examples += to_example(row).members()[:limit]
        return examples

    def _prepare(self, table: dict) -> list:
        """Token ids and pixels of every item of the table, in its order."""
        prepared = [None] * len(table)

        # one call reads items of one role
        for role in ("query", "document"):
            indices = []
            inputs = []
            names = []
            for (item_role, item), index in table.items():
                if item_role == role:
                    indices.append(index)
                    inputs.append(item.as_input())
                    names.append(str(item))  # for messages

            # as in use, also where the rows are worded as on a benchmark
            entries = self.processor.prepare(
                inputs,
                instruction=self.processor.default_instruction(role),
                role=role,
                max_length=self.max_length,
                names=names,
                resolution=self.resolution,
                benchmark=self.benchmark,
            )
            for index, entry in zip(indices, entries):
                prepared[index] = entry
        return prepared

    def _collate(self, prepared: list, chunk: list[int]) -> dict:
        return dict(self.processor.collate([prepared[index] for index in chunk]))


def _index(table: dict, role: str, item: Item) -> int:
    """Where an item stands in the table; a new one is added at its end."""
    return table.setdefault((role, item), len(table))


def _hashes(table: dict) -> torch.Tensor:
    """Content hashes `[T]` of a table, which ranks compare."""
    renamed = named_by_content(item for _, item in table)
    return torch.tensor([_hash(role, renamed[item]) for role, item in table], dtype=torch.long)


def _hash(role: str, item: Item) -> int:
    """The content hash of an item in a role; a copy of a picture under another name is the same picture."""
    # one item as a query and as a document has two embeddings, so it has two hashes
    return item.content_hash ^ 1 if role == "query" else item.content_hash


def _other_hashes(roles: list[str], examples: list[Example]) -> torch.Tensor:
    """Content hashes `[B, P]` of the other positives of each row, which need not be in the table."""
    renamed = named_by_content(item for example in examples for item in example.other_positives)

    hashes = []
    for role, example in zip(roles, examples):
        hashes.append([_hash(role, renamed[item]) for item in example.other_positives])
    return _pad(hashes, max(map(len, hashes), default=0), 0, torch.long)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _pad(rows: list[list], width: int, fill: float, dtype: torch.dtype) -> torch.Tensor:
    """The rows as a tensor `[B, width]`, the shorter ones filled up."""
    filled = []
    for row in rows:
        filled.append([*row, *[fill] * (width - len(row))])
    return torch.tensor(filled, dtype=dtype).reshape(len(rows), width)  # of width 0 too
