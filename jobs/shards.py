"""A long job as shards and a manifest: it can be killed at any moment and goes on where it stopped.

Every shard is written whole or not at all, under a name that says which rows it holds; the manifest keeps the
fingerprint of inputs and settings, so that a changed job is refused instead of mixed with old shards. Processes (of
`accelerate launch`, on one machine or several with a shared disk) take shards in turn. A row that fails twice is left
out of the results and kept, with the reason, beside its shard.

A job's folder holds `manifest.json`, `rows-<number of the first row>.safetensors` for each shard, and beside it
`rows-<number>.errors.json` where rows failed. A shard keeps digests of its arrays and of the job that it belongs to:
one that was cut short, zeroed or comes from elsewhere is noticed and made again.
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from ..files.addresses import make_folder, to_path
from ..files.writing import read_arrays, read_json, write_arrays, write_json
from .engines import RayEngine, work_locally
from .workers import ShardWorker

MANIFEST = "manifest.json"
FAILURES = (ValueError, OSError)  # what bad input and a server that does not answer raise; anything else ends the job
_NAME = re.compile(r".*@(?=[0-9a-f]{16}$)", re.DOTALL)  # of a checkpoint, before its digest
HOPELESS = 16  # if so many rows of a shard fail and none succeeds, the fault is not in the rows


def processes() -> PartialState:
    """The processes of this launch, on GPUs or not.

    They wait for each other for weeks rather than minutes: one may finish its shards long before another.
    """
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=60))


def fingerprint(rows: Iterable[str]) -> str:
    """A digest of the texts that identify the rows, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        digest.update(f"{len(row)}:{row}".encode("utf-8", "surrogatepass"))
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
    engine: RayEngine | None = None,
    digest: str | None = None,
    inputs: Callable[[Sequence], Sequence] | None = None,
):
    """Does the shards of a job that are not done yet.

    Where `work` raises one of `failures`, the rows are halved until those that are to blame stand alone; each of them
    is tried once more, and then recorded as failed.

    Args:
        out (`str` or `Path`): folder of the job, or its address (see [`~unime.files.addresses.to_path`]).
        rows (`Sequence`): the inputs.
        work: maps a slice of the rows to arrays with as many rows each; called as `work(rows)`, or, where there is a
            `prepare`, as `work(rows, prepared)`.
        settings (`dict`): whatever else decides the result, for example model and prompt; JSON.
        keys (defaults to `str`): maps a row to the text that identifies it.
        shard_size (`int`, defaults to 1024): rows of a shard.
        rank (`int`, defaults to 0), world_size (`int`, defaults to 1): this process does every `world_size`-th shard,
            from number `rank` on.
        description (`str`): what the progress bar and errors call the job.
        failures (`tuple`): errors of single rows, by default `ValueError` and `OSError`; any other ends the job.
        prepare (*optional*): called once, if there is anything left to do: to load a model, whose errors are not a
            row's. What it returns is handed to `work`.
        retry_failed (`bool`, defaults to `False`): do shards with failed rows once more.
        spare (`bool`, defaults to `False`): go on where all rows of a shard fail, which otherwise ends the job.
        engine ([`~unime.jobs.engines.RayEngine`], *optional*): workers that do the shards; by default this process
            does its own.
        digest (`str`, *optional*): the [`fingerprint`] of the rows' keys, where it is known already.
        inputs (*optional*): maps rows of a shard to what `work` is given in their place; called in this process.

    Raises:
        ValueError: the folder holds another job (the message says what differs), every row of a shard failed (the
            message gives the first reason), or workers of the engine failed at a shard again and again (the others
            are done then).
        RuntimeError: `work` returned arrays with too few or too many rows.

    Example:

    ```python
    def lengths(texts):
        return {"length": np.array([len(text) for text in texts])}

    run_job("outputs/lengths", ["a", "bb", "ccc"], lengths, settings={"unit": "characters"}, shard_size=2)
    read_job("outputs/lengths")["length"]  # array([1, 2, 3])
    ```
    """
    out = to_path(out)
    make_folder(out)

    # what decides the result; a folder that was made from something else is refused
    manifest = {
        "rows": len(rows),
        "fingerprint": digest or fingerprint(map(keys, rows)),
        "shard_size": shard_size,
        "settings": settings,
    }
    if engine and world_size > 1:
        raise ValueError(
            "an engine shares out the shards by itself: start one process, without accelerate or torchrun."
        )
    check_manifest(out / MANIFEST, manifest)
    shards = [Shard(out, first, last, _job_of(manifest)) for first, last in _spans(len(rows), shard_size)]

    # processes take turns; what an earlier run left is read whole, so that damage is found now
    shards = shards[rank::world_size]
    todo = [shard for shard in shards if shard.is_due(retry_failed)]

    # a model is loaded only if there is anything left to do
    worker = ShardWorker(work, failures, prepare)
    start = engine.run if engine else work_locally
    outcomes = start(worker, todo, partial(_inputs_of, rows=rows, inputs=inputs))

    faults = []
    total = _count_rows(shards)
    with _progress_bar(total, total - _count_rows(todo), description, rank) as bar:
        for shard, results, errors, fault in outcomes:
            if fault is not None:
                faults.append(f"rows {shard.first} to {shard.last - 1}: {fault}")
                print(f"{description}: {faults[-1]}", file=sys.stderr, flush=True)
                continue

            # a model or server that is at fault would leave a folder full of errors
            count = shard.last - shard.first
            if not results and not spare and _is_hopeless(count, shard_size):
                reason = errors[0]["reason"]
                raise ValueError(f"{description}: all {count} rows from row {shard.first} on failed; {reason}")

            shard.write(_concatenated(results), _with_keys(errors, rows, keys))
            bar.update(count)

    if faults:
        raise ValueError(
            f"{description}: {len(faults)} of {len(shards)} shards failed, the first is {faults[0]}. The others are "
            "done; run the job again."
        )


