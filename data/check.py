"""`unime data check FILE`: what a person should know about a data file before training on it for a week."""

import statistics
import threading
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from PIL import Image
from tqdm.auto import tqdm

from ..files.identity import file_of, picture_identity
from ..images_unime import FORMATS, load_frames, open_image, read_size
from .readers import Findings, read_rows
from .schema import Example, Item, to_example
from .sieve import BadItem
from .texts import printable, shown

SAMPLES = 3  # rows that are shown
SHOWN = 20  # bad rows, and bad images, that are printed; the JSON report has all
IN_HAND = 25_000_000  # pixels that are decoded at a time, of about 15 bytes each; a larger image is alone


class RowReader(Protocol):
    """What reads rows as a training does: an [`~unime.data.collators.EmbeddingCollator`], or that of the reranker."""

    def bad_items(self, row: dict) -> list[BadItem]:
        """What of a row cannot be read."""


def check(
    path,
    image_root=None,
    split: str = "original",
    images: bool = True,
    reader: RowReader | None = None,
    columns=None,
    allow_urls: bool = False,
) -> dict:
    """Examines data of any source and layout that [`~unime.data.readers.read_rows`] reads.

    Args:
        path (`str` or `Path`): file, folder, or data set of the Hub.
        image_root (`str` or `Path`, *optional*): where image paths start; the file's folder by default.
        split (`str`, defaults to `"original"`): for a folder of MMEB-train.
        images (`bool`, defaults to `True`): open every image, rather than only look whether it is there.
        reader (*optional*): reads every row as a training of a model would, and says what it cannot read.
        columns, allow_urls (*optional*): as in [`~unime.data.readers.read_rows`].

    Returns:
        `dict`: the report, of plain values: `file`, `source` (what it was taken for), `columns` (what each was taken
        for, by layout), `unused` (columns that are not read), `samples` (the first rows as they are read), `rows`,
        `bad_rows`, `datasets`, `modalities`, `mended`, `duplicates`, `scores` and `images`; with a reader also
        `bad_items`, each with its `item` and `reason`.

    Raises:
        ValueError: the file cannot be read at all, or has no good row.

    Example:

    ```python
    report = check("pairs.jsonl", image_root="photos")
    print(report["rows"], "good rows,", len(report["bad_rows"]), "bad ones")
    ```
    """
    # a missing image is counted with the images, once, rather than with every row that names it
    findings = Findings(images_must_exist=False)
    rows = read_rows(path, image_root, split=split, findings=findings, columns=columns, allow_urls=allow_urls)

    # the images first: copies of one are told by their pixels
    images_report, identities = look_at_images(image_paths(rows), images)

    tally = _Tally(identities)
    bad_items = {}  # reasons by item
    for row in tqdm(rows, desc="Rows", unit="row", delay=1):
        tally.add(to_example(row))
        if reader is not None:
            bad_items |= dict(reader.bad_items(row))

    report = {
        "file": printable(str(path)),
        "source": findings.source,
        "columns": findings.layouts,
        "unused": findings.unused,
        "samples": [_sample(to_example(row)) for row in rows.select(range(min(SAMPLES, len(rows))))],
        "rows": len(rows),
        "bad_rows": [problem._asdict() for problem in findings.problems],
        "datasets": tally.datasets(),
        "modalities": dict(tally.modalities.most_common()),
        "mended": dict(findings.notes),
        "duplicates": tally.duplicates(),
        "scores": tally.scores(),
        "images": images_report,
    }
    if reader is not None:
        report["bad_items"] = [{"item": item, "reason": reason} for item, reason in bad_items.items()]
    return report


def _sample(example: Example) -> dict:
    """A row as it is read, in words."""
    sample = {"query": _in_words(example.query), "positive": _in_words(example.positive)}
    if example.positive_score is not None:
        sample["positive score"] = example.positive_score
    if example.other_positives:
        sample["other positives"] = len(example.other_positives)
    if example.negatives:
        sample["negatives"] = len(example.negatives)
        sample["first negative"] = _in_words(example.negatives[0])
    if example.weight != 1:
        sample["weight"] = example.weight
    sample["data set"] = printable(example.dataset)
    return sample


