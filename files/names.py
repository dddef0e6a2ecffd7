"""Names from data as names of files: whatever a data set is called, its file lies in the folder it belongs to."""

import re
from pathlib import Path
from urllib.parse import unquote

LONGEST = 200  # bytes of a file's name; file systems take 255, and endings are added

# what separates folders, what some system forbids, and the sign that escapes begin with
_UNSAFE = re.compile(r'[%/\\:*?"<>|\x00-\x1f\x7f\ud800-\udfff]|^[ .]|[ .]$')


def file_name(name: str) -> str:
    """A text as the name of a file: letters, digits and most signs stay, the others become `%` and their code.

    Two texts never have one name, and [`text_of_file_name`] gives the text back.

    Args:
        name (`str`): from data, such as the name of a data set.

    Raises:
        ValueError: it is empty or longer than a file's name may be.

    Example:

    ```python
    file_name("VisualNews_i2t"), file_name("../x")  # ("VisualNews_i2t", "%2E.%2Fx")
    ```
    """
    if not name:
        raise ValueError("an empty name cannot be that of a file; give the data set a name.")

    escaped = _UNSAFE.sub(_escape, name)
    if len(escaped.encode()) > LONGEST:
        raise ValueError(f"the name {name[:60]!r}... is too long for a file; {LONGEST} bytes are the most.")
    return escaped


def _escape(match: re.Match) -> str:
    """`%` and two digits for each byte of a character."""
    codes = []
    for byte in match[0].encode("utf-8", "surrogatepass"):
        codes.append(f"%{byte:02X}")
    return "".join(codes)


def text_of_file_name(name: str) -> str:
    """The text that [`file_name`] made a name of; any other name is its own text."""
    text = unquote(name, errors="surrogatepass")

    # somebody else may have named a file `50%25.json`
    try:
        return text if file_name(text) == name else name
    except ValueError:
        return name


def model_name(source) -> str:
    """What a model is called in names of folders: the last part of its path or repository."""
    path = Path(str(source))
    if path.is_dir():
        path = path.resolve()  # "." and ".." are not names
    return file_name(path.name or "model")
