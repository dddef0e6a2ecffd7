"""Reports: results beside the published numbers, with confidence intervals and paired comparisons."""

import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from .means import group_means, means_of, notes_of
from .pages import Table
from .published import contradictions, per_data_set, published, rows_of
from .runner import read_result
from .statistics import distributions, interval, p_value
from .suites import GROUPS

HUB = {  # benchmark, or the start of a task's name -> its data set on the Hub
    "mmeb": "TIGER-Lab/MMEB-eval",
    "mmeb-v2-image": "TIGER-Lab/MMEB-V2",
    "visdoc": "TIGER-Lab/MMEB-V2",
    "video": "TIGER-Lab/MMEB-V2",
    "flickr30k": "royokong/flickr30k_test",
    "coco": "royokong/coco_test",
    "urban1k": "BeichenZhang/Urban1k",
    "sharegpt4v": "Lin-Chen/ShareGPT4V",
}
TITLES = {
    "mmeb": "MMEB",
    "mmeb-v2-image": "MMEB-V2, images",
    "visdoc": "MMEB-V2, visual documents",
    "video": "MMEB-V2, videos",
    "retrieval": "Image-text retrieval",
    "sugarcrepe": "SugarCrepe",
    "world": "The miniature world",
}


# reading results
@dataclass
class Result:
    """A results file and what its model is called in a report.

    Args:
        name (`str`): of the model.
        path (`Path`): of the file.
        content (`dict`): what [`~unime.eval.runner.run_benchmark`] or [`~unime.eval.rerank.run_rerank`] wrote.
    """

    name: str
    path: Path
    content: dict

    @property
    def benchmark(self) -> str:
        """The benchmark that was measured."""
        return self.content["benchmark"]

    @property
    def tasks(self) -> dict[str, dict]:
        """The metrics of each task."""
        return self.content["tasks"]

    @property
    def title(self) -> str:
        """The name as our own rows and columns have it, which stand out from published ones."""
        return f"**{self.name}**"


def load(paths: list[str], names: list[str] | None = None) -> list[Result]:
    """Reads results files, also those below folders.

    Args:
        paths (`list[str]`): of files, or of folders, of which every `results.json` is taken.
        names (`list[str]`, *optional*): what to call the models, one for each file; by default each has the name of
            its checkpoint, with how it reranks and at which resolution it sees images.

    Raises:
        ValueError: a file is not a results file, there are none, or there is not one name for each.

    Example:

    ```python
    tables = build(load(["outputs/eval"]))
    ```
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            files += sorted(path.rglob("results.json"))
        else:
            files.append(path)

    if not files:
        raise ValueError(f"there is no results.json in {', '.join(paths)}.")
    if names and len(names) != len(files):
        raise ValueError(f"{len(names)} names for {len(files)} results: {', '.join(map(str, files))}.")

    contents = list(map(read_result, files))
    if not names:
        names = _distinct_names(contents)
    return list(map(Result, names, files, contents))


def _default_name(content: dict) -> str:
    """A model's name without its digest, with how it reranks and at which resolution it sees images."""
    settings = content["settings"]
    details = []
    if rerank := settings.get("rerank"):
        details.append(f"{rerank['strategy']}, best {rerank['top']}")
        if rerank["limit"]:
            details.append(f"first {rerank['limit']} queries")

    if settings.get("resolution"):
        details.append(f"resolution {settings['resolution']}")

    # a person knows a model by its name
    name = re.sub(r"@[0-9a-f]{16}", "", content["model"])
    if not details:
        return name
    return f"{name} ({'; '.join(details)})"


def _distinct_names(contents: list[dict]) -> list[str]:
    """A name for each result; of equal ones, with the model's digest, and a number where that does not suffice."""
    defaults = list(map(_default_name, contents))
    default_counts = Counter(defaults)

    names = []
    earlier_counts: Counter = Counter()  # of a model's results on one benchmark
    for content, name in zip(contents, defaults):
        model = content["model"]
        earlier = earlier_counts[model, content["benchmark"]]

        # the same model again on a benchmark has a number
        if default_counts[name] > 1:
            name = model
            if earlier:
                name = f"{model} ({earlier + 1})"

        names.append(name)
        earlier_counts[model, content["benchmark"]] += 1
    return names


