"""The whole chain on the miniature world: every stage of the papers, and what each is worth.

    python -m unime.examples.chain --out outputs --seeds 1

backbone -> stage 1 (distillation) -> stage 2 (contrastive) -> mining with a judge -> alignment -> reranker; beside it
stage 2 alone, and contrastive training on the mined rows in place of alignment. Every stage runs its recipe of
`recipes/shapes` through its own command, leaves a folder, and is skipped when that is there, so an interrupted chain
goes on where it stopped.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
from pathlib import Path

import torch

from ..eval.means import summarize
from ..eval.rerank import run_rerank
from ..eval.runner import evaluate, run_benchmark
from ..eval.tasks import read_world_tasks
from ..jobs.embedding import Embedder
from ..jobs.reranking import Reranker
from ..miniature.backbone import BackboneConfig, last_checkpoint, pretrain
from ..miniature.judge import JudgeConfig, train_judge
from ..miniature.teacher import train_teacher
from ..miniature.world import build
from ..modeling_unime import UniMEModel
from ..trainers import alignment, contrastive, distillation, reranker
from .mining import false_negatives, mine, print_shares
from .quickstart import load_for_cpu_or_gpu, write_json

RECIPES = Path(__file__).parent.parent / "recipes" / "shapes"
KINDS = ("Classification", "VQA", "Retrieval", "Grounding", "Compositional", "mean")


def train(stage, name: str, start: Path, out: Path, **changes) -> Path:
    """Runs a stage's recipe from `start` to `out`, going on from a checkpoint of an interrupted run."""
    if out.exists():
        return out
    work = out.with_name(f"{out.name}.tmp")
    arguments = ["--config", str(RECIPES / f"{name}.yaml"), "--model_name_or_path", str(start)]
    arguments += ["--output_dir", str(work), "--disable_tqdm", "True"]
    if checkpoint := last_checkpoint(work):
        arguments += ["--resume_from_checkpoint", checkpoint]
    stage.main(arguments + [word for key, value in changes.items() for word in (f"--{key}", str(value))])
    for checkpoint in work.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    os.replace(work, out)
    return out


def measure(model: UniMEModel, tasks, path: Path) -> dict:
    """Means of precision@1 by task kind, kept in a file."""
    if not path.exists():
        write_json(path, summarize(evaluate(model, tasks, show_progress=False)))
    return json.loads(path.read_text())


def measure_reranked(embedder: Path, reranker: Path, tasks, world: Path, out: Path) -> dict:
    """As `measure`, over the first 30 queries of each task, before and after the ten best candidates are reranked."""
    first = run_benchmark("world", tasks, Embedder(embedder), out, world)
    path = run_rerank(first, tasks, Reranker(reranker), 10, world, limit=30)
    after = json.loads(path.read_text(encoding="utf-8"))["tasks"]
    before = {name: {**own, "score": own["before"]["precision@1"]} for name, own in after.items()}
    return {"before": summarize(before), "after": summarize(after)}


def run(out: Path, seeds: int, settings: dict):
    world = build(out / "world", **settings["world"])
    tasks = read_world_tasks(world)
    backbone = out / "backbone"
    if not (backbone / "model.safetensors").exists():
        pretrain(world, BackboneConfig(output_dir=str(backbone), **settings["backbone"]))
    judge = out / "judge"
    if not (judge / "model.safetensors").exists():
        larger = out / "judge-backbone"
        if not (larger / "model.safetensors").exists():
            pretrain(world, BackboneConfig(output_dir=str(larger), layers=4, **settings["backbone"]))
        train_judge(larger, JudgeConfig(output_dir=str(judge), **settings["judge"]))
    teacher = train_teacher(world / "nli" / "nli_for_simcse.csv", out / "teacher", settings["teacher_epochs"])
    home = out / "chain"
    home.mkdir(parents=True, exist_ok=True)
    raw = measure(load_for_cpu_or_gpu(backbone, preset="summary"), tasks, home / "raw.json")
    lines = {"raw backbone": [raw]}
    for seed in range(seeds):
        here = home / f"seed-{seed}"
        here.mkdir(exist_ok=True)
        shared, steps = {"seed": seed}, settings["steps"]
        first = train(
            distillation,
            "distillation",
            backbone,
            here / "stage-1",
            **shared,
            **steps["distillation"],
            data=world / "nli" / "nli_for_simcse.csv",
            teacher=teacher,
            teacher_embeddings=out / "teacher-embeddings",
        )
        mmeb = {"data": world / "train", "image_root": world, **shared, **steps["contrastive"]}
        alone = train(contrastive, "contrastive", backbone, here / "stage-2-alone", **mmeb)
        both = train(contrastive, "contrastive", first, here / "stages-1-2", **mmeb)
        for title, path in (("stage 1", first), ("stage 2 alone", alone), ("stages 1 + 2", both)):
            lines.setdefault(title, []).append(measure(load_for_cpu_or_gpu(path), tasks, here / f"{path.name}.json"))
        if seed == 0:  # the rows are mined once, and every seed trains on the same
            mining = mine(world, both, judge, home / "mined", **settings["mining"])
            write_json(home / "false_negatives.json", false_negatives(world, mining))
        mined = {"data": home / "mined" / "judged.json", "image_root": world, **shared}
        control = train(contrastive, "contrastive-mined", both, here / "contrastive-mined", **mined, **steps["mined"])
        aligned = train(alignment, "alignment", both, here / "aligned", **mined, **steps["mined"])
        for title, path in (("+ contrastive, mined", control), ("+ alignment", aligned)):
            lines.setdefault(title, []).append(measure(load_for_cpu_or_gpu(path), tasks, here / f"{path.name}.json"))
        if seed > 0:  # as with mining, one is enough
            continue
        ranked = train(reranker, "reranker", judge, here / "reranker", **mined, **steps["reranker"])
        found = measure_reranked(aligned, ranked, tasks, world, here / "eval")
        lines.setdefault("  (30 queries)", []).append(found["before"])
        lines.setdefault("+ reranker", []).append(found["after"])
    write_json(home / "table.json", lines)
    print_shares(json.loads((home / "false_negatives.json").read_text()))
    print_lines(lines)


def print_lines(lines: dict[str, list[dict]]):
    """Stage x task kind: the mean of precision@1 over seeds, and how far seeds spread."""
    print(f"\n{'precision@1':<22}" + "".join(f"{kind:>16}" for kind in KINDS))
    for title, found in lines.items():
        cells = []
        for kind in KINDS:
            values = [means[kind] for means in found if kind in means]
            spread = f" ±{statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}" if values else "-")
        print(f"{title:<22}" + "".join(f"{cell:>16}" for cell in cells))


FULL = {
    "world": {},
    "backbone": {},
    "judge": {},
    "teacher_epochs": 8,
    "mining": {},
    "steps": {"distillation": {}, "contrastive": {"max_steps": 250}, "mined": {}, "reranker": {}},
}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="folder for everything that is made")
    parser.add_argument("--seeds", type=int, default=1, help="train every stage that often")
    options = parser.parse_args(arguments)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one GPU is plenty, and several need a launcher
    torch.set_float32_matmul_precision("high")
    try:
        run(options.out, options.seeds, FULL)
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. Run the same command again and it goes on from here.")


if __name__ == "__main__":
    main()
