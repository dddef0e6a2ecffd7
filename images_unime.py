"""Images and videos: opening them safely, and the resolution policies."""

import base64
import binascii
import contextlib
import io
import math
import os
import re
import stat
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.video_utils import load_video

from .pages_unime import page_of
from .urls_unime import URL

MAX_IMAGE_PIXELS = 100_000_000

# Formats that are opened, where this build of Pillow has them: no EPS, which it hands to another program.
_SAFE = ["AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP"]
Image.init()
FORMATS = [name for name in _SAFE if name in Image.OPEN]
IMAGES = tuple(sorted(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS))

DATA_URI = re.compile(r"data:[^,]*,")
_NUMBER = re.compile(r"(\d+)")
MAX_SIDE = 10_000  # pixels of a side to which images may be resized
_NAMED_SIDES = {"native": None, "high": 1344, "mid": 672, "mid_336": 336, "low": 128}  # upstream's names of squares
_ORIENTATION = 0x0112  # the EXIF tag that says how an image is turned
_TURNING_DATA = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # where Pillow looks for that tag
_TURNS = {  # what makes it upright, by the value of that tag
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(source, max_pixels: int = MAX_IMAGE_PIXELS, background: str = "white") -> Image.Image:
    """Opens an image as a model sees it: upright, in RGB, fully decoded, alpha composed over a background.

    Args:
        source (`str`, `os.PathLike`, `bytes`, `PIL.Image.Image` or [`VideoFrame`]): a file, a page of a PDF
            (`"report.pdf#page=3"`), the bytes of a file or a data URI of them, or an image that is open already.
        max_pixels (`int`, defaults to 100,000,000): images with more pixels are refused before they are decoded.
        background (`str`, defaults to `"white"`): a colour as Pillow names it, behind what is transparent.

    Returns:
        `PIL.Image.Image` in mode `"RGB"`.

    Raises:
        ValueError: the file is missing, not a file, unreadable or truncated, or the image has no pixel or more than
            `max_pixels`.

    Example:

    ```python
    width, height = open_image("photo.jpg").size
    ```
    """
    if isinstance(source, VideoFrame):
        return source.read()

    name = _name_of(source)
    with _unreadable_as_value_error(name):
        page = page_of(source)
        image = _header(source) if page is None else page

    # from the header, before a small file unfolds to gigabytes
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(
            f"{name} has {width} x {height} = {width * height:,} pixels, above the limit of {max_pixels:,}. "
            "Resize it, or raise `max_image_pixels`."
        )

    if page is not None:
        with _unreadable_as_value_error(name):
            return page.render()

    with _unreadable_as_value_error(name):
        # a TIFF is turned while it is decoded, and forgets; of others a broken one must not hide behind its EXIF data
        if image.format != "TIFF":
            image.load()
        turn = _TURNS.get(_orientation(image))
        image.load()

        if turn is not None and image.format != "TIFF":
            image = image.transpose(turn)

            # opened once more, it would be turned once more
            for name_of_data in _TURNING_DATA:
                image.info.pop(name_of_data, None)
        rgb = _to_rgb(image, name, background)
    return source.copy() if rgb is source else rgb


def _name_of(source) -> str:
    """How an error calls an image."""
    if isinstance(source, Image.Image):
        width, height = source.size
        return f"image in memory, {width} x {height} in mode {source.mode},"
    if isinstance(source, (bytes, bytearray)):
        return f"image in memory, of {len(source)} bytes,"

    # a data URI is the whole image
    name = os.fspath(source)
    if isinstance(name, str) and DATA_URI.match(name) and len(name) > 80:
        name = f"{name[:77]}..."
    return f"image {name!r}"


@contextlib.contextmanager
def _unreadable_as_value_error(name: str):
    """Turns whatever a decoder raises, which over a damaged file may be anything, into an error that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # there is a limit of our own
            yield
    except Exception as error:
        raise ValueError(f"{name} cannot be read: {error or type(error).__name__}") from error


def _header(source) -> Image.Image:
    """The image, of which nothing but the header has been read; it has a pixel."""
    image = source
    if not isinstance(source, Image.Image):
        image = Image.open(_readable(source), formats=FORMATS)

    if 0 in image.size:
        raise ValueError(f"it has {image.size[0]} x {image.size[1]} pixels")
    return image


def _readable(source):
    """What Pillow opens: a path, or bytes in memory."""
    if isinstance(source, (bytes, bytearray)):
        return io.BytesIO(source)
    if isinstance(source, str) and DATA_URI.match(source):
        return io.BytesIO(read_data_uri(source))
    if isinstance(source, str) and URL.match(source):
        raise ValueError("it is an address; allow_urls=True lets it be read, where you trust the data")

    # opening a pipe would wait for ever
    if not stat.S_ISREG(os.stat(source).st_mode):
        raise ValueError("it is not a file")
    return source


def read_data_uri(uri: str) -> bytes:
    """The bytes of a data URI in base64, such as `"data:image/png;base64,iVBORw0..."`.

    Raises:
        ValueError: it is in no base64.
    """
    head, _, content = uri.partition(",")
    if not head.endswith(";base64"):
        raise ValueError("a data URI must be in base64: data:image/png;base64,...")
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"a data URI is not in base64: {error}") from error


def data_uri(content: bytes) -> str:
    """Bytes of an image as a data URI, which [`open_image`] reads."""
    return f"data:application/octet-stream;base64,{base64.b64encode(content).decode()}"


def _orientation(image: Image.Image) -> int:
    """How the EXIF data say that an image is turned, from 1, upright, to 8; 1 where they say nothing readable."""
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:  # EXIF data may be damaged in any way, and the image is readable without them
        return 1
    return value if isinstance(value, int) and value in range(1, 9) else 1


def _to_rgb(image: Image.Image, name: str, background: str) -> Image.Image:
    """Converts an image of any mode to RGB, before a background of that colour."""
    transparent = image.info.get("transparency")  # a colour, or in a palette the alpha of each entry
    if image.mode.startswith("I;16"):
        return _from_16_bits(image, transparent, background)
    if image.mode in ("I", "F"):
        raise ValueError(f"the range of values of mode {image.mode!r} is not known; convert it to 8 bits")

    if image.mode == "La":  # Pillow converts premultiplied alpha to nothing but this
        image = image.convert("LA")

    # what is transparent shows the background
    if "A" in image.getbands() or transparent is not None:
        image = image.convert("RGBA")
        opaque = Image.new("RGBA", image.size, background)
        return Image.alpha_composite(opaque, image).convert("RGB")
    return image.convert("RGB")


def _from_16_bits(image: Image.Image, transparent: int | None, background: str) -> Image.Image:
    """16-bit greyscale, which convert() would clip to white, as RGB; one grey may be transparent."""
    grey = image.convert("I")
    rgb = grey.point(lambda value: value / 256).convert("L").convert("RGB")
    if transparent is not None:
        mask = Image.fromarray(np.asarray(grey) == transparent)
        rgb.paste(background, mask=mask)
    return rgb


def read_size(image, name: str) -> tuple[int, int]:
    """The size at which an image will stand upright; of a file, only the header is read.

    Args:
        image: what [`open_image`] takes.
        name (`str`): how an error calls the item.

    Returns:
        (width, height) in pixels.

    Raises:
        ValueError: the file is missing, not a file or unreadable, or the image has no pixel.
    """
    if isinstance(image, VideoFrame):
        return image.size

    with _unreadable_as_value_error(f"{name}: {_name_of(image)}"):
        page = page_of(image)
        if page is not None:
            return page.size
        header = _header(image)
        width, height = header.size
        orientation = _orientation(header)
        is_turned = orientation >= 5 and header.format != "TIFF"  # 5 to 8 swap the sides
        if header is not image:
            header.close()
    return (height, width) if is_turned else (width, height)


@dataclass(frozen=True)
class Media:
    """How the images and videos of items are got at.

    Args:
        num_frames (`int`, defaults to 8): frames of a video, at equal distances; or fewer, if it has fewer.
        fps (`float`, *optional*): take that many frames a second instead, of a file: an even number, four or more.
        max_frames (`int`, defaults to 768): most frames of a video that is read by `fps`.
        rate (`float`, defaults to 2): how many frames there are in a second of a video that is a list or a folder of
            them, as qwen-vl-utils has it.
        allow_urls (`bool`, defaults to `False`): read images by `https://` addresses.
        as_clips (`bool`, defaults to `False`): leave a video whole, for a backbone that reads videos, rather than
            take its frames for images.
    """

    num_frames: int = 8
    fps: float | None = None
    max_frames: int = 768
    rate: float = 2.0
    allow_urls: bool = False
    as_clips: bool = False

    def count(self, total: int, rate: float | None) -> int:
        """How many frames are read of a video of `total` frames, of which `rate` were taken in a second."""
        if self.fps is None or not rate:
            return min(self.num_frames, total)

        # as qwen-vl-utils has it: four at least, and an even number, since Qwen-VL reads two at a time
        count = min(max(total / rate * self.fps, 4), self.max_frames, total)
        return max(1, int(count) // 2 * 2)


def images_of_array(array):
    """The image of an array `[H, W, 3]`, `[3, H, W]` or `[H, W]`, or the images of one with a dimension more.

    Args:
        array (`np.ndarray` or `Tensor`): uint8, or floats from 0 to 1; of one, three or four channels.

    Returns:
        `PIL.Image.Image`, or a list of these.

    Raises:
        ValueError: it has another shape or type, or floats beyond that range.
    """
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = array.float() if array.is_floating_point() else array  # NumPy has no bfloat16

    pixels = np.asarray(array)

    # floats from 0 to 1, as torchvision has them
    if pixels.dtype.kind == "f" and pixels.size and pixels.min() >= 0 and pixels.max() <= 1:
        pixels = np.rint(pixels * 255).astype(np.uint8)

    # grey, RGB or RGBA, before or behind height and width
    channels = (1, 3, 4)
    is_image = pixels.ndim == 2
    if pixels.ndim in (3, 4):
        is_image = pixels.shape[-1] in channels or pixels.shape[-3] in channels
    if pixels.dtype != np.uint8 or not is_image:
        raise ValueError(
            f"an array of type {pixels.dtype} and shape {list(pixels.shape)} is not an image or a video: its values "
            "must be uint8, or floats from 0 to 1, in the order [height, width, 3] or [3, height, width], with the "
            "frames of a video first."
        )

    # the frames of a video
    if pixels.ndim == 4:
        return [images_of_array(frame) for frame in pixels]

    if pixels.ndim == 3 and pixels.shape[2] not in channels:
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(pixels))


@dataclass(frozen=True)
class VideoFrame:
    """One frame of a video file, out of several at equal distances; decoded when it is opened.

    Args:
        path (`str`): the file.
        index (`int`): which of the `count` frames it is, from 0.
        count (`int`): how many frames are read of the video.
        size (`tuple[int, int]`): (width, height) in pixels.
        stamp (`int`): the file's time of change in nanoseconds; a changed file is decoded anew.
        seconds (`float`): where in the video it stands.
        interval (`float`): seconds from one of the `count` frames to the next.
    """

    path: str
    index: int
    count: int
    size: tuple[int, int]
    stamp: int
    seconds: float = 0.0
    interval: float = 0.0

    def read(self) -> Image.Image:
        """Decodes the frame, and with it the others of its video, which are kept for a while."""
        return Image.fromarray(_decode(self.path, self.count, self.stamp)[self.index])


def load_frames(video, media: Media | int) -> list:
    """Frames of a video as images, at equal distances.

    Args:
        video: a path (its header is read with PyAV, frames are decoded when they are opened), which may say how it is
            sampled (`"clip.mp4#fps=2"`, `"clip.mp4#frames=16"`); a folder of frames in the order of the numbers in
            their names; a list of PIL images or arrays, or a uint8 array `[frames, height, width, 3]`.
        media ([`Media`] or `int`): how many frames are read; all if it has fewer.

    Returns:
        list of [`VideoFrame`] for a file, of paths for a folder (first and last among them), else of PIL images.

    Raises:
        ValueError: the file cannot be decoded, or there is no frame.

    Example:

    ```python
    frames = [open_image(frame) for frame in load_frames("clip.mp4", count=8)]
    ```
    """
    if isinstance(media, int):
        media = Media(num_frames=media)
    if isinstance(video, (str, os.PathLike)):
        path = os.fspath(video)

        # a name may say how the video is sampled: clip.mp4#fps=2
        if not os.path.exists(path):
            path, media = _sampled(path, media)
        if os.path.isdir(path):
            return _frames_in_folder(path, media.num_frames)
        return _frames_of_file(path, media)

    # frames that are here already
    frames = []
    with _unreadable_as_value_error("the video, neither a path nor a list of images or arrays,"):
        for frame in video:
            if not isinstance(frame, Image.Image):
                frame = Image.fromarray(np.asarray(frame))
            frames.append(frame)

    if not frames:
        raise ValueError("the video has no frame.")
    return _some_of(frames, media.num_frames)


def _sampled(path: str, media: Media) -> tuple[str, Media]:
    """The path of a video without its sampling, and what this says."""
    file, mark, fragment = path.partition("#")
    fields = {}
    for setting in fragment.split("&") if mark else ():
        name, _, value = setting.partition("=")
        if name not in ("fps", "frames") or not re.fullmatch(r"\d+(\.\d+)?", value) or float(value) == 0:
            return path, media  # a part of a name
        fields["num_frames" if name == "frames" else "fps"] = int(float(value)) if name == "frames" else float(value)

    # so many frames, whatever the processor would take a second
    if "num_frames" in fields and "fps" not in fields:
        fields["fps"] = None
    return file, replace(media, **fields)


def _frames_of_file(path: str, media: Media) -> list[VideoFrame]:
    """Frames of a video file, of which only the header is read."""
    if not os.path.isfile(path):
        raise ValueError(f"video {path!r} cannot be read: there is no such file.")

    # the loader gives no header without a frame
    _, header = _load(path, lambda metadata: [0])
    if not header.total_num_frames:
        raise ValueError(f"video {path!r}: its header names no number of frames; pass the frames themselves.")

    # a frame is known by its file and its place, and decoded when it is needed
    count = media.count(header.total_num_frames, header.fps)
    size = (header.width, header.height)
    status = os.stat(path)
    stamp = max(status.st_mtime_ns, status.st_ctime_ns)  # the first of them can be set back

    frames = []
    rate = header.fps or math.inf
    interval = header.total_num_frames / rate / count
    for index, place in enumerate(spread(header.total_num_frames, count).tolist()):
        frames.append(VideoFrame(path, index, count, size, stamp, place / rate, interval))
    return frames


def _frames_in_folder(folder: str, count: int) -> list[str]:
    """Paths of frames in a folder, the first and the last among them."""
    suffixes = (".jpg", ".jpeg", ".png", ".webp")
    names = [name for name in os.listdir(folder) if name.lower().endswith(suffixes)]
    if not names:
        raise ValueError(f"video {folder!r} is a folder without frames ({', '.join(suffixes)}).")

    names.sort(key=_natural_order)
    return [os.path.join(folder, name) for name in _some_of(names, count)]


def _some_of(frames: list, count: int) -> list:
    """So many frames, or all if there are fewer; the first and the last among them."""
    return [frames[place] for place in spread(len(frames), min(count, len(frames)))]


def _natural_order(name: str) -> list[tuple]:
    """A sorting key by which `frame10.png` comes after `frame9.png`."""
    key = []
    for piece in _NUMBER.split(name):
        if piece.isdigit():
            key.append((0, int(piece)))
        else:
            key.append((1, piece))
    return key


def spread(total: int, count: int) -> np.ndarray:
    """`count` of the numbers below `total`, at equal distances, the first and the last among them."""
    return np.linspace(0, total - 1, count).round().astype(int)


def _load(path: str, sample: Callable):
    """Decoded frames `[frames, height, width, 3]` of a video file and its header; `sample(header)` says which ones."""
    with _unreadable_as_value_error(f"video {path!r}"):
        return load_video(path, backend="pyav", sample_indices_fn=lambda metadata, **_: sample(metadata))


@lru_cache(maxsize=2)  # the frames of a video are opened one after the other
def _decode(path: str, count: int, stamp: int) -> np.ndarray:
    """The frames `[count, height, width, 3]` of a video file; `stamp` keeps apart what the file held earlier."""
    frames, _ = _load(path, lambda metadata: spread(metadata.total_num_frames, count))
    return frames


@dataclass(frozen=True)
class Resolution:
    """A policy for the size at which the model sees an image; without any limit, that is its native size.

    Written as `"native"`, a square side (`336`; also upstream's names `"high"` 1344, `"mid"` 672, `"mid_336"`,
    `"low"` 128), `"pixels:N"`, `"tokens:N"` or `"tokens:N-M"`, `"tiny:N"`, `"ratio:N"`, `"sides:N-M"`, `"lanczos"`, or
    several joined by `+`, applied in the order of the arguments.

    Args:
        tiny (`int`, *optional*): squash an image with a side shorter than half of that to a square of that side.
        side (`int`, *optional*): squash to a square of that many pixels a side, whatever the shape, as upstream does.
        ratio (`int`, *optional*): stretch the shorter side of an image that is longer than so many times its width.
        sides (`tuple[int, int]`, *optional*): scale images so that the longer side has at most as many pixels as the
            second, but the shorter one at least as many as the first, which goes before it.
        max_pixels (`int`, *optional*): shrink images with more pixels, keeping their shape.
        max_tokens (`int`, *optional*): shrink images until they take at most that many tokens.
        min_tokens (`int`, *optional*): where every token is a square of the image, enlarge those with fewer.
        lanczos (`bool`): resize with a Lanczos filter; else a bicubic one.

    Raises:
        ValueError: a number is not positive, or a side is above 10,000 pixels.

    Example:

    ```python
    Resolution.parse("1344+tokens:300") == Resolution(side=1344, max_tokens=300)
    ```
    """

    side: int | None = None
    max_pixels: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    tiny: int | None = None
    ratio: int | None = None
    sides: tuple[int, int] | None = None
    lanczos: bool = False

    def __post_init__(self):
        numbers = (self.side, self.max_pixels, self.max_tokens, self.min_tokens, self.tiny, self.ratio)
        for value in (*numbers, *(self.sides or ())):
            if value is not None and value < 1:
                raise ValueError(f"a resolution must be positive, got {self}.")

        # to enlarge an image beyond that would only fill the memory
        for value in (self.side, *(self.sides or ())):
            if value is not None and value > MAX_SIDE:
                raise ValueError(f"a resolution has sides of at most {MAX_SIDE:,} pixels, got {self}.")

    @classmethod
    def parse(cls, value) -> "Resolution":
        """Reads a policy from any of its spellings, a dict of its fields, or a `Resolution`.

        Raises:
            ValueError: the spelling is unknown, or a number is not positive.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping):
            return cls(**value)

        # each term sets its own field, so that several can be joined
        policy = cls()
        for term in str(value).split("+"):
            limit = re.fullmatch(r"(pixels|tokens|tiny|ratio):(\d+)", term)
            span = re.fullmatch(r"(tokens|sides):(\d+)-(\d+)", term)
            if limit:
                name = limit[1] if limit[1] in ("tiny", "ratio") else f"max_{limit[1]}"
                policy = replace(policy, **{name: int(limit[2])})
            elif span and span[1] == "tokens":
                policy = replace(policy, min_tokens=int(span[2]), max_tokens=int(span[3]))
            elif span:
                policy = replace(policy, sides=(int(span[2]), int(span[3])))
            elif term == "lanczos":
                policy = replace(policy, lanczos=True)
            elif term in _NAMED_SIDES:
                policy = replace(policy, side=_NAMED_SIDES[term])
            elif term.isdigit():
                policy = replace(policy, side=int(term))
            else:
                raise ValueError(
                    f"resolution {value!r} is unknown: give 'native', a square side such as 336, 'pixels:N', "
                    "'tokens:N', or several joined by '+'."
                )
        return policy

    @property
    def resampling(self) -> Image.Resampling:
        """The filter with which images are resized."""
        return Image.Resampling.LANCZOS if self.lanczos else Image.Resampling.BICUBIC

    def fit(self, width: int, height: int, count: Callable, grain: int | None, smallest: int) -> tuple[int, int]:
        """The size to which an image is resized.

        Args:
            width, height (`int`): of the image, in pixels.
            count (`Callable`): maps (width, height) to the number of tokens the image will take.
            grain (`int`, *optional*): for backbones whose tokens are squares of that many pixels a side.
            smallest (`int`): fewest pixels such a backbone takes.

        Returns:
            (width, height) in pixels.

        Raises:
            ValueError: no size of the image takes at most `max_tokens` tokens.
        """
        if self.tiny is not None and min(width, height) < self.tiny // 2:
            width = self.tiny
            height = self.tiny

        # a square, whatever the shape was
        if self.side is not None:
            width = self.side
            height = self.side

        width, height = self._fit_shape(width, height)
        if grain is not None:
            return self._fit_squares(width, height, grain, smallest)

        # where tokens do not follow from the size, pixels are limited first
        if self.max_pixels is not None and width * height > self.max_pixels:
            width, height = _shrink(width, height, math.sqrt(self.max_pixels / (width * height)))
        if self.max_tokens is not None:
            width, height = self._fit_tokens(width, height, count)
        return width, height

    def _fit_shape(self, width: int, height: int) -> tuple[int, int]:
        """The size within the limits of the sides and of their ratio."""
        if self.ratio is not None and width > self.ratio * height:
            height = width / self.ratio
        elif self.ratio is not None and height > self.ratio * width:
            width = height / self.ratio

        # the shortest side counts more than the longest
        scale = 1.0
        if self.sides is not None:
            shortest, longest = self.sides
            scale = min(scale, longest / max(width, height))
            if min(width, height) < shortest:
                scale = shortest / min(width, height)
        return int(width * scale), int(height * scale)

    def _fit_squares(self, width: int, height: int, grain: int, smallest: int) -> tuple[int, int]:
        """The size where tokens are squares of pixels, so that a limit of tokens is one of pixels."""
        limits = []
        if self.max_pixels is not None:
            limits.append(self.max_pixels)
        if self.max_tokens is not None:
            limits.append(self.max_tokens * grain**2)
        if not limits:
            return width, height

        # what is too small is enlarged, but never above the limit
        most = min(limits)
        if self.min_tokens is not None:
            smallest = self.min_tokens * grain**2
        height, width = smart_resize(height, width, grain, min(smallest, most), max(most, grain**2))
        return width, height

    def _fit_tokens(self, width: int, height: int, count: Callable) -> tuple[int, int]:
        """The size where tokens must be counted: smaller by steps of a tenth until they are few enough."""
        full_width = width
        full_height = height
        scale = 1.0
        tokens = count(width, height)

        while tokens > self.max_tokens:
            scale *= 0.9
            width, height = _shrink(full_width, full_height, scale)
            if min(width, height) < 28:  # smaller ones would be another shape, or nothing that can be recognised
                raise ValueError(
                    f"no size of this image takes at most {self.max_tokens} tokens; the least is {tokens}."
                )
            tokens = count(width, height)
        return width, height


def _shrink(width: int, height: int, scale: float) -> tuple[int, int]:
    """Both sides times `scale`, rounded down, at least one pixel."""
    return max(1, int(width * scale)), max(1, int(height * scale))


__all__ = [
    "DATA_URI",
    "MAX_IMAGE_PIXELS",
    "Media",
    "Resolution",
    "VideoFrame",
    "data_uri",
    "images_of_array",
    "load_frames",
    "open_image",
    "read_data_uri",
    "read_size",
    "spread",
]
