"""A long job as shards and a manifest: it can be killed at any moment and goes on where it stopped.

Every shard is written whole or not at all, under a name that says which rows it holds; the manifest keeps the
fingerprint of inputs and settings, so that a changed job is refused instead of mixed with old shards. Processes (of
`accelerate launch`, on one machine or several with a shared disk) take shards in turn. A row that fails twice is left
out of the results and kept, with the reason, beside its shard.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from safetensors import safe_open
from safetensors.numpy import save_file
from tqdm.auto import tqdm

MANIFEST = "manifest.json"
FAILURES = (ValueError, OSError)  # what bad input and a server that does not answer raise; anything else ends the job
HOPELESS = 16  # if none of so many rows of a shard succeeds, or of a full shard, the fault is not in the rows


def processes() -> PartialState:
    """The processes of this launch, on GPUs or not; they wait for each other for weeks rather than minutes."""
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=60))


def fingerprint(rows: Iterable[str]) -> str:
    """A digest of the texts that identify the rows, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        digest.update(f"{len(row)}:{row}".encode())
    return digest.hexdigest()


def run_job(
    out,
    rows: Sequence,
    work: Callable[..., dict[str, np.ndarray]],
    settings: dict,
    keys: Callable[[object], str] = str,
    shard_size: int = 1024,
    rank: int = 0,
    world_size: int = 1,
    description: str = "Working",
    failures: tuple = FAILURES,
    prepare: Callable[[], object] | None = None,
    retry_failed: bool = False,
    spare: bool = False,
):
    """Does the shards of a job that are not done yet.

    Where `work` raises one of `failures`, the rows are halved until those that are to blame stand alone; each of them
    is tried once more, and then recorded as failed.

    Args:
        out (`str` or `Path`): folder of the job.
        rows (`Sequence`): the inputs.
        work: maps a slice of the rows to arrays with as many rows each; called as `work(rows)`, or, where there is a
            `prepare`, as `work(rows, prepared)`.
        settings (`dict`): whatever else decides the result, for example model and prompt; JSON.
        keys: maps a row to the text that identifies it.
        shard_size (`int`, defaults to 1024): rows of a shard.
        rank, world_size (`int`): this process does every `world_size`-th shard.
        failures (`tuple`): errors of single rows, by default `ValueError` and `OSError`; any other ends the job.
        prepare (*optional*): called once, if there is anything left to do: to load a model, whose errors are not a
            row's. What it returns is handed to `work`.
        retry_failed (`bool`): do shards with failed rows once more.
        spare (`bool`): go on where all rows of a shard fail, which otherwise ends the job.

    Raises:
        ValueError: the folder holds another job (the message says what differs), `work` returned too few rows, or
            every row of a shard failed (the message gives the first reason).
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    manifest = {
        "rows": len(rows),
        "fingerprint": fingerprint(map(keys, rows)),
        "shard_size": shard_size,
        "settings": settings,
    }
    check_manifest(out / MANIFEST, manifest)
    starts = range(0, len(rows), shard_size)
    own = [start for number, start in enumerate(starts) if number % world_size == rank]
    again = {start for start in own if retry_failed and _errors(out, start).exists()}
    todo = [start for start in own if start in again or not _shard(out, start).exists()]
    done = sum(min(shard_size, len(rows) - start) for start in own if start not in set(todo))
    total = sum(min(shard_size, len(rows) - start) for start in own)
    if todo and prepare is not None:
        work = _with_prepared(work, prepare())
    silent = {"disable": True} if rank else {}  # else it is tqdm's, which TQDM_DISABLE can silence
    with tqdm(total=total, initial=done, desc=description, unit="row", **silent) as bar:
        for start in todo:
            part, errors = rows[start : start + shard_size], []
            arrays = _collect(_survivors(part, start, work, keys, errors, failures))
            if not spare and not len(arrays["row"]) and (len(part) >= HOPELESS or 1 < len(part) == shard_size):
                raise ValueError(f"{description}: all {len(part)} rows from row {start} on failed; {errors[0]}")
            if errors:  # before the shard, whose presence means that all is said
                write_text(_errors(out, start), json.dumps(errors, indent=1, ensure_ascii=False))
            else:
                _errors(out, start).unlink(missing_ok=True)  # of an attempt that was killed, or is repeated
            write_whole(_shard(out, start), lambda path, arrays=arrays: save_file(arrays, path))
            bar.update(len(part))


def _with_prepared(work, prepared):
    return lambda rows: work(rows, prepared)


def read_job(out, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The results of a finished job in the order of its rows; the array `row` numbers the rows that did not fail.

    `names` are the arrays wanted, all by default.

    Raises:
        ValueError: there is no job, or it is not finished; the message says how far it came.
    """
    parts = [part for part in (_load(shard, names) for shard in _shards(out)) if len(part["row"])]
    return _collect(parts)


