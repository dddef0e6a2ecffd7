"""Readers: a public layout in, `Example` rows out; nothing downstream knows a source format.

Each layout has a `read_...` that finds its raw rows, and a `_parse_...` that makes one of them an example. A reader
stops at the first bad row, or, given [`Findings`], leaves bad rows out and keeps them there with the reason.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

from datasets import Dataset, IterableDataset

from ..files.names import file_name, text_of_file_name
from .choices import SPLITS
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
from .images import ImageFiles
from .layouts import PICTURES, Layout, layout_of, mapped_layout, read_mapping, with_single_negatives
from .own_rows import list_of, parse_own, weight_of
from .row_items import check_scores, item_of, valid_text
from .schema import FEATURES, PLACEHOLDER, Example, Item, as_row, to_dataset
from .sources import Source, open_source
from .tables import dataset_rows
from .texts import require_text, shown

__all__ = [
    "HUB",
    "Findings",
    "Problem",
    "check_scores",
    "item_of",
    "iterate_examples",
    "local_path",
    "parquet_files",
    "parquet_rows",
    "read_clusters",
    "read_judged",
    "read_mmeb_train",
    "read_rows",
    "read_text_pairs",
    "rows_of_dataset",
    "stream_rows",
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
_JUDGED_TAKES = {
    "query_text": "query",
    "query_image": "query",
    "pos_text": "positive",
    "pos_image": "positive",
    "query_pos_scores": "positive score",
    "hard_negatives": "negatives",
    "hard_negatives_scores": "negative scores",
    "dataset": "dataset",
}
_SENTENCE_TAKES = {"sent0": "query", "sent1": "positive", "hard_neg": "negative"}
OWN = (
    "query",
    "positive",
    "positives",
    "positive_score",
    "positive_scores",
    "other_positives",
    "dataset",
    "weight",
)


# any layout
def read_rows(
    path,
    image_root=None,
    subsets: list[str] | None = None,
    split: str = "original",
    limit: int | None = None,
    findings: Findings | None = None,
    columns=None,
    allow_urls: bool = False,
) -> Dataset:
    """Reads training rows from wherever they are, in any layout, told apart by their columns.

    The sources are

    - files: `.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`, `.arrow`, and WebDataset's `.tar`;
    - folders: of MMEB-train (`<subset>/<split>-*.parquet`), of SaHa's clusters (`<subset>_hard_negatives.json`), of
      mined rows (`rows-<number>.parquet`, as `unime mine select` writes them), of pictures with
      captions (`x.jpg` and `x.txt`, or `metadata.csv`), of tars, of Parquet files, of `datasets.save_to_disk`, and
      MTEB's corpus, queries and qrels;
    - data sets of the Hub, `owner/name[:config][:split]`.

    The layouts are our own (`query` and `positive`, each a text or `{"text", "image"}`, and where they are known
    `positives`, `negatives`, `positive_score`, `negative_scores`, `weight` and `dataset`), those of UniME-V2, SimCSE
    and MMEB-train, and what [`~unime.data.layouts.layout_of`] recognises.

    Args:
        path (`str` or `Path`): the source, also `hf://datasets/<owner>/<name>[/<file>]`.
        image_root (`str` or `Path`, *optional*): where image paths start; the folder, or the file's folder, by
            default.
        subsets (`list[str]`, *optional*): take only rows of these data sets.
        split (`str`, defaults to `"original"`): for a folder of MMEB-train, `"original"` or `"diverse_instruction"`.
        limit (`int`, *optional*): at most that many rows of each data set.
        findings ([`Findings`], *optional*): takes bad rows, which end the reading otherwise, and what columns were
            taken for.
        columns (`list[str]` or `dict`, *optional*): which columns to take for what, `["query=caption",
            "positive=image"]`; as they are recognised by default.
        allow_urls (`bool`, defaults to `False`): fetch images that rows name by `https://` addresses.

    Returns:
        `datasets.Dataset` with the columns of [`~unime.data.schema.Example`].

    Raises:
        ValueError: there is no such source, or it has no row; a data set of `subsets` is not in it; a row lacks a key,
            or has an empty item, a missing image or a score outside [0, 1]. The message names file and row.

    Example:

    ```python
    # pairs.jsonl: {"query": {"image": "dogs/1.jpg"}, "positive": "a dog on a beach", "negatives": ["a cat"]}
    rows = read_rows("pairs.jsonl", image_root="photos")
    ```
    """
    # folders of MMEB have readers of their own
    if is_folder(path) and not columns:
        reader = _folder_reader(path, subsets, split)
        if reader is not None:
            return reader(image_root, limit, findings)

    source = open_source(path, findings)
    rows, parse, files = _opened(source, image_root, findings, columns, allow_urls)
    return _read(source.name, rows, parse, files, subsets, limit, findings)


def iterate_examples(
    path,
    image_root=None,
    findings: Findings | None = None,
    columns=None,
    allow_urls: bool = False,
    streaming: bool = True,
) -> Iterator[tuple[str, Example]]:
    """The examples of a source one after the other, with the place of each, while it is read.

    Pictures that rows hold as bytes stay in the items, as data URIs: a stream may be larger than the disk.

    Args:
        path, image_root, findings, columns, allow_urls: as in [`read_rows`].
        streaming (`bool`, defaults to `True`): read a data set of the Hub as it is downloaded, and write no picture to
            the disk.

    Raises:
        ValueError: as in [`read_rows`]; a source without a row is none.

    Example:

    ```python
    for where, example in iterate_examples("owner/name"):
        print(where, example.query)
    ```
    """
    source = open_source(path, findings, streaming)
    rows, parse, files = _opened(source, image_root, findings, columns, allow_urls, unpacked=not streaming)
    yield from _located_examples(_with_valid_names(rows, findings), parse, files, findings)


def stream_rows(path, image_root=None, columns=None, allow_urls: bool = False) -> IterableDataset:
    """A source as a stream of rows, of which few are in memory and none is written to the disk.

    Args:
        path, image_root, columns, allow_urls: as in [`read_rows`].

    Returns:
        `datasets.IterableDataset` whose rows have the columns of [`~unime.data.schema.Example`].

    Example:

    ```python
    trainer = ContrastiveTrainer(model, args, train_dataset=stream_rows("owner/name"))
    ```
    """
    options = {"path": path, "image_root": image_root, "columns": columns, "allow_urls": allow_urls}
    return IterableDataset.from_generator(_streamed, features=FEATURES, gen_kwargs={"options": options})


def _streamed(options: dict) -> Iterator[dict]:
    for _, example in iterate_examples(**options):
        yield as_row(example)


def rows_of_dataset(dataset, name: str = "the data set") -> Dataset | IterableDataset:
    """Rows of a data set of other columns, such as `Image` ones, as trainers read them.

    Args:
        dataset (`datasets.Dataset` or `IterableDataset`): in any layout. A stream stays one.
        name (`str`): how messages call it.

    Example:

    ```python
    rows = rows_of_dataset(load_dataset("owner/name", split="train"))
    ```
    """
    if isinstance(dataset, IterableDataset):
        return IterableDataset.from_generator(
            _streamed_dataset, features=FEATURES, gen_kwargs={"dataset": dataset, "name": name}
        )
    examples = _examples_of_dataset(dataset, name, unpacked=True)
    return to_dataset(example for _, example in examples)


def _streamed_dataset(dataset, name: str) -> Iterator[dict]:
    for _, example in _examples_of_dataset(dataset, name, unpacked=False):
        yield as_row(example)


def _examples_of_dataset(dataset, name: str, unpacked: bool) -> Iterator[tuple[str, Example]]:
    # a program that hands over rows may name any file
    files = ImageFiles(None, unpacked=unpacked)
    rows = map(_with_dataset, dataset_rows(dataset, name, ""))
    return _located_examples(rows, RowParser(), files, None)


def _opened(
    source: Source, image_root, findings: Findings | None, columns, allow_urls: bool, unpacked: bool = True
) -> tuple[Iterator[Located], "RowParser", ImageFiles]:
    """The rows of a source, what makes examples of them, and where their images are."""
    if findings is not None:
        findings.source = source.kind
    must_exist = findings is None or findings.images_must_exist

    # a data set of the Hub has no folder, and its pictures are in it
    root = image_root or source.root or Path.cwd()
    files = ImageFiles(Path(root), allow_urls, unpacked, must_exist)
    return map(_with_dataset, source.rows()), RowParser(read_mapping(columns)), files


def _folder_reader(path, subsets: list[str] | None, split: str) -> Callable | None:
    """What reads a folder of MMEB-train, of SaHa's clusters or of mined rows, or None for any other folder."""
    files = _patterns(subsets, f"/{split}-*.parquet", _CLUSTERS)
    folder = local_path(path, files)

    if any(folder.glob(f"*{_CLUSTERS}")):
        return lambda image_root, limit, findings: read_clusters(path, image_root, subsets, limit, findings)
    if any(folder.glob(_JUDGED_FILES)):
        return lambda image_root, limit, findings: read_judged(path, image_root, subsets, limit, findings)

    # with the other split, or none, the reader says what is missing
    if any(any(folder.glob(f"*/{name}-*.parquet")) for name in SPLITS):
        return lambda image_root, limit, findings: read_mmeb_train(path, subsets, split, image_root, limit, findings)
    return None


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


