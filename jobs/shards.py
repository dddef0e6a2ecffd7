"""A long job as shards and a manifest: it can be killed at any moment and goes on where it stopped.

Every shard is written whole or not at all, under a name that says which rows it holds; the manifest keeps the
fingerprint of inputs and settings, so that a changed job is refused instead of mixed with old shards. Processes (of
`accelerate launch`, on one machine or several with a shared disk) take shards in turn. A row that fails twice is left
out of the results and kept, with the reason, beside its shard.

A job's folder holds `manifest.json`, `rows-<number of the first row>.safetensors` for each shard, and beside it
`rows-<number>.errors.json` where rows failed.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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

    Raises:
        ValueError: the folder holds another job (the message says what differs), or every row of a shard failed (the
            message gives the first reason).
        RuntimeError: `work` returned arrays with too few or too many rows.

    Example:

    ```python
    def lengths(texts):
        return {"length": np.array([len(text) for text in texts])}

    run_job("outputs/lengths", ["a", "bb", "ccc"], lengths, settings={"unit": "characters"}, shard_size=2)
    read_job("outputs/lengths")["length"]  # array([1, 2, 3])
    ```
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)

    # what decides the result; a folder that was made from something else is refused
    manifest = {
        "rows": len(rows),
        "fingerprint": fingerprint(map(keys, rows)),
        "shard_size": shard_size,
        "settings": settings,
    }
    check_manifest(out / MANIFEST, manifest)

    # a shard is named by the number of its first row; processes take turns
    starts = range(0, len(rows), shard_size)[rank::world_size]
    todo = [start for start in starts if _is_due(out, start, retry_failed)]

    # a model is loaded only if there is anything left to do
    if todo and prepare is not None:
        work = _with_prepared(work, prepare())
    worker = _Worker(work, keys, failures)

    total = _count_rows(starts, shard_size, len(rows))
    done = total - _count_rows(todo, shard_size, len(rows))
    with _progress_bar(total, done, description, rank) as bar:
        for start in todo:
            shard_rows = rows[start : start + shard_size]
            results, errors = worker.run(shard_rows, start)

            # a model or server that is at fault would leave a folder full of errors
            if not results and not spare and _is_hopeless(len(shard_rows), shard_size):
                raise ValueError(f"{description}: all {len(shard_rows)} rows from row {start} on failed; {errors[0]}")

            _write_shard(out, start, _concatenated(results), errors)
            bar.update(len(shard_rows))


def _is_due(out: Path, start: int, retry_failed: bool) -> bool:
    if retry_failed and _errors_path(out, start).exists():
        return True
    return not _shard_path(out, start).exists()


def _with_prepared(work: Callable, prepared) -> Callable:
    return lambda rows: work(rows, prepared)


def _count_rows(starts: Iterable[int], shard_size: int, rows: int) -> int:
    """How many rows the shards have; the last of all is shorter than the others."""
    return sum(min(shard_size, rows - start) for start in starts)


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


def _write_shard(out: Path, start: int, arrays: dict[str, np.ndarray], errors: list[dict]):
    # the errors come first: a shard that is present says that its rows are done with
    if errors:
        write_text(_errors_path(out, start), json.dumps(errors, indent=1, ensure_ascii=False))
    else:
        # there may be some of an attempt that was killed, or is repeated
        _errors_path(out, start).unlink(missing_ok=True)
    write_whole(_shard_path(out, start), lambda path: save_file(arrays, path))


@dataclass(frozen=True)
class _Worker:
    """Does the rows of a shard, and finds out which of them cannot be done."""

    work: Callable[..., dict[str, np.ndarray]]
    keys: Callable[[object], str]
    failures: tuple

    def run(self, rows: Sequence, start: int) -> tuple[list[dict], list[dict]]:
        """The arrays of the rows that succeed, in order and in as few calls of `work` as that takes, and the errors of
        those that fail; `start` is the number of the first row."""
        try:
            return [self._arrays(rows, start)], []
        except self.failures as error:
            reason = str(error)

        if len(rows) == 1:
            return self._run_again(rows, start, reason)

        half = len(rows) // 2
        results, errors = self.run(rows[:half], start)
        more_results, more_errors = self.run(rows[half:], start + half)
        return results + more_results, errors + more_errors

    def _run_again(self, rows: Sequence, start: int, first_reason: str) -> tuple[list[dict], list[dict]]:
        """A second try of a single row, which may have met a server that did not answer."""
        try:
            return [self._arrays(rows, start)], []
        except self.failures as error:
            reason = str(error)
            if reason != first_reason:
                reason = f"{first_reason}; tried again: {reason}"
            reason = reason or repr(error)
        return [], [{"row": start, "key": self.keys(rows[0]), "reason": reason}]

    def _arrays(self, rows: Sequence, start: int) -> dict[str, np.ndarray]:
        """What `work` makes of the rows, and their numbers."""
        arrays = {"row": np.arange(start, start + len(rows))}
        for name, array in self.work(rows).items():
            array = np.ascontiguousarray(array)  # safetensors writes nothing else
            if len(array) != len(rows):
                raise RuntimeError(
                    f"{len(array)} results for {len(rows)} rows from row {start} on, in the array {name!r}; "
                    "there must be one for each row."
                )
            arrays[name] = array
        return arrays


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
        ValueError: there is no job, or it is not finished; the message says how far it came.
    """
    results = []
    for path in _finished_shards(Path(out)):
        arrays = _read_shard(path, names)
        if len(arrays["row"]):
            results.append(arrays)
    return _concatenated(results)


