"""Files of rows, local or on the Hub, read one row after the other, each with the place where it stands."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from .csv_rows import csv_rows
from .findings import Findings, Located, as_object, refuse
from .json_lists import list_elements
from .texts import open_text, parse_json, require_file

HUB = "hf://datasets/"
_BAD_VALUES = (ValueError, OverflowError, pa.ArrowException)  # for example of bytes that are no text


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


def parquet_rows(
    path: Path, names: dict[str, tuple[str, ...]] | None = None, findings: Findings | None = None
) -> Iterator[tuple[int, dict]]:
    """Numbered rows of a Parquet file, of which a few thousand are in memory at a time.

    Args:
        path (`Path`): the file.
        names (`dict[str, tuple[str, ...]]`, *optional*): the columns to read, each with other spellings of it; all
            columns by default.
        findings ([`~unime.data.findings.Findings`], *optional*): takes bad rows, which end the reading otherwise.

    Yields:
        `(number, row)`: the number from 0, and a dict with the keys of `names`.

    Raises:
        ValueError: the file is no Parquet file or is damaged, a column is missing under all its spellings, or, without
            `findings`, a row holds what is not a value of its column; the message names the file.
    """
    require_file(path)
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            columns = _columns(path, file.schema_arrow.names, names)
            size = 64 if _holds_files(file.schema_arrow) else 4096
            for batch in file.iter_batches(columns=list(columns.values()), batch_size=size):
                for row in _batch_rows(path, batch, number, findings):
                    # a bad row has a number as well
                    if row is not None:
                        yield number, {key: row[column] for key, column in columns.items()}
                    number += 1
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read from row {number} on: {error}") from error


def _holds_files(schema: pa.Schema) -> bool:
    """Whether there are bytes in a table, such as those of pictures, of which few fit into memory."""
    return "binary" in str(schema.types)


def parquet_columns(path: Path) -> list[str]:
    """The names of a Parquet file's columns.

    Raises:
        ValueError: the file is no Parquet file; the message names it.
    """
    require_file(path)
    try:
        return pq.read_schema(path).names
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a Parquet file: {error}") from error


def _columns(path: Path, present: list[str], names: dict[str, tuple[str, ...]] | None) -> dict[str, str]:
    """The column of the file for each of `names`."""
    repeated = sorted({name for name in present if present.count(name) > 1})
    if repeated:
        raise ValueError(f"{path} has the columns {repeated} more than once.")

    if names is None:
        names = dict.fromkeys(present, ())

    columns = find_columns(present, names)
    missing = [key for key, column in columns.items() if column is None]
    if missing:
        raise ValueError(f"{path} lacks the columns {missing}; it has {present}.")
    return columns


def _batch_rows(path: Path, batch: pa.RecordBatch, first: int, findings: Findings | None) -> list[dict | None]:
    """The rows of a batch, the first of which has the number `first`; `None` in the place of a bad one."""
    try:
        return batch.to_pylist()
    except _BAD_VALUES:
        rows = []  # one of them is bad: each is read by itself

    for index in range(batch.num_rows):
        try:
            rows += batch.slice(index, 1).to_pylist()
        except _BAD_VALUES as error:
            refuse(f"{path}, row {first + index}", error, findings)
            rows.append(None)
    return rows


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
    """Rows of a CSV, TSV, JSON, JSON lines or Parquet file; their data set is the file's name."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        for number, row in parquet_rows(path, findings=findings):
            yield Located(f"{path}, row {number}", path.stem, row)
    elif suffix == ".jsonl":
        yield from _json_lines(path, findings)
    elif suffix in (".csv", ".tsv"):
        yield from csv_rows(path, findings)
    elif suffix == ".json" and _begins_with_an_object(path):
        yield from _json_lines(path, findings)  # many write them under this name
    elif suffix == ".json":
        yield from list_rows(path, findings, path.stem)
    else:
        raise ValueError(
            f"{path}: rows are read from .csv, .tsv, .jsonl, .json, .parquet, .arrow and .tar files, from folders, "
            "and from data sets of the Hub (owner/name)."
        )


def _begins_with_an_object(path: Path) -> bool:
    """Whether the first line of a file is a JSON object."""
    with open_text(path) as file:
        for line in file:
            if not line.strip():
                continue
            if not line.lstrip().startswith("{"):
                return False
            try:
                return isinstance(parse_json(line), dict)
            except ValueError:
                return False
    return False


def _json_lines(path: Path, findings: Findings | None) -> Iterator[Located]:
    with open_text(path) as file:
        for number, line in enumerate(file):
            # an empty line is not a row, but it is counted as one, as lines are
            if not line.strip():
                continue

            where = f"{path}, row {number} (line {number + 1})"
            yield from _json_row(where, line, path.stem, findings)


def list_rows(path: Path, findings: Findings | None, dataset: str = "") -> Iterator[Located]:
    """Rows of a JSON list."""
    for where, text in list_elements(path):
        yield from _json_row(where, text, dataset, findings)


def _json_row(where: str, text: str, dataset: str, findings: Findings | None) -> Iterator[Located]:
    """The row that a text is, or none where it is bad."""
    try:
        row = as_object(parse_json(text))
    except ValueError as error:
        refuse(where, error, findings)
    else:
        yield Located(where, dataset, row)
