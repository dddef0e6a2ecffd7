"""Items of every kind: several images, parts in their order, pages, bytes, addresses, arrays, own instructions."""

import base64
import io
import json
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import picture
from PIL import Image

from unime import UniMEModel, urls_unime
from unime.commands.index import read_index
from unime.data.item_sources import read_items
from unime.data.readers import read_rows
from unime.data.schema import Example, Item, to_dataset, to_example
from unime.images_unime import open_image, read_size
from unime.items_unime import item_key, split_item
from unime.pages_unime import DPI
from unime.st_inputs_unime import as_item


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_pdf(path: Path) -> Path:
    """Two pages of two inches by one, a red one and a blue one."""
    pages = [Image.new("RGB", (200, 100), colour) for colour in ("red", "blue")]
    pages[0].save(path, save_all=True, append_images=pages[1:], resolution=100)
    return path


def test_one_picture_in_every_form_is_one_embedding(tmp_path, embedder):
    image = picture(3)
    image.save(tmp_path / "x.png")
    pixels = np.asarray(image)
    uri = f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"
    forms = [
        tmp_path / "x.png",
        png(image),
        {"image": uri},
        pixels,
        torch.from_numpy(pixels.copy()).permute(2, 0, 1),
        torch.from_numpy(pixels.copy()).permute(2, 0, 1).double() / 255,
        {"images": [str(tmp_path / "x.png")]},
        [{"image": image}],
    ]
    expected = embedder.encode(image)
    for row in embedder.encode(forms):
        assert torch.equal(row, expected)
    assert len({item_key(form) for form in forms[1:4]}) == 3

    # and so it is judged, and ranked
    text = {"text": "what", "image": uri}
    assert embedder.processor.render(text)[0] == embedder.processor.render({"text": "what", "image": image})[0]


@pytest.mark.parametrize(
    "item, message",
    [
        ({"image": "data:image/png,abc"}, "a data URI must be in base64"),
        ({"image": "data:image/png;base64,???"}, "a data URI is not in base64"),
        (b"no image", "image in memory, of 8 bytes, cannot be read"),
        (np.zeros((5, 6, 7), np.uint8), "is not an image or a video"),
        (np.full((4, 4, 3), 2.5), "or floats from 0 to 1"),
        ({"image": "https://example.org/x.png"}, "is an address; allow_urls=True lets it be read"),
        ([{"text": "a"}, {"video": "x.mp4"}], "each part must be one text or one image"),
        ([{"text": "a <image>"}, {"image": b""}], "remove the placeholder from"),
        ({"image": "a.png", "images": ["b.png"]}, "has both 'image' and 'images'"),
        ({"text": "<image> <image> x", "images": ["a.png"] * 3}, "places 2 images in its text but has 3"),
        ({"video": "x.mp4", "fps": 0}, "item 0 has the fps 0"),
        ({"text": "x", "instruction": 5}, "an instruction must be a string"),
    ],
)
def test_items_that_cannot_be_read_are_named(embedder, item, message):
    with pytest.raises((ValueError, TypeError), match=message):
        embedder.encode([item])


def test_texts_and_images_stand_in_their_order(embedder):
    first, second = picture(0), picture(1)
    parts = [{"text": "from "}, {"image": first}, " to ", second, {"text": " at night"}]
    assert split_item(parts) == ("from <|image_1|> to <|image_2|> at night", (first, second))

    fence = embedder.processor._fenced_image
    prompt, images = embedder.processor.render(parts)
    assert f"from {fence} to {fence} at night" in prompt and images == (first, second)
    raw = UniMEModel.from_backbone(embedder.source, preset="joint").processor
    assert f"from {fence} to {fence} at night" in raw.render(parts)[0]
    assert f"Find it.\nfrom {fence} to {fence} at night" in raw.render(parts, "Find it.")[0]

    # what is fed: each image where it stands, with as many tokens as it takes
    (entry,) = embedder.processor.prepare([parts])
    ids = embedder.processor.collate([entry])["input_ids"][0].tolist()
    assert ids.count(embedder.processor.image_token_id) == sum(entry.image_tokens) and len(entry.image_tokens) == 2

    orders = [
        parts,
        [*parts[:1], second, " to ", first, *parts[4:]],
        {"text": "from  to  at night", "image": [first, second]},
    ]
    a, b, c = embedder.encode(orders)
    assert (a - b).abs().max() > 1e-4 and (a - c).abs().max() > 1e-4, "the places are seen"
    chat = [{"role": "user", "content": [{"type": "image", "image": first}, {"type": "text", "text": "x"}]}]
    assert embedder.encode([chat, "x"]).shape[0] == 2, "a chat stays a chat"