class RowParser:
    """Makes examples of rows of any layout, which each row says by its columns.

    Args:
        mapping (`dict[str, str]`, *optional*): the columns that a user names, from
            [`~unime.data.layouts.read_mapping`].
    """

    def __init__(self, mapping: dict[str, str] | None = None):
        self.given = mapped_layout(mapping) if mapping else None
        self.layouts = {}  # by columns, as rows of a table have the same

    def __call__(self, located: Located, files: ImageFiles, findings: Findings) -> list[Example]:
        row = located.row
        if self.given is not None:
            return self._translated(self.given, located, files, findings)

        # ours first, then those whose columns nobody else has
        if "query" in row and not {"positive", "positives"}.isdisjoint(row):
            _refuse_loose_pictures(row)
            findings.note_layout("our own", _own_takes(row), row)
            return parse_own(located._replace(row=with_single_negatives(row)), files, findings)
        if _is_judged(row):
            findings.note_layout("judged rows (UniME-V2)", _JUDGED_TAKES, row)
            return [_parse_judged(located, files, findings)]
        if "sent0" in row:
            findings.note_layout("sentence pairs (SimCSE)", _SENTENCE_TAKES, row)
            return [_parse_text_pair(located, files, findings)]

        renamed = _with_mmeb_names(row)
        if not renamed.keys().isdisjoint(_MMEB_TRAIN):
            findings.note_layout("MMEB-train", _mmeb_takes(row), row)
            return [_parse_mmeb(located._replace(row=renamed), files, findings)]

        layout = self._recognised(row)
        if layout is None:
            hint = "--columns query=... positive=... says which columns they are."
            if len(row) == 1 and ";" in next(iter(row)):
                hint = "It seems to be separated by semicolons; save it with commas, or as .tsv."
            raise ValueError(
                f"lacks 'query' and 'positive', or the columns of another layout; it has {shown(list(row))}. {hint}"
            )
        return self._translated(layout, located, files, findings)

    def _recognised(self, row: dict) -> Layout | None:
        columns = tuple(row)
        if columns not in self.layouts:
            self.layouts[columns] = layout_of(columns)
        return self.layouts[columns]

    def _translated(self, layout: Layout, located: Located, files: ImageFiles, findings: Findings) -> list[Example]:
        findings.note_layout(layout.name, layout.takes, located.row)
        rows = layout.translate(located.row)
        if not rows:
            findings.notes["rows whose label says that they are not pairs, which are left out"] += 1

        examples = []
        for row in rows:
            dataset = row.get("dataset") or located.dataset
            examples += parse_own(Located(located.where, dataset, row), files, findings)
        return examples


