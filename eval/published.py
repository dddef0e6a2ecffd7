"""The numbers that the papers print, and what is wrong with them."""

from functools import cache
from pathlib import Path

import yaml

from .means import group_means
from .suites import GROUPS, KINDS

PATH = Path(__file__).parent / "published.yaml"
SPLITS = ("IND", "OOD")
ROUNDED = 0.05  # a number with one decimal is off by at most that


@cache
def published() -> dict[str, dict]:
    """The tables of `published.yaml`: `{name: {"source", "columns", "notes", "rows"}}`, in percent."""
    return yaml.safe_load(PATH.read_text(encoding="utf-8"))


def per_data_set() -> dict[str, dict[str, float]]:
    """`{model: {data set of MMEB: percent}}`."""
    table = published()["mmeb"]
    return {
        model: {name: row[number] for name, row in table["rows"].items()}
        for number, model in enumerate(table["columns"])
    }


def contradictions() -> dict[str, list[str]]:
    """What the printed tables of MMEB say against themselves, by model.

    A group's printed mean is compared with the mean of its data sets, where these are printed; the overall mean with
    the mean of the groups it is made of, by kind (10, 10, 12 and 4 data sets) and by split (20 and 16). What rounding
    to one decimal can do is not reported.

    Most of 2504.17432's averages come out as the mean of four means, which weighs four grounding sets like twelve
    retrieval sets; these are named as such.
    """
    found: dict[str, list[str]] = {}
    table = published()["mmeb_means"]
    means = {model: dict(zip(table["columns"], row)) for model, row in table["rows"].items()}
    for model, scores in per_data_set().items():
        own = group_means("mmeb", scores)
        for group in (*KINDS, *SPLITS):
            value, printed = own[group], means[model][group]
            if abs(value - printed) > 2 * ROUNDED + 1e-9:
                found.setdefault(model, []).append(f"{group} is printed as {printed}, its data sets give {value:.1f}")
    for model, row in means.items():
        by = [_weighted(row, parts) for parts in (KINDS, SPLITS)]
        if row["overall"] is None or None in by:
            continue
        said = found.setdefault(model, [])
        if abs(by[0] - by[1]) > 2 * ROUNDED + 1e-9:
            said.append(f"the 36 data sets have {by[0]:.1f} by the kinds, {by[1]:.1f} by IND and OOD")
        if all(abs(value - row["overall"]) > 2 * ROUNDED + 1e-9 for value in by):
            four = sum(row[kind] for kind in KINDS) / 4
            what = (
                "is the mean of the four kinds;" if abs(four - row["overall"]) <= 2 * ROUNDED + 1e-9 else "is printed;"
            )
            said.append(f"overall, {row['overall']}, {what} that of the 36 data sets is {by[0]:.1f}")
    return {model: said for model, said in found.items() if said}


def _weighted(row: dict, parts) -> float | None:
    """The mean of the 36 data sets from those of the groups they fall into."""
    if any(row[part] is None for part in parts):
        return None
    groups = GROUPS["mmeb"]
    return sum(len(groups[part]) * row[part] for part in parts) / len(groups["overall"])
