"""Readers: a public layout in, `Example` rows out; nothing downstream knows a source format.

Each layout has a `read_...` that finds its raw rows, and a `_parse_...` that makes one of them an example. A reader
stops at the first bad row, or, given [`Findings`], leaves bad rows out and keeps them there with the reason.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

from datasets import Dataset

from ..files.names import file_name, text_of_file_name
from .files import (
    HUB,
    find_columns,
    is_folder,
    list_rows,
    local_path,
    parquet_columns,
    parquet_files,
    parquet_rows,
    table_rows,
)
from .findings import Findings, Located, Problem, as_object, refuse
from .images import resolve_image
from .schema import PLACEHOLDER, Example, Item, to_dataset
from .texts import require_text, shown

__all__ = [
    "HUB",
    "Findings",
    "Problem",
    "check_scores",
    "item_of",
    "local_path",
    "parquet_files",
    "parquet_rows",
    "read_clusters",
    "read_judged",
    "read_mmeb_train",
    "read_rows",
    "read_text_pairs",
]

SHOWN = 5  # bad rows that are listed where there is no good one

_MMEB_TRAIN = {  # column -> other spellings of it in public files
    "qry": ("qry_text",),
    "qry_image_path": ("qry_img_path",),
    "pos_text": ("tgt_text",),
    "pos_image_path": ("pos_img_path", "tgt_img_path"),
}
_MMEB_NEGATIVE = {"neg_text": (), "neg_image_path": ("neg_img_path",)}
_CLUSTERS = "_hard_negatives.json"
_JUDGED_FILES = "rows-*.parquet"
_JUDGED = (
    "query_text",
    "query_image",
    "pos_text",
    "pos_image",
    "query_pos_scores",
    "hard_negatives",
    "hard_negatives_scores",
)


# any layout
def read_rows(
    path,
    image_root=None,
    subsets: list[str] | None = None,
    split: str = "original",
    limit: int | None = None,
    findings: Findings | None = None,
) -> Dataset:
    """Reads training rows of any layout, told apart by the file's kind and its columns.

    - a folder of `<subset>/<split>-*.parquet` (MMEB-train), of `<subset>_hard_negatives.json` (SaHa), or of
      `rows-<number>.parquet` (UniME-V2's rows, as `unime mine select --layout parquet` writes them);
    - a `.json` list of UniME-V2's rows, or of any that follow here;
    - `.jsonl`, `.parquet` or `.csv` with `sent0, sent1` (SimCSE), with the columns of MMEB-train, or with our own:
      `query` and `positive`, each a text or `{"text", "image"}`, and where they are known `negatives`,
      `positive_score`, `negative_scores` and `dataset`.

    Args:
        path (`str` or `Path`): the folder or file, or `hf://datasets/<owner>/<name>[/<file>]`.
        image_root (`str` or `Path`, *optional*): where image paths start; the folder, or the file's folder, by
            default.
        subsets (`list[str]`, *optional*): take only rows of these data sets.
        split (`str`, defaults to `"original"`): for a folder of MMEB-train, `"original"` or `"diverse_instruction"`.
        limit (`int`, *optional*): at most that many rows of each data set.
        findings ([`Findings`], *optional*): takes bad rows, which end the reading otherwise.

    Returns:
        `datasets.Dataset` with the columns of [`~unime.data.schema.Example`].

    Raises:
        ValueError: the file is of an unknown kind, or there is no row; a data set of `subsets` is not in it; a row
            lacks a key, or has an empty item, a missing image or a score outside [0, 1]. The message names file and
            row.

    Example:

    ```python
    # pairs.jsonl: {"query": {"image": "dogs/1.jpg"}, "positive": "a dog on a beach", "negatives": ["a cat"]}
    rows = read_rows("pairs.jsonl", image_root="photos")
    ```
    """
    # folders and lists have readers of their own
    if is_folder(path):
        return _read_folder(path, image_root, subsets, split, limit, findings)

    # each row says by its columns which layout it has
    path = local_path(path)
    rows = map(_with_dataset, table_rows(path, findings))
    return _read(path, rows, _parse_any, image_root or path.parent, subsets, limit, findings)


def _read_folder(path, image_root, subsets, split: str, limit, findings) -> Dataset:
    """MMEB-train, SaHa's clusters or mined rows, whichever the folder holds."""
    path = local_path(path, _patterns(subsets, f"/{split}-*.parquet", _CLUSTERS))
    if any(path.glob(f"*{_CLUSTERS}")):
        return read_clusters(path, image_root, subsets, limit, findings)
    if any(path.glob(_JUDGED_FILES)):
        return read_judged(path, image_root, subsets, limit, findings)
    return read_mmeb_train(path, subsets, split, image_root, limit, findings)


def _patterns(subsets: list[str] | None, *endings: str) -> list[str]:
    """Which files of a data set on the Hub are downloaded."""
    patterns = []
    for subset in subsets or ["*"]:
        for ending in endings:
            patterns.append(f"{subset}{ending}")
    return patterns


def _with_dataset(located: Located) -> Located:
    """A row with the data set that it names itself, if any."""
    if _is_judged(located.row):
        return _with_judged_dataset(located)
    return located._replace(dataset=located.row.get("dataset") or located.dataset)


def _is_judged(row: dict) -> bool:
    """Whether a row is of UniME-V2's layout, also where it lacks some of its keys."""
    keys = set(_JUDGED) - {"pos_text"}  # MMEB-train has that too
    return not keys.isdisjoint(row)


def _parse_any(located: Located, root: Path, findings: Findings) -> Example:
    if "query" in located.row:
        return _parse_own(located, root, findings)
    if "sent0" in located.row:
        return _parse_text_pair(located, root, findings)
    if _is_judged(located.row):
        return _parse_judged(located, root, findings)

    # MMEB-train, whose columns have other names in public copies
    spellings = {}
    for name, others in (_MMEB_TRAIN | _MMEB_NEGATIVE).items():
        spellings |= dict.fromkeys(others, name)
    row = {spellings.get(name, name): value for name, value in located.row.items()}

    if row.keys().isdisjoint(_MMEB_TRAIN):
        raise ValueError(f"lacks 'query' and 'positive', or the columns of another layout; it has {shown(list(row))}.")
    return _parse_mmeb(located._replace(row=row), root, findings)


def _parse_own(located: Located, root: Path, findings: Findings) -> Example:
    """A row with `query` and `positive`, as our documentation describes it."""
    row = located.row
    _require(row, ("query", "positive"))

    negatives = _list(row, "negatives")
    negative_scores = _list(row, "negative_scores")
    negative_queries = _list(row, "negative_queries")

    # negatives without scores are fine, some scores for other negatives are not
    if negative_scores and len(negatives) != len(negative_scores):
        raise ValueError(f"{len(negatives)} negatives for {len(negative_scores)} scores.")
    if negative_queries and len(negatives) != len(negative_queries):
        raise ValueError(f"{len(negatives)} negatives for {len(negative_queries)} queries of negatives.")

    check_scores(negative_scores)
    positive_score = row.get("positive_score")
    if positive_score is not None:
        check_scores([positive_score])

    return Example(
        query=_own_item(row["query"], root, findings),
        positive=_own_item(row["positive"], root, findings),
        negatives=_own_items(negatives, root, findings),
        positive_score=positive_score,
        negative_scores=negative_scores,
        dataset=located.dataset,
        negative_queries=_own_items(negative_queries, root, findings),
    )


def _own_item(value, root: Path, findings: Findings) -> Item:
    """An item of our own layout: a text, or `{"text", "image"}` with at least one of the two."""
    if isinstance(value, str):
        value = {"text": value}

    if not isinstance(value, dict) or value.keys() - {"text", "image"}:
        raise ValueError(f"an item is a text or has 'text' and 'image', got {shown(value)}.")
    return item_of(value.get("text"), value.get("image"), root, findings)


def _own_items(values: list, root: Path, findings: Findings) -> list[Item]:
    return [_own_item(value, root, findings) for value in values]


def _list(row: dict, name: str) -> list:
    """A list of a row, empty where there is none."""
    values = row.get(name)
    if values is None:
        return []
    if not isinstance(values, list):
        raise ValueError(f"{name!r} must be a list, got {shown(values)}.")
    return values


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
    root = local_path(root, _patterns(subsets, f"/{split}-*.parquet"))
    present = sorted({path.parent.name for path in root.glob(f"*/{split}-*.parquet")})
    if not present:
        raise ValueError(f"{root} holds no <subset>/{split}-*.parquet; is it the right folder and split?")
    _require_subsets(root, subsets, present)

    rows = _mmeb_rows(root, subsets or present, split, findings)
    return _read(root, rows, _parse_mmeb, image_root or root, None, limit, findings)


def _mmeb_rows(root: Path, subsets: list[str], split: str, findings: Findings | None) -> Iterator[Located]:
    for subset in subsets:
        for path in parquet_files(root / subset, split):
            names = _MMEB_TRAIN
            if _has_negatives(path):
                names = _MMEB_TRAIN | _MMEB_NEGATIVE
            for number, row in parquet_rows(path, names, findings):
                yield Located(f"{path}, row {number}", subset, row)


def _has_negatives(path: Path) -> bool:
    """Whether a file of MMEB-train has the columns of a negative, which only some subsets have."""
    columns = find_columns(parquet_columns(path), _MMEB_NEGATIVE)
    return None not in columns.values()


def _parse_mmeb(located: Located, root: Path, findings: Findings) -> Example:
    row = located.row
    text = _valid_text(row.get("neg_text"))
    image = _valid_text(row.get("neg_image_path"))

    # a negative of nothing but a placeholder stands where there is none
    negatives = []
    if image or text.replace(PLACEHOLDER, "").strip():
        negatives = [item_of(text, image, root, findings)]

    query, positive = _mmeb_pair(row, root, findings)
    return Example(query, positive, negatives, dataset=located.dataset)


def _mmeb_pair(row: dict, root: Path, findings: Findings) -> tuple[Item, Item]:
    """Query and positive of a row of MMEB-train."""
    _require(row, _MMEB_TRAIN)
    query = item_of(row["qry"], row["qry_image_path"], root, findings)
    positive = item_of(row["pos_text"], row["pos_image_path"], root, findings)
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
    root = local_path(root, _patterns(subsets and list(map(file_name, subsets)), _CLUSTERS))
    paths = _cluster_paths(root)
    if not paths:
        raise ValueError(f"{root} holds no <subset>{_CLUSTERS}; `unime mine saha` writes such files.")
    _require_subsets(root, subsets, list(paths))

    rows = _cluster_rows(paths, subsets or list(paths), findings)
    return _read(root, rows, _parse_cluster, image_root or root, None, limit, findings)


def _cluster_paths(root: Path) -> dict[str, Path]:
    """The files of a folder of clusters by the data sets that their names stand for."""
    paths = {}
    for path in sorted(root.glob(f"*{_CLUSTERS}")):
        paths[text_of_file_name(path.name.removesuffix(_CLUSTERS))] = path
    return paths


def _cluster_rows(paths: dict[str, Path], subsets: list[str], findings: Findings | None) -> Iterator[Located]:
    for subset in subsets:
        yield from list_rows(paths[subset], findings, subset)


def _parse_cluster(located: Located, root: Path, findings: Findings) -> Example:
    row = located.row
    query, positive = _mmeb_pair(row, root, findings)

    # each of the others is a pair too: its positive is our negative
    negatives = []
    negative_queries = []
    for member in _list(row, "neg_samples"):
        negative_query, negative = _mmeb_pair(as_object(member), root, findings)
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
    return _read(path, table_rows(path, findings), _parse_text_pair, path.parent, None, limit, findings)


def _parse_text_pair(located: Located, root: Path, findings: Findings) -> Example:
    row = located.row
    missing = _missing(row, ("sent0", "sent1"))
    if missing:
        raise ValueError(f"lacks the columns {missing}; it has {shown(list(row))}.")

    negatives = []
    if _valid_text(row.get("hard_neg")):
        negatives = [Item(row["hard_neg"])]
    query = Item(_valid_text(row["sent0"]))
    positive = Item(_valid_text(row["sent1"]))
    return Example(query, positive, negatives, dataset=located.dataset)


# rows with mined negatives
def read_judged(
    path, image_root=None, subsets: list[str] | None = None, limit: int | None = None, findings: Findings | None = None
) -> Dataset:
    """Reads UniME-V2's training layout: a JSON list of rows with mined negatives and judge scores.

    The data set of a row is what its key `dataset` says, which our own files have; else the folder of its images
    (`images/<Subset>/Train/...`), of the query first, then of the positive or a negative.

    Args:
        path (`str` or `Path`): the JSON file, `hf://datasets/<owner>/<name>/<file>`, or a folder of
            `rows-<number>.parquet` with the same columns.
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
    rows = read_judged("outputs/mined/judged.json", image_root="images", subsets=["MSCOCO_i2t"])
    ```
    """
    path = local_path(path)
    if path.is_dir():
        files = sorted(path.glob(_JUDGED_FILES))
        rows = chain.from_iterable(table_rows(file, findings) for file in files)
    else:
        rows = list_rows(path, findings)
    rows = map(_with_judged_dataset, rows)
    return _read(path, rows, _parse_judged, image_root or path.parent, subsets, limit, findings)


def _with_judged_dataset(located: Located) -> Located:
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
            if isinstance(pair, list) and pair:
                images.append(pair[-1])

    # images/<Subset>/Train/..., of the first image that lies in such a folder
    for image in images:
        if image and isinstance(image, str):
            folders = Path(image).parts
            if len(folders) > 2:
                return folders[1]
    return ""


def _parse_judged(located: Located, root: Path, findings: Findings) -> Example:
    row = located.row
    _require(row, _JUDGED)

    # the file has one score for the positive, and one for each negative
    pairs = _list(row, "hard_negatives")
    scores = _list(row, "hard_negatives_scores")
    if len(pairs) != len(scores):
        raise ValueError(f"{len(pairs)} negatives for {len(scores)} scores.")
    check_scores([row["query_pos_scores"], *scores])

    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"a negative must be a pair of text and image, not {shown(pair)}.")

    query = item_of(row["query_text"], row["query_image"], root, findings)
    positive = item_of(row["pos_text"], row["pos_image"], root, findings)
    negatives = [item_of(text, image, root, findings) for text, image in pairs]
    return Example(query, positive, negatives, row["query_pos_scores"], scores, located.dataset)


