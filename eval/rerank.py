"""Reranking: the best candidates of an embedder's saved result in the order of a reranker."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

from ..files.addresses import to_path
from ..files.names import model_name
from ..files.writing import read_arrays, write_json
from ..jobs.engines import RayEngine
from ..jobs.metrics import mean_reciprocal_rank, places, recall_at, tied
from ..jobs.reranking import Reranker
from ..jobs.shards import fingerprint, processes, read_errors, read_job, run_job
from .means import means_of
from .runner import (
    DEPTH,
    FORMAT,
    RANKINGS,
    QueryScore,
    benchmarks_of,
    data_fingerprint,
    is_whole,
    metrics_of,
    read_result,
)
from .tasks import Task

ABSENT = 10**9  # the rank of what is not among the candidates


# the embedder's result
def saved_result(path) -> Path:
    """An embedder's results file: the path itself, or the only one below a folder.

    Args:
        path (`str` or `Path`): a `results.json` with `top.safetensors` beside it, or a folder.

    Raises:
        ValueError: there is no such file, or there are several; the message lists them.
    """
    path = to_path(path)
    if not path.is_dir():
        if not _top_file(path).exists():
            raise ValueError(_not_one_result(path, f"no {_top_file(path)}"))
        return path

    # results of rerankers lie below the embedder's, without a file of candidates
    results = []
    for result in sorted(path.rglob("results.json")):
        if _top_file(result).exists():
            results.append(result)
    if len(results) != 1:
        raise ValueError(_not_one_result(path, ", ".join(map(str, results)) or "none"))
    return results[0]


def _top_file(path: Path) -> Path:
    """The best candidates that belong to a results file; only an embedder's has them."""
    return path.with_name(RANKINGS)


def _not_one_result(path: Path, present: str) -> str:
    """The message for a path that does not lead to one result."""
    return f"{path} must lead to one embedder's results.json; there are: {present}."


# the job
@dataclass(frozen=True)
class _Query:
    """A row of the job: a query and its best candidates.

    Args:
        task ([`~unime.eval.tasks.Task`]), number (`int`): which query of which task.
        candidates (`list[int]`): as indices into the task's corpus, in the embedder's order.
        similarities (`list[float]`): theirs, as the embedder has them.
    """

    task: Task
    number: int
    candidates: list[int]
    similarities: list[float]

    @property
    def key(self) -> str:
        """The text that identifies the row."""
        return f"{self.task.name} {self.number}"


def queries_of(path: Path, tasks: list[Task], top: int, limit: int | None) -> list[_Query]:
    """The queries of all tasks, one task after the other, with what the embedder's result kept of their candidates.

    Args:
        path (`Path`): the embedder's `results.json`.
        tasks (`list[Task]`): as they were read.
        top (`int`): how many candidates of each query.
        limit (`int`, *optional*): queries of each task.
    """
    arrays, _ = read_arrays(_top_file(path))
    queries = []
    for task in tasks:
        if f"{task.name}/top" not in arrays or f"{task.name}/similarity" not in arrays:
            raise ValueError(f"{_top_file(path)} holds no candidates of {task.name}; run the benchmark again.")

        best = arrays[f"{task.name}/top"][:limit, :top]  # [Q, top], -1 where there are fewer
        similarity = arrays[f"{task.name}/similarity"][:limit, :top]  # [Q, top]

        for number, (indices, values) in enumerate(zip(best.tolist(), similarity.tolist())):
            candidates = [index for index in indices if index >= 0]
            queries.append(_Query(task, number, candidates, values[: len(candidates)]))
    return queries


def _score_slice(queries: Sequence[_Query], reranker: Reranker, top: int) -> dict[str, np.ndarray]:
    """The work of the job: a slice of the queries in, the scores of their candidates out."""
    scores = np.zeros((len(queries), top), np.float64)  # a query with fewer candidates keeps zeros at the end
    unparsed = np.zeros(len(queries), bool)
    for row, query in enumerate(queries):
        item = query.task.queries[query.number].as_input()
        candidates = [query.task.corpus[index].as_input() for index in query.candidates]
        if reranker.strategy == "generate":
            picked = reranker.pick(item, candidates, query.task.benchmark)
            scores[row, : len(candidates)] = _places(picked, len(candidates))
            unparsed[row] = picked is None
            continue
        scores[row, : len(candidates)] = reranker.scores(item, candidates, query.similarities, query.task.benchmark)

    if reranker.strategy == "generate":
        return {"scores": scores, "unparsed": unparsed}
    return {"scores": scores}


