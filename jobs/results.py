"""What a finished job has written, read from its shards as it is needed: never one array in memory."""

from collections import OrderedDict
from collections.abc import Iterator

import numpy as np

from ..files.addresses import to_path
from ..files.writing import mapped_array
from .shards import finished_shards

OPEN = 32  # shards that are mapped at a time
PIECE = 2**26  # bytes of a shard's rows that are read at a time


class JobResults:
    """The arrays of a finished job by name, `results["embeddings"]`, each a [`StoredArray`].

    Args:
        out (`str` or `Path`): folder of the job.

    Attributes:
        present (bool array `[n]`): which rows did not fail.
        names (`list[str]`): of the arrays; none where every row failed.

    Raises:
        ValueError: there is no job, it is not finished, or a shard is damaged; the message names it.

    Example:

    ```python
    embeddings = JobResults("outputs/embeddings")["embeddings"]
    embeddings[100:200] @ embeddings[7]  # [100]
    ```
    """

    def __init__(self, out):
        self.out = to_path(out)
        self.shards = finished_shards(out)
        self.present = np.zeros(self.shards[-1].last if self.shards else 0, bool)
        self._arrays = {}

        # every shard is read once, so that damage is found now
        for shard in self.shards:
            arrays = shard.read_finished()
            self.present[arrays.pop("row")] = True
            for name, array in arrays.items():
                self._arrays.setdefault(name, (array.shape[1:], array.dtype))

    @property
    def names(self) -> list[str]:
        return list(self._arrays)

    def __getitem__(self, name: str) -> "StoredArray":
        shape, dtype = self._arrays[name]
        return StoredArray(name, self.shards, self.present, shape, dtype)


class StoredArray:
    """One array of a finished job, `[n, ...]`, with a row for each row of the job; zero for those that failed.

    It is sliced and indexed as an array in memory, and what comes out is one.

    Args:
        name (`str`): of the array.
        shards (`list`): of the job.
        present (bool array `[n]`): which rows did not fail.
        row_shape (`tuple`), dtype: of a row.
    """

    def __init__(self, name: str, shards: list, present: np.ndarray, row_shape: tuple, dtype):
        self.name = name
        self.shards = shards
        self.present = present
        self.shape = (len(present), *row_shape)
        self.dtype = dtype

        self.starts = np.array([shard.first for shard in shards])
        self._mapped = OrderedDict()

    def __getstate__(self) -> dict:
        # another process maps the files itself
        return {**self.__dict__, "_mapped": OrderedDict()}

    def __len__(self) -> int:
        return len(self.present)

    def __getitem__(self, key) -> np.ndarray:
        """Rows by a slice, an array of their numbers or a mask, or one row by its number."""
        if isinstance(key, slice):
            return self._rows(np.arange(*key.indices(len(self))))
        if np.ndim(key) == 0:
            return self._rows(np.array([key]))[0]

        key = np.asarray(key)
        return self._rows(np.flatnonzero(key) if key.dtype == bool else key.astype(np.int64))

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows in order, those of a shard at a time."""
        for shard in self.shards:
            yield self[shard.first : shard.last]

    def _rows(self, rows: np.ndarray) -> np.ndarray:
        result = np.zeros((len(rows), *self.shape[1:]), self.dtype)
        for places, values in self.pieces(rows):
            result[places] = values
        return result

    def pieces(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows in the order in which they lie on the disk, `PIECE` bytes of a shard at a time; not those that failed.

        Args:
            rows (array `[r]`): their numbers, in any order.

        Yields:
            `(places, values)`: places among `rows`, and the values of the rows that stand there.
        """
        order = np.argsort(rows, kind="stable")

        # rows that failed are in no shard
        order = order[self.present[rows[order]]]
        shard_of = np.searchsorted(self.starts, rows[order], side="right") - 1

        # the same row may be asked for a million times, so that even those of one shard are many
        row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:]))
        most = max(1, PIECE // row_bytes)

        # a shard is mapped once for all of its rows
        for of_shard in np.split(order, np.flatnonzero(np.diff(shard_of)) + 1):
            for start in range(0, len(of_shard), most):
                places = of_shard[start : start + most]
                number = int(np.searchsorted(self.starts, rows[places[0]], side="right")) - 1
                yield places, self._values(number)[self._places_in_shard(number, rows[places])]

    def _places_in_shard(self, number: int, rows: np.ndarray) -> np.ndarray:
        """Where rows stand in their shard, in which failed ones are missing."""
        first = self.starts[number]
        present = self.present[first : self.shards[number].last]
        if present.all():
            return rows - first
        return np.cumsum(present)[rows - first] - 1

    def _values(self, number: int) -> np.ndarray:
        """A shard's array, mapped into memory; the one that was not used for longest is let go."""
        if number in self._mapped:
            self._mapped.move_to_end(number)
            return self._mapped[number]

        # too many open files would meet the system's limit
        values = mapped_array(self.shards[number].path, self.name)
        self._mapped[number] = values
        if len(self._mapped) > OPEN:
            self._mapped.popitem(last=False)
        return values


class SomeRows:
    """Some rows of an array, numbered from zero, without a copy of them.

    Args:
        array: `[n, ...]`, in memory or a [`StoredArray`].
        rows (array `[r]`): numbers of the rows.
    """

    def __init__(self, array, rows: np.ndarray):
        self.array = array
        self.rows = rows
        self.shape = (len(rows), *array.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key) -> np.ndarray:
        return self.array[self.rows[key]]
