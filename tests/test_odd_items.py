"""Items that nobody expects: each is read as it should be, or refused with an error that names it."""

import io
import os
import struct
import threading
import zlib

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from unime import UniMEModel, processing_unime
from unime.data.check import IN_HAND, _PixelBudget, look_at_images
from unime.data.schema import Item
from unime.images_unime import open_image, read_size
from unime.items_unime import describe
from unime.jobs.embedding import Embedder


def jpeg_with_orientation(kind: int, count: int, value: bytes) -> bytes:
    """A JPEG whose EXIF data have an orientation of any type (TIFF 6.0, section 2)."""
    buffer = io.BytesIO()
    Image.new("RGB", (48, 40), "red").save(buffer, "JPEG")
    entry = struct.pack("<HHI", 0x0112, kind, count) + value
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + b"\0\0\0\0"
    jpeg = buffer.getvalue()
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG (RFC 2083, section 3.2)."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(depth: int, colour: int, rows: list[bytes], *chunks: bytes) -> bytes:
    """A PNG two pixels wide, without a filter."""
    header = struct.pack(">IIBBBBB", 2, len(rows), depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    ends = [chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"".join([b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *chunks, *ends])


ORIENTATIONS = {
    "a text": jpeg_with_orientation(2, 4, b"abc\0"),
    "two numbers": jpeg_with_orientation(3, 2, struct.pack("<HH", 1, 1)),
    "two bytes": jpeg_with_orientation(1, 2, b"\6\1\0\0"),
    "a large number": jpeg_with_orientation(4, 1, struct.pack("<I", 2**31)),
}


@pytest.mark.parametrize("kind", ORIENTATIONS)
def test_an_orientation_that_is_none_turns_nothing(tmp_path, kind):
    (tmp_path / "odd.jpg").write_bytes(ORIENTATIONS[kind])
    assert read_size(tmp_path / "odd.jpg", "item") == open_image(tmp_path / "odd.jpg").size == (48, 40)
    assert look_at_images([str(tmp_path / "odd.jpg")])[0]["unreadable"] == []


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_upright_in_every_format(tmp_path, name, orientation):
    # a white corner, which the turn moves: the definition of the tag in TIFF 6.0
    pixels = np.zeros((40, 64, 3), np.uint8)
    pixels[:16, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / name, exif=exif, quality=95)

    image = open_image(tmp_path / name)
    rows = {1: 0, 2: 0, 3: -1, 4: -1, 5: 0, 6: 0, 7: -1, 8: -1}[orientation]
    columns = {1: 0, 2: -1, 3: -1, 4: 0, 5: 0, 6: -1, 7: -1, 8: 0}[orientation]
    size = (64, 40) if orientation < 5 else (40, 64)
    assert image.size == size == read_size(tmp_path / name, "item")
    upright = np.asarray(image)[..., 0] > 128
    assert upright[rows, columns] and upright.mean() == pytest.approx(0.1, abs=0.02)


def test_a_transparent_colour_is_put_on_white(tmp_path):
    files = {
        "rgb.png": png(8, 2, [b"\xff\0\0\0\0\xff"], chunk(b"tRNS", struct.pack(">HHH", 255, 0, 0))),
        "grey.png": png(8, 0, [b"\x32\x64"], chunk(b"tRNS", struct.pack(">H", 0x32))),
        "grey16.png": png(16, 0, [b"\x32\x10\x64\x10"], chunk(b"tRNS", b"\x32\x10")),
        "one bit.png": png(1, 0, [b"\x40"], chunk(b"tRNS", struct.pack(">H", 0))),
    }
    expected = {"rgb.png": (0, 0, 255), "grey.png": (100,) * 3, "grey16.png": (100,) * 3, "one bit.png": (255,) * 3}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        image = open_image(tmp_path / name)
        assert [image.getpixel((0, 0)), image.getpixel((1, 0))] == [(255, 255, 255), expected[name]], name
    plain = Image.new("RGB", (2, 1), "red")
    assert open_image(plain).getpixel((0, 0)) == (255, 0, 0) and open_image(plain) is not plain


def odd_files(folder):
    """Names that cannot be read as images, with what an error says."""
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    text = zlib.compress(b"A" * 80_000_000)
    (folder / "ztxt.png").write_bytes(png(8, 2, [b"\0" * 6], chunk(b"zTXt", b"k\0\0" + text)))
    (folder / "empty.png").write_bytes(b"")
    return {
        "pipe.png": "cannot be read: it is not a file",
        "folder.png": "cannot be read: it is not a file",
        "ztxt.png": "cannot be read: Decompressed data too large",
        "empty.png": "cannot be read: cannot identify",
        "a\0.png": "cannot be read: embedded null byte",
        "x" * 5000: "cannot be read: .*File name too long",
        "\ud800.png": "cannot be read: .*surrogates not allowed",
    }


def test_files_that_are_no_images_are_named_and_never_waited_for(tmp_path, embedder, reranker):
    for name, reason in odd_files(tmp_path).items():
        item = {"image": f"{tmp_path}/{name}"}
        with pytest.raises(ValueError, match=f"item 1: image .*{reason}"):
            embedder.encode(["a", item])
        with pytest.raises(ValueError, match=f"candidate 1: image .*{reason}"):
            reranker.score("q", ["a", item])


def closed_image(folder):
    picture(0).save(folder / "closed.png")
    image = Image.open(folder / "closed.png")
    image.close()
    return image


ITEMS = {
    "half a character": ("\ud800", "has half a character"),
    "a chat of half a character": ([{"role": "user", "content": "\ud800"}], "has half a character"),
    "no pixel": (Image.new("RGB", (0, 0)), "it has 0 x 0 pixels"),
    "no range": (Image.new("I", (40, 40)), "mode 'I' is not known"),
    "a chat without content": ([{"role": "user", "content": None}], "neither a text nor a list: None"),
    "a chat of a role that is no text": ([{"role": [], "content": "x"}], "whose role is no text"),
    "a chat of a number": ([{"role": "user", "content": 5}], "neither a text nor a list: 5"),
    "a chat of nothing": ([{"role": "user", "content": [None]}], "neither text, image nor video"),
    "keys of two types": ({"text": "x", 5: 1}, r"unknown keys \[5\]"),
    "a number for a video": ({"video": 5}, "neither a path nor a list of images or arrays"),
    "texts for a video": ({"video": ["zz"]}, "neither a path nor a list of images or arrays"),
    "a frame without a pixel": ({"video": [np.zeros((0, 0, 3), np.uint8)]}, "it has 0 x 0 pixels"),
}


@pytest.mark.parametrize("kind", ITEMS)
def test_odd_items_are_named(embedder, reranker, kind):
    item, reason = ITEMS[kind]
    with pytest.raises(ValueError, match=f"item 1.* {reason}"):
        embedder.encode(["a", item])
    if not isinstance(item, list):
        with pytest.raises(ValueError, match=f"candidate 1.* {reason}"):
            reranker.score("q", ["a", item])


def test_other_odd_items(embedder, reranker, tmp_path):
    with pytest.raises(ValueError, match="item 1: .*closed image"):
        embedder.encode(["a", closed_image(tmp_path)])
    with pytest.raises(ValueError, match="the instruction has half a character"):
        embedder.encode(["a"], instruction="\ud800")
    wide = Image.new("RGB", (2270, 10))
    with pytest.raises(ValueError, match="query and candidates, image 2 of 2: image of 2270 x 10 pixels"):
        reranker.rank("q", [picture(0), wide], strategy="listwise")


def test_sentence_transformers_names_the_item_by_its_content(embedder, reranker, tmp_path):
    from unime.sentence_transformers_unime import UniMECrossEncoder, UniMETransformer

    (tmp_path / "bad.png").write_text("no image")
    bad = {"image": str(tmp_path / "bad.png")}
    with pytest.raises(ValueError, match=r"the item of the image '.*bad.png': image '.*bad.png' cannot be read"):
        UniMETransformer(embedder).preprocess(["a", bad])
    with pytest.raises(ValueError, match=r"the pair of the item of the text 'q' and the item of the image '.*bad.png"):
        UniMECrossEncoder(reranker).preprocess([("q", "a"), ("q", bad)])
    assert describe({"text": "x" * 100, "image": picture(0)}) == (
        f"the item of the text '{'x' * 77}...' and image of 64 x 48 pixels"
    )
    assert describe("") == "the item of the empty text" and describe([{"role": "user"}]) == "the chat of 1 messages"


def test_pixels_in_hand_are_bounded():
    budget = _PixelBudget(100)
    lock = threading.Lock()
    in_hand = []
    seen = []

    def decode(pixels):
        with budget.spend(pixels):
            with lock:
                in_hand.append(pixels)
                seen.append(list(in_hand))
            with lock:
                in_hand.remove(pixels)

    threads = [threading.Thread(target=decode, args=(pixels,)) for pixels in [60, 40, 50, 300, 30, 70, 10, 100] * 5]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 40 and budget.in_hand == 0
    assert all(sum(pixels) <= 100 or pixels == [300] for pixels in seen)


def test_large_images_are_checked_one_at_a_time(tmp_path, monkeypatch):
    # a small file of more pixels than may be in hand
    side = int(IN_HAND**0.5) + 1
    for number in range(3):
        Image.new("1", (side, side)).save(tmp_path / f"{number}.png")
    in_hand = []

    def counted(path):
        in_hand.append(path)
        assert len(in_hand) == 1
        in_hand.remove(path)

    monkeypatch.setattr("unime.data.check.open_image", counted)
    report, _ = look_at_images([str(tmp_path / f"{number}.png") for number in range(3)])
    assert report["unreadable"] == [] and report["pixels"]["least"] == side * side


def test_a_saved_model_reads_the_same_colours(embedder, tmp_path):
    content = png(8, 2, [b"\xff\0\0\0\0\xff"] * 2, chunk(b"tRNS", struct.pack(">HHH", 255, 0, 0)))
    (tmp_path / "a.png").write_bytes(content)
    white = Image.fromarray(np.array([[[255, 255, 255], [0, 0, 255]]] * 2, np.uint8))
    embedder.save_pretrained(tmp_path / "model")
    model = UniMEModel.from_pretrained(tmp_path / "model")
    assert (model.encode({"image": tmp_path / "a.png"}) == model.encode(white)).all()


def test_long_texts_are_cut_before_they_are_tokenised(embedder, reranker, monkeypatch):
    processor = embedder.processor
    texts = ["red circle " * 8000, "a" * 70_000, {"text": "blue star\n" * 8000, "image": picture(0)}]
    with pytest.warns(UserWarning, match="3 of 3 items were longer than 1024 tokens"):
        clipped = processor.prepare(texts)

    # as if every text were tokenised whole
    monkeypatch.setattr(processing_unime, "_CHARACTERS", 10**6)
    with pytest.warns(UserWarning, match="3 of 3 items were longer than 1024 tokens"):
        whole = processor.prepare(texts)
    assert [entry.input_ids for entry in clipped] == [entry.input_ids for entry in whole]
    monkeypatch.undo()

    # ten megabytes
    longest = []
    encode = type(processor.tokenizer)._encode_plus

    def counted(self, text, *args, **kwargs):
        for entry in [text] if isinstance(text, str) else text:
            longest.append(len(entry))
        return encode(self, text, *args, **kwargs)

    monkeypatch.setattr(type(processor.tokenizer), "_encode_plus", counted)
    for text in ("a" * 10**7, "red circle " * 10**6):
        processor.prepare([text, {"text": text, "image": picture(0)}])
        with pytest.raises(ValueError, match="item 0 takes far more tokens than the limit of 1024"):
            processor.prepare([[{"role": "user", "content": text}]])
        with pytest.raises(ValueError, match="candidate 1 takes far more tokens"):
            reranker.score("q", ["a", text])
    with pytest.raises(ValueError, match="item 0 begins with more blanks than fit into 1024 tokens"):
        processor.prepare(["\n" * 10**7 + "a"])
    assert 1024 < max(longest) <= 4 * 16 * 1024


def test_a_modality_is_embedded_or_refused(embedder, tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(3):
        picture(number).save(folder / f"{number}.png")
    items = [Item("a red ring", str(folder)), Item("a red ring"), Item("", str(folder))]
    embedder.save_pretrained(tmp_path / "model")
    expected = Embedder(tmp_path / "model").encode(items, "document")
    assert abs(float(expected[0] @ expected[1])) < 0.999

    ours = Embedder(tmp_path / "model", "sentence-transformers", trust_remote_code=True)
    assert np.abs(ours.encode(items, "document") - expected).max() < 1e-5

    class TextModel:
        modalities = ["text"]

    ours.model = TextModel()
    with pytest.raises(ValueError, match="the item of the video '.*frames': .*model reads text, no video"):
        ours.encode([items[2]], "document")


def test_the_check_reads_videos_and_waits_for_no_pipe(tmp_path):
    (tmp_path / "frames").mkdir()
    picture(0).save(tmp_path / "frames" / "0.png")
    (tmp_path / "none").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    report, _ = look_at_images([str(tmp_path / name) for name in ("frames", "none", "pipe.png", "gone.png")])
    assert report["kinds"] == {"video": 1} and report["missing"] == 1
    reasons = {entry["image"].rpartition("/")[2]: entry["reason"] for entry in report["unreadable"]}
    assert "is a folder without frames" in reasons["none"] and "it is not a file" in reasons["pipe.png"]


def test_half_a_picture_is_not_read_as_a_whole_one(tmp_path):
    buffer = io.BytesIO()
    picture(0).save(buffer, "PNG")
    content = buffer.getvalue()
    middle = len(content) // 2
    path = tmp_path / "half.png"
    path.write_bytes(content[:middle] + bytes(len(content) - middle))
    with pytest.raises(ValueError, match=r"half.png' cannot be read"):
        open_image(path)
