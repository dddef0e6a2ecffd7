"""The benchmark runner: encodes each distinct item once, scores every query against its candidates, aggregates.

python -m unime.eval.runner --model outputs/quickstart/model --world outputs/world
"""

import argparse
import json
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..data.tasks import Task, read_world_tasks
from .metrics import ranks, recall_at


def score_task(queries: torch.Tensor, corpus: torch.Tensor, task: Task, ks=(1, 5, 10)) -> dict:
    """Metrics of one task from unit-norm embeddings of its queries `[Q, D]` and its corpus `[N, D]`."""
    found, ties = [], 0
    for number, query in enumerate(queries):
        scores = corpus[task.candidates[number]] @ query  # [C]
        try:
            rank, tied = ranks(scores, task.relevant[number])
        except ValueError as error:
            raise ValueError(f"task {task.name}, query {number}: {error}") from error
        found.append(rank)
        ties += tied
    metrics = {f"recall@{k}": recall_at(found, k) for k in ks}
    sizes = [len(candidates) for candidates in task.candidates]
    return {
        "kind": task.kind,
        "queries": len(found),
        "candidates": max(sizes),
        "precision@1": metrics["recall@1"],
        **metrics,
        "ties": ties,
    }


def evaluate(model, tasks: list[Task], batch_tokens: int = 8192, show_progress: bool = True) -> dict[str, dict]:
    """Runs an embedder over tasks.

    Args:
        model (`UniMEModel`): anything with `encode_query` and `encode_document`.
        tasks (`list[Task]`): what the readers return.
        batch_tokens (`int`): padded tokens of one forward pass.

    Returns:
        `{task name: {"kind", "queries", "candidates", "precision@1", "recall@k"..., "ties"}}`
    """
    queries = _encode_distinct(
        [task.queries for task in tasks], model.encode_query, "queries", batch_tokens, show_progress
    )
    corpora = _encode_distinct(
        [task.corpus for task in tasks], model.encode_document, "candidates", batch_tokens, show_progress
    )
    progress = tqdm(tasks, desc="Scoring", disable=not show_progress, unit="task")
    return {task.name: score_task(q, c, task) for task, q, c in zip(progress, queries, corpora)}


def _encode_distinct(groups, encode, what, batch_tokens, show_progress) -> list[torch.Tensor]:
    """Embeds groups of items in one go, each distinct item once, and gives each group its rows."""
    table = {item: None for items in groups for item in items}
    index = {item: i for i, item in enumerate(table)}
    if show_progress:
        print(f"Encoding {len(index)} distinct {what}", flush=True)
    embeddings = encode([item.as_input() for item in table], batch_tokens=batch_tokens, show_progress=show_progress)
    return [embeddings[[index[item] for item in items]] for items in groups]


def summarize(results: dict[str, dict], candidates: int = 100) -> dict[str, float]:
    """Unweighted means of precision@1 by kind, and `"mean"` over tasks with at least `candidates` candidates.

    Tasks with fewer (ten digit classes, compositional pairs) have a high chance level and would inflate the mean.
    """
    kinds: dict[str, list[float]] = {}
    for result in results.values():
        kinds.setdefault(result["kind"], []).append(result["precision@1"])
    large = [result["precision@1"] for result in results.values() if result["candidates"] >= candidates]
    means = {kind: sum(values) / len(values) for kind, values in kinds.items()}
    return {**means, "mean": sum(large) / len(large)} if large else means


def print_table(columns: dict[str, dict[str, dict]]):
    """Prints precision@1 of each task, one column a model: `{title: results of `evaluate`}`."""
    print(f"\n{'precision@1':<18}{'kind':<15}{'candidates':>10}" + "".join(f"{title:>10}" for title in columns))
    first = next(iter(columns.values()))
    for task, result in first.items():
        values = "".join(f"{results[task]['precision@1']:>10.3f}" for results in columns.values())
        print(f"{task:<18}{result['kind']:<15}{result['candidates']:>10}{values}")
    means = [summarize(results) for results in columns.values()]
    if "mean" in means[0]:
        print(f"{'mean':<18}{'':<15}{'100 up':>10}" + "".join(f"{mean['mean']:>10.3f}" for mean in means))


def main(arguments=None):
    from ..modeling_unime import UniMEModel

    parser = argparse.ArgumentParser(description="Measure a saved embedder on a miniature world.")
    parser.add_argument("--model", required=True, help="folder or Hub id of a UniME model")
    parser.add_argument("--world", required=True, help="folder written by unime.data.shapes")
    parser.add_argument("--out", type=Path, help="JSON file for all metrics")
    parser.add_argument("--batch-tokens", type=int, default=8192, help="padded tokens of one forward pass")
    options = parser.parse_args(arguments)
    model = UniMEModel.from_pretrained(options.model).to("cuda" if torch.cuda.is_available() else "cpu")
    results = evaluate(model, read_world_tasks(options.world), options.batch_tokens)
    print_table({"model": results})
    if options.out:
        options.out.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
