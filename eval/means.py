"""Means over the tasks of a benchmark, and the table that is printed of them."""

from collections.abc import Iterable, Sequence

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
        return group_means(benchmark, {name: result["score"] for name, result in results.items()})

    # data sets of one's own have any number of candidates, and are all meant
    if benchmark == "pairs":
        return {"overall": sum(result["score"] for result in results.values()) / len(results)}
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
        means[group] = _complete_mean(scores, names)

    # the papers' other average is a mean of means
    if benchmark.startswith("mmeb"):
        means["four kinds"] = _complete_mean(means, KINDS)
    return means


def _complete_mean(scores: dict, names: Sequence[str]) -> float | None:
    """The mean of numbers (or of arrays, element by element); None if one of them is missing."""
    values = []
    for name in names:
        if scores.get(name) is None:
            return None
        values.append(scores[name])
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

    # few candidates make a task easy, so that such tasks have no place in the overall mean
    means = {}
    for kind, scores in by_kind.items():
        means[kind] = sum(scores) / len(scores)

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

    # what is true of all of several tasks does not list them
    texts = {}
    for note, names in names_by_note.items():
        texts[note] = ", ".join(names)
        if 1 < len(names) == len(tasks):
            texts[note] = "all"
    return texts


def print_table(columns: dict[str, dict[str, dict]], benchmark: str = "world"):
    """Prints the score of each task, one column a model, and the means below.

    Args:
        columns: `{title: {task: metrics}}`, the metrics as [`~unime.eval.runner.evaluate`] returns them or a results
            file has them, of the same tasks for all models.
        benchmark (`str`, defaults to `"world"`): whose means are printed.
    """
    tasks = next(iter(columns.values()))
    metrics = {result["metric"] for result in tasks.values()}
    width = max(17, *map(len, tasks))

    # one line a task
    heading = " / ".join(sorted(metrics, reverse=True))
    print(f"\n{heading:<{width}} {'kind':<15}{'candidates':>10}{_cells(columns)}")
    for task, result in tasks.items():
        scores = [results[task]["score"] for results in columns.values()]
        print(f"{task:<{width}} {result['kind']:<15}{result['candidates']:>10}{_cells(map(_three_digits, scores))}")

    # one line a mean
    means = [means_of(benchmark, results) for results in columns.values()]
    for group in means[0]:
        title = "mean, 100 candidates and more"
        if group != "mean":
            title = f"mean: {group}"
        values = [model_means[group] for model_means in means]
        print(f"{title:<{width + 26}}{_cells(map(_three_digits, values))}")


METRICS = ("precision@1", "recall@5", "recall@10", "mrr", "ndcg@10", "map")


def print_metrics(tasks: dict[str, dict]):
    """Prints several metrics of each task, one column a metric, and their means over the tasks.

    Args:
        tasks (`dict[str, dict]`): those of a results file.
    """
    width = max(17, *map(len, tasks))
    print(f"\n{'':<{width}} {'queries':>8}{'candidates':>11}{_cells(METRICS)}")
    for name, result in tasks.items():
        values = [_three_digits(result[metric]) for metric in METRICS]
        print(f"{name:<{width}} {result['queries']:>8}{result['candidates']:>11}{_cells(values)}")

    # every task counts alike, whatever its size
    if len(tasks) > 1:
        means = []
        for metric in METRICS:
            means.append(_three_digits(sum(result[metric] for result in tasks.values()) / len(tasks)))
        print(f"{'mean':<{width + 20}}{_cells(means)}")


def _three_digits(value: float | None) -> str:
    """A number as the table has it."""
    return "-" if value is None else f"{value:.3f}"


def _cells(texts: Iterable[str]) -> str:
    """Texts in columns, on their right sides."""
    return "".join(f"{text:>{COLUMN}}" for text in texts)
