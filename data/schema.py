"""The one row that every reader yields and every trainer reads, and its columns in a `datasets.Dataset`."""

import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice, repeat

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value

from .items import PLACEHOLDER, VIDEOS, Item, content_hash, is_video_path  # noqa: F401 - what rows are made of

IN_MEMORY = 2**26  # bytes of rows that are held


@dataclass
class Example:
    """A query with its positive, its mined negatives, and judge scores in [0, 1] where there are any.

    Args:
        query (`Item`): what is asked.
        positive (`Item`): the right answer.
        negatives (`list[Item]`): wrong answers, the hardest first; may be empty.
        positive_score (`float`, *optional*): the judge's score of the positive.
        negative_scores (`list[float]`): the judge's scores of the negatives; empty, or one for each.
        dataset (`str`): name of the data set that the row is from.
        negative_queries (`list[Item]`): for SaHa's clusters, where the negatives are the positives of other queries,
            these queries, one for each negative: every member of the cluster is then an anchor of its own.
        other_positives (`list[Item]`): further right answers, which are never taken for negatives of the query; each
            is the positive of a row of its own.
        weight (`float`, defaults to 1): how much the row counts in a loss, beside the others of its batch.

    Example:

    ```python
    example = Example(Item("a dog", ""), Item(image="dog.jpg"), [Item(image="cat.jpg")], dataset="pets")
    rows = to_dataset([example])
    ```
    """

    query: Item
    positive: Item
    negatives: list[Item] = field(default_factory=list)
    positive_score: float | None = None
    negative_scores: list[float] = field(default_factory=list)
    dataset: str = ""
    negative_queries: list[Item] = field(default_factory=list)
    other_positives: list[Item] = field(default_factory=list)
    weight: float = 1.0

    def members(self) -> list["Example"]:
        """The anchors of this row: itself, or every member of its cluster.

        Raises:
            ValueError: the cluster does not have as many queries as negatives.
        """
        if not self.negative_queries:
            return [self]

        if len(self.negative_queries) != len(self.negatives):
            raise ValueError(
                f"{self.query}: a cluster has {len(self.negative_queries)} queries for "
                f"{len(self.negatives)} negatives."
            )

        pairs = [(self.query, self.positive), *zip(self.negative_queries, self.negatives)]
        return [Example(query, positive, dataset=self.dataset) for query, positive in pairs]


_ITEM = {
    "text": Value("string"),
    "image": Value("string"),
    "more_images": List(Value("string")),
    "instruction": Value("string"),
}
FEATURES = Features(
    {
        "query": _ITEM,
        "positive": _ITEM,
        "negatives": List(_ITEM),
        "positive_score": Value("float64"),
        "negative_scores": List(Value("float64")),
        "dataset": Value("string"),
        "negative_queries": List(_ITEM),
        "other_positives": List(_ITEM),
        "weight": Value("float64"),
    }
)


def to_dataset(examples: Iterable[Example], block: int = 10_000) -> Dataset:
    """Stores examples as a `datasets.Dataset` with the columns of `Example`.

    Rows beyond 64 MB lie in a temporary file that is mapped into memory, and gone with the last who reads it.

    Args:
        examples (`Iterable[Example]`): the rows; they may be read while they are stored.
        block (`int`, defaults to 10,000): how many of them are Python objects at a time.

    Returns:
        `datasets.Dataset`: a row for each example, in order; [`to_example`] reads one back.
    """
    blocks = (pa.Table.from_pylist(rows, FEATURES.arrow_schema) for rows in _blocks(examples, block))
    tables = [FEATURES.arrow_schema.empty_table()]
    size = 0
    for table in blocks:
        tables.append(table)
        size += table.nbytes
        if size > IN_MEMORY:
            # a fingerprint of the content would have to read it whole
            return Dataset(_mapped(chain(tables, blocks)), fingerprint=uuid.uuid4().hex)
    return Dataset(pa.concat_tables(tables))


def _mapped(tables: Iterable[pa.Table]) -> pa.Table:
    """Tables as one that lies in a file without a name."""
    descriptor, path = tempfile.mkstemp(prefix="unime-rows-", suffix=".arrow")
    try:
        with os.fdopen(descriptor, "wb") as file, pa.ipc.new_file(file, FEATURES.arrow_schema) as writer:
            for table in tables:
                writer.write_table(table)
        return pa.ipc.open_file(pa.memory_map(path)).read_all()
    finally:
        os.unlink(path)


