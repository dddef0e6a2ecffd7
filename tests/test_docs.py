"""Every code block of README and docs runs here, on the leavings of a quickstart at a fraction of its size.

A page is read from top to bottom: `python` blocks share their names, `bash` blocks run command by command. `sh` blocks
hold what needs a download, a server, a GPU or hours: their commands must exist and their options be known.
"""

import argparse
import importlib
import json
import re
import runpy
import shlex
import shutil
from pathlib import Path

import matplotlib
import nbformat
import pytest
import torch
import yaml
from conftest import ROOT, picture
from nbclient import NotebookClient

from unime.checkpoints.cards import read_card
from unime.cli import COMMANDS
from unime.cli import main as unime
from unime.prompts_unime import BENCHMARKS, PRESETS

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
OTHERS = {
    "make",
    "source",
    "pip",
    "git",
    "cd",
    "vllm",
    "python3",
    "export",
    "docker",
    "curl",
    "sglang",
    "tar",
    "torchrun",
}
FOLDERS = "recipes|accelerate_configs|benchmarks|tests|examples|eval|apps|data|trainers"
# what a real run of a command is cut down to
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"  # which draw a few emoji
SMALL = {
    "examples": [
        f"--font=openmoji={FONTS / 'DejaVuSans.ttf'}",
        f"--font=noto={FONTS / 'DejaVuSans-Bold.ttf'}",
        "--count=16",
        "--held-out=6",
    ],
    "trainers": [
        "--max_steps",
        "2",
        "--warmup_steps",
        "0",
        "--per_device_train_batch_size",
        "8",
        "--save_strategy",
        "no",
        "--bf16",
        "false",
    ],
    "figures": ["--limit", "6"],
    "mine": ["--fallback", "judge_lowest"],  # an untrained judge tells nothing apart
}
KINDS = {
    "TianchengGu/UniME-V2-Qwen2VL-2B": "qwen2_vl",
    "TianchengGu/UniME-V2-reranker-Qwen25VL-7B": "qwen2_5_vl",
    "code-kunkun/LamRA-Rank": "qwen2_vl",
    "Qwen/Qwen2-VL-2B-Instruct": "qwen2_vl",
    "Qwen/Qwen2.5-VL-7B-Instruct": "qwen2_5_vl",
}


def blocks(page) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def commands(text: str) -> list[list[str]]:
    """The commands of a shell block as words, without comments and redirections."""
    found, begun = [], ""
    for line in text.replace("\\\n", " ").splitlines():
        begun = f"{begun}\n{line}" if begun else line
        try:
            words = shlex.split(begun, comments=True)
        except ValueError:  # a quotation that goes on in the next line
            continue
        begun = ""
        while words and re.match(r"[A-Z_]+=", words[0]):
            words.pop(0)
        found += [words] if words else []
    assert not begun, f"a quotation is not closed: {begun}"
    return found


def program(words: list[str]):
    """The `main` behind a command of ours with its arguments and its name; None where it is somebody else's."""
    first, *rest = words
    first = first.removeprefix(".venv/bin/")
    if first == "unime":
        return unime, rest, rest[0] if rest else ""
    if first in ("python", "accelerate", "torchrun") and "-m" in rest:
        place = rest.index("-m")
        module = rest[place + 1]
        if module == "unime.cli":
            return unime, rest[place + 2 :], rest[place + 2]
        if module.startswith("unime."):
            return importlib.import_module(module).main, rest[place + 2 :], module.split(".")[1]
    if first == "python":
        assert (ROOT / rest[0]).exists(), f"{rest[0]} does not exist"
        return lambda _: runpy.run_path(str(ROOT / rest[0]), run_name="__main__"), rest[1:], rest[0]
    assert first in OTHERS, f"{first} is not a command that the docs may use"
    return None


@pytest.fixture(scope="module")
def workplace(miniature, tiny, tmp_path_factory):
    """A folder like a checkout after `make quickstart`, with small checkpoints under the names that the docs use."""
    folder = tmp_path_factory.mktemp("workplace")
    shutil.copytree(miniature, folder / "outputs")
    for name in ("recipes", "accelerate_configs", "eval", "benchmarks", "examples", "docs"):
        (folder / name).symlink_to(ROOT / name)
    for name, kind in KINDS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copytree(tiny(kind)[0], folder / name)
    (folder / "photos").mkdir()
    for number in range(4):
        picture(number).save(folder / "photos" / f"{number}.png")
    return folder


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
@pytest.mark.filterwarnings("ignore")
def test_blocks_run(page, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    names = {"__name__": "__main__"}
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, f"{page.name}", "exec"), names)
        elif language == "bash":
            for words in commands(text):
                main, arguments, kind = program(words)
                small = SMALL.get("trainers" if kind == "train" else kind, [])
                with torch.random.fork_rng():
                    main([*arguments, *small])
        elif language == "yaml":
            assert yaml.safe_load(text)
        elif language == "json":
            assert all(json.loads(line) for line in text.splitlines())
        else:
            assert language in ("sh", "text", "bibtex", "math"), f"a block of {page.name} is of no known kind"
    assert "Traceback" not in capsys.readouterr().err