def _with_mmeb_names(row: dict) -> dict:
    """A row under MMEB-train's names, which its columns do not have in all public copies."""
    spellings = {}
    for name, others in (_MMEB_TRAIN | _MMEB_NEGATIVE).items():
        spellings |= dict.fromkeys(others, name)
    return {spellings.get(name, name): value for name, value in row.items()}


def _refuse_loose_pictures(row: dict):
    """Refuses a picture beside query and positive: it may be either's."""
    for column in PICTURES:
        if row.get(column) not in (None, "", []):
            raise ValueError(
                f"has {column!r} beside 'query' and 'positive', and nothing says whose it is: --columns "
                f"query.image={column} query.text=query positive=positive, or positive.image={column} ..., does."
            )


def _own_takes(row: dict) -> dict[str, str]:
    """What columns of a row of our own are taken for: what they are called."""
    return {name: name.replace("_", " ") for name in row if name in OWN or name.startswith("negative")}


def _mmeb_takes(row: dict) -> dict[str, str]:
    """What the columns of a row of MMEB-train are taken for."""
    kinds = {"q": "query", "p": "positive", "t": "positive", "n": "negative"}
    names = set(_MMEB_TRAIN) | set(_MMEB_NEGATIVE)
    return {column: kinds[column[0]] for column, name in zip(row, _with_mmeb_names(row)) if name in names}


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


