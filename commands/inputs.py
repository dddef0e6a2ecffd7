"""Texts and images from the command line: folders, JSON lines, texts by line, and the standard input."""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..data.readers import item_of
from ..data.schema import VIDEOS, Item
from ..images_unime import IMAGES
from ..prompts_unime import instruct


def read_items(sources: Iterable[str]) -> Iterator[tuple[str, Item]]:
    """Named items of several sources.

    Args:
        sources: a folder (every image and video below it), an image, `.jsonl` (each line a text, or an object with
            `text`, `image` and, if wanted, `id`; images are named from the file's folder on), `.txt` (a text a line),
            or `-` for JSON lines from the standard input, with images named from the working directory on.

    Raises:
        ValueError: a source is missing or of no such kind, or a row is unusable; the message names file and row.
    """
    for source in sources:
        path = Path(source)
        if source == "-":
            yield from _json_lines(sys.stdin, "standard input", Path.cwd())
        elif path.is_dir():
            yield from (
                (str(p.relative_to(path)), Item(image=str(p.resolve())))
                for p in sorted(path.rglob("*"))
                if _is_picture(p)
            )
        elif not path.exists():
            raise ValueError(f"{source} does not exist.")
        elif path.suffix == ".jsonl":
            with open(path, encoding="utf-8") as lines:
                yield from _json_lines(lines, source, path.parent)
        elif path.suffix == ".txt":
            with open(path, encoding="utf-8") as lines:
                yield from (
                    (f"{path.name}:{n}", Item(line.strip())) for n, line in enumerate(lines, 1) if line.strip()
                )
        elif _is_picture(path):
            yield path.name, Item(image=str(path.resolve()))
        else:
            raise ValueError(f"{source} is no folder, image, .jsonl or .txt.")


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in (*IMAGES, *VIDEOS) and not path.name.startswith(".") and path.is_file()


def _json_lines(lines, name: str, root: Path) -> Iterator[tuple[str, Item]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            row = json.loads(line)
            row = {"text": row} if isinstance(row, str) else row
            if not isinstance(row, dict) or row.keys() - {"id", "text", "image"}:
                raise ValueError("a row is a text, or an object with 'text', 'image' and 'id'.")
            yield str(row.get("id", number)), item_of(row.get("text"), row.get("image"), root)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def one_item(text: str | None, image: str | None, instruction: str | None = None) -> dict:
    """A query that somebody typed, as `encode` takes it, with its instruction before its text."""
    if image and not Path(image).exists():
        raise ValueError(f"{image} does not exist.")
    if text or image:
        text = instruct(instruction, text)
    return Item(text or "", str(Path(image).resolve()) if image else "").as_input()


def positive(text: str) -> int:
    """A number of the command line that is at least 1."""
    if int(text) < 1:
        raise ValueError(text)
    return int(text)