# what all of them do
def _read(
    source: Path,
    rows: Iterable[Located],
    parse: Callable[[Located, Path, Findings], Example],
    root,
    subsets: list[str] | None,
    limit: int | None,
    findings: Findings | None,
) -> Dataset:
    """The examples of raw rows, of which there must be one."""
    rows = _of_subsets(source, _with_valid_names(rows, findings), subsets)
    examples = to_dataset(_examples(_limited(rows, limit), parse, Path(root), findings))
    if len(examples):
        return examples

    # why there is none
    message = f"{source} holds no row that can be used"
    problems = findings.problems if findings else []
    if not problems:
        raise ValueError(f"{message}.")

    reasons = [f"{problem.where}: {problem.reason}" for problem in problems[:SHOWN]]
    raise ValueError("\n".join([f"{message}; of its {len(problems)} bad rows the first are", *reasons]))


def _with_valid_names(rows: Iterable[Located], findings: Findings | None) -> Iterator[Located]:
    """The rows whose data set has a name that is a text."""
    for located in rows:
        # the name may come from the row, and so be anything that JSON can say
        try:
            if not isinstance(located.dataset, str):
                raise ValueError(f"the data set's name must be a string, not {shown(located.dataset)}.")
            require_text(located.dataset)
        except ValueError as error:
            refuse(located.where, error, findings)
        else:
            yield located


