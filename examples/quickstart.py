"""The whole road in one command: draw a world, pre-train a small MLLM, make it an embedder, measure, search.

    python -m unime.examples.quickstart --out outputs

Every step leaves a file and is skipped when that file is there, so an interrupted run goes on where it stopped.
"""

if __name__ == "__main__":  # before the imports, some of which raise false alarms
    from unime.jobs.notices import silence_alarms

    silence_alarms()

import argparse
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from ..data.schema import PLACEHOLDER
from ..eval.figures import similarity_matrix
from ..eval.means import print_table, summarize
from ..eval.runner import evaluate
from ..eval.tasks import Task, read_world_tasks
from ..files.writing import has_json, move_into_place, read_json, write_json
from ..miniature.backbone import last_checkpoint
from ..miniature.world import build
from ..modeling_unime import UniMEModel
from .common import load_for_cpu_or_gpu, make_trainer, pretrain_once

SEARCH = Path(__file__).parent / "search.py"
SEARCHES = (  # what is searched with what: a title, the task of the query, and what is searched
    ("text to image", "Shapes_t2i", "images"),
    ("image and text to image", "Shapes_change", "images"),
    ("image to text", "Shapes_i2t", "texts"),
)
FULL = {"world": {}, "backbone": {}, "training": {}}  # changes of the defaults; the tests make everything smaller


class Clock:
    """Seconds spent in each step, in a file, so that a resumed run reports the whole.

    Args:
        path (`Path`): of the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.seconds = read_json(path) if has_json(path) else {}

    @contextmanager
    def step(self, title: str):
        """Prints a step's title, and adds what it takes to its seconds, also where it is interrupted."""
        print(f"\n== {title}", flush=True)
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = self.seconds.get(title, 0) + time.perf_counter() - start
            self.seconds[title] = round(seconds, 1)
            write_json(self.path, self.seconds)


def run(out: Path, settings: dict):
    """Runs all steps that are not done yet, and prints how good the embedder is before and after its training.

    Args:
        out (`Path`): folder for everything that is made.
        settings (`dict`): arguments of `build` under `"world"`, and settings of the two trainings under `"backbone"`
            and `"training"`.
    """
    folder = out / "quickstart"
    folder.mkdir(parents=True, exist_ok=True)
    model_path = folder / "model"
    clock = Clock(folder / "seconds.json")

    with clock.step("1/6 The world"):
        world = build(out / "world", **settings["world"])
        tasks = read_world_tasks(world)
        by_name = {task.name: task for task in tasks}
        print(f"{len(tasks)} tasks; look at {world / 'contact_sheet.png'}")

    with clock.step("2/6 The backbone: a small Qwen2-VL learns to see, describe, answer and judge"):
        backbone = pretrain_once(world, out / "backbone", **settings["backbone"])

    with clock.step("3/6 The raw backbone as an embedder, with the summary prompt"):
        if not has_json(folder / "base.json"):
            results = evaluate(load_for_cpu_or_gpu(backbone, "summary"), tasks)
            write_json(folder / "base.json", results)

    with clock.step("4/6 Contrastive training with hard negatives"):
        if not model_path.exists():
            train(world, backbone, folder, settings["training"])

    with clock.step("5/6 The trained embedder"):
        model = load_for_cpu_or_gpu(model_path)
        if not has_json(folder / "tuned.json"):
            write_json(folder / "tuned.json", evaluate(model, tasks))

        # the picture is cheap and drawn every time
        raw = load_for_cpu_or_gpu(backbone, "summary")
        draw_similarity(raw, model, by_name["Shapes_i2t"], folder / "similarity.png")

    with clock.step("6/6 Three searches in a fresh process, through AutoModel"):
        gallery = write_gallery(by_name, folder / "gallery.json")
        copy_examples(by_name["Shapes_i2t"], folder / "examples")
        command = [sys.executable, str(SEARCH), str(model_path), str(gallery), str(folder / "search.png")]
        subprocess.run(command, check=True)  # a search that fails stops the run

    seconds = round(sum(clock.seconds.values()), 1)
    report(folder, seconds)
    print(
        f"\nThe model is in {model_path}; results.json, similarity.png and search.png are beside it. "
        f"{seconds:.0f} s in all."
    )


def train(world: Path, backbone: Path, folder: Path, changes: dict):
    """Trains the embedder, going on from a checkpoint of an interrupted run."""
    trainer = make_trainer(world, backbone, **changes, output_dir=str(folder / "training"))
    trainer.train(resume_from_checkpoint=last_checkpoint(trainer.args.output_dir))

    # moved into place at the end: a folder that exists holds a finished model
    trainer.save_model(str(folder / "model.tmp"))
    move_into_place(folder / "model.tmp", folder / "model")


def report(folder: Path, seconds: float):
    """Writes precision@1 of both embedders to `results.json`, and prints it as a table."""
    summary = {}
    results = {}
    for name in ("base", "tuned"):
        results[name] = read_json(folder / f"{name}.json")
        summary[name] = {}
        for task, result in results[name].items():
            summary[name][task] = result["precision@1"]
        summary[name]["mean"] = summarize(results[name]).get("mean")  # null where no task has 100 candidates
    summary["seconds"] = seconds

    write_json(folder / "results.json", summary)
    print_table({"raw": results["base"], "trained": results["tuned"]})


def draw_similarity(raw: UniMEModel, trained: UniMEModel, task: Task, path: Path):
    """The cosine matrix of 50 images and their captions, before and after training."""
    images = []
    captions = []
    for query, candidates in zip(task.queries[:50], task.candidates[:50]):
        images.append(query.as_input())
        captions.append(task.corpus[candidates[0]].as_input())  # the first candidate is right

    panels = {}
    for title, model in (("before", raw), ("after", trained)):
        panels[title] = (model.encode_query(images), model.encode_document(captions))
    similarity_matrix(panels, path, "image", "caption")


def write_gallery(by_name: dict[str, Task], path: Path) -> Path:
    """Writes what `search.py` reads: the first query of three tasks, and all test images and captions to search."""
    # tasks share pictures: each is listed once
    pictures = by_name["Shapes_t2i"].corpus + by_name["Shapes_change"].corpus
    images = list(dict.fromkeys(item.image for item in pictures))
    texts = list(dict.fromkeys(item.text for item in by_name["Shapes_i2t"].corpus))

    queries = []
    for title, name, over in SEARCHES:
        task = by_name[name]
        answer = task.corpus[task.candidates[0][0]]
        target = images.index(answer.image) if over == "images" else texts.index(answer.text)

        # a stranger would not write a placeholder
        item = task.queries[0].as_input()
        if "text" in item:
            item["text"] = item["text"].replace(PLACEHOLDER, "").strip()
        queries.append({"title": title, "item": item, "over": over, "target": target})

    gallery = {"images": images, "texts": texts, "queries": queries}
    write_json(path, gallery)
    return path


def copy_examples(task: Task, folder: Path):
    """A hundred test pictures under plain names, for the README's snippets and the demo."""
    folder.mkdir(exist_ok=True)
    for number, query in enumerate(task.queries[:100]):
        shutil.copy(query.image, folder / f"{number}.png")


def main(arguments=None):
    """The command `python -m unime.examples.quickstart`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="folder for everything that is made")
    out = parser.parse_args(arguments).out

    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one GPU is plenty, and several need a launcher
    try:
        run(out, FULL)
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. Run the same command again and it goes on from here.")


if __name__ == "__main__":
    main()
