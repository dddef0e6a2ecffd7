"""The whole chain on the miniature world: every stage of the papers, and what each is worth.

    python -m unime.examples.chain --out outputs --seeds 1

backbone -> stage 1 (distillation) -> stage 2 (contrastive) -> mining with a judge -> alignment -> reranker; beside it
stage 2 alone, and contrastive training on the mined rows in place of alignment. Every stage runs its recipe of
`recipes/shapes` through its own command, leaves a folder, and is skipped when that is there, so an interrupted chain
goes on where it stopped.
"""

import argparse
import os
import shutil
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from ..eval.means import summarize
from ..eval.rerank import run_rerank
from ..eval.runner import evaluate, run_benchmark
from ..eval.tasks import Task, read_world_tasks
from ..files.writing import has_json, move_into_place, read_json, write_json
from ..jobs.embedding import Embedder
from ..jobs.notices import silence_alarms
from ..jobs.reranking import Reranker
from ..miniature.judge import JudgeConfig, train_judge
from ..miniature.recipes import run_recipe
from ..miniature.teacher import train_teacher
from ..miniature.world import build
from ..modeling_unime import UniMEModel
from ..trainers import alignment, contrastive, distillation, reranker
from .common import is_trained, load_for_cpu_or_gpu, pretrain_once
from .mining import false_negatives, mine, print_shares

KINDS = ("Classification", "VQA", "Retrieval", "Grounding", "Compositional", "mean")
FULL = {  # changes of the defaults; the tests make everything smaller
    "world": {},
    "backbone": {},
    "judge": {},
    "teacher_epochs": 8,
    "mining": {},
    "steps": {"distillation": {}, "contrastive": {"max_steps": 250}, "mined": {}, "reranker": {}},
}


@dataclass(frozen=True)
class Start:
    """What every seed starts from: the world, its evaluation tasks, and the models that are trained once."""

    world: Path
    tasks: list[Task]
    backbone: Path
    judge: Path
    teacher: Path

    @property
    def pairs(self) -> Path:
        """The sentence pairs of the world."""
        return self.world / "nli" / "nli_for_simcse.csv"


def run(out: Path, seeds: int, settings: dict):
    """Runs everything that is not done yet, and prints what each stage is worth.

    Args:
        out (`Path`): folder for everything that is made.
        seeds (`int`): how often the stages are trained.
        settings (`dict`): changes of the defaults, with the keys of `FULL`.
    """
    start = prepare(out, settings)
    folder = out / "chain"
    folder.mkdir(parents=True, exist_ok=True)

    # the lines of the table: for each title, the means of every seed
    raw = measure(load_for_cpu_or_gpu(start.backbone, "summary"), start.tasks, folder / "raw.json")
    lines = {"raw backbone": [raw]}
    for seed in range(seeds):
        seed_folder = folder / f"seed-{seed}"
        seed_folder.mkdir(exist_ok=True)
        embedders = train_two_stages(start, seed_folder, seed, settings["steps"])
        for title, path in embedders.items():
            lines.setdefault(title, []).append(measure_saved(path, start.tasks))

        # the rows are mined once, and every seed trains on the same
        both = embedders["stages 1 + 2"]
        if seed == 0:
            mining = mine(start.world, both, start.judge, folder / "mined", **settings["mining"])
            write_json(folder / "false_negatives.json", false_negatives(start.world, mining))

        mined = {"data": folder / "mined" / "judged", "image_root": start.world, "seed": seed}
        embedders = train_on_mined(both, seed_folder, mined | settings["steps"]["mined"])
        for title, path in embedders.items():
            lines.setdefault(title, []).append(measure_saved(path, start.tasks))

        # one reranker is enough, as with mining
        if seed == 0:
            changes = mined | settings["steps"]["reranker"]
            ranked = train(reranker, "reranker", start.judge, seed_folder / "reranker", **changes)
            means = measure_reranked(embedders["+ alignment"], ranked, start, seed_folder / "eval")
            lines["  (30 queries)"] = [means["before"]]
            lines["+ reranker"] = [means["after"]]

    write_json(folder / "table.json", lines)
    print_shares(read_json(folder / "false_negatives.json"))
    print_lines(lines)


# training
def prepare(out: Path, settings: dict) -> Start:
    """Draws the world and trains the backbone, the judge with a larger backbone of its own, and the teacher."""
    world = build(out / "world", **settings["world"])
    backbone = pretrain_once(world, out / "backbone", **settings["backbone"])

    # judging takes more layers than embedding
    judge = out / "judge"
    if not is_trained(judge):
        larger = pretrain_once(world, out / "judge-backbone", layers=4, **settings["backbone"])
        train_judge(larger, JudgeConfig(output_dir=str(judge), **settings["judge"]))

    start = Start(world, read_world_tasks(world), backbone, judge, out / "teacher")
    train_teacher(start.pairs, start.teacher, settings["teacher_epochs"])
    return start


