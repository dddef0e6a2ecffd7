"""Named items: folders of pictures, PDFs, texts by line, the standard input, and one column of any rows."""

import io
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from ..pages_unime import count_pages
from .choices import ROLES
from .findings import Findings, Located
from .images import ImageFiles
from .layouts import CAPTIONS, PICTURES, layout_of
from .readers import iterate_examples
from .row_items import KEYS, item_from
from .schema import Item
from .sources import is_picture, open_source
from .texts import KEEP_BYTES, open_text, parse_json, printable, require_text, shown

IS_PAIR = "is a row of a query and its answer; --column positive, or query, takes these as items."
_PAIRS = frozenset(("query", "positive", "positives", "anchor"))  # what only rows of pairs have
_NAMES = {"_id": "id"} | dict.fromkeys(PICTURES, "image") | dict.fromkeys(CAPTIONS, "text")  # of columns of items


def read_items(
    sources: Iterable[str], image_root=None, column: str | None = None, columns=None, allow_urls: bool = False
) -> Iterator[tuple[str, Item]]:
    """Named items of several sources.

    Args:
        sources: a folder (every image and video below it), an image, a `.pdf` (each page), `.jsonl` (each line an
            item, as rows have them, with an `id` if wanted; images are named from the file's folder on), `.txt` (a
            text a line), `-` for JSON lines from the standard input, with images named from the working directory on,
            or whatever [`~unime.data.readers.read_rows`] reads.
        image_root (`str` or `Path`, *optional*): where the image paths of rows start, in place of the file's folder.
        column (`str`, *optional*): take `"query"`, `"positive"` or `"negatives"` of rows, each distinct item once;
            rows are items themselves by default.
        columns, allow_urls (*optional*): as in [`~unime.data.readers.read_rows`].

    Returns:
        pairs of a name and an [`~unime.data.schema.Item`]. The name is a path below the folder, the `id` or the
        number of a row, or file and number of a line of text.

    Raises:
        ValueError: a source is missing or not of such a kind, or a row is unusable; the message names file and row.
    """
    if column is not None and column not in ROLES:
        raise ValueError(f"--column must be one of {', '.join(ROLES)}, not {column!r}.")
    if columns and column is None:
        raise ValueError(
            "--columns names the columns of pairs; --column positive, or query, says which are the items."
        )

    for source in sources:
        path = Path(source)
        if column is not None:
            yield from _items_of_pairs(source, image_root, column, columns, allow_urls)
        elif source == "-":
            # as a file is read: the terminal's own encoding may be another
            lines = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig", errors=KEEP_BYTES)
            yield from _json_lines(lines, "standard input", ImageFiles(Path(image_root or Path.cwd()), allow_urls))
        elif path.is_dir() and _is_of_pictures(path):
            yield from _folder(path)

        elif path.suffix == ".jsonl" and path.exists():
            with open_text(path) as lines:
                yield from _json_lines(lines, source, ImageFiles(Path(image_root or path.parent), allow_urls))
        elif path.suffix == ".txt" and path.exists():
            with open_text(path) as lines:
                yield from _text_lines(lines, path.name)
        elif path.suffix.lower() == ".pdf" and path.exists():
            yield from _pages(path)
        elif is_picture(path):
            if not path.exists():
                raise ValueError(f"{source} does not exist.")
            yield path.name, _picture(path)

        else:
            yield from _rows(source, image_root, allow_urls)


def _is_of_pictures(folder: Path) -> bool:
    """Whether a folder holds pictures or pages, or nothing, rather than rows of a data set."""
    if any(is_picture(path) or _is_pdf(path) for path in folder.rglob("*")):
        return True
    try:
        open_source(folder)
    except ValueError:
        return True  # an empty one, of which there is nothing to take
    return False


def _is_pdf(path: Path) -> bool:
    """Whether a path is by its name a PDF that is not hidden."""
    return path.suffix.lower() == ".pdf" and not path.name.startswith(".") and path.is_file()


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
    """Every image and video below a folder, and every page of its PDFs, in the order of their paths."""
    for path in sorted(folder.rglob("*")):
        if is_picture(path):
            yield str(path.relative_to(folder)), _picture(path)
        elif _is_pdf(path):
            yield from _pages_in(folder, path)


