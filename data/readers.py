"""Readers: a public layout in, `Example` rows out; nothing downstream knows a source format.

A reader stops at the first bad row, or, given [`Findings`], leaves bad rows out and keeps them there with the reason.
"""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
from datasets import Dataset

from .images import resolve_image
from .json_lists import json_list
from .schema import PLACEHOLDER, Example, Item, to_dataset

HUB = "hf://datasets/"
_MMEB_TRAIN = {  # column -> other spellings of it in public files
    "qry": ("qry_text",),
    "qry_image_path": ("qry_img_path",),
    "pos_text": ("tgt_text",),
    "pos_image_path": ("pos_img_path", "tgt_img_path"),
}
_MMEB_NEGATIVE = {"neg_text": (), "neg_image_path": ("neg_img_path",)}
_CLUSTERS = "_hard_negatives.json"
_JUDGED = (
    "query_text",
    "query_image",
    "pos_text",
    "pos_image",
    "query_pos_scores",
    "hard_negatives",
    "hard_negatives_scores",
)


class Problem(NamedTuple):
    """A row that cannot be used: where it stands, and why."""

    where: str
    reason: str


@dataclass
class Findings:
    """What a reader meets on its way, instead of an error at the first bad row.

    Args:
        images_must_exist (`bool`): whether a row with a missing image is bad, or only counted.
        problems (`list[Problem]`): bad rows, which are left out.
        notes (`Counter`): what was mended, such as image placeholders in texts without an image.
    """

    images_must_exist: bool = True
    problems: list[Problem] = field(default_factory=list)
    notes: Counter = field(default_factory=Counter)


class Located(NamedTuple):
    """A raw row, its data set, and where it stands."""

    where: str
    dataset: str
    row: dict


def _examples(
    source: Iterable[Located], parse: Callable[[Located, Path, Findings], Example], root, found: Findings | None
) -> Iterator[Example]:
    """The examples of raw rows."""
    root, noted = Path(root), found or Findings()
    for located in source:
        try:
            example = parse(located, root, noted)
            if not isinstance(located.dataset, str):
                raise ValueError(f"the data set's name is a string, not {located.dataset!r}.")
        except (ValueError, TypeError) as error:  # TypeError: a number where a list was due
            _refuse(located.where, error, found)
        else:
            yield example


def _refuse(where: str, error: Exception, found: Findings | None):
    """A bad row is an error, or, given findings, one of them."""
    if found is None:
        raise ValueError(f"{where}: {error}") from error
    found.problems.append(Problem(where, str(error)))


def item_of(text: str | None, image: str | None, root: Path, found: Findings | None = None) -> Item:
    """An item of a data file; a placeholder without an image is a known oddity of MMEB and is dropped."""
    found = found or Findings()
    for value in (text, image):
        if not isinstance(value, (str, type(None))):
            raise ValueError(f"a text or an image path is a string, not {value!r}.")
    (text or "").encode()  # a UnicodeError, where it holds half a character
    image = resolve_image(root, image or "", must_exist=found.images_must_exist)
    text = text or ""
    if not image and PLACEHOLDER in text:
        text = text.replace(PLACEHOLDER + "\n", "").replace(PLACEHOLDER, "")
        found.notes["image placeholders dropped from texts without an image"] += 1
    return Item(text, image)


def _require(row: dict, names: Iterable[str]):
    if missing := [name for name in names if name not in row]:
        raise ValueError(f"lacks {missing}.")


def _limited(rows: Iterable[Located], limit: int | None) -> Iterator[Located]:
    """At most `limit` rows of each data set."""
    counts = Counter()
    for located in rows:
        counts[str(located.dataset)] += 1
        if limit is None or counts[str(located.dataset)] <= limit:
            yield located


