"""Engines: who works on which shard of a job. Results are the same bytes with each of them.

Without an engine, the processes of a launch take shards in turn. [`RayEngine`] gives them to the workers of a Ray
cluster, which may die and join while the job runs; the job itself, and whatever is written, stays in one process.
"""

import contextlib
import hashlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

from .notices import is_quiet, notice
from .workers import ShardWorker

ATTEMPTS = 3  # of a shard, and of workers in a row that die before they can work
PATIENCE = 1.0  # seconds after which the cluster is looked at again


class Outcome(NamedTuple):
    """What became of a shard.

    Args:
        shard: as it was given.
        results (`list[dict]`), errors (`list[dict]`): see [`~unime.jobs.workers.ShardWorker.run`].
        fault (`str`, *optional*): why there is nothing, although it was tried several times.
    """

    shard: object
    results: list[dict]
    errors: list[dict]
    fault: str | None = None


def open_engine(settings) -> AbstractContextManager:
    """The engine that the settings of a command name, for a `with` block; None for `local`.

    Args:
        settings: has the fields of [`~unime.jobs.choices.EngineSettings`].

    Raises:
        ValueError: Ray is not installed, there is no cluster at the address, or an option needs Ray.

    Example:

    ```python
    with open_engine(EngineSettings("ray", num_workers=2)) as engine:
        embed("outputs/embeddings", items, embedder, "document", engine=engine)
    ```
    """
    if settings.engine == "ray":
        return RayEngine(settings.num_workers, settings.gpus_per_worker, settings.address)

    # whoever names a cluster means it
    for name in ("num_workers", "gpus_per_worker", "address"):
        if getattr(settings, name) is not None:
            raise ValueError(f"`{name}` is a setting of Ray: add --engine ray.")
    return contextlib.nullcontext()


def work_locally(worker: ShardWorker, shards: Iterable, rows_of: Callable) -> Iterator[Outcome]:
    """Does shards in this process, one after the other; what the worker needs is loaded for the first of them."""
    ready = None
    for shard in shards:
        if ready is None:
            ready = worker.prepared()
        yield Outcome(shard, *ready.run(rows_of(shard), shard.first))


@dataclass
class _Attempt:
    """A shard that is to be done, and how often that has gone wrong."""

    shard: object
    faults: int = 0