def _in_words(item: Item) -> str:
    """An item as a person reads it."""
    kind = "video" if item.is_video else "image"
    words = [f"{kind} {Path(path).name}" for path in item.images]
    if item.text.strip():
        words.append(shown(item.text))
    if item.instruction:
        words.insert(0, f"(instruction: {shown(item.instruction)})")
    return printable(" ".join(words))


class _Tally:
    """Counts over rows, added to one row at a time; `identities` are those of pictures by their paths."""

    def __init__(self, identities: dict[str, str]):
        self.identities = identities
        self.rows = Counter()  # of each data set
        self.modalities = Counter()
        self.oddities = Counter()

        # for each data set
        self.queries = defaultdict(set)
        self.positives = defaultdict(set)
        self.lengths = defaultdict(list)
        self.pairs = Counter()  # of data set, query and positive

        # of all rows with scores
        self.positive_scores = []
        self.negative_scores = []
        self.gaps = []

    def add(self, row: Example):
        self.rows[row.dataset] += 1
        self.modalities[f"{_modality(row.query)} -> {_modality(row.positive)}"] += 1
        self.queries[row.dataset].add(row.query)
        self.positives[row.dataset].add(self._identity(row.positive))
        self.lengths[row.dataset].append(len(row.query.text) + len(row.positive.text))
        self.pairs[row.dataset, row.query, row.positive] += 1

        self._count_oddities(row)
        self._note_scores(row)

    def _count_oddities(self, row: Example):
        distinct = set(row.negatives)
        identities = set(map(self._identity, distinct))

        # a count of zero is reported too, so each is added to in every row
        has_copies = len(identities) < len(distinct)
        self.oddities["rows that repeat a negative"] += len(distinct) < len(row.negatives)
        self.oddities["rows with negatives equal but for case, spacing or file name"] += has_copies
        self.oddities["rows whose positive is among their negatives"] += self._identity(row.positive) in identities

    def _identity(self, item: Item) -> tuple[str, str]:
        """What makes two candidates one: a copy of a picture under another name is the same candidate."""
        return item.with_images(self.identities).identity

    def _note_scores(self, row: Example):
        if row.positive_score is None:
            return

        self.positive_scores.append(row.positive_score)
        self.negative_scores += row.negative_scores
        if row.negative_scores:
            self.gaps.append(row.positive_score - max(row.negative_scores))

    def datasets(self) -> dict:
        report = {}
        for name, count in self.rows.most_common():
            report[name or "(unnamed)"] = {
                "rows": count,
                "distinct queries": len(self.queries[name]),
                "distinct positives": len(self.positives[name]),
                "characters": round(statistics.mean(self.lengths[name]), 1),
            }
        return report

    def duplicates(self) -> dict:
        # distinct pairs with the same query: more than one means several positives
        queries = set()
        repeated = set()
        for dataset, query, _ in self.pairs:
            if (dataset, query) in queries:
                repeated.add((dataset, query))
            queries.add((dataset, query))

        return {
            "repeated rows": self.pairs.total() - len(self.pairs),
            "queries with several positives": len(repeated),
            **self.oddities,
        }

    def scores(self) -> dict:
        if not self.positive_scores:
            return {}

        return {
            "positive": _spread(self.positive_scores),
            "negative": _spread(self.negative_scores),
            "positive minus highest negative": _spread(self.gaps),
            "positives below 0.5": sum(score < 0.5 for score in self.positive_scores),
            "rows with a negative at or above their positive": sum(gap <= 0 for gap in self.gaps),
        }


def _modality(item: Item) -> str:
    if not item.image:
        return "text"
    return "image + text" if item.text.strip() else "image"


def _spread(values) -> dict:
    """Least, quartiles and greatest."""
    # there are no quartiles of a single value
    if len(values) < 2:
        return {"values": len(values)}

    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {
        "least": round(min(values), 4),
        "quarter": round(low, 4),
        "median": round(middle, 4),
        "three quarters": round(high, 4),
        "greatest": round(max(values), 4),
    }