def _parse_mmeb(located: Located, files: ImageFiles, findings: Findings) -> Example:
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
    _require(row, _MMEB_TRAIN)
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
    return _read(path, table_rows(path, findings), _parse_text_pair, path.parent, None, limit, findings)


def _parse_text_pair(located: Located, files: ImageFiles, findings: Findings) -> Example:
    row = located.row
    missing = _missing(row, ("sent0", "sent1"))
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
            if isinstance(pair, list) and len(pair) > 1:
                images.append(pair[1])

    # images/<Subset>/Train/..., of the first image that lies in such a folder
    for image in images:
        if image and isinstance(image, str):
            folders = Path(image).parts
            if len(folders) > 2:
                return folders[1]
    return ""


def _parse_judged(located: Located, files: ImageFiles, findings: Findings) -> Example:
    row = located.row
    _require(row, _JUDGED)

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


# what all of them do
def _read(
    source,
    rows: Iterable[Located],
    parse: Callable[[Located, ImageFiles, Findings], Example | list[Example]],
    root,
    subsets: list[str] | None,
    limit: int | None,
    findings: Findings | None,
) -> Dataset:
    """The examples of raw rows, of which there must be one."""
    files = root
    if not isinstance(root, ImageFiles):
        files = ImageFiles(Path(root), must_exist=findings is None or findings.images_must_exist)

    rows = _limited(_of_subsets(source, _with_valid_names(rows, findings), subsets), limit)
    examples = to_dataset(example for _, example in _located_examples(rows, parse, files, findings))
    if len(examples):
        return examples

    # why there is none
    message = f"{source} holds no row that can be used"
    problems = findings.problems if findings else []
    if not problems:
        raise ValueError(f"{message}.")

    raise ValueError("\n".join([f"{message}; of its {len(problems)} bad rows the first are", *_reasons(problems)]))


def _reasons(problems: list[Problem]) -> list[str]:
    """The first reasons why rows are bad, each once, with the first row that it is said of."""
    places = {}
    for problem in problems:
        places.setdefault(problem.reason, []).append(problem.where)

    lines = []
    for reason, rows in list(places.items())[:SHOWN]:
        others = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
        lines.append(f"{rows[0]}{others}: {reason}")
    return lines


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


def _located_examples(
    rows: Iterable[Located],
    parse: Callable[[Located, ImageFiles, Findings], Example | list[Example]],
    files: ImageFiles,
    findings: Findings | None,
) -> Iterator[tuple[str, Example]]:
    """The examples of raw rows, each with the place of its row."""
    notes = findings or Findings()  # a parser notes what it mends, whether anybody reads it or not
    for located in rows:
        try:
            examples = parse(located, files, notes)
        except ValueError as error:
            refuse(located.where, error, findings)
            continue

        for example in examples if isinstance(examples, list) else [examples]:
            yield located.where, example


def _require(row: dict, names: Iterable[str]):
    missing = _missing(row, names)
    if missing:
        raise ValueError(f"lacks {missing}; it has {shown(list(row))}.")


def _missing(row: dict, names: Iterable[str]) -> list[str]:
    return [name for name in names if name not in row]