def _of_subsets(source: Path, rows: Iterable[Located], subsets: list[str] | None) -> Iterator[Located]:
    """The rows of some data sets, or all rows; an error at the end if there is no row of one of them."""
    present = set()
    for located in rows:
        present.add(located.dataset)
        if not subsets or located.dataset in subsets:
            yield located
    _require_subsets(source, subsets, sorted(present))


def _require_subsets(source: Path, subsets: list[str] | None, present: list[str]):
    missing = sorted(set(subsets or ()) - set(present))
    if missing:
        raise ValueError(f"{source} has no data set {', '.join(missing)}; it has {', '.join(present) or 'none'}.")


def _limited(rows: Iterable[Located], limit: int | None) -> Iterator[Located]:
    """At most `limit` rows of each data set."""
    counts = Counter()
    for located in rows:
        counts[located.dataset] += 1
        if limit is None or counts[located.dataset] <= limit:
            yield located


def _examples(
    rows: Iterable[Located],
    parse: Callable[[Located, Path, Findings], Example],
    root: Path,
    findings: Findings | None,
) -> Iterator[Example]:
    """The examples of raw rows."""
    notes = findings or Findings()  # a parser notes what it mends, whether anybody reads it or not
    for located in rows:
        try:
            example = parse(located, root, notes)
        except ValueError as error:
            refuse(located.where, error, findings)
        else:
            yield example