def test_a_judge_sees_interleaved_items_in_their_order(reranker):
    first, second = picture(0), picture(1)
    parts = [{"text": "from "}, first, {"text": " to "}, second]
    (message,) = reranker.processor.rerank_messages("q", [parts], "pointwise")
    kinds = [part.get("text", part["type"]) for part in message["content"]]
    assert kinds[-4:] == ["from ", "image", " to ", "image"]
    swapped = [{"text": "from "}, second, {"text": " to "}, first]
    scores = reranker.score("q", [parts, swapped])
    assert scores[0] != scores[1]


def test_texts_between_images_are_never_cut_with_their_images(embedder):
    parts = [{"text": "a " * 50}, picture(0), {"text": "b " * 50}, picture(1)]
    with pytest.raises(ValueError, match="above the limit of 80"):
        embedder.encode([parts], max_length=80)


def test_an_item_has_an_instruction_of_its_own(embedder):
    own = [{"text": "a", "instruction": "One."}, {"text": "b", "instruction": "Two."}]
    expected = embedder.encode(own)
    alone = torch.stack([embedder.encode("a", instruction="One."), embedder.encode("b", instruction="Two.")])
    assert torch.allclose(expected, alone, atol=1e-5)
    assert torch.equal(embedder.encode(["a", "b"], instruction=["One.", "Two."]), expected)
    assert torch.equal(embedder.encode(own, instruction="Another."), expected), "its own goes before"
    image = picture(0)
    together = embedder.encode([image, {"image": image}], instruction=["Look.", None])
    assert torch.allclose(together[0], embedder.encode({"image": image}, instruction="Look."), atol=1e-5)
    assert torch.allclose(together[1], embedder.encode(image), atol=1e-5)
    with pytest.raises(ValueError, match="there are 1 instructions for 2 items"):
        embedder.encode(["a", "b"], instruction=["One."])

    # a sum has it with its text only
    joint = {"text": "a", "image": image, "instruction": "One."}
    plain = embedder.encode({"text": "a", "image": image}, instruction="One.", fusion="sum")
    assert torch.equal(embedder.encode([joint], fusion="sum")[0], plain)


def test_the_instruction_of_a_query_reaches_the_judge(reranker):
    own = reranker.score({"text": "q", "instruction": "Find it."}, ["a"])
    assert torch.equal(own, reranker.score("q", ["a"], instruction="Find it."))
    assert not torch.equal(own, reranker.score("q", ["a"]))


def test_the_background_of_transparent_images_is_saved_with_the_processor(tmp_path, backbone):
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    assert open_image(clear).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(clear, background="#102030").getpixel((0, 0)) == (16, 32, 48)

    model = UniMEModel.from_backbone(backbone, background="black")
    black = model.encode(Image.new("RGB", (32, 32)))
    assert torch.equal(model.encode(clear), black)
    model.processor.allow_urls = True  # which is not saved
    model.save_pretrained(tmp_path / "saved")
    again = UniMEModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.encode(clear), black) and again.processor.allow_urls is False
    assert torch.equal(
        UniMEModel.from_pretrained(tmp_path / "saved", background="white").encode(clear),
        again.encode(Image.new("RGB", (32, 32), "white")),
    )
    with pytest.raises(ValueError, match="unknown color specifier"):
        UniMEModel.from_backbone(backbone, background="no colour")


