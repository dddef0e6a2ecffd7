"""Uncertainty of benchmark scores: bootstrap over queries, and paired comparison of two models."""

from collections.abc import Callable

import numpy as np

DRAWS = 2000  # bootstrap samples
CHUNK = 2**24  # drawn numbers that are held in memory at once


def values_of(result: dict) -> np.ndarray:
    """What each query of a task contributes to its score: 0 or 1 for precision@1, else its nDCG.

    Args:
        result (`dict`): a task's entry in a results file.

    Returns:
        `ndarray` `[Q]` in float64.
    """
    if result["metric"] == "precision@1":
        return (np.asarray(result["ranks"]) == 1).astype(np.float64)
    return np.asarray(result["values"], np.float64)


def resampled(values: list[np.ndarray], together=None, seed: int = 0, draws: int = DRAWS) -> np.ndarray:
    """Means of bootstrap samples: `[draws]` for each array of `values`, all drawn with the same queries.

    Args:
        values (`list[ndarray]`): for each model, what each query of one task contributes, `[Q]`.
        together (*optional*): `[Q]`, equal for queries that are drawn together, such as captions of one image; by
            default each query is drawn alone.
        seed (`int`, defaults to 0): of the draws.
        draws (`int`, defaults to 2000): how many samples.

    Returns:
        `ndarray` `[len(values), draws]`.

    Example:

    ```python
    (means,) = resampled([np.array([1.0, 0.0, 1.0, 1.0])])
    low, high = interval(means)
    ```
    """
    if together is None:
        together = np.arange(len(values[0]))
    _, group = np.unique(together, return_inverse=True)  # [Q]

    # a draw takes whole groups, so their sizes and sums are all that is needed
    sizes = np.bincount(group)  # [G]
    sums = np.stack([np.bincount(group, contributions) for contributions in values])  # [M, G]

    rng = np.random.default_rng(seed)
    count = len(sizes)
    step = max(1, CHUNK // count)
    means = []
    for start in range(0, draws, step):
        picked = rng.integers(count, size=(min(step, draws - start), count))  # [step, G]
        means.append(sums[:, picked].sum(axis=-1) / sizes[picked].sum(axis=-1))  # [M, step]
    return np.concatenate(means, axis=1)


def distributions(
    results: list[dict], means: Callable[[dict[str, np.ndarray]], dict], seed: int = 0
) -> dict[str, np.ndarray]:
    """Bootstrap distributions of every task's score and of every mean, for models measured on the same queries.

    Queries are drawn with replacement within each task (seeded by its place), the same ones for all models.

    Args:
        results (`list[dict]`): for each model, the `tasks` of its results file; all with equal `data`.
        means: maps `{task: scores}` to `{group: mean or None}`, element by element.
        seed (`int`, defaults to 0): of the first task; each later one has the next number.

    Returns:
        `{task or "mean: <group>": [M, draws]}`; a group without a mean is left out.
    """
    first = results[0]

    # each task has a seed of its own, so that its draws do not depend on the sizes of those before it
    by_task = {}
    for number, name in enumerate(first):
        values = [values_of(tasks[name]) for tasks in results]
        by_task[name] = resampled(values, first[name].get("together"), seed + number)

    by_group = {}
    for group, draws in means(by_task).items():
        if draws is not None:
            by_group[f"mean: {group}"] = draws
    return by_task | by_group


def interval(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of a bootstrap distribution.

    Args:
        draws (`ndarray` `[draws]`).
        level (`float`, defaults to 0.95): the share between the two ends.

    Returns:
        `(low, high)`.
    """
    outside = 1 - level
    return tuple(np.quantile(draws, [outside / 2, (1 + level) / 2]).tolist())


def p_value(differences: np.ndarray) -> float:
    """Two-sided bootstrap p-value of a difference being 0: twice the share of draws on the rarer side.

    Args:
        differences (`ndarray` `[draws]`): of two models, drawn with the same queries.

    Returns:
        `float`: at least one over the number of draws, at most 1.
    """
    rarer = min((differences <= 0).mean(), (differences >= 0).mean())
    return float(min(1.0, max(2 * rarer, 1 / len(differences))))