class RayEngine:
    """A pool of workers (actors) on a Ray cluster, each of which loads a model once.

    A worker that dies is replaced, and its shard done again; a shard that fails three times is reported, and the rest
    goes on. Workers need the package, and the checkpoints and pictures under the same paths, as on a shared disk. What
    they make comes back to this process, which writes it.

    Args:
        num_workers (`int`, *optional*): how many; by default as many as the cluster has room for, also while it grows.
        gpus_per_worker (`float`, *optional*): by default 1 where the cluster has GPUs, else 0.
        address (`str`, *optional*): of a running cluster, `"auto"` for the one of this machine; by default one is
            started on this machine, and ends with this process.

    Raises:
        ValueError: Ray is not installed, or there is no cluster at the address.

    Example:

    ```python
    with RayEngine(num_workers=2) as engine:
        run_job("outputs/lengths", texts, lengths, settings={}, engine=engine)
    ```
    """

    def __init__(
        self, num_workers: int | None = None, gpus_per_worker: float | None = None, address: str | None = None
    ):
        try:
            import ray
        except ImportError as error:
            raise ValueError("the engine needs Ray: install unime with its extra [ray].") from error

        self.ray = ray
        self.num_workers = num_workers
        self.gpus_per_worker = gpus_per_worker
        self._connect(address)

        self.actors = []
        self.deaths = 0  # of workers in a row that could not even begin

    def __enter__(self) -> "RayEngine":
        return self

    def __exit__(self, *_):
        """Ends the workers; a cluster that was started here ends with the process."""
        for actor in self.actors:
            self.ray.kill(actor)
        self.actors = []

    def run(self, worker: ShardWorker, shards: Iterable, rows_of: Callable) -> Iterator[Outcome]:
        """Does shards in the workers.

        Args:
            worker ([`~unime.jobs.workers.ShardWorker`]): what is to be done; it is pickled.
            shards: each has `first`, the number of its first row.
            rows_of: maps a shard to its rows, when a worker is free for them.

        Yields:
            [`Outcome`] of each shard, in the order in which they are done.

        Raises:
            Exception: what `prepare` raises in a worker.
            RuntimeError: workers die again and again before they can work.
        """
        task, preparation = self._shared(worker)
        waiting = deque(map(_Attempt, shards))
        idle = []
        running = {}  # what a worker is asked for -> the worker, and its attempt; None while it gets ready

        # workers of an earlier job go on with this one
        for actor in self.actors:
            running[actor.get_ready.remote(task, preparation)] = (actor, None)

        while waiting or any(attempt is not None for _, attempt in running.values()):
            # nodes may have joined, and workers died
            for actor in self._new_actors(len(waiting), len(running) + len(idle)):
                running[actor.get_ready.remote(task, preparation)] = (actor, None)

            # rows are read when somebody is free for them, so that few are in memory
            while idle and waiting:
                actor = idle.pop()
                attempt = waiting.popleft()
                answer = actor.run.remote(rows_of(attempt.shard), attempt.shard.first)
                running[answer] = (actor, attempt)

            # not for ever: the cluster is looked at again
            done, _ = self.ray.wait(list(running), num_returns=1, timeout=PATIENCE)
            for answer in done:
                actor, attempt = running.pop(answer)
                outcome = self._outcome(answer, actor, attempt, waiting)
                if actor in self.actors:
                    idle.append(actor)
                if outcome is not None:
                    yield outcome

    def _outcome(self, answer, actor, attempt: _Attempt | None, waiting: deque) -> Outcome | None:
        """What a worker's answer says of its shard; None where it only got ready, or the shard is tried again."""
        errors = self.ray.exceptions
        try:
            results = self.ray.get(answer)
        except errors.RayTaskError as error:
            # without its model, no worker can do anything
            if attempt is None:
                raise error.cause from error
            reason = f"{type(error.cause).__name__}: {error.cause}"
        except errors.RayError as error:
            self._forget(actor)
            reason = f"its worker died ({type(error).__name__})"
            if attempt is None:
                return self._count_death(reason)
        else:
            self.deaths = 0
            return None if attempt is None else Outcome(attempt.shard, *results)

        # a shard may be at fault, or the machine it was done on
        attempt.faults += 1
        if attempt.faults < ATTEMPTS:
            notice(f"rows from {attempt.shard.first} on: {reason}; they are done again")
            waiting.appendleft(attempt)
            return None
        return Outcome(attempt.shard, [], [], f"{reason}, {ATTEMPTS} times")

    def _count_death(self, reason: str):
        """Ends the job where workers die before they can work, again and again."""
        self.deaths += 1
        if self.deaths >= ATTEMPTS:
            raise RuntimeError(f"{self.deaths} workers in a row died while they loaded the model: {reason}")

    def _forget(self, actor):
        """Lets go of a worker that does not answer; the next round starts another."""
        with contextlib.suppress(Exception):  # it may be dead in any way
            self.ray.kill(actor)
        self.actors.remove(actor)

    # the cluster

    def _connect(self, address: str | None):
        """Joins the cluster at an address, or starts one; one that this process has joined already is kept."""
        if self.ray.is_initialized():
            return

        options = {"address": address or "local", "log_to_driver": not is_quiet(), "logging_level": "error"}
        if address is None:
            # more workers than cores may be asked for, and are better slow than never started
            options["num_cpus"] = max(os.cpu_count() or 1, self.num_workers or 1)
            options["include_dashboard"] = False
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # workers without GPUs see what they see
        try:
            self.ray.init(**options)
        except ConnectionError as error:
            raise ValueError(f"there is no Ray cluster at {address!r}; start one with `ray start --head`.") from error

    def _shared(self, worker: ShardWorker):
        """The worker in the cluster's memory, and a digest of its preparation, by which two jobs share a model."""
        preparation = self.ray.cloudpickle.dumps(worker.prepare)
        return self.ray.put(worker), hashlib.blake2b(preparation, digest_size=16).hexdigest()

    def _new_actors(self, waiting: int, present: int) -> list:
        """Workers that the cluster has room for, and the job something to do."""
        gpus = self._gpus()
        wanted = self.num_workers or self._room(gpus)
        missing = min(wanted, waiting + present) - present

        # a worker that dies is not restarted by Ray: its shard is given to another here
        actor_class = self.ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0)(_RayWorker)
        actors = [actor_class.remote(os.getcwd(), list(sys.path)) for _ in range(missing)]
        self.actors += actors
        return actors

    def _gpus(self) -> float:
        if self.gpus_per_worker is not None:
            return self.gpus_per_worker
        return 1 if self.ray.cluster_resources().get("GPU") else 0

    def _room(self, gpus: float) -> int:
        """How many workers fit on the nodes that are there now."""
        count = 0
        for node in self.ray.nodes():
            if node["Alive"]:
                resources = node["Resources"]
                fit = resources.get("CPU", 0)

                # a node of many cores and few GPUs has room for few workers
                if gpus:
                    fit = min(fit, resources.get("GPU", 0) / gpus)
                count += int(fit)
        return max(count, 1)


class _RayWorker:
    """What runs in an actor: a worker that keeps its model for the next job."""

    def __init__(self, folder: str, path: list[str]):
        # relative paths are meant as in the process that started the job
        if os.path.isdir(folder):
            os.chdir(folder)
        sys.path += [entry for entry in path if entry not in sys.path]

        self.preparation = None
        self.prepared = None
        self.worker = None

    def get_ready(self, worker: ShardWorker, preparation: str):
        """Loads what a job needs, unless the job before needed the same."""
        if preparation != self.preparation:
            self.prepared = None  # two models may not fit
            if worker.prepare is not None:
                self.prepared = worker.prepare()
            self.preparation = preparation
        self.worker = worker.with_prepared(self.prepared)

    def run(self, rows, first: int):
        return self.worker.run(rows, first)
