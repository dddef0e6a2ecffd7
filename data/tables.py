"""Tables: files and data sets whose rows have columns, read one row after the other, with nothing decoded.

Pictures and videos are as `datasets` stores them, `{"bytes", "path"}`, and labels have their names.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, IterableDataset

from .files import parquet_rows, table_rows
from .findings import Findings, Located
from .texts import require_file

TABLES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather")
_BATCH = 64  # rows with pictures in them that are in memory at a time


def file_rows(path: Path, findings: Findings | None) -> Iterator[Located]:
    """Rows of a table of any kind, with the names of labels where the file has them.

    Args:
        path (`Path`): a file with one of the endings of `TABLES`.
        findings ([`~unime.data.findings.Findings`], *optional*): takes bad rows.
    """
    require_file(path)
    suffix = path.suffix.lower()
    if suffix in (".arrow", ".feather"):
        yield from _arrow_rows(path)
    elif suffix == ".parquet":
        names = _label_names_of_parquet(path)
        for number, row in parquet_rows(path, findings=findings):
            yield Located(f"{path}, row {number}", path.stem, _with_labels(row, names))
    else:
        yield from table_rows(path, findings)


def _arrow_rows(path: Path) -> Iterator[Located]:
    """Rows of an Arrow file, a stream or one with a footer."""
    try:
        with pa.memory_map(str(path)) as file:
            batches, schema = _arrow_batches(file)
            names = _label_names(_features_of(schema))
            number = 0
            for batch in batches:
                for start in range(0, batch.num_rows, _BATCH):
                    for row in batch.slice(start, _BATCH).to_pylist():
                        yield Located(f"{path}, row {number}", path.stem, _with_labels(row, names))
                        number += 1
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not an Arrow file that can be read: {error}") from error


def _arrow_batches(file) -> tuple[Iterable[pa.RecordBatch], pa.Schema]:
    try:
        reader = pa.ipc.open_stream(file)
    except pa.ArrowInvalid:
        reader = pa.ipc.open_file(file)
        return (reader.get_batch(number) for number in range(reader.num_record_batches)), reader.schema
    return reader, reader.schema


def _label_names_of_parquet(path: Path) -> dict[str, list[str]]:
    try:
        return _label_names(_features_of(pq.read_schema(path)))
    except (pa.ArrowException, OSError):
        return {}  # whoever reads the rows says what is wrong with the file


def _features_of(schema: pa.Schema) -> Features:
    """What `datasets` has written about the columns of a file, if it was `datasets`."""
    if b"huggingface" not in (schema.metadata or {}):
        return Features()
    try:
        return Features.from_arrow_schema(schema)
    except (ValueError, TypeError, KeyError):
        return Features()  # of a later version: labels stay numbers, which is said where one is read


def _label_names(features: Features | None) -> dict[str, list[str]]:
    """The names of labels by their columns."""
    return {column: feature.names for column, feature in (features or {}).items() if isinstance(feature, ClassLabel)}


def _with_labels(row: dict, names: dict[str, list[str]]) -> dict:
    """A row with the names of its labels in the place of their numbers; -1 stands for none."""
    for column, labels in names.items():
        number = row[column]
        if isinstance(number, int):
            row[column] = labels[number] if 0 <= number < len(labels) else None
    return row


def has_files(features: Features) -> bool:
    """Whether columns hold pictures or videos themselves, which `datasets` would decode."""
    return any(name in str(features) for name in ("Image(", "Video("))


def dataset_rows(dataset: Dataset | IterableDataset, where: str, name: str) -> Iterator[Located]:
    """Rows of a data set, with pictures and videos as they are stored: nothing is decoded.

    Args:
        dataset (`Dataset` or `IterableDataset`): of any columns.
        where (`str`): how messages call it.
        name (`str`): of the data set, for rows that do not say it.
    """
    labels = _label_names(dataset.features)
    number = 0
    for table in dataset.with_format("arrow").iter(batch_size=_BATCH):
        for row in table.to_pylist():
            yield Located(f"{where}, row {number}", name, _with_labels(row, labels))
            number += 1
