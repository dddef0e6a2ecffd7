"""Images and videos: opening them safely, and the resolution policies."""

import contextlib
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from PIL import Image, ImageOps
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.video_utils import load_video

MAX_IMAGE_PIXELS = 100_000_000
Image.init()
_KNOWN = ["AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP"]
FORMATS = [name for name in _KNOWN if name in Image.OPEN]  # no EPS, which Pillow hands to another program
IMAGES = tuple(sorted(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS))
_NUMBER = re.compile(r"(\d+)")
_NAMED = {"native": None, "high": 1344, "mid": 672, "mid_336": 336, "low": 128}  # upstream's names of square sides


def open_image(source, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Opens a path or takes a PIL image, and returns it upright, in RGB, fully decoded (alpha composed over white).

    Raises:
        ValueError: the file is missing, unreadable or truncated, or the image has more than `max_pixels` pixels.
    """
    if isinstance(source, VideoFrame):
        return source.read()
    name = (
        f"image {str(source)!r}"
        if isinstance(source, (str, os.PathLike))
        else f"image of type {type(source).__name__}"
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is checked below
            image = source if isinstance(source, Image.Image) else Image.open(source, formats=FORMATS)
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
    if isinstance(image, VideoFrame):
        return image.size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            loaded = isinstance(image, Image.Image)
            with contextlib.nullcontext(image) if loaded else Image.open(image, formats=FORMATS) as file:
                width, height = file.size
                turned = file.getexif().get(0x0112, 1) >= 5  # orientations 5 to 8 swap the sides
    except (OSError, SyntaxError, Image.DecompressionBombError, AttributeError) as error:
        raise ValueError(f"{name}: image {str(image)!r} cannot be read: {error}") from error
    return (height, width) if turned else (width, height)


@dataclass(frozen=True)
class VideoFrame:
    """One of `count` frames of a video file, at equal distances; decoded when it is opened.

    `size` is (width, height), `stamp` the file's time of change.
    """

    path: str
    index: int
    count: int
    size: tuple[int, int]
    stamp: int

    def read(self) -> Image.Image:
        return Image.fromarray(_decode(self.path, self.count, self.stamp)[self.index])


def load_frames(video, count: int) -> list:
    """Frames of a video as images, at equal distances: at most `count`, or all if it has fewer.

    Args:
        video: a path (its header is read with PyAV, frames are decoded when they are opened), a folder of frames in
            the order of the numbers in their names, a list of PIL images or arrays, or a uint8 array
            `[frames, height, width, 3]`.

    Returns:
        list of [`VideoFrame`] for a file, of paths for a folder (first and last among them), else of PIL images.

    Raises:
        ValueError: the file cannot be decoded, or there is no frame.
    """
    if isinstance(video, (str, os.PathLike)):
        path = os.fspath(video)
        if os.path.isdir(path):
            return _frames_in(path, count)
        if not os.path.isfile(path):
            raise ValueError(f"video {path!r} cannot be read: there is no such file.")
        header = _load(path, lambda metadata: [0])[1]
        if not header.total_num_frames:
            raise ValueError(f"video {path!r}: its header names no number of frames; pass the frames themselves.")
        count, stamp = min(count, header.total_num_frames), os.stat(path).st_mtime_ns
        return [VideoFrame(path, i, count, (header.width, header.height), stamp) for i in range(count)]
    frames = [frame if isinstance(frame, Image.Image) else Image.fromarray(np.asarray(frame)) for frame in video]
    if not frames:
        raise ValueError("the video has no frame.")
    return [frames[i] for i in _spread(len(frames), min(count, len(frames)))]


def _frames_in(folder: str, count: int) -> list[str]:
    names = [name for name in os.listdir(folder) if name.lower().endswith((".jpg", ".jpeg", ".png", ".webp"))]
    names.sort(
        key=lambda name: [(not part.isdigit(), int(part) if part.isdigit() else part) for part in _NUMBER.split(name)]
    )
    if not names:
        raise ValueError(f"video {folder!r} is a folder without frames (.jpg, .jpeg, .png, .webp).")
    chosen = np.linspace(0, len(names) - 1, min(count, len(names)), dtype=int)
    return [os.path.join(folder, names[i]) for i in chosen]


def _spread(total: int, count: int) -> np.ndarray:
    return np.arange(count) * total // count


def _load(path: str, sample):
    try:
        return load_video(path, backend="pyav", sample_indices_fn=lambda metadata, **_: sample(metadata))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"video {path!r} cannot be read: {error}") from error


@lru_cache(maxsize=2)  # the frames of a video are opened one after the other
def _decode(path: str, count: int, stamp: int) -> np.ndarray:
    return _load(path, lambda metadata: _spread(metadata.total_num_frames, count))[0]


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
        full, scale = (width, height), 1.0
        while self.max_tokens is not None and (tokens := count(width, height)) > self.max_tokens:
            scale *= 0.9
            width, height = _shrink(*full, scale)
            if min(width, height) < 28:  # smaller ones would be another shape, or nothing that can be recognised
                raise ValueError(
                    f"no size of this image takes at most {self.max_tokens} tokens; the least is {tokens}."
                )
        return width, height


def _shrink(width: int, height: int, scale: float) -> tuple[int, int]:
    return max(1, int(width * scale)), max(1, int(height * scale))


__all__ = ["MAX_IMAGE_PIXELS", "Resolution", "VideoFrame", "load_frames", "open_image", "read_size"]
