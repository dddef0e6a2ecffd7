"""The benchmark runner: encodes each distinct item once, scores every query against its candidates, aggregates."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.schema import Item
from ..files.addresses import to_path
from ..files.names import model_name
from ..files.writing import read_arrays, read_json, write_arrays, write_json
from ..jobs.embedding import Embedder, embed, item_name
from ..jobs.engines import RayEngine
from ..jobs.metrics import average_precision, mean_reciprocal_rank, ndcg_at, places, recall_at, tied
from ..jobs.shards import fingerprint, read_errors, read_job
from ..modeling_unime import UniMEModel
from .means import means_of
from .tasks import Task

FORMAT = 1  # of results files
RANKINGS = "top.safetensors"  # the best candidates of every query, beside an embedder's results
_KEYS = {"benchmark": str, "model": str, "settings": dict, "source": dict, "data": str, "means": dict, "tasks": dict}
_TASK_KEYS = {"kind", "split", "queries", "candidates", "metric", "score", "ranks", "notes"}
DEPTH = 50  # how many of a query's best candidates are kept, for a reranker and for pictures
BLOCK = 2**26  # bytes of the scores of a block of queries


# scores
@dataclass(frozen=True)
class QueryScore:
    """How well one query was answered.

    Args:
        rank (`int`): of its best right candidate, from 1.
        ndcg5, ndcg10 (`float`): nDCG@5 and nDCG@10.
        average_precision (`float`): over all of its right candidates.
        tied (`bool`): whether a wrong candidate has exactly the score of the best right one.
    """

    rank: int
    ndcg5: float
    ndcg10: float
    average_precision: float
    tied: bool

    @classmethod
    def of(cls, ranks: Sequence[int], gains: Sequence[float], tied: bool) -> "QueryScore":
        """The score of a query whose right candidates have these ranks, from 1, and gains."""
        return cls(min(ranks), ndcg_at(ranks, 5, gains), ndcg_at(ranks, 10, gains), average_precision(ranks), tied)


def score_task(
    queries: torch.Tensor, corpus: torch.Tensor, task: Task, depth: int = 0
) -> tuple[dict, np.ndarray, np.ndarray]:
    """Metrics of one task.

    Args:
        queries (`Tensor` `[Q, D]`), corpus (`Tensor` `[N, D]`): unit-norm embeddings.
        task ([`~unime.eval.tasks.Task`]).
        depth (`int`, defaults to 0): how many of the best candidates to keep.

    Returns:
        `(result, top, similarity)`: the metrics, with the rank of every query; `[Q, depth]` indices into the task's
        corpus (-1 where there are fewer candidates); and their similarities `[Q, depth]`. Of equal candidates a wrong
        one comes first.

    Raises:
        ValueError: a similarity is not finite; the message names task and query.

    Example:

    ```python
    task = Task("t", "VQA", [Item("q")], [Item("a"), Item("b")], candidates=None, relevant=[[1]])
    result, top, similarity = score_task(torch.eye(2)[[1]], torch.eye(2), task, depth=2)
    result["precision@1"], top.tolist()  # 1.0, [[1, 0]]
    ```
    """
    top = np.full((len(queries), depth), -1, np.int64)
    similarity = np.zeros((len(queries), depth), np.float32)
    query_scores = []
    for number, scores in enumerate(_similarities(queries, corpus, task)):
        relevant = task.relevant[number]
        gains = task.gains_of(number)
        try:
            ranks = places(scores, relevant, gains)
        except ValueError as error:
            raise ValueError(f"task {task.name}, query {number}: {error}") from error

        query_scores.append(QueryScore.of(ranks, gains, tied(scores, relevant)))

        # positions among the query's candidates become indices into the corpus
        if depth:
            best = _strict_top(scores, relevant, depth)
            top[number, : len(best)] = np.asarray(task.options(number))[best.numpy()]
            similarity[number, : len(best)] = scores[best].numpy()

    return metrics_of(task, query_scores), top, similarity


def _similarities(queries: torch.Tensor, corpus: torch.Tensor, task: Task) -> Iterator[torch.Tensor]:
    """Each query's similarities `[C]` with its candidates.

    They are summed up in double precision, so that the order of summation cannot break a tie.
    """
    if task.candidates is not None:
        for query, candidates in zip(queries, task.candidates):
            yield (corpus[torch.as_tensor(candidates)].double() @ query.double()).float()
        return

    # every query has the whole corpus: one product for a block of queries
    corpus = corpus.double()  # [N, D]
    step = max(1, BLOCK // (8 * len(corpus)))
    for start in range(0, len(queries), step):
        yield from (queries[start : start + step].double() @ corpus.T).float()  # [step, N]


def _strict_top(scores: torch.Tensor, relevant: Sequence[int], depth: int) -> torch.Tensor:
    """Positions of the best scores; a relevant candidate comes after wrong ones with the same score."""
    lowered = scores.double()
    right = torch.as_tensor(relevant)

    # one double below a score is still above every smaller single-precision score
    lowered[right] = torch.nextafter(lowered[right], torch.tensor(-torch.inf, dtype=torch.float64))
    return lowered.topk(min(depth, len(scores))).indices


def metrics_of(task: Task, query_scores: list[QueryScore]) -> dict:
    """A task's entry in a results file.

    Args:
        task ([`~unime.eval.tasks.Task`]).
        query_scores (`list[QueryScore]`): one for each query, or for the first queries.

    Returns:
        `dict`: `kind`, `split`, `queries`, `candidates`, `metric`, `precision@1`, `recall@k`, `mrr`, `ndcg@5`,
        `ndcg@10`, `map`, `ties`, `notes`, `ranks`, where they are needed `together` and `values`, and `score`, the
        task's one number.
    """
    ranks = [score.rank for score in query_scores]
    ndcgs = [score.ndcg5 for score in query_scores]

    result = {
        "kind": task.kind,
        "split": task.split,
        "queries": len(query_scores),
        "candidates": _most_candidates(task),
        "metric": task.metric,
        "precision@1": recall_at(ranks, 1),
        "recall@1": recall_at(ranks, 1),
        "recall@5": recall_at(ranks, 5),
        "recall@10": recall_at(ranks, 10),
        "mrr": mean_reciprocal_rank(ranks),
        "ndcg@5": fmean(ndcgs),
        "ndcg@10": fmean(score.ndcg10 for score in query_scores),
        "map": fmean(score.average_precision for score in query_scores),
        "ties": sum(score.tied for score in query_scores),
        "notes": task.notes,
        "ranks": ranks,
    }

    # what intervals need beside the ranks
    if task.together:
        result["together"] = task.together[: len(query_scores)]
    if task.metric == "ndcg@5":
        result["values"] = [round(value, 6) for value in ndcgs]

    result["score"] = result[task.metric]
    return result


def _most_candidates(task: Task) -> int:
    """How many candidates the query with the most of them has."""
    if task.candidates is None:
        return len(task.corpus)
    return max(map(len, task.candidates))


def distinct(groups: Sequence[Sequence[Item]]) -> tuple[list[Item], list[np.ndarray]]:
    """The distinct items of several lists, and which of them each list holds.

    Args:
        groups (`Sequence[Sequence[Item]]`): such as the queries of each task.

    Returns:
        `(items, rows)`: the distinct items `[D]` in the order of their first appearance, and for each list the rows
        of its items among them, as an `int64` array.
    """
    row_of: dict[Item, int] = {}
    for items in groups:
        for item in items:
            row_of.setdefault(item, len(row_of))

    # a list is then rows of one table
    rows = []
    for items in groups:
        rows.append(np.array([row_of[item] for item in items], np.int64))
    return list(row_of), rows


Wording = tuple[str, str | None]  # the role and the kind of benchmark by which items are worded


@dataclass(frozen=True)
class _Group:
    """Items of several tasks that are worded in one way, each once.

    Args:
        items (`list[Item]`): the D distinct items.
        rows (`dict`): `(task name, role)` -> the rows of the task's queries or corpus among the items.
    """

    items: list[Item]
    rows: dict[tuple[str, str], np.ndarray]


def _groups(tasks: list[Task], wording_of: Callable) -> dict[Wording, _Group]:
    """The queries and corpora of all tasks, by their wording; `wording_of` maps a role and a task to it."""
    sides: dict[Wording, dict] = {}  # wording -> (task name, role) -> items
    for task in tasks:
        for role, items in (("query", task.queries), ("document", task.corpus)):
            sides.setdefault(wording_of(role, task), {})[task.name, role] = items

    # an item of several tasks is embedded once in each wording
    groups = {}
    for wording, lists in sides.items():
        items, rows = distinct(list(lists.values()))
        groups[wording] = _Group(items, dict(zip(lists, rows)))
    return groups


def _tables(
    tasks: list[Task],
    groups: dict[Wording, _Group],
    embeddings: dict[Wording, torch.Tensor],
    show_progress: bool = True,
) -> Iterator[tuple[Task, torch.Tensor, torch.Tensor]]:
    """Each task with the embeddings of its queries `[Q, D]` and of its corpus `[N, D]`."""
    for task in tqdm(tasks, desc="Scoring", disable=not show_progress, unit="task"):
        # its queries and its corpus may be worded apart, and so lie in two groups
        sides = {}
        for wording, group in groups.items():
            for role in ("query", "document"):
                rows = group.rows.get((task.name, role))
                if rows is not None:
                    sides[role] = embeddings[wording][torch.from_numpy(rows)]

        yield task, sides["query"], sides["document"]


# in memory
def evaluate(model, tasks: list[Task], batch_tokens: int = 8192, show_progress: bool = True) -> dict[str, dict]:
    """Runs an embedder over tasks, in memory. For a benchmark that takes hours, see [`run_benchmark`].

    Args:
        model (`UniMEModel`): anything with `encode_query` and `encode_document`.
        tasks (`list[Task]`): what the readers return.
        batch_tokens (`int`, defaults to 8192): padded tokens of one forward pass.
        show_progress (`bool`, defaults to `True`).

    Returns:
        `{task name: metrics}`; see [`metrics_of`].

    Raises:
        ValueError: a similarity is not finite; the message names task and query.

    Example:

    ```python
    model = UniMEModel.from_pretrained("outputs/quickstart/model")
    results = evaluate(model, read_world_tasks("outputs/world"))
    print_table({"precision@1": results})
    ```
    """
    groups = _groups(tasks, _wordings_of(model))
    embeddings = {}
    for (role, benchmark), group in groups.items():
        encode = model.encode_query if role == "query" else model.encode_document
        options = {"batch_tokens": batch_tokens, "show_progress": show_progress}
        if benchmark is not None:  # models other than ours have no such option
            options["benchmark"] = benchmark

        if show_progress:
            print(f"Encoding {len(group.items)} distinct items", flush=True)
        inputs = [item.as_input() for item in group.items]
        embeddings[role, benchmark] = encode(inputs, **options)

    results = {}
    for task, queries, corpus in _tables(tasks, groups, embeddings, show_progress):
        results[task.name], _, _ = score_task(queries, corpus, task)
    return results


def _wordings_of(model) -> Callable:
    """What maps a role and a task to the wording that a model has for it; other models know roles only."""
    if not isinstance(model, UniMEModel):
        return lambda role, task: (role, None)
    return lambda role, task: model.processor.wording(role, task.benchmark, task.name)


# as a job
def run_benchmark(
    benchmark: str,
    tasks: list[Task],
    embedder: Embedder,
    out,
    image_root=None,
    source: dict | None = None,
    shard_size: int = 1024,
    floors: Callable[[Task], dict[str, float]] | None = None,
    engine: RayEngine | None = None,
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
        shard_size (`int`, defaults to 1024): items of one shard.
        floors (*optional*): what gives the precision@1 that a task yields without any model, by the name of the
            method; kept as `floors` of each task (see [`~unime.eval.floors.floors_of`]).
        engine ([`~unime.jobs.engines.RayEngine`], *optional*): workers that embed, in place of this process.

    Returns:
        path of `results.json`; beside it `top.safetensors` with the best candidates of every query.

    Raises:
        ValueError: an item could not be embedded, or an embedding is not finite; the message names it.

    Example:

    ```python
    tasks, root = read("mmeb", {"data": "benchmarks-data/mmeb", "image_root": None, "tasks": ["GQA"],
                                "partial": False, "cache": None})
    path = run_benchmark("mmeb", tasks, Embedder("owner/model"), "outputs/eval", root)
    ```
    """
    # the folder says what was measured; if it is finished, there is nothing to do
    settings = embedder.settings()
    data = data_fingerprint(tasks, image_root)
    key = fingerprint([json.dumps(settings, sort_keys=True, default=str), data, benchmarks_of(tasks)])[:10]
    folder = to_path(out) / model_name(embedder.source) / f"{benchmark}-{key}"
    path = folder / "results.json"
    if is_whole(path, RANKINGS):
        return path

    groups = _groups(tasks, embedder.wording)
    jobs = _embed_groups(groups, embedder, folder, image_root, shard_size, engine)

    # every process embeds, one scores
    if embedder.state.is_main_process:
        results, rankings = _score_all(tasks, groups, jobs)
        if floors is not None:
            for task in tasks:
                results[task.name]["floors"] = floors(task)
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

        # the results come last: where they are, all is there
        write_arrays(folder / RANKINGS, rankings)
        write_json(path, content)

    embedder.state.wait_for_everyone()
    return path


