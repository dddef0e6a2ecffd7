"""Image-text retrieval both ways: Flickr30K, COCO, ShareGPT4V-1k and Urban1K in their public layouts."""

import hashlib
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq

from ..data.json_lists import json_list
from ..data.readers import local_path
from ..data.schema import Item
from ..jobs.shards import write_whole
from .tasks import Items, Task

SHAREGPT4V = "share-captioner_coco_lcs_sam_1246k_1107.json"
PUBLISHED = {  # kind, images, captions
    "flickr30k": ("Short", 1000, 5000),
    "coco": ("Short", 5000, 25000),
    "sharegpt4v": ("Long", 1000, 1000),
    "urban1k": ("Long", 1000, 1000),
}


def both_ways(name: str, images: list[Item], captions: list[list[Item]]) -> list[Task]:
    """The two tasks of images and their captions, named by what is the query first: `<name>_t2i` and `<name>_i2t`.

    A caption that several images have counts as right for each of them, in both directions.
    """
    if not images:
        raise ValueError(f"{name} holds no image.")
    corpus = {caption: None for own in captions for caption in own}
    index = {caption: number for number, caption in enumerate(corpus)}
    numbers = {image: number for number, image in enumerate(dict.fromkeys(images))}
    owners: dict[Item, list[int]] = {}
    for image, own in zip(images, captions):
        for caption in dict.fromkeys(own):
            owners.setdefault(caption, []).append(numbers[image])
    asked = [caption for own in captions for caption in own]
    right = [sorted({index[caption] for caption in own}) for own in captions]
    kind, *published = PUBLISHED.get(name, ("Retrieval", len(numbers), len(asked)))
    found = [len(numbers), len(asked)]
    notes = [f"{found[0]} images with {found[1]} captions, published with {published[0]} and {published[1]}"]
    shared = {"kind": kind, "candidates": None, "notes": notes if found != published else []}
    targets = [sorted(set(owners[caption])) for caption in asked]
    together = [number for number, own in enumerate(captions) for _ in own]  # captions of one image are no accident
    return [
        Task(f"{name}_t2i", queries=asked, corpus=list(numbers), relevant=targets, together=together, **shared),
        Task(f"{name}_i2t", queries=images, corpus=list(corpus), relevant=right, **shared),
    ]


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
    items, images, texts = Items(cache), [], []
    for path in paths:
        for number, image, row in image_rows(path, "image", ["text"], Path(cache)):
            where = f"{path}, row {number}"
            own = row["text"] if isinstance(row["text"], list) else [row["text"]]
            if not [text for text in own if text and text.strip()]:
                raise ValueError(f"{where}: the image has no caption.")
            images.append(items.get("", image, where))
            texts.append([items.get(text, "", where) for text in own[:captions]])
    return both_ways(name, images, texts)


def read_urban1k(root, cache=None) -> list[Task]:
    """Reads Urban1k.zip's layout: `image/<name>.jpg` and `caption/<name>.txt`, whose first line is the caption.

    Raises:
        ValueError: an image lacks its caption, or a caption its image; the message names the file.
    """
    root = Path(root)
    root = root / "Urban1k" if (root / "Urban1k").is_dir() else root
    images = {path.stem: path for path in sorted((root / "image").glob("*.jpg"))}
    captions = {path.stem: path for path in sorted((root / "caption").glob("*.txt"))}
    if odd := sorted(images.keys() ^ captions.keys()):
        raise ValueError(f"{root}: {images.get(odd[0]) or captions[odd[0]]} has no counterpart ({len(odd)} such).")
    if not images:
        raise ValueError(f"{root} holds no image/*.jpg with caption/*.txt.")
    items, found = Items(root), ([], [])
    for name, path in images.items():
        found[0].append(items.get("", f"image/{path.name}", str(path)))
        lines = captions[name].read_text(encoding="utf-8").splitlines() or [""]
        found[1].append([items.get(lines[0].strip(), "", f"{captions[name]}, line 1")])
    return both_ways("urban1k", *found)


def read_sharegpt4v(root, cache=None, image_root=None, count: int = 1000) -> list[Task]:
    """Reads the first thousand rows of ShareGPT4V's `share-captioner_coco_lcs_sam_1246k_1107.json`.

    Raises:
        ValueError: a row lacks its image or its caption; the message names file and row.
    """
    path = Path(root)
    path = path / SHAREGPT4V if path.is_dir() else path
    if not path.exists():
        raise ValueError(f"{path} does not exist.")
    items, found = Items(image_root or path.parent), ([], [])
    for where, row in islice(json_list(path), count):
        try:
            caption = row["conversations"][1]["value"].replace("\n", " ")
            image = row["image"]
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"{where}: lacks an image, or a caption in its second turn.") from error
        found[0].append(items.get("", image, where))
        found[1].append([items.get(caption, "", where)])
    return both_ways("sharegpt4v", *found)


READERS: dict[str, Callable] = {
    "flickr30k": lambda root, cache, image_root: read_captioned("flickr30k", root, cache),
    "coco": lambda root, cache, image_root: read_captioned("coco", root, cache),
    "sharegpt4v": lambda root, cache, image_root: read_sharegpt4v(root, cache, image_root),
    "urban1k": lambda root, cache, image_root: read_urban1k(root, cache),
}


def read_retrieval(root, names: Iterable[str] | None = None, cache=None, image_root=None) -> list[Task]:
    """Reads `<root>/<name>` for each of `flickr30k`, `coco`, `sharegpt4v`, `urban1k`; all that are there by default.

    Raises:
        ValueError: a name is unknown, or none is there; and what the readers raise.
    """
    root = Path(root)
    names = list(names) if names else [name for name in READERS if (root / name).exists()]
    if unknown := [name for name in names if name not in READERS]:
        raise ValueError(f"unknown retrieval sets {unknown}; there are {', '.join(READERS)}.")
    if not names:
        raise ValueError(f"{root} holds none of the folders {', '.join(READERS)} (`unime data fetch` makes them).")
    tasks = []
    for name in names:
        folder = Path(cache or root / "images") / name
        tasks += READERS[name](root / name, folder, image_root)
    return tasks


def image_rows(path: Path, column: str, others: list[str], folder: Path):
    """Rows of a Parquet file whose images are kept in it: number, the unpacked image's file name, other columns."""
    folder.mkdir(parents=True, exist_ok=True)
    with pq.ParquetFile(path) as file:
        have = file.schema_arrow.names
        if missing := [name for name in (column, *others) if name not in have]:
            raise ValueError(f"{path} lacks the columns {missing}; it has {have}.")
        number = 0
        for batch in file.iter_batches(columns=[column, *others], batch_size=64):
            for row in batch.to_pylist():
                image = row.pop(column)
                if not isinstance(image, dict) or not image.get("bytes"):
                    raise ValueError(f"{path}, row {number}: holds no image.")
                name = hashlib.blake2b(image["bytes"], digest_size=12).hexdigest()  # equal pictures are one file
                name += Path(image.get("path") or "").suffix or ".jpg"
                target = folder / name
                if not target.exists():
                    write_whole(target, lambda draft, content=image["bytes"]: draft.write_bytes(content))
                yield number, name, row
                number += 1