# the report
def build(results: list[Result]) -> list[Table]:
    """The tables of a report, benchmark by benchmark.

    Args:
        results (`list[Result]`): of each benchmark, the first is what the others are compared with.

    Returns:
        `list[Table]`: for each benchmark the means, the tasks, what reranking changed, and paired comparisons.
    """
    by_benchmark: dict[str, list[Result]] = {}
    for result in results:
        by_benchmark.setdefault(result.benchmark, []).append(result)

    tables = []
    for benchmark, measured in by_benchmark.items():
        tables.append(_means_table(benchmark, measured))
        if benchmark == "retrieval":
            tables += _recall_tables(measured)
        else:
            tables.append(_task_table(benchmark, measured))
        tables += _reranking_tables(benchmark, measured)

        # whoever compares names the model to compare with first
        baseline = measured[0]
        for other in measured[1:]:
            tables.append(_comparison_table(benchmark, baseline, other))
    return tables


# cells
def _percent(share: float | None) -> str:
    """A share in [0, 1] in percent; empty where there is none."""
    if share is None or np.isnan(share):
        return ""
    return f"{100 * share:.1f}"


def _as_printed(percent: float | None) -> str:
    """A published number, which is in percent already; empty where there is none."""
    return "" if percent is None else f"{percent:.1f}"


def _three_digits(value: float | None) -> str:
    """A metric that is not given in percent; empty where there is none."""
    return "" if value is None else f"{value:.3f}"


def _percent_interval(draws: np.ndarray) -> str:
    """The 95 % interval of a share, from its bootstrap distribution `[draws]`."""
    low, high = interval(draws)
    return f"[{_percent(low)}, {_percent(high)}]"


def _points(difference: float) -> str:
    """A difference of shares, in points of percent."""
    return f"{100 * difference:+.1f}"


def _p_cell(value: float) -> str:
    """A p-value; small ones are all alike, since there are only so many draws."""
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _title(benchmark: str) -> str:
    """What a benchmark is called in headings."""
    return TITLES.get(benchmark, benchmark)


# notes
def _source(table: dict, marked_by: str) -> str:
    """The note that says where published numbers come from; `marked_by` says how to tell them from ours."""
    return f"{marked_by}: as printed ({table['source']})."


def _published_notes(table: dict) -> list[str]:
    """What is known to be wrong or unusual in a published table."""
    notes = []
    for name, text in table.get("notes", {}).items():
        notes.append(f"{text}." if name == "all" else f"{name}: {text}.")
    return notes


def _result_notes(results: list[Result]) -> list[str]:
    """What is unusual in our results."""
    notes = []
    for result in results:
        for note, tasks in notes_of(result.tasks).items():
            notes.append(f"{result.name}, {tasks}: {note}.")
    return notes


# means
def _means_table(benchmark: str, results: list[Result]) -> Table:
    """Models x groups: ours with intervals, then the published ones."""
    groups = _groups(results)
    rows = []
    for result in results:
        rows.append(_means_row(result, groups))
    notes = ["In brackets: 95 % intervals, from a bootstrap over the queries of each task."]

    if benchmark == "mmeb":
        rows += _published_mmeb_rows(groups)
        notes += _published_mmeb_notes()

    # the papers have SugarCrepe and retrieval in one table
    if benchmark in ("sugarcrepe", "retrieval"):
        rows += _published_retrieval_rows(groups)
        notes.append(_source(published()["retrieval"], "Without intervals"))

    return Table(f"{_title(benchmark)}: means, in percent", ["model", *groups], rows, notes)


def _groups(results: list[Result]) -> list[str]:
    """The groups of which any result has a mean, in order."""
    groups: dict[str, None] = {}
    for result in results:
        groups |= dict.fromkeys(result.content["means"])
    return list(groups)


def _means_row(result: Result, groups: list[str]) -> list[str]:
    """A result: the mean of each group with its interval."""
    draws = _draws([result])
    row = [result.title]
    for group in groups:
        cell = _percent(result.content["means"].get(group))
        if cell:
            cell += " " + _percent_interval(draws[f"mean: {group}"][0])
        row.append(cell)
    return row


def _draws(results: list[Result]) -> dict[str, np.ndarray]:
    """Bootstrap distributions of the tasks and means of one benchmark, `[M, draws]` for M results."""
    tasks = results[0].tasks

    def means(draws: dict[str, np.ndarray]) -> dict:
        # where no groups are published, a mean depends on kinds and numbers of candidates, too
        drawn = {}
        for name, values in draws.items():
            drawn[name] = {**tasks[name], "score": values}
        return means_of(results[0].benchmark, drawn)

    return distributions([result.tasks for result in results], means)