def _blocks(examples: Iterable[Example], size: int) -> Iterator[list[dict]]:
    """The examples as dicts, so many at a time."""
    iterator = iter(examples)
    while block := list(islice(iterator, size)):
        yield list(map(as_row, block))


def as_row(example: Example) -> dict:
    """An example as a row of such a data set."""
    return {
        "query": _as_columns(example.query),
        "positive": _as_columns(example.positive),
        "negatives": list(map(_as_columns, example.negatives)),
        "positive_score": example.positive_score,
        "negative_scores": example.negative_scores,
        "dataset": example.dataset,
        "negative_queries": list(map(_as_columns, example.negative_queries)),
        "other_positives": list(map(_as_columns, example.other_positives)),
        "weight": example.weight,
    }


def _as_columns(item: Item) -> dict:
    return {
        "text": item.text,
        "image": item.image,
        "more_images": list(item.more_images),
        "instruction": item.instruction,
    }


def to_example(row) -> Example:
    """Reads one row of such a data set back, or one that was written by hand.

    Args:
        row (`dict` or `Example`): a row as [`to_dataset`] stores it; only `query` and `positive` must be there, and an
            item may also be a text.

    Raises:
        ValueError: `query` or `positive` is missing, or an item is something else.
    """
    if isinstance(row, Example):
        return row
    missing = [name for name in ("query", "positive") if row.get(name) is None]
    if missing:
        raise ValueError(f"lacks {' and '.join(missing)}; it has {', '.join(row)}.")

    return Example(
        query=to_item(row["query"]),
        positive=to_item(row["positive"]),
        negatives=_items(row, "negatives"),
        positive_score=row.get("positive_score"),
        negative_scores=row.get("negative_scores") or [],
        dataset=row.get("dataset") or "",
        negative_queries=_items(row, "negative_queries"),  # columns that older data sets lack
        other_positives=_items(row, "other_positives"),
        weight=1.0 if row.get("weight") is None else row["weight"],
    )


def _items(row: dict, name: str) -> list[Item]:
    return [to_item(value) for value in row.get(name) or []]


def to_item(value) -> Item:
    """Reads an item as [`to_dataset`] stores it, or one that was written by hand: a text, or `{"text", "image"}`."""
    if isinstance(value, Item):
        return value
    if isinstance(value, str):
        return Item(value)

    # a data set has None where a row lacks a text or an image
    fields = {}
    if isinstance(value, dict):
        fields = {name: part for name, part in value.items() if part is not None}

    others = fields.pop("more_images", [])
    is_item = isinstance(value, dict) and fields.keys() <= {"text", "image", "instruction"}
    if not is_item or not all(isinstance(part, str) for part in (*fields.values(), *others)):
        raise ValueError(f"an item is a text, or has 'text' and 'image', the path of a file; got {value!r:.80}.")
    return Item(**fields, more_images=tuple(others))


def items_of(column, rows=None) -> list[Item]:
    """The items of a column of such a data set, read field by field, which for many takes a tenth of the time.

    Args:
        column (`pyarrow.ChunkedArray` or `pyarrow.StructArray`): items as [`to_dataset`] stores them.
        rows (array `[r]`, *optional*): numbers of those that are read; all by default.
    """
    parts = {}
    for part, values in zip(column.type, column.flatten()):
        if rows is not None:
            values = values.take(pa.array(rows, pa.int64()))
        parts[part.name] = _lists(values) if part.name == "more_images" else _texts(values)
    return list(map(Item, *(parts[name] for name in _ITEM)))


def _texts(values) -> Iterable[str]:
    """A column of texts, with empty ones for nulls."""
    # most items have a text or an image, and the others are not worth a list
    if values.null_count == len(values):
        return repeat("", len(values))
    return pc.fill_null(values, "").to_pylist()


def _lists(values) -> Iterable[tuple]:
    """A column of lists as tuples, with empty ones for nulls."""
    if not any_entries(values):
        return repeat((), len(values))
    return (tuple(entries or ()) for entries in values.to_pylist())


def any_entries(lists) -> bool:
    """Whether a column of lists has any that is not empty: most have none, and need not be read."""
    return bool(pc.any(pc.greater(pc.list_value_length(lists), 0)).as_py())
