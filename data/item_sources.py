"""Named items: folders of pictures, JSON lines, texts by line, and the standard input."""

import io
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..images_unime import IMAGES
from .readers import item_of
from .schema import VIDEOS, Item
from .texts import KEEP_BYTES, open_text, parse_json, printable, require_text


def read_items(sources: Iterable[str]) -> Iterator[tuple[str, Item]]:
    """Named items of several sources.

    Args:
        sources: a folder (every image and video below it), an image, `.jsonl` (each line a text, or an object with
            `text`, `image` and, if wanted, `id`; images are named from the file's folder on), `.txt` (a text a line),
            or `-` for JSON lines from the standard input, with images named from the working directory on.

    Returns:
        pairs of a name and an [`~unime.data.schema.Item`]. The name is a path below the folder, the `id` or the
        number of a JSON line, or file and number of a line of text.

    Raises:
        ValueError: a source is missing or not of such a kind, or a row is unusable; the message names file and row.
    """
    for source in sources:
        path = Path(source)
        if source == "-":
            # as a file is read: the terminal's own encoding may be another
            lines = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig", errors=KEEP_BYTES)
            yield from _json_lines(lines, "standard input", Path.cwd())
        elif path.is_dir():
            yield from _folder(path)
        elif not path.exists():
            raise ValueError(f"{source} does not exist.")

        elif path.suffix == ".jsonl":
            with open_text(path) as lines:
                yield from _json_lines(lines, source, path.parent)
        elif path.suffix == ".txt":
            with open_text(path) as lines:
                yield from _text_lines(lines, path.name)
        elif _is_picture(path):
            yield path.name, _picture(path)

        else:
            raise ValueError(f"{source} is not a folder, an image, a .jsonl or a .txt file.")


def _is_picture(path: Path) -> bool:
    """Whether a path is by its name an image or a video that is not hidden.

    A link that leads nowhere counts: it is reported like any image that cannot be read, rather than passed over.
    """
    return path.suffix.lower() in (*IMAGES, *VIDEOS) and not path.name.startswith(".") and not path.is_dir()


def _picture(path: Path) -> Item:
    """The item of an image or video file."""
    try:
        name = str(path.resolve())
    except RuntimeError:  # symbolic links in a circle
        name = str(path.absolute())

    # an index is a file of texts, in which such a name could not be written
    try:
        return Item(image=require_text(name))
    except ValueError as error:
        raise ValueError(
            f"{printable(str(path))}: its name, or that of its folder, is not UTF-8; rename it."
        ) from error


def _folder(folder: Path) -> Iterator[tuple[str, Item]]:
    """Every image and video below a folder, in the order of their paths."""
    for path in sorted(folder.rglob("*")):
        if _is_picture(path):
            yield str(path.relative_to(folder)), _picture(path)


def _text_lines(lines: Iterable[str], name: str) -> Iterator[tuple[str, Item]]:
    """A text a line, without the empty ones."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue

        try:
            item = Item(require_text(line.strip()))
        except ValueError as error:
            raise ValueError(f"{name}, line {number}: {error}") from error
        yield f"{name}:{number}", item


def _json_lines(lines: Iterable[str], name: str, root: Path) -> Iterator[tuple[str, Item]]:
    """A text or an object a line, without the empty ones; images are named from `root` on."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue

        # whatever is wrong with a row, the message says where it is
        try:
            row = parse_json(line)
            if isinstance(row, str):
                row = {"text": row}
            if not isinstance(row, dict) or row.keys() - {"id", "text", "image"}:
                raise ValueError("a row is a text, or an object with 'text', 'image' and 'id'.")
            item = item_of(row.get("text"), row.get("image"), root)
        except ValueError as error:
            raise ValueError(f"{name}, line {number}: {error}") from error
        yield str(row.get("id", number)), item