# MMEB
def read_mmeb_train(
    root,
    subsets: list[str] | None = None,
    split: str = "original",
    image_root=None,
    limit: int | None = None,
    found: Findings | None = None,
) -> Dataset:
    """Reads TIGER-Lab/MMEB-train's layout: `<root>/<subset>/<split>-*.parquet`, images relative to `image_root`.

    Args:
        root (`str` or `Path`): folder with one folder a subset, or `hf://datasets/TIGER-Lab/MMEB-train`.
        subsets (`list[str]`, *optional*): all that are there by default.
        split (`str`): `"original"` or `"diverse_instruction"`.
        image_root (`str` or `Path`, *optional*): where image paths start; `root` by default.
        limit (`int`, *optional*): at most that many rows of each subset (the papers take 50,000).
        found ([`Findings`], *optional*): takes bad rows, which end the reading otherwise.

    Returns:
        `datasets.Dataset` with the columns of [`~unime.data.schema.Example`]; `negatives` where the file names one.

    Raises:
        ValueError: a subset, column or image is missing, or a row is empty; the message names file and row.
    """
    root = local_path(root, [f"{subset}/{split}-*.parquet" for subset in subsets or ["*"]])
    subsets = subsets or sorted(folder.name for folder in root.iterdir() if any(folder.glob(f"{split}-*.parquet")))
    if not subsets:
        raise ValueError(f"{root} holds no <subset>/{split}-*.parquet; is it the right folder and split?")

    def rows():
        for subset in subsets:
            for path in parquet_files(root / subset, split):
                yield from _mmeb_rows(path, subset)

    return to_dataset(_examples(_limited(rows(), limit), _parse_mmeb, image_root or root, found))


def _mmeb_rows(path: Path, subset: str) -> Iterator[Located]:
    columns = pq.read_schema(path).names
    named = all(any(name in columns for name in (key, *others)) for key, others in _MMEB_NEGATIVE.items())
    for number, row in parquet_rows(path, _MMEB_TRAIN | (_MMEB_NEGATIVE if named else {})):
        yield Located(f"{path}, row {number}", subset, row)


def _pair(row: dict, root: Path, found: Findings) -> tuple[Item, Item]:
    """Query and positive of a row of MMEB-train."""
    _require(row, _MMEB_TRAIN)
    query = item_of(row["qry"], row["qry_image_path"], root, found)
    return query, item_of(row["pos_text"], row["pos_image_path"], root, found)


def _parse_mmeb(located: Located, root: Path, found: Findings) -> Example:
    row = located.row
    named = row.get("neg_image_path") or (row.get("neg_text") or "").replace(PLACEHOLDER, "").strip()
    negatives = [item_of(row["neg_text"], row["neg_image_path"], root, found)] if named else []
    return Example(*_pair(row, root, found), negatives, dataset=located.dataset)


def read_clusters(
    root, image_root=None, subsets: list[str] | None = None, limit: int | None = None, found: Findings | None = None
) -> Dataset:
    """Reads SaHa's clusters: `<root>/<subset>_hard_negatives.json`, rows of MMEB-train with whole rows as negatives.

    Args:
        root (`str` or `Path`): folder of the files.
        image_root (`str` or `Path`, *optional*): where image paths start; `root` by default.
        subsets (`list[str]`, *optional*): which data sets; all by default.
        limit (`int`, *optional*): at most that many clusters of each.
        found ([`Findings`], *optional*): takes bad rows, which end the reading otherwise.

    Returns:
        `datasets.Dataset` with the columns of [`~unime.data.schema.Example`], `negative_queries` among them.

    Raises:
        ValueError: there is no such file, a key or image is missing; the message names file and row.
    """
    root = local_path(root, [f"{subset}{_CLUSTERS}" for subset in subsets or ["*"]])
    subsets = subsets or sorted(path.name.removesuffix(_CLUSTERS) for path in root.glob(f"*{_CLUSTERS}"))
    if not subsets:
        raise ValueError(f"{root} holds no <subset>{_CLUSTERS}.")
    rows = (row for subset in subsets for row in _located(root / f"{subset}{_CLUSTERS}", subset))
    return to_dataset(_examples(_limited(rows, limit), _parse_cluster, image_root or root, found))


