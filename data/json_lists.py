"""Long JSON lists, read in pieces."""

import re
from collections.abc import Iterator
from pathlib import Path

from .texts import open_text, parse_json

MOST = 2**26  # characters of one row; a longer one is a row that never ends
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'  # one that ends within the piece
_TOP = re.compile(_STRING + r'|["\[\]{},]', re.DOTALL)  # what counts at the level of the rows
_NESTED = re.compile(_STRING + r'|["\[\]{}]', re.DOTALL)  # within a row, a comma is not its end
_OPEN_STRING = re.compile(r'["\\]')  # in a string that began in an earlier piece


def json_list(path: Path) -> Iterator[tuple[str, object]]:
    """Elements of a JSON list, one at a time, so that a file of many gigabytes needs no more memory than a small one.

    Args:
        path (`Path`): the file.

    Yields:
        `(where, element)`: a text that says where the element stands (file, row and line), and the element.

    Raises:
        ValueError: the file is not a list, is broken off, or an element is not JSON; the message names file, row and
            line.
    """
    for where, text in list_elements(path):
        try:
            row = parse_json(text)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        yield where, row


def list_elements(path: Path) -> Iterator[tuple[str, str]]:
    """As [`json_list`], with the text of each element, whatever it is; the time is linear in the file.

    Args:
        path (`Path`): the file.

    Raises:
        ValueError: the file is not a list, or is broken off; the message names file, row and line.
    """
    with open_text(path) as file:
        text = _Pieces(file)
        if text.next() != "[":
            raise ValueError(f"{path} is not a list of rows; it must begin with [ and hold one object for each row.")
        text.skip()

        number = 0
        while text.next() != "]":
            where = f"{path}, row {number} (line {text.line})"
            element = text.element()
            if not element or not text.next():
                raise ValueError(f"{where}: the file is broken off in this row: a bracket or a quote is missing.")
            yield where, element
            number += 1

            # a comma must be followed by another row
            if text.next() == ",":
                text.skip()
                if text.next() in ("]", ""):
                    raise ValueError(f"{where}: the file is broken off: no row follows the comma after this one.")

        # two files in one, or the end of an earlier, longer one
        text.skip()
        if text.next():
            raise ValueError(f"{path} (line {text.line}): something follows the end of the list.")


class _Pieces:
    """A text file that is read as far as it is needed; `line` is where the next character stands."""

    def __init__(self, file, size: int = 2**20):
        self.file = file
        self.size = size  # characters of one piece

        self.text = ""
        self.position = 0  # of the next character in `text`
        self.line = 1

    def more(self) -> bool:
        """Reads the next piece, in the place of the last one; whether the file had one."""
        self.text = self.file.read(self.size)
        self.position = 0
        return bool(self.text)

    def take(self, end: int) -> str:
        """The characters from the present one up to `end`, which are passed."""
        passed = self.text[self.position : end]
        self.line += passed.count("\n")
        self.position = end
        return passed

    def skip(self):
        """Passes the next character."""
        self.take(self.position + 1)

    def next(self) -> str:
        """The next character that is not a space, without passing it; empty at the end of the file."""
        while True:
            position = self.position
            while self.text[position : position + 1].isspace():
                position += 1
            self.take(position)

            if position < len(self.text) or not self.more():
                return self.text[self.position : self.position + 1]

    def element(self) -> str:
        """The text up to the comma or bracket that ends an element of the list; empty if there is no such end."""
        parts = []
        length = 0
        depth = 0  # of brackets
        in_string = False
        position = self.position

        while length < MOST:
            pattern = _NESTED if depth else _TOP
            mark = (_OPEN_STRING if in_string else pattern).search(self.text, position)
            if mark is None:
                # a backslash at the end of a piece takes the first character of the next one with it
                position = max(0, position - len(self.text))
                parts.append(self.take(len(self.text)))
                length += len(parts[-1])
                if not self.more():
                    return ""
                continue

            position = mark.end()
            character = mark[0]
            if character == "\\":
                position += 1  # whatever it escapes
            elif character == '"':
                in_string = not in_string
            elif character in ("[", "{"):
                depth += 1
            elif depth == 0 and character in (",", "]", "}"):
                parts.append(self.take(mark.start()))
                return "".join(parts).rstrip()
            elif character in ("]", "}"):
                depth -= 1

        # a quote or bracket that never closes would take in the whole file
        return ""
