"""Items: what users hand in, keys for equal ones, their prepared form, and the planner of batches."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image

from .batching_unime import plan_chunks
from .images_unime import MAX_IMAGE_PIXELS, Media, Resolution, VideoFrame, images_of_array, load_frames, open_image
from .prompts_unime import LISTWISE_INSTRUCTION, PLACEHOLDER, POINTWISE, instruct, strip_placeholders
from .urls_unime import URL, fetch
from .videos_unime import Clip, load_clip, without_clips

FIELDS = ("text", "image", "images", "video", "instruction", "fps", "num_frames")  # of an item that is a dict


class PromptTooLong(ValueError):
    """A prompt is longer than the limit, and nothing of it may be cut."""


@dataclass(frozen=True)
class PreparedItem:
    """A tokenised item whose images are not decoded yet, only measured.

    Args:
        name (`str`): how an error calls the item.
        prompt (`str`): the text that was tokenised.
        input_ids (`list[int]`): its tokens, with one placeholder for each image.
        images (`tuple`): paths, PIL images, [`~unime.images_unime.VideoFrame`]s or [`~unime.videos_unime.Clip`]s, in
            the order of their placeholders.
        sizes (`tuple`): (width, height) at which each image will be read, in pixels.
        image_tokens (`tuple[int]`): tokens that each image takes.
        resolution (`Resolution`): the policy from which the sizes follow.
        written (`tuple[int]`): ids that follow the prompt, such as the beginning of an answer.
        of_video (`bool`): whether its images are the frames of a video.
    """

    name: str
    prompt: str
    input_ids: list[int]
    images: tuple = ()
    sizes: tuple[tuple[int, int], ...] = ()
    image_tokens: tuple[int, ...] = ()
    resolution: Resolution = field(default_factory=Resolution)
    written: tuple[int, ...] = ()
    of_video: bool = False

    @property
    def length(self) -> int:
        """Tokens of the whole sequence, its images unfolded."""
        text_tokens = len(self.input_ids) - len(self.images)
        return text_tokens + sum(self.image_tokens) + len(self.written)


def is_chat(item) -> bool:
    """Whether an item is a list of chat messages."""
    if not isinstance(item, (list, tuple)) or not item:
        return False
    return all(isinstance(message, Mapping) and "role" in message for message in item)


def is_image(value) -> bool:
    """Whether a value can stand for an image: a path, bytes, a PIL image, an array or a frame of a video."""
    return isinstance(value, (str, os.PathLike, bytes, bytearray, Image.Image, VideoFrame, np.ndarray, torch.Tensor))


def is_video(item) -> bool:
    """Whether an item is a video, with or without a text."""
    if isinstance(item, (np.ndarray, torch.Tensor)):
        return item.ndim == 4
    return isinstance(item, Mapping) and item.get("video") is not None


def instruction_of(item) -> str | None:
    """The instruction that an item brings with it, or None."""
    instruction = item.get("instruction") if isinstance(item, Mapping) else None
    if instruction is not None and not isinstance(instruction, str):
        raise TypeError(f"an instruction must be a string, not {type(instruction).__name__}.")
    return instruction or None


def with_instruction(item, instruction: str | None):
    """An item with an instruction of its own, unless it has one already or is a chat.

    Args:
        item: what [`split_item`] takes, or chat messages.
        instruction (`str`, *optional*): what the item is to be read as.

    Example:

    ```python
    with_instruction("a ring", "Find the caption:")  # {"text": "a ring", "instruction": "Find the caption:"}
    ```
    """
    if not instruction or is_chat(item) or instruction_of(item):
        return item
    return {**item_fields(item), "instruction": instruction}


def split_item(item, name: str = "item", media: Media | None = None, may_be_empty: bool = False):
    """Takes an item apart into its text and its images.

    Args:
        item: one of

            - a string, which is always text;
            - an image: a PIL image, an `os.PathLike`, bytes, or an array `[H, W, 3]` or `[3, H, W]`;
            - a dict of `"text"` with `"image"` or `"video"`, where a path may be a string too (also a data URI, an
              `https://` address where `media` allows it, or a page, `"report.pdf#page=3"`), and `"image"` a list of
              images; `"fps"` or `"num_frames"` say how its video is read;
            - a list of texts and images in their order: `[{"text": "from"}, {"image": "a.png"}, {"text": "on"}]`.
        name (`str`, defaults to `"item"`): how errors call the item.
        media ([`~unime.images_unime.Media`], *optional*): how many frames a video becomes, and whether addresses are
            read.
        may_be_empty (`bool`, defaults to `False`): take an item without text and image, whose text is `None`.

    Returns:
        the text, or `None`, and a tuple of images, which may be empty. A text that is interleaved with images has a
        placeholder for each of them.

    Raises:
        TypeError: the item, its text or its image is of another type.
        ValueError: the item is empty, has both an image and a video, or has unknown keys.

    Example:

    ```python
    split_item({"text": "at night", "image": "photo.png"})  # ("at night", ("photo.png",))
    ```
    """
    media = media or Media()
    fields = item_fields(item, name)
    text = fields.get("text")
    image = fields.get("image")
    video = fields.get("video")
    if isinstance(image, str) and not image:  # how tables write that there is no image
        image = None

    images = tuple(image) if isinstance(image, (list, tuple)) else (image,)
    for entry in images:
        if image is not None and not is_image(entry):
            raise TypeError(f"{name} has an image of type {type(entry).__name__}; expected a path or a PIL image.")
    if text is not None and not isinstance(text, str):
        raise TypeError(f"{name} has a text of type {type(text).__name__}; expected a string.")
    require_unicode(text or "", name)

    if image is not None and video is not None:
        raise ValueError(f"{name} has both an image and a video; give one of them.")
    if image is None and video is None and not (text and text.strip()) and not may_be_empty:
        raise ValueError(f"{name} is empty: it has neither text nor image.")

    if video is not None:
        return text, read_frames(video, name, _media_of(fields, media, name))
    if image is not None:
        return text, tuple(read_source(entry, name, media) for entry in images)
    return text, ()


def item_fields(item, name: str = "item") -> dict:
    """An item as a dict of its text, its images or its video."""
    if isinstance(item, str):
        return {"text": item}
    if isinstance(item, (list, tuple)):
        return _interleaved(item, name)
    if isinstance(item, (np.ndarray, torch.Tensor)) and item.ndim == 4:
        return {"video": item}
    if is_image(item):
        return {"image": item}
    if not isinstance(item, Mapping):
        raise TypeError(
            f"{name} is a {type(item).__name__}; expected a string, a PIL image, a path, an array, bytes, a dict with "
            "'text', 'image' or 'video', a list of these, or a list of chat messages."
        )

    unknown = sorted(item.keys() - set(FIELDS), key=str)
    if unknown:
        raise ValueError(f"{name} has unknown keys {unknown}; an item has 'text', 'image' or 'video'.")

    # `images` is another name for several of them
    fields = dict(item)
    if "images" in fields:
        if fields.get("image") is not None:
            raise ValueError(f"{name} has both 'image' and 'images'; give one of them.")
        images = fields.pop("images")
        is_list = hasattr(images, "__len__") and not isinstance(images, (str, bytes, Mapping))
        if images is not None and not is_list:
            raise TypeError(f"{name} has 'images' that are a {type(images).__name__}; give a list of images.")
        fields["image"] = list(images) if images is not None and len(images) else None
    return fields


def _interleaved(parts, name: str) -> dict:
    """A list of texts and images as one text, in which placeholders stand for the images."""
    text = ""
    images = []
    for part in parts:
        fields = item_fields(part, name) if not isinstance(part, (list, tuple)) else {"text": None, "list": part}
        if fields.keys() - {"text", "image"} or len(fields) != 1:
            raise TypeError(f"{name} is a list, of which each part must be one text or one image; got {part!r:.80}.")

        if isinstance(fields.get("text"), str):
            if PLACEHOLDER.search(fields["text"]):
                raise ValueError(
                    f"{name} is a list, whose images have their places in it; remove the placeholder from "
                    f"{fields['text']!r:.80}."
                )
            text += fields["text"]
        elif is_image(fields.get("image")):
            images.append(fields["image"])
            text += f"<|image_{len(images)}|>"
        else:
            raise TypeError(f"{name} is a list, of which each part must be a text or an image; got {part!r:.80}.")

    # images alone need no places
    if not strip_placeholders(text).strip():
        return {"image": images or None}
    return {"text": text, "image": images} if images else {"text": text}


def _media_of(fields: dict, media: Media, name: str) -> Media:
    """How the video of an item is read, of which it may say something itself."""
    for key in ("fps", "num_frames"):
        value = fields.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise ValueError(f"{name} has the {key} {value!r}; it must be a positive number.")

        # so many frames, whatever would be taken a second
        if key == "fps":
            media = replace(media, fps=value, rate=value)
        else:
            media = replace(media, num_frames=int(value), fps=None)
    return media


def read_source(image, name: str, media: Media):
    """An image as it is opened later: an array becomes an image, an address the file that it names.

    Args:
        image: what [`is_image`] takes.
        name (`str`): how errors call the item.
        media ([`~unime.images_unime.Media`]): whether addresses are read.

    Raises:
        ValueError: the array is not an image, or the address cannot be read.
    """
    try:
        if isinstance(image, (np.ndarray, torch.Tensor)):
            return images_of_array(image)
        if isinstance(image, str) and URL.match(image):
            return fetch(image, media.allow_urls)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return image


def require_unicode(text: str, name: str):
    """Refuses a text with half a character, which no tokenizer reads.

    Args:
        text (`str`): of an item.
        name (`str`): how the error calls the item.

    Raises:
        ValueError: there is half a character, what JSON writes as `"\\ud800"`; the message says where.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise ValueError(
            f"{name} has half a character, \\u{code:04x}, at place {error.start + 1} of its text."
        ) from error