def _places(picked: int | None, count: int) -> list[int]:
    """Scores that put the picked candidate first and leave the others in their order; all of them if there is none."""
    places = list(range(count, 0, -1))
    if picked is not None:
        places[picked] = count + 1
    return places


def _loaded(reranker: Reranker) -> Reranker:
    """The reranker with its model in memory, so that a broken checkpoint is not taken for the fault of a query."""
    reranker.load()
    return reranker


def run_rerank(
    results,
    tasks: list[Task],
    reranker: Reranker,
    top: int = 10,
    image_root=None,
    limit: int | None = None,
    shard_size: int = 16,
    engine: RayEngine | None = None,
) -> Path:
    """Reranks the best candidates of every query, going on where it was interrupted, over the processes of a launch.

    Args:
        results: `results.json` of a benchmark with `top.safetensors` beside it, or a folder with only one below it.
        tasks (`list[Task]`): the tasks of that result.
        reranker ([`~unime.jobs.reranking.Reranker`]).
        top (`int`, defaults to 10): how many candidates (the text of 2510.13515 has ten, its table 3 five).
        image_root (*optional*): paths below it identify images.
        limit (`int`, *optional*): only that many queries of each task.
        shard_size (`int`, defaults to 16): queries of one shard.
        engine ([`~unime.jobs.engines.RayEngine`], *optional*): workers that score, in place of this process.

    Returns:
        path of a results file like the embedder's, with the metrics before, and how often the right answer was gained
        and lost at the first place, and was not among the candidates at all; with the strategy `"generate"` also how
        many written answers named no candidate, whose order then stays.

    Raises:
        ValueError: the tasks are not those of the result, or a query failed; the message says which.

    Example:

    ```python
    path = run_rerank("outputs/eval/model", tasks, Reranker("owner/reranker", "listwise"), top=5, image_root=root)
    ```
    """
    path = saved_result(results)
    before = read_result(path)
    data = data_fingerprint(tasks, image_root)
    if before["data"] != data:
        raise ValueError(f"{path} was made from other data ({before['data']}) than this ({data}).")
    _check_depth(top, tasks)

    # results of another reranker, other settings or other data have another folder
    settings = {**reranker.settings(), "top": top, "limit": limit, "embedder": before["model"], "data": data}
    key = fingerprint([json.dumps(settings, sort_keys=True, default=str), benchmarks_of(tasks)])[:10]
    folder = path.parent / f"{model_name(reranker.source)}-{reranker.strategy}-top{top}-{key}"
    if is_whole(folder / "results.json"):
        return folder / "results.json"

    queries = queries_of(path, tasks, top, limit)
    _score_queries(folder / "scores", queries, reranker, settings, shard_size, engine)

    state = processes()
    if state.is_main_process:
        scored = read_job(folder / "scores")
        task_results = _task_results(tasks, queries, scored["scores"], before["tasks"])  # of [all queries, top]
        if "unparsed" in scored:
            _count_unparsed(task_results, queries, scored["unparsed"])
        content = {
            "format": FORMAT,
            "benchmark": before["benchmark"],
            "model": f"{before['model']} + {settings['reranker']}",
            "settings": {**before["settings"], "rerank": settings},
            "source": before["source"],
            "data": data,
            "means": means_of(before["benchmark"], task_results),
            "tasks": task_results,
        }
        write_json(folder / "results.json", content)

    # no process returns the path before the file is there
    state.wait_for_everyone()
    return folder / "results.json"


def _check_depth(top: int, tasks: list[Task]):
    """Raises `ValueError` unless the metric can be computed from so many candidates, and so many were kept."""
    least = 1
    for task in tasks:
        if task.metric == "ndcg@5":
            least = 5

    if not least <= top <= DEPTH:
        raise ValueError(f"{top} candidates cannot be reranked here: at least {least}, and {DEPTH} are kept.")


