"""Every recipe is read by its stage, and names nothing that the stage does not know."""

import pytest
from conftest import ROOT
from trl import ModelConfig, TrlParser

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
RECIPES = sorted((ROOT / "recipes").glob("*/*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipes_are_read_whole(recipe, tmp_path):
    stage = recipe.stem.split("-")[0]
    parser = TrlParser((StageArguments, CONFIGS[stage], ModelConfig))
    arguments = ["--config", str(recipe), "--output_dir", str(tmp_path), "--bf16", "False"]
    found, args, model = parser.parse_args_and_config(arguments)
    assert found.data and model.model_name_or_path and args.learning_rate > 0
    text = recipe.read_text()
    assert f"-m unime.trainers.{stage} --config recipes/{recipe.parent.name}/{recipe.name}" in text