def train_two_stages(start: Start, folder: Path, seed: int, steps: dict) -> dict[str, Path]:
    """Stage 1, stage 2 alone, and stage 2 after stage 1: an embedder each, by its title in the table."""
    first = train(
        distillation,
        "distillation",
        start.backbone,
        folder / "stage-1",
        seed=seed,
        **steps["distillation"],
        data=start.pairs,
        teacher=start.teacher,
        teacher_embeddings=start.teacher.with_name("teacher-embeddings"),
    )

    # both trainings of stage 2 differ in nothing but where they start
    changes = {"data": start.world / "train", "image_root": start.world, "seed": seed, **steps["contrastive"]}
    alone = train(contrastive, "contrastive", start.backbone, folder / "stage-2-alone", **changes)
    both = train(contrastive, "contrastive", first, folder / "stages-1-2", **changes)
    return {"stage 1": first, "stage 2 alone": alone, "stages 1 + 2": both}


def train_on_mined(start: Path, folder: Path, changes: dict) -> dict[str, Path]:
    """Contrastive training and alignment on the mined rows: an embedder each, by its title in the table."""
    control = train(contrastive, "contrastive-mined", start, folder / "contrastive-mined", **changes)
    aligned = train(alignment, "alignment", start, folder / "aligned", **changes)
    return {"+ contrastive, mined": control, "+ alignment": aligned}


def train(stage, name: str, start: Path, out: Path, **changes) -> Path:
    """Runs a stage's recipe, going on from a checkpoint of an interrupted run, unless the result is there.

    Args:
        stage (module): of `trainers`, with a `main`.
        name (`str`): of the recipe.
        start (`Path`): the model that is trained.
        out (`Path`): folder of the result.
        changes: options of the stage in place of the recipe's.
    """
    if out.exists():
        return out

    work = out.with_name(f"{out.name}.tmp")

    run_recipe(stage, name, start, work, changes)

    # moved into place at the end: a folder that exists holds a finished model
    for folder in work.glob("checkpoint-*"):
        shutil.rmtree(folder)
    move_into_place(work, out)
    return out


# measuring
def measure(model: UniMEModel, tasks: list[Task], path: Path) -> dict[str, float]:
    """Means of precision@1 by task kind, from a file where they were measured before."""
    if not has_json(path):
        write_json(path, summarize(evaluate(model, tasks, show_progress=False)))
    return read_json(path)


def measure_saved(path: Path, tasks: list[Task]) -> dict[str, float]:
    """As [`measure`], of an embedder in a folder, with the file beside it."""
    return measure(load_for_cpu_or_gpu(path), tasks, path.with_name(f"{path.name}.json"))


def measure_reranked(embedder: Path, reranker: Path, start: Start, out: Path) -> dict[str, dict[str, float]]:
    """As [`measure`], over the first 30 queries of each task, `"before"` and `"after"` the ten best candidates are
    reranked."""
    retrieved = run_benchmark("world", start.tasks, Embedder(embedder), out, start.world)
    path = run_rerank(retrieved, start.tasks, Reranker(reranker), 10, start.world, limit=30)
    after = read_json(path)["tasks"]

    # the same results, with the score that was before; `summarize` prefers "score" to precision@1
    before = {}
    for name, result in after.items():
        before[name] = {**result, "score": result["before"]["precision@1"]}
    return {"before": summarize(before), "after": summarize(after)}


def print_lines(lines: dict[str, list[dict[str, float]]]):
    """Stage x task kind: the mean of precision@1 over seeds, and how far seeds spread."""
    print()
    print(_line("precision@1", KINDS))
    for title, means_by_seed in lines.items():
        cells = []
        for kind in KINDS:
            # "mean" is missing where no task has 100 candidates
            values = [means[kind] for means in means_by_seed if kind in means]
            cells.append(_cell(values))
        print(_line(title, cells))


def _cell(values: list[float]) -> str:
    """A mean, with the standard deviation where there are several values."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ±{statistics.stdev(values):.3f}"


def _line(title: str, cells) -> str:
    """A line of the table."""
    return f"{title:<22}" + "".join(f"{cell:>16}" for cell in cells)


def main(arguments=None):
    """The command `python -m unime.examples.chain`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="folder for everything that is made")
    parser.add_argument("--seeds", type=int, default=1, help="train every stage that often")
    options = parser.parse_args(arguments)
    silence_alarms()

    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one GPU is plenty, and several need a launcher
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU: much faster, and exact enough for training
    try:
        run(options.out, options.seeds, FULL)
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. Run the same command again and it goes on from here.")


if __name__ == "__main__":
    main()