def describe(item) -> str:
    """A few words by which a person finds an item again where its number is not known.

    Args:
        item: whatever stands for an item.

    Example:

    ```python
    describe({"text": "at night", "image": "photo.png"})  # "the item of the text 'at night' and image 'photo.png'"
    ```
    """
    if is_chat(item):
        return f"the chat of {len(item)} messages"
    if isinstance(item, (list, tuple)):
        return f"the item of {len(item)} parts"

    parts = item
    if isinstance(item, str):
        parts = {"text": item}
    elif not isinstance(item, Mapping):
        parts = {"image": item}

    words = []
    for kind in ("text", "image", "video"):
        value = parts.get(kind)
        if isinstance(value, Image.Image):
            words.append(f"{kind} of {value.width} x {value.height} pixels")
        elif isinstance(value, (str, os.PathLike)) and str(value):
            # a text may be a whole book
            short = str(value)
            if len(short) > 80:
                short = short[:77] + "..."
            words.append(f"{kind} {short!r}")
        elif value is not None and value != "":
            words.append(f"{kind} of type {type(value).__name__}")
    return f"the item of the {' and '.join(words) or 'empty text'}"


def judge_messages(
    query,
    candidates,
    strategy: str = "pointwise",
    names=None,
    answer_format: str = "yes_no",
    media: Media | None = None,
    image_text: str = "",
    instruction: str | None = None,
) -> list[dict]:
    """The judge's user turn: instruction, `Query:`, the query, `Candidate:` or `Candidates:` and the candidates.

    Images stand before the text of their item; placeholders are stripped from texts (UniME-V2, 2510.13515, released
    code).

    Args:
        query: an item.
        candidates (`list`): items.
        strategy (`str`, defaults to `"pointwise"`): `"pointwise"` shows one candidate, `"listwise"` numbers several.
        names (`list[str]`, *optional*): how errors call the candidates.
        answer_format (`str`, defaults to `"yes_no"`): `"yes_no"` or `"multiple_choice"`.
        media ([`~unime.images_unime.Media`], *optional*): how many frames a video becomes.
        image_text (`str`): follows every image without a text.
        instruction (`str`, *optional*): put before the query's text (see [`~unime.prompts_unime.instruct`]).

    Returns:
        a list of one message, whose content is a list of text and image parts.

    Raises:
        TypeError: an item is a chat, or is not an item.

    Example:

    ```python
    judge_messages("a red circle", [{"image": "photo.png"}])
    ```
    """
    listwise = strategy == "listwise"
    task = LISTWISE_INSTRUCTION if listwise else POINTWISE[answer_format].instruction

    content = [_text_part(task), _text_part("Query:")]
    content += _item_parts(query, "query", media, image_text, instruction_of(query) or instruction)

    content.append(_text_part("Candidates:" if listwise else "Candidate:"))
    for index, candidate in enumerate(candidates):
        if listwise:
            content.append(_text_part(f"({index + 1}) "))

        name = names[index] if names else f"candidate {index}"
        content += _item_parts(candidate, name, media, image_text)
    return [{"role": "user", "content": content}]


