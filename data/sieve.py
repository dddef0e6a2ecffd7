"""Items that cannot be read are left out of rows, so that training survives its data."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from .schema import Example, Item


class BadItem(NamedTuple):
    """An item that a model cannot read, and why; or a row that it cannot read as a whole, by its query."""

    item: str
    reason: str


class Sieve:
    """Leaves unreadable items out of rows. Every item is tried once; what was wrong with it is remembered.

    A row without its query or its positive is left out as a whole; without a negative it has one negative less.

    Args:
        read: reads an item in a role, `read("query", item)` or `read("document", item)`, as training does; what it
            cannot read is a `ValueError`.

    Example:

    ```python
    sieve = Sieve(lambda role, item: processor.collate(processor.prepare([item.as_input()], role=role)))
    sieve.search(examples)
    examples = sieve.rest(examples)
    ```
    """

    def __init__(self, read: Callable[[str, Item], object]):
        self.read = read
        self.reasons: dict[tuple[str, Item], str] = {}  # of every item that was tried; empty where nothing is wrong

    def search(self, examples: Iterable[Example]):
        """Tries every item of the rows."""
        for example in examples:
            for role, item in _items(example):
                if (role, item) not in self.reasons:
                    self.reasons[role, item] = self._reason(role, item)

    def _reason(self, role: str, item: Item) -> str:
        try:
            self.read(role, item)
        except ValueError as error:
            return str(error) or type(error).__name__
        return ""

    def is_bad(self, role: str, item: Item) -> bool:
        """Whether an item was tried and could not be read."""
        return bool(self.reasons.get((role, item)))

    def bad_items(self, examples: Iterable[Example]) -> list[BadItem]:
        """The items of the rows that cannot be read, each once."""
        reasons = {}
        for example in examples:
            for role, item in _items(example):
                if self.is_bad(role, item):
                    reasons[str(item)] = self.reasons[role, item]
        return [BadItem(item, reason) for item, reason in reasons.items()]

    def rest(self, examples: Sequence[Example]) -> list[Example]:
        """The rows without the items that cannot be read."""
        rows = []
        for example in examples:
            if self.is_bad("query", example.query) or self.is_bad("document", example.positive):
                continue

            places = []
            for place, negative in enumerate(example.negatives):
                if not self.is_bad("document", negative):
                    places.append(place)

            if len(places) < len(example.negatives):
                example = _with_negatives(example, places)
            rows.append(example)
        return rows


def _items(example: Example) -> list[tuple[str, Item]]:
    """The items of a row with their roles."""
    items = [("query", example.query)]
    for document in (example.positive, *example.negatives):
        items.append(("document", document))
    return items


def _with_negatives(example: Example, places: list[int]) -> Example:
    """A row with only the negatives in some places, and their scores."""
    scores = example.negative_scores
    if scores:  # not every row was judged
        scores = [scores[place] for place in places]

    negatives = [example.negatives[place] for place in places]
    return replace(example, negatives=negatives, negative_scores=scores)
