"""Means over the tasks of a benchmark, and the table that is printed of them."""

from .suites import GROUPS, KINDS


# means
def means_of(benchmark: str, results: dict[str, dict]) -> dict[str, float | None]:
    """The means that are published for a benchmark; for another one those of [`summarize`]."""
    if benchmark in GROUPS:
        return group_means(benchmark, {name: result["score"] for name, result in results.items()})
    return summarize(results)


def summarize(results: dict[str, dict], candidates: int = 100) -> dict[str, float]:
    """Unweighted means of precision@1 by kind, and `"mean"` over tasks with at least `candidates` candidates.

    Tasks with fewer (ten digit classes, compositional pairs) have a high chance level and would inflate the mean.
    """
    kinds: dict[str, list[float]] = {}
    for result in results.values():
        kinds.setdefault(result["kind"], []).append(result.get("score", result["precision@1"]))
    large = [r.get("score", r["precision@1"]) for r in results.values() if r["candidates"] >= candidates]
    means = {kind: sum(values) / len(values) for kind, values in kinds.items()}
    return {**means, "mean": sum(large) / len(large)} if large else means


def notes_of(tasks: dict[str, dict]) -> dict[str, str]:
    """What has to be said of results, each note with the names of the tasks that it is about."""
    found = {}
    for name, own in tasks.items():
        for note in own["notes"] + [f"{own['ties']} ties, counted as wrong"] * bool(own["ties"]):
            found.setdefault(note, []).append(name)
    return {note: "all" if 1 < len(names) == len(tasks) else ", ".join(names) for note, names in found.items()}


def print_table(columns: dict[str, dict[str, dict]], benchmark: str = "world"):
    """Prints the score of each task, one column a model: `{title: results of `evaluate`}`."""
    first = next(iter(columns.values()))
    metrics = sorted({result["metric"] for result in first.values()}, reverse=True)
    wide = max(max(map(len, first)), 17)
    print(f"\n{' / '.join(metrics):<{wide}} {'kind':<15}{'candidates':>10}" + _row(columns))
    for task, result in first.items():
        values = _row([f"{results[task]['score']:.3f}" for results in columns.values()])
        print(f"{task:<{wide}} {result['kind']:<15}{result['candidates']:>10}{values}")
    means = [means_of(benchmark, results) for results in columns.values()]
    for name in means[0]:
        values = _row(["-" if own[name] is None else f"{own[name]:.3f}" for own in means])
        print(f"{f'mean: {name}' if name != 'mean' else 'mean, 100 candidates and more':<{wide + 26}}{values}")


def _row(cells) -> str:
    return "".join(f"{cell:>12}" for cell in cells)


def group_means(benchmark: str, scores: dict[str, float]) -> dict[str, float | None]:
    """A benchmark's published means: unweighted over the tasks of each group.

    Args:
        benchmark (`str`): one of `GROUPS`.
        scores (`dict`): a number for each task.

    Returns:
        `{group: mean}`; None for a group of which a task is missing, so that no partial mean is taken for the whole.
        MMEB's `"overall"` is the mean of its 36 data sets; `"four kinds"` is that of its first four numbers, which
        2504.17432 prints as its average.
    """
    means = {}
    for group, names in GROUPS[benchmark].items():
        known = [scores[name] for name in names if name in scores]
        means[group] = sum(known) / len(known) if len(known) == len(names) else None
    if benchmark.startswith("mmeb"):
        kinds = [means[kind] for kind in KINDS]
        means["four kinds"] = None if any(kind is None for kind in kinds) else sum(kinds) / len(kinds)
    return means