def _parse_cluster(located: Located, root: Path, found: Findings) -> Example:
    row = _object(located.row)
    (query, positive), *others = (_pair(_object(member), root, found) for member in (row, *row.get("neg_samples", ())))
    queries, negatives = [pair[0] for pair in others], [pair[1] for pair in others]
    return Example(query, positive, negatives, dataset=located.dataset, negative_queries=queries)


# sentence pairs
def read_text_pairs(path, limit: int | None = None, found: Findings | None = None) -> Dataset:
    """Reads sentence pairs: CSV, JSON lines or Parquet with the columns `sent0`, `sent1` and, if any, `hard_neg`.

    This is the layout of SimCSE's `nli_for_simcse.csv`, on which UniME's first stage trains.

    Args:
        path (`str` or `Path`): the file.
        limit (`int`, *optional*): at most that many rows.
        found ([`Findings`], *optional*): takes bad rows, which end the reading otherwise.

    Returns:
        `datasets.Dataset` with the columns of [`~unime.data.schema.Example`]; `sent0` is the query.

    Raises:
        ValueError: the kind of file is unknown, a column is missing, or a sentence is empty; it names file and row.
    """
    path = local_path(path)
    rows = _table_rows(path, path.stem, found)
    return _not_empty(path, to_dataset(_examples(_limited(rows, limit), _parse_text_pair, path.parent, found)))


def _parse_text_pair(located: Located, root: Path, found: Findings) -> Example:
    row = located.row
    if missing := [name for name in ("sent0", "sent1") if name not in row]:
        raise ValueError(f"lacks the columns {missing}; it has {list(row)}.")
    negatives = [Item(row["hard_neg"])] if row.get("hard_neg") else []
    return Example(Item(row["sent0"] or ""), Item(row["sent1"] or ""), negatives, dataset=located.dataset)


# rows with mined negatives
def read_judged(
    path, image_root=None, subsets: list[str] | None = None, limit: int | None = None, found: Findings | None = None
) -> Dataset:
    """Reads UniME-V2's training layout: a JSON list of rows with mined negatives and judge scores.

    The data set of a row is what its key `dataset` says, which our own files have; else the folder of its images
    (`images/<Subset>/Train/...`), of the query first, then of the positive or a negative.

    Args:
        path (`str` or `Path`): the JSON file, or `hf://datasets/<owner>/<name>/<file>`.
        image_root (`str` or `Path`, *optional*): where image paths start; the file's folder by default.
        subsets (`list[str]`, *optional*): keep only rows of these data sets.
        limit (`int`, *optional*): at most that many rows of each.
        found ([`Findings`], *optional*): takes bad rows, which end the reading otherwise.

    Returns:
        `datasets.Dataset` with the columns of [`~unime.data.schema.Example`].

    Raises:
        ValueError: the file is no such list, or a row lacks a key, has unequal numbers of negatives and scores, a
            score that is no number in [0, 1], or a missing image; the message names file and row.
    """
    path = local_path(path)
    rows = (row._replace(dataset=_judged_dataset(row.row)) for row in _located(path))
    rows = (row for row in rows if not subsets or row.dataset in subsets)
    examples = _examples(_limited(rows, limit), _parse_judged, image_root or path.parent, found)
    return _not_empty(path, to_dataset(examples), subsets)


def _judged_dataset(row) -> str:
    if not isinstance(row, dict) or "dataset" in row:
        return row["dataset"] if isinstance(row, dict) else ""
    pairs = row.get("hard_negatives")
    images = [row.get("query_image"), row.get("pos_image")]
    images += [pair[-1] for pair in pairs if isinstance(pair, list) and pair] if isinstance(pairs, list) else []
    parts = (Path(image).parts for image in images if image and isinstance(image, str))
    return next((own[1] for own in parts if len(own) > 2), "")


