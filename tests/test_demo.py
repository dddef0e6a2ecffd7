"""`unime demo` as a visitor meets it: the page in Debian's chromium, and its interface without a browser."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, picture
from gradio_client import Client, handle_file

from unime import UniMEModel, UniMERerankerForCausalLM
from unime.cli import main as unime
from unime.commands.demo import main

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
    assert told == expected(models, f"{INSTRUCTION}\n{TEXT}", backbone), "the reranker reads the instruction, too"
    image = models / "photos" / "c.png"
    assert ask(image=handle_file(image), top=1)[0] == [("c.png", "1.000")]
    both = ask(TEXT, handle_file(image))[0]
    assert both == expected(models, {"text": TEXT, "image": str(image)})
    assert ask("  ") == ([], "Type a text, drop an image, or both.")


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