def _inputs_of(shard: "Shard", rows: Sequence, inputs: Callable | None) -> Sequence:
    """What `work` is given of a shard."""
    shard_rows = rows[shard.first : shard.last]
    return shard_rows if inputs is None else inputs(shard_rows)


def _with_keys(errors: list[dict], rows: Sequence, keys: Callable) -> list[dict]:
    """The errors of a shard, with the texts that identify their rows."""
    result = []
    for error in errors:
        result.append({"row": error["row"], "key": keys(rows[error["row"]]), "reason": error["reason"]})
    return result


def _count_rows(shards: Iterable["Shard"]) -> int:
    """How many rows the shards have; the last of all is shorter than the others."""
    return sum(shard.last - shard.first for shard in shards)


def _progress_bar(total: int, done: int, description: str, rank: int) -> tqdm:
    # in the first process `disable` stays unset, so that the environment's TQDM_DISABLE counts
    options = {}
    if rank > 0:
        options["disable"] = True
    return tqdm(total=total, initial=done, desc=description, unit="row", **options)


def _is_hopeless(failed: int, shard_size: int) -> bool:
    """Whether a shard of nothing but so many failures is the fault of a model or a server, not of its rows."""
    if failed == shard_size and failed > 1:
        return True
    return failed >= HOPELESS