def _pages_in(folder: Path, path: Path) -> Iterator[tuple[str, Item]]:
    """Every page of a PDF in a folder; one that cannot be opened is an item by itself, which fails when it is read."""
    name = path.relative_to(folder)
    try:
        pages = list(_pages(path))
    except ValueError:
        pages = [(path.name, _picture(path))]
    for page, item in pages:
        yield str(name.with_name(page)), item


def _pages(path: Path) -> Iterator[tuple[str, Item]]:
    """Every page of a PDF."""
    for number in range(1, count_pages(path) + 1):
        page = f"#page={number}"
        yield f"{path.name}{page}", Item(image=f"{_picture(path).image}{page}")


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


def _json_lines(lines: Iterable[str], name: str, files: ImageFiles) -> Iterator[tuple[str, Item]]:
    """A text or an object a line, without the empty ones."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue

        # whatever is wrong with a row, the message says where it is
        try:
            item, identity = _item_of_row(parse_json(line), files)
        except ValueError as error:
            raise ValueError(f"{name}, line {number}: {error}") from error
        yield str(number if identity is None else identity), item


def _item_of_row(row, files: ImageFiles) -> tuple[Item, object]:
    """The item that a row is, and its id, if it has one."""
    identity = None
    if isinstance(row, dict):
        identity = row.get("id")
        row = {key: value for key, value in row.items() if key != "id"}
        if not _PAIRS.isdisjoint(row):
            raise ValueError(IS_PAIR)
        if row.keys() - set(KEYS):
            raise ValueError("a row is a text, or an object with 'text', 'image' and 'id'.")
    elif not isinstance(row, (str, list)):
        raise ValueError("a row is a text, or an object with 'text', 'image' and 'id'.")
    return item_from(row, files, Findings()), identity


def _rows(source: str, image_root, allow_urls: bool) -> Iterator[tuple[str, Item]]:
    """Rows of any other source, each an item."""
    opened = open_source(source)
    files = ImageFiles(Path(image_root or opened.root or Path.cwd()), allow_urls)
    for number, located in enumerate(opened.rows()):
        try:
            item, identity = _item_of_row(_known_columns(located), files)
        except ValueError as error:
            raise ValueError(f"{located.where}: {error}") from error
        yield str(number if identity is None else identity), item


def _known_columns(located: Located) -> dict:
    """A row without the columns that say nothing of an item, of which tables may have any number.

    Raises:
        ValueError: it is a row of a query and its answer, or no column says anything.
    """
    row = located.row
    if _are_of_pairs(tuple(row)):
        raise ValueError(IS_PAIR)

    known = {}
    for name, value in row.items():
        name = name if name in (*KEYS, "id") else _NAMES.get(name)
        if name is not None and value not in (None, ""):
            known.setdefault(name, value)
    if not known.keys() - {"id"}:
        raise ValueError(
            f"has the columns {shown(list(row))}, of which none is known as an item's; name it by --columns "
            "positive=... --column positive."
        )
    return known


@lru_cache  # rows of a table have the same columns
def _are_of_pairs(columns: tuple[str, ...]) -> bool:
    """Whether these are the columns of a query and its answer."""
    layout = layout_of(columns)
    return not _PAIRS.isdisjoint(columns) or (layout is not None and not layout.of_items)


def _items_of_pairs(source: str, image_root, column: str, columns, allow_urls: bool) -> Iterator[tuple[str, Item]]:
    """The distinct queries, positives or negatives of rows."""
    seen = set()
    rows = iterate_examples(source, image_root, columns=columns, allow_urls=allow_urls, streaming=False)
    for _, example in rows:
        items = example.negatives if column == "negatives" else [getattr(example, column)]
        for item in items:
            if item not in seen:
                seen.add(item)
                yield str(len(seen) - 1), item
