"""Every recipe is rehearsed in the size of its model, and the recipes that train take two steps with a tiny one."""

import inspect
import json
import re

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from conftest import ROOT, picture
from recipe_world import rehearsed, write_tiny_world, write_world
from rewrite_rehearsals import RECIPES, REHEARSALS, rehearsal_of
from safetensors.torch import load_file
from trl import ModelConfig

from unime import UniMEModel, UniMERerankerForCausalLM, cli
from unime.data.readers import read_judged
from unime.jobs import estimates
from unime.mining.judging import ServerJudge
from unime.mining.pipeline import MiningConfig
from unime.prompts_unime import PRESETS
from unime.trainers.adapters import adapted
from unime.trainers.row_counts import RowCounts
from unime.trainers.stage import StageArguments, _adapter_config

TRAINING = [recipe for recipe in RECIPES if recipe.parent.name not in ("mining", "eval")]
MINING = [recipe for recipe in RECIPES if recipe.parent.name == "mining"]


def name_of(recipe) -> str:
    return f"{recipe.parent.name}/{recipe.stem}"


@pytest.fixture(scope="module")
def recipe_world(tmp_path_factory, world):
    return write_world(tmp_path_factory.mktemp("recipes"), world)


@pytest.fixture(scope="module")
def tiny_world(tmp_path_factory, world, tiny):
    return write_tiny_world(tmp_path_factory.mktemp("tiny-recipes"), world, tiny)


def test_there_are_as_many_recipes_as_the_pages_say():
    assert (len(TRAINING), len(MINING), len(RECIPES)) == (21, 5, 34)
    assert set(REHEARSALS.glob("*/*.txt")) == {rehearsal_of(recipe) for recipe in RECIPES}


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_rehearsals_are_those_that_were_reviewed(recipe, recipe_world):
    text, status = rehearsed(recipe, recipe_world)
    assert status == 0, text
    assert text == rehearsal_of(recipe).read_text(), "a run changed; see it with python tests/rewrite_rehearsals.py"


@pytest.mark.parametrize("recipe", TRAINING, ids=name_of)
def test_recipes_take_two_steps(recipe, tiny_world, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_world)
    settings = yaml.safe_load(recipe.read_text())
    stage = recipe.stem.split("-")[0]
    command = ["train", stage, "--config", str(recipe), "--output_dir", str(tmp_path), "--max_steps", "2"]
    command += ["--bf16", "false", "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1"]
    command += ["--logging_steps", "1", "--save_strategy", "no", "--disable_tqdm", "true", "--report_to", "none"]
    command += ["--load_in_4bit", "false", "--warmup_steps", "0", "--learning_rate", "1e-2"]
    if "resolution" in settings:
        command += ["--resolution", "56"]
    if stage == "distillation":
        command += ["--teacher", "outputs/teacher", "--teacher_dtype", "float32"]
    cli.main(command)

    # every adapted layer of the language model has moved from its start, at which B is zero
    adapter = tmp_path / "adapter" / "adapter_model.safetensors"
    assert adapter.exists() == settings.get("use_peft", False)
    if adapter.exists():
        weights = load_file(adapter)
        moved = {key for key, weight in weights.items() if "lora_B" in key and weight.any()}
        still = {key for key in weights if "lora_B" in key} - moved
        assert moved and not [key for key in still if "vision" not in key]
        assert ("vision_tower" in settings["lora_components"]) == any("vision" in key for key in moved)
        assert settings.get("use_dora", False) == any("lora_magnitude_vector" in key for key in weights)
    else:
        start = load_file(tiny_world / settings["model_name_or_path"] / "model.safetensors")
        trained = load_file(tmp_path / "model.safetensors")
        sums = {round(float(weight.double().sum()), 4) for weight in start.values()}
        assert any(round(float(weight.double().sum()), 4) not in sums for weight in trained.values())


def adapted_parts(recipe_name: str) -> dict[str, set[str]]:
    """The layers that get an adapter by part, as the rehearsal of a recipe has them."""
    text = (REHEARSALS / f"{recipe_name}.txt").read_text().split("\nAdapter\n")[1].split("\n\n")[0]
    parts = {}
    for line in text.splitlines()[1:]:
        part, layer = re.split(r"\s{2,}", line.strip())[:2]
        parts.setdefault(part, set()).add(layer)
    return parts


