"""The numbers that the papers print, and where they contradict themselves."""

from functools import cache
from pathlib import Path

import yaml

from .means import group_means
from .suites import GROUPS, KINDS, SPLITS

PATH = Path(__file__).parent / "published.yaml"
ROUNDED = 0.05  # a number with one decimal is off by at most that


@cache
def published() -> dict[str, dict]:
    """The tables of `published.yaml`, in percent.

    Returns:
        `{name: {"source", "columns", "notes", "rows"}}`; a row has one number (or None) for each column.

    Example:

    ```python
    rows_of(published()["mmeb_means"])["UniME-V2 Qwen2-VL 7B"]["overall"]  # 68.0
    ```
    """
    return yaml.safe_load(PATH.read_text(encoding="utf-8"))


def rows_of(table: dict) -> dict[str, dict[str, float | None]]:
    """The rows of a published table with its columns by name: `{row: {column: value}}`."""
    rows = {}
    for name, values in table["rows"].items():
        rows[name] = dict(zip(table["columns"], values))
    return rows


def per_data_set() -> dict[str, dict[str, float]]:
    """The table of MMEB's 36 data sets, by model: `{model: {data set: percent}}`."""
    scores: dict[str, dict[str, float]] = {}
    for data_set, row in rows_of(published()["mmeb"]).items():
        for model, value in row.items():
            scores.setdefault(model, {})[data_set] = value
    return scores


def contradictions() -> dict[str, list[str]]:
    """Where the printed tables of MMEB contradict themselves, by model.

    A group's printed mean is compared with the mean of its data sets, where these are printed; the overall mean with
    the mean of the groups it is made of, by kind (10, 10, 12 and 4 data sets) and by split (20 and 16). Differences
    that rounding to one decimal explains are not reported.

    Most of 2504.17432's averages come out as the mean of four means, which weighs four grounding sets like twelve
    retrieval sets; these are named as such.

    Returns:
        `{model: sentences}`; models whose numbers are consistent are left out.
    """
    means = rows_of(published()["mmeb_means"])
    messages: dict[str, list[str]] = {}

    # the data sets of a few models are printed, the means of all of them
    for model, scores in per_data_set().items():
        if differences := _against_data_sets(means[model], scores):
            messages[model] = differences
    for model, row in means.items():
        if differences := _against_groups(row):
            messages.setdefault(model, []).extend(differences)
    return messages


def _against_data_sets(printed: dict, scores: dict[str, float]) -> list[str]:
    """Where a model's printed means of groups are not those of its printed data sets."""
    messages = []
    means = group_means("mmeb", scores)
    for group in (*KINDS, *SPLITS):
        if not _equal(means[group], printed[group]):
            messages.append(f"{group} is printed as {printed[group]}, its data sets give {means[group]:.1f}")
    return messages


def _against_groups(row: dict) -> list[str]:
    """Where a model's printed overall mean is not that of its printed groups, or these disagree."""
    by_kinds = _weighted(row, KINDS)
    by_splits = _weighted(row, SPLITS)
    overall = row["overall"]
    if overall is None or by_kinds is None or by_splits is None:
        return []

    messages = []
    if not _equal(by_kinds, by_splits):
        messages.append(f"the 36 data sets have {by_kinds:.1f} by the kinds, {by_splits:.1f} by IND and OOD")

    # if it is neither, it may be the papers' other average
    if not _equal(by_kinds, overall) and not _equal(by_splits, overall):
        what = "is printed"
        four_kinds = sum(row[kind] for kind in KINDS) / len(KINDS)
        if _equal(four_kinds, overall):
            what = "is the mean of the four kinds"
        messages.append(f"overall, {overall}, {what}; that of the 36 data sets is {by_kinds:.1f}")
    return messages


def _weighted(row: dict, groups: tuple[str, ...]) -> float | None:
    """The mean of the 36 data sets from those of the groups they fall into."""
    sums = []
    for group in groups:
        if row[group] is None:
            return None
        sums.append(len(GROUPS["mmeb"][group]) * row[group])
    return sum(sums) / len(GROUPS["mmeb"]["overall"])


def _equal(first: float, second: float) -> bool:
    """Whether two numbers differ by no more than the rounding of both."""
    return abs(first - second) <= 2 * ROUNDED + 1e-9
