"""What several examples do: load an embedder, train one with the miniature recipe, write results."""

from pathlib import Path

import torch
import yaml
from transformers import HfArgumentParser

from ..data.readers import read_mmeb_train
from ..miniature.backbone import BackboneConfig, pretrain
from ..miniature.recipes import RECIPES
from ..modeling_unime import UniMEModel
from ..trainers.contrastive import ContrastiveConfig, ContrastiveTrainer
from ..trainers.progress import TrainingBar
from ..trainers.starting import plain_attention


def is_trained(folder: Path) -> bool:
    """Whether a folder holds a finished backbone or judge: the weights are written last."""
    return (folder / "model.safetensors").exists()


def pretrain_once(world: Path, folder: Path, bar: TrainingBar | None = None, **settings) -> Path:
    """A backbone in a folder, trained unless it is there.

    Args:
        world (`Path`): written by `unime.miniature.world`.
        folder (`Path`): of the checkpoint.
        bar ([`~unime.trainers.progress.TrainingBar`], *optional*): shows the progress.
        settings: of [`~unime.miniature.backbone.BackboneConfig`].
    """
    if not is_trained(folder):
        pretrain(world, BackboneConfig(output_dir=str(folder), **settings), bar)
    return folder


def load_for_cpu_or_gpu(path: Path, preset: str | None = None) -> UniMEModel:
    """Loads an embedder; on a CPU its text attention runs as plain matrix products, whose backward is faster there.

    Args:
        path (`Path`): a trained embedder, or, with a preset, a stock VLM.
        preset (`str`, *optional*): the prompts of a stock VLM.
    """
    if preset is None:
        model = UniMEModel.from_pretrained(path, dtype=torch.float32)
    else:
        model = UniMEModel.from_backbone(path, dtype=torch.float32, preset=preset)

    # a GPU has fused kernels for it
    if torch.cuda.is_available():
        return model.to("cuda")
    plain_attention(model)
    return model


def make_trainer(world: Path, start: Path, **changes) -> ContrastiveTrainer:
    """A trainer of the miniature recipe, from a stock VLM on, with some of its settings changed.

    Args:
        world (`Path`): written by `unime.miniature.world`; its training rows are trained on.
        start (`Path`): a stock VLM.
        changes: settings of [`~unime.trainers.contrastive.ContrastiveConfig`] in place of the recipe's.
    """
    recipe = yaml.safe_load((RECIPES / "shapes" / "contrastive.yaml").read_text(encoding="utf-8"))

    # model and rows are given here
    preset = recipe.pop("preset")
    for key in ("model_name_or_path", "data", "image_root"):
        recipe.pop(key)

    (args,) = HfArgumentParser(ContrastiveConfig).parse_dict(recipe | changes)
    rows = read_mmeb_train(world / "train", image_root=world)
    return ContrastiveTrainer(load_for_cpu_or_gpu(start, preset), args, train_dataset=rows)
