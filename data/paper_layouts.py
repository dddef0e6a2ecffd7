"""Readers of the layouts of published rows: MMEB-train, SaHa's clusters, SimCSE's sentences, UniME-V2's judged rows.

Each has a `read_...` that finds its raw rows, and a `parse_...` that makes one of them an example.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from datasets import Dataset

from ..files.names import file_name, text_of_file_name
from .files import find_columns, list_rows, local_path, parquet_columns, parquet_files, parquet_rows, table_rows
from .findings import Findings, Located, as_object
from .images import ImageFiles
from .own_rows import list_of, weight_of
from .reading import missing_keys, patterns_of, read_examples, require_keys, require_subsets
from .row_items import check_scores, item_of, valid_text
from .schema import PLACEHOLDER, Example, Item
from .texts import shown

MMEB_TRAIN = {  # column -> other spellings of it in public files
    "qry": ("qry_text",),
    "qry_image_path": ("qry_img_path",),
    "pos_text": ("tgt_text",),
    "pos_image_path": ("pos_img_path", "tgt_img_path"),
}
_MMEB_NEGATIVE = {"neg_text": (), "neg_image_path": ("neg_img_path",)}
CLUSTERS = "_hard_negatives.json"
JUDGED_FILES = "rows-*.parquet"
_JUDGED = (
    "query_text",
    "query_image",
    "pos_text",
    "pos_image",
    "query_pos_scores",
    "hard_negatives",
    "hard_negatives_scores",
)
JUDGED_TAKES = {
    "query_text": "query",
    "query_image": "query",
    "pos_text": "positive",
    "pos_image": "positive",
    "query_pos_scores": "positive score",
    "hard_negatives": "negatives",
    "hard_negatives_scores": "negative scores",
    "dataset": "dataset",
}
SENTENCE_TAKES = {"sent0": "query", "sent1": "positive", "hard_neg": "negative"}


# MMEB
def read_mmeb_train(
    root,
    subsets: list[str] | None = None,
    split: str = "original",
    image_root=None,
    limit: int | None = None,
    findings: Findings | None = None,
) -> Dataset:
    """Reads TIGER-Lab/MMEB-train's layout: `<root>/<subset>/<split>-*.parquet`, images relative to `image_root`.

    Args:
        root (`str` or `Path`): folder with one folder a subset, or `hf://datasets/TIGER-Lab/MMEB-train`.
        subsets (`list[str]`, *optional*): which data sets; all in the folder by default.
        split (`str`, defaults to `"original"`): `"original"` or `"diverse_instruction"`.
        image_root (`str` or `Path`, *optional*): where image paths start; `root` by default.
        limit (`int`, *optional*): at most that many rows of each subset (the papers take 50,000).
        findings ([`Findings`], *optional*): takes bad rows, which end the reading otherwise.

    Returns:
        `datasets.Dataset` with the columns of [`~unime.data.schema.Example`]; `negatives` where the file names one.

    Raises:
        ValueError: a subset, column or image is missing, or a row is empty; the message names file and row.

    Example:

    ```python
    rows = read_mmeb_train("hf://datasets/TIGER-Lab/MMEB-train", ["MSCOCO_i2t"], image_root="images", limit=50_000)
    ```
    """
    root = local_path(root, patterns_of(subsets, f"/{split}-*.parquet"))
    present = sorted({path.parent.name for path in root.glob(f"*/{split}-*.parquet")})
    if not present:
        raise ValueError(f"{root} holds no <subset>/{split}-*.parquet; is it the right folder and split?")
    require_subsets(root, subsets, present)

    rows = _mmeb_rows(root, subsets or present, split, findings)
    return read_examples(root, rows, parse_mmeb, image_root or root, None, limit, findings)


def _mmeb_rows(root: Path, subsets: list[str], split: str, findings: Findings | None) -> Iterator[Located]:
    for subset in subsets:
        for path in parquet_files(root / subset, split):
            names = MMEB_TRAIN
            if _has_negatives(path):
                names = MMEB_TRAIN | _MMEB_NEGATIVE
            for number, row in parquet_rows(path, names, findings):
                yield Located(f"{path}, row {number}", subset, row)


def _has_negatives(path: Path) -> bool:
    """Whether a file of MMEB-train has the columns of a negative, which only some subsets have."""
    columns = find_columns(parquet_columns(path), _MMEB_NEGATIVE)
    return None not in columns.values()


def with_mmeb_names(row: dict) -> dict:
    """A row under MMEB-train's names, which its columns do not have in all public copies."""
    spellings = {}
    for name, others in (MMEB_TRAIN | _MMEB_NEGATIVE).items():
        spellings |= dict.fromkeys(others, name)
    return {spellings.get(name, name): value for name, value in row.items()}


def mmeb_takes(row: dict) -> dict[str, str]:
    """What the columns of a row of MMEB-train are taken for."""
    kinds = {"q": "query", "p": "positive", "t": "positive", "n": "negative"}
    names = set(MMEB_TRAIN) | set(_MMEB_NEGATIVE)
    return {column: kinds[column[0]] for column, name in zip(row, with_mmeb_names(row)) if name in names}