def _parse_judged(located: Located, root: Path, found: Findings) -> Example:
    row = _object(located.row)
    _require(row, _JUDGED)
    negatives, scores = row["hard_negatives"], row["hard_negatives_scores"]
    if len(negatives) != len(scores):
        raise ValueError(f"{len(negatives)} negatives for {len(scores)} scores.")
    check_scores([row["query_pos_scores"], *scores])
    if odd := [pair for pair in negatives if len(pair) != 2]:
        raise ValueError(f"a negative is a pair of text and image, not {odd[0]!r}.")
    items = [(row["query_text"], row["query_image"]), (row["pos_text"], row["pos_image"]), *negatives]
    query, positive, *others = (item_of(text, image, root, found) for text, image in items)
    return Example(query, positive, others, row["query_pos_scores"], scores, located.dataset)


def check_scores(scores: Iterable):
    """Raises `ValueError` unless all are numbers in [0, 1]."""
    for score in scores:
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0 <= score <= 1:
            raise ValueError(f"the judge score {score!r} is no number in [0, 1].")


def read_rows(
    path,
    image_root=None,
    subsets: list[str] | None = None,
    split: str = "original",
    limit: int | None = None,
    found: Findings | None = None,
) -> Dataset:
    """Reads training rows of any layout, told apart by the file's kind and its columns.

    - a folder of `<subset>/<split>-*.parquet` (MMEB-train) or of `<subset>_hard_negatives.json` (SaHa);
    - a `.json` list (UniME-V2);
    - `.jsonl`, `.parquet` or `.csv` with `sent0, sent1` (SimCSE), with the columns of MMEB-train, or with our own:
      `query` and `positive`, each a text or `{"text", "image"}`, and where known `negatives`, `positive_score`,
      `negative_scores` and `dataset`.

    Args and errors are those of [`read_mmeb_train`]; `path` may be `hf://datasets/<owner>/<name>[/<file>]`.
    """
    if _is_folder(path):
        wanted = [f"{subset}{kind}" for subset in subsets or ["*"] for kind in (f"/{split}-*.parquet", _CLUSTERS)]
        path = local_path(path, wanted)
        if any(path.glob(f"*{_CLUSTERS}")):
            return read_clusters(path, image_root, subsets, limit, found)
        return read_mmeb_train(path, subsets, split, image_root, limit, found)
    path = local_path(path)
    if path.suffix == ".json":
        return read_judged(path, image_root, subsets, limit, found)
    rows = (row._replace(dataset=row.row.get("dataset") or row.dataset) for row in _table_rows(path, path.stem, found))
    rows = (row for row in rows if not subsets or row.dataset in subsets)
    examples = _examples(_limited(rows, limit), _parse_any, image_root or path.parent, found)
    return _not_empty(path, to_dataset(examples), subsets)


def _parse_any(located: Located, root: Path, found: Findings) -> Example:
    row = located.row
    if "query" in row:
        return _parse_own(located, root, found)
    if "sent0" in row:
        return _parse_text_pair(located, root, found)
    return _parse_mmeb(located._replace(row=_rename(row, _MMEB_TRAIN | _MMEB_NEGATIVE)), root, found)


def _parse_own(located: Located, root: Path, found: Findings) -> Example:
    row = located.row
    _require(row, ("query", "positive"))

    def item(value) -> Item:
        if isinstance(value, str):
            value = {"text": value}
        if not isinstance(value, dict) or value.keys() - {"text", "image"}:
            raise ValueError(f"an item is a text or has 'text' and 'image', got {value!r}.")
        return item_of(value.get("text"), value.get("image"), root, found)

    lists = ("negatives", "negative_scores", "negative_queries")
    if odd := [name for name in lists if not isinstance(row.get(name) or [], list)]:
        raise ValueError(f"{odd[0]!r} is a list, got {row[odd[0]]!r}.")
    negatives, scores = row.get("negatives") or [], row.get("negative_scores") or []
    if scores and len(negatives) != len(scores):
        raise ValueError(f"{len(negatives)} negatives for {len(scores)} scores.")
    positive_score = row.get("positive_score")
    check_scores([*scores, *([] if positive_score is None else [positive_score])])
    return Example(
        item(row["query"]),
        item(row["positive"]),
        [item(negative) for negative in negatives],
        positive_score,
        list(scores),
        located.dataset,
        [item(query) for query in row.get("negative_queries") or []],
    )