def test_pages_of_a_pdf(tmp_path, embedder):
    path = write_pdf(tmp_path / "report.pdf")
    page = f"{path}#page=2"
    assert read_size(page, "item") == (2 * DPI, DPI) == open_image(page).size
    assert open_image(page).getpixel((10, 10)) == pytest.approx((0, 0, 255), abs=3)  # after JPEG
    pages = [{"image": page}, Path(page), {"text": "x", "image": page}]
    assert torch.equal(embedder.encode(pages[0]), embedder.encode(pages[1]))
    assert embedder.encode(pages).shape[0] == 3

    for name, message in (
        (path, "it has 2 pages; name one of them: report.pdf#page=1"),
        (f"{path}#page=3", "it has no page 3, but the pages 1 to 2"),
        (tmp_path / "other.pdf", "there is no such file"),
    ):
        with pytest.raises(ValueError, match=message):
            embedder.encode({"image": str(name)})
    (tmp_path / "broken.pdf").write_bytes(b"%PDF- no more")
    with pytest.raises(ValueError, match="it is not a PDF that can be opened"):
        open_image(tmp_path / "broken.pdf")

    # in rows, and as a source, of which each page is an item
    (tmp_path / "rows.jsonl").write_text(json.dumps({"query": "q", "positive": {"image": "report.pdf#page=1"}}))
    (example,) = map(to_example, read_rows(tmp_path / "rows.jsonl"))
    assert example.positive == Item(image=f"{path}#page=1")
    for source in (path, tmp_path):
        names = [name for name, _ in read_items([str(source)]) if name.startswith("report")]
        assert names == ["report.pdf#page=1", "report.pdf#page=2"]


