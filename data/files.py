"""Files of rows, local or on the Hub, read one row after the other, each with the place where it stands.

A bad row ends the reading with an error that names file and row. Given [`Findings`], it is left out instead and kept
there with the reason.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

from .json_lists import json_list

HUB = "hf://datasets/"


class Problem(NamedTuple):
    """A row that cannot be used: where it stands, and why."""

    where: str
    reason: str


@dataclass
class Findings:
    """What a reader meets on its way, instead of an error at the first bad row.

    Args:
        images_must_exist (`bool`, defaults to `True`): whether a row with a missing image is bad; if not, its image
            stays a path that leads nowhere.
        problems (`list[Problem]`): bad rows, which are left out.
        notes (`Counter`): what was mended, such as image placeholders in texts without an image.

    Example:

    ```python
    findings = Findings()
    rows = read_rows("pairs.jsonl", findings=findings)
    print(len(rows), "good rows; the first bad one:", findings.problems[:1])
    ```
    """

    images_must_exist: bool = True
    problems: list[Problem] = field(default_factory=list)
    notes: Counter = field(default_factory=Counter)


class Located(NamedTuple):
    """A raw row, its data set, and where it stands."""

    where: str
    dataset: str
    row: dict


def refuse(where: str, error: Exception, findings: Findings | None):
    """A bad row is an error, or, given findings, one of them."""
    if findings is None:
        raise ValueError(f"{where}: {error}") from error
    findings.problems.append(Problem(where, str(error)))


def as_object(row) -> dict:
    """The row itself, which must be a JSON object."""
    if not isinstance(row, dict):
        raise ValueError(f"is not an object but {str(row)[:60]!r}; a row is an object of keys and values.")
    return row


# where files are
def local_path(path, patterns: list[str] | None = None) -> Path:
    """The path on this machine; what is on the Hub is downloaded.

    Args:
        path (`str` or `Path`): a local path, or `hf://datasets/<owner>/<name>[/<file>]`.
        patterns (`list[str]`, *optional*): which files of a data set to download, such as `"*.parquet"`; all by
            default.

    Returns:
        `Path`: the local path as it is, the downloaded file, or the folder of the downloaded data set.

    Raises:
        ValueError: a local path does not exist.
    """
    if not str(path).startswith(HUB):
        if not Path(path).exists():
            raise ValueError(f"{path} does not exist; a data set on the Hub is named {HUB}<owner>/<name>[/<file>].")
        return Path(path)

    # a data set is <owner>/<name>; what follows is a file in it
    from huggingface_hub import hf_hub_download, snapshot_download

    owner, name, *file = str(path).removeprefix(HUB).split("/", 2)
    if file:
        return Path(hf_hub_download(f"{owner}/{name}", file[0], repo_type="dataset"))
    return Path(snapshot_download(f"{owner}/{name}", repo_type="dataset", allow_patterns=patterns))


def is_folder(path) -> bool:
    """Whether a path is a local folder or a whole data set on the Hub, rather than a file."""
    if str(path).startswith(HUB):
        return str(path).removeprefix(HUB).count("/") == 1
    return Path(path).is_dir()


# rows of files
def parquet_files(folder: Path, split: str) -> list[Path]:
    """The files `<split>-*.parquet` of a folder, in order; an error if there is none."""
    paths = sorted(folder.glob(f"{split}-*.parquet"))
    if not paths:
        raise ValueError(f"{folder} holds no {split}-*.parquet; is it the right folder and split?")
    return paths


def parquet_rows(path: Path, names: dict[str, tuple[str, ...]] | None = None) -> Iterator[tuple[int, dict]]:
    """Numbered rows of a Parquet file, of which a few thousand are in memory at a time.

    Args:
        path (`Path`): the file.
        names (`dict[str, tuple[str, ...]]`, *optional*): the columns to read, each with other spellings of it; all
            columns by default.

    Yields:
        `(number, row)`: the number from 0, and a dict with the keys of `names`.

    Raises:
        ValueError: a column is missing under all its spellings.
    """
    with pq.ParquetFile(path) as file:
        # column names of the file, under which `names` are looked for
        present = file.schema_arrow.names
        if names is None:
            names = dict.fromkeys(present, ())

        columns = find_columns(present, names)
        missing = [key for key, column in columns.items() if column is None]
        if missing:
            raise ValueError(f"{path} lacks the columns {missing}; it has {present}.")

        number = 0
        for batch in file.iter_batches(columns=list(columns.values()), batch_size=4096):
            for row in batch.to_pylist():
                yield number, {key: row[column] for key, column in columns.items()}
                number += 1


def find_columns(present: list[str], names: dict[str, tuple[str, ...]]) -> dict[str, str | None]:
    """Under which spelling each column is present, or `None`; the first of several counts."""
    columns = {}
    for name, others in names.items():
        columns[name] = None

        for spelling in (name, *others):
            if spelling in present:
                columns[name] = spelling
                break
    return columns


def table_rows(path: Path, findings: Findings | None) -> Iterator[Located]:
    """Rows of a CSV, JSON lines or Parquet file; their data set is the file's name."""
    if path.suffix == ".parquet":
        for number, row in parquet_rows(path):
            yield Located(f"{path}, row {number}", path.stem, row)
    elif path.suffix == ".jsonl":
        yield from _json_lines(path, findings)
    elif path.suffix == ".csv":
        yield from _csv_rows(path)
    else:
        raise ValueError(f"{path}: rows are read from .csv, .jsonl, .parquet and .json files, and from folders.")


def _json_lines(path: Path, findings: Findings | None) -> Iterator[Located]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file):
            # an empty line is not a row, but it is counted as one, as lines are
            if not line.strip():
                continue
            where = f"{path}, row {number} (line {number + 1})"
            try:
                row = as_object(json.loads(line))
            except ValueError as error:
                refuse(where, error, findings)
            else:
                yield Located(where, path.stem, row)


def _csv_rows(path: Path) -> Iterator[Located]:
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)

        line = 2  # the first is the header, and a row with line breaks in quotes takes several
        for number, row in enumerate(reader):
            # a column without a name is an index, and cells beyond the header are under None
            cells = {name: value for name, value in row.items() if name}
            yield Located(f"{path}, row {number} (line {line})", path.stem, cells)
            line = reader.line_num + 1


def list_rows(path: Path, dataset: str = "") -> Iterator[Located]:
    """Rows of a JSON list."""
    for where, row in json_list(path):
        yield Located(where, dataset, row)
