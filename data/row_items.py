"""Items of rows: whatever a data file can say of a text, of images or of a video becomes an [`Item`]."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from .findings import Findings
from .images import ImageFiles
from .schema import PLACEHOLDER, Item
from .texts import require_text, shown

KEYS = ("text", "image", "images", "more_images", "video", "instruction", "fps", "num_frames")
STORED = ("bytes", "path")  # what `datasets` stores of an image or a video


def item_of(text: str | None, image, root, findings: Findings | None = None, instruction: str | None = None) -> Item:
    """An item of a data file; a placeholder without an image is a known oddity of MMEB and is dropped.

    Args:
        text (`str`, *optional*): the text; `None` and an empty one are the same.
        image (*optional*): path of an image below `root`, or whatever [`~unime.data.images.ImageFiles.name_of`] takes,
            or a list of these; `None` and an empty one are the same.
        root (`Path` or [`~unime.data.images.ImageFiles`]): where image paths start.
        findings ([`Findings`], *optional*): says whether the image must exist, and takes notes of what was mended.
        instruction (`str`, *optional*): of this item alone.

    Raises:
        ValueError: there is neither text nor image, one of them is not a string or not valid Unicode, or the image is
            missing or outside `root`.
    """
    findings = findings or Findings()
    files = root
    if not isinstance(root, ImageFiles):
        files = ImageFiles(Path(root), must_exist=findings.images_must_exist)

    text = valid_text(text)
    values = image if isinstance(image, (list, tuple)) else [image]
    images = [name for name in map(files.name_of, values) if name]

    if not images and PLACEHOLDER in text:
        text = text.replace(PLACEHOLDER + "\n", "").replace(PLACEHOLDER, "")
        findings.notes["image placeholders dropped from texts without an image"] += 1
    return Item(text, images[0] if images else "", tuple(images[1:]), valid_text(instruction))


def item_from(value, files: ImageFiles, findings: Findings) -> Item:
    """An item of a row: a text, an image as `datasets` stores it, an object, several images, or a list of parts.

    Args:
        value: a text; bytes or `{"bytes", "path"}`; `{"text", "image", "images", "video", "instruction"}` with at
            least a text or an image, and for a video `fps` or `num_frames`; a list of images; or a list of texts and
            images in their order (`[{"text": ...}, {"image": ...}]`).
        files ([`~unime.data.images.ImageFiles`]): where its images are.
        findings ([`Findings`]): takes notes of what was mended.

    Raises:
        ValueError: it is something else, or empty, or an image is missing.
    """
    if isinstance(value, Item):
        return value
    if isinstance(value, str):
        return item_of(value, None, files, findings)
    if is_stored_image(value):
        return item_of(None, value, files, findings)
    if isinstance(value, (list, tuple)):
        return _item_of_list(value, files, findings)

    # a table has every key in every row
    fields = {}
    if isinstance(value, Mapping):
        fields = {key: part for key, part in value.items() if part is not None}
    if not fields or fields.keys() - set(KEYS):
        raise ValueError(
            f"an item is a text or has 'text' and 'image', got {shown(value)}. It may also have 'images', 'video' and "
            "'instruction', or be a list of such parts."
        )

    images = _image_of(fields)
    return item_of(fields.get("text"), images, files, findings, fields.get("instruction"))


def is_stored_image(value) -> bool:
    """Whether a value is an image or a video by itself: bytes, or what `datasets` stores of one."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return True
    return isinstance(value, Mapping) and len(value) > 0 and value.keys() <= set(STORED)


def _image_of(fields: Mapping):
    """What an object says of images or of a video, of which it has one kind."""
    kinds = [key for key in ("image", "images", "video") if not _is_empty(fields.get(key))]
    if len(kinds) > 1:
        raise ValueError(f"an item has one of {', '.join(kinds)}, not several.")
    if not kinds:
        return None

    value = fields[kinds[0]]
    if kinds[0] == "video":
        return _with_sampling(value, fields)
    if not _is_empty(fields.get("more_images")):
        return [value, *fields["more_images"]]
    return value


def _is_empty(value) -> bool:
    return value is None or (isinstance(value, (str, list, tuple)) and len(value) == 0)


def _with_sampling(video, fields: Mapping):
    """A video with how it is sampled, where the object says so: `clip.mp4#fps=2`."""
    if isinstance(video, (list, tuple)):
        raise ValueError("the frames of a video stand in a folder, whose path is the 'video'; or give 'images'.")

    # what is stored has no place for it
    settings = [f"{mark}={fields[key]}" for key, mark in (("fps", "fps"), ("num_frames", "frames")) if key in fields]
    if not settings:
        return video
    if not isinstance(video, str):
        raise ValueError("'fps' and 'num_frames' are for a video that is named by its path.")
    return f"{video}#{'&'.join(settings)}"


def _item_of_list(values: Iterable, files: ImageFiles, findings: Findings) -> Item:
    """Several images, or texts and images in their order, which one text has places for."""
    values = list(values)
    if values and all(map(is_stored_image, values)):
        return item_of(None, values, files, findings)

    text = ""
    images = []
    for value in values:
        part = _part(value)
        if isinstance(part, str):
            if PLACEHOLDER in part:
                raise ValueError(f"the images of a list have their places in it; remove {PLACEHOLDER} from its texts.")
            text += part
        else:
            images.append(part[0])
            text += f"<|image_{len(images)}|>"

    # images alone need no places, nor does a text without an image
    words = text
    for number in range(1, len(images) + 1):
        words = words.replace(f"<|image_{number}|>", "", 1)
    return item_of(text if words.strip() else None, images, files, findings)


def _part(value):
    """A text of a list, or an image in a tuple."""
    if is_stored_image(value):
        return (value,)
    if isinstance(value, Mapping):
        # `type` is how chat templates write it, and a table has every key in every part
        fields = {key: part for key, part in value.items() if part is not None and key != "type"}
        if fields.keys() == {"text"}:
            return valid_text(fields["text"])
        if fields.keys() == {"image"}:
            return (fields["image"],)
    raise ValueError(
        f"an item is a text or has 'text' and 'image', or is a list of such parts, got {shown(value)} in a list. "
        "Several right answers are 'positives'."
    )


def valid_text(value: str | None) -> str:
    """A text of a data file, empty if there is none.

    Raises:
        ValueError: it is not a text, or not valid Unicode.
    """
    if not isinstance(value, (str, type(None))):
        raise ValueError(f"a text or an image path must be a string, not {shown(value)}.")
    return require_text(value or "")


def check_scores(scores: Iterable):
    """Raises `ValueError` unless all judge scores are numbers in [0, 1]."""
    for score in scores:
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0 <= score <= 1:
            raise ValueError(f"the judge score {shown(score)} is not a number in [0, 1].")
