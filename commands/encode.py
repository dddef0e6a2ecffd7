"""Embeddings of texts and images as a file: the command `unime encode`.

unime encode photos/ captions.jsonl --model outputs/quickstart/model --out index.parquet
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..data.item_sources import read_items
from ..data.schema import Item
from ..files.addresses import remove_folder, to_path
from ..files.identity import verify_files
from ..files.writing import write_json
from ..jobs.embedding import Embedder, embed
from ..jobs.engines import RayEngine, open_engine
from ..jobs.shards import by_content, fingerprint, read_errors, read_job
from .errors import one_line_errors
from .index import SUFFIXES, Index, is_foreign, read_index, stamp, write_index
from .parsers.encode import read


class Encoded(NamedTuple):
    """What [`encode`] made.

    Args:
        index ([`~unime.commands.index.Index`]): what the file holds now.
        new (`int`): how many of its items were embedded by this call.
        failed (`list[dict]`): `{"id", "reason"}` of the items that could not be embedded. They are left out of the
            index, and listed in `<out>.errors.json`.
    """

    index: Index
    new: int
    failed: list


@dataclass(frozen=True)
class Entry:
    """An item of the sources: its id, itself, and the identity of its file."""

    name: str
    item: Item
    stamp: str

    @property
    def key(self) -> tuple[Item, str]:
        """What decides its embedding: the item may be the same path with another content."""
        return self.item, self.stamp


def encode(
    sources: list[str],
    embedder: Embedder,
    out,
    role: str = "document",
    shard_size: int = 256,
    update: bool = False,
    engine: RayEngine | None = None,
    **reading,
) -> Encoded | None:
    """Writes embeddings of the items of `sources`, going on where it was interrupted.

    Args:
        sources: as in [`~unime.data.item_sources.read_items`].
        embedder ([`~unime.jobs.embedding.Embedder`]): what embeds them.
        out: a `.parquet` or `.npz` file with `id`, `text`, `image`, `stamp`, `embedding`.
        role (`str`, defaults to `"document"`): as what items are read: `"document"` or `"query"`.
        shard_size (`int`, defaults to 256): items of one shard; finished shards lie in `<out>.parts` until the file is
            written.
        update (`bool`, defaults to `False`): embed only what the file lacks or what has changed, and drop what is no
            longer there.
        engine ([`~unime.jobs.engines.RayEngine`], *optional*): workers that embed, in place of this process.
        reading: `image_root`, `column`, `columns` and `allow_urls` of [`~unime.data.item_sources.read_items`].

    Returns:
        [`Encoded`] in the main process, `None` in the others.

    Raises:
        ValueError: there is no item, or none that can be embedded, a row is unusable, `out` is of no known kind, or
            somebody else's file, or it cannot be updated because its embeddings were made otherwise.

    Example:

    ```python
    encoded = encode(["photos"], Embedder("outputs/quickstart/model"), "index.parquet")
    print(encoded.index.embeddings.shape)
    ```
    """
    out = to_path(out)
    if out.suffix not in SUFFIXES:
        raise ValueError(f"{out} is neither .parquet nor .npz.")
    if is_foreign(out):
        raise ValueError(f"{out} is not a file of embeddings that `unime encode` made; name another, or remove it.")

    # read: the items, and the index that is to be updated
    entries = _read(sources, reading)
    about = {"source": str(embedder.source), "role": role, "settings": embedder.settings()}
    old = _updatable(out, about) if update and out.exists() else None

    # the difference: what the index has no embedding of
    vectors = _vectors_of(old)
    missing = [entry for entry in entries if entry.key not in vectors]

    # where a run was killed, or failed, the next may find other files, or be told to use another model
    about_and_keys = [json.dumps(by_content([role, about["settings"], shard_size]))]
    for entry in missing:
        about_and_keys.append(f"{entry.key}")
    folder = _parts(out) / fingerprint(about_and_keys)

    # embed: all processes of a launch share the work, the main one goes on with the results
    if missing:
        _embed(missing, embedder, folder, role, shard_size, engine)
    if not embedder.state.is_main_process:
        return None

    # merge, in the order of the sources
    failed = []
    if missing:
        new_vectors, failed = _results(missing, folder)
        vectors |= new_vectors
    index = _merge(entries, vectors, about, failed)

    # write; the shards go last, so that a run that is killed here need not embed again
    if old is None or _changed(old, index):
        write_index(out, index)
    _write_errors(out, failed)
    remove_folder(_parts(out))
    return Encoded(index, len(missing) - len(failed), failed)


def _parts(out: Path) -> Path:
    """The folder of finished shards."""
    return out.with_name(f"{out.name}.parts")


def _read(sources: list[str], reading: dict) -> list[Entry]:
    """The items of the sources, of which there must be one."""
    entries = [Entry(name, item, stamp(item)) for name, item in read_items(sources, **reading)]
    if not entries:
        raise ValueError(f"there is nothing to embed in {', '.join(sources)}.")
    return entries


def _updatable(out: Path, about: dict) -> Index:
    """The index that an update starts from."""
    index = read_index(out)

    # "source" may differ: a model that was moved is the same model
    for key in ("role", "settings"):
        if by_content(index.about[key]) != by_content(about[key]):
            raise ValueError(f"{out} cannot be updated: its {key} is {index.about[key]}, not {about[key]}.")
    return index


def _vectors_of(index: Index | None) -> dict[tuple[Item, str], np.ndarray]:
    """The embeddings `[D]` of an index by the keys of their entries."""
    if index is None:
        return {}
    return dict(zip(zip(index.items, index.stamps), index.embeddings))


def _embed(
    entries: list[Entry], embedder: Embedder, folder: Path, role: str, shard_size: int, engine: RayEngine | None
):
    """Embeds entries, in all processes of the launch or on an engine, as a job in `folder`."""
    embed(
        folder,
        [entry.item for entry in entries],
        embedder,
        role,
        shard_size=shard_size,
        retry_failed=True,  # a file may have been mended since
        description="Embedding",
        spare=True,  # a folder may hold many broken files
        engine=engine,
    )


def _results(entries: list[Entry], folder: Path) -> tuple[dict[tuple[Item, str], np.ndarray], list[dict]]:
    """What a finished job in `folder` made of entries: embeddings `[D]` by key, and `{"id", "reason"}` of failures."""
    job = read_job(folder)
    embeddings = job.get("embeddings", ())  # [n, D]; absent where every item failed
    vectors = {}
    for row, vector in zip(job["row"], embeddings):
        vectors[entries[row].key] = vector

    failed = []
    for error in read_errors(folder):
        failed.append({"id": entries[error["row"]].name, "reason": error["reason"]})
    return vectors, failed


def _merge(entries: list[Entry], vectors: dict, about: dict, failed: list[dict]) -> Index:
    """The index of all entries that have an embedding, in the order of the sources."""
    names = []
    items = []
    stamps = []
    embeddings = []
    for entry in entries:
        if entry.key not in vectors:  # it failed
            continue
        names.append(entry.name)
        items.append(entry.item)
        stamps.append(entry.stamp)
        embeddings.append(vectors[entry.key])

    # an index of nothing is of no use
    if not names:
        first = f"{failed[0]['id']}: {failed[0]['reason']}"
        raise ValueError(f"none of the {len(entries)} items could be embedded; {first}")
    return Index(names, items, stamps, np.stack(embeddings), about)  # embeddings [N, D]


def _changed(old: Index, new: Index) -> bool:
    """Whether an update differs from what it started from; equal entries have equal embeddings."""
    return (old.names, old.items, old.stamps, old.about) != (new.names, new.items, new.stamps, new.about)


def _write_errors(out: Path, failed: list[dict]):
    """Lists what could not be embedded beside the index, or removes such a list of an earlier run."""
    path = out.with_name(f"{out.name}.errors.json")
    if failed:
        write_json(path, failed)
    else:
        path.unlink(missing_ok=True)


def execute(options):
    """Does what the options of `unime encode` say."""
    if options.verify:
        verify_files()

    with one_line_errors("unime encode"):
        embedder = Embedder.of(options)
        with open_engine(options) as engine:
            encoded = encode(
                options.sources,
                embedder,
                options.out,
                options.role,
                update=options.update,
                engine=engine,
                image_root=options.image_root,
                column=options.column,
                columns=options.columns,
                allow_urls=options.allow_urls,
            )
    if encoded is None:  # not the main process
        return

    items, width = encoded.index.embeddings.shape
    if options.json:
        counts = {"items": items, "new": encoded.new, "width": width, "failed": encoded.failed}
        print(json.dumps({"out": options.out, **counts}))
    else:
        print(f"{options.out}: {items} items of width {width}, {encoded.new} of them new")

    # an error status, although the file is written: a script should notice
    if encoded.failed:
        first = encoded.failed[0]
        raise SystemExit(
            f"unime encode: {len(encoded.failed)} items failed, see {options.out}.errors.json; the first: "
            f"{first['id']}: {first['reason']}"
        )


def main(arguments=None):
    """The command `unime encode`."""
    execute(read(arguments))


if __name__ == "__main__":
    main()