def _text_part(text: str) -> dict:
    """A text as a part of a message."""
    return {"type": "text", "text": text}


def _item_parts(item, name: str, media: Media | None, image_text: str, instruction: str | None = None) -> list[dict]:
    """An item as parts of a message, its images first unless its text says where they stand."""
    if is_chat(item):
        raise TypeError(f"{name} is a chat; the judge reads texts, images, and dicts of both.")
    text, images = split_item(item, name, without_clips(media or Media()))
    if len(images) > 1 and len(PLACEHOLDER.findall(text or "")) == len(images):
        return _placed_parts(instruct(instruction, text), images)

    parts = [{"type": "image", "image": image} for image in images]
    if images:
        text = strip_placeholders(text or "")  # the image stands before its text
        if not text.strip():
            text = image_text
    text = instruct(instruction, text)
    if text:
        parts.append(_text_part(text))
    return parts


def _placed_parts(text: str, images: tuple) -> list[dict]:
    """A text with places for images as parts of a message."""
    parts = []
    remaining = iter(images)
    for number, piece in enumerate(PLACEHOLDER.split(text)):
        if number > 0:
            parts.append({"type": "image", "image": next(remaining)})
        if piece:
            parts.append(_text_part(piece))
    return parts


def read_frames(video, name: str, media: Media) -> tuple[Image.Image | Clip, ...]:
    """The frames of a video, or the video itself for a backbone that reads videos, with errors that name the item.

    Raises:
        ValueError: the video cannot be decoded, or has no frame.
    """
    try:
        if isinstance(video, torch.Tensor):
            video = images_of_array(video)
        if media.as_clips:
            return (load_clip(video, media),)
        return tuple(load_frames(video, media))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def item_key(item, max_pixels: int = MAX_IMAGE_PIXELS, name: str = "item") -> str:
    """A key that is equal for items of equal content: texts by value, paths by name, images by what the model sees.

    Args:
        item: what [`split_item`] takes, chat messages, or a part of either.
        max_pixels (`int`): images with more pixels are refused before they are decoded.
        name (`str`, defaults to `"item"`): how errors call the item.

    Returns:
        32 hexadecimal digits.

    Raises:
        ValueError: an image is unreadable or too large.
        TypeError: the item holds something of another kind.
    """
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest, item, max_pixels, name)
    return digest.hexdigest()


