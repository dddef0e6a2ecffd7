"""Damaged checkpoints: each works exactly as before, or is refused at loading with the name of the file."""

import copy
import json
import pickle
import shutil

import pytest
import torch
from conftest import picture
from safetensors.torch import load_file, save_file

from unime import UniMEModel, UniMERerankerForCausalLM
from unime.integrity_unime import MANIFEST, sha256

ITEMS = ["a red circle", {"image": picture(1)}, {"image": picture(2), "text": "at night"}]


@pytest.fixture(scope="module")
def saved(backbone, tmp_path_factory):
    """A saved embedder and a saved reranker, and the results of both."""
    home = tmp_path_factory.mktemp("whole")
    embedder = UniMEModel.from_backbone(backbone)
    reranker = UniMERerankerForCausalLM.from_backbone(backbone)
    embedder.save_pretrained(home / "embedder")
    reranker.save_pretrained(home / "reranker")
    return home, embedder.encode(ITEMS), reranker.score("q", ITEMS, output="logit")


def copied(saved, tmp_path, kind: str = "embedder"):
    shutil.copytree(saved[0] / kind, tmp_path / kind)
    return tmp_path / kind


def change(name: str, **changes):
    """A damage: values of a JSON file changed by the path of their keys; `None` removes one."""

    def damage(folder):
        content = json.loads((folder / name).read_text())
        for path, value in changes.items():
            *levels, last = path.split("__")
            place = content
            for level in levels:
                place = place[level]
            if value is None:
                del place[last]
            else:
                place[last] = value
        (folder / name).write_text(json.dumps(content))

    return damage


def rewrite(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str):
    """A damage: the second half of a file is lost."""
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[: (folder / name).stat().st_size // 2]
    )


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def without_manifest(damage):
    def both(folder):
        damage(folder)
        (folder / MANIFEST).unlink(missing_ok=True)

    return both


def cast(dtype, tensor: str | None = None):
    """A damage: weights of another type."""

    def damage(folder):
        weights = load_file(folder / "model.safetensors")
        for name in weights:
            if tensor is None or name.endswith(tensor):
                weights[name] = (weights[name] * 10).to(dtype)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def without_token(text: str):
    """A damage: the tokenizer has lost a special token."""

    def damage(folder):
        content = json.loads((folder / "tokenizer.json").read_text())
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != text]
        content["model"]["vocab"].pop(text, None)
        (folder / "tokenizer.json").write_text(json.dumps(content))

    return damage


def with_token(folder):
    """A damage: the tokenizer has a token more than the model."""
    content = json.loads((folder / "tokenizer.json").read_text())
    ids = [token["id"] for token in content["added_tokens"]] + list(content["model"]["vocab"].values())
    token = {**content["added_tokens"][0], "content": "<|more|>", "id": max(ids) + 1}
    content["added_tokens"].append(token)
    (folder / "tokenizer.json").write_text(json.dumps(content))


