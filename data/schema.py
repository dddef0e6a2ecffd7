"""The one row every reader yields and every stage eats, and how its columns are stored in a `datasets.Dataset`."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from itertools import islice

import pyarrow as pa
from datasets import Dataset, Features, List, Value

PLACEHOLDER = "<|image_1|>"  # stands for the image in MMEB's texts
VIDEOS = (".avi", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


@dataclass(frozen=True)
class Item:
    """A text, an image path, or both. Items are equal, and hash alike, when both parts are equal.

    In the place of an image there may be a video: a file, or a folder of its frames.
    """

    text: str = ""
    image: str = ""

    def __post_init__(self):
        if not self.text.strip() and not self.image:
            raise ValueError("an item needs a text, an image, or both.")

    @property
    def content_hash(self) -> int:
        """A signed 64-bit hash of the content, the same in every process; ranks compare items by it."""
        return content_hash(f"{len(self.text)}:{self.text}{self.image}")

    @property
    def identity(self) -> tuple[str, str]:
        """What makes two candidates one: equal images, and texts equal but for case, spacing and placeholders."""
        return " ".join(self.text.replace(PLACEHOLDER, " ").split()).casefold(), self.image

    def as_input(self) -> dict:
        """The form that `UniMEModel.encode` and `UniMEProcessor.prepare` take."""
        parts = {"text": self.text} if self.text else {}
        if self.image:
            parts["video" if self.is_video else "image"] = self.image
        return parts

    @property
    def is_video(self) -> bool:
        """Whether the path is that of a video."""
        return self.image.lower().endswith(VIDEOS) or os.path.isdir(self.image)


@dataclass
class Example:
    """A query with its positive, its mined negatives, and judge scores in [0, 1] where there are any.

    Where the negatives are the positives of other queries (SaHa's clusters), `negative_queries` holds these, one for
    each negative: every member of the cluster is then an anchor of its own.
    """

    query: Item
    positive: Item
    negatives: list[Item] = field(default_factory=list)
    positive_score: float | None = None
    negative_scores: list[float] = field(default_factory=list)
    dataset: str = ""
    negative_queries: list[Item] = field(default_factory=list)

    def members(self) -> list["Example"]:
        """The anchors of this row: itself, or every member of its cluster."""
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
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


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
    """Stores examples as a `datasets.Dataset` with the columns of `Example`, block by block."""
    tables, rows = [], iter(examples)
    while part := list(islice(rows, block)):
        columns = {name: [getattr(example, name) for example in part] for name in FEATURES}
        for name in ("query", "positive"):
            columns[name] = [asdict(item) for item in columns[name]]
        for name in ("negatives", "negative_queries"):
            columns[name] = [[asdict(item) for item in items] for items in columns[name]]
        tables.append(pa.table(columns, schema=FEATURES.arrow_schema))
    return Dataset(pa.concat_tables(tables or [FEATURES.arrow_schema.empty_table()]))


def to_example(row: dict) -> Example:
    """Reads one row of such a data set back."""
    return Example(
        query=Item(**row["query"]),
        positive=Item(**row["positive"]),
        negatives=[Item(**negative) for negative in row["negatives"]],
        positive_score=row["positive_score"],
        negative_scores=row["negative_scores"],
        dataset=row["dataset"],
        negative_queries=[Item(**query) for query in row.get("negative_queries") or []],
    )
