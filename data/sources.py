"""Sources of rows: files, folders, tars and data sets of the Hub, read one raw row after the other.

A raw row is a dict of what stands in its columns; pictures are paths, or bytes as `datasets` stores them. What the
columns mean is a matter of layouts.
"""

import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import pyarrow as pa
from datasets import DatasetDict, get_dataset_config_names, get_dataset_split_names, load_dataset, load_from_disk

from ..images_unime import IMAGES
from .beir import corpus_rows, hub_corpus_rows
from .choices import KINDS
from .files import HUB, local_path
from .findings import Findings, Located, as_object, refuse
from .schema import VIDEOS
from .tables import TABLES, dataset_rows, file_rows
from .texts import parse_json, printable, read_text, require_text

_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+){0,2}")  # of a data set of the Hub
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # of a folder of pictures
_SPLITS = ("train", "training", "all")  # of several, the one that is read where none is named


@dataclass
class Source:
    """Where rows come from.

    Args:
        name (`str`): how messages call it.
        root (`Path`, *optional*): where its image paths start by default.
        rows (`Callable`): gives the raw rows, as [`~unime.data.findings.Located`], from the first on.
        kind (`str`): what it was taken for.
    """

    name: str
    root: Path | None
    rows: Callable[[], Iterator[Located]]
    kind: str


def open_source(path, findings: Findings | None = None, streaming: bool = False) -> Source:
    """Finds out what a source is. Rows are read where they are asked for.

    Args:
        path (`str` or `Path`): a file or folder, `hf://datasets/<owner>/<name>[/<file>]`, or
            `<owner>/<name>[:config][:split]`; the split of a saved data set is named in the same way.
        findings ([`~unime.data.findings.Findings`], *optional*): takes bad rows, which end the reading otherwise.
        streaming (`bool`, defaults to `False`): read a data set of the Hub as it is downloaded.

    Raises:
        ValueError: there is no such file and no such data set, or a folder holds nothing that is known.

    Example:

    ```python
    for located in open_source("shards.tar").rows():
        print(located.where, located.row.keys())
    ```
    """
    text = str(path)
    if text.startswith(HUB) or Path(text).exists():
        path = local_path(path)
        return _folder(path, findings) if path.is_dir() else _file(path, findings)

    # a saved data set, with its split
    folder, _, split = text.rpartition(":")
    if folder and (Path(folder) / "dataset_dict.json").exists():
        return _saved(Path(folder), split)

    if _NAME.fullmatch(text) and PurePosixPath(text).suffix not in (*TABLES, ".tar", ".txt"):
        return _of_hub(text, streaming)
    local_path(path)  # says that there is none
    raise ValueError(f"{path} is not a source of rows.")


# files
def _file(path: Path, findings: Findings | None) -> Source:
    """A file of rows."""
    if path.suffix.lower() == ".tar":
        return Source(str(path), path.parent, lambda: _tar_rows([path], findings), "WebDataset tar")
    return Source(str(path), path.parent, lambda: file_rows(path, findings), path.suffix.lower().lstrip("."))


# folders
def _folder(path: Path, findings: Findings | None) -> Source:
    """What a folder holds."""
    if (path / "dataset_dict.json").exists():
        return _saved(path)
    if (path / "dataset_info.json").exists() and any(path.glob("*.arrow")):
        return _saved(path)
    if _has_table(path, "corpus") and _has_table(path, "queries"):
        return Source(str(path), path, lambda: corpus_rows(path, findings), "corpus, queries and qrels (MTEB, BEIR)")
    if any((path / name).exists() for name in _METADATA):
        return Source(str(path), path, lambda: _metadata_rows(path, findings), "folder of pictures with metadata")

    tars = sorted(path.glob("*.tar"))
    if tars:
        return Source(str(path), path, lambda: _tar_rows(tars, findings), "folder of WebDataset tars")

    # the data files of a repository lie in its folder, or in `data`
    for pattern in ("*.parquet", "data/*.parquet", "*.arrow", "*.jsonl", "data/*.jsonl"):
        files = sorted(path.glob(pattern))
        if files:
            rows = partial(_rows_of_files, files, path.name, findings)
            return Source(str(path), path, rows, f"folder of {pattern}")

    if any(map(is_picture, path.rglob("*"))):
        return Source(str(path), path, lambda: _picture_rows(path, findings), "folder of pictures")
    raise ValueError(f"{path} holds no rows that are known: it should be {KINDS}.")