def read_result(path) -> dict:
    """What a results file holds.

    Raises:
        ValueError: it is missing or damaged, or not a results file; the message names it.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is not a results file of format {FORMAT}.")

    # somebody may have edited it
    lacking = [key for key in _KEYS if not isinstance(content.get(key), _KEYS[key])]
    if lacking:
        raise ValueError(
            f"{path} is not a whole results file: {', '.join(lacking)} is missing or not as it should be."
        )
    return content


def is_whole(path: Path, *beside: str) -> bool:
    """Whether a results file is there and can be read, with the files of arrays beside it; damage is reported."""
    if not path.exists():
        return False

    # what lies beside it belongs to it
    try:
        read_result(path)
        for name in beside:
            read_arrays(path.with_name(name))
    except ValueError as error:
        print(f"{error} The result is made again.", file=sys.stderr, flush=True)
        return False
    return True


def _embed_groups(
    groups: dict[Wording, _Group],
    embedder: Embedder,
    folder: Path,
    image_root,
    shard_size: int,
    engine: RayEngine | None = None,
) -> dict[Wording, Path]:
    """Embeds the items of each group as one job, and returns the folders of the jobs."""
    roles = {role for role, _ in groups}
    jobs = {}
    for (role, benchmark), group in groups.items():
        # a model that words queries and documents alike sees every item once
        name = "items"
        if len(roles) > 1:
            name = {"query": "queries", "document": "candidates"}[role]
        if benchmark:
            name = f"{name}-{benchmark}"

        job = folder / name
        options = {"retry_failed": True, "benchmark": benchmark, "engine": engine}
        embed(job, group.items, embedder, role, image_root, shard_size, **options)

        # a score over a part of the items would be another benchmark's
        if errors := read_errors(job):
            examples = "; ".join(f"{error['key']!r}: {error['reason']}" for error in errors[:3])
            raise ValueError(
                f"{len(errors)} of {len(group.items)} items could not be embedded, so there is no result: {examples}. "
                f"All of them are in {job}/*.errors.json; correct them and run this again."
            )
        jobs[role, benchmark] = job
    return jobs


def _score_all(tasks: list[Task], groups: dict[Wording, _Group], jobs: dict[Wording, Path]) -> tuple[dict, dict]:
    """The metrics of every task, and the best candidates with their similarities, by the names of their arrays."""
    embeddings = {}
    for wording, job in jobs.items():
        embeddings[wording] = torch.from_numpy(read_job(job, ["embeddings"])["embeddings"])

    # one task after the other, as a table of all similarities is large
    results = {}
    rankings = {}
    for task, queries, corpus in _tables(tasks, groups, embeddings):
        results[task.name], top, similarity = score_task(queries, corpus, task, DEPTH)
        rankings[f"{task.name}/top"] = top
        rankings[f"{task.name}/similarity"] = similarity
    return results, rankings


def benchmarks_of(tasks: list[Task]) -> str:
    """The kinds of benchmark that tasks are worded as, for the names of results."""
    return ",".join(sorted({str(task.benchmark) for task in tasks}))


def data_fingerprint(tasks: list[Task], image_root=None) -> str:
    """A digest of everything that the tasks ask and offer.

    Args:
        tasks (`list[Task]`).
        image_root (*optional*): paths below it identify images, so that the data may be moved.
    """
    digest = hashlib.blake2b(digest_size=8)
    for task in tasks:
        texts = [item_name(item, image_root) for item in (*task.queries, *task.corpus)]
        texts.append(json.dumps([task.name, task.metric, task.candidates, task.relevant, task.gains]))
        digest.update(fingerprint(texts).encode())
    return digest.hexdigest()
