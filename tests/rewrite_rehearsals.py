"""Writes the rehearsals of all recipes anew, after a recipe, a preset or a default was changed on purpose:

    python tests/rewrite_rehearsals.py

The difference (`git diff tests/rehearsals`) is what the change does to every run.
"""

import tempfile
from pathlib import Path

from conftest import ROOT
from recipe_world import rehearsed, write_world

RECIPES = sorted((ROOT / "recipes").glob("*/*.yaml"))
REHEARSALS = ROOT / "tests" / "rehearsals"


def rehearsal_of(recipe: Path) -> Path:
    """The file of a recipe's rehearsal."""
    return REHEARSALS / recipe.parent.name / f"{recipe.stem}.txt"


def main():
    """Rehearses every recipe, and writes what is printed."""
    from unime.miniature.world import build

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        world = build(folder / "shapes", train_rows=16, test_rows=12, pretrain_rows=64, show_progress=False)
        root = write_world(folder / "recipes", world)
        for recipe in RECIPES:
            text, status = rehearsed(recipe, root)
            file = rehearsal_of(recipe)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            print(file.relative_to(ROOT), "" if status == 0 else f"(status {status})")


if __name__ == "__main__":
    main()
