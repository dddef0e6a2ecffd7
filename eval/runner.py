"""The benchmark runner: encodes each distinct item once, scores every query against its candidates, aggregates."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from safetensors.numpy import save_file
from tqdm.auto import tqdm

from ..data.schema import Item
from ..jobs.embedding import Embedder, embed, item_name
from ..jobs.shards import fingerprint, read_errors, read_job, write_text, write_whole
from .means import means_of
from .metrics import mean_reciprocal_rank, ndcg_at, places, recall_at, tied
from .tasks import Task

FORMAT = 1
DEPTH = 50  # of the rankings that are kept, for a reranker and for pictures
BLOCK = 2**26  # bytes of the scores of a block of queries


# scores
def score_task(queries: torch.Tensor, corpus: torch.Tensor, task: Task, depth: int = 0):
    """Metrics of one task.

    Args:
        queries (`Tensor` `[Q, D]`), corpus (`Tensor` `[N, D]`): unit-norm embeddings.
        task ([`~unime.eval.tasks.Task`]).
        depth (`int`): how many of the best candidates to keep.

    Returns:
        `(result, top, similarity)`: the metrics, with the rank of every query; `[Q, depth]` indices into the task's
        corpus (-1 where there are fewer candidates); and their similarities `[Q, depth]`. Of equal candidates a wrong
        one comes first.

    Raises:
        ValueError: a similarity is not finite; the message names task and query.
    """
    found, ties, gained = [], 0, []
    top = np.full((len(queries), depth), -1, np.int64)
    similarity = np.zeros((len(queries), depth), np.float32)
    for number, scores in enumerate(_scores(queries, corpus, task)):
        options, relevant = task.options(number), task.relevant[number]
        gains = task.gains[number] if task.gains else None
        try:
            own = places(scores, relevant, gains)
        except ValueError as error:
            raise ValueError(f"task {task.name}, query {number}: {error}") from error
        ties += tied(scores, relevant)
        found.append(min(own))
        gained.append(ndcg_at(own, 5, gains))
        if depth:
            best = _strict_top(scores, relevant, depth)
            top[number, : len(best)] = np.asarray(options)[best.numpy()]
            similarity[number, : len(best)] = scores[best].numpy()
    return metrics_of(task, found, gained, ties), top, similarity


def _scores(queries: torch.Tensor, corpus: torch.Tensor, task: Task):
    """Each query's similarities with its own candidates, or, by blocks of queries, with the whole corpus.

    They are summed up in double precision, so that the order of summation cannot break a tie.
    """
    if task.candidates is not None:
        for query, own in zip(queries, task.candidates):
            yield (corpus[torch.as_tensor(own)].double() @ query.double()).float()
        return
    step, corpus = max(1, BLOCK // (8 * len(corpus))), corpus.double()
    for start in range(0, len(queries), step):
        yield from (queries[start : start + step].double() @ corpus.T).float()


def _strict_top(scores: torch.Tensor, relevant, depth: int) -> torch.Tensor:
    """Positions of the best scores; a relevant candidate comes after wrong ones with the same score."""
    lowered, right = scores.double(), torch.as_tensor(relevant)
    lowered[right] = torch.nextafter(lowered[right], torch.tensor(-torch.inf, dtype=torch.float64))
    return lowered.topk(min(depth, len(scores))).indices


def metrics_of(task: Task, found: list[int], gained: list[float], ties: int) -> dict:
    """A task's entry in a results file, from each query's best rank and nDCG@5."""
    recalls = {f"recall@{k}": recall_at(found, k) for k in (1, 5, 10)}
    sizes = [len(task.corpus)] if task.candidates is None else [len(candidates) for candidates in task.candidates]
    result = {
        "kind": task.kind,
        "split": task.split,
        "queries": len(found),
        "candidates": max(sizes),
        "metric": task.metric,
        "precision@1": recalls["recall@1"],
        **recalls,
        "mrr": mean_reciprocal_rank(found),
        "ndcg@5": fmean(gained),
        "ties": ties,
        "notes": task.notes,
        "ranks": found,
    }
    if task.together:
        result["together"] = task.together[: len(found)]
    if task.metric == "ndcg@5":
        result["values"] = [round(value, 6) for value in gained]
    return {**result, "score": result[task.metric]}


def distinct(groups: Sequence[Sequence[Item]]) -> tuple[list[Item], list[np.ndarray]]:
    """The distinct items of several lists, and the place of each list's items among them."""
    table = {item: None for items in groups for item in items}
    index = {item: i for i, item in enumerate(table)}
    return list(table), [np.array([index[item] for item in items], np.int64) for items in groups]


