"""Embeddings of texts and images as a file: the command `unime encode`.

unime encode photos/ captions.jsonl --model outputs/quickstart/model --out index.parquet
"""

import argparse
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..data.embedding import Embedder, embed
from ..data.schema import Item
from ..data.stages import read_errors, read_stage, write_text, write_whole
from .inputs import read_items

KEY = b"unime"  # under which a Parquet file says how its embeddings were made


def encode(sources: list[str], embedder: Embedder, out, role: str = "document", shard_size: int = 256) -> dict:
    """Writes embeddings of the items of `sources`, going on where it was interrupted.

    Args:
        sources: as in [`~unime.apps.inputs.read_items`].
        embedder ([`~unime.data.embedding.Embedder`]).
        out: a `.parquet` file with `id`, `text`, `image`, `embedding`, or a `.npz` file with these as arrays.
        role (`str`): `"document"` or `"query"`.
        shard_size (`int`): items of one shard; finished shards lie in `<out>.parts` until the file is written.

    Returns:
        `{"items", "width", "failed"}`: how many were embedded, in how many dimensions, and those that could not be,
        with the reason; these are left out, and listed in `<out>.errors.json`. Empty but in the main process.

    Raises:
        ValueError: there is no item, or none that can be embedded, a row is unusable, or `out` is of no known kind.
    """
    out = Path(out)
    if out.suffix not in (".parquet", ".npz"):
        raise ValueError(f"{out} is neither .parquet nor .npz.")
    named = list(read_items(sources))
    if not named:
        raise ValueError(f"there is nothing to embed in {', '.join(sources)}.")
    parts = out.with_name(f"{out.name}.parts")
    names, items = zip(*named)
    embed(parts, items, embedder, role, shard_size=shard_size, retry_failed=True)
    if not embedder.state.is_main_process:
        return {}
    found, errors = read_stage(parts), read_errors(parts)
    if "embeddings" not in found:
        raise ValueError(f"none of the {len(items)} items could be embedded; {names[0]}: {errors[0]['reason']}")
    rows = found["row"].tolist()
    about = {"source": str(embedder.source), "role": role, "settings": embedder.settings()}
    write = _write_parquet if out.suffix == ".parquet" else _write_npz
    write_whole(out, lambda draft: write(draft, [names[i] for i in rows], [items[i] for i in rows],
                                         found["embeddings"], about))  # fmt: skip
    listed = out.with_name(f"{out.name}.errors.json")
    errors = [{"id": names[error["row"]], "reason": error["reason"]} for error in errors]
    if errors:
        write_text(listed, json.dumps(errors, indent=1, ensure_ascii=False))
    else:
        listed.unlink(missing_ok=True)
    shutil.rmtree(parts)
    return {"items": len(rows), "width": found["embeddings"].shape[1], "failed": errors}


def _write_parquet(path: Path, names: list[str], items: list[Item], embeddings: np.ndarray, about: dict):
    width = embeddings.shape[1]
    table = pa.table(
        {
            "id": names, "text": [item.text for item in items], "image": [item.image for item in items],
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), width),
        },
        metadata={KEY: json.dumps(about)},
    )  # fmt: skip
    pq.write_table(table, path)


def _write_npz(path: Path, names: list[str], items: list[Item], embeddings: np.ndarray, about: dict):
    columns = {"id": names, "text": [i.text for i in items], "image": [i.image for i in items]}
    with open(path, "wb") as file:
        np.savez(file, **{name: np.array(own, str) for name, own in columns.items()}, embedding=embeddings,
                 about=np.array(json.dumps(about)))  # fmt: skip


def read_index(path) -> tuple[list[str], list[Item], np.ndarray, dict]:
    """Reads what [`encode`] wrote: ids, items, embeddings `[N, D]`, and how they were made.

    Raises:
        ValueError: it is no such file.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist; `unime encode` makes it.")
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        if missing := {"id", "text", "image", "embedding", "about"} - found.keys():
            raise ValueError(f"{path} lacks {sorted(missing)}; `unime encode` makes such files.")
        names, texts, images = (found[name].tolist() for name in ("id", "text", "image"))
        embeddings, about = found["embedding"], json.loads(str(found["about"]))
    else:
        table = pq.read_table(path)
        about = (table.schema.metadata or {}).get(KEY)
        if about is None:
            raise ValueError(f"{path} does not say how it was made; `unime encode` makes such files.")
        names, texts, images = (table[name].to_pylist() for name in ("id", "text", "image"))
        column = table["embedding"].combine_chunks()
        embeddings, about = column.flatten().to_numpy().reshape(len(table), -1), json.loads(about)
    return names, [Item(text, image) for text, image in zip(texts, images)], embeddings, about


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
    parser.add_argument("--options", type=json.loads, default={}, help="for encode, as JSON: '{\"resolution\": 336}'")
    parser.add_argument("--json", action="store_true", help="say what was done as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    options = parser.parse_args(arguments)
    if options.quiet:
        os.environ["TQDM_DISABLE"] = "1"
    try:
        embedder = Embedder(options.model, options.library, options.preset, options.dtype, **options.options)
        done = encode(options.sources, embedder, options.out, options.role)
    except (ValueError, OSError) as error:
        raise SystemExit(f"unime encode: {error}") from error
    if not done:
        return
    if options.json:
        print(json.dumps({"out": options.out, **done}))
    elif not options.quiet:
        print(f"{options.out}: {done['items']} items of width {done['width']}")
    if errors := done["failed"]:
        raise SystemExit(f"unime encode: {len(errors)} items failed, see {options.out}.errors.json; the first: "
                         f"{errors[0]['id']}: {errors[0]['reason']}")  # fmt: skip


if __name__ == "__main__":
    main()
