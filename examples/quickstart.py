"""The whole road in one command: draw a world, pre-train a small MLLM, make it an embedder, measure, search.

    python -m unime.examples.quickstart --out outputs

Every step leaves a file and is skipped when that file is there, so an interrupted run goes on where it stopped.
"""

if __name__ == "__main__":  # before the imports, some of which raise false alarms
    from unime.jobs.notices import be_quiet, silence_alarms

    silence_alarms()
    be_quiet()

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from ..data.schema import PLACEHOLDER, Item
from ..eval.figures import similarity_matrix
from ..eval.means import print_table, summarize
from ..eval.runner import evaluate
from ..eval.tasks import Task, read_world_tasks
from ..files.writing import has_json, move_into_place, read_json, write_json
from ..jobs.notices import be_quiet
from ..miniature.instructions import FIND_CAPTION, FIND_IMAGE, FIND_SIMILAR
from ..miniature.world import build
from ..modeling_unime import UniMEModel
from ..trainers.progress import TrainingBar
from ..trainers.resuming import last_checkpoint
from .common import load_for_cpu_or_gpu, make_trainer, pretrain_once
from .progress import Progress, Step

SEARCH = Path(__file__).parent / "search.py"
SEARCHES = (  # what is searched with what: a title, the task of the query with its instruction, and what is searched
    ("A picture for a caption", "Shapes_t2i", FIND_IMAGE, "images"),
    ("Another picture of the same", "Shapes_same", FIND_SIMILAR, "images"),
    ("A caption for a picture", "Shapes_i2t", FIND_CAPTION, "texts"),
)
QUERY = 2  # of each of these tasks: of earlier ones, rounding decides which of the two best comes first
FULL = {"world": {}, "backbone": {}, "training": {}}  # changes of the defaults; the tests make everything smaller


def run(out: Path, settings: dict):
    """Runs all steps that are not done yet, and prints how good the embedder is before and after its training.

    Args:
        out (`Path`): folder for everything that is made.
        settings (`dict`): arguments of `build` under `"world"`, and settings of the two trainings under `"backbone"`
            and `"training"`.
    """
    be_quiet()
    folder = out / "quickstart"
    folder.mkdir(parents=True, exist_ok=True)
    model_path = folder / "model"
    progress = Progress(folder / "seconds.json")

    with progress.step("1/6 Draw a world of pictures") as step:
        world = build(out / "world", show_progress=None, **settings["world"])
        tasks = read_world_tasks(world)
        by_name = {task.name: task for task in tasks}
        step.result = f"{len(tasks)} tasks ({world / 'contact_sheet.png'})"

    with progress.step("2/6 Teach a small Qwen2-VL to see, describe, answer and judge") as step:
        bar = TrainingBar(step.title)
        backbone = pretrain_once(world, out / "backbone", bar, **settings["backbone"])
        describe_training(step, bar)

    with progress.step("3/6 Measure it as it is, as an embedder with the summary prompt") as step:
        raw = load_for_cpu_or_gpu(backbone, "summary")
        measure(raw, tasks, folder / "base.json", step)

    with progress.step("4/6 Train it to embed, by contrast with hard negatives") as step:
        bar = TrainingBar(step.title)
        if not model_path.exists():
            train(world, backbone, folder, bar, settings["training"])
        describe_training(step, bar)

    with progress.step("5/6 Measure the trained embedder") as step:
        model = load_for_cpu_or_gpu(model_path)
        measure(model, tasks, folder / "tuned.json", step)

        # the picture is cheap and drawn every time
        draw_similarity(raw, model, by_name["Shapes_i2t"], folder / "similarity.png")

    with progress.step("6/6 Search in a fresh process, through AutoModel") as step:
        gallery = write_gallery(world, by_name, folder / "gallery.json")
        copy_examples(by_name["Shapes_i2t"], folder / "examples")
        command = [sys.executable, str(SEARCH), str(model_path), str(gallery), str(folder / "search.png")]
        command.append("--trust-remote-code")  # the code beside this model is the package's own
        search = subprocess.run(command, check=False, capture_output=True, text=True)
        if search.returncode != 0:
            sys.exit(f"\n{search.stderr}{' '.join(command)} failed.")
        step.result = f"{len(SEARCHES)} searches"
    print(search.stdout, end="")

    report(folder, round(progress.total, 1))
    print(
        f"\nThe model is in {model_path}; results.json, similarity.png and search.png are beside it. "
        f"{progress.total:.0f} s in all."
    )


def describe_training(step: Step, bar: TrainingBar):
    """Lets a step say what its training came to, if there was any."""
    if bar.steps:
        step.result = f"{bar.steps} steps" if bar.loss is None else f"{bar.steps} steps, loss {bar.loss:.3f}"


def measure(model: UniMEModel, tasks: list[Task], path: Path, step: Step):
    """Measures an embedder on all tasks, unless the results are there; a step says how good it is on the whole."""
    if has_json(path):
        return
    results = evaluate(model, tasks, show_progress=False)
    write_json(path, results)

    # tiny worlds have no task with 100 candidates
    mean = summarize(results).get("mean")
    step.result = f"{len(tasks)} tasks" if mean is None else f"mean precision@1 {mean:.3f}"


def train(world: Path, backbone: Path, folder: Path, bar: TrainingBar, changes: dict):
    """Trains the embedder, going on from a checkpoint of an interrupted run."""
    trainer = make_trainer(world, backbone, **changes, output_dir=str(folder / "training"))
    bar.attach(trainer)
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


def write_gallery(world: Path, by_name: dict[str, Task], path: Path) -> Path:
    """Writes what `search.py` reads: a query of three tasks, and all test images and captions to search."""
    # tasks share pictures: each is listed once
    pictures = by_name["Shapes_t2i"].corpus + by_name["Shapes_same"].corpus
    images = list(dict.fromkeys(item.image for item in pictures))
    texts = list(dict.fromkeys(item.text for item in by_name["Shapes_i2t"].corpus))

    # what each entry says or shows
    descriptions = read_json(world / "truth" / "test" / "pictures.json")
    root = world.resolve()
    shown = [descriptions[Path(image).resolve().relative_to(root).as_posix()] for image in images]
    contents = {"images": shown, "texts": texts}

    queries = []
    for title, name, instruction, over in SEARCHES:
        task = by_name[name]
        answer = task.corpus[task.candidates[QUERY][0]]  # the first candidate is right
        entries = {"images": images, "texts": texts}[over]
        content = contents[over][entries.index(answer.image or answer.text)]

        # several entries may say or show the same
        right = [number for number, other in enumerate(contents[over]) if other == content]

        # a stranger writes no placeholder, and gives the instruction by itself; the line break that texts of this
        # data end in stays, as they were trained with it
        query = task.queries[QUERY]
        words = query.text.replace(PLACEHOLDER, "").replace(instruction, "").lstrip()
        item = Item(words, query.image).as_input()
        queries.append({"title": title, "instruction": instruction, "item": item, "over": over, "right": right})

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
