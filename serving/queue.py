"""Requests that wait for a model: in a queue of bounded length, which shares out batches of bounded size."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol


class QueueFull(Exception):
    """There is no room for a request now.

    Args:
        seconds (`int`): after which there is likely to be room.
    """

    def __init__(self, seconds: int):
        super().__init__(f"the queue is full; try again in {seconds} s.")
        self.seconds = seconds


class Engine(Protocol):
    """What runs a batch. It is called by one thread only."""

    batch_tokens: int

    def run(self, pieces: list) -> list:
        """One result for each piece of a batch, which may come from several requests."""


@dataclass(eq=False)
class Work:
    """A request in the queue.

    Args:
        engine ([`Engine`]): runs it.
        pieces (`Sequence`): what it consists of; each is run as a whole.
        tokens (`Sequence[int]`): what each piece costs.
    """

    engine: Engine
    pieces: Sequence
    tokens: Sequence[int]
    future: Future = field(default_factory=Future)
    results: list = field(default_factory=list)
    started: int = 0  # pieces that were put into a batch

    @property
    def waiting_tokens(self) -> int:
        """What its pieces cost that are in no batch yet."""
        return sum(self.tokens[self.started :])

    def take(self, results: list):
        """Takes the results of its next pieces; the last ones end it."""
        self.results.extend(results)

        # nobody may wait for it any longer
        is_last = len(self.results) == len(self.pieces)
        if is_last and self.future.set_running_or_notify_cancel():
            self.future.set_result(self.results)

    def fail(self, error: Exception):
        """Ends it with an error, and leaves out what has not been run."""
        self.started = len(self.pieces)
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class Batch(NamedTuple):
    """What is run together.

    Args:
        engine ([`Engine`]): runs it.
        shares (`list[tuple[Work, list]]`): requests with those of their pieces that are in the batch.
        tokens (`int`): what all of them cost.
    """

    engine: Engine
    shares: list
    tokens: int


class TokenQueue:
    """A queue whose length, and whose batches, are measured in tokens.

    Nothing waits for a batch to fill: while the model runs one batch, the next one gathers. Every request in turn
    gives a piece to a batch, so that a small request does not wait for the whole of a large one before it.

    Args:
        waiting_tokens (`int`): most tokens that wait; a request beyond that is refused, unless nothing waits.
        observe (`Callable`, *optional*): is told the tokens and the seconds of every batch.

    Example:

    ```python
    queue = TokenQueue(waiting_tokens=100_000)
    future = queue.submit(engine, pieces, [piece.length for piece in pieces])
    results = future.result(timeout=60)
    queue.close()
    ```
    """

    def __init__(self, waiting_tokens: int, observe: Callable[[int, float], None] | None = None):
        self.limit = waiting_tokens
        self.observe = observe
        self._works = {}  # engine -> deque of its requests; the engine whose turn it is comes first
        self._changed = threading.Condition()
        self._is_closed = False
        self._pace = None  # tokens in a second, of late
        self._worker = threading.Thread(target=self._work, name="batches", daemon=True)
        self._worker.start()

    @property
    def is_alive(self) -> bool:
        """Whether requests are worked on."""
        return self._worker.is_alive()

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait now."""
        with self._changed:
            return self._waiting_tokens()

    def submit(self, engine: Engine, pieces: Sequence, tokens: Sequence[int]) -> Future:
        """Puts a request at the end of the queue.

        Args:
            engine ([`Engine`]): runs it.
            pieces (`Sequence`): what it consists of, at least one.
            tokens (`Sequence[int]`): what each piece costs.

        Returns:
            `Future` of the list of results, one a piece. Once it is cancelled, its remaining pieces are not run.

        Raises:
            QueueFull: there is no room.
        """
        work = Work(engine, pieces, tokens)
        with self._changed:
            waiting = self._waiting_tokens()

            # a request larger than the limit is let in where nothing else waits
            if waiting and waiting + work.waiting_tokens > self.limit:
                raise QueueFull(self._seconds(waiting))
            self._works.setdefault(engine, deque()).append(work)
            self._changed.notify()
        return work.future

    def close(self):
        """Ends what waits with an error, and returns once the batch that runs has ended."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._worker.join()

    def _waiting_tokens(self) -> int:
        """Tokens of all requests that somebody waits for."""
        tokens = 0
        for works in self._works.values():
            for work in works:
                if not work.future.cancelled():
                    tokens += work.waiting_tokens
        return tokens

    def _seconds(self, tokens: int) -> int:
        """How long so many tokens are likely to take, in whole seconds."""
        if self._pace is None:
            return 1
        return max(1, math.ceil(tokens / self._pace))

    def _work(self):
        """Runs batches until the queue is closed."""
        while True:
            with self._changed:
                while not self._works and not self._is_closed:
                    self._changed.wait()
                if self._is_closed:
                    break
                batch = self._next_batch()

            # the model runs while requests come in
            if batch.shares:
                self._run_timed(batch)

        # who waits is told, rather than left waiting
        for works in self._works.values():
            for work in works:
                work.fail(RuntimeError("the server is stopping."))

    def _next_batch(self) -> Batch:
        """Takes pieces from the queue, one of each request in turn, as many as fit into a batch."""
        engine = next(iter(self._works))
        works = self._works.pop(engine)
        pieces_of = {}  # work -> its pieces in this batch
        tokens = 0

        while works:
            work = works[0]
            if work.future.done():  # nobody waits for it, or it failed
                works.popleft()
                continue

            # a piece that is too large for any batch is one by itself
            cost = work.tokens[work.started]
            if pieces_of and tokens + cost > engine.batch_tokens:
                break
            pieces_of.setdefault(work, []).append(work.pieces[work.started])
            work.started += 1
            tokens += cost

            works.rotate(-1)
            if work.started == len(work.pieces):
                works.pop()

        # behind the other engines
        if works:
            self._works[engine] = works
        return Batch(engine, list(pieces_of.items()), tokens)

    def _run_timed(self, batch: Batch):
        """Runs a batch, and notes how fast that was."""
        start = time.monotonic()
        self._run(batch.engine, batch.shares)
        seconds = time.monotonic() - start

        # of the latest batches most, as hosts and requests change
        pace = batch.tokens / max(seconds, 1e-6)
        self._pace = pace if self._pace is None else 0.8 * self._pace + 0.2 * pace
        if self.observe is not None:
            self.observe(batch.tokens, seconds)

    def _run(self, engine: Engine, shares: list):
        """Runs the shares of a batch together, and if that fails, each by itself: one must not spoil the others."""
        pieces = []
        for _, share in shares:
            pieces.extend(share)

        try:
            results = engine.run(pieces)
        except Exception as error:  # whoever waits for the request gets it
            if len(shares) == 1:
                shares[0][0].fail(error)
                return
            for share in shares:
                self._run(engine, [share])
            return

        start = 0
        for work, share in shares:
            work.take(results[start : start + len(share)])
            start += len(share)
