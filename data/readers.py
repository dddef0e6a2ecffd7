"""Readers: rows of any source and layout in, `Example` rows out; nothing downstream knows a source format.

A reader stops at the first bad row, or, given [`Findings`], leaves bad rows out and keeps them there with the reason.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from datasets import Dataset, IterableDataset

from .choices import SPLITS
from .files import HUB, is_folder, local_path, parquet_files, parquet_rows
from .findings import Findings, Located, Problem
from .images import ImageFiles
from .layouts import read_mapping
from .paper_layouts import (
    CLUSTERS,
    JUDGED_FILES,
    is_judged,
    read_clusters,
    read_judged,
    read_mmeb_train,
    read_text_pairs,
    with_judged_dataset,
)
from .reading import located_examples, patterns_of, read_examples, with_valid_names
from .row_items import check_scores, item_of
from .row_parser import RowParser
from .schema import FEATURES, Example, as_row, to_dataset
from .sources import Source, open_source
from .tables import dataset_rows

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
    return read_examples(source.name, rows, parse, files, subsets, limit, findings)


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
    yield from located_examples(with_valid_names(rows, findings), parse, files, findings)


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
    return located_examples(rows, RowParser(), files, None)


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
    files = patterns_of(subsets, f"/{split}-*.parquet", CLUSTERS)
    folder = local_path(path, files)

    if any(folder.glob(f"*{CLUSTERS}")):
        return lambda image_root, limit, findings: read_clusters(path, image_root, subsets, limit, findings)
    if any(folder.glob(JUDGED_FILES)):
        return lambda image_root, limit, findings: read_judged(path, image_root, subsets, limit, findings)

    # with the other split, or none, the reader says what is missing
    if any(any(folder.glob(f"*/{name}-*.parquet")) for name in SPLITS):
        return lambda image_root, limit, findings: read_mmeb_train(path, subsets, split, image_root, limit, findings)
    return None


def _with_dataset(located: Located) -> Located:
    """A row with the data set that it names itself, if any."""
    if is_judged(located.row):
        return with_judged_dataset(located)
    return located._replace(dataset=located.row.get("dataset") or located.dataset)
