"""Adapters of old and new layouts, merging, quantisation, and the commands that convert and export."""

import json
import shutil

import pytest
import torch
from conftest import ROOT, picture
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_checkpoints import write
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from unime import UniMEModel, UniMERerankerForCausalLM
from unime.adapters_unime import adapter_weights, load_adapter
from unime.checkpoints.conversion import export
from unime.checkpoints.opening import open_checkpoint
from unime.commands.convert import main
from unime.jobs.embedding import checkpoint_fingerprint

KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "llava_next", "llava_onevision", "phi3_v")
RENAMED = {
    "qwen2_vl": ("model.model.language_model.", "model.model."),
    "llava_next": ("model.model.language_model.", "model.language_model.model."),
    "llava_onevision": ("model.model.language_model.", "model.language_model.model."),
    "phi3_v": ("model.model.", "model.model."),
}
GOLDENS = ROOT.parent / "shared" / "checkpoints"
ITEMS = ["a red circle", picture(40, (64, 48))]


def stock_adapter(path, out, kind, dora, old):
    """An adapter on the stock model with random weights, its embeddings, and its files as some version wrote them."""
    base = UniMERerankerForCausalLM.from_backbone(path).vlm
    targets = ["qkv_proj", "o_proj"] if kind == "phi3_v" else ["q_proj", "v_proj", "down_proj"]
    torch.manual_seed(1)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=targets, use_dora=dora, lora_alpha=8))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(out)
    weights, (new_name, old_name) = load_file(out / "adapter_model.safetensors"), RENAMED[kind]
    if old:
        renamed = {
            key.replace(new_name, old_name).replace(
                "model.model.vision_tower.", "model.vision_tower.vision_model."
            ): value
            for key, value in weights.items()
        }
        save_file(renamed, out / "adapter_model.safetensors", {"format": "pt"})
    config = json.loads((out / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(path)
    (out / "adapter_config.json").write_text(json.dumps(config))
    merged = adapted.eval().merge_and_unload()
    return {
        key.removeprefix("model."): value for key, value in merged.state_dict().items() if key.startswith("model.")
    }


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("kind", sorted(RENAMED))
def test_adapters_of_stock_models_land_exactly(tiny, tmp_path, kind, dora, old):
    path, _ = tiny(kind)
    expected = stock_adapter(path, tmp_path / "adapter", kind, dora, old)
    merged = open_checkpoint(tmp_path / "adapter", "summary").vlm.state_dict()
    assert max((merged[key] - expected[key]).abs().max() for key in expected) <= 1e-6
    plain = UniMEModel.from_backbone(path).vlm.state_dict()
    assert any((merged[key] - plain[key]).abs().max() > 1e-2 for key in expected), "the adapter does something"


def test_merge_command_and_adapters_of_the_wrappers(tiny, tmp_path, capsys):
    path, _ = tiny("qwen2_vl")
    main(["convert", str(path), str(tmp_path / "base"), "--preset", "joint"])
    model = UniMEModel.from_pretrained(tmp_path / "base")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.eval().save_pretrained(tmp_path / "adapter")
    expected = adapted.get_base_model().encode(ITEMS)
    main(["merge", str(tmp_path / "adapter"), str(tmp_path / "merged"), "--base", str(tmp_path / "base")])
    merged = UniMEModel.from_pretrained(tmp_path / "merged")
    assert merged.processor.preset == "joint" and (merged.encode(ITEMS) - expected).abs().max() <= 1e-5
    assert "written to" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="is not an adapter"):
        main(["merge", str(path), str(tmp_path / "x")])


def test_adapters_are_read_as_they_were_trained(tiny, tmp_path):
    """What their base does not know: the preset of a published name, or what was saved beside them."""
    path, _ = tiny("qwen2_vl")
    published = tmp_path / "VLM2Vec-Qwen2VL-7B"
    expected = stock_adapter(path, published / "lora", "qwen2_vl", dora=True, old=True)
    model = open_checkpoint(published)
    assert (model.processor.preset, model.config.positions) == ("vlm2vec-qwen2-vl", "flat")
    assert max((model.vlm.state_dict()[key] - expected[key]).abs().max() for key in expected) <= 1e-6
    assert open_checkpoint(published, "joint").config.positions == "native"

    # a fingerprint sees the adapter below the repository, and its base
    before = checkpoint_fingerprint(published)
    settings = published / "lora" / "adapter_config.json"
    settings.write_text(settings.read_text().replace('"lora_alpha": 8', '"lora_alpha": 9'))
    assert checkpoint_fingerprint(published) != before

    stock_adapter(path, tmp_path / "mine", "qwen2_vl", dora=False, old=False)
    saved = UniMEModel.from_backbone(path, "unime-v2-qwen2-vl", resolution=112).processor
    saved.save_pretrained(tmp_path / "mine")
    model = open_checkpoint(tmp_path / "mine")
    assert (model.processor.preset, model.processor.resolution, model.config.positions) == (
        "unime-v2-qwen2-vl",
        112,
        "flat",
    )
    assert open_checkpoint(tmp_path / "mine", resolution=56).processor.resolution == 56


@pytest.mark.skipif(not GOLDENS.exists(), reason="the tiny published checkpoints are not here")
def test_vlm2vec_gives_its_authors_embeddings():
    model = open_checkpoint(GOLDENS / "VLM2Vec-Qwen2VL-2B", base=GOLDENS / "Qwen2-VL-2B-Instruct", dtype="float32")
    street = Image.open(GOLDENS.parent / "data" / "street.jpg").convert("RGB")
    images = {"small": street.resize((200, 150)), "wide": street.resize((330, 120))}
    for golden in json.loads((GOLDENS / "VLM2Vec-Qwen2VL-2B" / "golden.json").read_text())["items"]:
        item = {"text": golden.get("text"), "image": images.get(golden.get("image_name"))}
        if golden["key"].endswith("_mmeb"):
            item["text"] = "<|image_1|>\nRepresent the given image.\n"
        ours = model.encode(item, instruction=golden.get("instruction"))
        assert (ours - torch.tensor(golden["embedding"])).abs().max() <= 1e-6, golden["key"]


def test_the_classes_read_adapters_beside_their_base_from_pickles(tiny, tmp_path):
    """A `.bin` of old keys with DoRA's magnitudes, over the folder that has the base's name."""
    path, _ = tiny("qwen2_vl")
    expected = stock_adapter(path, tmp_path / "adapter", "qwen2_vl", dora=True, old=True)
    weights = load_file(tmp_path / "adapter/adapter_model.safetensors")
    torch.save(weights, tmp_path / "adapter/adapter_model.bin")
    (tmp_path / "adapter/adapter_model.safetensors").unlink()
    config = tmp_path / "adapter/adapter_config.json"
    config.write_text(config.read_text().replace(str(path), "Owner/base-of-it"))
    (tmp_path / "base-of-it").symlink_to(path)
    for model_class in (UniMEModel, UniMERerankerForCausalLM):
        model = model_class.from_backbone(tmp_path / "adapter", "summary")
        merged = model.vlm.base_model.state_dict()
        assert max((merged[key] - expected[key]).abs().max() for key in expected) <= 1e-6
        assert model.source == tmp_path / "adapter" and all(p.requires_grad for p in model.parameters())

    # told which base, and refused one that has no adapter
    model = UniMEModel.from_backbone(tmp_path / "adapter", "summary", base=path, weights=False)
    assert next(model.parameters()).is_meta
    with pytest.raises(ValueError, match="is not an adapter: it has no adapter_config.json, and so no base"):
        UniMEModel.from_backbone(path, base=path)

    # what is left out would be the base's own magnitude
    torch.save({k: v for k, v in weights.items() if "magnitude" not in k}, tmp_path / "adapter/adapter_model.bin")
    with pytest.raises(ValueError, match="did not land: missing .*lora_magnitude_vector"):
        UniMEModel.from_backbone(tmp_path / "adapter", "summary")


class Opened(dict):
    """What a pickle must not build."""


@pytest.mark.parametrize(
    ("content", "reason"),
    [(Opened(), "damaged, or holds more than tensors"), ([1], "holds a list"), ({"key": 1}, "not every entry")],
    ids=["code", "list", "number"],
)
def test_pickles_of_anything_but_tensors_are_refused(tmp_path, content, reason):
    torch.save(content, tmp_path / "adapter_model.bin")
    with pytest.raises(ValueError, match=f"cannot be read: adapter_model.bin: .*({reason})"):
        adapter_weights(tmp_path)


def test_ranks_of_single_modules_follow_their_names(tiny, tmp_path):
    path, _ = tiny("qwen2_vl")
    stock_adapter(path, tmp_path / "adapter", "qwen2_vl", dora=False, old=True)
    file = tmp_path / "adapter/adapter_config.json"
    config = {**json.loads(file.read_text()), "alpha_pattern": {"model.layers.0.self_attn.q_proj": 64}}
    file.write_text(json.dumps(config))
    adapted = load_adapter(UniMEModel.from_backbone(path), tmp_path / "adapter")
    layers = adapted.get_base_model().vlm.language_model.layers
    assert [layer.self_attn.q_proj.scaling["default"] for layer in layers] == [32.0, 4.0]


def test_merged_models_keep_the_head_for_export(tiny, tmp_path):
    path, _ = tiny("qwen2_vl")
    stock_adapter(path, tmp_path / "adapter", "qwen2_vl", dora=False, old=True)
    main(["merge", str(tmp_path / "adapter"), str(tmp_path / "merged"), "--preset", "summary"])
    export(tmp_path / "merged", tmp_path / "stock")
    heads = [load_file(folder / "model.safetensors")["lm_head.weight"] for folder in (path, tmp_path / "stock")]
    assert torch.equal(*heads)


def test_what_sentence_transformers_cannot_be_told_is_said(tiny, tmp_path):
    for kind, preset, reason in (
        ("qwen2_vl", "unime-v2-qwen2-vl", "flat positions, the resolution 1344"),
        ("qwen2_vl", "hierarchical", "prompts that differ by role"),
        (
            "llava_onevision",
            "unime-llava-onevision",
            "sum of two embeddings, the resolution 336, legacy tile padding",
        ),
        ("phi3_v", "summary", "a backbone it does not know"),
    ):
        main(["convert", str(tiny(kind)[0]), str(tmp_path / preset), "--preset", preset])
        with pytest.warns(UserWarning, match=f"cannot be told all of .*{reason}.*: its files are left out"):
            export(tmp_path / preset, tmp_path / "stock")
        assert not (tmp_path / "stock/modules.json").exists()


def test_training_goes_on_from_an_adapter_that_is_merged_first(tiny, tmp_path):
    from unime.trainers.stage import load_model

    path, _ = tiny("qwen2_vl")
    expected = stock_adapter(path, tmp_path / "adapter", "qwen2_vl", dora=False, old=True)
    model = load_model(tmp_path / "adapter", "joint")
    assert not any("lora" in name for name, _ in model.named_parameters()) and model.processor.preset == "joint"
    key = "language_model.layers.0.self_attn.q_proj.weight"
    assert (model.vlm.state_dict()[key] - expected[key]).abs().max() <= 1e-6


def test_adapters_of_another_base_are_refused(tiny, tmp_path):
    qwen, phi = tiny("qwen2_vl")[0], tiny("phi3_v")[0]
    stock_adapter(qwen, tmp_path / "adapter", "qwen2_vl", dora=False, old=False)
    with pytest.raises(ValueError, match="was trained on another base: base_model.model.*_proj.* has no place"):
        load_adapter(UniMEModel.from_backbone(phi), tmp_path / "adapter")
    weights = load_file(tmp_path / "adapter/adapter_model.safetensors")
    key = next(key for key in weights if "lora_A" in key)
    save_file({**weights, key: torch.zeros(2, 7)}, tmp_path / "adapter/adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="(?s)was trained on another base: .*size mismatch"):
        load_adapter(UniMEModel.from_backbone(qwen), tmp_path / "adapter")
    save_file(
        {k: v for k, v in weights.items() if k != key},
        tmp_path / "adapter/adapter_model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ValueError, match="did not land: missing"):
        load_adapter(UniMEModel.from_backbone(qwen), tmp_path / "adapter")


def test_damaged_adapters_are_refused(tiny, tmp_path):
    path = tiny("qwen2_vl")[0]
    stock_adapter(path, tmp_path / "adapter", "qwen2_vl", dora=False, old=False)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({name: weight.to(torch.int8) for name, weight in weights.items()}, file, {"format": "pt"})
    with pytest.raises(ValueError, match="is of type torch.int8, which is not a type of weights"):
        load_adapter(UniMEModel.from_backbone(path), tmp_path / "adapter")
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="adapter cannot be read: adapter_model.safetensors"):
        load_adapter(UniMEModel.from_backbone(path), tmp_path / "adapter")


@pytest.mark.parametrize("kind", ["qwen2_vl", "llava_next", "phi3_v"])
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.filterwarnings("ignore")
def test_quantised_weights_leave_the_vision_tower_alone(tiny, tmp_path, kind, quantization):
    path = tmp_path / "wide"  # bitsandbytes' CPU kernel wants widths that 32 divides
    write(path, kind, width=64)
    UniMEModel.from_backbone(path).save_pretrained(tmp_path)
    for model in (
        UniMEModel.from_backbone(path, quantization=quantization),
        UniMEModel.from_pretrained(tmp_path, quantization=quantization),
    ):
        linear = {n: type(m).__name__ for n, m in model.vlm.named_modules() if type(m).__name__.startswith("Linear")}
        vision = {name for name in linear if "vis" in name or "projector" in name}
        assert vision and all(linear[name] == "Linear" for name in vision)
        assert all(linear[name] != "Linear" for name in linear if name not in vision)
        model.save_pretrained(tmp_path / "saved")
        again = UniMEModel.from_pretrained(tmp_path / "saved")
        assert torch.isfinite(model.encode(ITEMS)).all() and model.is_quantized
        assert torch.equal(again.encode(ITEMS), model.encode(ITEMS))
        if any(getattr(getattr(p, "quant_state", None), "packing_format_for_cpu", False) for p in model.parameters()):
            with pytest.raises(ValueError, match="repacked by bitsandbytes"):
                model.save_pretrained(tmp_path / "spoilt")


def test_quantisation_settings_of_the_user_go_first(tiny):
    path, _ = tiny("qwen2_vl")
    mine = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["language_model"])
    model = UniMEModel.from_backbone(path, quantization_config=mine)
    assert type(model.vlm.language_model.layers[0].mlp.up_proj).__name__ == "Linear"
    assert type(model.vlm.visual.blocks[0].attn.qkv).__name__ != "Linear"
    with pytest.raises(ValueError, match="not both"):
        UniMEModel.from_backbone(path, quantization="nf4", quantization_config=mine)
    with pytest.raises(ValueError, match="must be 'nf4' or 'int8'"):
        UniMEModel.from_backbone(path, quantization="int3")


def test_attention_implementations_agree(tiny):
    for kind in KINDS:
        path, _ = tiny(kind)
        eager, sdpa = (UniMEModel.from_backbone(path, attn_implementation=name) for name in ("eager", "sdpa"))
        assert eager.vlm.config._attn_implementation == "eager"
        assert (eager.encode(ITEMS) - sdpa.encode(ITEMS)).abs().max() <= 1e-5


@pytest.mark.parametrize("reranker", [False, True], ids=["embedder", "reranker"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:sentence-transformers")
def test_convert_and_export_are_exact(tiny, tmp_path, kind, reranker):
    path, _ = tiny(kind)
    main(["convert", str(path), str(tmp_path / "unime"), *["--reranker"] * reranker])
    main(["export", str(tmp_path / "unime"), str(tmp_path / "stock")])
    before, after = (load_file(folder / "model.safetensors") for folder in (path, tmp_path / "stock"))
    assert set(before) == set(after) and all(torch.equal(before[key], after[key]) for key in before)
    architectures = json.loads((tmp_path / "stock/config.json").read_text())["architectures"]
    assert architectures == json.loads((path / "config.json").read_text())["architectures"]
    cls = UniMERerankerForCausalLM if reranker else UniMEModel
    models = [cls.from_backbone(path), cls.from_pretrained(tmp_path / "unime"), cls.from_backbone(tmp_path / "stock")]
    results = [m.score(ITEMS[1], ["a", "b"]) if reranker else m.encode(ITEMS) for m in models]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_stock_library_reads_the_export(tiny, tmp_path):
    path, stock = tiny("llava_next")
    main(["convert", str(path), str(tmp_path / "unime")])
    main(["export", str(tmp_path / "unime"), str(tmp_path / "stock")])
    again, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "stock", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in stock.state_dict().items())


def test_only_unime_repositories_are_exported(tiny, tmp_path):
    with pytest.raises(SystemExit, match="is not a UniME repository but a qwen2_vl; there is nothing to export"):
        main(["export", str(tiny("qwen2_vl")[0]), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="is not a checkpoint: it has neither config.json nor adapter_config.json"):
        main(["export", str(tmp_path), str(tmp_path / "out")])


def test_export_without_a_head_says_where_to_find_one(tiny, tmp_path):
    path, _ = tiny("qwen2_vl")
    UniMEModel.from_backbone(path).save_pretrained(tmp_path / "unime")
    with pytest.raises(ValueError, match="keeps no output head; name the stock checkpoint .*qwen2_vl"):
        export(tmp_path / "unime", tmp_path / "stock")
    export(tmp_path / "unime", tmp_path / "stock", head=path)
    assert torch.equal(
        load_file(tmp_path / "stock/model.safetensors")["lm_head.weight"],
        load_file(path / "model.safetensors")["lm_head.weight"],
    )


def test_shards_are_read_and_a_missing_one_is_named(tiny, tmp_path):
    path, _ = tiny("qwen2_vl")
    shutil.copytree(path, tmp_path / "sharded")
    weights, folder = load_file(path / "model.safetensors"), tmp_path / "sharded"
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    where = {key: names[i % 2] for i, key in enumerate(sorted(weights))}
    for name in names:
        save_file({key: weights[key] for key in weights if where[key] == name}, folder / name, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    assert torch.equal(UniMEModel.from_backbone(folder).encode(ITEMS), UniMEModel.from_backbone(path).encode(ITEMS))
    (folder / names[1]).write_bytes((folder / names[1]).read_bytes()[:500])
    with pytest.raises(ValueError, match="00002-of-00002.safetensors is damaged"):
        UniMEModel.from_backbone(folder)
    (folder / names[1]).unlink()
    with pytest.raises((OSError, ValueError), match="00002-of-00002"):
        UniMEModel.from_backbone(folder)