# shards
@dataclass(frozen=True)
class Shard:
    """The results of some rows of a job, on the disk.

    Args:
        out (`Path`): folder of the job.
        first, last (`int`): the number of its first row, and that behind its last.
        job (`str`): digest of the job's manifest.
    """

    out: Path
    first: int
    last: int
    job: str

    @property
    def path(self) -> Path:
        """The file of its arrays."""
        return self.out / f"rows-{self.first:09d}.safetensors"

    @property
    def errors_path(self) -> Path:
        """The file of the rows that failed, if any did."""
        return self.path.with_suffix(".errors.json")

    def is_due(self, retry_failed: bool) -> bool:
        """Whether it has to be made, or made again; damage is reported on stderr."""
        if not self.path.exists():
            return True
        if retry_failed and self.errors_path.exists():
            return True

        # a copy that was cut short has the name of a whole one
        try:
            self.read()
        except ValueError as error:
            print(f"{error} It is made again.", file=sys.stderr, flush=True)
            return True
        return False

    def write(self, arrays: dict[str, np.ndarray], errors: list[dict]):
        """Writes its arrays, and what is to be said of rows that failed."""
        # the errors come first: a shard that is present says that its rows are done with
        if errors:
            write_json(self.errors_path, errors)
        else:
            # there may be some of an attempt that was killed, or is repeated
            self.errors_path.unlink(missing_ok=True)

        notes = {name: _digest(array) for name, array in arrays.items()}
        write_arrays(self.path, arrays, {**notes, "job": self.job})

    def read(self, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Its arrays by name, of which `row` is always one.

        Raises:
            ValueError: the shard is damaged, lacks rows, or belongs to another job; the message names it.
        """
        if names is not None:
            names = {"row", *names}

        arrays, notes = read_arrays(self.path, names)
        if notes.get("job") != self.job or "row" not in arrays:
            raise ValueError(f"{self.path} does not belong to this job.")

        for name, array in arrays.items():
            if notes.get(name) != _digest(array):
                raise ValueError(f"{self.path} is damaged: its array {name!r} is not what was written.")
            if len(array) != len(arrays["row"]):
                raise ValueError(f"{self.path} is damaged: {len(array)} {name!r} for {len(arrays['row'])} rows.")

        # every row either has a result or failed
        rows = arrays["row"].tolist()
        for error in self.read_errors():
            rows.append(error["row"])
        if sorted(rows) != list(range(self.first, self.last)):
            raise ValueError(f"{self.path} holds {len(rows)} rows, not {self.last - self.first} from {self.first} on.")
        return arrays

    def read_finished(self, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """As `read`, of a job that is finished."""
        try:
            return self.read(names)
        except ValueError as error:
            raise ValueError(f"{error} Run the job again: it makes this shard anew.") from error

    def read_errors(self) -> list[dict]:
        """The rows that failed."""
        return _read_errors(self.errors_path) if self.errors_path.exists() else []


def _spans(rows: int, shard_size: int) -> list[tuple[int, int]]:
    """`(first, last)` of each shard: the number of its first row, and that behind its last."""
    return [(first, min(first + shard_size, rows)) for first in range(0, rows, shard_size)]


def _job_of(manifest: dict) -> str:
    """A digest of everything that decides a job's results."""
    return fingerprint([json.dumps(by_content(manifest), sort_keys=True)])


def _digest(array: np.ndarray) -> str:
    """A digest of an array: of its type, shape and values."""
    digest = hashlib.blake2b(f"{array.dtype}{array.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _read_errors(path: Path) -> list[dict]:
    """A shard's rows that failed: `row`, its `key`, and the `reason`."""
    errors = read_json(path)
    try:
        for error in errors:
            error["row"], error["key"], error["reason"]
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a list of rows that failed; run the job again.") from error
    return errors


# what a job has written
def read_job(out, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The results of a finished job in the order of its rows.

    Args:
        out (`str` or `Path`): folder of the job.
        names (`Sequence[str]`, *optional*): which arrays to read; all by default.

    Returns:
        `dict[str, np.ndarray]`: the arrays `[n, ...]` of the n rows that did not fail, and `row` `[n]`, their numbers.
        If all rows failed there is only `row`.

    Raises:
        ValueError: there is no job, it is not finished (the message says how far it came), or a shard is damaged (the
            message names it; the job makes it again).
    """
    results = []
    for shard in finished_shards(out):
        arrays = shard.read_finished(names)
        if len(arrays["row"]):
            results.append(arrays)
    return _concatenated(results)


def read_errors(out) -> list[dict]:
    """The rows of a job that failed so far: `row`, its `key`, and the `reason`."""
    out = to_path(out)
    if not out.exists():
        return []

    # in the order of the rows; not `glob`, which takes brackets in the folder's own name for a pattern
    names = sorted(path.name for path in out.iterdir())
    errors = []
    for name in names:
        if name.startswith("rows-") and name.endswith(".errors.json"):
            errors += _read_errors(out / name)
    return errors


def read_manifest(out) -> dict:
    """What a job was made from: `rows`, their `fingerprint`, `shard_size` and `settings`.

    Raises:
        ValueError: there is no job, or its manifest is damaged; the message names it.
    """
    path = to_path(out) / MANIFEST
    if not path.exists():
        raise ValueError(f"{out} holds no job: it has no {MANIFEST}.")

    # somebody else's program may have a file of this name
    manifest = read_json(path)
    if not isinstance(manifest, dict) or not {"rows", "fingerprint", "shard_size", "settings"} <= manifest.keys():
        raise ValueError(f"{path} is not the manifest of a job; run the job again.")
    return manifest


def finished_shards(out) -> list["Shard"]:
    """All shards of a finished job.

    Raises:
        ValueError: there is no job, or it is not finished; the message says how far it came.
    """
    out = to_path(out)
    manifest = read_manifest(out)
    job = _job_of(manifest)
    shards = [Shard(out, first, last, job) for first, last in _spans(manifest["rows"], manifest["shard_size"])]

    # a shard that is present is whole: it was moved into its place when it was
    missing = [shard for shard in shards if not shard.path.exists()]
    if missing:
        raise ValueError(
            f"{out} is not finished: {len(missing)} of {len(shards)} shards are missing; run the job again."
        )
    return shards


def _concatenated(results: list[dict]) -> dict[str, np.ndarray]:
    """The arrays of several results, each as one; of none there is an empty `row`."""
    if not results:
        return {"row": np.zeros(0, np.int64)}

    arrays = {}
    for name in results[0]:
        arrays[name] = np.concatenate([result[name] for result in results])
    return arrays


# manifests
def check_manifest(path: Path, manifest: dict):
    """Writes what a job is made from, or, where that was written before, makes sure that it is the same.

    A manifest that cannot be read is reported on stderr and written anew: shards know by themselves whether they
    belong to the job.

    Args:
        path (`Path`): the manifest's file.
        manifest (`dict`): whatever decides the result; JSON.

    Raises:
        ValueError: it is not the same; the message says what differs.
    """
    if not path.exists():
        write_json(path, manifest)
        return

    # a damaged manifest is no reason to refuse the job
    try:
        previous = read_json(path)
        if not isinstance(previous, dict):
            raise ValueError(f"{path} cannot be read: it is not an object.")
    except ValueError as error:
        print(f"{error} It is written anew.", file=sys.stderr, flush=True)
        write_json(path, manifest)
        return

    # all that differs is said at once
    differences = []
    for key in manifest:
        if not _are_same(previous.get(key), manifest[key]):
            differences.append(_difference(key, previous.get(key), manifest[key]))
    if differences:
        raise ValueError(
            f"{path} describes another job ({'; '.join(differences)}); choose another place or remove it."
        )


def by_content(settings):
    """Settings as they would be read back, in which a checkpoint `name@digest` is its digest alone.

    A model is what its files hold: in another folder, or under another name, it is the same one.

    Args:
        settings: plain values, nested in any way.

    Example:

    ```python
    by_content({"model": "embedder@0123456789abcdef", "dims": (1, 2)})  # {"model": "0123456789abcdef", "dims": [1, 2]}
    ```
    """
    if isinstance(settings, dict):
        return {str(key): by_content(value) for key, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return list(map(by_content, settings))
    if isinstance(settings, str):
        return _NAME.sub("", settings)
    return settings


def _are_same(previous, current) -> bool:
    return by_content(previous) == by_content(current)


def _difference(name: str, previous, current) -> str:
    """What differs, in words, down to the single setting."""
    # a setting that only one side has is None on the other
    if not isinstance(previous, dict) or not isinstance(current, dict):
        return f"{name}: {previous} there, {current} now"

    differences = []
    for key in {**previous, **current}:
        if not _are_same(previous.get(key), current.get(key)):
            differences.append(_difference(f"{name}.{key}", previous.get(key), current.get(key)))
    return "; ".join(differences)