def test_videos_say_how_they_are_sampled(tmp_path, embedder):
    from test_processing import write_video

    path = write_video(tmp_path / "v.mp4")  # 12 frames, four a second
    processor = embedder.processor
    for item, count in (
        ({"video": path}, 8),
        ({"video": path, "num_frames": 3}, 3),
        ({"video": path, "fps": 1}, 4),
        ({"video": f"{path}#fps=2"}, 6),
        ({"video": f"{path}#frames=5"}, 5),
        (np.zeros((4, 48, 64, 3), np.uint8), 4),
    ):
        (clip,) = processor.render(item)[1]
        assert len(clip.frames) == count, item
    assert processor.render({"video": f"{path}#fps=1"})[1][0].seconds == (0, 1, 1.75, 2.75)

    rows = [
        {"query": "q", "positive": {"video": "v.mp4", "fps": 2}},
        {"query": "q", "positive": {"video": "v.mp4#frames=5"}},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first, second = map(to_example, read_rows(tmp_path / "rows.jsonl"))
    assert first.positive == Item(image=f"{path}#fps=2") and first.positive.is_video
    assert embedder.encode([first.positive.as_input(), second.positive.as_input()]).shape[0] == 2


def test_items_with_several_images_are_stored_and_told_apart(tmp_path):
    item = Item("at <|image_1|> and <|image_2|>", "a.png", ("b.png",), "Find it.")
    (row,) = to_dataset([Example(item, Item("p"), other_positives=[Item("o")], weight=0.5)])
    example = to_example(row)
    assert example.query == item and example.other_positives == [Item("o")] and example.weight == 0.5
    assert item.as_input() == {"text": item.text, "image": ["a.png", "b.png"], "instruction": "Find it."}
    others = [Item(item.text, "b.png", ("a.png",)), Item(item.text, "a.png"), Item(item.text, "a.png", ("b.png",))]
    assert len({item.content_hash, *(other.content_hash for other in others)}) == 4
    assert len({item.identity, *(other.identity for other in others)}) == 3, "an instruction is no part of an answer"


def test_encode_takes_columns_of_rows_and_items_of_several_images(tmp_path, backbone, capsys):
    from unime.cli import main

    for seed in range(3):
        picture(seed).save(tmp_path / f"{seed}.png")
    rows = [
        {"query": "a", "positive": {"image": "0.png"}, "negatives": ["x"]},
        {"query": "b", "positive": {"images": ["1.png", "2.png"]}},
        {"query": "b", "positive": {"image": "0.png"}},
    ]
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    options = ["--image-root", str(tmp_path), "--model", str(backbone), "--preset", "joint"]

    out = tmp_path / "index.parquet"
    main(["encode", str(path), "--column", "positive", "--out", str(out), *options])
    image = [str(tmp_path / f"{seed}.png") for seed in range(3)]
    assert read_index(out).items == [Item(image=image[0]), Item(image=image[1], more_images=(image[2],))]
    main(["encode", str(path), "--column", "positive", "--out", str(out), "--update", *options])
    assert "2 items" in capsys.readouterr().out and read_index(out).items[1].more_images == (image[2],)

    assert [item for _, item in read_items([str(path)], tmp_path, "query")] == [Item("a"), Item("b")]
    assert [item for _, item in read_items([str(path)], tmp_path, "negatives")] == [Item("x")]
    with pytest.raises(ValueError, match="line 1: is a row of a query and its answer; --column positive"):
        list(read_items([str(path)], tmp_path))


class Server:
    """An HTTPS server on this machine, with a certificate of its own."""

    def __init__(self, folder: Path, pages: dict):
        key, certificate = folder / "key.pem", folder / "certificate.pem"
        subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
        subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
        self.certificate = certificate
        self.asked = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.asked.append(self.path)
                status, headers, body = pages.get(self.path, (404, {}, b""))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                """Keeps the test output clean."""

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        self.url = f"https://localhost:{self.http.server_port}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.http.shutdown()
        self.http.server_close()


def test_addresses_are_read_where_it_is_allowed_and_never_from_a_private_network(tmp_path, monkeypatch, embedder):
    from unime.data import images

    image = picture(5)
    pages = {
        "/x.png": (200, {}, png(image)),
        "/a%20caf%C3%A9%20here.png?q=%C3%A9&n=1": (200, {}, png(image)),
        "/moved": (302, {"Location": "/x.png"}, b""),
        "/circle": (302, {"Location": "/circle"}, b""),
        "/away": (302, {"Location": "http://localhost/x.png"}, b""),
        "/inside": (302, {"Location": "https://10.0.0.1/x.png"}, b""),
        "/large": (200, {}, b"x" * 30_000),
    }
    monkeypatch.setattr(urls_unime, "CACHE", tmp_path / "fetched")
    monkeypatch.setattr(images, "FETCHED", tmp_path / "fetched")
    monkeypatch.setattr(urls_unime, "MOST_BYTES", 20_000)
    with Server(tmp_path, pages) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(server.certificate))
        item = {"image": f"{server.url}/x.png"}
        embedder.processor.allow_urls = True
        with pytest.raises(ValueError, match=r"localhost is (127.0.0.1|::1), an address of a private network"):
            embedder.encode(item)
        with pytest.raises(ValueError, match=r"/x.png cannot be read: localhost is .*, an address of a private"):
            as_item(item)
        assert server.asked == []

        # the check is replaced: the only server of a test is on this machine
        check = urls_unime.is_public
        monkeypatch.setattr(urls_unime, "is_public", lambda address: address in ("127.0.0.1", "::1") or check(address))
        monkeypatch.setattr(urls_unime.socket, "getaddrinfo", only_version_4(urls_unime.socket.getaddrinfo))
        expected = embedder.encode(image)
        assert torch.equal(embedder.encode(item), expected)
        assert torch.equal(embedder.encode({"image": f"{server.url}/moved"}), expected)
        assert torch.equal(embedder.encode(item), expected) and server.asked.count("/x.png") == 2, "it is kept"
        assert np.array_equal(as_item(item)["image"], image), "as sentence-transformers takes it"
        unescaped = f"{server.url}/a café%20here.png?q=é&n=1"
        assert torch.equal(embedder.encode({"image": unescaped}), expected), "what is escaped is not escaped again"

        for path, message in (
            ("/circle", "it redirects more than 5 times"),
            ("/away", "only https:// is read"),
            ("/inside", "10.0.0.1 is 10.0.0.1, an address of a private network"),
            ("/large", "it has more than"),
            ("/none", "the server answers 404"),
        ):
            with pytest.raises(ValueError, match=message):
                embedder.encode({"image": server.url + path})

        # in rows
        (tmp_path / "rows.jsonl").write_text(json.dumps({"query": "q", "positive": item}))
        with pytest.raises(ValueError, match=r"row 0 \(line 1\): https://localhost.*; --allow-urls lets it be read"):
            read_rows(tmp_path / "rows.jsonl")
        (example,) = map(to_example, read_rows(tmp_path / "rows.jsonl", allow_urls=True))
        assert np.array_equal(open_image(example.positive.image), image)
    embedder.processor.allow_urls = False
    with pytest.raises(ValueError, match="is an address"):
        embedder.encode(item)


