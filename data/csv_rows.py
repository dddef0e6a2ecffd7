"""Rows of CSV files, read strictly: what does not fit the header is a bad row, never a text in the wrong column."""

import csv
from collections.abc import Iterator
from pathlib import Path

from .findings import Findings, Located, refuse
from .texts import open_text, require_text, shown

MOST = 2**26  # characters of one cell; the csv module's own limit is 131,072


def csv_rows(path: Path, findings: Findings | None) -> Iterator[Located]:
    """Rows of a CSV file, or of one with tabs (`.tsv`), whose first row is its header; their data set is its name.

    Args:
        path (`Path`): the file.
        findings ([`~unime.data.findings.Findings`], *optional*): takes bad rows, which end the reading otherwise.

    Raises:
        ValueError: the header is not one, or, without `findings`, a row has another number of cells than the header, a
            quote that does not close, or bytes that are no text; the message names file, row and line.
    """
    csv.field_size_limit(max(MOST, csv.field_size_limit()))  # of the whole process; there is no other place for it
    with open_text(path, newline="") as file:
        lines = _Lines(file)
        reader = csv.reader(lines, strict=True, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        header = _header(path, reader, lines)

        number = 0
        while True:
            lines.forget()
            where = f"{path}, row {number} (line {lines.count + 1})"

            # a bad row is counted too, so that numbers are those of the file
            try:
                cells = next(reader)
                row = _row(header, cells) if cells else None
            except StopIteration:
                return
            except csv.Error as error:
                refuse(where, _quote_error(error, lines), findings)
            except ValueError as error:
                refuse(where, error, findings)
            else:
                # an empty line is not a row
                if row is None:
                    continue
                yield Located(where, path.stem, row)
            number += 1


class _Lines:
    """The lines of a file, counted; those since the last `forget` can be looked at again."""

    def __init__(self, file):
        self.file = file
        self.count = 0  # lines that have been read
        self.recent = []

    def __iter__(self):
        return self

    def __next__(self) -> str:
        line = next(self.file)
        self.count += 1
        self.recent.append(line)
        return line

    def forget(self):
        """Begins a row."""
        self.recent = []

    def opening(self) -> int:
        """The line of the present row in which the last quote opens."""
        first = self.count - len(self.recent) + 1
        opening = first
        is_open = False
        previous = ","  # a row begins as a cell does

        for number, line in enumerate(self.recent, first):
            for character in line:
                if is_open:
                    is_open = character != '"'
                # at the beginning of a cell; one after another is a quote that was doubled
                elif character == '"' and previous in ',\t\r\n"':
                    is_open = True
                    if previous != '"':
                        opening = number
                previous = character
        return opening


def _header(path: Path, reader, lines: _Lines) -> list[str]:
    """The names of the columns; a column without a name is not read."""
    try:
        header = next(reader, [])
        for name in header:
            require_text(name)
    except csv.Error as error:
        raise ValueError(f"{path}, line 1: the header {_quote_error(error, lines)}") from error
    except ValueError as error:
        raise ValueError(f"{path}, line 1: the header is not valid: {error}") from error

    for name in header:
        if name and header.count(name) > 1:
            raise ValueError(f"{path}, line 1: the header has the column {name!r} more than once.")
    return header


def _row(header: list[str], cells: list[str]) -> dict[str, str]:
    """The cells by the names of their columns."""
    if len(cells) != len(header):
        raise ValueError(
            f"has {len(cells)} cells where the header has {len(header)}; a cell with a comma stands in quotes. "
            f"The cells: {shown(cells)}."
        )

    row = {}
    for name, cell in zip(header, cells):
        # a column without a name is an index
        if name:
            row[name] = require_text(cell)
    return row


def _quote_error(error: csv.Error, lines: _Lines) -> ValueError:
    """What is wrong with a row, in which a quote does not close as it should."""
    opening = lines.opening()

    # such a quote takes in all lines that follow, which looks like a short file
    if "end of data" in str(error):
        return ValueError(
            f"has a quote that opens in line {opening} and never closes; nothing from there to the end, line "
            f"{lines.count}, is read. A quote within a cell in quotes is doubled."
        )

    return ValueError(
        f"has a quote that opens in line {opening} and closes in line {lines.count} within a cell ({error}). A quote "
        "within a cell in quotes is doubled."
    )
