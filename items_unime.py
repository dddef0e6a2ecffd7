"""Items: what users hand in, keys for equal ones, their prepared form, and the planner of batches."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from .batching_unime import plan_chunks
from .images_unime import MAX_IMAGE_PIXELS, Resolution, VideoFrame, load_frames, open_image
from .prompts_unime import LISTWISE_INSTRUCTION, POINTWISE, strip_placeholders


@dataclass(frozen=True)
class PreparedItem:
    """A tokenised item: ids with one placeholder per image, its images undecoded, and its length in tokens.

    `sizes` are the (width, height) at which the images will be read, `image_tokens` what each of them takes.
    """

    name: str
    prompt: str
    input_ids: list[int]
    images: tuple = ()
    sizes: tuple[tuple[int, int], ...] = ()
    image_tokens: tuple[int, ...] = ()
    resolution: Resolution = field(default_factory=Resolution)
    written: tuple[int, ...] = ()  # ids that follow the prompt, such as the beginning of an answer

    @property
    def length(self) -> int:
        return len(self.input_ids) + sum(self.image_tokens) - len(self.images) + len(self.written)


def is_chat(item) -> bool:
    return isinstance(item, (list, tuple)) and bool(item) and all(isinstance(m, Mapping) and "role" in m for m in item)


def is_image(value) -> bool:
    return isinstance(value, (str, os.PathLike, Image.Image, VideoFrame))


def split_item(item, name: str = "item", num_frames: int = 8):
    """Returns text and images of a string, a PIL image, a path, or a dict of "text" with "image" or "video".

    A `str` is always text; a path to an image is an `os.PathLike` or the value of the dict's `"image"` key. A video,
    given as a path or as its frames, becomes at most `num_frames` images. The text may be None, the images `()`.
    """
    text, image, video = None, None, None
    if isinstance(item, str):
        text = item
    elif isinstance(item, (Image.Image, os.PathLike)):
        image = item
    elif isinstance(item, Mapping):
        unknown = sorted(item.keys() - {"text", "image", "video"})
        if unknown:
            raise ValueError(f"{name} has unknown keys {unknown}; an item has 'text', 'image' or 'video'.")
        text, image, video = item.get("text"), item.get("image"), item.get("video")
        image = None if isinstance(image, str) and not image else image
    else:
        raise TypeError(
            f"{name} is a {type(item).__name__}; expected a string, a PIL image, a path, a dict with 'text', 'image' "
            "or 'video', or a list of chat messages."
        )
    if image is not None and not is_image(image):
        raise TypeError(f"{name} has an image of type {type(image).__name__}; expected a path or a PIL image.")
    if text is not None and not isinstance(text, str):
        raise TypeError(f"{name} has a text of type {type(text).__name__}; expected a string.")
    if image is not None and video is not None:
        raise ValueError(f"{name} has both an image and a video; give one of them.")
    if image is None and video is None and not (text and text.strip()):
        raise ValueError(f"{name} is empty: it has neither text nor image.")
    if video is not None:
        return text, read_frames(video, name, num_frames)
    return text, () if image is None else (image,)


def judge_messages(
    query, candidates, strategy: str = "pointwise", names=None, answer_format: str = "yes_no", num_frames: int = 8
) -> list[dict]:
    """The judge's user turn: instruction, `Query:`, the query, `Candidate:` or `Candidates:` and the candidates.

    Images stand before the text of their item; placeholders are stripped from texts (2510.13515, released code).

    Args:
        query, candidates: items.
        strategy (`str`): `"pointwise"` shows one candidate, `"listwise"` numbers several.
        names (`list[str]`, *optional*): how errors call the candidates.
        answer_format (`str`): `"yes_no"` or `"multiple_choice"`.
        num_frames (`int`): most frames of a video.
    """

    def words(text):
        return {"type": "text", "text": text}

    def parts(item, item_name):
        if is_chat(item):
            raise TypeError(f"{item_name} is a chat; the judge reads texts, images, and dicts of both.")
        text, images = split_item(item, item_name, num_frames)
        text = strip_placeholders(text or "")
        return [{"type": "image", "image": image} for image in images] + [words(text)] * bool(text)

    listwise = strategy == "listwise"
    content = [words(LISTWISE_INSTRUCTION if listwise else POINTWISE[answer_format].instruction), words("Query:")]
    content += [*parts(query, "query"), words("Candidates:" if listwise else "Candidate:")]
    for index, candidate in enumerate(candidates):
        content += [words(f"({index + 1}) ")] * listwise
        content += parts(candidate, names[index] if names else f"candidate {index}")
    return [{"role": "user", "content": content}]


def read_frames(video, name: str, num_frames: int) -> tuple[Image.Image, ...]:
    try:
        return tuple(load_frames(video, num_frames))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def item_key(item, max_pixels: int = MAX_IMAGE_PIXELS, name: str = "item") -> str:
    """A key that is equal for items of equal content: texts by value, paths by name, images by what the model sees."""
    digest = hashlib.blake2b(digest_size=16)

    def feed(value):
        if isinstance(value, Image.Image):
            try:
                seen = open_image(value, max_pixels)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            digest.update(f"P{seen.size}".encode() + seen.tobytes())
        elif isinstance(value, Mapping):
            digest.update(b"D")
            for key in sorted(value):
                feed(key)
                feed(value[key])
        elif isinstance(value, (np.ndarray, torch.Tensor)):
            array = np.asarray(value)
            digest.update(f"A{array.shape}{array.dtype}".encode() + array.tobytes())
        elif isinstance(value, (list, tuple)):
            digest.update(b"L")
            for element in value:
                feed(element)
        elif not isinstance(value, (str, os.PathLike, int, float, type(None))):
            raise TypeError(f"{name} holds a {type(value).__name__}, which is no part of an item.")
        else:
            text = os.fspath(value) if isinstance(value, os.PathLike) else value
            digest.update(f"{type(text).__name__}{isinstance(value, os.PathLike)}{len(str(text))}:{text}".encode())

    feed(item)
    return digest.hexdigest()


__all__ = [
    "PreparedItem",
    "is_chat",
    "is_image",
    "item_key",
    "judge_messages",
    "plan_chunks",
    "read_frames",
    "split_item",
]
