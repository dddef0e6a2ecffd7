"""Image-text retrieval both ways: Flickr30K, COCO, ShareGPT4V-1k and Urban1K in their public layouts."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

from ..data.json_lists import json_list
from ..data.readers import local_path
from ..data.schema import Item
from ..data.texts import read_text
from ..files.identity import digest_of, file_identity
from ..files.writing import write_bytes
from ..images_unime import IMAGES
from .tasks import Items, Task, lacking

SHAREGPT4V = "share-captioner_coco_lcs_sam_1246k_1107.json"


class Size(NamedTuple):
    """The kind of a retrieval set's captions, and how many images and captions it has."""

    kind: str
    images: int
    captions: int


PUBLISHED = {  # the sets as the papers have them
    "flickr30k": Size("Short", 1000, 5000),
    "coco": Size("Short", 5000, 25000),
    "sharegpt4v": Size("Long", 1000, 1000),
    "urban1k": Size("Long", 1000, 1000),
}


def both_ways(name: str, images: list[Item], captions: list[list[Item]]) -> list[Task]:
    """The two tasks of images and their captions, named by what is the query first: `<name>_t2i` and `<name>_i2t`.

    A caption that several images have counts as right for each of them, in both directions.

    Args:
        name (`str`): of the set; the tasks of a published one note if its size differs.
        images (`list[Item]`).
        captions (`list[list[Item]]`): of each image.

    Returns:
        `list[Task]`: text to image, image to text. Captions of one image are drawn together for intervals.

    Raises:
        ValueError: there is no image.

    Example:

    ```python
    to_image, to_text = both_ways("mine", [Item(image="ring.png")], [[Item("a ring"), Item("two rings")]])
    ```
    """
    if not images:
        raise ValueError(f"{name} holds no image.")

    # equal images are one candidate, and so are equal captions
    text_queries = list(chain.from_iterable(captions))
    image_places = _places(images)
    caption_places = _places(text_queries)

    # what is right in both directions
    images_of: dict[Item, set[int]] = {caption: set() for caption in caption_places}
    right_captions = []  # of each image
    together = []  # for each caption, the number of its image
    for number, (image, image_captions) in enumerate(zip(images, captions)):
        places = set()
        for caption in image_captions:
            images_of[caption].add(image_places[image])
            places.add(caption_places[caption])
            together.append(number)
        right_captions.append(sorted(places))

    # after all images, as a later one may have the caption of an earlier one
    right_images = [sorted(images_of[caption]) for caption in text_queries]

    # a partial download is measured all the same, and says so
    size = Size("Retrieval", len(image_places), len(text_queries))
    notes = []
    if published := PUBLISHED.get(name):
        size = size._replace(kind=published.kind)
        if size != published:
            notes.append(
                f"{size.images} images with {size.captions} captions, published with {published.images} and "
                f"{published.captions}"
            )

    to_image = Task(
        f"{name}_t2i",
        size.kind,
        queries=text_queries,
        corpus=list(image_places),
        candidates=None,
        relevant=right_images,
        together=together,
        notes=notes,
        benchmark="retrieval",
    )
    to_text = Task(
        f"{name}_i2t",
        size.kind,
        queries=images,
        corpus=list(caption_places),
        candidates=None,
        relevant=right_captions,
        notes=list(notes),
        benchmark="retrieval",
    )
    return [to_image, to_text]


def _places(items: Iterable[Item]) -> dict[Item, int]:
    """The distinct items in the order of their first appearance, numbered."""
    places: dict[Item, int] = {}
    for item in items:
        places.setdefault(item, len(places))
    return places


# the public layouts
def read_captioned(name: str, root, cache, captions: int = 5) -> list[Task]:
    """Reads `royokong/flickr30k_test` and `royokong/coco_test`: Parquet files with an `image` and a list `text`.

    Args:
        name (`str`): `"flickr30k"` or `"coco"`.
        root: folder with the Parquet files (at any depth), or `hf://datasets/<owner>/<name>`.
        cache: folder into which the images are unpacked, once.
        captions (`int`, defaults to 5): at most so many of an image, in order.

    Raises:
        ValueError: a column is missing, or an image has no caption; the message names file and row.
    """
    root = local_path(root, ["data/*.parquet"])
    paths = sorted(root.rglob("*.parquet"))
    if not paths:
        raise ValueError(f"{root} holds no Parquet files of {name}.")

    items = Items(cache)
    images = []
    image_captions = []
    for path in paths:
        for number, image, row in image_rows(path, "image", ["text"], Path(cache)):
            where = f"{path}, row {number}"
            texts = row["text"]
            if not isinstance(texts, list):
                texts = [texts]

            # an image without a caption would be found by no query
            if not any(text and text.strip() for text in texts):
                raise ValueError(f"{where}: the image has no caption.")

            images.append(items.get("", image, where))
            image_captions.append([items.get(text, "", where) for text in texts[:captions]])

    return both_ways(name, images, image_captions)