def read_errors(out) -> list[dict]:
    """The rows of a job that failed so far: `row`, its `key`, and the `reason`."""
    found = sorted(Path(out).glob("rows-*.errors.json"))
    return [error for path in found for error in json.loads(path.read_text(encoding="utf-8"))]


def check_manifest(path: Path, manifest: dict):
    """Writes what a job is made from, or, where that was written before, makes sure that it is the same.

    Raises:
        ValueError: it is not; the message says what differs.
    """
    if not path.exists():
        write_text(path, json.dumps(manifest, indent=1))
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    manifest = json.loads(json.dumps(manifest))  # as it would be read back
    differs = [_difference(key, found.get(key), manifest[key]) for key in manifest if found.get(key) != manifest[key]]
    if differs:
        raise ValueError(f"{path} describes another job ({'; '.join(differs)}); choose another place or remove it.")


def write_whole(path: Path, writer: Callable[[Path], object]):
    """Lets `writer` write beside the file and moves the result into place: no reader ever sees half a file."""
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    writer(draft)
    os.replace(draft, path)


def write_text(path: Path, text: str):
    """As [`write_whole`], for a text."""
    write_whole(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def _survivors(part, start: int, work, keys, errors: list[dict], failures: tuple) -> Iterable[dict]:
    """Results of the rows that do not fail, in order, in as few calls of `work` as that takes."""
    try:
        yield _checked(part, start, work)
        return
    except failures as error:
        if len(part) > 1:
            half = len(part) // 2
            yield from _survivors(part[:half], start, work, keys, errors, failures)
            yield from _survivors(part[half:], start + half, work, keys, errors, failures)
            return
        first = error
    try:
        yield _checked(part, start, work)
    except failures as error:
        reason = str(error) if str(error) == str(first) else f"{first}; tried again: {error}"
        errors.append({"row": start, "key": keys(part[0]), "reason": reason or repr(error)})


def _checked(part, start: int, work) -> dict[str, np.ndarray]:
    arrays = {name: np.ascontiguousarray(array) for name, array in work(part).items()}
    short = {name: len(array) for name, array in arrays.items() if len(array) != len(part)}
    if short:
        raise RuntimeError(f"{short} results for {len(part)} rows from row {start} on.")
    return {"row": np.arange(start, start + len(part)), **arrays}


def _collect(parts: Iterable[dict]) -> dict[str, np.ndarray]:
    parts = list(parts)
    if not parts:
        return {"row": np.zeros(0, np.int64)}
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _load(shard: Path, names) -> dict[str, np.ndarray]:
    with safe_open(shard, "numpy") as file:
        wanted = [name for name in file.keys() if names is None or name in (*names, "row")]  # noqa: SIM118
        return {name: file.get_tensor(name) for name in wanted}


def _shards(out) -> list[Path]:
    """All shards of a finished job."""
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
    return shards


def _shard(out: Path, start: int) -> Path:
    return out / f"rows-{start:09d}.safetensors"


def _errors(out: Path, start: int) -> Path:
    return _shard(out, start).with_suffix(".errors.json")


def _difference(name: str, found, wanted) -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
        return "; ".join(_difference(f"{name}.{key}", found.get(key), wanted.get(key)) for key in keys)
    return f"{name}: {found} there, {wanted} now"
