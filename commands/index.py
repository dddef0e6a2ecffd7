"""The file of embeddings that `unime encode` writes and `unime search` reads: Parquet or NPZ."""

import json
import os
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..data.schema import Item
from ..jobs.shards import write_whole

SUFFIXES = (".parquet", ".npz")
_COLUMNS = ("id", "text", "image", "stamp")  # beside the embeddings
_KEY = b"unime"  # under which a Parquet file says how its embeddings were made


class Index(NamedTuple):
    """Items with their embeddings.

    Args:
        names (`list[str]`): ids.
        items (`list[Item]`): what was embedded.
        stamps (`list[str]`): size and time of change of each item's file, by which a changed file is noticed.
        embeddings (`np.ndarray`): `[N, D]`, float32.
        about (`dict`): how they were made: `source`, `role` and the embedder's `settings`.
    """

    names: list
    items: list
    stamps: list
    embeddings: np.ndarray
    about: dict


def stamp(item: Item) -> str:
    """Size and time of change of an item's file; empty where it has none or the file is not there."""
    if not item.image:
        return ""

    # a missing file is reported when it is embedded, with its reason
    try:
        status = os.stat(item.image)
    except FileNotFoundError:
        return ""
    return f"{status.st_size}:{status.st_mtime_ns}"


def write_index(path: Path, index: Index):
    """Writes the file whole or not at all.

    Args:
        path (`Path`): a `.parquet` file with the columns `id`, `text`, `image`, `stamp` and `embedding`, or an `.npz`
            file with arrays of these names.
        index ([`Index`]): what to write.
    """
    columns = {
        "id": index.names,
        "text": [item.text for item in index.items],
        "image": [item.image for item in index.items],
        "stamp": index.stamps,
    }
    about = json.dumps(index.about)

    def write_parquet(draft):
        # a list of fixed size, which vector databases take as it is
        width = index.embeddings.shape[1]
        flat = pa.array(index.embeddings.reshape(-1))  # [N * D]
        vectors = pa.FixedSizeListArray.from_arrays(flat, width)
        pq.write_table(pa.table({**columns, "embedding": vectors}, metadata={_KEY: about}), draft)

    def write_npz(draft):
        arrays = {}
        for name, column in columns.items():
            arrays[name] = np.array(column, str)  # not objects, which would be pickled
        with open(draft, "wb") as file:
            np.savez(file, **arrays, embedding=index.embeddings, about=np.array(about))

    write_whole(path, write_parquet if path.suffix == ".parquet" else write_npz)


def read_index(path) -> Index:
    """Reads what [`write_index`] wrote.

    Raises:
        ValueError: there is no such file, it is damaged, or it is not a file of embeddings.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist; `unime encode` makes it.")

    if path.suffix == ".npz":
        columns, embeddings, about = _read_npz(path)
    else:
        columns, embeddings, about = _read_parquet(path)

    names, texts, images, stamps = columns  # as in _COLUMNS
    items = [Item(text, image) for text, image in zip(texts, images)]
    return Index(names, items, stamps, embeddings, json.loads(about))


def _read_npz(path: Path) -> tuple[list[list[str]], np.ndarray, str]:
    """The columns, the embeddings `[N, D]`, and how they were made."""
    try:
        with np.load(path, allow_pickle=False) as file:  # a pickle could run any code
            arrays = dict(file)  # read now: the file closes
    except BadZipFile as error:
        raise ValueError(f"{path} is damaged: {error}.") from error

    missing = {*_COLUMNS, "embedding", "about"} - arrays.keys()
    if missing:
        raise ValueError(f"{path} lacks {sorted(missing)}; `unime encode` makes such files.")
    return [arrays[name].tolist() for name in _COLUMNS], arrays["embedding"], str(arrays["about"])


def _read_parquet(path: Path) -> tuple[list[list[str]], np.ndarray, bytes]:
    """The columns, the embeddings `[N, D]`, and how they were made."""
    table = pq.read_table(path)
    about = (table.schema.metadata or {}).get(_KEY)
    missing = {*_COLUMNS, "embedding"} - set(table.column_names)
    if about is None or missing:
        raise ValueError(f"{path} does not say how it was made; `unime encode` makes such files.")

    flat = table["embedding"].combine_chunks().flatten().to_numpy()  # [N * D]
    return [table[name].to_pylist() for name in _COLUMNS], flat.reshape(len(table), -1), about
