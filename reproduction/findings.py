"""What a re-enacted claim came to: differences with intervals beside the paper's figures, and a verdict."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from ..eval.statistics import DRAWS, interval

HOLDS = "holds"
FAILS = "does not hold"
OPEN = "cannot be told"

Hits = dict[str, np.ndarray]  # by task, what each query contributes in each seed: [S, Q]


@dataclass(frozen=True)
class Comparison:
    """A difference that a claim says is above a bound.

    Args:
        name (`str`): what is compared with what, on which tasks.
        ours (`float`): the difference that was measured.
        low, high (`float`): its 95 % interval; None where a single number was measured, which has none.
        paper (`str`): the paper's figure, as it prints it; empty where it prints none.
        least (`float`, defaults to 0): the bound; below 0 it says "no worse than by so much".
        aim (`float`, defaults to 0): what the difference itself must reach; 0 asks for nothing but the bound.
        unit (`str`, defaults to `"points"`): what the numbers are.
    """

    name: str
    ours: float
    low: float | None
    high: float | None
    paper: str = ""
    least: float = 0.0
    aim: float = 0.0
    unit: str = "points"

    @property
    def verdict(self) -> str:
        """Whether the whole interval is above the bound, or below it, or neither.

        A difference that is surely above the bound and too small does not hold either.
        """
        if self.low is None:
            return OPEN
        if self.high < self.least:
            return FAILS
        if self.low <= self.least:
            return OPEN
        return HOLDS if self.ours >= (self.aim or self.least) else FAILS


@dataclass
class Finding:
    """What one claim came to.

    Args:
        measured (`str`): one or two sentences: what was measured, on what.
        comparisons (`list[Comparison]`): all that the claim says.
        table (`dict[str, dict[str, str]]`): further figures, by row and column.
        pictures (`list[str]`): files beside the page.
        notes (`list[str]`): what a reader should know about the figures.
    """

    measured: str
    comparisons: list[Comparison]
    table: dict[str, dict[str, str]] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """It holds if each of its comparisons does, and does not if any of them does not."""
        verdicts = [comparison.verdict for comparison in self.comparisons]
        if FAILS in verdicts:
            return FAILS
        if OPEN in verdicts or not verdicts:
            return OPEN
        return HOLDS

    def as_dict(self) -> dict:
        """For JSON, with the verdicts written out."""
        comparisons = []
        for comparison in self.comparisons:
            comparisons.append({**asdict(comparison), "verdict": comparison.verdict})
        return {**asdict(self), "verdict": self.verdict, "comparisons": comparisons}


# differences of precision@1
def compare(
    name: str,
    better: Hits,
    worse: Hits,
    tasks: Sequence[str],
    paper: str = "",
    least: float = 0.0,
    aim: float = 0.0,
    draws: int = DRAWS,
) -> Comparison:
    """How far one model is above another on some tasks, in points of the tasks' mean precision@1.

    The interval is a paired bootstrap over queries and seeds: a draw takes seeds with replacement, the same for both
    models, and within each task queries with replacement, the same for both models and all seeds.

    Args:
        name (`str`): of the comparison.
        better, worse (`Hits`): 1 where a query is answered rightly, else 0, with equal shapes `[S, Q]` for each task.
        tasks (`Sequence[str]`): those whose mean is compared.
        paper, least, aim: as in [`Comparison`], in points.
        draws (`int`, defaults to 2000): bootstrap samples.
    """
    rng = np.random.default_rng(0)
    drawn_seeds = _shares_drawn(rng, len(better[tasks[0]]), draws)  # [draws, S]

    ours = 0.0
    means = np.zeros(draws)
    for task in tasks:
        difference = 100 * (better[task].astype(np.float64) - worse[task])  # [S, Q]
        drawn_queries = _shares_drawn(rng, difference.shape[1], draws)  # [draws, Q]
        ours += difference.mean() / len(tasks)
        means += ((drawn_seeds @ difference) * drawn_queries).sum(axis=1) / len(tasks)

    low, high = interval(means)
    return Comparison(name, float(ours), low, high, paper, least, aim)


def compare_values(
    name: str,
    better: ArrayLike,
    worse: ArrayLike,
    paper: str = "",
    least: float = 0.0,
    unit: str = "",
) -> Comparison:
    """The mean difference of paired numbers, with the bootstrap of [`compare`].

    Args:
        name (`str`): of the comparison.
        better, worse (`ArrayLike`): a number of each seed, `[S]`, or of each picture in each seed, `[S, N]`; `[1, N]`
            where all seeds have the same ones.
        paper, least, unit: as in [`Comparison`].
    """
    differences = np.asarray(better, np.float64) - np.asarray(worse, np.float64)
    if differences.size == 1:
        return Comparison(name, float(differences.item()), None, None, paper, least, unit=unit)

    differences = differences.reshape(len(differences), -1)  # [S, N]
    rng = np.random.default_rng(0)
    drawn_seeds, drawn_values = (_shares_drawn(rng, count, DRAWS) for count in differences.shape)
    low, high = interval(((drawn_seeds @ differences) * drawn_values).sum(axis=1))
    return Comparison(name, float(differences.mean()), low, high, paper, least, unit=unit)


def _shares_drawn(rng: np.random.Generator, count: int, draws: int) -> np.ndarray:
    """The share that each of some things has in every draw with replacement, `[draws, count]`."""
    return rng.multinomial(count, np.full(count, 1 / count), size=draws) / count


def percent(hits: Hits, tasks: Sequence[str]) -> str:
    """The mean precision@1 over some tasks, in percent."""
    return f"{100 * np.mean([hits[task].mean() for task in tasks]):.1f}"
