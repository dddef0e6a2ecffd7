"""Image paths that data files name: kept inside their root, and checked to exist. Images as servers take them."""

import base64
import io
from pathlib import Path

from .texts import shown


def resolve_image(root: Path, name: str, must_exist: bool = True) -> str:
    """The path of an image that a data file names relative to `root`; an empty name stays empty.

    Args:
        root (`Path`): the folder that no image may lie outside of.
        name (`str`): the path as the data file has it.
        must_exist (`bool`, defaults to `True`): whether a missing file is an error.

    Returns:
        `str`: the absolute path, with symbolic links resolved.

    Raises:
        ValueError: the path leaves `root` (also through a symbolic link), or `must_exist` and there is no such file;
            it cannot be a path, or its links lead in a circle.
    """
    if not name:
        return ""

    # both are resolved first: neither ".." nor a link in the data leads out of the root
    try:
        root = Path(root).resolve()
        path = (root / name).resolve()
        is_present = path.exists()
        str(path).encode()
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"image path {shown(name)} cannot be followed: {_reason(error)}.") from error

    if not path.is_relative_to(root):
        raise ValueError(f"image path {shown(name)} leaves the image root {str(root)!r}.")
    if must_exist and not is_present:
        raise ValueError(f"image {shown(name)} does not exist under {str(root)!r}; is that where image paths start?")
    return str(path)


def _reason(error: Exception) -> str:
    """Why the system cannot follow a path, in a few words."""
    if isinstance(error, UnicodeError):
        return "the name of a folder is not UTF-8"
    if isinstance(error, RuntimeError):
        return "its symbolic links lead in a circle"
    return getattr(error, "strerror", None) or str(error)


def sent_image(image) -> dict:
    """A PIL image as the part of a chat message that OpenAI-compatible servers read, as PNG, without loss."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return sent_file(buffer.getvalue(), "png")


def sent_file(content: bytes, kind: str) -> dict:
    """The content of an image file as such a part, byte for byte.

    Args:
        content (`bytes`): of the file.
        kind (`str`): what it is: `"png"`, `"jpeg"`.
    """
    # within the message, since a server may not read this machine's files
    data = base64.b64encode(content).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{data}"}}