def _feed(digest, value, max_pixels: int, name: str):
    """Adds a value to the digest, after a mark for its kind, so that values of two kinds are never equal."""
    if isinstance(value, Image.Image):
        try:
            image = open_image(value, max_pixels)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        digest.update(f"P{image.size}".encode() + image.tobytes())

    elif isinstance(value, Mapping):
        digest.update(b"D")
        for key in sorted(value, key=repr):
            _feed(digest, key, max_pixels, name)
            _feed(digest, value[key], max_pixels, name)

    elif isinstance(value, (np.ndarray, torch.Tensor)):
        array = np.asarray(value)
        digest.update(f"A{array.shape}{array.dtype}".encode() + array.tobytes())

    elif isinstance(value, (list, tuple)):
        digest.update(b"L")
        for element in value:
            _feed(digest, element, max_pixels, name)

    elif isinstance(value, (bytes, bytearray)):
        digest.update(b"B%d:" % len(value) + value)

    elif isinstance(value, (str, os.PathLike, int, float, type(None))):
        is_path = isinstance(value, os.PathLike)
        plain = os.fspath(value) if is_path else value
        text = f"{type(plain).__name__}{is_path}{len(str(plain))}:{plain}"
        digest.update(text.encode("utf-8", "surrogatepass"))  # half a character is refused where the text is read

    else:
        raise TypeError(
            f"{name} holds a {type(value).__name__}; an item consists of texts, images, paths, numbers, arrays, and "
            "lists and dicts of them."
        )


__all__ = [
    "PreparedItem",
    "PromptTooLong",
    "describe",
    "instruction_of",
    "is_chat",
    "is_image",
    "is_video",
    "item_fields",
    "item_key",
    "judge_messages",
    "plan_chunks",
    "read_frames",
    "read_source",
    "require_unicode",
    "split_item",
    "with_instruction",
]