def parse_mmeb(located: Located, files: ImageFiles, findings: Findings) -> Example:
    """An example of a row of MMEB-train, under the names that [`with_mmeb_names`] gives its columns."""
    row = located.row
    text = valid_text(row.get("neg_text"))
    image = valid_text(row.get("neg_image_path"))

    # a negative of nothing but a placeholder stands where there is none
    negatives = []
    if image or text.replace(PLACEHOLDER, "").strip():
        negatives = [item_of(text, image, files, findings)]

    query, positive = _mmeb_pair(row, files, findings)
    return Example(query, positive, negatives, dataset=located.dataset)


def _mmeb_pair(row: dict, files: ImageFiles, findings: Findings) -> tuple[Item, Item]:
    """Query and positive of a row of MMEB-train."""
    require_keys(row, MMEB_TRAIN)
    query = item_of(row["qry"], row["qry_image_path"], files, findings)
    positive = item_of(row["pos_text"], row["pos_image_path"], files, findings)
    return query, positive


# SaHa's clusters
def read_clusters(
    root, image_root=None, subsets: list[str] | None = None, limit: int | None = None, findings: Findings | None = None
) -> Dataset:
    """Reads SaHa's clusters: `<root>/<subset>_hard_negatives.json`, rows of MMEB-train with whole rows as negatives.

    Args:
        root (`str` or `Path`): folder of the files, or `hf://datasets/<owner>/<name>`.
        image_root (`str` or `Path`, *optional*): where image paths start; `root` by default.
        subsets (`list[str]`, *optional*): which data sets; all in the folder by default.
        limit (`int`, *optional*): at most that many clusters of each.
        findings ([`Findings`], *optional*): takes bad rows, which end the reading otherwise.

    Returns:
        `datasets.Dataset` with the columns of [`~unime.data.schema.Example`], `negative_queries` among them.

    Raises:
        ValueError: there is no such file, or a key or image is missing; the message names file and row.

    Example:

    ```python
    rows = read_clusters("outputs/saha", image_root="images", subsets=["VOC2007"])
    ```
    """
    root = local_path(root, patterns_of(subsets and list(map(file_name, subsets)), CLUSTERS))
    paths = _cluster_paths(root)
    if not paths:
        raise ValueError(f"{root} holds no <subset>{CLUSTERS}; `unime mine saha` writes such files.")
    require_subsets(root, subsets, list(paths))

    rows = _cluster_rows(paths, subsets or list(paths), findings)
    return read_examples(root, rows, _parse_cluster, image_root or root, None, limit, findings)


def _cluster_paths(root: Path) -> dict[str, Path]:
    """The files of a folder of clusters by the data sets that their names stand for."""
    paths = {}
    for path in sorted(root.glob(f"*{CLUSTERS}")):
        paths[text_of_file_name(path.name.removesuffix(CLUSTERS))] = path
    return paths


def _cluster_rows(paths: dict[str, Path], subsets: list[str], findings: Findings | None) -> Iterator[Located]:
    for subset in subsets:
        yield from list_rows(paths[subset], findings, subset)


def _parse_cluster(located: Located, files: ImageFiles, findings: Findings) -> Example:
    row = located.row
    query, positive = _mmeb_pair(row, files, findings)

    # each of the others is a pair too: its positive is our negative
    negatives = []
    negative_queries = []
    for member in list_of(row, "neg_samples"):
        negative_query, negative = _mmeb_pair(as_object(member), files, findings)
        negative_queries.append(negative_query)
        negatives.append(negative)
    return Example(query, positive, negatives, dataset=located.dataset, negative_queries=negative_queries)


# sentence pairs
def read_text_pairs(path, limit: int | None = None, findings: Findings | None = None) -> Dataset:
    """Reads sentence pairs: CSV, JSON lines or Parquet with the columns `sent0`, `sent1` and, if any, `hard_neg`.

    This is the layout of SimCSE's `nli_for_simcse.csv`, on which UniME's first stage trains.

    Args:
        path (`str` or `Path`): the file, or `hf://datasets/<owner>/<name>/<file>`.
        limit (`int`, *optional*): at most that many rows.
        findings ([`Findings`], *optional*): takes bad rows, which end the reading otherwise.

    Returns:
        `datasets.Dataset` with the columns of [`~unime.data.schema.Example`]; `sent0` is the query.

    Raises:
        ValueError: the kind of file is unknown, a column is missing, or a sentence is empty; the message names file
            and row.

    Example:

    ```python
    rows = read_text_pairs("nli_for_simcse.csv", limit=10_000)
    ```
    """
    path = local_path(path)
    return read_examples(path, table_rows(path, findings), parse_text_pair, path.parent, None, limit, findings)


