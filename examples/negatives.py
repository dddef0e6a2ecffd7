"""What easy, random and hard negatives do to a training: loss and gradient norm, step by step (2504.17432 section 4).

    python -m unime.examples.negatives --model outputs/backbone --world outputs/world --out outputs/negatives.png

Three short trainings from one start, with one seed, differ only in which in-batch negatives count.
"""

import argparse
import tempfile
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from ..data.readers import read_mmeb_train
from ..eval.figures import training_curves
from ..trainers.contrastive import ContrastiveConfig, ContrastiveTrainer
from .quickstart import RECIPE, load_for_cpu_or_gpu


def train(model: Path, world: Path, selection: str, steps: int) -> list[dict]:
    """Trains with a selection of negatives, keeps nothing, and returns the log."""
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    preset = recipe.pop("preset")
    for key in ("model_name_or_path", "data", "image_root"):
        recipe.pop(key)
    with tempfile.TemporaryDirectory() as folder:
        recipe |= {"output_dir": folder, "max_steps": steps, "selection": selection, "num_hard_negatives": 8,
                   "logging_steps": 1, "save_strategy": "no"}  # fmt: skip
        (args,) = HfArgumentParser(ContrastiveConfig).parse_dict(recipe)
        rows = read_mmeb_train(world / "train", image_root=world)
        trainer = ContrastiveTrainer(load_for_cpu_or_gpu(model, preset=preset), args, train_dataset=rows)
        trainer.train()
    return trainer.state.log_history


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("outputs/backbone"), help="a stock VLM")
    parser.add_argument("--world", type=Path, default=Path("outputs/world"))
    parser.add_argument("--out", type=Path, default=Path("outputs/negatives.png"))
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args(arguments)
    runs = {name: train(options.model, options.world, name, options.steps) for name in ("easy", "random", "hard")}
    print(training_curves(runs, options.out))


if __name__ == "__main__":
    main()
