"""Figures from models and results.

unime eval figures similarity --models MODEL MODEL --names before after --data outputs/world --out similarity.png
unime eval figures next-token --models BACKBONE MODEL --data outputs/world --out words.png
unime eval figures map --models openai/clip-vit-base-patch32 MODEL --data outputs/world --out map.png
unime eval figures stages RESULTS.json RESULTS.json --names "stage 1" "stage 2" --out stages.png
unime eval figures contact RESULTS.json --task Shapes_t2i --out contact.png
unime eval figures curves RUN RUN --names easy hard --out curves.png
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from ..checkpoints.dual_encoders import DualEncoder, open_dual_encoder
from ..checkpoints.opening import open_checkpoint
from ..data.schema import Item
from ..eval import figures
from ..eval.catalogue import read as read_benchmark
from ..eval.report import load
from ..eval.runner import RANKINGS
from ..eval.tasks import Task
from ..files.writing import read_arrays, read_json
from ..jobs.shards import processes
from ..modeling_unime import UniMEModel, UniMERerankerForCausalLM
from .errors import one_line_errors
from .inputs import moved_source
from .parsers.figures import read


# what the figures of models are drawn from
def _pairs(options) -> tuple[Task, list[Item], list[Item]]:
    """Matched pairs of a task: itself, queries, and their first right candidates, all different."""
    tasks = _tasks(options)
    name = options.task or _default_task(list(tasks))
    task = _named(tasks, name)

    # a query or an answer that stands in several pairs would give a matrix more than one bright diagonal
    pairs = {}
    for number, query in enumerate(task.queries):
        right = task.corpus[task.options(number)[task.relevant[number][0]]]
        if query not in pairs and right not in pairs.values():
            pairs[query] = right

    queries = list(pairs)[: options.count]
    answers = [pairs[query] for query in queries]
    return task, queries, answers


def _tasks(options) -> dict[str, Task]:
    """The tasks of the benchmark by name; only the one that is asked for, where they can be read apart."""
    names = [options.task] if options.task and options.benchmark != "retrieval" else None
    source = {"data": options.data, "image_root": options.image_root, "tasks": names, "partial": True, "cache": None}
    tasks, _ = read_benchmark(options.benchmark, source)
    return _by_name(tasks)


def _by_name(tasks: list[Task]) -> dict[str, Task]:
    """Tasks by their names."""
    return {task.name: task for task in tasks}


def _default_task(names: list[str]) -> str:
    """The first task from images to texts, or else the first."""
    for name in names:
        if name.endswith("_i2t"):
            return name
    return names[0]


def _named(tasks: dict[str, Task], name: str) -> Task:
    """The task of that name."""
    if name not in tasks:
        raise ValueError(f"there is no task {name!r}; there are {', '.join(tasks)}.")
    return tasks[name]


def _distinct_names(options, paths: list[str], kind: str) -> list[str]:
    """What to call models or runs: as asked for, or as their folders."""
    names = options.names or [Path(path).name for path in paths]
    if len(names) != len(paths) or len(set(names)) != len(names):
        raise ValueError(f"--names takes a different name for each of the {len(paths)} {kind}.")
    return names


def _models(options, preset: str | None) -> Iterator[tuple[str, UniMEModel | DualEncoder]]:
    """The models with their names, one loaded after the other; a dual encoder, such as CLIP, has no preset."""
    device = processes().device
    names = _distinct_names(options, options.models, "models")
    for name, path in zip(names, options.models):
        model = open_dual_encoder(path, device, options.trust_remote_code)
        if model is None:
            model = open_checkpoint(path, preset, trust_remote_code=options.trust_remote_code).to(device).eval()
        yield name, model


def _embedded(options) -> tuple[str, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """A task's name, and its pairs as each model embeds them: queries and answers, each `[N, D]`."""
    task, queries, answers = _pairs(options)
    embeddings = {}
    for name, model in _models(options, options.preset):
        embeddings[name] = (_embed(model, queries, "query", task), _embed(model, answers, "document", task))
    return task.name, embeddings


def _embed(model, items: list[Item], role: str, task: Task) -> torch.Tensor:
    """Embeddings `[N, D]` of a task's items, worded as its kind of benchmark is."""
    if isinstance(model, DualEncoder):
        return model.encode(_inputs(items), fusion="image")  # the gap is that of the two towers
    role, benchmark = model.processor.wording(role, task.benchmark, task.name)
    return model.encode(_inputs(items), role=role, benchmark=benchmark).float().cpu()


def _inputs(items: list[Item]) -> list[dict]:
    """Items as `encode` takes them."""
    return [item.as_input() for item in items]


# the figures
def similarity(options) -> Path:
    """Cosine matrices of matched pairs, a panel for each model."""
    task, embeddings = _embedded(options)
    return figures.similarity_matrix(embeddings, options.out, f"query of {task}", "its right candidate")


def embedding_map(options) -> Path:
    """Both sides of matched pairs on two axes, a panel for each model."""
    task, embeddings = _embedded(options)
    panels = {}
    for name, (queries, answers) in embeddings.items():
        panels[name] = {f"queries of {task}": queries, "right candidates": answers}
    return figures.embedding_map(panels, options.out)


def next_token(options) -> Path:
    """The most probable words after the prompt of some items, a column for each model."""
    _, queries, _ = _pairs(options)
    items = []
    for query in queries:
        # of an image with a question, the prompt is to sum up the image
        if query.image:
            query = replace(query, text="")
        items.append(query)

    # an embedder has no output head, but the model it was made from has
    backbone = UniMERerankerForCausalLM.from_backbone(
        options.head or options.models[0], trust_remote_code=options.trust_remote_code
    )
    head = backbone.get_output_embeddings().weight  # [vocabulary, D]

    panels = {}
    for name, model in _models(options, options.preset or "summary"):
        panels[name] = list(zip(items, _next_words(name, model, head, items, options.top)))
    return figures.next_tokens(panels, options.out)


