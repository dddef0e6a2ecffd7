"""Rows on their way from a file: where they stand, and what is wrong with them.

A bad row ends the reading with an error that names file and row. Given [`Findings`], it is left out instead and kept
there with the reason.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from .texts import printable, shown


class Problem(NamedTuple):
    """A row that cannot be used: where it stands, and why."""

    where: str
    reason: str


@dataclass
class Findings:
    """What a reader meets on its way, instead of an error at the first bad row.

    Args:
        images_must_exist (`bool`, defaults to `True`): whether a row with a missing image is bad; if not, its image
            stays a path that leads nowhere.
        problems (`list[Problem]`): bad rows, which are left out.
        notes (`Counter`): what was mended, such as image placeholders in texts without an image.
        source (`str`): what the source was taken for.
        layouts (`dict`): by the names of the layouts that were met, what each column was taken for.
        unused (`list[str]`): columns that no layout takes for anything.

    Example:

    ```python
    findings = Findings()
    rows = read_rows("pairs.jsonl", findings=findings)
    print(len(rows), "good rows; the first bad one:", findings.problems[:1])
    ```
    """

    images_must_exist: bool = True
    problems: list[Problem] = field(default_factory=list)
    notes: Counter = field(default_factory=Counter)
    source: str = ""
    layouts: dict[str, dict[str, str]] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    def note_layout(self, name: str, takes: dict[str, str], columns: Iterable[str]):
        """Notes what a row's columns were taken for, and which of them for nothing."""
        self.layouts.setdefault(name, {}).update(takes)
        for column in columns:
            if column not in takes and column not in self.unused:
                self.unused.append(column)


class Located(NamedTuple):
    """A raw row, its data set, and where it stands."""

    where: str
    dataset: str
    row: dict


def refuse(where: str, error: Exception, findings: Findings | None):
    """A bad row is an error, or, given findings, one of them."""
    if findings is None:
        raise ValueError(f"{where}: {error}") from error
    findings.problems.append(Problem(printable(where), printable(str(error))))


def as_object(row) -> dict:
    """The row itself, which must be a JSON object."""
    if not isinstance(row, dict):
        raise ValueError(f"is not an object but {shown(row)}; a row is an object of keys and values.")
    return row
