"""Means over the tasks of a benchmark, and the table that is printed of them."""

from .suites import GROUPS, KINDS

COLUMN = 12  # characters


def means_of(benchmark: str, results: dict[str, dict]) -> dict[str, float | None]:
    """The means that are published for a benchmark; for another one those of [`summarize`].

    Args:
        benchmark (`str`): its name.
        results (`dict[str, dict]`): the `tasks` of a results file.

    Returns:
        `{group: mean}`; see [`group_means`] for what is None.
    """
    if benchmark in GROUPS:
        scores = {name: result["score"] for name, result in results.items()}
        return group_means(benchmark, scores)
    return summarize(results)


def group_means(benchmark: str, scores: dict[str, float]) -> dict[str, float | None]:
    """A benchmark's published means: unweighted over the tasks of each group.

    Args:
        benchmark (`str`): one of `GROUPS`.
        scores (`dict`): a number for each task.

    Returns:
        `{group: mean}`; None for a group of which a task is missing, so that no partial mean is taken for the whole.
        MMEB's `"overall"` is the mean of its 36 data sets; `"four kinds"` is that of its first four numbers, which
        2504.17432 prints as its average.

    Example:

    ```python
    group_means("sugarcrepe", {"swap_att": 0.5, "swap_obj": 0.7})  # {"Replace": None, "Swap": 0.6, "Add": None}
    ```
    """
    means = {}
    for group, names in GROUPS[benchmark].items():
        means[group] = _complete_mean([scores.get(name) for name in names])
    if benchmark.startswith("mmeb"):
        means["four kinds"] = _complete_mean([means[kind] for kind in KINDS])
    return means


def _complete_mean(values: list) -> float | None:
    """The mean of numbers (or of arrays, element by element), of which none may be missing."""
    if any(value is None for value in values):
        return None
    return sum(values) / len(values)


def summarize(results: dict[str, dict], candidates: int = 100) -> dict[str, float]:
    """Unweighted means of the scores by kind, and `"mean"` over tasks with at least `candidates` candidates.

    Tasks with fewer (ten digit classes, compositional pairs) have a high chance level and would inflate the mean.

    Args:
        results (`dict[str, dict]`): the `tasks` of a results file.
        candidates (`int`, defaults to 100): the least that a task must have to count for `"mean"`.

    Returns:
        `{kind: mean}`, and `"mean"` where any task is large enough.
    """
    by_kind: dict[str, list[float]] = {}
    large = []
    for result in results.values():
        score = result.get("score", result["precision@1"])
        by_kind.setdefault(result["kind"], []).append(score)
        if result["candidates"] >= candidates:
            large.append(score)

    means = {kind: sum(scores) / len(scores) for kind, scores in by_kind.items()}
    if large:
        means["mean"] = sum(large) / len(large)
    return means


def notes_of(tasks: dict[str, dict]) -> dict[str, str]:
    """What a reader of results has to know of them.

    Args:
        tasks (`dict[str, dict]`): those of a results file.

    Returns:
        `{note: names}`: each note with the tasks that it is about, or `"all"`.
    """
    names_by_note: dict[str, list[str]] = {}
    for name, result in tasks.items():
        notes = list(result["notes"])
        if result["ties"]:
            notes.append(f"{result['ties']} ties, counted as wrong")
        for note in notes:
            names_by_note.setdefault(note, []).append(name)

    texts = {}
    for note, names in names_by_note.items():
        concerns_all = 1 < len(names) == len(tasks)
        texts[note] = "all" if concerns_all else ", ".join(names)
    return texts


def print_table(columns: dict[str, dict[str, dict]], benchmark: str = "world"):
    """Prints the score of each task, one column a model, and the means below.

    Args:
        columns: `{title: the results of [`evaluate`] or the tasks of a results file}`, with the same tasks.
        benchmark (`str`, defaults to `"world"`): whose means are printed.
    """
    tasks = next(iter(columns.values()))
    metrics = sorted({result["metric"] for result in tasks.values()}, reverse=True)
    width = max(17, *map(len, tasks))

    print(f"\n{' / '.join(metrics):<{width}} {'kind':<15}{'candidates':>10}" + _row(columns))
    for task, result in tasks.items():
        scores = [f"{results[task]['score']:.3f}" for results in columns.values()]
        print(f"{task:<{width}} {result['kind']:<15}{result['candidates']:>10}" + _row(scores))

    means = [means_of(benchmark, results) for results in columns.values()]
    for group in means[0]:
        title = f"mean: {group}" if group != "mean" else "mean, 100 candidates and more"
        values = [_three_digits(model_means[group]) for model_means in means]
        print(f"{title:<{width + 26}}" + _row(values))


def _three_digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _row(cells) -> str:
    return "".join(f"{cell:>{COLUMN}}" for cell in cells)