def _published_mmeb_rows(groups: list[str]) -> list[list[str]]:
    """Published means of MMEB; models whose numbers contradict each other have a star."""
    suspicious = contradictions()
    rows = []
    for model, means in rows_of(published()["mmeb_means"]).items():
        title = model
        if model in suspicious:
            title += " *"  # which the notes explain
        rows.append([title, *_printed_cells(means, groups)])
    return rows


def _published_mmeb_notes() -> list[str]:
    """Where these come from, and what the stars mean."""
    table = published()["mmeb_means"]
    notes = [_source(table, "Without intervals"), *_published_notes(table)]
    for model, messages in contradictions().items():
        notes.append(f"* {model}: {'; '.join(messages)}.")
    return notes


def _published_retrieval_rows(columns: list[str]) -> list[list[str]]:
    """Rows of the published table of retrieval and SugarCrepe, or of the means that follow from it."""
    rows = []
    for model, scores in rows_of(published()["retrieval"]).items():
        scores |= group_means("retrieval", scores)
        rows.append([model, *_printed_cells(scores, columns)])
    return rows


def _printed_cells(row: dict, columns: list[str]) -> list[str]:
    """Some columns of a published row."""
    return [_as_printed(row.get(column)) for column in columns]


# tasks
def _task_entries(results: list[Result]) -> dict[str, dict]:
    """Every task of any result, in order, with its metrics in the first result that has it."""
    entries: dict[str, dict] = {}
    for result in results:
        for name, entry in result.tasks.items():
            entries.setdefault(name, entry)
    return entries


def _recall_tables(results: list[Result]) -> list[Table]:
    """Models x data sets, as the papers on image-text retrieval have it; one table for each k."""
    names = list(_task_entries(results))
    tables = []
    for k in (1, 5, 10):
        rows = []
        for result in results:
            row = [result.title]
            for name in names:
                row.append(_task_cell(result, name, f"recall@{k}"))
            rows.append(row)
        tables.append(Table(f"Recall@{k} by data set and direction, in percent", ["model", *names], rows))

    # the papers print recall@1 only
    table = published()["retrieval"]
    tables[0].rows += _published_retrieval_rows(names)
    tables[0].notes += [_source(table, "Without bold"), *_published_notes(table)]

    tables[-1].notes += _result_notes(results)
    return tables


def _task_cell(result: Result, name: str, metric: str) -> str:
    """A metric of a task; empty if the result does not have the task."""
    if name not in result.tasks:
        return ""
    return _percent(result.tasks[name][metric])


def _task_table(benchmark: str, results: list[Result]) -> Table:
    """Data sets x models."""
    entries = _task_entries(results)
    columns = ["kind", "split", "candidates"]
    if not any(entry["split"] for entry in entries.values()):  # only MMEB's tasks have one
        columns.remove("split")

    # ours first, then, for MMEB, the published ones
    head = ["data set", *columns]
    for result in results:
        head.append(result.title)
    notes = _result_notes(results)
    printed = {}
    if benchmark == "mmeb":
        printed = per_data_set()
        head += list(printed)
        notes += [_source(published()["mmeb"], "Without bold"), *_published_notes(published()["mmeb"])]

    rows = []
    for name, entry in entries.items():
        row = [name]
        for column in columns:
            row.append(str(entry[column]))
        for result in results:
            row.append(_task_cell(result, name, "score"))
        for scores in printed.values():
            row.append(_as_printed(scores.get(name)))
        rows.append(row)

    # one metric, or two where tasks differ
    title = f"{_title(benchmark)}: {' and '.join(_metrics(results))} of each data set, in percent"
    return Table(title, head, rows, notes)


def _metrics(results: list[Result]) -> list[str]:
    """The metrics that the tasks are measured by."""
    metrics = set()
    for result in results:
        for entry in result.tasks.values():
            metrics.add(entry["metric"])
    return sorted(metrics)


# reranking
_RERANKING_HEAD = (
    "data set",
    "queries",
    "P@1 before",
    "P@1 after",
    "MRR before",
    "MRR after",
    "nDCG@5 before",
    "nDCG@5 after",
    "gained first place",
    "lost it",
    "right answer not among the candidates",
    "written answers that name none",
)


def _reranking_tables(benchmark: str, results: list[Result]) -> list[Table]:
    """What reranking gained and lost, one table for each reranked result, and the published numbers."""
    tables = []
    for result in results:
        if "rerank" not in result.content["settings"]:
            continue

        rows = []
        for name, entry in result.tasks.items():
            rows.append(_reranking_row(name, entry))
        tables.append(Table(f"{_title(benchmark)}: reranked by {result.name}", list(_RERANKING_HEAD), rows))

    # the published numbers stand below ours, if there are any of ours
    if tables:
        tables.append(_published_reranking_table())
    return tables


