"""Pictures and videos that other files hold within them (Parquet, Arrow, tar), unpacked once into a folder.

Everything after a reader knows a picture by its path. A file is called by a digest of its bytes, so that the same
picture of two data sets lies there once, and a data set that is read again writes nothing.
"""

from pathlib import Path

from ..images_unime import IMAGES
from .addresses import CACHE
from .identity import digest_of, file_identity
from .writing import write_bytes

UNPACKED = CACHE / "unpacked"  # may be deleted while nothing runs that has read it
OTHER = (".avi", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".pdf")  # endings that are kept, beside images'
_STARTS = {  # of the bytes of files, with the place where they stand
    ".png": (0, b"\x89PNG"),
    ".gif": (0, b"GIF8"),
    ".webp": (8, b"WEBP"),
    ".pdf": (0, b"%PDF-"),
    ".mp4": (4, b"ftyp"),
    ".webm": (0, b"\x1aE\xdf\xa3"),
    ".avi": (8, b"AVI "),
}


def unpack(content: bytes, name: str = "", folder: Path = UNPACKED) -> str:
    """Writes a picture, video or PDF into a folder, unless it is there.

    Args:
        content (`bytes`): of the file.
        name (`str`): what the data call it, of which only an ending counts that such files have.
        folder (`Path`, *optional*): where to; below `HF_HOME` by default.

    Returns:
        `str`: the path of the file.

    Example:

    ```python
    path = unpack(row["image"]["bytes"], row["image"]["path"])
    ```
    """
    digest = digest_of(content)
    target = Path(folder) / digest[:2] / f"{digest}{_suffix(content, name)}"

    # a file of that name may have been damaged since
    if file_identity(target) != digest:
        write_bytes(target, content)
    return str(target.resolve())


def _suffix(content: bytes, name: str) -> str:
    """The ending of a file's name: the one it has, or that of its kind; an image is opened by what it holds anyway."""
    suffix = Path(name).suffix.lower()
    if suffix in IMAGES or suffix in OTHER:
        return suffix

    # data sets often keep a picture without its name
    for kind, (place, start) in _STARTS.items():
        if content[place : place + len(start)] == start:
            return kind
    return ".jpg"
