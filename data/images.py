"""Images of data files: kept inside their root, checked to exist, unpacked where they are bytes; and for servers."""

import base64
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..files.unpacked import UNPACKED, unpack
from ..images_unime import DATA_URI, data_uri, read_data_uri
from ..urls_unime import CACHE as FETCHED
from ..urls_unime import URL, fetch
from .texts import require_text, shown

FRAGMENT = re.compile(r"#(?=(?:page|fps|frames)=)")  # after the path: a page of a PDF, how a video is sampled


@dataclass(frozen=True)
class ImageFiles:
    """Where the images of rows are, and what may be done to get them.

    Args:
        root (`Path`, *optional*): where relative paths start, and the folder that no image may lie outside of; without
            one, paths are taken as they are, which is for rows that a program hands over.
        allow_urls (`bool`, defaults to `False`): fetch images that rows name by `https://` addresses.
        unpacked (`bool`, defaults to `True`): write images that rows hold as bytes into a folder, once; a stream of
            rows keeps them in the rows.
        must_exist (`bool`, defaults to `True`): whether a missing file is an error.
    """

    root: Path | None
    allow_urls: bool = False
    unpacked: bool = True
    must_exist: bool = True

    def name_of(self, value) -> str:
        """What an item calls an image: a path, or a data URI where nothing is unpacked; empty if there is none.

        Args:
            value: a path, an address, a data URI, bytes, or what `datasets` stores of an image or a video.

        Raises:
            ValueError: it is something else, or cannot be had; the message says why.
        """
        # {"bytes", "path"}: bytes that the data set holds, or else the path of a file
        path = ""
        if isinstance(value, Mapping) and value.keys() <= {"bytes", "path"}:
            path = value.get("path") or ""
            value = value.get("bytes") or path

        if isinstance(value, (bytes, bytearray, memoryview)):
            return self._named(bytes(value), str(path))
        if value is None:
            return ""
        if not isinstance(value, str):
            raise ValueError(f"a text or an image path must be a string, not {shown(value)}.")

        if DATA_URI.match(value):
            return self._named(read_data_uri(value))
        if URL.match(value):
            return fetch(value, self.allow_urls, "--allow-urls")
        return self._path(require_text(value))

    def _named(self, content: bytes, name: str = "") -> str:
        """Bytes as a file, or as a data URI."""
        return unpack(content, name) if self.unpacked else data_uri(content)

    def _path(self, name: str) -> str:
        """The path of a file, with what follows it of a page or a sampling."""
        if self.root is None:
            return name
        return resolve_image(self.root, name, self.must_exist)


def resolve_image(root: Path, name: str, must_exist: bool = True) -> str:
    """The path of an image that a data file names relative to `root`; an empty name stays empty.

    Args:
        root (`Path`): the folder that no image may lie outside of.
        name (`str`): the path as the data file has it; an absolute one must lie in `root`, or be that of an image that
            was unpacked from a data set.
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
    fragment = ""
    try:
        root = Path(root).resolve()
        path = (root / name).resolve()
        is_present = path.exists()

        # a file whose name looks so is that file
        file, *rest = FRAGMENT.split(name, maxsplit=1)
        if rest and not is_present:
            fragment = f"#{rest[0]}"
            path = (root / file).resolve()
            is_present = path.exists()
        str(path).encode()
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"image path {shown(name)} cannot be followed: {_reason(error)}.") from error

    # what was unpacked or fetched for a row may stand in a file that is made of it
    folders = (root, UNPACKED.resolve(), FETCHED.resolve())
    if not any(map(path.is_relative_to, folders)):
        raise ValueError(f"image path {shown(name)} leaves the image root {str(root)!r}.")
    if must_exist and not is_present:
        raise ValueError(f"image {shown(name)} does not exist under {str(root)!r}; is that where image paths start?")
    return f"{path}{fragment}"


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