# files
def local_path(path, patterns: list[str] | None = None) -> Path:
    """A local path as it is; of `hf://datasets/<owner>/<name>[/<file>]`, the file or the matching part, downloaded."""
    if not str(path).startswith(HUB):
        if not Path(path).exists():
            raise ValueError(f"{path} does not exist; a data set on the Hub is named {HUB}<owner>/<name>[/<file>].")
        return Path(path)
    from huggingface_hub import hf_hub_download, snapshot_download

    owner, name, *file = str(path).removeprefix(HUB).split("/", 2)
    if file:
        return Path(hf_hub_download(f"{owner}/{name}", file[0], repo_type="dataset"))
    return Path(snapshot_download(f"{owner}/{name}", repo_type="dataset", allow_patterns=patterns))


def _is_folder(path) -> bool:
    if str(path).startswith(HUB):
        return str(path).removeprefix(HUB).count("/") == 1
    return Path(path).is_dir()


def parquet_files(folder: Path, split: str) -> list[Path]:
    """The files of a split, in order."""
    paths = sorted(folder.glob(f"{split}-*.parquet"))
    if not paths:
        raise ValueError(f"{folder} holds no {split}-*.parquet.")
    return paths


def parquet_rows(path: Path, names: dict[str, tuple[str, ...]] | None = None) -> Iterator[tuple[int, dict]]:
    """Numbered rows of a file, read in batches; `names` are the columns wanted, with other spellings of each."""
    with pq.ParquetFile(path) as file:
        columns = file.schema_arrow.names
        found = {
            key: next((name for name in (key, *others) if name in columns), None)
            for key, others in (names or dict.fromkeys(columns, ())).items()
        }
        if missing := [key for key, name in found.items() if name is None]:
            raise ValueError(f"{path} lacks the columns {missing}; it has {columns}.")
        number = 0
        for batch in file.iter_batches(columns=list(found.values()), batch_size=4096):
            for row in batch.to_pylist():
                yield number, {key: row[name] for key, name in found.items()}
                number += 1


def _rename(row: dict, names: dict[str, tuple[str, ...]]) -> dict:
    spellings = {spelling: key for key, others in names.items() for spelling in others}
    return {spellings.get(name, name): value for name, value in row.items()}


def _table_rows(path: Path, dataset: str, found: Findings | None) -> Iterator[Located]:
    """Rows of a CSV, JSON lines or Parquet file."""
    if path.suffix == ".parquet":
        yield from (Located(f"{path}, row {number}", dataset, row) for number, row in parquet_rows(path))
    elif path.suffix == ".jsonl":
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file):
                where = f"{path}, row {number} (line {number + 1})"
                try:
                    if line.strip():
                        yield Located(where, dataset, _object(json.loads(line)))
                except ValueError as error:
                    _refuse(where, error, found)
    elif path.suffix == ".csv":
        with open(path, encoding="utf-8", newline="") as file:
            reader, line = csv.DictReader(file), 2
            for number, row in enumerate(reader):
                yield Located(f"{path}, row {number} (line {line})", dataset, {k: v for k, v in row.items() if k})
                line = reader.line_num + 1
    else:
        raise ValueError(f"{path}: rows are read from .csv, .jsonl, .parquet and .json files, and from folders.")


def _object(row) -> dict:
    if not isinstance(row, dict):
        raise ValueError(f"is no object but {str(row)[:60]!r}.")
    return row


def _located(path: Path, dataset: str = "") -> Iterator[Located]:
    """Rows of a JSON list."""
    return (Located(where, dataset, row) for where, row in json_list(path))


def _not_empty(path: Path, rows: Dataset, subsets=None) -> Dataset:
    if not len(rows):
        raise ValueError(f"{path} holds no row{f' of {subsets}' if subsets else ''}.")
    return rows
