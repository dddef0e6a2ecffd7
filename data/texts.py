"""Text files as people's programs write them: UTF-8, with or without a byte-order mark, and UTF-16 with one.

Bytes that are no text of the encoding become half characters, so that a single bad line is one bad row and the lines
around it are read. [`require_text`] refuses them, with the byte.
"""

import codecs
import json
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

# of the marks that a file may begin with; that of UTF-32 begins like that of UTF-16
_REFUSED = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_HEAD = 4096  # bytes that are looked at before a file is read
_ESCAPED = range(0xDC80, 0xDD00)  # the half characters that the bytes 0x80 to 0xFF become
KEEP_BYTES = "unime-keep-bytes"  # how they become that, as `errors` of `open`

_short = reprlib.Repr()
_short.maxstring = 80
_short.maxlevel = 3


def shown(value) -> str:
    """A value of a data file in a message: a few words of it, however long or deep it is."""
    return _short.repr(value)


def printable(text: str) -> str:
    """A text that any terminal and file takes: half characters, of odd file names for example, are escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _keep_bytes(error: UnicodeError) -> tuple[str, int]:
    """As `surrogateescape`, for UTF-16 too, where also bytes below 0x80 may be half of something."""
    raw = error.object[error.start : error.end]
    return "".join(chr(0xDC00 + byte) for byte in raw), error.end


codecs.register_error(KEEP_BYTES, _keep_bytes)


def require_file(path) -> Path:
    """The path itself, which must be that of a file: opening a pipe would wait for ever.

    Raises:
        ValueError: there is no such file, or it is a folder, a pipe or a device.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist.")
    if not path.is_file():
        raise ValueError(f"{path} is not a file; a pipe is read as the standard input only.")
    return path


@contextmanager
def open_text(path, newline: str | None = None) -> Iterator[TextIO]:
    """Opens a text file: UTF-8, with or without a byte-order mark, or UTF-16 with one.

    Args:
        path (`str` or `Path`): the file.
        newline (`str`, *optional*): as for `open`.

    Yields:
        the open file; bytes that are no text are half characters, for [`require_text`] to refuse.

    Raises:
        ValueError: this is not a file, or it has another encoding of more bytes a character; the message names file
            and line.

    Example:

    ```python
    with open_text("captions.txt") as lines:
        captions = [line.strip() for line in lines]
    ```
    """
    path = require_file(path)
    with open(path, "rb") as file:
        head = file.read(_HEAD)

    encoding = "utf-8-sig"  # as UTF-8, without the mark
    if head.startswith(_REFUSED):
        raise ValueError(f"{path}, line 1: the file is UTF-32, which is not read; save it as UTF-8.")
    if head.startswith(_UTF16):
        encoding = "utf-16"
    elif b"\0" in head:
        line = head[: head.index(b"\0")].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line}: there is a zero byte, so this is no UTF-8 (UTF-16 is read where the file begins "
            "with a byte-order mark); save it as UTF-8."
        )

    with open(path, encoding=encoding, errors=KEEP_BYTES, newline=newline) as file:
        yield file


def require_text(text: str) -> str:
    """The text itself, which must be valid Unicode.

    Raises:
        ValueError: it is not; the message says what stands where.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        place = error.start + 1
        code = ord(text[error.start])
    else:
        return text

    if code in _ESCAPED:
        raise ValueError(f"character {place} is the byte 0x{code - 0xDC00:02x}, no UTF-8; save the file as UTF-8.")
    raise ValueError(f"character {place} is half a character, \\u{code:04x}: surrogates not allowed.")


def parse_json(text: str):
    """The value of a JSON text.

    Raises:
        ValueError: the text is not JSON, not valid Unicode, nested too deeply, or has a number of too many digits.

    Example:

    ```python
    row = parse_json('{"query": "a red shoe", "positive": {"image": "shoe.png"}}')
    ```
    """
    # json.loads takes half characters for letters
    require_text(text)

    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} (character {error.pos + 1}).") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply; a row has a few levels of brackets.") from error
    except ValueError as error:  # Python's limit on the digits of a whole number
        raise ValueError("has a number of more than 4,300 digits.") from error


def read_text(path) -> str:
    """The whole of a text file, which must be valid Unicode.

    Raises:
        ValueError: it is not; the message names file and line.
    """
    lines = []
    with open_text(path) as file:
        # line by line, so that the message can say which
        for number, line in enumerate(file, 1):
            try:
                lines.append(require_text(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    return "".join(lines)


def read_json(path):
    """The value of a JSON file.

    Raises:
        ValueError: as [`parse_json`]; the message names the file.
    """
    try:
        return parse_json(read_text(path))
    except ValueError as error:
        message = str(error)

        # what is wrong with a line names the file already
        if not message.startswith(str(path)):
            message = f"{path} {message}"
        raise ValueError(message) from error
