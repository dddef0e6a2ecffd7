"""A long job as shards and a manifest: it can be killed at any moment and goes on where it stopped.

Every shard is written whole or not at all, under a name that says which rows it holds; the manifest keeps the
fingerprint of inputs and settings, so that a changed job is refused instead of mixed with old shards. Processes (of
`accelerate launch`, on one machine or several with a shared disk) take shards in turn.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from tqdm.auto import tqdm

MANIFEST = "manifest.json"


def fingerprint(rows: Iterable[str]) -> str:
    """A digest of the texts that identify the rows, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        digest.update(f"{len(row)}:{row}".encode())
    return digest.hexdigest()


def run_stage(
    out,
    rows: Sequence,
    work: Callable[[Sequence], dict[str, np.ndarray]],
    settings: dict,
    keys: Callable[[object], str] = str,
    shard_size: int = 1024,
    rank: int = 0,
    world_size: int = 1,
    description: str = "Working",
):
    """Does the shards of a job that are not done yet.

    Args:
        out (`str` or `Path`): folder of the job.
        rows (`Sequence`): the inputs.
        work: maps a slice of the rows to arrays with as many rows each.
        settings (`dict`): whatever else decides the result, for example model and prompt; JSON.
        keys: maps a row to the text that identifies it.
        shard_size (`int`, defaults to 1024): rows of a shard.
        rank, world_size (`int`): this process does every `world_size`-th shard.

    Raises:
        ValueError: the folder holds another job (the message says what differs), or `work` returned too few rows.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    manifest = {
        "rows": len(rows), "fingerprint": fingerprint(map(keys, rows)), "shard_size": shard_size, "settings": settings,
    }  # fmt: skip
    if (out / MANIFEST).exists():
        _refuse_another_job(out, json.loads((out / MANIFEST).read_text(encoding="utf-8")), manifest)
    else:
        _write(out / MANIFEST, lambda path: path.write_text(json.dumps(manifest, indent=1), encoding="utf-8"))
    starts = range(0, len(rows), shard_size)
    own = [start for number, start in enumerate(starts) if number % world_size == rank]
    todo = [start for start in own if not _shard(out, start).exists()]
    done = sum(min(shard_size, len(rows) - start) for start in own if start not in set(todo))
    total = sum(min(shard_size, len(rows) - start) for start in own)
    with tqdm(total=total, initial=done, desc=description, unit="row", disable=rank > 0) as bar:
        for start in todo:
            part = rows[start : start + shard_size]
            arrays = {name: np.ascontiguousarray(array) for name, array in work(part).items()}
            short = {name: len(array) for name, array in arrays.items() if len(array) != len(part)}
            if short:
                raise ValueError(f"{description}: {short} results for {len(part)} rows from row {start} on.")
            _write(_shard(out, start), lambda path, arrays=arrays: save_file(arrays, path))
            bar.update(len(part))


def read_stage(out) -> dict[str, np.ndarray]:
    """The results of a finished job, in the order of its rows.

    Raises:
        ValueError: there is no job, or it is not finished; the message says how far it came.
    """
    out = Path(out)
    if not (out / MANIFEST).exists():
        raise ValueError(f"{out} holds no job: it has no {MANIFEST}.")
    manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    shards = [_shard(out, start) for start in range(0, manifest["rows"], manifest["shard_size"])]
    missing = [shard.name for shard in shards if not shard.exists()]
    if missing:
        raise ValueError(
            f"{out} is not finished: {len(missing)} of {len(shards)} shards are missing; run the job again."
        )
    parts = [load_file(shard) for shard in shards]
    return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else {})}


def _shard(out: Path, start: int) -> Path:
    return out / f"rows-{start:09d}.safetensors"


def _write(path: Path, writer):
    """Writes beside the file and moves it into place, so that no reader ever sees half a file."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    writer(draft)
    os.replace(draft, path)


def _refuse_another_job(out, found: dict, wanted: dict):
    differs = [f"{key}: {found.get(key)} there, {wanted[key]} now" for key in wanted if found.get(key) != wanted[key]]
    if differs:
        raise ValueError(f"{out} holds another job ({'; '.join(differs)}); choose another folder or remove it.")