def image_paths(rows: Dataset) -> list[str]:
    """The distinct paths of images and videos that rows name, in the order of the columns."""
    table = rows.with_format("arrow")[:]

    paths = {}  # a set that keeps its order
    for name in ("query", "positive", "negatives", "negative_queries"):
        column = table[name].combine_chunks()
        if pa.types.is_list(column.type):
            column = column.flatten()
        paths |= dict.fromkeys(pc.unique(column.field("image")).to_pylist())
        paths |= dict.fromkeys(pc.unique(column.field("more_images").flatten()).to_pylist())
    return [path for path in paths if path]


def look_at_images(paths: Iterable[str], thoroughly: bool = True) -> tuple[dict, dict[str, str]]:
    """Opens images the way training will, and counts what is odd about them.

    Args:
        paths (`Iterable[str]`): distinct paths of image files.
        thoroughly (`bool`, defaults to `True`): open them, rather than only look whether they are there.

    Returns:
        a report, and the identity of each picture that was opened, by its path. The report has the counts `distinct`
        and `missing`, the `first missing` paths, and what is `unreadable`, as `{"image", "reason"}`; where images are
        opened, also how many are `copies` of others under other names, how many are of which odd `kinds`, and the
        spread of their `pixels`.
    """
    paths = list(paths)
    present = []
    missing = []
    for path in paths:
        if Path(file_of(path)).exists():
            present.append(path)
        else:
            missing.append(path)

    report = {"distinct": len(paths), "missing": len(missing), "first missing": missing[:SHOWN], "unreadable": []}
    if not thoroughly:
        return report, {}

    kinds = Counter()
    pixels = []
    identities = {}
    with ThreadPoolExecutor() as workers:
        look_at = partial(_look, budget=_PixelBudget(IN_HAND))
        looks = tqdm(workers.map(look_at, present), total=len(present), desc="Images", unit="image", delay=1)
        for path, look in zip(present, looks):
            kinds.update(look.oddities)
            if look.reason:
                report["unreadable"].append({"image": path, "reason": look.reason})
            else:
                pixels.append(look.pixels)
                identities[path] = look.identity

    report["copies"] = len(identities) - len(set(identities.values()))
    report["kinds"] = dict(kinds.most_common())
    report["pixels"] = _spread(pixels) if pixels else {}
    return report, identities


class _PixelBudget:
    """Lets threads decode images as long as those in hand have at most so many pixels."""

    def __init__(self, most: int):
        self.most = most
        self.in_hand = 0
        self.changed = threading.Condition()

    @contextmanager
    def spend(self, pixels: int) -> Iterator[None]:
        """Waits until there is room for so many pixels, or nothing else in hand, and holds them in the body."""
        with self.changed:
            self.changed.wait_for(lambda: self.in_hand == 0 or self.in_hand + pixels <= self.most)
            self.in_hand += pixels

        # outside the lock, or threads would decode one after the other
        try:
            yield
        finally:
            with self.changed:
                self.in_hand -= pixels
                self.changed.notify_all()


class _Look(NamedTuple):
    """What there is to say of an image: why it cannot be read, what is odd about it, its width times height, and what
    tells it apart from others."""

    reason: str
    oddities: list[str]
    pixels: int
    identity: str


def _look(path: str, budget: _PixelBudget) -> _Look:
    try:
        if Item(image=path).is_video:
            (frame,) = load_frames(path, 1)
            width, height = open_image(frame).size
            return _Look("", ["video"], width * height, picture_identity(path))

        # the header first: its pixels say how long to wait for memory
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            width, height = read_size(path, "")  # what is no file is not opened
            if file_of(path) != path or path.lower().endswith(".pdf"):
                return _Look("", ["page of a PDF"], width * height, picture_identity(path))
            with Image.open(path, formats=FORMATS) as file:
                oddities = _oddities(file)
                pixels = file.width * file.height

        with budget.spend(pixels):
            identity = picture_identity(path, open_image(path))
        return _Look("", oddities, pixels, identity)
    except Exception as error:  # a damaged file makes its decoder raise anything
        return _Look(str(error) or type(error).__name__, [], 0, "")


def _oddities(file: Image.Image) -> list[str]:
    """The mode of an image, and what training will do to it without a word."""
    oddities = [f"mode {file.mode}"]
    if getattr(file, "n_frames", 1) > 1:
        oddities.append("animated: the first frame counts")
    if "A" in file.getbands() or "transparency" in file.info:
        oddities.append("transparent: put on white")
    return oddities