def _score_queries(
    job: Path,
    queries: list[_Query],
    reranker: Reranker,
    settings: dict,
    shard_size: int,
    engine: RayEngine | None = None,
):
    """Does the job, on every process of the launch or on an engine; a query that fails is an error."""
    state = processes()
    run_job(
        job,
        queries,
        partial(_score_slice, top=settings["top"]),
        settings,
        keys=lambda query: query.key,
        shard_size=shard_size,
        rank=state.process_index,
        world_size=state.num_processes,
        description="Reranking",
        prepare=partial(_loaded, reranker),
        retry_failed=True,
        engine=engine,
    )
    state.wait_for_everyone()

    # without a score there is no rank, and no placeholder takes its place
    if errors := read_errors(job):
        first = errors[0]
        raise ValueError(f"{len(errors)} queries failed, so there is no result; {first['key']}: {first['reason']}")


# metrics
@dataclass(frozen=True)
class _Outcome:
    """What reranking made of one query.

    Args:
        old_rank (`int`): of the best right candidate, as the embedder ranked it.
        after (`QueryScore`): how well the query is answered now.
        absent (`bool`): no right candidate was among those reranked.
    """

    old_rank: int
    after: QueryScore
    absent: bool

    @property
    def gained(self) -> bool:
        """Whether a right answer came to the first place."""
        return self.after.rank == 1 < self.old_rank

    @property
    def lost(self) -> bool:
        """Whether it left the first place."""
        return self.old_rank == 1 < self.after.rank


def _task_results(
    tasks: list[Task], queries: list[_Query], scores: np.ndarray, before: dict[str, dict]
) -> dict[str, dict]:
    """The entries of all tasks in a results file, from the scores `[Q, top]` of the queries of all of them."""
    outcomes: dict[str, list[_Outcome]] = {task.name: [] for task in tasks}
    for query, query_scores in zip(queries, scores):
        name = query.task.name
        candidate_scores = torch.from_numpy(query_scores[: len(query.candidates)])  # [C]
        outcomes[name].append(_outcome(query, candidate_scores, before[name]["ranks"][query.number]))

    results = {}
    for task in tasks:
        results[task.name] = _task_result(task, outcomes[task.name], before[task.name])
    return results


def _count_unparsed(task_results: dict[str, dict], queries: list[_Query], unparsed: np.ndarray):
    """Adds to each task of how many queries `[all queries]` the written answer named no candidate."""
    for name, result in task_results.items():
        of_task = [query.task.name == name for query in queries]
        result["unparsed"] = int(unparsed[of_task].sum())


def _task_result(task: Task, outcomes: list[_Outcome], before: dict) -> dict:
    """A task's entry in a results file: the metrics, those before, and what changed at the first place."""
    after = [outcome.after for outcome in outcomes]
    notes = list(task.notes)

    # a part of the queries was asked for
    if len(outcomes) < len(task.queries):
        notes.append(f"the first {len(outcomes)} of {len(task.queries)} queries")

    return {
        **metrics_of(task, after),
        "notes": notes,
        "before": _metrics_before(before, len(outcomes)),
        "lost": sum(outcome.lost for outcome in outcomes),
        "gained": sum(outcome.gained for outcome in outcomes),
        "not among the candidates": sum(outcome.absent for outcome in outcomes),
    }


def _metrics_before(before: dict, count: int) -> dict:
    """What the embedder alone reached on the first queries."""
    ranks = before["ranks"][:count]
    ndcg = None
    if "values" in before:  # kept for each query only where it is the task's metric
        ndcg = fmean(before["values"][:count])
    return {"precision@1": recall_at(ranks, 1), "mrr": mean_reciprocal_rank(ranks), "ndcg@5": ndcg}


def _outcome(query: _Query, scores: torch.Tensor, old_rank: int) -> _Outcome:
    """Ranks a query's candidates by new scores `[C]` and leaves the others where they were.

    If no right one is among the candidates, the best right one keeps the rank that the embedder gave it.
    """
    right = query.task.right(query.number)
    gains = query.task.gains_of(query.number)
    ranks = [ABSENT] * len(right)

    # place among the right ones -> position among the candidates
    positions: dict[int, int] = {}
    for place, index in enumerate(right):
        if index in query.candidates:
            positions[place] = query.candidates.index(index)

    # none of them was reranked: the best one stands behind all that were
    if not positions:
        ranks[0] = max(old_rank, len(query.candidates) + 1)
        return _Outcome(old_rank, QueryScore.of(ranks, gains, tied=False), absent=True)

    reranked = list(positions.values())
    new_ranks = places(scores, reranked, [gains[place] for place in positions])
    for place, rank in zip(positions, new_ranks):
        ranks[place] = rank
    after = QueryScore.of(ranks, gains, tied(scores, reranked))
    return _Outcome(old_rank, after, absent=False)