def _has_table(path: Path, name: str) -> bool:
    """Whether a folder has a table of that name, as a file or as a folder of files."""
    return any((path / f"{name}{suffix}").exists() for suffix in TABLES) or any((path / name).glob("*.parquet"))


def _rows_of_files(files: list[Path], dataset: str, findings: Findings | None) -> Iterator[Located]:
    """Rows of several files as those of one data set."""
    for file in files:
        for located in file_rows(file, findings):
            yield located._replace(dataset=dataset)


def is_picture(path: Path) -> bool:
    """Whether a path is by its name an image or a video that is not hidden."""
    return path.suffix.lower() in (*IMAGES, *VIDEOS) and not path.name.startswith(".") and not path.is_dir()


def _picture_rows(folder: Path, findings: Findings | None) -> Iterator[Located]:
    """Pictures with the text of the file beside them, `x.jpg` with `x.txt`; or with the name of their folder."""
    pictures = [path for path in sorted(folder.rglob("*")) if is_picture(path)]
    has_captions = any(path.with_suffix(".txt").exists() for path in pictures)

    for path in pictures:
        where = printable(str(path))
        try:
            row = {"image": require_text(str(path.relative_to(folder)))}
            if has_captions:
                row["caption"] = read_text(path.with_suffix(".txt")).strip()
            elif path.parent != folder:
                row["label"] = path.parent.name
            else:
                raise ValueError(
                    "has no caption: there is neither a .txt of its name beside it, nor a metadata.csv, nor a folder "
                    "whose name is its label."
                )
        except ValueError as error:
            refuse(where, error, findings)
        else:
            yield Located(where, folder.name, row)


def _metadata_rows(folder: Path, findings: Findings | None) -> Iterator[Located]:
    """Rows of `metadata.csv` or `.jsonl`, whose `file_name` is that of a picture, as in `datasets`' imagefolder."""
    for name in _METADATA:
        if not (folder / name).exists():
            continue
        for located in file_rows(folder / name, findings):
            row = {}
            for column, value in located.row.items():
                # `second_file_name` is a column `second`
                row[re.sub(r"^file_names?$", "image", re.sub(r"_file_names?$", "", column))] = value
            yield Located(located.where, folder.name, row)


# WebDataset
def _tar_rows(paths: list[Path], findings: Findings | None) -> Iterator[Located]:
    """Samples of tars: members whose names are equal up to their first dot, one after the other."""
    for path in paths:
        try:
            with tarfile.open(path) as archive:
                yield from _samples(path, archive, findings)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ValueError(f"{path} is not a tar that can be read: {error}") from error


def _samples(path: Path, archive: tarfile.TarFile, findings: Findings | None) -> Iterator[Located]:
    """The samples of one tar."""
    key = None
    parts: dict[str, bytes] = {}
    for member in archive:
        if not member.isfile():
            continue
        folder, _, file = member.name.rpartition("/")
        stem, _, ending = file.partition(".")
        if not stem:  # a hidden file, of another program
            continue

        name = f"{folder}/{stem}".lstrip("/")
        if name != key:
            yield from _sample(path, key, parts, findings)
            key = name
            parts = {}
        parts[ending.lower()] = archive.extractfile(member).read()
    yield from _sample(path, key, parts, findings)