class Parsed(Exception):
    """A command line has been understood."""


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_that_cannot_run_here_are_understood(page, monkeypatch):
    parse, depth = argparse.ArgumentParser.parse_known_args, []

    def once(self, *args, **kwargs):
        depth.append(self)
        found = parse(self, *args, **kwargs)
        depth.pop()
        if not depth and not found[1]:  # some commands look for a recipe first, and leave the rest for later
            raise Parsed
        return found

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", once)
    monkeypatch.chdir(ROOT)
    for language, text in blocks(page):
        for words in commands(text) if language == "sh" else []:
            ours = program(words)
            if ours and not ours[2].endswith(".py"):
                depth.clear()
                with pytest.raises(Parsed):
                    ours[0](ours[1])


def anchors(page) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    assert text.count("```") == 2 * len(blocks(page)), "a block is not closed, or of no kind"
    for link in LINK.findall(BLOCK.sub("", text)):
        if link.startswith(("https://", "http://")):
            assert re.fullmatch(r"https://[\w.-]+\.\w+(/[\w.\-/#%~+@]*)?", link), link
            continue
        target, _, anchor = link.partition("#")
        found = (page.parent / target).resolve() if target else page
        assert found.exists() and found.is_relative_to(ROOT), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(found), f"{page.name}: {link}"


def test_files_and_commands_that_the_docs_name_exist():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(rf"`((?:{FOLDERS})/[\w./-]+)`", text):
            assert (ROOT / name).exists(), f"{page.name} names {name}"
        for name in re.findall(r"`unime ([\w-]+)", text):
            assert name in COMMANDS, f"{page.name} names unime {name}"


def test_the_notebook_runs(workplace):
    notebook = nbformat.read(ROOT / "examples" / "tour.ipynb", as_version=4)
    assert all(cell.outputs for cell in notebook.cells if "plt.show()" in cell.source), "it is kept with its pictures"
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source = "STEPS = 2"
    resources = {"metadata": {"path": str(workplace)}}
    done = NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    last = "".join(output.get("text", "") for output in done.cells[-2].outputs if output.name == "stdout")
    assert "largest difference" in last and float(last.split()[-1]) < 1e-5


@pytest.mark.parametrize("name", ["quickstart/model", "reranker"])
def test_the_code_of_model_cards_runs(name, workplace, monkeypatch):
    from unime import UniMERerankerForCausalLM

    monkeypatch.chdir(workplace)
    if name == "reranker":
        UniMERerankerForCausalLM.from_backbone("outputs/backbone").save_pretrained("outputs/reranker")
    text = read_card(f"outputs/{name}").render(f"outputs/{name}")
    for number, file in enumerate(("photo.png", "other.png")):
        picture(number).save(file)
    found = [code for language, code in BLOCK.findall(text) if language == "python"]
    assert len(found) == 2
    for code in found:
        exec(compile(code, "card", "exec"), {})


def is_judge(name: str, preset) -> bool:
    """Whether a preset is a reranker's, whose prompts are questions."""
    return preset.judging is not None or name.endswith("reranker")


def test_the_table_of_benchmarks_is_that_of_the_presets():
    page = (ROOT / "docs" / "prompts.md").read_text(encoding="utf-8")
    section = page.partition("\n## Benchmarks\n")[2].partition("\n## ")[0]
    rows = {}
    for line in re.findall(r"^\| (`.+) \|$", section, re.MULTILINE):
        names, *cells = line.split(" | ")
        for name in re.findall(r"`(.+?)`", names):
            rows[name] = cells
    assert set(rows) == {name for name, preset in PRESETS.items() if not is_judge(name, preset)}
    for name, cells in rows.items():
        for benchmark, cell in zip(BENCHMARKS, cells, strict=True):
            other = PRESETS[name].benchmarks.get(benchmark)
            assert cell.startswith(f"those of `{other}`" if other else "own"), f"{name} on {benchmark}"

    # what a judge reads after images, whatever its preset
    (judge,) = re.findall(r"^\| a reranker, .+? \| (.+) \|$", section, re.MULTILINE)
    for preset in (preset for preset in PRESETS.values() if preset.judging is None):
        shown = [preset.judged_images.get(benchmark) for benchmark in BENCHMARKS]
        assert judge.split(" | ") == [f"`{text}`" if text else "nothing" for text in shown]


def test_the_table_of_prompts_is_that_of_the_presets():
    page = (ROOT / "docs" / "prompts.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.+) \|$", page.partition("\n## Benchmarks\n")[0], re.MULTILINE)
    cells = {row.split(" | ")[0].replace("`", ""): row.split(" | ")[1:] for row in rows if row.count(" | ") == 3}
    for name, preset in PRESETS.items():
        if is_judge(name, preset):
            continue
        roles = [name] if preset.query == preset.document else [f"{name}, query", f"{name}, document"]
        for role, prompts in zip(roles, (preset.query, preset.document)):
            for kind, cell, prompt in zip(prompts._fields, cells.pop(role), prompts):
                if prompt is None:
                    assert cell == ("sum of the two" if preset.fusion == "sum" else "none")
                    continue
                shown = prompt.replace("\n", "\\n").replace("|", "\\|").replace("{image}", "⟨i⟩")
                assert cell.startswith("sum") == (preset.fusion == "sum" and kind == "both")
                if cell.startswith("sum of the two"):
                    continue
                said = re.sub(
                    r"^(sum; joint: )?(chat( with system turn)?: )?|, stripped$|`", "", cell.replace("⟨i⟩ `", "⟨i⟩")
                )
                assert said == shown, f"{role}: {cell}"
    assert not cells
