"""Image paths that data files name: kept inside their root, and checked to exist. Images as servers take them."""

import base64
import io
from pathlib import Path


def resolve_image(root: Path, name: str, must_exist: bool = True) -> str:
    """The path of an image that a data file names relative to `root`; an empty name stays empty.

    Args:
        root (`Path`): the folder that no image may lie outside of.
        name (`str`): the path as the data file has it.
        must_exist (`bool`, defaults to `True`): whether a missing file is an error.

    Returns:
        `str`: the absolute path, with symbolic links resolved.

    Raises:
        ValueError: the path leaves `root` (also through a symbolic link), or `must_exist` and there is no such file.
    """
    if not name:
        return ""

    # both are resolved first: neither ".." nor a link in the data leads out of the root
    root = Path(root).resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise ValueError(f"image path {name!r} leaves the image root {str(root)!r}.")
    if must_exist and not path.exists():
        raise ValueError(f"image {name!r} does not exist under {str(root)!r}; is that where image paths start?")
    return str(path)


def sent_image(image) -> dict:
    """A PIL image as the part of a chat message that OpenAI-compatible servers read, as PNG, without loss."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
