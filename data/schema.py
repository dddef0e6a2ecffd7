"""The one row that every reader yields and every trainer reads, and its columns in a `datasets.Dataset`."""

import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice

import pyarrow as pa
from datasets import Dataset, Features, List, Value

PLACEHOLDER = "<|image_1|>"  # stands for the image in MMEB's texts
IN_MEMORY = 2**26  # bytes of rows that are held
VIDEOS = (".avi", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


@dataclass(frozen=True)
class Item:
    """A text, an image path, or both. Items are equal, and hash alike, when both parts are equal.

    In the place of an image there may be a video: a file, or a folder of its frames.

    Args:
        text (`str`): the text; empty if there is none.
        image (`str`): path of an image or a video; empty if there is none.

    Raises:
        ValueError: there is neither a text nor an image.

    Example:

    ```python
    query = Item("What is in the picture?", "photos/dog.jpg")
    answer = Item("a dog")
    ```
    """

    text: str = ""
    image: str = ""

    def __post_init__(self):
        if not self.text.strip() and not self.image:
            raise ValueError("an item needs a text, an image, or both.")

    @property
    def content_hash(self) -> int:
        """A signed 64-bit hash of the content, the same in every process; ranks compare items by it."""
        # the length keeps text and image apart: ("a", "b") is not ("ab", "")
        return content_hash(f"{len(self.text)}:{self.text}{self.image}")

    @property
    def identity(self) -> tuple[str, str]:
        """What makes two candidates one: equal images, and texts equal but for case, spacing and placeholders."""
        return " ".join(self.text.replace(PLACEHOLDER, " ").split()).casefold(), self.image

    def as_input(self) -> dict:
        """The form that `UniMEModel.encode` and `UniMEProcessor.prepare` take."""
        fields = {}
        if self.text:
            fields["text"] = self.text
        if self.image:
            kind = "video" if self.is_video else "image"
            fields[kind] = self.image

        return fields

    @property
    def modality(self) -> str:
        """What the item is made of: `"text"`, `"image"`, `"video"`, or a text with one of these."""
        parts = []
        if self.image:
            parts.append("video" if self.is_video else "image")
        if self.text.strip():
            parts.append("text")
        return " and ".join(parts)

    @property
    def is_video(self) -> bool:
        """Whether the path is that of a video."""
        return self.image.lower().endswith(VIDEOS) or os.path.isdir(self.image)


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


def content_hash(text: str) -> int:
    """A signed 64-bit hash of a text, the same in every process."""
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little", signed=True
    )


_ITEM = {"text": Value("string"), "image": Value("string")}
FEATURES = Features(
    {
        "query": _ITEM,
        "positive": _ITEM,
        "negatives": List(_ITEM),
        "positive_score": Value("float64"),
        "negative_scores": List(Value("float64")),
        "dataset": Value("string"),
        "negative_queries": List(_ITEM),
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
        yield list(map(_as_row, block))


def _as_row(example: Example) -> dict:
    return {
        "query": _as_columns(example.query),
        "positive": _as_columns(example.positive),
        "negatives": list(map(_as_columns, example.negatives)),
        "positive_score": example.positive_score,
        "negative_scores": example.negative_scores,
        "dataset": example.dataset,
        "negative_queries": list(map(_as_columns, example.negative_queries)),
    }


def _as_columns(item: Item) -> dict:
    return {"text": item.text, "image": item.image}


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
        negative_queries=_items(row, "negative_queries"),  # a column that older data sets lack
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
        fields = {name: text for name, text in value.items() if text is not None}

    is_item = isinstance(value, dict) and fields.keys() <= {"text", "image"}
    if not is_item or not all(isinstance(text, str) for text in fields.values()):
        raise ValueError(f"an item is a text, or has 'text' and 'image', the path of a file; got {value!r:.80}.")
    return Item(**fields)
