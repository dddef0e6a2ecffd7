"""Evaluation on pairs of one's own: each data set of a file of rows is a retrieval task."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..data.copies import Identity, identities_of
from ..data.item_sources import read_items
from ..data.readers import read_rows
from ..data.schema import Example, Item, to_example
from .tasks import Task

BACKWARDS = ", backwards"  # after the name of a task whose queries are the answers


class Pool:
    """Distinct items, numbered as they come: what is one by its identity is one item.

    Args:
        identities (`dict[Item, tuple]`): of all items there may be, from [`~unime.data.copies.identities_of`].

    Attributes:
        items (`list[Item]`): each under its first spelling.
    """

    def __init__(self, identities: dict[Item, Identity]):
        self.identities = identities
        self.items: list[Item] = []
        self._numbers: dict[Identity, int] = {}

    def number(self, item: Item) -> int:
        """The item's number; a new one is added."""
        identity = self.identities[item]
        if identity not in self._numbers:
            self._numbers[identity] = len(self.items)
            self.items.append(item)
        return self._numbers[identity]

    def find(self, item: Item) -> int | None:
        """The item's number, or None if there is no such item."""
        return self._numbers.get(self.identities[item])


def read_pairs(
    data,
    names: list[str] | None = None,
    image_root=None,
    corpus=None,
    both_ways: bool = False,
    columns=None,
    allow_urls: bool = False,
) -> list[Task]:
    """Reads rows of queries and positives as retrieval tasks, one for each `dataset`.

    Rows with equal queries are one query with several right answers, and equal answers are one candidate. Negatives
    of the rows are not used.

    Args:
        data (`str` or `Path`): whatever [`~unime.data.readers.read_rows`] takes.
        names (`list[str]`, *optional*): only these data sets.
        image_root (`str` or `Path`, *optional*): where image paths of the rows start; by default the folder of `data`.
        corpus (`str` or `Path`, *optional*): the candidates of every query, as
            [`~unime.data.item_sources.read_items`] takes them; by default the positives of the data set.
        both_ways (`bool`, defaults to `False`): also look for the queries, given the answers.
        columns, allow_urls (*optional*): as in [`~unime.data.readers.read_rows`].

    Returns:
        `list[Task]`: whose kind says what is looked for with what, such as `"text to image"`.

    Raises:
        ValueError: a row cannot be used, or a positive is not in the corpus; the message names file and row.

    Example:

    ```python
    tasks = read_pairs("held-out.jsonl", both_ways=True)
    ```
    """
    rows = read_rows(data, image_root, subsets=names, columns=columns, allow_urls=allow_urls)
    examples = list(map(to_example, rows))
    documents = []
    if corpus is not None:
        documents = [item for _, item in read_items([str(corpus)])]

    # files are looked at once, for all data sets
    items = list(documents)
    for example in examples:
        items += [example.query, example.positive]
    identities = identities_of(items)

    rows_by_dataset: dict[str, list[tuple[int, Example]]] = {}
    for number, example in enumerate(examples, 1):
        name = example.dataset or Path(data).stem
        rows_by_dataset.setdefault(name, []).append((number, example))

    tasks = []
    for name, rows in rows_by_dataset.items():
        queries, answers, pairs = _numbered(rows, identities, documents, f"{data}", corpus)
        tasks.append(_task(name, queries.items, answers.items, pairs, len(rows)))

        # of a corpus, only what answers a query has queries of its own
        if both_ways:
            tasks.append(_backwards(name, queries.items, answers.items, pairs, len(rows)))
    return tasks


def _numbered(
    rows: Sequence[tuple[int, Example]], identities: dict[Item, Identity], documents: Iterable[Item], data: str, corpus
) -> tuple[Pool, Pool, list[tuple[int, int]]]:
    """The distinct queries and candidates of a data set, and the pairs of their numbers, one for each row."""
    queries = Pool(identities)
    answers = Pool(identities)
    for document in documents:
        answers.number(document)

    pairs = []
    for number, example in rows:
        # without a corpus, the positives are the candidates
        find = answers.number if corpus is None else answers.find
        answer = find(example.positive)
        if answer is None:
            positive = example.positive.image or example.positive.text
            raise ValueError(f"{data}, good row {number}: its positive {positive!r} is not in {corpus}.")
        pairs.append((queries.number(example.query), answer))
    return queries, answers, pairs


def _task(name: str, queries: list[Item], answers: list[Item], pairs: list[tuple[int, int]], rows: int) -> Task:
    """The task of finding the answers of each query."""
    relevant: list[dict[int, None]] = [{} for _ in queries]
    for query, answer in pairs:
        relevant[query][answer] = None

    task = Task(name, f"{_kind_of(queries)} to {_kind_of(answers)}", queries, answers, None, list(map(list, relevant)))
    if len(queries) < rows:
        task.notes.append(f"{rows} rows have {len(queries)} distinct queries")
    return task


def _backwards(name: str, queries: list[Item], answers: list[Item], pairs: list[tuple[int, int]], rows: int) -> Task:
    """The task of finding the queries of each answer."""
    # an answer becomes a query where it answers something; they are numbered as they come
    number_of = {}
    turned = []
    for query, answer in pairs:
        number = number_of.setdefault(answer, len(number_of))
        turned.append((number, query))

    right_answers = [answers[answer] for answer in number_of]
    return _task(f"{name}{BACKWARDS}", right_answers, queries, turned, rows)


def _kind_of(items: Sequence[Item]) -> str:
    """What most of the items are made of."""
    kinds = [item.modality for item in items]
    return max(dict.fromkeys(kinds), key=kinds.count)