def only_version_4(look_up):
    def getaddrinfo(host, port, *arguments, **options):
        entries = look_up(host, port, *arguments, **options)
        return [entry for entry in entries if entry[0] == urls_unime.socket.AF_INET]

    return getaddrinfo


@pytest.mark.parametrize(
    "address",
    [
        "224.0.0.1",
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "169.254.169.254",
        "::1",
        "fd00::1",
        "::ffff:10.0.0.1",  # the others lead to an address of version 4
        "64:ff9b::a00:1",
        "2002:a00:1::",
    ],
)
def test_private_addresses_are_known(address):
    assert not urls_unime.is_public(address) and urls_unime.is_public("8.8.8.8")


def test_other_positives_are_known_to_the_losses_of_all_ranks(embedder, tmp_path):
    from unime.data.collators import EmbeddingCollator
    from unime.trainers.gathered_table import GatheredTable

    picture(0).save(tmp_path / "a.png")
    picture(0).save(tmp_path / "copy.bmp")
    examples = [
        Example(
            Item("q0"), Item("p0"), [Item("n")], other_positives=[Item(image=str(tmp_path / "a.png")), Item("far")]
        ),
        Example(Item("q1"), Item(image=str(tmp_path / "copy.bmp")), weight=2.0),
    ]
    batch = EmbeddingCollator(embedder.processor)(list(to_dataset(examples)))["batch"]
    assert len(batch.hashes) == 5, "other positives are not encoded"
    table = GatheredTable(batch, torch.device("cpu"))
    assert table.also_positive.nonzero().tolist() == [[0, int(table.positive[1])]], "a copy of the picture"
    assert table.weight.tolist() == [1, 2]

    plain = EmbeddingCollator(embedder.processor)(list(to_dataset([Example(Item("q"), Item("p"))])))["batch"]
    table = GatheredTable(plain, torch.device("cpu"))
    assert table.also_positive is None and table.weight is None


def test_trainers_take_data_sets_with_image_columns(embedder, tmp_path, monkeypatch):
    import datasets

    from unime.data import images
    from unime.files import unpacked
    from unime.trainers.contrastive import ContrastiveConfig, ContrastiveTrainer

    monkeypatch.setattr(unpacked.unpack, "__defaults__", ("", tmp_path / "unpacked"))
    monkeypatch.setattr(images, "UNPACKED", tmp_path / "unpacked")
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    captions = ["a dog", "a cat", "two birds", "a fish"]
    rows = datasets.Dataset.from_dict({"image": list(map(picture, range(4))), "caption": captions}, features)

    for name, data in (("rows", rows), ("stream", rows.to_iterable_dataset())):
        args = ContrastiveConfig(
            output_dir=str(tmp_path / name), max_steps=1, per_device_train_batch_size=4, report_to=[], bf16=False
        )
        trainer = ContrastiveTrainer(embedder, args, train_dataset=data)
        seen = []
        collate = trainer.data_collator

        def look(batch, seen=seen, collate=collate):
            seen.extend(map(to_example, batch))
            return collate(batch)

        trainer.data_collator = look
        trainer.train()
        assert sorted(example.query.text for example in seen) == sorted(captions)
        for example in seen:
            assert np.array_equal(open_image(example.positive.image), picture(captions.index(example.query.text)))
