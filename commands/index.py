"""The file of embeddings that `unime encode` writes and `unime search` reads: Parquet or NPZ."""

import json
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..data.items import Item
from ..data.texts import require_file
from ..files.addresses import local_copy, to_path
from ..files.identity import MISSING, file_identity
from ..files.writing import write_whole

SUFFIXES = (".parquet", ".npz")
_COLUMNS = ("id", "text", "image", "stamp")  # beside the embeddings
_OPTIONAL = ("more_images", "instruction")  # which few items have
_KEY = b"unime"  # under which a Parquet file says how its embeddings were made


class Index(NamedTuple):
    """Items with their embeddings.

    Args:
        names (`list[str]`): ids.
        items (`list[Item]`): what was embedded.
        stamps (`list[str]`): the identity of each item's file, by which a changed file is noticed.
        embeddings (`np.ndarray`): `[N, D]`, float32.
        about (`dict`): how they were made: `source`, `role` and the embedder's `settings`.
    """

    names: list
    items: list
    stamps: list
    embeddings: np.ndarray
    about: dict


def stamp(item: Item) -> str:
    """What an item's file holds, as [`~unime.files.identity.file_identity`] has it; empty where it has none."""
    # a missing file is reported when it is embedded, with its reason
    identities = [file_identity(path) for path in item.images]
    return "+".join("" if identity == MISSING else identity for identity in identities)


def write_index(path: Path, index: Index):
    """Writes the file whole or not at all.

    Args:
        path (`Path`): a `.parquet` file with the columns `id`, `text`, `image`, `stamp` and `embedding`, or an `.npz`
            file with arrays of these names; where an item has several images or an instruction, also `more_images`
            (JSON lists) or `instruction`.
        index ([`Index`]): what to write.
    """
    columns = {"id": index.names, "text": [], "image": [], "stamp": index.stamps}
    more_images = []
    instructions = []
    for item in index.items:
        columns["text"].append(item.text)
        columns["image"].append(item.image)
        more_images.append(json.dumps(item.more_images))
        instructions.append(item.instruction)

    # what few items have
    if any(item.more_images for item in index.items):
        columns["more_images"] = more_images
    if any(instructions):
        columns["instruction"] = instructions
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

        # an open file, since numpy adds its ending to a path that has another
        with open(draft, "wb") as file:
            np.savez(file, **arrays, embedding=index.embeddings, about=np.array(about))

    write_whole(path, write_parquet if path.suffix == ".parquet" else write_npz)


def is_foreign(path: Path) -> bool:
    """Whether there is a file that something else made, which nobody wants to lose; a damaged one is of no use."""
    if not path.exists():
        return False

    path = local_copy(path)
    try:
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                return "about.npy" not in archive.namelist()
        return _KEY not in (pq.read_schema(path).metadata or {})
    except (OSError, ValueError, zipfile.BadZipFile):
        # of a file cut short nothing can be told, but text is no such file
        return path.is_file() and path.read_bytes()[:4] not in (b"", bytes(4), b"PK\x03\x04", b"PAR1")


def read_index(path) -> Index:
    """Reads what [`write_index`] wrote. Nothing that the file names is opened.

    Raises:
        ValueError: there is no such file, it is damaged, or it is not a file of embeddings; the message names it.
    """
    path = to_path(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist; `unime encode` makes it.")
    path = local_copy(path)
    require_file(path)

    read = _read_npz if path.suffix == ".npz" else _read_parquet
    try:
        columns, embeddings, about = read(path)
        return _checked(columns, embeddings, json.loads(about))
    except Exception as error:  # a foreign file makes its decoder raise anything
        reason = str(error).split("\n")[0].rstrip(".") or type(error).__name__
        raise ValueError(
            f"{path} is damaged, or not a file of embeddings that `unime encode` makes: {reason}."
        ) from error


def _checked(columns: list[list[str]], embeddings: np.ndarray, about) -> Index:
    """An index of what a file holds, which anybody may have written."""
    names, texts, images, stamps, more, instructions = columns  # as in _COLUMNS and _OPTIONAL
    for title, column in zip((*_COLUMNS, *_OPTIONAL), columns):
        if len(column) != len(embeddings):
            raise ValueError(f"{len(column)} entries in {title!r} for {len(embeddings)} embeddings")
        if not all(isinstance(entry, str) for entry in column):
            raise ValueError(f"an entry in {title!r} is not a text")

    # vectors of one width, with which similarities can be computed
    if embeddings.ndim != 2 or embeddings.dtype.kind not in "fiu" or not np.isfinite(embeddings).all():
        raise ValueError(f"its embeddings {embeddings.shape} of type {embeddings.dtype} are not vectors of numbers")

    # how they were made
    if not isinstance(about, dict) or not isinstance(about.get("settings"), dict):
        raise ValueError("it does not say how it was made")
    for value in (about.get("source"), about.get("role"), about["settings"].get("model")):
        if not isinstance(value, str):
            raise ValueError("it does not say how it was made")

    items = []
    for text, image, others, instruction in zip(texts, images, more, instructions):
        items.append(Item(text, image, tuple(json.loads(others or "[]")), instruction))
    return Index(names, items, stamps, embeddings, about)


def _read_npz(path: Path) -> tuple[list[list[str]], np.ndarray, str]:
    """The columns, the embeddings `[N, D]`, and how they were made."""
    with np.load(path, allow_pickle=False) as file:  # a pickle could run any code
        arrays = dict(file)  # read now: the file closes

    missing = {*_COLUMNS, "embedding", "about"} - arrays.keys()
    if missing:
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")

    nothing = np.full(len(arrays["embedding"]), "")
    columns = [arrays[name].tolist() for name in _COLUMNS]
    columns += [arrays.get(name, nothing).tolist() for name in _OPTIONAL]
    return columns, arrays["embedding"], str(arrays["about"])


def _read_parquet(path: Path) -> tuple[list[list[str]], np.ndarray, bytes]:
    """The columns, the embeddings `[N, D]`, and how they were made."""
    schema = pq.read_schema(path)
    about = (schema.metadata or {}).get(_KEY)
    missing = {*_COLUMNS, "embedding"} - set(schema.names)
    if about is None or missing:
        raise ValueError("it does not say how it was made")

    table = pq.read_table(path)
    flat = table["embedding"].combine_chunks().flatten().to_numpy()  # [N * D]
    columns = [table[name].to_pylist() for name in _COLUMNS]
    columns += [table[name].to_pylist() if name in table.schema.names else [""] * len(table) for name in _OPTIONAL]
    return columns, flat.reshape(len(table), -1), about
