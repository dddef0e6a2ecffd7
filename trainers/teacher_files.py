"""Teacher embeddings that were made elsewhere: files of texts and vectors, and finished jobs.

| file | texts | vectors |
|---|---|---|
| `.parquet` | a column `text` | a column `embedding` of lists of equal length |
| `.npz` | an array `texts` of strings `[N]` | an array `embeddings` `[N, D]` |
| `.safetensors` | under `texts` in the metadata: a JSON list | a tensor `embeddings` `[N, D]` |

Each name counts in singular and plural. What `unime encode` writes is such a file.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open

from ..data.files import local_path
from ..jobs.shards import fingerprint, read_job, read_manifest
from .teacher import TeacherTable

SUFFIXES = (".parquet", ".npz", ".safetensors")
TEXTS = ("text", "texts")
EMBEDDINGS = ("embedding", "embeddings")
BLOCK = 4096  # rows that are looked at together
NAMED = 5  # missing texts that an error names


class Block(NamedTuple):
    """Some rows of a file, from number `start` on: `n` texts and their vectors `[n, D]`, in float32."""

    start: int
    texts: list
    vectors: np.ndarray


def read_teacher_embeddings(path, rows: dict[str, int]) -> TeacherTable:
    """Reads the embeddings of texts from a file or from a finished job, matched by the content of the texts.

    Args:
        path (`str` or `Path`): a `.parquet`, `.npz` or `.safetensors` file of texts and vectors, also on the Hub
            (`hf://datasets/<owner>/<name>/<file>`), which may hold more texts than these; or the folder of a finished
            job of [`~unime.trainers.teacher.encode_teacher`] on just these texts.
        rows (`dict[str, int]`): the texts, each with the number of the training row that has it first.

    Returns:
        [`~unime.trainers.teacher.TeacherTable`] of these texts.

    Raises:
        ValueError: the file is damaged or laid out in another way, a vector is not finite or of another width, a text
            has two different vectors, or a text is missing; the message names the file and the rows.

    Example:

    ```python
    teacher = read_teacher_embeddings("teacher.parquet", text_rows(read_text_pairs("pairs.csv")))
    ```
    """
    path = local_path(path)
    if path.is_dir():
        return _read_finished_job(path, list(rows))

    readers = {".parquet": _parquet_blocks, ".npz": _npz_blocks, ".safetensors": _safetensors_blocks}
    if path.suffix not in readers:
        raise ValueError(f"{path}: teacher embeddings are read from {', '.join(SUFFIXES)} files, and from folders.")
    return _gather(path, readers[path.suffix](path), rows)


def _read_finished_job(folder: Path, texts: list[str]) -> TeacherTable:
    """The table of a job that has embedded these texts, in this order."""
    embeddings = read_job(folder)["embeddings"]
    manifest = read_manifest(folder)
    if manifest["fingerprint"] != fingerprint(texts):
        raise ValueError(
            f"{folder} holds the embeddings of other texts ({manifest['rows']}, now {len(texts)}); name the `teacher` "
            "to embed these, or a file of texts and vectors, which may hold more than are needed."
        )
    return TeacherTable(texts, embeddings)


def _gather(path: Path, blocks: Iterable[Block], rows: dict[str, int]) -> TeacherTable:
    """The table of some texts from the blocks of a file, all of which are checked."""
    places = {text: place for place, text in enumerate(rows)}
    table = None  # [N, D], when the width is known
    first_rows = {}  # of each text of the file: the row that has it first, and its vector's bytes in short

    for block in blocks:
        _check(path, block, None if table is None else table.shape[1])
        if table is None:
            table = np.empty((len(places), block.vectors.shape[1]), np.float32)

        for number, text in enumerate(block.texts):
            row = block.start + number
            vector = block.vectors[number]

            # a text may come twice, but it has one embedding
            identity = hash(vector.tobytes())
            first_row, first_identity = first_rows.setdefault(text, (row, identity))
            if identity != first_identity:
                raise ValueError(
                    f"{path}: rows {first_row} and {row} have the same text {_short(text)} and different vectors; "
                    "keep one of them."
                )

            # the file may hold more texts than are needed
            if text in places:
                table[places[text]] = vector

    _check_complete(path, first_rows, rows)
    return TeacherTable(list(places), table)


def _check(path: Path, block: Block, width: int | None):
    """Raises `ValueError` for a text or a vector that cannot be used."""
    if len(block.texts) != len(block.vectors):
        raise ValueError(
            f"{path} has {len(block.texts)} texts and {len(block.vectors)} vectors; there must be as many."
        )
    if width is not None and block.vectors.shape[1] != width:
        raise ValueError(
            f"{path}, row {block.start}: a vector of width {block.vectors.shape[1]}, where those before have {width}."
        )
    for number, text in enumerate(block.texts):
        if not isinstance(text, str):
            raise ValueError(f"{path}, row {block.start + number}: the text is {text!r}, not a string.")

    # a vector of zeros has no direction, so no similarity either; in float64 no sum of squares overflows
    lengths = np.linalg.norm(block.vectors.astype(np.float64), axis=1)
    unusable = ~np.isfinite(lengths) | (lengths == 0)
    if unusable.any():
        row = int(unusable.argmax())
        reason = "is all zeros" if lengths[row] == 0 else "holds NaN or infinity"
        raise ValueError(f"{path}, row {block.start + row}: the vector of {_short(block.texts[row])} {reason}.")


def _check_complete(path: Path, present: dict, rows: dict[str, int]):
    """Raises `ValueError` if a text is missing."""
    missing = [text for text in rows if text not in present]
    if not missing:
        return

    # a few of them show what the others are like
    examples = [f"{_short(text)} (training row {rows[text]})" for text in missing[:NAMED]]
    if len(missing) > NAMED:
        examples.append("...")
    raise ValueError(
        f"{path} lacks {len(missing)} of {len(rows)} texts: {', '.join(examples)}. Texts are compared letter for "
        "letter; embed these as well, and write them to the file."
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


# the three kinds of files
def _parquet_blocks(path: Path) -> Iterator[Block]:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            texts_column = _present(path, names, TEXTS, "column")
            vectors_column = _present(path, names, EMBEDDINGS, "column")

            start = 0
            for batch in file.iter_batches(BLOCK, columns=[texts_column, vectors_column]):
                texts = batch.column(texts_column).to_pylist()
                yield Block(start, texts, _list_vectors(path, start, batch.column(vectors_column)))
                start += len(texts)
    except pa.ArrowException as error:
        raise ValueError(f"{path} is damaged or not a Parquet file: {error}") from error


def _list_vectors(path: Path, start: int, column: pa.Array) -> np.ndarray:
    """The vectors `[n, D]` of a column of lists, all of one length; `start` is the number of the first row."""
    if not pa.types.is_list(column.type) and not pa.types.is_fixed_size_list(column.type):
        raise ValueError(f"{path}: the vectors must be lists of numbers, not {column.type}.")

    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)  # [n]
    lengths = np.where(column.is_null().to_numpy(zero_copy_only=False), 0, lengths)

    # empty vectors are refused too, even if all are empty
    width = lengths[0]
    different = lengths != max(width, 1)
    if different.any():
        row = int(different.argmax())
        raise ValueError(
            f"{path}, row {start + row}: the vector has {lengths[row]} numbers; all must have the same, row {start} "
            f"has {width}."
        )

    # all lists have one length: the place of a number tells its row
    numbers = column.flatten()  # [n * D]
    if numbers.null_count:
        row = int(numbers.is_null().to_numpy(zero_copy_only=False).argmax()) // width
        raise ValueError(f"{path}, row {start + row}: a number of the vector is missing.")
    return _as_vectors(path, numbers.to_numpy(zero_copy_only=False).reshape(len(column), width))


def _npz_blocks(path: Path) -> Iterator[Block]:
    try:
        with np.load(path, allow_pickle=False) as file:  # a pickle could run any code
            arrays = dict(file)
    except (BadZipFile, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as NPZ (write texts as `np.array(texts, str)`): {error}") from error

    texts = arrays[_present(path, arrays, TEXTS, "array")]
    vectors = arrays[_present(path, arrays, EMBEDDINGS, "array")]
    if texts.ndim != 1 or texts.dtype.kind != "U":
        raise ValueError(f"{path}: texts must be an array [N] of strings, not {texts.dtype} {list(texts.shape)}.")
    yield from _array_blocks(path, texts.tolist(), vectors)


def _safetensors_blocks(path: Path) -> Iterator[Block]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            texts = metadata[_present(path, metadata, TEXTS, "entry in its metadata")]
            vectors = file.get_tensor(_present(path, file.keys(), EMBEDDINGS, "tensor"))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error

    # metadata can hold strings only
    try:
        texts = json.loads(texts)
    except ValueError as error:
        raise ValueError(f"{path}: the texts in its metadata are not a JSON list: {error}") from error
    if not isinstance(texts, list):
        raise ValueError(f"{path}: the texts in its metadata are not a JSON list.")
    yield from _array_blocks(path, texts, vectors.to(torch.float32).numpy())


def _array_blocks(path: Path, texts: list, vectors: np.ndarray) -> Iterator[Block]:
    """Blocks of texts and vectors that are in memory."""
    vectors = _as_vectors(path, vectors)
    if len(texts) != len(vectors):
        raise ValueError(f"{path} has {len(texts)} texts and {len(vectors)} vectors; there must be as many.")
    for start in range(0, len(texts), BLOCK):
        yield Block(start, texts[start : start + BLOCK], vectors[start : start + BLOCK])


def _as_vectors(path: Path, vectors) -> np.ndarray:
    """`[n, D]` in float32."""
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
        raise ValueError(f"{path}: vectors must be numbers [N, D], not {vectors.dtype} {list(vectors.shape)}.")
    return vectors.astype(np.float32)


def _present(path: Path, names: Iterable[str], spellings: tuple[str, ...], kind: str) -> str:
    """The spelling under which something is present."""
    for name in spellings:
        if name in names:
            return name
    raise ValueError(f"{path} has no {kind} {spellings[0]!r} (or {spellings[1]!r}); it has {sorted(names)}.")
