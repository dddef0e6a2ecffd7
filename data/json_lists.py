"""Long JSON lists, read in pieces."""

import json
from collections.abc import Iterator
from pathlib import Path


def json_list(path: Path) -> Iterator[tuple[str, object]]:
    """Elements of a JSON list, one after the other, each with a text that says where it stands.

    Raises:
        ValueError: the file is no list, or broken off; the message names file, row and line.
    """
    with open(path, encoding="utf-8") as file:
        text = _Pieces(file)
        if text.next() != "[":
            raise ValueError(f"{path} is no list of rows.")
        text.skip(1)
        number = 0
        while text.next() != "]":
            where = f"{path}, row {number} (line {text.line})"
            try:
                row = text.decode()
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: the file is broken off or no JSON: {error}") from error
            yield where, row
            number += 1
            if text.next() == ",":
                text.skip(1)
            elif text.next() != "]":
                raise ValueError(f"{where}: the list is broken off after this row.")


class _Pieces:
    """A text file that is read as far as it is needed; `line` is where the next character stands."""

    def __init__(self, file, size: int = 2**20):
        self.file, self.size, self.decoder = file, size, json.JSONDecoder()
        self.text, self.position, self.line = "", 0, 1

    def more(self) -> bool:
        piece = self.file.read(self.size)
        self.text, self.position = self.text[self.position :] + piece, 0
        return bool(piece)

    def skip(self, count: int):
        self.line += self.text.count("\n", self.position, self.position + count)
        self.position += count

    def next(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            place = self.position
            while self.text[place : place + 1].isspace():
                place += 1
            self.skip(place - self.position)
            if place < len(self.text) or not self.more():
                return self.text[self.position : self.position + 1]

    def decode(self):
        """The next value."""
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.position)
            except json.JSONDecodeError:
                if not self.more():
                    raise
                continue
            if end < len(self.text) or not self.more():
                self.skip(end - self.position)
                return value
