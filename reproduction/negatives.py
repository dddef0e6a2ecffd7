"""What easy, random and hard negatives do to a training: claim F4."""

import numpy as np

from ..eval.figures import training_curves
from ..files.writing import read_json
from .findings import Finding, compare_values
from .laboratory import Laboratory

SELECTIONS = ("easy", "random", "hard")
LAST = 0.5  # share of the steps, from the end, over which loss and gradient are averaged


def hard_negatives_keep_teaching(laboratory: Laboratory) -> Finding:
    """F4: hard negatives keep loss and gradient norm high, random ones less, easy ones not at all."""
    logs = {selection: _logs(laboratory, selection) for selection in SELECTIONS}
    first_of = {selection: by_seed[0] for selection, by_seed in logs.items()}
    picture = training_curves(first_of, laboratory.out / "F4.png")

    comparisons = []
    table = {selection: {} for selection in SELECTIONS}
    for key, name in (("loss", "loss"), ("grad_norm", "gradient norm")):
        late = {selection: _late_means(by_seed, key) for selection, by_seed in logs.items()}
        for better, worse in (("hard", "random"), ("random", "easy")):
            comparisons.append(compare_values(f"late {name}: {better} over {worse}", late[better], late[worse]))
        for selection, values in late.items():
            table[selection][f"late {name}"] = f"{np.mean(values):.3f}"
    return Finding(
        "Three trainings of stage 2 from one start with the eight least similar, eight random or the eight most "
        "similar candidates of the batch as negatives; means over the second half of the steps, at a constant "
        "learning rate. The gradient norm is that before clipping.",
        comparisons,
        table,
        [picture.name],
        ["The paper prints curves without figures: hard stays well above zero, random sinks, easy is near zero."],
    )


def _logs(laboratory: Laboratory, selection: str) -> list[list[dict]]:
    """The log of each seed's training with a selection of negatives."""
    logs = []
    for seed in laboratory.seeds:
        steps = laboratory.settings["curves"]["max_steps"]
        folder = laboratory.on_world(
            f"curve-{selection}",
            laboratory.instructed,
            seed,
            selection=selection,
            num_hard_negatives=8,
            logging_steps=1,
            save_steps=steps,
            # no decay, so that late steps can be compared with early ones
            lr_scheduler_type="constant_with_warmup",
            lr_scheduler_kwargs="{}",
            **laboratory.settings["curves"],
        )
        history = read_json(folder / "trainer_state.json")["log_history"]
        logs.append([entry for entry in history if "loss" in entry])
    return logs


def _late_means(by_seed: list[list[dict]], key: str) -> list[float]:
    """The mean of a logged value over the last steps of each seed's training."""
    means = []
    for history in by_seed:
        values = [float(entry[key]) for entry in history]
        start = int(len(values) * (1 - LAST))
        means.append(float(np.mean(values[start:])))
    return means
