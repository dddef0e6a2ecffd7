"""What users of sentence-transformers hand in: items in every form that it documents, pairs, and settings."""

import http.client
import io

import numpy as np
import torch
from PIL import Image

from .images_unime import images_of_array, open_image
from .items_unime import is_chat
from .processing_unime import SETTINGS
from .urls_unime import URL, download

HUB_NAMES = {
    "token": "token",
    "cache_folder": "cache_dir",
    "revision": "revision",
    "local_files_only": "local_files_only",
}


def split_processor_kwargs(kwargs: dict) -> tuple[dict, dict]:
    """Settings of a UniME processor, and limits of the image processor, out of what users set for any processor."""
    names = {name: name for name in SETTINGS} | {"model_max_length": "max_length"}
    settings = {}
    pixels = {}
    unknown = []
    for name, value in kwargs.items():
        if name in names:
            settings[names[name]] = value
        elif name in ("min_pixels", "max_pixels"):
            pixels[name] = value
        elif name not in (*HUB_NAMES.values(), "trust_remote_code"):
            unknown.append(name)

    if unknown:
        raise ValueError(
            f"processor_kwargs has {', '.join(sorted(unknown))}, which mean nothing here; it may have "
            f"{', '.join(sorted(names))}, min_pixels and max_pixels."
        )
    return settings, pixels


def limit_pixels(processor, min_pixels: int | None = None, max_pixels: int | None = None):
    """Sets the limits between which the image processor scales every image."""
    size = dict(processor.image_processor.size)
    if "longest_edge" not in size or "shortest_edge" not in size:
        name = type(processor.image_processor).__name__
        raise ValueError(f"min_pixels and max_pixels mean nothing to a {name}; set `resolution` instead.")

    if min_pixels is not None:
        size["shortest_edge"] = min_pixels
    if max_pixels is not None:
        size["longest_edge"] = max_pixels
    processor.image_processor.size = type(processor.image_processor.size)(**size)


def reading_of(processing_kwargs: dict | None, max_length: int | None) -> dict:
    """How the items of one call are read: the fields of `Reading` that `processing_kwargs` sets.

    It has the shape that sentence-transformers documents, `{"text": {"max_length": 256}, "image": {...}}`.
    """
    reading = {} if max_length is None else {"max_length": max_length}
    unknown = []
    for kind, settings in (processing_kwargs or {}).items():
        for name, value in settings.items():
            if (kind, name) == ("text", "max_length"):
                reading["max_length"] = value
            elif (kind, name) == ("image", "max_pixels"):
                reading["resolution"] = f"pixels:{value}"
            elif (kind, name) == ("image", "resolution"):
                reading["resolution"] = value
            elif (kind, name) not in (("text", "truncation"), ("text", "padding")) or value in (False, None):
                unknown.append(f"{kind}.{name}")  # texts are always padded, and cut where they are too long

    if unknown:
        raise ValueError(
            f"processing_kwargs has {', '.join(unknown)}, which are not available; it may have text.max_length, "
            "image.max_pixels and image.resolution."
        )
    return reading


def as_item(value):
    """What `encode` takes: a string is a text, whatever it looks like, and `{"image": name}` is an image.

    Addresses and data URIs of images are read here, and files that `datasets` holds in memory; any other name is a
    path. Arrays are images and videos.
    """
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return {"image" if value.ndim == 3 else "video": images_of_array(value)}
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return {"video": images_of_array(value["array"])}

    item = dict(value)
    for kind in ("image", "video"):
        if isinstance(item.get(kind), dict) and "array" in item[kind]:
            item[kind] = item[kind]["array"]
        if isinstance(item.get(kind), (np.ndarray, torch.Tensor)):
            item[kind] = images_of_array(item[kind])
    if "image" in item:
        item["image"] = _opened(item["image"])
    return item


def _opened(image):
    """An image that the processor reads, out of an address, a data URI, or what `datasets` stores of an image."""
    if isinstance(image, dict) and image.keys() <= {"bytes", "path"}:
        if not image.get("bytes"):
            return image.get("path")
        try:
            return Image.open(io.BytesIO(image["bytes"]))
        except OSError as error:
            raise ValueError(f"an image in memory, of {len(image['bytes'])} bytes, cannot be read: {error}") from error
    if not isinstance(image, str):
        return image

    # an address or a data URI; any other string is a path
    if image.startswith("data:image/"):
        return open_image(image)
    if URL.match(image):
        return _downloaded(image)
    return image


def _downloaded(address: str) -> Image.Image:
    """An image at an address, which is never that of a private network."""
    try:
        content = download(address, ("http", "https"))
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ValueError(f"{address} cannot be read: {error}.") from error
    return open_image(content)


def as_pair(value):
    """The query and the candidate of an input, and the instruction it holds, if it does; else None twice."""
    if is_chat(value):
        contents = {message["role"]: message["content"] for message in value}
        if "query" not in contents or "document" not in contents:
            return None, None
        pair = (_content_as_item(contents["query"]), _content_as_item(contents["document"]))
        return pair, _content_as_item(contents.get("system", "")).get("text")

    is_pair = isinstance(value, (list, tuple)) and len(value) == 2
    return (value, None) if is_pair else (None, None)


def _content_as_item(content) -> dict:
    """The item that the content of a message is: a text, or a list of parts."""
    if isinstance(content, str):
        return {"text": content}
    if not isinstance(content, (list, tuple)):
        return content

    item = {}
    for entry in content:
        kind = entry["type"]
        if kind in item:
            raise ValueError(f"a query or a document has one {kind} at most, and a message has several.")
        item[kind] = entry[kind]
    return item


def as_chat(value) -> list[dict]:
    """A chat as it is, or the user's message that holds an item."""
    if is_chat(value):
        return value

    item = as_item(value)
    if isinstance(item, str):
        item = {"text": item}
    elif not isinstance(item, dict):
        item = {"image": item}
    content = [{"type": kind, kind: value} for kind, value in item.items() if value is not None]
    return [{"role": "user", "content": content}]


__all__ = [
    "HUB_NAMES",
    "as_chat",
    "as_item",
    "as_pair",
    "limit_pixels",
    "reading_of",
    "split_processor_kwargs",
]
