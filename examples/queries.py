"""Queries that a model writes against true ones: what an embedder learns from each on the miniature world.

    python -m unime.examples.queries --world outputs/world --backbone outputs/backbone --judge outputs/judge

The backbone describes training pictures, and the judge keeps the descriptions that it takes to be right. One embedder
is trained to find a picture by these, another by the true captions of the same pictures.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from ..data.readers import read_mmeb_train
from ..data.schema import Item
from ..eval.runner import evaluate
from ..eval.tasks import read_world_tasks
from ..files.writing import write_json_lines
from ..jobs.notices import silence_alarms
from ..miniature.instructions import FIND_IMAGE, REPRESENT_IMAGE
from ..miniature.recipes import run_recipe
from ..mining.queries import write_queries
from ..mining.settings import QueriesConfig
from ..trainers import contrastive
from ..trainers.starting import load_model
from .common import is_trained

TASK = "Shapes_t2i"  # a picture by its caption
KIND = "find"
DESCRIBE = "Describe the image."  # what the backbone was taught to answer


def true_rows(world: Path, count: int) -> list[dict]:
    """The first training rows of the task, as rows of pairs.

    Args:
        world (`Path`): written by `unime.miniature.world`.
        count (`int`): how many.
    """
    rows = read_mmeb_train(world / "train", [TASK], image_root=world, limit=count)
    pairs = []
    for query, positive in zip(rows["query"], rows["positive"]):
        image = Path(positive["image"]).relative_to(world)
        text = Item(**query).text.strip()  # as written ones are, without MMEB's line break
        answer = {"image": str(image), "text": REPRESENT_IMAGE}
        pairs.append({"query": text, "positive": answer, "dataset": TASK})
    return pairs


def written_rows(world: Path, backbone: Path, judge: Path, out: Path, truth: list[dict], **changes) -> list[dict]:
    """Rows of the same pictures, with queries that the backbone wrote and the judge kept.

    Args:
        world (`Path`): where paths of pictures start.
        backbone, judge (`Path`): who writes, and who judges.
        out (`Path`): folder of the job.
        truth (`list[dict]`): made by [`true_rows`].
        changes: settings of [`~unime.mining.settings.QueriesConfig`].
    """
    # the corpus lies where its pictures are named from
    pictures = [{"image": row["positive"]["image"]} for row in truth]
    corpus = world / "queries-corpus.jsonl"
    write_json_lines(corpus, pictures)
    kind = {"of": "image", "instruction": FIND_IMAGE, "request": DESCRIBE, "document": REPRESENT_IMAGE}
    settings = {"own_kinds": {KIND: kind}, "kinds": [KIND], "count": 1, "new_tokens": 48, **changes}
    path = write_queries(
        QueriesConfig(data=str(corpus), out=str(out), model=str(backbone), judge=str(judge), **settings)
    )
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def share_of_true(written: list[dict], truth: list[dict]) -> float:
    """How many of the written queries are, word by word, what the world itself says of the picture."""
    captions = {}
    for row in truth:
        captions[row["positive"]["image"]] = row["query"]
    return float(np.mean([row["query"] == captions[row["positive"]["image"]] for row in written]))


def precision(start: Path, world: Path, preset: str | None = None) -> float:
    """Precision@1 of an embedder, or of a stock VLM with a preset, on the task's test queries, in percent."""
    tasks = [task for task in read_world_tasks(world) if task.name == TASK]
    result = evaluate(load_model(start, preset), tasks, show_progress=False)[TASK]
    return 100 * float(np.mean(np.array(result["ranks"]) == 1))


def compare(
    world: Path, backbone: Path, judge: Path, out: Path, count: int, seeds: int, training: dict, **writing
) -> dict[str, list[float]]:
    """Precision@1 by what was trained on: one number for each seed.

    Args:
        world, backbone, judge (`Path`): of the miniature world.
        out (`Path`): folder of everything that is made; what is there is not made again.
        count (`int`): pictures.
        seeds (`int`): how often each embedder is trained.
        training (`dict`): options of the training in place of the recipe's.
        writing: settings of [`written_rows`].
    """
    truth = true_rows(world, count)
    written = written_rows(world, backbone, judge, out / "written", truth, **writing)
    share = 100 * share_of_true(written, truth)
    print(f"{len(written)} of {len(truth)} queries kept; {share:.1f} % of them are the true ones, word by word")

    table = {"nothing": [precision(backbone, world, "joint")]}
    for name, rows in (("true queries", truth), ("written queries", written)):
        data = out / f"{name.split()[0]}.jsonl"
        write_json_lines(data, rows)
        table[name] = []
        for seed in range(seeds):
            folder = out / f"{data.stem}-{seed}"
            if not is_trained(folder):
                options = {"data": data, "image_root": world, "seed": seed, **training}
                run_recipe(contrastive, "contrastive", backbone, folder, options)
            table[name].append(precision(folder, world))
    return table


def main(arguments=None):
    """The command `python -m unime.examples.queries`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, default=Path("outputs/world"))
    parser.add_argument("--backbone", type=Path, default=Path("outputs/backbone"))
    parser.add_argument("--judge", type=Path, default=Path("outputs/judge"))
    parser.add_argument("--out", type=Path, default=Path("outputs/queries"))
    parser.add_argument("--count", type=int, default=1000, help="pictures")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args(arguments)
    silence_alarms()

    changes = {"max_steps": options.steps}
    table = compare(options.world, options.backbone, options.judge, options.out, options.count, options.seeds, changes)
    for name, values in table.items():
        each = ", ".join(f"{value:.1f}" for value in values)
        print(f"trained on {name:<16} precision@1 {np.mean(values):5.1f}  ({each})")


if __name__ == "__main__":
    main()
