"""Items that people hand in, sound and odd: texts, files of images and videos, images in memory, chats, other values.

A case is `{"kind", ...}` in plain JSON, and [`item_of`] makes the item. It is embedded between two ordinary ones, and
scored as a candidate: either the right value comes out for all of them, or an error that names the item.
"""

import io
import os
import struct
import zlib
from functools import cache
from pathlib import Path

import av
import numpy as np
import torch
from conftest import picture, save_backbone
from hypothesis import strategies as st
from outcomes import ERRORS, Ground, Hole, Outcome, Wrong, as_bytes, as_text, observe
from PIL import Image, ImageOps

from unime import UniMEModel, UniMERerankerForCausalLM
from unime.images_unime import open_image

CONTROL = ("<|im_end|>", "<|im_start|>", "<|endoftext|>", "</s>", "<s>", "<|vision_start|>", "<|vision_end|>")
PLACEHOLDERS = ("<image>", "<|image_1|>", "<|image_pad|>", "<video>", "<|video_pad|>")
MODES = [
    "1",
    "L",
    "LA",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "I;16",
    "F",
    "La",
    "RGBa",
]
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO", "JPEG2000", "PCX")
PATHS = ["folder", "fifo", "loop", "missing", "long", "nul", "bytes", "device", "empty", "text", "home", "url"]
ODD = (
    *("\ud800", "\x00", "\x07", "\u202e", "\ufeff", "e\u0301", "\U0001f9d1\u200d\U0001f680", "\u3000", "\u7ea2", " "),
    *("[INST]", "a red circle", "\n", "\t", "<b>bold</b>", "![x](<image>)", "{text}", "{{ 7 * 7 }}", "a.png"),
)

# texts
pieces = st.sampled_from([*CONTROL, *PLACEHOLDERS, *ODD])
texts = st.lists(pieces | st.text(max_size=4), max_size=4).map("".join) | st.sampled_from(
    ["a " * 3000, "\u7ea2" * 500]
)

# values that are none of the kinds of item, or have one hidden in them
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.sampled_from(["", "a dog", "a.png"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["text", "image", "5"]), inner, max_size=2)
    ),
    max_leaves=4,
)


def mostly(usual, others=values):
    """A value of the usual kind in three of four cases."""
    return st.one_of(usual, usual, usual, others)


# chats
parts = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": mostly(texts)}),
    st.fixed_dictionaries({"type": st.just("image"), "image": mostly(st.just("a.png"))}),
    st.fixed_dictionaries({"type": st.sampled_from(["video", "audio", "image_url", ""]), "video": values}),
    st.fixed_dictionaries({"text": texts}),
)
messages = st.fixed_dictionaries(
    {
        "role": mostly(st.sampled_from(["user", "user", "system", "assistant", "tool", "<|im_end|>"])),
        "content": mostly(texts | st.lists(mostly(parts), max_size=3)),
    }
)
chats = st.lists(messages, min_size=1, max_size=3)


# images
@st.composite
def pictures(draw) -> dict:
    """An image in memory, by mode and size."""
    sides = st.sampled_from([0, 1, 2, 17, 40, 56])
    size = (
        [draw(sides), draw(sides)]
        if draw(st.integers(0, 5))
        else draw(st.sampled_from([[6000, 1], [1, 300], [12000, 9000]]))
    )
    return {"kind": "picture", "mode": draw(st.sampled_from(MODES)), "size": size, "seed": draw(st.integers(0, 3))}


