"""A text, an image, or both, as rows hold them; what needs no table of rows loads this alone."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

PLACEHOLDER = "<|image_1|>"  # stands for the image in MMEB's texts
VIDEOS = (".avi", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


@dataclass(frozen=True, repr=False)
class Item:
    """A text, an image path, or both. Items are equal, and hash alike, when all parts are equal.

    In the place of an image there may be a video: a file, or a folder of its frames. A page of a PDF is
    `report.pdf#page=3`, and a video may say how it is sampled: `clip.mp4#fps=2`.

    Args:
        text (`str`): the text; empty if there is none. With as many placeholders (`<|image_1|>`) as there are images,
            it says where each of them stands.
        image (`str`): path of an image or a video; empty if there is none.
        more_images (`tuple[str, ...]`): the other images of an item that has several.
        instruction (`str`): of this item alone, in the place of the one that is given for all.

    Raises:
        ValueError: there is neither a text nor an image.

    Example:

    ```python
    query = Item("What is in the picture?", "photos/dog.jpg")
    answer = Item("a dog")
    ```
    """

    text: str = ""
    image: str = ""
    more_images: tuple[str, ...] = ()
    instruction: str = ""

    def __post_init__(self):
        if not self.text.strip() and not self.image:
            raise ValueError("an item needs a text, an image, or both.")

    def __repr__(self) -> str:
        parts = [f"text={self.text!r}", f"image={self.image!r}"]
        if self.more_images:
            parts.append(f"more_images={self.more_images!r}")
        if self.instruction:
            parts.append(f"instruction={self.instruction!r}")
        return f"Item({', '.join(parts)})"

    @property
    def images(self) -> tuple[str, ...]:
        """All its images, or its video; empty for a text."""
        return (self.image, *self.more_images) if self.image else ()

    def with_images(self, names: Mapping[str, str]) -> "Item":
        """The item with other names for its images; what `names` lacks stays.

        Args:
            names (`Mapping[str, str]`): new names by present ones.
        """
        if not self.image:
            return self
        image, *others = (names.get(path, path) for path in self.images)
        return replace(self, image=image, more_images=tuple(others))

    @property
    def content_hash(self) -> int:
        """A signed 64-bit hash of the content, the same in every process; ranks compare items by it."""
        # the length keeps text and image apart: ("a", "b") is not ("ab", "")
        content = f"{len(self.text)}:{self.text}{self.image}"

        # most items have neither
        if self.more_images or self.instruction:
            content += "\0" + "\0".join((*self.more_images, self.instruction))
        return content_hash(content)

    @property
    def identity(self) -> tuple[str, str]:
        """What makes two candidates one: equal images, and texts equal but for case, spacing and placeholders."""
        return " ".join(self.text.replace(PLACEHOLDER, " ").split()).casefold(), "\0".join(self.images)

    def as_input(self) -> dict:
        """The form that `UniMEModel.encode` and `UniMEProcessor.prepare` take."""
        fields = {}
        if self.text:
            fields["text"] = self.text
        if self.image:
            kind = "video" if self.is_video else "image"
            fields[kind] = list(self.images) if self.more_images else self.image
        if self.instruction:
            fields["instruction"] = self.instruction

        return fields

    @property
    def modality(self) -> str:
        """What the item is made of: `"text"`, `"image"`, `"video"`, or a text with one of these."""
        parts = []
        if self.image:
            parts.append("video" if self.is_video else "image")
        if self.text.strip():
            parts.append("text")
        return " and ".join(parts)

    @property
    def is_video(self) -> bool:
        """Whether the path is that of a video."""
        return is_video_path(self.image)


def is_video_path(path: str) -> bool:
    """Whether a path is that of a video: a file, with or without its sampling, or a folder of frames."""
    file, _, _ = path.partition("#")
    return path.lower().endswith(VIDEOS) or file.lower().endswith(VIDEOS) or os.path.isdir(path)


def content_hash(text: str) -> int:
    """A signed 64-bit hash of a text, the same in every process."""
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little", signed=True
    )