SMALL = ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
JSON = [name for name in SMALL if name.endswith(".json")]
DAMAGES = {
    **{f"{name} is missing": (name, remove(name)) for name in (*SMALL, "model.safetensors")},
    **{f"{name} is missing, no manifest": (name, without_manifest(remove(name))) for name in SMALL},
    **{f"{name} is cut": (name, cut(name)) for name in (*JSON, "model.safetensors", MANIFEST)},
    **{f"{name} is empty": (name, rewrite(name, b"")) for name in (*JSON, "model.safetensors", MANIFEST)},
    **{f"{name} is zeroed": (name, rewrite(name, bytes(99))) for name in (*JSON, "model.safetensors")},
    **{f"{name} is a list": (name, rewrite(name, b"[]")) for name in (*JSON, MANIFEST)},
    **{f"{name} is not UTF-8": (name, rewrite(name, b'{"a": "\xff"}')) for name in JSON},
    "config: no vlm_config": ("config.json", change("config.json", vlm_config=None)),
    "config: no model_type": ("config.json", change("config.json", model_type=None)),
    "config: vlm_config of no type": ("config.json", change("config.json", vlm_config__model_type=None)),
    "config: vlm_config of an unknown type": ("config.json", change("config.json", vlm_config__model_type="nothing")),
    "config: other positions": ("config.json", change("config.json", positions="flat")),
    "config: other positions, no manifest": (
        "config.json",
        without_manifest(change("config.json", positions="flat")),
    ),
    "config: unknown positions": ("positions", change("config.json", positions="round")),
    "config: another width": ("config.json", change("config.json", vlm_config__text_config__hidden_size=64)),
    "config: a layer more": ("config.json", change("config.json", vlm_config__text_config__num_hidden_layers=3)),
    "config: a layer less": ("config.json", change("config.json", vlm_config__text_config__num_hidden_layers=1)),
    "config: another image token": ("config.json", change("config.json", vlm_config__image_token_id=7)),
    "config: another merge": ("config.json", change("config.json", vlm_config__vision_config__spatial_merge_size=1)),
    "processor: no preset": ("processor_config.json", change("processor_config.json", preset=None)),
    "processor: no preset, no manifest": (
        "processor_config.json",
        without_manifest(change("processor_config.json", preset=None)),
    ),
    "processor: unknown preset": ("processor_config.json", change("processor_config.json", preset="nothing")),
    "processor: another preset": ("processor_config.json", change("processor_config.json", preset="joint")),
    "processor: preset of another backbone": (
        "processor_config.json",
        without_manifest(change("processor_config.json", preset="unime-llava-1.6")),
    ),
    "processor: another class": (
        "processor_config.json",
        change("processor_config.json", backbone__processor_class="LlavaNextProcessor"),
    ),
    "processor: unknown class": (
        "processor_config.json",
        without_manifest(change("processor_config.json", backbone__processor_class="NothingProcessor")),
    ),
    "processor: no backbone's class": (
        "processor_config.json",
        without_manifest(change("processor_config.json", backbone__processor_class=None)),
    ),
    "processor: no image processor": ("processor_config.json", change("processor_config.json", image_processor=None)),
    "processor: another patch": (
        "processor_config.json",
        change("processor_config.json", image_processor__patch_size=7),
    ),
    "processor: another merge": (
        "processor_config.json",
        change("processor_config.json", image_processor__merge_size=4),
    ),
    "processor: no deviation": (
        "processor_config.json",
        change("processor_config.json", image_processor__image_std=[0, 0, 0]),
    ),
    "processor: no means": ("processor_config.json", change("processor_config.json", image_processor__image_mean="x")),
    "processor: bad resolution": ("processor_config.json", change("processor_config.json", resolution="huge")),
    "processor: bad fusion": ("processor_config.json", change("processor_config.json", fusion="both")),
    "processor: bad length": ("processor_config.json", change("processor_config.json", max_length=-3)),
    "processor: length in words": ("processor_config.json", change("processor_config.json", max_length="many")),
    "template: bad syntax": ("chat_template.jinja", rewrite("chat_template.jinja", b"{% for x in %}")),
    "template: empty": ("chat_template.jinja", rewrite("chat_template.jinja", b"")),
    "template: no content": ("chat_template.jinja", rewrite("chat_template.jinja", b"{{ 'hello' }}")),
    "tokenizer: no image token": ("tokenizer.json", without_token("<|image_pad|>")),
    "tokenizer: a token less": ("tokenizer.json", without_token("<|vision_start|>")),
    "tokenizer: a token more": ("tokenizer.json", with_token),
    "tokenizer: a token more, no manifest": ("tokenizer.json", without_manifest(with_token)),
    "weights: int8": ("model.safetensors", cast(torch.int8)),
    "weights: int64": ("model.safetensors", cast(torch.int64)),
    "weights: bool": ("model.safetensors", cast(torch.bool)),
    "weights: one of uint8": ("model.safetensors", cast(torch.uint8, "layers.0.mlp.up_proj.weight")),
    "weights: float8": ("model.safetensors", cast(torch.float8_e4m3fn)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_embedder_is_refused_at_loading_by_the_name_of_the_file(name, saved, tmp_path):
    culprit, damage = DAMAGES[name]
    folder = copied(saved, tmp_path)
    damage(folder)
    with pytest.raises((ValueError, OSError)) as caught:
        UniMEModel.from_pretrained(folder)
    assert culprit in str(caught.value), caught.value


DAMAGES_OF_MANIFEST = {
    "files: not names": change(MANIFEST, files=[None]),
    "processor class: lost": change(MANIFEST, processor_class=None),
}


@pytest.mark.parametrize("name", DAMAGES_OF_MANIFEST)
def test_a_damaged_manifest_is_refused_by_its_name(name, saved, tmp_path):
    folder = copied(saved, tmp_path)
    DAMAGES_OF_MANIFEST[name](folder)
    with pytest.raises(ValueError, match=f"{MANIFEST} is damaged"):
        UniMEModel.from_pretrained(folder)


def test_a_configuration_that_no_model_can_be_built_from_is_named(saved, tmp_path):
    folder = copied(saved, tmp_path)
    change("config.json", vlm_config__text_config__rope_parameters__rope_type="odd")(folder)
    with pytest.raises(ValueError, match=r"config\.json .* describes no model that is known: KeyError: 'odd'"):
        UniMEModel.from_pretrained(folder)


def test_sections_of_positions_make_up_a_head(saved, tmp_path):
    folder = copied(saved, tmp_path)
    change("config.json", vlm_config__text_config__rope_parameters__mrope_section=[8, 8])(folder)
    with pytest.raises(
        ValueError, match=r"config\.json is damaged: mrope_section is \[8, 8\], and must be a list whose sum is 24"
    ):
        UniMEModel.from_pretrained(folder)


def test_a_damaged_file_of_a_stock_model_is_named(backbone, tmp_path):
    shutil.copytree(backbone, tmp_path / "stock")
    (tmp_path / "stock" / "tokenizer.json").write_bytes(b"")
    with pytest.raises(ValueError, match=r"tokenizer\.json is damaged"):
        UniMEModel.from_backbone(tmp_path / "stock")
    (tmp_path / "stock" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        UniMEModel.from_backbone(tmp_path / "stock")


RERANKER_DAMAGES = {
    "generation: cut": ("generation_config.json", cut("generation_config.json")),
    "generation: missing": ("generation_config.json", remove("generation_config.json")),
    "template: missing, no manifest": ("chat_template.jinja", without_manifest(remove("chat_template.jinja"))),
    "template: no content": ("chat_template.jinja", rewrite("chat_template.jinja", b"{{ 'hello' }}")),
    "config: an embedder": ("unime", change("config.json", model_type="unime")),
    "weights: int16": ("model.safetensors", cast(torch.int16)),
    "processor: preset of another backbone": (
        "processor_config.json",
        without_manifest(change("processor_config.json", preset="unime-llava-1.6")),
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RERANKER_DAMAGES)
def test_a_damaged_reranker_is_refused_at_loading_by_the_name_of_the_file(name, saved, tmp_path):
    culprit, damage = RERANKER_DAMAGES[name]
    folder = copied(saved, tmp_path, "reranker")
    damage(folder)
    with pytest.raises((ValueError, OSError)) as caught:
        UniMERerankerForCausalLM.from_pretrained(folder)
    assert culprit in str(caught.value), caught.value


def as_shards(folder):
    """The weights in several files with an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {}
    for number, (name, weight) in enumerate(weights.items()):
        files.setdefault(f"model-0000{1 + number % 2}-of-00002.safetensors", {})[name] = weight
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    for file, part in files.items():
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / MANIFEST).unlink()


SHARD = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("culprit", "damage"),
    [
        (SHARD, remove(SHARD)),
        (SHARD, cut(SHARD)),
        (SHARD, rewrite(SHARD, b"")),
        (INDEX, cut(INDEX)),
        (INDEX, rewrite(INDEX, b"[]")),
        (INDEX, change(INDEX, weight_map=None)),
        (INDEX, change(INDEX, weight_map={"vlm.visual.merger.ln_q.weight": 0})),
        ("model.safetensors", remove(INDEX)),
    ],
)
def test_a_damaged_shard_or_index_is_refused_by_its_name(culprit, damage, saved, tmp_path):
    folder = copied(saved, tmp_path)
    as_shards(folder)
    assert torch.equal(UniMEModel.from_pretrained(folder).encode(ITEMS), saved[1])
    damage(folder)
    with pytest.raises((ValueError, OSError)) as caught:
        UniMEModel.from_pretrained(folder)
    assert culprit in str(caught.value), caught.value


@pytest.mark.parametrize(
    "harmless",
    [
        remove(MANIFEST),
        remove("modules.json"),
        remove("config_sentence_transformers.json"),
        rewrite("README.md", b"\xff"),
        change("tokenizer_config.json", pad_token=None),
    ],
)
def test_what_does_no_harm_gives_the_same_embeddings(harmless, saved, tmp_path):
    folder = copied(saved, tmp_path)
    harmless(folder)
    assert torch.equal(UniMEModel.from_pretrained(folder).encode(ITEMS), saved[1])


def test_what_the_caller_names_takes_the_place_of_what_was_lost(saved, tmp_path):
    folder = copied(saved, tmp_path)
    change("processor_config.json", preset=None)(folder)
    assert torch.equal(UniMEModel.from_pretrained(folder, preset="summary").encode(ITEMS), saved[1])


def test_hashes_are_compared_on_request(saved, tmp_path):
    folder = copied(saved, tmp_path)
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["weights"] == {"model.safetensors": sha256(folder / "model.safetensors")}
    assert torch.equal(UniMEModel.from_pretrained(folder, verify=True).encode(ITEMS), saved[1])

    # one bit of a weight
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-2] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    UniMEModel.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"model\.safetensors is not the file that was saved"):
        UniMEModel.from_pretrained(folder, verify=True)

    # a tensor that has lost its name: the hash says in which file, before a missing weight says that there is one
    content[165] ^= 4
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is not the file that was saved"):
        UniMEModel.from_pretrained(folder, verify=True)
    content[165] ^= 4
    (folder / "model.safetensors").write_bytes(content)
    (folder / MANIFEST).unlink()
    with pytest.warns(UserWarning, match="cannot be verified"):
        UniMEModel.from_pretrained(folder, verify=True)


EDITS = {  # a key, and two values for it that make sense
    "config.json": ("backbone", "here", "elsewhere"),
    "processor_config.json": ("num_frames", 4, 5),
    "tokenizer_config.json": ("model_max_length", 400, 500),
}


@pytest.mark.parametrize("name", EDITS)
def test_edited_settings_are_noticed_on_request(name, saved, tmp_path):
    folder = copied(saved, tmp_path)
    key, value, other = EDITS[name]
    change(name, **{key: value})(folder)
    UniMEModel.from_pretrained(folder)
    with pytest.raises(ValueError, match=rf"{name} is not the file that was saved.*without `verify` and save .* anew"):
        UniMEModel.from_pretrained(folder, verify=True)

    # as it says
    UniMEModel.from_pretrained(folder).save_pretrained(folder)
    UniMEModel.from_pretrained(folder, verify=True)

    # manifests of older versions have no such hashes
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest.pop("settings").keys() == set(manifest["files"])
    (folder / MANIFEST).write_text(json.dumps(manifest))
    change(name, **{key: other})(folder)
    UniMEModel.from_pretrained(folder, verify=True)


def test_a_resized_vocabulary_is_saved_with_a_manifest_that_fits(saved, tmp_path):
    for kind, model_class in (("embedder", UniMEModel), ("reranker", UniMERerankerForCausalLM)):
        model = model_class.from_pretrained(saved[0] / kind)
        rows = model.get_input_embeddings().num_embeddings
        model.resize_token_embeddings(rows + 7)
        model.processor.tokenizer.add_tokens(["<|more|>"])
        model.save_pretrained(tmp_path / kind)
        again = model_class.from_pretrained(tmp_path / kind, verify=True)
        assert again.get_input_embeddings().num_embeddings == rows + 7
        manifest = json.loads((tmp_path / kind / MANIFEST).read_text())
        assert manifest["tokens"] == len(again.processor.tokenizer) == len(model.processor.tokenizer)
    assert torch.allclose(again.score("q", ITEMS, output="logit"), saved[2], atol=1e-6)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight


def test_a_model_saved_without_a_processor_loads_without_one(embedder, tmp_path):
    embedder._processor = None
    embedder.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no processor"):
        _ = UniMEModel.from_pretrained(tmp_path).processor


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_next", "llava_onevision", "phi3_v"])
def test_a_loaded_model_pickles(kind, tiny):
    embedder = UniMEModel.from_backbone(tiny(kind)[0])
    again = pickle.loads(pickle.dumps(embedder))
    copied_model = copy.deepcopy(embedder)
    expected = embedder.encode(ITEMS)
    assert torch.equal(again.encode(ITEMS), expected)

    # neither holds on to the weights of the model that it came from
    with torch.no_grad():
        for parameter in embedder.parameters():
            parameter.zero_()
    assert torch.equal(again.encode(ITEMS), expected) and torch.equal(copied_model.encode(ITEMS), expected)


def test_a_loaded_reranker_pickles(saved):
    again = pickle.loads(pickle.dumps(UniMERerankerForCausalLM.from_pretrained(saved[0] / "reranker")))
    assert torch.equal(again.score("q", ITEMS, output="logit"), saved[2])
