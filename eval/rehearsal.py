"""The rehearsal of a measurement: its tasks, and how the embedder or the reranker reads their items."""

from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path

from ..data.schema import Item
from ..files.writing import read_json
from ..jobs.embedding import Embedder
from ..jobs.model_rehearsal import WordedItem, rehearse_embedder, rehearse_reranker
from ..jobs.rehearsal import Rehearsal
from ..jobs.reranking import Reranker
from .rerank import queries_of
from .tasks import Task


def rehearse(benchmark: str, tasks: list[Task], embedder: Embedder, given: dict[str, str]) -> Rehearsal:
    """Rehearses a benchmark.

    Args:
        benchmark (`str`): its name.
        tasks (`list[Task]`): as they were read.
        embedder ([`~unime.jobs.embedding.Embedder`]): as the command made it; it is not loaded.
        given (`dict[str, str]`): where each setting was given.
    """
    rehearsal = Rehearsal(f"unime eval {benchmark}", {"Tasks": _tasks(tasks)})
    rehearsal.warnings += [*_too_few(tasks), *_notes(tasks)]

    roles = {
        "query": _in_turns(tasks, "queries"),
        "document": _in_turns(tasks, "corpus"),
    }

    # one setting holds all options of `encode`, so that each was given where that was
    sources = dict.fromkeys(embedder.options, given.get("options", "default"))
    if "preset" in given:
        sources["preset"] = given["preset"]
    rehearsal.include(rehearse_embedder(embedder, roles, sources))
    return rehearsal


def rehearse_rerank(path: Path, tasks: list[Task], reranker: Reranker, candidates: int, limit, given) -> Rehearsal:
    """Rehearses the reranking of a saved result.

    Args:
        path (`Path`): the embedder's `results.json`.
        tasks (`list[Task]`): as they were read.
        reranker ([`~unime.jobs.reranking.Reranker`]): as the command made it; it is not loaded.
        candidates (`int`): how many of each query it sees.
        limit (`int`, *optional*): queries of each task.
        given (`dict[str, str]`): where each setting was given.
    """
    queries = queries_of(path, tasks, candidates, limit)
    saved = read_json(path)
    facts = {"Result": {"benchmark": saved["benchmark"], "queries": len(queries)}, "Tasks": _tasks(tasks)}
    rehearsal = Rehearsal("unime eval rerank", facts)

    fewest = min((len(query.candidates) for query in queries), default=0)
    if fewest < candidates:
        rehearsal.warnings.append(f"a query has {fewest} candidates, candidates is {candidates}.")

    # a list is one question, and pointwise each candidate is one
    count = len(queries)
    if reranker.strategy != "listwise":
        count *= candidates

    # how the reranker is asked, and what that costs
    questions = list(_questions(queries, reranker.strategy))
    sources = dict.fromkeys(reranker.options, given.get("rank_options", "default"))
    if "reranker_preset" in given:
        sources["preset"] = given["reranker_preset"]
    rehearsal.include(rehearse_reranker(reranker, questions, sources, count))
    return rehearsal


def _tasks(tasks: list[Task]) -> list[dict]:
    """Queries, candidates and metric of each task."""
    rows = []
    for task in tasks:
        counts = [len(task.options(number)) for number in range(len(task.queries))]
        rows.append(
            {
                "task": task.name,
                "kind": task.kind,
                "queries": len(task.queries),
                "corpus": len(task.corpus),
                "least candidates": min(counts, default=0),
                "most candidates": max(counts, default=0),
                "metric": task.metric,
            }
        )
    return rows


def _too_few(tasks: list[Task]) -> list[str]:
    """Tasks with a query that has nothing to choose from."""
    messages = []
    for task in tasks:
        for number in range(len(task.queries)):
            if len(task.options(number)) <= len(task.relevant[number]):
                messages.append(f"{task.name}, query {number}: there is no wrong candidate.")
                break  # the first such query stands for its task
    return messages


def _notes(tasks: list[Task]) -> list[str]:
    """How the data differs from the published data, each difference with the tasks that have it."""
    names = {}
    for task in tasks:
        for note in task.notes:
            names.setdefault(note, []).append(task.name)

    return [f"{note}: {', '.join(tasks_with_it)}" for note, tasks_with_it in names.items()]


def _in_turns(tasks: list[Task], side: str) -> list[WordedItem]:
    """The distinct items of all tasks, in turns: the first of each, then the second of each, ...

    Args:
        tasks (`list[Task]`): as they were read.
        side (`str`): `"queries"` or `"corpus"`.
    """
    groups = []
    for task in tasks:
        groups.append([WordedItem(item, task.benchmark, task.name) for item in getattr(task, side)])

    # a rehearsal reads the first ones only, and some of every task should be among them
    turns = chain.from_iterable(zip_longest(*groups))
    return list(dict.fromkeys(item for item in turns if item is not None))


def _questions(queries: list, strategy: str) -> Iterator[tuple[str, Item, list[Item], str, str | None]]:
    """What the reranker is asked about the first query of each task."""
    task_names = set()
    for query in queries:
        if query.task.name in task_names:
            continue
        task_names.add(query.task.name)

        item = query.task.queries[query.number]
        candidates = [query.task.corpus[index] for index in query.candidates]

        # pointwise questions about other candidates differ in the candidate alone
        if strategy == "listwise":
            yield "listwise", item, candidates, "listwise", query.task.benchmark
        else:
            yield "pointwise", item, candidates[:1], "pointwise", query.task.benchmark