def _next_words(
    name: str, model: UniMEModel, head: torch.Tensor, items: list[Item], count: int
) -> list[list[tuple[str, float]]]:
    """The most probable words after each item's prompt, with their probabilities."""
    if isinstance(model, DualEncoder):
        raise ValueError(f"{name} is a dual encoder, which has no language model to say a next word.")

    model.config.normalize = False  # the last hidden state itself
    states = model.encode_query(_inputs(items))  # [N, D]
    if states.shape[1] != head.shape[1]:
        raise ValueError(f"{name} has width {states.shape[1]}, the head {head.shape[1]}; name its own with --head.")

    # the output head of the backbone, applied to what the embedder makes of the prompt
    tokenizer = model.processor.tokenizer
    with torch.inference_mode():
        logits = states.to(head.device) @ head.float().T  # [N, vocabulary]
    logits = logits[:, : len(tokenizer)]  # checkpoints pad their vocabulary
    best = logits.softmax(-1).topk(count)  # [N, count]

    # as a person reads them
    words = []
    for token_ids, probabilities in zip(best.indices.tolist(), best.values.tolist()):
        texts = [tokenizer.decode([token_id]) for token_id in token_ids]
        words.append(list(zip(texts, probabilities)))
    return words


def stages(options) -> Path:
    """Bars of the means of several results of one benchmark."""
    results = load(options.inputs, options.names)
    benchmarks = sorted({result.content["benchmark"] for result in results})
    if len(benchmarks) > 1:
        raise ValueError(f"these are results of {', '.join(benchmarks)}; take one benchmark.")

    # two results of one name would be one bar
    means = {result.name: result.content["means"] for result in results}
    if len(means) != len(results):
        raise ValueError("--names takes a different name for each result.")
    return figures.stage_bars(means, options.out, f"{benchmarks[0]}, means")


def contact(options) -> Path:
    """Queries of one task with their best candidates: some that were answered rightly, then some that were not."""
    (result,) = load(options.inputs[:1])
    content = result.content

    # the data is read as it was for the model, unless it has moved
    tasks, _ = read_benchmark(content["benchmark"], moved_source(content["source"], options))
    tasks = _by_name(tasks)
    name = options.task or next(iter(tasks))
    task = _named(tasks, name)

    ranking, _ = read_arrays(result.path.with_name(RANKINGS))
    if f"{name}/top" not in ranking:
        raise ValueError(f"{result.path.with_name(RANKINGS)} holds no candidates of {name}.")

    top = ranking[f"{name}/top"]  # [Q, depth], positions in the task's corpus
    similarities = ranking[f"{name}/similarity"]  # [Q, depth]

    # the best of each query, right or wrong
    rows = []
    for number in _hits_and_misses(content["tasks"][name]["ranks"], options.count):
        best = _best_candidates(task, number, top[number, : options.top], similarities[number])
        rows.append((task.queries[number], best))

    score = content["tasks"][name]["score"]
    title = f"{result.name}, {name}: {score:.1%} right; hits first, then misses"
    return figures.contact_sheet(rows, options.out, title)


def _best_candidates(task: Task, number: int, positions, similarities) -> list[tuple[Item, float, bool]]:
    """The best candidates of a query, from positions and similarities `[k]`, and whether each is right."""
    right = {task.options(number)[place] for place in task.relevant[number]}
    best = []
    for position, similarity_value in zip(positions.tolist(), similarities):
        if position >= 0:  # -1 where a task has fewer candidates
            best.append((task.corpus[position], float(similarity_value), position in right))
    return best


def _hits_and_misses(ranks: list[int], count: int) -> list[int]:
    """Numbers of `count` queries: half of them hits, if there are so many, then misses."""
    hits = []
    misses = []
    for number, rank in enumerate(ranks):
        if rank == 1:
            hits.append(number)
        else:
            misses.append(number)

    # where there are few hits, misses fill the sheet
    hits = hits[: max(1, count // 2)]
    return hits + misses[: count - len(hits)]


def curves(options) -> Path:
    """Loss and gradient norm of trainings."""
    names = _distinct_names(options, options.inputs, "runs")
    runs = {}
    for name, path in zip(names, options.inputs):
        state_path = _trainer_state(Path(path))
        state = read_json(state_path)

        if not isinstance(state, dict) or "log_history" not in state:
            raise ValueError(f"{state_path} is not the state of a training: it has no log_history.")
        runs[name] = state["log_history"]
    return figures.training_curves(runs, options.out)


def _trainer_state(path: Path) -> Path:
    """The state of a training: the file itself, that of a folder, or that of its last checkpoint."""
    if path.is_file():
        return path
    state = path / "trainer_state.json"
    if state.exists():
        return state

    states = list(path.glob("checkpoint-*/trainer_state.json"))
    if not states:
        raise ValueError(f"{path} holds no trainer_state.json of a training.")
    return max(states, key=lambda state: int(state.parent.name.split("-")[1]))


DRAW = {
    "similarity": similarity,
    "next-token": next_token,
    "map": embedding_map,
    "stages": stages,
    "contact": contact,
    "curves": curves,
}


def execute(options):
    """Does what the options of `unime eval figures` say."""
    with one_line_errors("unime eval figures"):
        path = DRAW[options.kind](options)
    print(f"{path}\n{path.with_suffix('.csv')}")


def main(arguments=None):
    """The command `unime eval figures`."""
    execute(read(arguments))


if __name__ == "__main__":
    main()
