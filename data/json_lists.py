"""Long JSON lists, read in pieces."""

import json
from collections.abc import Iterator
from pathlib import Path


def json_list(path: Path) -> Iterator[tuple[str, object]]:
    """Elements of a JSON list, one at a time, so that a file of many gigabytes needs no more memory than a small one.

    Args:
        path (`Path`): the file.

    Yields:
        `(where, element)`: a text that says where the element stands (file, row and line), and the element.

    Raises:
        ValueError: the file is not a list, or is broken off; the message names file, row and line.
    """
    with open(path, encoding="utf-8") as file:
        text = _Pieces(file)
        if text.next() != "[":
            raise ValueError(f"{path} is not a list of rows; it must begin with [ and hold one object for each row.")
        text.skip(1)

        number = 0
        while text.next() != "]":
            where = f"{path}, row {number} (line {text.line})"
            try:
                row = text.decode()
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: the file is broken off or not JSON: {error}") from error
            yield where, row
            number += 1

            if text.next() == ",":
                text.skip(1)
            elif text.next() != "]":
                raise ValueError(f"{where}: the list is broken off after this row; a comma or ] must follow.")


class _Pieces:
    """A text file that is read as far as it is needed; `line` is where the next character stands."""

    def __init__(self, file, size: int = 2**20):
        self.file = file
        self.size = size  # characters of one piece
        self.decoder = json.JSONDecoder()

        self.text = ""
        self.position = 0  # of the next character in `text`
        self.line = 1

    def more(self) -> bool:
        """Reads a piece and forgets what has been passed; whether the file had one."""
        piece = self.file.read(self.size)
        self.text = self.text[self.position :] + piece
        self.position = 0
        return bool(piece)

    def skip(self, count: int):
        """Passes so many characters."""
        self.line += self.text.count("\n", self.position, self.position + count)
        self.position += count

    def next(self) -> str:
        """The next character that is not a space, without passing it; empty at the end of the file."""
        while True:
            position = self.position
            while self.text[position : position + 1].isspace():
                position += 1
            self.skip(position - self.position)

            if position < len(self.text) or not self.more():
                return self.text[self.position : self.position + 1]

    def decode(self):
        """The next value, which is passed."""
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.position)
            except json.JSONDecodeError:
                # the piece may end within the value
                if not self.more():
                    raise
                continue

            # a number at the end of a piece may go on in the next
            if end < len(self.text) or not self.more():
                self.skip(end - self.position)
                return value