def parse_text_pair(located: Located, files: ImageFiles, findings: Findings) -> Example:
    """An example of a row of SimCSE's sentences."""
    row = located.row
    missing = missing_keys(row, ("sent0", "sent1"))
    if missing:
        raise ValueError(f"lacks the columns {missing}; it has {shown(list(row))}.")

    negatives = []
    if valid_text(row.get("hard_neg")):
        negatives = [Item(row["hard_neg"])]
    query = Item(valid_text(row["sent0"]))
    positive = Item(valid_text(row["sent1"]))
    return Example(query, positive, negatives, dataset=located.dataset)


# rows with mined negatives
def read_judged(
    path, image_root=None, subsets: list[str] | None = None, limit: int | None = None, findings: Findings | None = None
) -> Dataset:
    """Reads UniME-V2's training layout: rows with mined negatives and judge scores, in JSON or Parquet.

    The data set of a row is what its key `dataset` says, which our own files have; else the folder of its images
    (`images/<Subset>/Train/...`), of the query first, then of the positive or a negative.

    Args:
        path (`str` or `Path`): a folder of `rows-<number>.parquet`, a file with a JSON list of rows, or
            `hf://datasets/<owner>/<name>/<file>`.
        image_root (`str` or `Path`, *optional*): where image paths start; the folder that holds `path` by default.
        subsets (`list[str]`, *optional*): take only rows of these data sets.
        limit (`int`, *optional*): at most that many rows of each.
        findings ([`Findings`], *optional*): takes bad rows, which end the reading otherwise.

    Returns:
        `datasets.Dataset` with the columns of [`~unime.data.schema.Example`].

    Raises:
        ValueError: the file is not such a list, or a row lacks a key, has unequal numbers of negatives and scores, a
            score that is not a number in [0, 1], or a missing image; the message names file and row.

    Example:

    ```python
    rows = read_judged("outputs/mined/judged", image_root="images", subsets=["MSCOCO_i2t"])
    ```
    """
    path = local_path(path)
    if path.is_dir():
        files = sorted(path.glob(JUDGED_FILES))
        rows = chain.from_iterable(table_rows(file, findings) for file in files)
    else:
        rows = list_rows(path, findings)
    rows = map(with_judged_dataset, rows)
    return read_examples(path, rows, parse_judged, image_root or path.parent, subsets, limit, findings)


def is_judged(row: dict) -> bool:
    """Whether a row is of UniME-V2's layout, also where it lacks some of its keys."""
    keys = set(_JUDGED) - {"pos_text"}  # MMEB-train has that too
    return not keys.isdisjoint(row)


def with_judged_dataset(located: Located) -> Located:
    """A row of UniME-V2's layout with its data set, as far as the row tells it."""
    return located._replace(dataset=_judged_dataset(located.row))


def _judged_dataset(row: dict) -> str:
    """The data set of a row; nothing is known of the row yet, and what is wrong with it is said when it is parsed."""
    if "dataset" in row:
        return row["dataset"]

    # released rows have no name, but the paths of their images do
    images = [row.get("query_image"), row.get("pos_image")]
    negatives = row.get("hard_negatives")
    if isinstance(negatives, list):
        for pair in negatives:
            if isinstance(pair, list) and len(pair) > 1:
                images.append(pair[1])

    # images/<Subset>/Train/..., of the first image that lies in such a folder
    for image in images:
        if image and isinstance(image, str):
            folders = Path(image).parts
            if len(folders) > 2:
                return folders[1]
    return ""


def parse_judged(located: Located, files: ImageFiles, findings: Findings) -> Example:
    """An example of a row of UniME-V2's layout."""
    row = located.row
    require_keys(row, _JUDGED)

    # the file has one score for the positive, and one for each negative
    pairs = list_of(row, "hard_negatives")
    scores = list_of(row, "hard_negatives_scores")
    if len(pairs) != len(scores):
        raise ValueError(f"{len(pairs)} negatives for {len(scores)} scores.")
    check_scores([row["query_pos_scores"], *scores])

    # instructions, further images, other positives and weights are of rows of our own
    query_images = _with_more(row["query_image"], list_of(row, "query_more_images"))
    positive_images = _with_more(row["pos_image"], list_of(row, "pos_more_images"))
    query = item_of(row["query_text"], query_images, files, findings, row.get("query_instruction"))
    positive = item_of(row["pos_text"], positive_images, files, findings)
    negatives = [_judged_item(pair, files, findings) for pair in pairs]
    others = [_judged_item(pair, files, findings) for pair in list_of(row, "other_positives")]
    return Example(
        query=query,
        positive=positive,
        negatives=negatives,
        positive_score=row["query_pos_scores"],
        negative_scores=scores,
        dataset=located.dataset,
        other_positives=others,
        weight=weight_of(row),
    )


def _judged_item(pair, files: ImageFiles, findings: Findings) -> Item:
    """A negative as such rows have it: a text and an image, and in rows of our own further images."""
    if not isinstance(pair, list) or len(pair) < 2:
        raise ValueError(f"a negative must be a pair of text and image, not {shown(pair)}.")
    text, image, *more = pair
    return item_of(text, _with_more(image, more), files, findings)


def _with_more(image, more: list):
    """An item's image, or all of its images."""
    return [image, *more] if more else image