@st.composite
def image_files(draw) -> dict:
    """A file of an image, perhaps with odd chunks, perhaps damaged."""
    mode = draw(st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"]))
    image = painted(mode, draw(st.sampled_from([(40, 56), (64, 48), (1, 1), (56, 3)])), draw(st.integers(0, 3)))
    name = draw(st.sampled_from([name for name in FORMATS if _can_save(image, name)]))

    options = {}
    if name in ("JPEG", "PNG", "WEBP") and draw(st.booleans()):
        options["exif"] = draw(exifs())
    if name == "PNG" and mode in ("L", "RGB", "P") and draw(st.booleans()):
        options["transparency"] = (0, 0, 0) if mode == "RGB" else 0
    if name in ("JPEG", "PNG", "TIFF", "WEBP") and draw(st.integers(0, 3)) == 0:
        options["icc_profile"] = draw(st.binary(max_size=150))
    content = _saved(image, name, options)

    if name == "PNG" and draw(st.integers(0, 3)) == 0:
        content = draw(odd_chunks(content))
    if draw(st.integers(0, 2)) == 0:
        content = draw(damaged(content))
    role = draw(st.sampled_from(["image", "image", "image and text", "video"]))
    suffix = draw(st.sampled_from([".png", ".png", ".jpg", ".mp4", ""]))
    return {"kind": "file", "role": role, "suffix": suffix, "content": as_text(content)}


@st.composite
def video_files(draw) -> dict:
    """A small video, perhaps damaged."""
    content = video()
    if draw(st.integers(0, 3)):
        content = draw(damaged(content))
    return {"kind": "file", "role": "video", "suffix": ".mp4", "content": as_text(content)}


@cache
def video() -> bytes:
    """A video of four frames, 32 pixels a side."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("mpeg4", rate=4)
        stream.width = 32
        stream.height = 32
        for number in range(4):
            file.mux(stream.encode(av.VideoFrame.from_image(picture(number, (32, 32)))))
        file.mux(stream.encode(None))
    return buffer.getvalue()


@st.composite
def exifs(draw) -> bytes:
    """EXIF data with an orientation, which may be of any type and value."""
    kind = draw(st.sampled_from([3, 3, 3, 1, 2, 4, 5, 7, 9, 12]))
    count = draw(st.sampled_from([1, 1, 1, 0, 2, 4, 2**31]))
    value = struct.pack("<HH", draw(st.integers(0, 9)), draw(st.sampled_from([0, 0, 1, 65535])))
    return b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01" + struct.pack("<HI", kind, count) + value + b"\0\0\0\0"


@st.composite
def odd_chunks(draw, content: bytes) -> bytes:
    """A PNG with one more chunk after its header, or with another size in its header."""
    chunk = draw(
        st.sampled_from(
            [
                (b"zTXt", b"k\0\0" + zlib.compress(bytes(8_000_000))),
                (b"iCCP", b"k\0\0" + zlib.compress(bytes(8_000_000))),
                (b"tEXt", b"k\0" + b"v" * 70_000),
                (b"tRNS", b"\0\1"),
                (b"tRNS", b""),
                (b"PLTE", b"\1\2"),
                (b"gAMA", b""),
                (b"acTL", struct.pack(">II", 2**31 - 1, 0)),
                (b"eXIf", b"II*\0\x08\0\0\0\xff\xff"),
            ]
        )
    )
    if draw(st.integers(0, 3)) == 0:
        size = struct.pack(">II", *draw(st.sampled_from([(0, 0), (0, 5), (2**31 - 1, 1), (30_000, 30_000), (9, 9)])))
        header = b"IHDR" + size + content[24:29]
        return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
    return content[:33] + _chunk(*chunk) + content[33:]


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """Bytes flipped, cut off, zeroed, or followed by others."""
    damage = draw(st.sampled_from(["flip", "flip", "cut", "zero", "more", "text"]))
    place = draw(st.integers(0, max(0, len(content) - 1)))
    if damage == "flip":
        return content[:place] + bytes([content[place] ^ draw(st.integers(1, 255))]) + content[place + 1 :]
    if damage == "cut":
        return content[:place]
    if damage == "zero":
        return content[:place] + bytes(len(content) - place)
    if damage == "more":
        return content + draw(st.binary(max_size=50))
    return draw(
        st.sampled_from([b"", b"<html>not found</html>", b"%PDF-1.4", b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
    )


# cases
cases_by_kind = (
    st.fixed_dictionaries({"kind": st.just("text"), "text": texts}),
    st.fixed_dictionaries({"kind": st.just("chat"), "messages": chats}),
    st.fixed_dictionaries({"kind": st.just("value"), "value": values}),
    st.fixed_dictionaries(
        {
            "kind": st.just("dict"),
            "fields": st.dictionaries(
                st.sampled_from(["text", "image", "video", "images", "audio"]), mostly(texts), max_size=3
            ),
        }
    ),
    st.fixed_dictionaries(
        {"kind": st.just("path"), "which": st.sampled_from(PATHS), "role": st.sampled_from(["image", "video", "path"])}
    ),
    st.fixed_dictionaries(
        {"kind": st.just("frames"), "frames": st.lists(mostly(pictures(), st.just({})), max_size=3)}
    ),
    pictures(),
    image_files(),
    image_files(),
    video_files(),
)


def cases(_=None):
    return st.one_of(*cases_by_kind)


# making the items
def painted(mode: str, size, seed: int) -> Image.Image:
    """Random pixels in any mode."""
    if size[0] * size[1] > 10**7 or not all(size):
        return Image.new(mode, tuple(size))  # a bomb need not be random
    if mode in ("I", "F", "I;16"):
        values = np.random.default_rng(seed).integers(0, 65536, (size[1], size[0]))
        array = values.astype({"I": np.int32, "F": np.float32, "I;16": np.uint16}[mode])
        return Image.fromarray(array)
    image = picture(seed, size)
    if mode == "PA":
        return image.convert("P").convert("PA")
    if mode in ("La", "RGBa"):
        return image.convert("RGBA").convert("RGBa") if mode == "RGBa" else image.convert("LA").convert("La")
    if mode == "LAB":
        return Image.frombytes("LAB", image.size, image.tobytes())
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image.convert(mode)


def _saved(image: Image.Image, name: str, options: dict) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def _can_save(image: Image.Image, name: str) -> bool:
    try:
        _saved(image, name, {})
    except (OSError, ValueError, KeyError):
        return False
    return True


def item_of(case: dict, folder: Path):
    """The item of a case; its files lie in `folder`."""
    kind = case["kind"]
    if kind == "text":
        return case["text"]
    if kind == "chat":
        return _with_paths(case["messages"], folder)
    if kind == "value":
        return _with_paths(case["value"], folder)
    if kind == "dict":
        return case["fields"]
    if kind == "picture":
        return painted(case["mode"], case["size"], case["seed"])
    if kind == "frames":
        return {"video": [item_of(frame, folder) if frame else None for frame in case["frames"]]}

    if kind == "file":
        path = folder / f"file{case['suffix']}"
        path.write_bytes(as_bytes(case["content"]))
    else:
        path = _odd_path(case["which"], folder)
    role = case["role"]
    if role == "path":
        return Path(path) if isinstance(path, str) else path
    if role == "image and text":
        return {"image": path, "text": "at night"}
    return {role: path}


def _with_paths(value, folder: Path):
    """A value of JSON with the one good picture under its path."""
    if isinstance(value, list):
        return [_with_paths(element, folder) for element in value]
    if isinstance(value, dict):
        return {int(key) if key == "5" else key: _with_paths(element, folder) for key, element in value.items()}
    return str(folder / "a.png") if value == "a.png" else value


def _odd_path(which: str, folder: Path):
    paths = {
        "missing": folder / "missing.png",
        "long": str(folder / ("x" * 5000)),
        "nul": f"{folder}/a\0.png",
        "bytes": os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"),
        "device": "/dev/zero",
        "home": "~/a.png",
        "url": "http://127.0.0.1:9/a.png",
    }
    return paths.get(which, folder / f"{which}.png")


# trying a case
def prepare(folder: Path) -> Ground:
    """Tiny models, a folder of odd files, and what ordinary items give."""
    folder.mkdir(parents=True, exist_ok=True)
    backbone = save_backbone(folder / "backbone")
    (folder / "folder.png").mkdir()
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no picture")
    os.mkfifo(folder / "fifo.png")
    os.symlink("loop.png", folder / "loop.png")
    picture(5).save(folder / "a.png")
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")).write_bytes((folder / "a.png").read_bytes())

    embedder = UniMEModel.from_backbone(backbone)
    return Ground(
        folder=folder,
        embedder=embedder,
        reranker=UniMERerankerForCausalLM.from_backbone(backbone),
        neighbours=embedder.encode(["a red circle", "a blue star"]),
    )


def outcome_of(case: dict, ground: Ground) -> Outcome:
    """Embeds the item of a case between two others, and scores it as the second candidate."""
    names = ["item 1", "candidate 1"]
    return observe(lambda: _try(case, ground), names, (*ERRORS, TypeError))  # TypeError: for values that are no item


def _try(case: dict, ground: Ground):
    item = item_of(case, ground.folder)
    _embed(item, ground)
    if case["kind"] == "text":
        _assert_plain_text(item, ground.embedder.processor)
    if case["kind"] == "file" and case["role"] == "image":
        _assert_pixels(item["image"], as_bytes(case["content"]))
    if case["kind"] != "chat":  # a judge reads no chats
        _score(item, ground)


def _embed(item, ground):
    embeddings = ground.embedder.encode(["a red circle", item, "a blue star"])
    if not torch.isfinite(embeddings).all() or embeddings.shape[0] != 3:
        raise Wrong(f"embeddings of shape {tuple(embeddings.shape)} that are not all finite")
    if not torch.allclose(embeddings[[0, 2]], ground.neighbours, atol=1e-4):
        raise Wrong("the items beside it have other embeddings than alone")
    if not torch.allclose(embeddings[1], ground.embedder.encode([item])[0], atol=1e-4):
        raise Wrong("it has another embedding alone")


def _score(item, ground):
    scores = ground.reranker.score("a red circle", ["a blue star", item])
    if not ((scores >= 0) & (scores <= 1)).all():
        raise Wrong(f"scores {scores.tolist()} outside [0, 1]")


def _assert_plain_text(text: str, processor):
    """A text adds no control token to its prompt."""
    tokenizer = processor.tokenizer
    control = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    (plain,) = processor.prepare(["x"])
    (entry,) = processor.prepare([text])
    count = sum(token_id in control for token_id in entry.input_ids)
    if count != sum(token_id in control for token_id in plain.input_ids):
        raise Hole(f"a text became {count} control tokens: {text[:80]!r}")


def _assert_pixels(path, content: bytes):
    """The pixels are those that Pillow decodes, upright and on white."""
    pixels = np.asarray(open_image(path)).astype(int)
    image = Image.open(io.BytesIO(content))
    image.load()
    has_alpha = "A" in image.getbands() or "transparency" in image.info
    is_deep = image.mode.startswith("I;16")
    image = ImageOps.exif_transpose(image)

    if is_deep:
        expected = np.repeat(np.asarray(image)[..., None] / 256, 3, axis=2)
    elif has_alpha:
        values = np.asarray(image.convert("RGBA")).astype(float)
        alpha = values[..., 3:] / 255
        expected = values[..., :3] * alpha + 255 * (1 - alpha)
    else:
        expected = np.asarray(image.convert("RGB"))
    if pixels.shape != expected.shape or abs(pixels - expected).max() > 2:
        raise Wrong(f"other pixels than Pillow's, of a {image.mode} image of {image.size}")
