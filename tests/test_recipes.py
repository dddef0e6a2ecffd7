"""Every recipe is read by its stage, and names nothing that the stage does not know."""

import inspect

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from conftest import ROOT
from PIL import Image
from transformers import Qwen2VLImageProcessorPil
from trl import ModelConfig, TrlParser

from unime import UniMEModel, UniMERerankerForCausalLM
from unime.mining.judging import ServerJudge
from unime.mining.pipeline import MiningConfig
from unime.prompts_unime import PRESETS
from unime.trainers.adapters import find_targets
from unime.trainers.alignment import AlignmentConfig
from unime.trainers.contrastive import ContrastiveConfig
from unime.trainers.distillation import DistillationConfig
from unime.trainers.reranker import RerankerConfig
from unime.trainers.stage import StageArguments

CONFIGS = {
    "alignment": AlignmentConfig,
    "contrastive": ContrastiveConfig,
    "distillation": DistillationConfig,
    "reranker": RerankerConfig,
}
FAMILIES = {  # part of a model's name -> tiny checkpoint of that family
    "phi3.5": "phi3_v",
    "Phi-3.5": "phi3_v",
    "llava-1.6": "llava_next",
    "llava-v1.6": "llava_next",
    "onevision": "llava_onevision",
    "Qwen2-VL": "qwen2_vl",
    "Qwen2.5-VL": "qwen2_5_vl",
}
RECIPES = sorted(path for path in (ROOT / "recipes").glob("*/*.yaml") if path.parent.name not in ("mining", "eval"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipes_are_read_whole(recipe, tmp_path):
    stage = recipe.stem.split("-")[0]
    parser = TrlParser((StageArguments, CONFIGS[stage], ModelConfig))
    arguments = ["--config", str(recipe), "--output_dir", str(tmp_path), "--bf16", "False"]
    found, args, model = parser.parse_args_and_config(arguments)
    assert found.data and model.model_name_or_path and args.learning_rate > 0
    if recipe.parent.name in ("saha", "vlm2vec"):
        assert not args.num_hard_negatives and args.false_negative_margin is None, "plain InfoNCE"
    text = recipe.read_text()
    assert f"-m unime.trainers.{stage} --config recipes/{recipe.parent.name}/{recipe.name}\n" in text


@pytest.mark.parametrize(
    "recipe", [r for r in RECIPES if r.parent.name != "shapes"], ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_presets_and_adapter_targets_exist(recipe, tiny):
    settings = yaml.safe_load(recipe.read_text())
    family = next(kind for part, kind in FAMILIES.items() if part in settings["model_name_or_path"])
    model = UniMEModel.from_backbone(tiny(family)[0], settings.get("preset"))
    assert find_targets(model, settings["lora_target_modules"])


CONTRASTIVE = [recipe for recipe in RECIPES if recipe.parent.name == "unime" and "contrastive" in recipe.stem]
ALIGNMENT = [recipe for recipe in RECIPES if recipe.parent.name == "unime-v2" and "alignment" in recipe.stem]


@pytest.mark.parametrize("recipe", CONTRASTIVE + ALIGNMENT, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_training_images_and_batches_are_those_of_the_authors(recipe):
    settings = yaml.safe_load(recipe.read_text())
    assert settings["homogeneous_batches"] is False, "one block of HatefulMemes would leave one negative where k is 8"
    if recipe.parent.name == "unime-v2":
        assert settings["resolution"] == ("336" if "onevision" in recipe.stem else "672")
    else:
        assert settings["resolution"] == "336"
        assert settings["benchmark"] == "mmeb", "raw strings, texts alone too"
        assert PRESETS[settings["preset"]].benchmarks == {"mmeb": "joint"}


def test_an_image_of_the_alignment_recipes_takes_the_tokens_of_the_paper():
    # a square of 672 pixels in tokens of 28 x 28; at the evaluation size, 1344, it would be 2,304
    processor = Qwen2VLImageProcessorPil()
    side = int(yaml.safe_load((ROOT / "recipes" / "unime-v2" / "alignment.yaml").read_text())["resolution"])
    grid = processor([Image.new("RGB", (side, side))], return_tensors="pt")["image_grid_thw"][0]
    assert int(grid.prod()) // processor.merge_size**2 == 576


def test_accelerate_configs_are_what_launch_reads():
    for name, kind in (("single", "NO"), ("multi_gpu", "MULTI_GPU"), ("zero2", "DEEPSPEED"), ("zero3", "DEEPSPEED")):
        found = load_config_from_file(str(ROOT / "accelerate_configs" / f"{name}.yaml"))
        assert found.distributed_type == kind
        if kind == "DEEPSPEED":
            assert found.deepspeed_config["zero_stage"] == int(name[-1])


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes" / "mining").glob("*.yaml")), ids=lambda path: path.stem)
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