# in memory
def evaluate(model, tasks: list[Task], batch_tokens: int = 8192, show_progress: bool = True) -> dict[str, dict]:
    """Runs an embedder over tasks, in memory.

    Args:
        model (`UniMEModel`): anything with `encode_query` and `encode_document`.
        tasks (`list[Task]`): what the readers return.
        batch_tokens (`int`): padded tokens of one forward pass.

    Returns:
        `{task name: {"kind", "queries", "candidates", "precision@1", "recall@k"..., "ties", ...}}`
    """
    rows = []
    for what, encode, groups in (
        ("queries", model.encode_query, [task.queries for task in tasks]),
        ("candidates", model.encode_document, [task.corpus for task in tasks]),
    ):
        items, places_of = distinct(groups)
        if show_progress:
            print(f"Encoding {len(items)} distinct {what}", flush=True)
        inputs = [item.as_input() for item in items]
        embeddings = encode(inputs, batch_tokens=batch_tokens, show_progress=show_progress)
        rows.append([embeddings[torch.from_numpy(own)] for own in places_of])
    progress = tqdm(tasks, desc="Scoring", disable=not show_progress, unit="task")
    return {task.name: score_task(q, c, task)[0] for task, q, c in zip(progress, *rows)}


# as a job
def run_benchmark(
    benchmark: str,
    tasks: list[Task],
    embedder: Embedder,
    out,
    image_root=None,
    source: dict | None = None,
    shard_size: int = 1024,
) -> Path:
    """Measures a model on a benchmark, going on where it was interrupted, over the processes of a launch.

    Everything goes to `<out>/<model>/<benchmark>-<key>`, whose key is made from the model, its settings and the data:
    another model or other data never meet old results.

    Args:
        benchmark (`str`): its name.
        tasks (`list[Task]`): what the readers return.
        embedder ([`~unime.jobs.embedding.Embedder`]).
        out: folder of all results.
        image_root (*optional*): paths below it identify images.
        source (`dict`, *optional*): how the tasks were read, kept for the reranker and the figures.
        shard_size (`int`): items of one shard.

    Returns:
        path of `results.json`; beside it `top.safetensors` with the best candidates of every query.

    Raises:
        ValueError: an item could not be embedded, or an embedding is not finite; the message names it.
    """
    settings, data = embedder.settings(), data_fingerprint(tasks, image_root)
    key = fingerprint([json.dumps(settings, sort_keys=True, default=str), data])[:10]
    home = Path(out) / Path(str(embedder.source)).name / f"{benchmark}-{key}"
    path = home / "results.json"
    if path.exists():
        return path
    stages = _encode(tasks, embedder, home, image_root, shard_size)
    if embedder.state.is_main_process:
        queries, corpora = (_table(stage, rows) for stage, rows in stages)
        results, kept = {}, {}
        for task, query, corpus in zip(tqdm(tasks, desc="Scoring", unit="task"), queries, corpora):
            results[task.name], top, similarity = score_task(query, corpus, task, DEPTH)
            kept |= {f"{task.name}/top": top, f"{task.name}/similarity": similarity}
        content = {
            "format": FORMAT,
            "benchmark": benchmark,
            "model": settings["model"],
            "settings": settings,
            "source": source or {},
            "data": data,
            "means": means_of(benchmark, results),
            "tasks": results,
        }
        write_whole(home / "top.safetensors", lambda draft: save_file(kept, draft))
        write_text(path, json.dumps(content, indent=1))
    embedder.state.wait_for_everyone()
    return path


def _encode(tasks, embedder: Embedder, home: Path, image_root, shard_size: int) -> list[tuple[Path, list[np.ndarray]]]:
    """The stages with the embeddings of queries and of corpora, and the rows of each task in them.

    A model that words queries and documents alike sees every item once, in one stage.
    """
    groups = {"query": [task.queries for task in tasks], "document": [task.corpus for task in tasks]}
    if not embedder.words_roles_differently():
        groups = {"query": [*groups["query"], *groups["document"]]}
    found = []
    for role, own in groups.items():
        items, rows = distinct(own)
        stage = home / {"query": "queries", "document": "candidates"}[role] if len(groups) > 1 else home / "items"
        embed(stage, items, embedder, role, image_root, shard_size, retry_failed=True)
        if errors := read_errors(stage):
            first = "; ".join(f"{error['key']!r}: {error['reason']}" for error in errors[:3])
            raise ValueError(
                f"{len(errors)} of {len(items)} items could not be embedded, so there is no result: {first}. All of "
                f"them are in {stage}/*.errors.json; mend them and run this again."
            )
        found += [(stage, rows[start : start + len(tasks)]) for start in range(0, len(rows), len(tasks))]
    return found


def _table(stage: Path, rows: list[np.ndarray]):
    """The embeddings of each task's rows, one task after the other."""
    embeddings = torch.from_numpy(read_job(stage, ["embeddings"])["embeddings"])
    return (embeddings[torch.from_numpy(own)] for own in rows)


def data_fingerprint(tasks: list[Task], image_root=None) -> str:
    """A digest of everything that the tasks ask and offer."""
    digest = hashlib.blake2b(digest_size=8)
    for task in tasks:
        names = (item_name(item, image_root) for item in (*task.queries, *task.corpus))
        lists = json.dumps([task.name, task.metric, task.candidates, task.relevant, task.gains])
        digest.update(fingerprint([*names, lists]).encode())
    return digest.hexdigest()
