"""Who does the rows of a shard, wherever it runs: in this process, or in a worker of an engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .faults import is_machine_fault


@dataclass(frozen=True)
class ShardWorker:
    """Does the rows of a shard, and finds out which of them cannot be done.

    Args:
        work: maps rows to arrays with as many rows each; called as `work(rows)`, or, where there is a `prepare`, as
            `work(rows, prepared)`.
        failures (`tuple`): errors that are the fault of single rows; any other is raised.
        prepare (*optional*): called once before the first shard: to load a model.
    """

    work: Callable[..., dict[str, np.ndarray]]
    failures: tuple
    prepare: Callable[[], object] | None = None

    def prepared(self) -> "ShardWorker":
        """The same, when what it needs is loaded."""
        if self.prepare is None:
            return self
        return self.with_prepared(self.prepare())

    def with_prepared(self, prepared) -> "ShardWorker":
        """The same, with what its `prepare` has made or would make."""
        if self.prepare is None:
            return self
        return ShardWorker(lambda rows: self.work(rows, prepared), self.failures)

    def run(self, rows: Sequence, start: int) -> tuple[list[dict], list[dict]]:
        """What becomes of some rows.

        Args:
            rows (`Sequence`): of the shard.
            start (`int`): the number of the first of them.

        Returns:
            `(results, errors)`: the arrays of the rows that succeed, in order and in as few calls of `work` as that
            takes; and of each row that fails its number `row` and the `reason`.
        """
        try:
            return [self._arrays(rows, start)], []
        except self.failures as error:
            # on a full disk every row would fail
            if is_machine_fault(error):
                raise
            reason = str(error)

        if len(rows) == 1:
            return self._run_again(rows, start, reason)

        # halves: a single bad row of a thousand is found in some twenty calls
        half = len(rows) // 2
        results, errors = self.run(rows[:half], start)
        more_results, more_errors = self.run(rows[half:], start + half)
        return results + more_results, errors + more_errors

    def _run_again(self, rows: Sequence, start: int, first_reason: str) -> tuple[list[dict], list[dict]]:
        """A second try of a single row, which may have met a server that did not answer."""
        try:
            return [self._arrays(rows, start)], []
        except self.failures as error:
            if is_machine_fault(error):
                raise
            reason = str(error)

            # the first reason may be the row's, and the second the server's
            if reason != first_reason:
                reason = f"{first_reason}; tried again: {reason}"
            reason = reason or repr(error)

        return [], [{"row": start, "reason": reason}]

    def _arrays(self, rows: Sequence, start: int) -> dict[str, np.ndarray]:
        """What `work` makes of the rows, and their numbers."""
        arrays = {"row": np.arange(start, start + len(rows))}
        for name, array in self.work(rows).items():
            array = np.ascontiguousarray(array)  # safetensors writes nothing else

            # which result belongs to which row is known by its place alone
            if len(array) != len(rows):
                raise RuntimeError(
                    f"{len(array)} results for {len(rows)} rows from row {start} on, in the array {name!r}; "
                    "there must be one for each row."
                )
            arrays[name] = array
        return arrays
