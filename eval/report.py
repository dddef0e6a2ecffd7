"""Reports: results beside the published numbers, with confidence intervals and paired comparisons."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from .means import group_means, means_of, notes_of
from .pages import Table
from .published import contradictions, per_data_set, published
from .runner import FORMAT
from .statistics import distributions, interval, p_value
from .suites import GROUPS

HUB = {  # benchmark, or the first part of a task's name -> its data set on the Hub
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


@dataclass
class Result:
    """A results file and what its model is called here."""

    name: str
    path: Path
    content: dict

    @property
    def tasks(self) -> dict:
        return self.content["tasks"]


def load(paths: list[str], names: list[str] | None = None) -> list[Result]:
    """Results files, also those below folders.

    Raises:
        ValueError: a file is none, or there are none, or names do not go with them.
    """
    found = []
    for path in map(Path, paths):
        found += sorted(path.rglob("results.json")) if path.is_dir() else [path]
    if not found:
        raise ValueError(f"there is no results.json in {', '.join(paths)}.")
    if names and len(names) != len(found):
        raise ValueError(f"{len(names)} names for {len(found)} results: {', '.join(map(str, found))}.")
    results = []
    for number, path in enumerate(found):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"{path} is no results file of format {FORMAT}.")
        results.append(Result(names[number] if names else _name(content), path, content))
    doubled = {result.name for result in results if [r.name for r in results].count(result.name) > 1}
    for number, result in enumerate(results):
        if result.name in doubled and not names:
            same = [
                r
                for r in results[:number]
                if r.content["model"] == result.content["model"]
                and r.content["benchmark"] == result.content["benchmark"]
            ]
            result.name = result.content["model"] + f" ({len(same) + 1})" * bool(same)
    return results


def _title(benchmark: str) -> str:
    return TITLES.get(benchmark, benchmark)


def _name(content: dict) -> str:
    """A model's name without its digest, with how it reranks and how its images are seen."""
    name = re.sub(r"@[0-9a-f]{16}", "", content["model"])
    own, rerank = content["settings"], content["settings"].get("rerank")
    said = [f"{rerank['strategy']}, best {rerank['top']}"] if rerank else []
    said += [f"first {rerank['limit']} queries"] if rerank and rerank["limit"] else []
    said += [f"resolution {own['resolution']}"] if own.get("resolution") else []
    return name + f" ({'; '.join(said)})" * bool(said)


def build(results: list[Result]) -> list[Table]:
    """The tables of a report, benchmark by benchmark."""
    tables = []
    for benchmark in dict.fromkeys(result.content["benchmark"] for result in results):
        own = [result for result in results if result.content["benchmark"] == benchmark]
        tables += _means(benchmark, own) + _tasks(benchmark, own) + _reranked(benchmark, own)
        tables += [table for other in own[1:] for table in _paired(benchmark, own[0], other)]
    return tables


def _percent(value: float | None) -> str:
    return "" if value is None or np.isnan(value) else f"{100 * value:.1f}"


def _draws(benchmark: str, results: list[Result]) -> dict[str, np.ndarray]:
    scores = [result.tasks for result in results]

    def means(values):
        return means_of(benchmark, {name: {**scores[0][name], "score": value} for name, value in values.items()})

    return distributions(scores, means)


def _means(benchmark: str, results: list[Result]) -> list[Table]:
    """Models x groups, ours with intervals, then the published."""
    groups = list(dict.fromkeys(group for result in results for group in result.content["means"]))
    rows = []
    for result in results:
        draws = _draws(benchmark, [result])
        cells = [_percent(result.content["means"].get(group)) for group in groups]
        for i, group in enumerate(groups):
            if cells[i]:
                low, high = interval(draws[f"mean: {group}"][0])
                cells[i] += f" [{_percent(low)}, {_percent(high)}]"
        rows.append([f"**{result.name}**", *cells])
    notes = ["In brackets: 95 % intervals, from a bootstrap over the queries of each task."]
    if benchmark == "mmeb":
        said = contradictions()
        table = published()["mmeb_means"]
        for model, values in table["rows"].items():
            own = dict(zip(table["columns"], values))
            rows.append([model + " *" * (model in said), *(_cell(own.get(group)) for group in groups)])
        notes += [f"Without intervals: as printed ({table['source']}).", *_notes(table)]
        notes += [f"* {model}: {'; '.join(what)}." for model, what in said.items()]
    if benchmark in ("sugarcrepe", "retrieval"):
        rows += _published_rows(groups)
        notes += [f"Without intervals: as printed ({published()['retrieval']['source']})."]
    return [Table(f"{_title(benchmark)}: means, in percent", ["model", *groups], rows, notes)]


def _cell(value) -> str:
    return "" if value is None else f"{value:.1f}"


