"""`unime demo` as a visitor meets it: the page in Debian's chromium, and its interface without a browser."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from threading import Event

import pytest
import requests
import torch
from conftest import ROOT, picture
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from unime import UniMEModel, UniMERerankerForCausalLM
from unime.cli import main as unime
from unime.commands.demo import UPLOAD_BYTES, UPLOAD_PIXELS, main
from unime.commands.time_limit import within

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NAMES = ["a.png", "b.png", "c.png", "d.png", "more/e.png"]
TEXT, INSTRUCTION = "a red circle", "Find me an image of"


@pytest.fixture(scope="module")
def models(backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    UniMEModel.from_backbone(backbone).save_pretrained(folder / "model")
    (folder / "photos" / "more").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        picture(number).save(folder / "photos" / name)
    (folder / "photos" / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def url(models, backbone):
    """Where a server of `unime demo` answers."""
    command = [sys.executable, "-m", "unime.cli", "demo", "--model", models / "model", "--images", models / "photos"]
    command += ["--reranker", backbone, "--cache", models / "cache", "--no-browser", "--instruction", INSTRUCTION]
    server = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    said = []
    for line in server.stdout:
        said.append(line)
        if line.startswith("The page is at"):
            break
    else:
        raise AssertionError("".join(said))
    yield line.split()[4]
    server.terminate()
    server.communicate()


def expected(models, query, reranker=None):
    """Names in the order of our own `encode`, or of our own `score`."""
    images = [{"image": str(models / "photos" / name)} for name in NAMES]
    if reranker:
        scores = UniMERerankerForCausalLM.from_backbone(reranker).score(query, images)
    else:
        model = UniMEModel.from_pretrained(models / "model")
        scores = model.encode_document(images) @ model.encode_query(query)
    return [(NAMES[i], f"{scores[i]:.3f}") for i in scores.argsort(descending=True)]


def answers(captions) -> list[tuple]:
    """(name, first score) of captions such as `1. 0.672 (0.596) a.png`."""
    parts = [caption.split() for caption in captions]
    assert [part[0] for part in parts] == [f"{place}." for place in range(1, len(parts) + 1)]
    return [(part[-1], part[1]) for part in parts]


def test_without_a_browser(models, backbone, url):
    client = Client(url, verbose=False)

    def ask(text="", image=None, instruction="", top=12, reranked=False):
        gallery, status = client.predict(text, image, instruction, top, reranked, api_name="/search")
        return answers([entry["caption"] for entry in gallery]), status

    found, status = ask(TEXT, instruction=INSTRUCTION)
    assert found == expected(models, f"{INSTRUCTION}\n{TEXT}")
    assert status.startswith("5 images, by cosine similarity. 1 files cannot be read: broken.png")
    assert ask(TEXT, reranked=True)[0] == expected(models, TEXT, backbone)
    told = ask(TEXT, instruction=INSTRUCTION, reranked=True)[0]
    assert told == expected(models, {"text": TEXT, "instruction": INSTRUCTION}, backbone), (
        "the reranker reads the instruction, too"
    )
    image = models / "photos" / "c.png"
    assert ask(image=handle_file(image), top=1)[0] == [("c.png", "1.000")]
    both = ask(TEXT, handle_file(image))[0]
    assert both == expected(models, {"text": TEXT, "image": str(image)})
    assert ask("  ") == ([], "Type a text, drop an image, or both.")


def test_no_other_file_is_opened_for_a_client(models, url, tmp_path):
    """A program may send any path, without the mark by which gradio knows a file."""
    client = Client(url, verbose=False)

    def ask(path):
        gallery, status = client.predict("", {"path": str(path)}, "", 3, False, api_name="/search")
        return [entry["caption"] for entry in gallery], status

    picture(3).save(tmp_path / "secret.png")
    (tmp_path / "text.png").write_text("secret")
    os.mkfifo(tmp_path / "pipe.png")
    inside = models / "photos"
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(inside / "pipe.png")
    try:
        refused = [tmp_path / name for name in ("secret.png", "text.png", "pipe.png", "nowhere.png")]
        refused += [inside / "link.png", inside / "pipe.png", inside / ".." / ".." / "secret.png", inside]
        refused += ["/etc/passwd", "/dev/zero", "/proc/self/environ", "a\0b.png", "x" * 5000]
        for path in refused:
            assert ask(path) == ([], f"{Path(path).name} is not an uploaded picture."), path
    finally:
        (inside / "link.png").unlink()
        (inside / "pipe.png").unlink()
    assert ask(inside / "c.png")[0][0] == "1. 1.000 c.png", "files of the folder that is searched may be named"


def raw(url: str, image) -> str:
    """What the server answers to a request that no client of gradio has looked at."""
    body = {"data": ["", image, "", 3, False]}
    event = requests.post(f"{url}gradio_api/call/search", json=body, timeout=60).json()["event_id"]
    return requests.get(f"{url}gradio_api/call/search/{event}", timeout=60).text


def test_addresses_are_not_fetched_for_a_client(models, url):
    """Neither with the mark of a file nor without; nor is another path than an uploaded one opened with it."""
    marked = {"meta": {"_type": "gradio.FileData"}}
    for address in ("http://127.0.0.1:9/a.png", "https://example.org/a.png", "file:///etc/passwd"):
        name = address.rpartition("/")[2]
        assert f"{name} is not an uploaded picture." in raw(url, {"path": address})
        answer = raw(url, {"path": address, **marked})
        assert answer.startswith("event: error") and "root:" not in answer
    assert raw(url, {"path": "/etc/passwd", **marked}).startswith("event: error")
    assert "1. 1.000 c.png" in raw(url, {"path": str(models / "photos" / "c.png")})


def test_uploads_and_texts_are_bounded(models, url, tmp_path):
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(UPLOAD_BYTES + 1)
    with open(tmp_path / "large.png", "rb") as file:
        refused = requests.post(f"{url}gradio_api/upload", files={"files": file}, timeout=60)
    assert refused.status_code == 413

    client = Client(url, verbose=False)
    Image.new("1", (10_000, 5_001)).save(tmp_path / "bomb.png")  # a few kilobytes
    answer = client.predict("", handle_file(tmp_path / "bomb.png"), "", 3, False, api_name="/search")
    assert answer[1] == f"bomb.png has more than {UPLOAD_PIXELS:,} pixels."
    assert client.predict("a" * 20_001, None, "", 3, False, api_name="/search")[1].startswith(
        "A text has at most 20,000"
    )
    with pytest.raises(AppError):
        client.predict("a", None, "", 10**9, False, api_name="/search")


def test_nobody_waits_longer_than_the_limit():
    release = Event()
    with pytest.raises(ValueError, match="took longer than 0 seconds"):
        within(0.05, release.wait)
    release.set()
    assert within(60, lambda first, second: first + second, 1, 2) == 3


def test_a_search_that_nobody_waits_for_ends():
    layer, started, ended = torch.nn.Linear(2, 2), Event(), Event()

    def endless():
        started.set()
        try:
            for _ in range(10**7):
                layer(torch.zeros(1, 2))
        finally:
            ended.set()

    with pytest.raises(ValueError, match="took longer"):
        within(0.05, endless)
    assert started.is_set() and ended.wait(120), "it ends at its next layer"

    # those of other threads go on, and nothing is left behind
    assert layer(torch.zeros(1, 2)).shape == (1, 2)
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_what_changes_in_the_folder_is_noticed(models, url):
    client = Client(url, verbose=False)
    added, removed = models / "photos" / "new.png", models / "photos" / "d.png"
    picture(77).save(added)
    kept = removed.read_bytes()
    removed.unlink()
    try:
        gallery, status = client.predict("", handle_file(added), "", 12, False, api_name="/search")
    finally:
        added.unlink()
        removed.write_bytes(kept)
    found = answers([entry["caption"] for entry in gallery])
    assert found[0] == ("new.png", "1.000") and "d.png" not in dict(found) and status.startswith("5 images")
    assert len(list((models / "cache").glob("*.parquet"))) == 1, "one file of embeddings a folder and model"


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_in_a_browser(models, backbone, url, tmp_path):
    from playwright.sync_api import expect, sync_playwright

    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, foreign, faults = browser.new_page(), [], []
        page.on("request", lambda request: foreign.append(request.url) if not request.url.startswith(url) else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(url)
        captions, search = page.locator(".caption-label"), page.get_by_role("button", name="Search")
        assert page.get_by_label("Instruction").input_value() == INSTRUCTION

        def shown(first: str, count: int = 5) -> list[tuple]:
            expect(captions.first).to_contain_text(first)
            expect(captions).to_have_count(count)
            return answers(captions.all_inner_texts())

        search.click()
        expect(page.get_by_text("Type a text, drop an image, or both.")).to_be_visible()
        page.get_by_label("Instruction").fill("")
        page.get_by_label("Text").fill(TEXT)
        page.get_by_label("Text").press("Enter")
        own = expected(models, TEXT)
        assert shown(f"1. {own[0][1]} {own[0][0]}") == own
        page.get_by_label("Rerank").check()
        judged = expected(models, TEXT, backbone)
        assert shown(f"1. {judged[0][1]} (") == judged
        page.get_by_label("Rerank").uncheck()
        assert shown(f"1. {own[0][1]} {own[0][0]}") == own
        page.get_by_label("Text").fill("")
        upload = page.locator("input[type=file]")
        upload.set_input_files(str(broken))
        page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.wait_for()
        search.click()
        expect(page.get_by_text("broken.png cannot be read as an image.")).to_be_visible()
        expect(captions).to_have_count(0)
        page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
        upload.set_input_files(str(models / "photos" / "b.png"))
        page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.wait_for()
        search.click()
        assert shown("1. 1.000 b.png")[0] == ("b.png", "1.000")
        browser.close()
    assert not faults and not [address for address in foreign if not address.startswith(("blob:", "data:"))]


def test_mistakes_end_with_a_message(models, tmp_path):
    arguments = ["--model", str(models / "model"), "--no-browser", "--cache", str(tmp_path / "cache"), "--images"]
    with pytest.raises(SystemExit, match="unime demo: .*nowhere is not a folder"):
        main([*arguments, str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match="unime demo: there is nothing to embed"):
        unime(["demo", *arguments, str(tmp_path)])


def test_the_space_starts_with_what_its_environment_says(models):
    """The same page, built by the file that a Space runs."""
    code = "import runpy; print(type(runpy.run_path('app.py')['blocks']).__name__)"
    env = {
        **os.environ,
        "UNIME_MODEL": str(models / "model"),
        "UNIME_IMAGES": str(models / "photos"),
        "HF_HOME": str(models / "home"),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "examples" / "space",
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0 and done.stdout.split()[-1] == "Blocks", done.stdout + done.stderr


def test_kept_embeddings_that_were_damaged_are_made_again(models, tmp_path, capsys):
    from unime.commands.demo import Photos
    from unime.jobs.embedding import Embedder

    photos = Photos(models / "photos", Embedder(models / "model"), tmp_path)
    before = photos.refresh().index.embeddings
    photos.path.write_bytes(photos.path.read_bytes()[:100])
    again = Photos(models / "photos", Embedder(models / "model"), tmp_path).refresh().index.embeddings
    assert (again == before).all() and photos.path.name in capsys.readouterr().err
