"""Figures from models and results.

unime eval figures similarity --models MODEL MODEL --names before after --data outputs/world --out similarity.png
unime eval figures next-token --models BACKBONE MODEL --data outputs/world --out words.png
unime eval figures map --models MODEL MODEL --data outputs/world --out map.png
unime eval figures stages RESULTS.json RESULTS.json --names "stage 1" "stage 2" --out stages.png
unime eval figures contact RESULTS.json --task Shapes_t2i --out contact.png
unime eval figures curves RUN RUN --names easy hard --out curves.png
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.numpy import load_file

from ..checkpoints.opening import open_checkpoint
from ..eval import figures
from ..eval.catalogue import BENCHMARKS, read
from ..eval.report import load
from ..eval.tasks import Task
from ..jobs.shards import processes
from ..modeling_unime import UniMERerankerForCausalLM


def _tasks(options) -> list[Task]:
    one = [options.task] if options.task and options.benchmark != "retrieval" else None
    source = {"data": options.data, "image_root": options.image_root, "tasks": one, "partial": True, "cache": None}
    return read(options.benchmark, source)[0]


def _pairs(options) -> tuple[str, list, list]:
    """Matched pairs of a task: queries and their first right candidates, all different."""
    tasks = {task.name: task for task in _tasks(options)}
    default = next((task.name for task in tasks.values() if task.name.endswith("_i2t")), next(iter(tasks)))
    name = options.task or default
    if name not in tasks:
        raise ValueError(f"there is no task {name!r}; there are {', '.join(tasks)}.")
    task, pairs = tasks[name], {}
    for number, query in enumerate(task.queries):
        right = task.corpus[task.options(number)[task.relevant[number][0]]]
        if query not in pairs and right not in pairs.values():
            pairs[query] = right
    chosen = list(pairs.items())[: options.count]
    return name, [query for query, _ in chosen], [right for _, right in chosen]


def _models(options, preset: str | None):
    names = options.names or [Path(path).name for path in options.models]
    if len(names) != len(options.models) or len(set(names)) != len(names):
        raise ValueError(f"--names takes a different name for each of the {len(options.models)} models.")
    for name, path in zip(names, options.models):
        yield name, open_checkpoint(path, preset, change_preset=True).to(processes().device).eval()


def _embedded(options) -> tuple[str, dict]:
    """The pairs of a task as each model embeds them."""
    task, queries, answers = _pairs(options)
    found = {}
    for name, model in _models(options, options.preset):
        sides = (model.encode_query(_inputs(queries)), model.encode_document(_inputs(answers)))
        found[name] = tuple(side.float().cpu() for side in sides)
    return task, found


def _inputs(items) -> list[dict]:
    return [item.as_input() for item in items]


def similarity(options) -> Path:
    task, found = _embedded(options)
    return figures.similarity_matrix(found, options.out, f"query of {task}", "its right candidate")


def embedding_map(options) -> Path:
    task, found = _embedded(options)
    panels = {name: {f"queries of {task}": one, "right candidates": other} for name, (one, other) in found.items()}
    return figures.embedding_map(panels, options.out)


def next_token(options) -> Path:
    _, queries, _ = _pairs(options)
    queries = [replace(q, text="") if q.image else q for q in queries[: options.count]]  # what the prompt sums up
    head = UniMERerankerForCausalLM.from_backbone(options.head or options.models[0]).get_output_embeddings().weight
    panels = {}
    for name, model in _models(options, options.preset or "summary"):
        model.config.normalize = False  # the last hidden state itself
        states = model.encode_query(_inputs(queries))
        if states.shape[1] != head.shape[1]:
            raise ValueError(
                f"{name} has width {states.shape[1]}, the head {head.shape[1]}; name its own with --head."
            )
        with torch.inference_mode():
            logits = (states.to(head.device) @ head.float().T)[:, : len(model.processor.tokenizer)]
        best = logits.softmax(-1).topk(options.top)
        words = [[model.processor.tokenizer.decode([token]) for token in row] for row in best.indices.tolist()]
        panels[name] = [
            (query, list(zip(own, values))) for query, own, values in zip(queries, words, best.values.tolist())
        ]
    return figures.next_tokens(panels, options.out)


def stages(options) -> Path:
    results = load(options.inputs, options.names)
    benchmarks = {result.content["benchmark"] for result in results}
    if len(benchmarks) > 1:
        raise ValueError(f"these are results of {', '.join(sorted(benchmarks))}; take one benchmark.")
    if len({result.name for result in results}) != len(results):
        raise ValueError("--names takes a different name for each result.")
    return figures.stage_bars({r.name: r.content["means"] for r in results}, options.out, f"{benchmarks.pop()}, means")


def contact(options) -> Path:
    (result,) = load(options.inputs[:1])
    content = result.content
    source = dict(content["source"])
    source |= {key: getattr(options, key) for key in ("data", "image_root") if getattr(options, key)}
    tasks = {task.name: task for task in read(content["benchmark"], source)[0]}
    name = options.task or next(iter(tasks))
    if name not in tasks:
        raise ValueError(f"there is no task {name!r}; there are {', '.join(tasks)}.")
    kept, task = load_file(result.path.with_name("top.safetensors")), tasks[name]
    ranks = content["tasks"][name]["ranks"]
    half = max(1, options.count // 2)
    hits = [number for number, rank in enumerate(ranks) if rank == 1][:half]
    misses = [number for number, rank in enumerate(ranks) if rank > 1][: options.count - len(hits)]
    rows = []
    for number in [*hits, *misses]:
        right = {task.options(number)[place] for place in task.relevant[number]}
        best = [
            (task.corpus[i], float(value), i in right)
            for i, value in zip(
                kept[f"{name}/top"][number, : options.top].tolist(), kept[f"{name}/similarity"][number]
            )
            if i >= 0
        ]
        rows.append((task.queries[number], best))
    score = content["tasks"][name]["score"]
    return figures.contact_sheet(
        rows, options.out, f"{result.name}, {name}: {score:.1%} right; hits first, then misses"
    )


def curves(options) -> Path:
    names, runs = options.names or [Path(path).name for path in options.inputs], {}
    if len(names) != len(options.inputs) or len(set(names)) != len(names):
        raise ValueError(f"--names takes a different name for each of the {len(options.inputs)} runs.")
    for name, path in zip(names, map(Path, options.inputs)):
        states = [
            path / "trainer_state.json",
            *sorted(
                path.glob("checkpoint-*/trainer_state.json"),
                key=lambda p: int(p.parent.name.split("-")[1]),
                reverse=True,
            ),
        ]
        state = path if path.is_file() else next((state for state in states if state.exists()), None)
        if state is None:
            raise ValueError(f"{path} holds no trainer_state.json of a training.")
        runs[name] = json.loads(state.read_text(encoding="utf-8"))["log_history"]
    return figures.training_curves(runs, options.out)


KINDS = {
    "similarity": (similarity, "cosine matrices of matched pairs, one panel a model"),
    "next-token": (next_token, "the most probable words after the prompt, one column a model"),
    "map": (embedding_map, "both sides of matched pairs on two axes, with the modality gap"),
    "stages": (stages, "bars of the means of several results"),
    "contact": (contact, "queries with their best candidates, right and wrong marked"),
    "curves": (curves, "loss and gradient norm of trainings (folders with trainer_state.json)"),
}


def main(arguments=None):
    """The command `unime eval figures`."""
    parser = argparse.ArgumentParser(
        prog="unime eval figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=KINDS, help="; ".join(f"{kind}: {text}" for kind, (_, text) in KINDS.items()))
    parser.add_argument("inputs", nargs="*", help="for stages and contact results.json; for curves folders of runs")
    parser.add_argument("--models", nargs="+", default=[], help="embedders, stock VLMs too")
    parser.add_argument("--names", nargs="+", help="what to call models, results or runs")
    parser.add_argument("--preset", help="prompts of all models (default: each one's own; next-token: summary)")
    parser.add_argument("--head", help="next-token: checkpoint with the language head (default: the first model)")
    parser.add_argument("--benchmark", default="world", choices=list(BENCHMARKS), help="whose pairs are drawn")
    parser.add_argument("--data", help="folder of the benchmark")
    parser.add_argument("--image_root", help="where its image paths start")
    parser.add_argument("--task", help="data set of the benchmark")
    parser.add_argument("--count", type=int, help="pairs, items or rows")
    parser.add_argument("--top", type=int, help="words or candidates of each")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write; the data goes beside it as CSV")
    options = parser.parse_args(arguments)
    needed = "inputs" if options.kind in ("stages", "contact", "curves") else "models"
    if not getattr(options, needed):
        parser.error(f"{options.kind} needs {'results' if needed == 'inputs' else '--models'}.")
    options.count = options.count or {"similarity": 50, "map": 150, "next-token": 3}.get(options.kind, 6)
    options.top = options.top or (10 if options.kind == "next-token" else 5)
    path = KINDS[options.kind][0](options)
    print(f"{path}\n{path.with_suffix('.csv')}")


if __name__ == "__main__":
    main()
