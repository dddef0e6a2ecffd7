"""What easy, random and hard negatives do to a training: loss and gradient norm, step by step (2504.17432 section 4).

    python -m unime.examples.negatives --model outputs/backbone --world outputs/world --out outputs/negatives.png

Three short trainings from one start, with one seed, differ only in which in-batch negatives count.
"""

import argparse
import tempfile
from pathlib import Path

from ..eval.figures import training_curves
from ..jobs.notices import silence_alarms
from .common import make_trainer


def train(model: Path, world: Path, selection: str, steps: int) -> list[dict]:
    """Trains with a selection of negatives, keeps nothing, and returns the log.

    Args:
        model (`Path`): a stock VLM.
        world (`Path`): written by `unime.miniature.world`.
        selection (`str`): `"easy"`, `"random"` or `"hard"`, as [`~unime.trainers.losses.HardNegativeInfoNCE`] has it.
        steps (`int`): of the training.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            world,
            model,
            output_dir=folder,
            max_steps=steps,
            selection=selection,
            num_hard_negatives=8,
            logging_steps=1,
            save_strategy="no",
            # no decay, so that late steps can be compared with early ones
            lr_scheduler_type="constant_with_warmup",
            lr_scheduler_kwargs={},
        )
        trainer.train()
    return trainer.state.log_history


def main(arguments=None):
    """The command `python -m unime.examples.negatives`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("outputs/backbone"), help="a stock VLM")
    parser.add_argument("--world", type=Path, default=Path("outputs/world"))
    parser.add_argument("--out", type=Path, default=Path("outputs/negatives.png"))
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args(arguments)
    silence_alarms()

    runs = {}
    for selection in ("easy", "random", "hard"):
        runs[selection] = train(options.model, options.world, selection, options.steps)
    print(training_curves(runs, options.out))


if __name__ == "__main__":
    main()