def read_errors(out) -> list[dict]:
    """The rows of a job that failed so far: `row`, its `key`, and the `reason`."""
    errors = []
    for path in sorted(Path(out).glob("rows-*.errors.json")):  # in the order of the rows
        errors += json.loads(path.read_text(encoding="utf-8"))
    return errors


def _finished_shards(out: Path) -> list[Path]:
    """All shards of a finished job."""
    if not (out / MANIFEST).exists():
        raise ValueError(f"{out} holds no job: it has no {MANIFEST}.")
    manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))

    shards = [_shard_path(out, start) for start in range(0, manifest["rows"], manifest["shard_size"])]
    missing = [shard for shard in shards if not shard.exists()]

    if missing:
        raise ValueError(
            f"{out} is not finished: {len(missing)} of {len(shards)} shards are missing; run the job again."
        )
    return shards


def _read_shard(path: Path, names: Sequence[str] | None) -> dict[str, np.ndarray]:
    arrays = {}
    with safe_open(path, "numpy") as file:
        for name in file.keys():  # noqa: SIM118
            if names is None or name == "row" or name in names:
                arrays[name] = file.get_tensor(name)
    return arrays


def _concatenated(results: list[dict]) -> dict[str, np.ndarray]:
    """The arrays of several results, each as one; of none there is an empty `row`."""
    if not results:
        return {"row": np.zeros(0, np.int64)}

    arrays = {}
    for name in results[0]:
        arrays[name] = np.concatenate([result[name] for result in results])
    return arrays


def _shard_path(out: Path, start: int) -> Path:
    return out / f"rows-{start:09d}.safetensors"


def _errors_path(out: Path, start: int) -> Path:
    return _shard_path(out, start).with_suffix(".errors.json")


# manifests
def check_manifest(path: Path, manifest: dict):
    """Writes what a job is made from, or, where that was written before, makes sure that it is the same.

    Args:
        path (`Path`): the manifest's file.
        manifest (`dict`): whatever decides the result; JSON.

    Raises:
        ValueError: it is not the same; the message says what differs.
    """
    if not path.exists():
        write_text(path, json.dumps(manifest, indent=1))
        return

    previous = json.loads(path.read_text(encoding="utf-8"))
    current = json.loads(json.dumps(manifest))  # as it would be read back: tuples are lists
    differences = []
    for key in current:
        if previous.get(key) != current[key]:
            differences.append(_difference(key, previous.get(key), current[key]))
    if differences:
        raise ValueError(
            f"{path} describes another job ({'; '.join(differences)}); choose another place or remove it."
        )


def _difference(name: str, previous, current) -> str:
    """What differs, in words, down to the single setting."""
    # a setting that only one side has is None on the other
    if not isinstance(previous, dict) or not isinstance(current, dict):
        return f"{name}: {previous} there, {current} now"

    differences = []
    for key in {**previous, **current}:
        if previous.get(key) != current.get(key):
            differences.append(_difference(f"{name}.{key}", previous.get(key), current.get(key)))
    return "; ".join(differences)


# files
def write_whole(path: Path, writer: Callable[[Path], object]):
    """Lets `writer` write beside the file and moves the result into place: no reader ever sees half a file.

    Args:
        path (`Path`): the file.
        writer: called with the path that it is to write to.
    """
    # the name is of this process alone, in the same folder: a move within a disk is all or nothing
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    writer(draft)
    os.replace(draft, path)


def write_text(path: Path, text: str):
    """As [`write_whole`], for a text."""
    write_whole(path, lambda draft: draft.write_text(text, encoding="utf-8"))
