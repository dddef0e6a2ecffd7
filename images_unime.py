"""Images and videos: opening them safely, and the resolution policies."""

import math
import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageOps
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.video_utils import load_video

MAX_IMAGE_PIXELS = 100_000_000
_NAMED = {"native": None, "high": 1344, "mid": 672, "mid_336": 336, "low": 128}  # upstream's names of square sides


def open_image(source, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Opens a path or takes a PIL image, and returns it upright, in RGB, fully decoded (alpha composed over white).

    Raises:
        ValueError: the file is missing, unreadable or truncated, or the image has more than `max_pixels` pixels.
    """
    name = (
        f"image {str(source)!r}"
        if isinstance(source, (str, os.PathLike))
        else f"image of type {type(source).__name__}"
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is checked below
            image = source if isinstance(source, Image.Image) else Image.open(source)
        width, height = image.size
        if width * height > max_pixels:
            raise ValueError(
                f"{name} has {width} x {height} = {width * height:,} pixels, above the limit of {max_pixels:,}. "
                "Resize it, or raise `max_image_pixels`."
            )
        image.load()
        image = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, Image.DecompressionBombError, AttributeError) as error:
        raise ValueError(f"{name} cannot be read: {error or type(error).__name__}") from error
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):  # 16-bit greyscale would be clipped to white by convert()
        return image.convert("I").point(lambda value: value / 256).convert("L").convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"{name} has mode {image.mode!r}, whose range of values is not known; convert it to 8 bits.")
    if image.mode == "La":
        image = image.convert("LA")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def read_size(image, name: str) -> tuple[int, int]:
    """(width, height) of a PIL image or of a file, of which only the header is read, as it will stand upright."""
    if isinstance(image, Image.Image):
        return image.size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(image) as file:
                width, height = file.size
                turned = file.getexif().get(0x0112, 1) >= 5  # orientations 5 to 8 swap the sides
    except (OSError, SyntaxError, Image.DecompressionBombError, AttributeError) as error:
        raise ValueError(f"{name}: image {str(image)!r} cannot be read: {error}") from error
    return (height, width) if turned else (width, height)


def load_frames(video, count: int) -> list[Image.Image]:
    """Frames of a video as images, at equal distances: at most `count`, or all if it has fewer.

    Args:
        video: a path (decoded with PyAV), a list of PIL images, or a uint8 array `[frames, height, width, 3]`.

    Raises:
        ValueError: the file cannot be decoded, or there is no frame.
    """
    if isinstance(video, (str, os.PathLike)):
        try:
            video, _ = load_video(
                os.fspath(video), backend="pyav", sample_indices_fn=lambda metadata, **_: _spread(metadata, count)
            )
        except (OSError, ValueError) as error:
            raise ValueError(f"video {str(video)!r} cannot be read: {error}") from error
    frames = [frame if isinstance(frame, Image.Image) else Image.fromarray(np.asarray(frame)) for frame in video]
    if not frames:
        raise ValueError("the video has no frame.")
    return [frames[i] for i in np.arange(min(count, len(frames))) * len(frames) // min(count, len(frames))]


def _spread(metadata, count: int) -> np.ndarray:
    total = metadata.total_num_frames
    if not total:
        raise ValueError("its header names no number of frames; pass the frames themselves.")
    return np.arange(min(count, total)) * total // min(count, total)


@dataclass(frozen=True)
class Resolution:
    """A policy for the size at which the model sees an image; all parts absent means its native size.

    Written as `"native"`, a square side (`336`; also upstream's names `"high"` 1344, `"mid"` 672, `"mid_336"`,
    `"low"` 128), `"pixels:N"`, `"tokens:N"`, or several joined by `+`, applied in this order.

    Args:
        side (`int`, *optional*): squash to a square of that many pixels a side, whatever the shape, as upstream does.
        max_pixels (`int`, *optional*): shrink images with more pixels, keeping their shape.
        max_tokens (`int`, *optional*): shrink images until they take at most that many tokens.
    """

    side: int | None = None
    max_pixels: int | None = None
    max_tokens: int | None = None

    def __post_init__(self):
        if any(value is not None and value < 1 for value in (self.side, self.max_pixels, self.max_tokens)):
            raise ValueError(f"a resolution must be positive, got {self}.")

    @classmethod
    def parse(cls, value) -> "Resolution":
        """Reads a policy from any of its spellings, a dict of its fields, or a `Resolution`."""
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping):
            return cls(**value)
        policy = cls()
        for part in str(value).split("+"):
            limit = re.fullmatch(r"(pixels|tokens):(\d+)", part)
            if limit:
                policy = replace(policy, **{f"max_{limit[1]}": int(limit[2])})
            elif part in _NAMED or part.isdigit():
                policy = replace(policy, side=_NAMED[part] if part in _NAMED else int(part))
            else:
                raise ValueError(
                    f"resolution {value!r} is unknown: give 'native', a square side such as 336, 'pixels:N', "
                    "'tokens:N', or several joined by '+'."
                )
        return policy

    def fit(self, width: int, height: int, count: Callable, grain: int | None, smallest: int) -> tuple[int, int]:
        """(width, height) to resize an image to.

        Args:
            count: maps (width, height) to the number of tokens the image will take.
            grain (`int`, *optional*): for backbones whose tokens are squares of that many pixels a side.
            smallest (`int`): fewest pixels such a backbone takes.
        """
        if self.side is not None:
            width = height = self.side
        if grain is not None:
            budgets = [self.max_pixels, self.max_tokens and self.max_tokens * grain**2]
            budget = min((b for b in budgets if b), default=None)
            if budget is not None:
                height, width = smart_resize(height, width, grain, min(smallest, budget), max(budget, grain**2))
            return width, height
        if self.max_pixels is not None and width * height > self.max_pixels:
            width, height = _shrink(width, height, math.sqrt(self.max_pixels / (width * height)))
        while self.max_tokens is not None and count(width, height) > self.max_tokens:
            if width == height == 1:
                raise ValueError(
                    f"no size of this image takes at most {self.max_tokens} tokens; the least is {count(1, 1)}."
                )
            width, height = _shrink(width, height, 0.9)
        return width, height


def _shrink(width: int, height: int, scale: float) -> tuple[int, int]:
    return max(1, int(width * scale)), max(1, int(height * scale))


__all__ = ["MAX_IMAGE_PIXELS", "Resolution", "load_frames", "open_image", "read_size"]