def test_each_recipe_adapts_the_layers_that_the_released_code_does():
    # released suffixes: qkv_proj, o_proj, gate_up_proj, down_proj, k_proj, q_proj, out_proj, v_proj (spec 4.6)
    qwen = {"q_proj", "k_proj", "v_proj", "o_proj", "down_proj"}
    clip = {"q_proj", "k_proj", "v_proj", "out_proj"}
    phi = {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    for name in ("unime-v2/alignment", "unime-v2/alignment-7b", "saha/contrastive", "vlm2vec/contrastive"):
        assert adapted_parts(name) == {"language model": qwen}
    for name in ("unime-v2/alignment-llava-onevision", "unime/contrastive-llava"):
        assert adapted_parts(name) == {"language model": qwen, "vision tower": clip}
    assert adapted_parts("unime/contrastive") == {"language model": phi, "vision tower": clip}

    # stage 1 trains the language model alone, as E5-V does, and so does the reranker
    everything = qwen | {"gate_proj", "up_proj"}
    assert adapted_parts("unime/distillation") == {"language model": phi}
    assert adapted_parts("unime/distillation-llava") == {"language model": everything}
    assert adapted_parts("unime-v2/reranker") == {"language model": everything}


@pytest.mark.parametrize("recipe", TRAINING, ids=name_of)
def test_dora_and_the_gaussian_start_go_together_as_released(recipe):
    settings = yaml.safe_load(recipe.read_text())
    if settings.get("use_peft"):
        assert settings["lora_components"], "a recipe says what it adapts"
        is_released = "distillation" not in recipe.stem and "reranker" not in recipe.stem
        assert settings.get("use_dora", False) == is_released
        assert (settings.get("init_lora_weights") == "gaussian") == is_released
    text = recipe.read_text()
    stage = recipe.stem.split("-")[0]
    assert f"-m unime.trainers.{stage} --config recipes/{recipe.parent.name}/{recipe.name}\n" in text


def test_a_gaussian_start_is_drawn_with_the_rank(backbone):
    # PEFT draws A with a standard deviation of 1 / r, the Kaiming start with 1 / sqrt(3 width)
    model = UniMEModel.from_backbone(backbone)
    stage = StageArguments(data="", init_lora_weights="gaussian")
    options = ModelConfig(use_peft=True, lora_r=16, lora_target_modules=["q_proj"])
    start = adapted(model, _adapter_config(model, stage, options), seed=0)
    drawn = torch.cat([weight.flatten() for name, weight in start.named_parameters() if "lora_A" in name])
    assert drawn.std().item() == pytest.approx(1 / 16, rel=0.05)
    with pytest.raises(ValueError, match="init_lora_weights"):
        _adapter_config(model, StageArguments(data="", init_lora_weights="normal"), options)


def test_training_images_and_batches_are_those_of_the_authors():
    for recipe in TRAINING:
        settings = yaml.safe_load(recipe.read_text())
        if recipe.parent.name == "unime-v2" and "alignment" in recipe.stem:
            assert settings["resolution"] == ("336" if "onevision" in recipe.stem else "672")
            assert settings["homogeneous_batches"] is False
        if recipe.parent.name == "unime" and "contrastive" in recipe.stem:
            assert settings["resolution"] == "336" and settings["homogeneous_batches"] is False
            assert settings["benchmark"] == "mmeb", "raw strings, texts alone too"
            assert PRESETS[settings["preset"]].benchmarks == {"mmeb": "joint"}
        if recipe.parent.name in ("saha", "vlm2vec"):
            assert not settings["num_hard_negatives"] and settings["false_negative_margin"] is None, "plain InfoNCE"


def test_images_take_the_tokens_of_the_papers():
    for name, count in (("unime-v2/alignment", 576), ("unime-v2/alignment-7b", 576), ("saha/contrastive", 256)):
        counts = re.findall(r"read at .*: (\d+) tokens", (REHEARSALS / f"{name}.txt").read_text())
        assert set(counts) == {str(count)}
    for name in ("unime-v2/alignment-llava-onevision", "unime-v2/alignment-llava-onevision-released"):
        assert "read at 336 x 336" in (REHEARSALS / f"{name}.txt").read_text()


def test_real_checkpoints_have_their_published_sizes(recipe_world):
    # as the Hub counts them; spec/unime.md 8 and spec/phi3_v.md 2
    def size(name, model_class):
        model = model_class.from_backbone(recipe_world / name, weights=False)
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
        return sum(parameter.numel() for parameter in model.parameters())

    assert size("Qwen/Qwen2-VL-2B-Instruct", UniMEModel) == 2_208_985_600
    assert size("Qwen/Qwen2.5-VL-7B-Instruct", UniMERerankerForCausalLM) == 8_292_166_656
    assert size("llava-hf/llava-onevision-qwen2-7b-ov-hf", UniMERerankerForCausalLM) == 8_030_807_584
    assert size("microsoft/Phi-3.5-vision-instruct", UniMERerankerForCausalLM) == 4_146_621_440


def test_accelerate_configs_are_what_launch_reads():
    kinds = {"single": "NO", "multi_gpu": "MULTI_GPU", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
    for name, kind in kinds.items():
        config = load_config_from_file(str(ROOT / "accelerate_configs" / f"{name}.yaml"))
        assert config.distributed_type == kind
        if kind == "DEEPSPEED":
            assert config.deepspeed_config["zero_stage"] == int(name[-1])


@pytest.mark.parametrize("recipe", MINING, ids=name_of)
def test_mining_recipes_are_read_whole(recipe):
    config = MiningConfig(**yaml.safe_load(recipe.read_text()))
    assert config.embedder and (config.judge or recipe.stem == "saha")
    if "VLM2Vec" in config.embedder or recipe.stem == "saha":
        preset = PRESETS[config.embedder_preset]
        assert (preset.fenced, preset.positions) == (False, "flat"), "as the embedder was trained"
    assert "recipes/mining/" in recipe.read_text() or "As unime-v2.yaml" in recipe.read_text()
    assert set(config.judge_options) <= set(inspect.signature(UniMERerankerForCausalLM.score).parameters)
    assert set(config.embedder_options) <= set(inspect.signature(UniMEModel.encode).parameters)
    if config.server:
        assert set(config.server_options) <= set(inspect.signature(ServerJudge).parameters)


def rehearse_with(world, monkeypatch, capsys, *options):
    """What the rehearsal of UniME-V2's recipe on LLaVA-OneVision prints with further options, and its exit status."""
    monkeypatch.chdir(world)
    recipe = ROOT / "recipes" / "unime-v2" / "alignment-llava-onevision.yaml"
    status = 0
    try:
        cli.main(["train", "alignment", "--config", str(recipe), "--rehearse", *options])
    except SystemExit as stop:
        status = stop.code
    return capsys.readouterr().out, status


def test_images_that_cannot_fit_are_errors(recipe_world, monkeypatch, capsys):
    # as the recipe was without its resolution: 7,371 tokens an image where 4,096 are allowed
    text, status = rehearse_with(recipe_world, monkeypatch, capsys, "--resolution", "1344")
    assert status == 1
    assert "7371 of them image tokens), above the limit of 4096" in text.split("\nErrors: ")[1]


def test_too_few_negatives_are_errors_and_what_is_typed_is_named(recipe_world, monkeypatch, capsys, tmp_path):
    file = tmp_path / "rehearsal.json"
    options = ["--num_negatives", "12", "--max-length", "2048", "--rehearse-json", str(file)]
    text, status = rehearse_with(recipe_world, monkeypatch, capsys, *options)
    rehearsal = json.loads(file.read_text())
    assert status == 1 and len(rehearsal["errors"]) == 10
    assert rehearsal["errors"][0] == "ImageNet_1K: its rows have 10 negatives at most, num_negatives is 12."
    reading = {row["setting"]: (row["value"], row["source"]) for row in rehearsal["How items are read"]}
    assert reading["max_length"] == ("2048", "command line") and reading["resolution"] == ("336", "recipe")
    assert reading["preset"] == ("unime-v2-llava-onevision", "recipe") and reading["positions"] == ("native", "preset")
    assert "resolution is 336 here, and native in the checkpoint." in rehearsal["warnings"]
    assert rehearsal["errors"][0] in text

    # linear with 200 of 2,000 steps of warm-up: half of the way is (2000 - 1000) / 1800 of the peak
    rates = {row["moment"]: float(row["learning rate"]) for row in rehearsal["Learning rate"]}
    assert rates["first"] == 0 and rates["end of warm-up"] == 2e-5
    assert rates["half"] == pytest.approx(2e-5 * 1000 / 1800, rel=1e-2)


def test_counts_of_rows_are_those_of_a_plain_loop(recipe_world):
    rows = read_judged(recipe_world / "train_data_Qwen25VL_7B_scores.json", recipe_world / "MMEB-train")
    counts = RowCounts.of(rows)
    for row in counts.data_sets:
        own = [example for example in rows if example["dataset"] == row["data set"]]
        positives = {(example["positive"]["text"], example["positive"]["image"]) for example in own}
        assert row["rows"] == len(own) and row["candidates"] == len(positives)
        assert row["least negatives"] == row["most negatives"] == len(own[0]["negatives"])
    assert counts.with_fewer_candidates(33, "k") == [] and len(counts.with_fewer_candidates(34, "k")) == 10


def test_arithmetic_of_a_forward_is_that_of_its_matrices(backbone):
    model = UniMEModel.from_backbone(backbone)
    prepared = model.processor.prepare(["a red circle", {"image": picture(1)}])
    flops = estimates.forward_flops(model.vlm, model.processor, prepared)
    text = model.config.get_text_config()
    decoder = model.vlm.get_decoder()
    matrices = sum(m.weight.numel() for m in decoder.modules() if isinstance(m, torch.nn.Linear))
    lengths = [entry.length for entry in prepared]
    squares = sum(length**2 for length in lengths)
    expected = 2 * matrices * sum(lengths) + 2 * text.num_hidden_layers * text.hidden_size * squares
    assert flops["language"] == expected and flops["vision"] > 0
