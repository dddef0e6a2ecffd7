"""Embeddings of texts and images as a file: the command `unime encode`.

unime encode photos/ captions.jsonl --model outputs/quickstart/model --out index.parquet
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..jobs.embedding import Embedder, embed
from ..jobs.shards import fingerprint, read_errors, read_job, write_text
from .index import SUFFIXES, Index, read_index, stamp, write_index
from .inputs import read_items


class Encoded(NamedTuple):
    """What [`encode`] made: the index, how many of its items were embedded now, and `{"id", "reason"}` of those that
    could not be, which are left out and listed in `<out>.errors.json`."""

    index: Index
    new: int
    failed: list


def encode(
    sources: list[str], embedder: Embedder, out, role: str = "document", shard_size: int = 256, update: bool = False
) -> Encoded | None:
    """Writes embeddings of the items of `sources`, going on where it was interrupted.

    Args:
        sources: as in [`~unime.commands.inputs.read_items`].
        embedder ([`~unime.jobs.embedding.Embedder`]).
        out: a `.parquet` or `.npz` file with `id`, `text`, `image`, `stamp`, `embedding`.
        role (`str`): `"document"` or `"query"`.
        shard_size (`int`): items of one shard; finished shards lie in `<out>.parts` until the file is written.
        update (`bool`): embed only what the file lacks or what has changed, and drop what is no longer there.

    Returns:
        [`Encoded`], in the main process.

    Raises:
        ValueError: there is no item, or none that can be embedded, a row is unusable, `out` is of no known kind, or it
            cannot be updated because its embeddings were made otherwise.
    """
    out = Path(out)
    if out.suffix not in SUFFIXES:
        raise ValueError(f"{out} is neither .parquet nor .npz.")
    named = list(read_items(sources))
    if not named:
        raise ValueError(f"there is nothing to embed in {', '.join(sources)}.")
    names, items = zip(*named)
    stamps = [stamp(item) for item in items]
    about = {"source": str(embedder.source), "role": role, "settings": embedder.settings()}
    old = _updatable(out, about) if update and out.exists() else None
    vectors = dict(zip(zip(old.items, old.stamps), old.embeddings)) if old else {}
    keys = list(zip(items, stamps))
    todo = [row for row, key in enumerate(keys) if key not in vectors]
    errors, parts = [], out.with_name(f"{out.name}.parts")
    if todo:
        # an update that is killed may find other files when it is repeated
        part = parts / fingerprint(f"{keys[row]}" for row in todo) if update else parts
        embed(
            part,
            [items[row] for row in todo],
            embedder,
            role,
            shard_size=shard_size,
            retry_failed=True,
            description="Embedding",
            spare=True,
        )
        if embedder.state.is_main_process:
            found, errors = read_job(part), read_errors(part)
            for row, vector in zip(found["row"], found.get("embeddings", ())):
                vectors[keys[todo[row]]] = vector
            errors = [{"id": names[todo[error["row"]]], "reason": error["reason"]} for error in errors]
    if not embedder.state.is_main_process:
        return None
    rows = [row for row, key in enumerate(keys) if key in vectors]
    if not rows:
        raise ValueError(f"none of the {len(items)} items could be embedded; {errors[0]['id']}: {errors[0]['reason']}")
    embeddings = np.stack([vectors[keys[row]] for row in rows])
    own = ([column[row] for row in rows] for column in (names, items, stamps))
    index = Index(*own, embeddings, about)
    if old is None or (*index[:3], index.about) != (*old[:3], old.about):
        write_index(out, index)
    listed = out.with_name(f"{out.name}.errors.json")
    if errors:
        write_text(listed, json.dumps(errors, indent=1, ensure_ascii=False))
    else:
        listed.unlink(missing_ok=True)
    if parts.exists():
        shutil.rmtree(parts)
    return Encoded(index, len(todo) - len(errors), errors)


def _updatable(out: Path, about: dict) -> Index:
    """The index that an update starts from."""
    index = read_index(out)
    for key in ("role", "settings"):
        if index.about[key] != about[key]:
            raise ValueError(f"{out} cannot be updated: its {key} is {index.about[key]}, not {about[key]}.")
    return index


def main(arguments=None):
    """The command `unime encode`."""
    parser = argparse.ArgumentParser(
        prog="unime encode", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", nargs="+", help="folder of images, image, .jsonl, .txt, or - (JSON lines)")
    parser.add_argument("--model", required=True, help="folder or repository of an embedder")
    parser.add_argument("--out", required=True, help=".parquet or .npz file")
    parser.add_argument("--library", default="unime", help="unime or sentence-transformers")
    parser.add_argument("--preset", help="prompts, for a stock VLM")
    parser.add_argument("--dtype", default="auto", help="bfloat16, ...; auto is the checkpoint's own")
    parser.add_argument("--role", default="document", choices=("document", "query"))
    parser.add_argument("--update", action="store_true", help="embed only what the file lacks or what has changed")
    parser.add_argument("--options", type=json.loads, default={}, help="for encode, as JSON: '{\"resolution\": 336}'")
    parser.add_argument("--json", action="store_true", help="say what was done as JSON")
    options = parser.parse_args(arguments)
    try:
        embedder = Embedder(options.model, options.library, options.preset, options.dtype, **options.options)
        done = encode(options.sources, embedder, options.out, options.role, update=options.update)
    except (ValueError, OSError) as error:
        raise SystemExit(f"unime encode: {error}") from error
    if done is None:
        return
    items, width = done.index.embeddings.shape
    if options.json:
        said = {"out": options.out, "items": items, "new": done.new, "width": width, "failed": done.failed}
        print(json.dumps(said))
    else:
        print(f"{options.out}: {items} items of width {width}, {done.new} of them new")
    if errors := done.failed:
        raise SystemExit(
            f"unime encode: {len(errors)} items failed, see {options.out}.errors.json; the first: "
            f"{errors[0]['id']}: {errors[0]['reason']}"
        )


if __name__ == "__main__":
    main()
