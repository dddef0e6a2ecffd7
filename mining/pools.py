"""The distinct queries, candidates and pairs of rows, as columns of numbers; texts and paths stay in the rows."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import chain
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from ..data.copies import Identity, identities_of
from ..data.readers import Findings, read_rows
from ..data.schema import Example, Item, any_entries, items_of, to_dataset, to_item

DIGEST = 16  # bytes that stand for an item
BLOCK = 8192  # rows that are Python objects at a time


class Pair(NamedTuple):
    """A query and a candidate of a pool by their numbers, the data set, and what their own row says of them.

    Args:
        query, positive (`int`): their numbers.
        dataset (`str`): of the row.
        item, query_item (`Item`): the candidate and the query as the row spells them.
        others (`list[Item]`): what is right as well.
        weight (`float`): how much the row counts.
    """

    query: int
    positive: int
    dataset: str
    item: Item
    query_item: Item
    others: list[Item]
    weight: float


def rows_of(config, source, image_root, findings: Findings) -> Dataset:
    """The rows that the settings of mining name, without those that cannot be used.

    Args:
        config ([`~unime.mining.settings.MiningConfig`]): which data sets, splits and columns.
        source (`str` or `Path`): what `config.data` names, or a copy of it.
        image_root (`str` or `Path`, *optional*): where image paths start.
        findings ([`~unime.data.readers.Findings`]): takes rows that cannot be used.

    Raises:
        ValueError: there is no such source, or no row of it can be used.
    """
    return read_rows(
        source,
        image_root,
        config.subsets,
        config.split,
        config.rows_per_subset,
        findings,
        config.columns,
        config.allow_urls,
    )


class Entries(Sequence):
    """A sequence whose entries are made when they are asked for, many at a time.

    Args:
        numbers (array `[n]`): what the entries are made of.
        make: maps some of the numbers to a list of entries.
    """

    def __init__(self, numbers: np.ndarray, make: Callable[[np.ndarray], list]):
        self.numbers = numbers
        self.make = make

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place):
        if isinstance(place, slice):
            return self.make(self.numbers[place])
        return self.make(self.numbers[place : place + 1 or None])[0]

    def __iter__(self) -> Iterator:
        for start in range(0, len(self), BLOCK):
            yield from self[start : start + BLOCK]

    def take(self, places: np.ndarray) -> list:
        """The entries at some places, in their order."""
        return self.make(self.numbers[places])


class Pool:
    """The distinct queries and candidates of some rows, and the distinct pairs of them.

    What tells items apart is a digest of 128 bits of each, so that columns of numbers are all that is held in memory:
    some 200 bytes for each row, and three times as many while they are made.

    Args:
        rows (`datasets.Dataset`): of [`~unime.data.readers.read_rows`]; their negatives do not count.
        near_copies (`int`, *optional*): as `near` in [`~unime.data.copies.identities_of`]; identities are then held
            in memory for all items.

    Attributes:
        queries (`Sequence[Item]`): distinct queries.
        candidates (`Sequence[Item]`): distinct positives, told apart by what they show and say (see
            [`~unime.data.copies.identities_of`]); negatives are drawn from them. Of equal ones the first spelling
            counts.
        pairs (`Sequence[Pair]`): distinct ones, in the order of the rows.
        query_of, positive_of, dataset_of (arrays `[P]`): numbers of each pair's query, candidate and data set.
        datasets (`list[str]`): names by these numbers.
        first_copies (array `[Q]`): for each query, the first that is the same by what it shows and says.
    """

    def __init__(self, rows: Dataset, near_copies: int | None = None):
        self.rows = rows
        columns = _digests(rows, near_copies)
        self.datasets = columns.datasets

        # distinct queries, and pairs of a query, a positive as it is spelt, and a data set
        query_of_row, query_rows = _numbered(columns.queries)
        spelling_of_row, _ = _numbered(columns.positives)
        triples = np.stack([query_of_row, spelling_of_row, columns.dataset_of_row], axis=1)  # [n, 3]
        _, pair_rows = _numbered(triples.view(np.uint8))

        # of equal candidates the first spelling is embedded
        candidate_of_pair, first_pairs = _numbered(columns.positive_identities[pair_rows])
        candidate_rows = pair_rows[first_pairs]

        self.query_of = query_of_row[pair_rows]
        self.positive_of = candidate_of_pair
        self.dataset_of = columns.dataset_of_row[pair_rows]
        self.pair_rows = pair_rows

        # copies of queries, and queries that are candidates too
        query_identities = columns.query_identities[query_rows]
        copy_of_query, first_queries = _numbered(query_identities)
        self.first_copies = first_queries[copy_of_query]
        candidates = columns.positive_identities[candidate_rows]
        excluded = self._excluded_pairs(candidates, query_identities)
        others = self._other_pairs(candidates, query_of_row, columns.identities)
        self.excluded_pairs = np.union1d(excluded, others)

        self.queries = Entries(query_rows, lambda numbers: self._items("query", numbers))
        self.candidates = Entries(candidate_rows, lambda numbers: self._items("positive", numbers))
        self.pairs = self.some_pairs(np.arange(len(pair_rows)))

    @classmethod
    def of(cls, examples: Iterable[Example], near_copies: int | None = None) -> "Pool":
        """The pool of examples that are no data set yet."""
        return cls(to_dataset(examples), near_copies)

    def some_pairs(self, numbers: np.ndarray) -> Sequence[Pair]:
        """Some pairs by their numbers, as a sequence."""
        return Entries(numbers, self._pairs)

    def excluded(self, query: int) -> list[int]:
        """The candidates that cannot be a query's negatives: the query itself, and its positives, also those that a
        copy of the query has; in order."""
        count = len(self.candidates)
        start = self.first_copies[query] * count
        first, last = np.searchsorted(self.excluded_pairs, [start, start + count])
        return (self.excluded_pairs[first:last] - start).tolist()

    def by_dataset(self) -> dict[str, np.ndarray]:
        """The candidates of each data set, by their numbers."""
        return {
            name: np.unique(self.positive_of[self.dataset_of == number]) for number, name in enumerate(self.datasets)
        }

    def _excluded_pairs(self, candidates: np.ndarray, queries: np.ndarray) -> np.ndarray:
        """Each first copy of a query with a candidate that none of its copies may have, as one sorted number."""
        count = len(candidates)

        # a query that is a candidate too would be its own nearest
        candidate_of_query = _places_among(candidates, queries)
        is_candidate = np.flatnonzero(candidate_of_query >= 0)
        themselves = self.first_copies[is_candidate] * count + candidate_of_query[is_candidate]
        positives = self.first_copies[self.query_of] * count + self.positive_of
        return np.unique(np.concatenate([themselves, positives]))

    def _other_pairs(self, candidates: np.ndarray, query_of_row: np.ndarray, identities: dict | None) -> np.ndarray:
        """Each first copy of a query with a candidate that its row names as right, too, as one number."""
        column = self.rows.data.column("other_positives")
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
        rows = np.flatnonzero(lengths)
        queries = self.first_copies[np.repeat(query_of_row[rows], lengths[rows])]

        items = list(chain.from_iterable(self._others(rows)))
        identity_of = identities_of(dict.fromkeys(items)) if identities is None else identities
        digests = _digests_of(identity_of[item] for item in items)
        found = _places_among(candidates, digests)
        return (queries * len(candidates) + found)[found >= 0]

    def _items(self, side: str, rows: np.ndarray) -> list[Item]:
        """The items of one column of some rows."""
        return items_of(self.rows.data.column(side), rows)

    def _others(self, rows: np.ndarray) -> list[list[Item]]:
        """What is right as well, for some rows."""
        lists = self.rows.data.column("other_positives").take(pa.array(rows))
        if not any_entries(lists):
            return [[] for _ in rows]
        return [list(map(to_item, others)) for others in lists.to_pylist()]

    def _pairs(self, numbers: np.ndarray) -> list[Pair]:
        rows = self.pair_rows[numbers]
        columns = (
            self.query_of[numbers].tolist(),
            self.positive_of[numbers].tolist(),
            [self.datasets[number] for number in self.dataset_of[numbers]],
            self._items("positive", rows),
            self._items("query", rows),
            self._others(rows),
            self.rows.data.column("weight").take(pa.array(rows)).to_pylist(),
        )
        return list(map(Pair, *columns))


class _Digests(NamedTuple):
    """What tells the items of `n` rows apart: uint8 `[n, DIGEST]` each; and the numbers and names of data sets.

    `identities` are those of all items, where near copies were looked for.
    """

    queries: np.ndarray
    positives: np.ndarray
    query_identities: np.ndarray
    positive_identities: np.ndarray
    dataset_of_row: np.ndarray  # [n]
    datasets: list[str]
    identities: dict[Item, Identity] | None


def _digests(rows: Dataset, near_copies: int | None) -> _Digests:
    """Reads all rows once, a block at a time."""
    # near copies are told by comparing all pictures with each other
    identities = None
    if near_copies is not None:
        items = {}
        for queries, positives, _ in _blocks(rows):
            items |= dict.fromkeys([*queries, *positives])
        for others in rows.data.column("other_positives").to_pylist():
            items |= dict.fromkeys(map(to_item, others or ()))
        identities = identities_of(items, near_copies)

    columns = ([], [], [], [])
    datasets = {}
    dataset_of_row = []
    for queries, positives, names in _blocks(rows):
        identity_of = identities or identities_of(dict.fromkeys([*queries, *positives]))
        sides = (
            queries,
            positives,
            map(identity_of.__getitem__, queries),
            map(identity_of.__getitem__, positives),
        )
        for column, entries in zip(columns, sides):
            column.append(_digests_of(entries))

        # data sets are numbered as they come
        dataset_of_row.append(np.array([datasets.setdefault(name, len(datasets)) for name in names], np.int64))

    empty = np.zeros((0, DIGEST), np.uint8)
    joined = [np.concatenate([empty, *column]) for column in columns]
    return _Digests(*joined, np.concatenate([np.zeros(0, np.int64), *dataset_of_row]), list(datasets), identities)


def _blocks(rows: Dataset) -> Iterator[tuple[list[Item], list[Item], list[str]]]:
    """Queries, positives and names of the data sets of some rows at a time."""
    table = rows.data.select(["query", "positive", "dataset"])
    for batch in table.to_batches(max_chunksize=BLOCK):
        queries, positives, names = batch.columns
        yield items_of(queries), items_of(positives), names.to_pylist()


def _digests_of(entries: Iterable[Item | Identity]) -> np.ndarray:
    """A digest of each entry: uint8 `[n, DIGEST]`."""
    # a representation says everything of an item, and keeps its parts apart
    digests = [blake2b(repr(entry).encode(), digest_size=DIGEST).digest() for entry in entries]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST)


def _numbered(digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As [`numbered`], of digests `[n, bytes]`."""
    return numbered(_binary(digests))


def _places_among(digests: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Where each of the others stands among digests that differ: int64, -1 where it is none of them."""
    places = pc.index_in(_binary(others), value_set=_binary(digests))
    return pc.fill_null(places, -1).to_numpy().astype(np.int64)


def _binary(digests: np.ndarray) -> pa.FixedSizeBinaryArray:
    """Digests `[n, bytes]` as Arrow has them."""
    count, width = digests.shape
    buffer = pa.py_buffer(np.ascontiguousarray(digests))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), count, [None, buffer])


def numbered(entries: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Distinct entries, numbered in the order in which they come.

    Args:
        entries (`pyarrow.Array` `[n]`): of any kind that has equality.

    Returns:
        `(numbers, firsts)`: the number of each entry `[n]`, and the first place of each number; both int64.
    """
    numbers = entries.dictionary_encode().indices.to_numpy().astype(np.int64)

    # a number is new where it is above all before it
    before = np.concatenate([[-1], np.maximum.accumulate(numbers)])[: len(numbers)]
    return numbers, np.flatnonzero(numbers > before)