def read_urban1k(root, cache=None) -> list[Task]:
    """Reads Urban1k.zip's layout: `image/<name>.jpg` and `caption/<name>.txt`, whose first line is the caption.

    Args:
        root (`str` or `Path`): folder with both, or the one above it.
        cache: not used; these images are files already.

    Raises:
        ValueError: an image lacks its caption, or a caption its image; the message names the file.
    """
    root = Path(root)
    if (root / "Urban1k").is_dir():
        root = root / "Urban1k"

    # an image and its caption have one name
    image_paths = {path.stem: path for path in sorted((root / "image").glob("*.jpg"))}
    caption_paths = {path.stem: path for path in sorted((root / "caption").glob("*.txt"))}
    if single := sorted(image_paths.keys() ^ caption_paths.keys()):
        path = image_paths.get(single[0]) or caption_paths[single[0]]
        raise ValueError(f"{root}: {path} has no counterpart ({len(single)} such).")
    if not image_paths:
        raise ValueError(f"{root} holds no image/*.jpg with caption/*.txt.")

    items = Items(root)
    images = []
    captions = []
    for name, path in image_paths.items():
        lines = read_text(caption_paths[name]).splitlines() or [""]
        images.append(items.get("", f"image/{path.name}", str(path)))
        captions.append([items.get(lines[0].strip(), "", f"{caption_paths[name]}, line 1")])
    return both_ways("urban1k", images, captions)


def read_sharegpt4v(root, cache=None, image_root=None, count: int = 1000) -> list[Task]:
    """Reads the first thousand rows of ShareGPT4V's `share-captioner_coco_lcs_sam_1246k_1107.json`.

    Args:
        root (`str` or `Path`): that file, or its folder.
        cache: not used; these images are files already.
        image_root (`str` or `Path`, *optional*): where image paths start; the file's folder by default.
        count (`int`, defaults to 1000): how many rows.

    Raises:
        ValueError: a row lacks its image or its caption; the message names file and row.
    """
    path = Path(root)
    if path.is_dir():
        path = path / SHAREGPT4V
    if not path.exists():
        raise ValueError(f"{path} does not exist.")

    items = Items(image_root or path.parent)
    images = []
    captions = []
    for where, row in islice(json_list(path), count):
        try:
            # the first turn asks for a description, the second gives it
            caption = row["conversations"][1]["value"].replace("\n", " ")
            image = row["image"]
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"{where}: lacks an image, or a caption in its second turn.") from error

        images.append(items.get("", image, where))
        captions.append([items.get(caption, "", where)])
    return both_ways("sharegpt4v", images, captions)


def read_retrieval(root, names: Iterable[str] | None = None, cache=None, image_root=None) -> list[Task]:
    """Reads `<root>/<name>` for each of `flickr30k`, `coco`, `sharegpt4v`, `urban1k`; all that are there by default.

    Args:
        root (`str` or `Path`): folder of the sets.
        names (*optional*): which of them.
        cache (*optional*): folder into which images are unpacked, once; `<root>/images` by default.
        image_root (*optional*): where the image paths of ShareGPT4V start; its folder by default.

    Raises:
        ValueError: a name is unknown, or none is there; and what the readers raise.

    Example:

    ```python
    tasks = read_retrieval("benchmarks-data", ["flickr30k", "coco"])
    ```
    """
    root = Path(root)
    cache = Path(cache or root / "images")
    names = list(names or ())
    if not names:
        names = [name for name in PUBLISHED if (root / name).exists()]
    if unknown := lacking(PUBLISHED, names):
        raise ValueError(f"unknown retrieval sets {unknown}; there are {', '.join(PUBLISHED)}.")
    if not names:
        raise ValueError(f"{root} holds none of the folders {', '.join(PUBLISHED)} (`unime data fetch` makes them).")

    # each of them has a layout of its own
    tasks = []
    for name in names:
        if name == "sharegpt4v":
            tasks += read_sharegpt4v(root / name, image_root=image_root)
        elif name == "urban1k":
            tasks += read_urban1k(root / name)
        else:
            tasks += read_captioned(name, root / name, cache / name)
    return tasks


# images in Parquet files
def image_rows(path: Path, column: str, others: list[str], folder: Path) -> Iterator[tuple[int, str, dict]]:
    """Rows of a Parquet file that holds its images itself; these are unpacked.

    Args:
        path (`Path`): of the file.
        column (`str`): that of the images.
        others (`list[str]`): other columns that are needed.
        folder (`Path`): into which images are unpacked, each once.

    Yields:
        `(number, image, row)`: the row's number, the file name of its image in `folder`, and its other columns.

    Raises:
        ValueError: a column is missing, or a row holds no image; the message names file and row.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with pq.ParquetFile(path) as file:
        present = file.schema_arrow.names
        if missing := lacking(present, (column, *others)):
            raise ValueError(f"{path} lacks the columns {missing}; it has {present}.")

        # images are large: few of them are in memory at once
        number = 0
        for batch in file.iter_batches(columns=[column, *others], batch_size=64):
            for row in batch.to_pylist():
                image = row.pop(column)
                if not isinstance(image, dict) or not image.get("bytes"):
                    raise ValueError(f"{path}, row {number}: holds no image.")

                yield number, _unpack(image, folder), row
                number += 1


def _unpack(image: dict, folder: Path) -> str:
    """Writes an image into a folder, unless it is there, and returns its name; equal images are one file."""
    content = image["bytes"]

    # of the name that the row gives, only an ending that images have counts
    suffix = Path(str(image.get("path") or "")).suffix.lower()
    if suffix not in IMAGES:
        suffix = ".jpg"
    name = hashlib.blake2b(content, digest_size=12).hexdigest() + suffix

    # a file of that name may have been damaged since
    target = folder / name
    if file_identity(target) != digest_of(content):
        write_bytes(target, content)
    return name