def _sample(path: Path, key: str | None, parts: dict[str, bytes], findings: Findings | None) -> Iterator[Located]:
    """The row of one sample, or none where it is bad."""
    if key is None:
        return
    where = printable(f"{path}, sample {key}")
    try:
        row = {}
        for ending, content in parts.items():
            row |= _sample_columns(ending, content)
    except ValueError as error:
        refuse(where, error, findings)
    else:
        yield Located(where, path.stem, row)


def _sample_columns(ending: str, content: bytes) -> dict:
    """What a member of a sample says: `query.jpg` is a column `query`, `jpg` alone `image`, and `txt` alone `text`."""
    column, _, kind = ending.rpartition(".")
    if f".{kind}" in (*IMAGES, *VIDEOS, ".pdf"):
        return {column or "image": {"bytes": content, "path": f"x.{kind}"}}

    text = content.decode("utf-8-sig", "surrogateescape")
    if kind == "json":
        value = parse_json(require_text(text))
        return {column: value} if column else as_object(value)
    if kind in ("txt", "text", "caption"):
        return {column or "text": require_text(text).strip()}
    if kind in ("cls", "label"):
        return {column or "label": require_text(text).strip()}
    return {}  # an index, a sound or what else somebody has put there


# datasets
def _saved(folder: Path, split: str = "") -> Source:
    """A data set that `datasets.save_to_disk` has written."""
    try:
        dataset = load_from_disk(str(folder))
    except (OSError, ValueError, pa.ArrowException, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} is not a data set that can be read: {error}") from error

    name = str(folder)
    if isinstance(dataset, DatasetDict):
        split = split or _only_split(name, list(dataset))
        if split not in dataset:
            raise ValueError(f"{name} has no split {split!r}; it has {', '.join(dataset)}.")
        dataset = dataset[split]
        name = f"{name}:{split}"
    return Source(name, folder, lambda: dataset_rows(dataset, name, folder.name), "data set of datasets.save_to_disk")


def _only_split(name: str, splits: list[str]) -> str:
    """The split that is read where none is named."""
    if len(splits) == 1:
        return splits[0]
    for split in _SPLITS:
        if split in splits:
            return split
    raise ValueError(f"{name} has the splits {', '.join(splits)}; name one of them: {name}:{splits[0]}.")


def _of_hub(text: str, streaming: bool) -> Source:
    """A data set of the Hub."""
    name, *parts = text.split(":")
    try:
        configs = get_dataset_config_names(name)
        config, split = _config_and_split(name, configs, parts)
        if config is None:
            kind = "corpus, queries and qrels of the Hub (MTEB)"
            return Source(text, None, lambda: hub_corpus_rows(name, split, configs), kind)

        if not split:
            full_name = name if len(configs) == 1 else f"{name}:{config}"
            split = _only_split(full_name, get_dataset_split_names(name, config))
        dataset = load_dataset(name, config, split=split, streaming=streaming)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, ValueError) and str(error).startswith(name):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:2]).rstrip(".")
        raise ValueError(
            f"{text} does not exist here, and as a data set of the Hub it cannot be read: {reason}."
        ) from error

    where = f"{name}:{config}:{split}"
    return Source(where, None, lambda: dataset_rows(dataset, where, name.split("/")[1]), "data set of the Hub")


def _config_and_split(name: str, configs: list[str], parts: list[str]) -> tuple[str | None, str]:
    """Which configuration and split are meant; of MTEB's layout, where the configuration is not named, `None`."""
    if len(parts) == 2:
        config, split = parts
        if config not in configs:
            raise ValueError(f"{name} has no configuration {config!r}; it has {', '.join(configs)}.")
        return config, split

    # one part is either
    if parts and parts[0] in configs:
        return parts[0], ""
    split = parts[0] if parts else ""
    if {"corpus", "queries"} <= set(configs):
        return None, split
    if len(configs) == 1:
        return configs[0], split
    if "default" in configs:
        return "default", split
    raise ValueError(f"{name} has the configurations {', '.join(configs)}; name one of them: {name}:{configs[0]}.")


__all__ = ["Source", "is_picture", "open_source"]