def _three(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _notes(table: dict) -> list[str]:
    return [f"{name}: {text}." if name != "all" else f"{text}." for name, text in table.get("notes", {}).items()]


def _published_rows(columns: list[str]) -> list[list[str]]:
    """Rows of the published table of retrieval and SugarCrepe, or of the means that follow from it."""
    table = published()["retrieval"]
    rows = [(model, dict(zip(table["columns"], values))) for model, values in table["rows"].items()]
    rows = [(model, own | group_means("retrieval", own)) for model, own in rows]
    return [[model, *(_cell(own.get(column)) for column in columns)] for model, own in rows]


def _tasks(benchmark: str, results: list[Result]) -> list[Table]:
    """Data sets x models; for image-text retrieval models x data sets, as the papers have it."""
    names = list(dict.fromkeys(name for result in results for name in result.tasks))
    notes = [f"{result.name}, {told}: {note}." for result in results for note, told in notes_of(result.tasks).items()]
    if benchmark == "retrieval":
        tables = []
        for k in (1, 5, 10):
            rows = [
                [f"**{r.name}**", *(_percent(r.tasks[n][f"recall@{k}"]) if n in r.tasks else "" for n in names)]
                for r in results
            ]
            said = [f"Without bold: as printed ({published()['retrieval']['source']})."]
            own = rows + _published_rows(names) if k == 1 else rows
            extra = said + _notes(published()["retrieval"]) if k == 1 else []
            tables.append(Table(f"Recall@{k} by data set and direction, in percent", ["model", *names], own, extra))
        tables[-1].notes += notes
        return tables
    others = per_data_set() if benchmark == "mmeb" else {}
    rows = []
    for name in names:
        known = next(result.tasks[name] for result in results if name in result.tasks)
        cells = [_percent(result.tasks[name]["score"]) if name in result.tasks else "" for result in results]
        cells += [_cell(own.get(name)) for own in others.values()]
        rows.append([name, known["kind"], known["split"], str(known["candidates"]), *cells])
    head = ["data set", "kind", "split", "candidates", *(f"**{result.name}**" for result in results), *others]
    if not any(row[2] for row in rows):
        rows, head = [[*row[:2], *row[3:]] for row in rows], [*head[:2], *head[3:]]
    metrics = sorted({own["metric"] for result in results for own in result.tasks.values()})
    if benchmark == "mmeb":
        notes += [f"Without bold: as printed ({published()['mmeb']['source']}).", *_notes(published()["mmeb"])]
    return [Table(f"{_title(benchmark)}: {' and '.join(metrics)} of each data set, in percent", head, rows, notes)]


def _reranked(benchmark: str, results: list[Result]) -> list[Table]:
    """What reranking gained and lost."""
    tables = []
    for result in results:
        if "rerank" not in result.content["settings"]:
            continue
        rows = [
            [
                name,
                str(own["queries"]),
                _percent(own["before"]["precision@1"]),
                _percent(own["precision@1"]),
                f"{own['before']['mrr']:.3f}",
                f"{own['mrr']:.3f}",
                _three(own["before"]["ndcg@5"]),
                f"{own['ndcg@5']:.3f}",
                str(own["gained"]),
                str(own["lost"]),
                str(own["not among the candidates"]),
            ]
            for name, own in result.tasks.items()
        ]
        head = [
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
        ]
        tables.append(Table(f"{_title(benchmark)}: reranked by {result.name}", head, rows))
    if tables:
        table = published()["reranking"]
        rows = [[model, *map(_cell, values)] for model, values in table["rows"].items()]
        notes = [f"As printed ({table['source']}).", *_notes(table)]
        tables.append(Table("Reranking as published, in percent", ["model", *table["columns"]], rows, notes))
    return tables


def _paired(benchmark: str, first: Result, second: Result) -> list[Table]:
    """How much better the second is than the first, over the tasks that both ran on the same queries."""
    title = f"{_title(benchmark)}: {second.name} minus {first.name}, in points"
    shared = [
        name
        for name in first.tasks
        if name in second.tasks and first.tasks[name]["queries"] == second.tasks[name]["queries"]
    ]
    if not shared or first.content["data"] != second.content["data"]:
        return [Table(title, ["data set"], [], ["Not compared: the two were measured on other data or queries."])]
    own = [Result(r.name, r.path, {**r.content, "tasks": {n: r.tasks[n] for n in shared}}) for r in (first, second)]
    rows = []
    for name, (a, b) in _draws(benchmark, own).items():
        difference = b - a
        low, high = interval(difference)
        if name in shared:
            exact = second.tasks[name]["score"] - first.tasks[name]["score"]
        else:
            group = name.removeprefix("mean: ")
            exact = np.subtract(*(means_of(benchmark, r.tasks)[group] for r in reversed(own)))
        p = p_value(difference)
        shown = f"{p:.3f}" if p >= 0.001 else "< 0.001"
        rows.append([name, f"{100 * exact:+.1f}", f"[{100 * low:+.1f}, {100 * high:+.1f}]", shown])
    notes = [
        "Paired bootstrap: both models on the same drawn queries; p is two-sided and not corrected for many tests."
    ]
    return [Table(title, ["data set", "difference", "95 % interval", "p"], rows, notes)]


def to_eval_results(result: Result) -> list[dict]:
    """The entries of `.eval_results/<benchmark>.yaml` of a model's repository.

    None for benchmarks that are not on the Hub, and for a part of the queries.
    """
    benchmark, entries = result.content["benchmark"], []
    if result.content["settings"].get("rerank", {}).get("limit"):
        return entries
    scores = {name: (own["score"], own["metric"]) for name, own in result.tasks.items()}
    if benchmark in GROUPS:
        scores |= {f"mean: {g}": (v, "mean") for g, v in result.content["means"].items() if v is not None}
    for name, (value, metric) in scores.items():
        data_set = HUB.get(benchmark) or HUB.get(name.rsplit("_", 1)[0])
        if data_set:
            note = f"{metric}, in percent; strict ties; data {result.content['data']}"
            entries.append(EvalResultEntry(data_set, name, round(100 * value, 2), notes=note))
    return eval_result_entries_to_yaml(entries)
