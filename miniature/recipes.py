"""The recipes of the miniature world, run as a user would run them."""

from pathlib import Path

from ..trainers.resuming import last_checkpoint

RECIPES = Path(__file__).parent.parent / "recipes"


def run_recipe(stage, name: str, start: Path, out: Path, changes: dict):
    """Runs a stage's recipe, going on from a checkpoint of an interrupted run.

    Args:
        stage (module): of `trainers`, with a `main`.
        name (`str`): a file of `recipes/shapes`, without its ending.
        start (`Path`): the model that is trained.
        out (`Path`): its output folder.
        changes (`dict`): options of the stage in place of the recipe's.
    """
    arguments = ["--config", str(RECIPES / "shapes" / f"{name}.yaml"), "--model_name_or_path", str(start)]
    arguments += ["--output_dir", str(out), "--disable_tqdm", "True"]
    checkpoint = last_checkpoint(out)
    if checkpoint:
        arguments += ["--resume_from_checkpoint", checkpoint]
    for key, value in changes.items():
        arguments += [f"--{key}", str(value)]
    stage.main(arguments)