def _reranking_row(name: str, entry: dict) -> list[str]:
    """A task before and after."""
    before = entry["before"]
    return [
        name,
        str(entry["queries"]),
        _percent(before["precision@1"]),
        _percent(entry["precision@1"]),
        _three_digits(before["mrr"]),
        _three_digits(entry["mrr"]),
        _three_digits(before["ndcg@5"]),
        _three_digits(entry["ndcg@5"]),
        str(entry["gained"]),
        str(entry["lost"]),
        str(entry["not among the candidates"]),
        str(entry.get("unparsed", "-")),  # of the strategy "generate" only
    ]


def _published_reranking_table() -> Table:
    """The published numbers."""
    table = published()["reranking"]
    rows = []
    for model, values in table["rows"].items():
        rows.append([model, *map(_as_printed, values)])
    notes = [f"As printed ({table['source']}).", *_published_notes(table)]
    return Table("Reranking as published, in percent", ["model", *table["columns"]], rows, notes)


# comparisons
def _comparison_table(benchmark: str, first: Result, second: Result) -> Table:
    """How much better the second is than the first, over the tasks that both ran on the same queries."""
    title = f"{_title(benchmark)}: {second.name} minus {first.name}, in points"
    shared = _shared_tasks(first, second)
    if not shared or first.content["data"] != second.content["data"]:
        return Table(title, ["data set"], [], ["Not compared: the two were measured on other data or queries."])

    # with each difference an interval and a p-value from draws of the same queries
    first = _only(first, shared)
    second = _only(second, shared)
    differences = _differences(first, second)
    rows = []
    for name, (first_draws, second_draws) in _draws([first, second]).items():
        draws = second_draws - first_draws  # [draws]
        low, high = interval(draws)
        rows.append([name, _points(differences[name]), f"[{_points(low)}, {_points(high)}]", _p_cell(p_value(draws))])

    notes = [
        "Paired bootstrap: both models on the same drawn queries; p is two-sided and not corrected for many tests."
    ]
    return Table(title, ["data set", "difference", "95 % interval", "p"], rows, notes)


def _shared_tasks(first: Result, second: Result) -> list[str]:
    """The tasks that both results have, with as many queries."""
    names = []
    for name, entry in first.tasks.items():
        if name in second.tasks and second.tasks[name]["queries"] == entry["queries"]:
            names.append(name)
    return names


def _only(result: Result, names: list[str]) -> Result:
    """A result without its other tasks."""
    tasks = {name: result.tasks[name] for name in names}
    return replace(result, content={**result.content, "tasks": tasks})


def _differences(first: Result, second: Result) -> dict[str, float]:
    """The second's scores and means minus the first's, under the names that bootstrap distributions have."""
    differences = {}
    for name, entry in second.tasks.items():
        differences[name] = entry["score"] - first.tasks[name]["score"]

    # a mean may be over fewer tasks than there are, or over none
    first_means = means_of(first.benchmark, first.tasks)
    for group, mean in means_of(second.benchmark, second.tasks).items():
        if mean is not None:
            differences[f"mean: {group}"] = mean - first_means[group]
    return differences


# the Hub
def to_eval_results(result: Result) -> list[dict]:
    """The entries of `.eval_results/<benchmark>.yaml` of a model's repository.

    Args:
        result ([`Result`]).

    Returns:
        `list[dict]`: one for each task, and one for each published mean of benchmarks that are one data set on the
        Hub. There are none for a benchmark that is not on the Hub, and none if only a part of the queries was ranked.
    """
    if result.content["settings"].get("rerank", {}).get("limit"):
        return []

    scores = {}
    for name, entry in result.tasks.items():
        scores[name] = (entry["score"], entry["metric"])
    if result.benchmark in GROUPS:
        for group, value in result.content["means"].items():
            if value is not None:
                scores[f"mean: {group}"] = (value, "mean")

    # image-text retrieval is several data sets, which its tasks name
    entries = []
    for name, (value, metric) in scores.items():
        data_set = HUB.get(result.benchmark) or HUB.get(name.rsplit("_", 1)[0])
        if data_set:
            note = f"{metric}, in percent; strict ties; data {result.content['data']}"
            entries.append(EvalResultEntry(data_set, name, round(100 * value, 2), notes=note))
    return eval_result_entries_to_yaml(entries)