def _require(row: dict, names: Iterable[str]):
    missing = _missing(row, names)
    if missing:
        raise ValueError(f"lacks {missing}; it has {shown(list(row))}.")


def _missing(row: dict, names: Iterable[str]) -> list[str]:
    return [name for name in names if name not in row]


def item_of(text: str | None, image: str | None, root: Path, findings: Findings | None = None) -> Item:
    """An item of a data file; a placeholder without an image is a known oddity of MMEB and is dropped.

    Args:
        text (`str`, *optional*): the text; `None` and an empty one are the same.
        image (`str`, *optional*): path of an image below `root`; `None` and an empty one are the same.
        root (`Path`): where image paths start.
        findings ([`Findings`], *optional*): says whether the image must exist, and takes notes of what was mended.

    Raises:
        ValueError: there is neither text nor image, one of them is not a string or not valid Unicode, or the image is
            missing or outside `root`.
    """
    findings = findings or Findings()
    text = _valid_text(text)
    image = resolve_image(root, _valid_text(image), must_exist=findings.images_must_exist)

    if not image and PLACEHOLDER in text:
        text = text.replace(PLACEHOLDER + "\n", "").replace(PLACEHOLDER, "")
        findings.notes["image placeholders dropped from texts without an image"] += 1
    return Item(text, image)


def _valid_text(value: str | None) -> str:
    """A text or an image path of a data file, empty if there is none."""
    if not isinstance(value, (str, type(None))):
        raise ValueError(f"a text or an image path must be a string, not {shown(value)}.")
    return require_text(value or "")


def check_scores(scores: Iterable):
    """Raises `ValueError` unless all judge scores are numbers in [0, 1]."""
    for score in scores:
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0 <= score <= 1:
            raise ValueError(f"the judge score {shown(score)} is not a number in [0, 1].")
