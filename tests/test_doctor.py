"""`unime doctor` and `unime presets`: what stock classes would change, and prompts as they are fed."""

import json
import shutil

import pytest
from conftest import ROOT, picture
from test_adapters import stock_adapter

from unime import UniMEProcessor
from unime.checkpoints.drifts import Patient, drifts_of
from unime.cli import main
from unime.prompts_unime import CHECKPOINTS, PRESETS

GOLDENS = ROOT.parent / "shared" / "checkpoints"


def names(folder, preset=None) -> dict[str, bool]:
    return {drift.name: drift.hits for drift in drifts_of(Patient(folder, preset))}


def test_a_plain_checkpoint_has_nothing_that_the_installed_version_changes(tiny):
    assert names(tiny("qwen2_vl")[0]) == {"rope_deltas reused": False}
    assert names(tiny("llava_next")[0]) == {}


def test_what_a_preset_needs_of_its_classes(tiny):
    found = names(tiny("qwen2_vl")[0], "vlm2vec-qwen2-vl")
    assert found["flat positions lost"] and not found["rope_deltas reused"]
    assert names(tiny("llava_next")[0], "unime-llava-1.6") == {"odd padding of tiles": True}


def test_adapters_are_asked_for_their_keys(tiny, tmp_path):
    for old in (False, True):
        folder = tmp_path / f"adapter{old}"
        stock_adapter(tiny("qwen2_vl")[0], folder, "qwen2_vl", dora=old, old=old)
        found = names(folder)
        assert ("adapter keys that load nothing" in found) == ("magnitudes of DoRA lost" in found) == old


def test_heads_and_code_of_files(tiny, tmp_path):
    folder = tmp_path / "headless"
    shutil.copytree(tiny("qwen2_vl")[0], folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"tie_word_embeddings": False, "auto_map": {"AutoModel": "modeling_x.XModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "a.safetensors", "score.0.weight": "a.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert {"head missing from the files", "head left out", "code of the repository"} <= names(folder).keys()
    (folder / "config.json").unlink()
    with pytest.raises(SystemExit, match="is not a checkpoint"):
        main(["doctor", str(folder)])


def test_the_command_says_each_with_what_is_done_here(tiny, capsys):
    main(["doctor", str(tiny("qwen2_vl")[0]), "--preset", "unime-v2-qwen2-vl"])
    text = capsys.readouterr().out
    assert "flat positions lost\n    stock: " in text and "\n    UniME passes 1-D positions." in text
    main(["doctor", str(tiny("qwen2_vl")[0]), "--json"])
    (drift,) = json.loads(capsys.readouterr().out)["drifts"]
    assert drift["name"] == "rope_deltas reused" and not drift["hits"]


@pytest.mark.skipif(not GOLDENS.exists(), reason="the tiny published checkpoints are not here")
def test_published_checkpoints_are_diagnosed():
    expected = {
        "VLM2Vec-Qwen2VL-2B": {
            "adapter keys that load nothing",
            "magnitudes of DoRA lost",
            "adapter in a pickle",
            "flat positions lost",
        },
        "WeMM-Embedding-2B": {"normalizer dropped"},
        "gme-Qwen2-VL-2B-Instruct": {"flat positions lost"},
        "jina-reranker-m0": {"head left out"},
    }
    for name, drifts in expected.items():
        assert drifts <= names(GOLDENS / name).keys(), name


# presets
def test_every_preset_is_listed_with_its_checkpoints(capsys):
    main(["presets", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert {row["preset"] for row in rows} == PRESETS.keys()
    assert sorted(name for row in rows for name in row["checkpoints"]) == sorted(CHECKPOINTS)
    main(["presets"])
    text = capsys.readouterr().out
    assert "unime-v2-qwen2-vl  (qwen2_vl, qwen2_5_vl)\n    TianchengGu/UniME-V2-Qwen2VL-2B" in text


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_is_shown(name, capsys):
    main(["presets", "show", name, "--json"])
    prompts = json.loads(capsys.readouterr().out)["prompts"]
    for title, prompt in prompts.items():
        kind = title.split(", ")[1]
        assert prompt is None or ("{text}" in prompt) == (kind != "image"), title


def test_a_reranker_s_preset_is_shown_by_its_questions(tiny, capsys):
    main(["presets", "show", "monoqwen2-vl"])
    text = capsys.readouterr().out
    question = (
        "{image}Assert the relevance of the previous image document to the following query, answer True or False"
    )
    assert f"{question}. The query is: {{query}}<|im_end|>" in text
    assert "candidate, text\n(refused: its authors ask about no such candidate)" in text
    main(["presets", "show", "lighton-rerank-lw"])
    assert "[1]: {text}⏎\n[2]: {text}⏎\n⏎\nRanking:" in capsys.readouterr().out

    folder = tiny("qwen2_vl")[0]
    processor = UniMEProcessor.from_backbone(folder, "lamra-rank")
    main(["presets", "show", "lamra-rank", "--model", str(folder), "--json"])
    questions = json.loads(capsys.readouterr().out)["questions"]
    expected, _ = processor.render(processor.question("{query}", "{text}"))
    assert questions["candidate, text"] == expected


def test_prompts_are_shown_as_a_checkpoint_is_fed(tiny, tmp_path, capsys):
    folder = tiny("qwen2_vl")[0]
    processor = UniMEProcessor.from_backbone(folder, "hierarchical")
    main(["presets", "show", "hierarchical", "--model", str(folder), "--json"])
    prompts = json.loads(capsys.readouterr().out)["prompts"]
    assert prompts["query, both"] == processor.render({"text": "{text}", "image": picture(0, (56, 56))})[0]
    assert prompts["document, text"] == processor.render("{text}", role="document")[0]

    (tmp_path / "mine.yaml").write_text("extends: joint\nfusion: sum\n")
    main(["presets", "show", str(tmp_path / "mine.yaml")])
    text = capsys.readouterr().out
    assert 'fusion: "sum"' in text and "query and document, image\n{image}⏎\nRepresent the given image.⏎\n" in text
    with pytest.raises(SystemExit, match="unknown preset 'nothing'"):
        main(["presets", "show", "nothing"])
