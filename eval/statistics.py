"""Uncertainty of benchmark scores: bootstrap over queries, and paired comparison of two models."""

from collections.abc import Callable

import numpy as np

DRAWS, CHUNK = 2000, 2**24


def values_of(result: dict) -> np.ndarray:
    """What each query of a task contributes to its score: 0 or 1 for precision@1, else its nDCG. `[Q]`."""
    if result["metric"] == "precision@1":
        return (np.asarray(result["ranks"]) == 1).astype(np.float64)
    return np.asarray(result["values"], np.float64)


def resampled(values: list[np.ndarray], together=None, seed: int = 0, draws: int = DRAWS) -> np.ndarray:
    """Means of bootstrap samples: `[draws]` for each array of `values`, all drawn with the same queries.

    Args:
        values (`list[ndarray]`): for each model, what each query of one task contributes, `[Q]`.
        together (*optional*): `[Q]`, equal for queries that are drawn together, such as captions of one image.

    Returns:
        `[len(values), draws]`.
    """
    _, group = np.unique(np.arange(len(values[0])) if together is None else together, return_inverse=True)
    sizes = np.bincount(group)  # [G]
    sums = np.stack([np.bincount(group, own) for own in values])  # [M, G]
    rng, count = np.random.default_rng(seed), len(sizes)
    found, step = [], max(1, CHUNK // count)
    for start in range(0, draws, step):
        picked = rng.integers(count, size=(min(step, draws - start), count))
        found.append(sums[:, picked].sum(axis=-1) / sizes[picked].sum(axis=-1))
    return np.concatenate(found, axis=1)


def distributions(
    results: list[dict], means: Callable[[dict[str, np.ndarray]], dict], seed: int = 0
) -> dict[str, np.ndarray]:
    """Bootstrap distributions of every task's score and of every mean, for models measured on the same queries.

    Queries are drawn with replacement within each task (seeded by its place), the same ones for all models.

    Args:
        results (`list[dict]`): the `tasks` of results files with equal `data`.
        means: maps `{task: scores}` to `{group: mean or None}`, element by element.

    Returns:
        `{task or "mean: <group>": [M, draws]}`.
    """
    found = {}
    for number, name in enumerate(results[0]):
        together = results[0][name].get("together")
        found[name] = resampled([values_of(own[name]) for own in results], together, seed + number)
    groups = {group: draws for group, draws in means(found).items() if draws is not None}
    return found | {f"mean: {group}": draws for group, draws in groups.items()}


def interval(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of a bootstrap distribution `[draws]`."""
    return tuple(np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]).tolist())


def p_value(differences: np.ndarray) -> float:
    """Two-sided bootstrap p-value of a difference being 0: twice the share of draws on the rarer side."""
    rarer = min((differences <= 0).mean(), (differences >= 0).mean())
    return float(min(1.0, max(2 * rarer, 1 / len(differences))))
