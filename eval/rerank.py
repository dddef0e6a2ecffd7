"""Reranking: the best candidates of an embedder's saved result in the order of a reranker."""

import json
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from safetensors.numpy import load_file

from ..jobs.reranking import Reranker
from ..jobs.shards import fingerprint, processes, read_errors, read_job, run_job, write_text
from .means import means_of
from .metrics import mean_reciprocal_rank, ndcg_at, places, recall_at, tied
from .runner import DEPTH, FORMAT, data_fingerprint, metrics_of
from .tasks import Task

NEVER = 10**9  # the place of what is not there


def saved_result(path) -> Path:
    """An embedder's results file: the path itself, or the only one below a folder."""
    path = Path(path)
    found = [path] if not path.is_dir() else sorted(p for p in path.rglob("results.json") if _top(p).exists())
    if len(found) != 1 or not _top(found[0]).exists():
        shown = ", ".join(map(str, found)) if path.is_dir() else f"no {_top(path)}"
        raise ValueError(f"{path} must lead to one embedder's results.json; there are: {shown or 'none'}.")
    return found[0]


def _top(path: Path) -> Path:
    return path.with_name("top.safetensors")


def run_rerank(
    results,
    tasks: list[Task],
    reranker: Reranker,
    top: int = 10,
    image_root=None,
    limit: int | None = None,
    shard_size: int = 16,
) -> Path:
    """Reranks the best candidates of every query, going on where it was interrupted, over the processes of a launch.

    Args:
        results: `results.json` of a benchmark with `top.safetensors` beside it, or a folder with only one below it.
        tasks (`list[Task]`): the tasks of that result.
        reranker ([`Reranker`]).
        top (`int`, defaults to 10): how many candidates (2510.13515: ten, its table 3 five).
        image_root (*optional*): paths below it identify images.
        limit (`int`, *optional*): only that many queries of each task.
        shard_size (`int`): queries of one shard.

    Returns:
        path of a results file like the embedder's, with the metrics before, and how often the right answer was gained
        and lost at the first place, and was not among the candidates at all.

    Raises:
        ValueError: the tasks are not those of the result, or a query failed; the message says which.
    """
    path, state = saved_result(results), processes()
    before = json.loads(path.read_text(encoding="utf-8"))
    data = data_fingerprint(tasks, image_root)
    if before["data"] != data:
        raise ValueError(f"{path} was made from other data ({before['data']}) than this ({data}).")
    kept = load_file(_top(path))
    least = 5 if any(task.metric == "ndcg@5" for task in tasks) else 1
    if not least <= top <= DEPTH:
        raise ValueError(f"{top} candidates cannot be reranked here: at least {least}, and {DEPTH} are kept.")
    asked = [(task, number) for task in tasks for number in range(len(task.queries))[:limit]]
    settings = {**reranker.settings(), "top": top, "limit": limit, "embedder": before["model"], "data": data}
    key = fingerprint([json.dumps(settings, sort_keys=True, default=str)])[:10]
    home = path.parent / f"{Path(str(reranker.source)).name}-{reranker.strategy}-top{top}-{key}"
    if (home / "results.json").exists():
        return home / "results.json"

    def work(part, _):
        scores = np.zeros((len(part), top), np.float32)
        for place, (task, number) in enumerate(part):
            best = [i for i in kept[f"{task.name}/top"][number, :top].tolist() if i >= 0]
            similarity = kept[f"{task.name}/similarity"][number, : len(best)].tolist()
            candidates = [task.corpus[i].as_input() for i in best]
            scores[place, : len(best)] = reranker.scores(task.queries[number].as_input(), candidates, similarity)
        return {"scores": scores}

    run_job(
        home / "scores",
        asked,
        work,
        settings,
        keys=lambda row: f"{row[0].name} {row[1]}",
        shard_size=shard_size,
        rank=state.process_index,
        world_size=state.num_processes,
        description="Reranking",
        prepare=reranker.load,
        retry_failed=True,
    )
    state.wait_for_everyone()
    if errors := read_errors(home / "scores"):
        raise ValueError(
            f"{len(errors)} queries failed, so there is no result; {errors[0]['key']}: {errors[0]['reason']}"
        )
    if state.is_main_process:
        scores, found, start = read_job(home / "scores")["scores"], {}, 0
        for task in tasks:
            count = len(task.queries[:limit])
            best = kept[f"{task.name}/top"][:, :top]
            found[task.name] = _score(task, scores[start : start + count], best, before["tasks"][task.name])
            start += count
        content = {
            "format": FORMAT,
            "benchmark": before["benchmark"],
            "model": f"{before['model']} + {settings['reranker']}",
            "settings": {**before["settings"], "rerank": settings},
            "source": before["source"],
            "data": data,
            "means": means_of(before["benchmark"], found),
            "tasks": found,
        }
        write_text(home / "results.json", json.dumps(content, indent=1))
    state.wait_for_everyone()
    return home / "results.json"


def _score(task: Task, scores: np.ndarray, best: np.ndarray, old: dict) -> dict:
    """Metrics of a task with its best candidates ranked by new scores and the others where they were.

    A right candidate that is not among the best keeps the rank that the embedder gave it.
    """
    found, gained, ties, absent = [], [], 0, 0
    for number, row in enumerate(scores):
        chosen = [i for i in best[number].tolist() if i >= 0]
        options, own = task.options(number), torch.from_numpy(row[: len(chosen)])
        right = [options[place] for place in task.relevant[number]]
        among = [chosen.index(i) for i in right if i in chosen]
        gains = dict(zip(right, task.gains[number] if task.gains else [1.0] * len(right)))
        at = dict(zip(among, places(own, among, [gains[chosen[i]] for i in among]))) if among else {}
        ranks = [at[chosen.index(i)] if i in chosen else NEVER for i in right]
        if not among:
            absent += 1
            ranks[0] = max(old["ranks"][number], len(chosen) + 1)
        ties += tied(own, among) if among else 0
        found.append(min(ranks))
        gained.append(ndcg_at(ranks, 5, list(gains.values())))
    was, partial = old["ranks"][: len(found)], len(found) < len(task.queries)
    changes = {
        "before": {
            "precision@1": recall_at(was, 1),
            "mrr": mean_reciprocal_rank(was),
            "ndcg@5": fmean(old["values"][: len(found)]) if "values" in old else None,
        },
        "notes": task.notes + [f"the first {len(found)} of {len(task.queries)} queries"] * partial,
        "lost": sum(a == 1 < b for a, b in zip(was, found)),
        "gained": sum(b == 1 < a for a, b in zip(was, found)),
        "not among the candidates": absent,
    }
    return metrics_of(task, found, gained, ties) | changes
