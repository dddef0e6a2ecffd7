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
_KEY = b"unime"  # under which a Parquet file says how its embeddings were made


class Index(NamedTuple):
    """Items with their embeddings.

    Args:
        names (`list[str]`): ids.
        items (`list[Item]`).
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
    try:
        found = os.stat(item.image) if item.image else None
    except FileNotFoundError:
        found = None
    return f"{found.st_size}:{found.st_mtime_ns}" if found else ""


def write_index(path: Path, index: Index):
    """Writes the file whole or not at all: columns `id`, `text`, `image`, `stamp`, `embedding`."""
    columns = {
        "id": index.names,
        "text": [item.text for item in index.items],
        "image": [item.image for item in index.items],
        "stamp": index.stamps,
    }
    about = json.dumps(index.about)

    def parquet(draft):
        width = index.embeddings.shape[1]
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(index.embeddings.reshape(-1)), width)
        pq.write_table(pa.table({**columns, "embedding": vectors}, metadata={_KEY: about}), draft)

    def npz(draft):
        arrays = {name: np.array(own, str) for name, own in columns.items()}
        with open(draft, "wb") as file:
            np.savez(file, **arrays, embedding=index.embeddings, about=np.array(about))

    write_whole(path, parquet if path.suffix == ".parquet" else npz)


def read_index(path) -> Index:
    """Reads what [`write_index`] wrote.

    Raises:
        ValueError: it is no such file.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist; `unime encode` makes it.")
    wanted = ("id", "text", "image", "stamp")
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
        except BadZipFile as error:
            raise ValueError(f"{path} is damaged: {error}.") from error
        if missing := {*wanted, "embedding", "about"} - found.keys():
            raise ValueError(f"{path} lacks {sorted(missing)}; `unime encode` makes such files.")
        columns = [found[name].tolist() for name in wanted]
        embeddings, about = found["embedding"], str(found["about"])
    else:
        table = pq.read_table(path)
        about = (table.schema.metadata or {}).get(_KEY)
        if about is None or {*wanted, "embedding"} - set(table.column_names):
            raise ValueError(f"{path} does not say how it was made; `unime encode` makes such files.")
        columns = [table[name].to_pylist() for name in wanted]
        embeddings = table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    names, texts, images, stamps = columns
    return Index(names, [Item(*both) for both in zip(texts, images)], stamps, embeddings, json.loads(about))
