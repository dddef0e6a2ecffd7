"""The whole road in one command: draw a world, pre-train a small MLLM, make it an embedder, measure, search.

    python -m unime.examples.quickstart --out outputs

Every stage leaves a file and is skipped when that file is there, so an interrupted run goes on where it stopped.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml
from transformers import HfArgumentParser

from ..data.readers import read_mmeb_train
from ..data.schema import PLACEHOLDER
from ..eval.figures import similarity_matrix
from ..eval.means import print_table, summarize
from ..eval.runner import evaluate
from ..eval.tasks import read_world_tasks
from ..jobs.shards import write_text
from ..miniature.backbone import BackboneConfig, last_checkpoint, pretrain
from ..miniature.world import build
from ..modeling_unime import UniMEModel
from ..trainers.contrastive import ContrastiveConfig, ContrastiveTrainer
from ..trainers.stage import plain_attention

RECIPE = Path(__file__).parent.parent / "recipes" / "shapes" / "contrastive.yaml"
SEARCH = Path(__file__).parent / "search.py"


class Clock:
    """Seconds spent in each stage, kept in a file so that a resumed run reports the whole."""

    def __init__(self, path: Path):
        self.path = path
        self.seconds = json.loads(path.read_text()) if path.exists() else {}

    @contextmanager
    def stage(self, name: str):
        print(f"\n== {name}", flush=True)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0) + time.perf_counter() - start, 1)
            write_json(self.path, self.seconds)


def load_for_cpu_or_gpu(path, **kwargs) -> UniMEModel:
    """Loads an embedder; on a CPU its text attention runs as plain matrix products, whose backward is faster there."""
    load = UniMEModel.from_backbone if kwargs else UniMEModel.from_pretrained
    model = load(path, dtype=torch.float32, **kwargs)
    if torch.cuda.is_available():
        return model.to("cuda")
    plain_attention(model)
    return model


def write_json(path: Path, content):
    """Writes a file that is there whole or not at all."""
    write_text(path, json.dumps(content, indent=1))


def measure(model, tasks, path: Path):
    results = evaluate(model, tasks)
    write_json(path, results)


def run(out: Path, settings: dict):
    home = out / "quickstart"
    home.mkdir(parents=True, exist_ok=True)
    clock = Clock(home / "seconds.json")
    model_path, base_path, tuned_path = home / "model", home / "base.json", home / "tuned.json"

    with clock.stage("1/6 The world"):
        world = build(out / "world", **settings["world"])
        tasks = read_world_tasks(world)
        print(f"{len(tasks)} tasks; look at {world / 'contact_sheet.png'}")
    with clock.stage("2/6 The backbone: a small Qwen2-VL learns to see, describe, answer and judge"):
        backbone = out / "backbone"
        if not (backbone / "model.safetensors").exists():  # written last
            pretrain(world, BackboneConfig(output_dir=str(backbone), **settings["backbone"]))
    with clock.stage("3/6 The raw backbone as an embedder, with the summary prompt"):
        if not base_path.exists():
            measure(load_for_cpu_or_gpu(backbone, preset="summary"), tasks, base_path)
    with clock.stage("4/6 Contrastive training with hard negatives"):
        if not model_path.exists():
            train(world, backbone, home, settings["training"])
    with clock.stage("5/6 The trained embedder"):
        model = load_for_cpu_or_gpu(model_path)
        if not tuned_path.exists():
            measure(model, tasks, tuned_path)
        draw_similarity(load_for_cpu_or_gpu(backbone, preset="summary"), model, tasks, home / "similarity.png")
    with clock.stage("6/6 Three searches in a fresh process, through AutoModel"):
        gallery = write_gallery(tasks, home / "gallery.json")
        copy_examples(tasks, home / "examples")
        command = [sys.executable, str(SEARCH), str(model_path), str(gallery), str(home / "search.png")]
        subprocess.run(command, check=True)

    results = {name: json.loads(path.read_text()) for name, path in (("base", base_path), ("tuned", tuned_path))}
    report = {name: {task: r["precision@1"] for task, r in found.items()} for name, found in results.items()}
    for name, found in results.items():
        report[name]["mean"] = summarize(found).get("mean")
    report["seconds"] = round(sum(clock.seconds.values()), 1)
    write_json(home / "results.json", report)
    print_table({"raw": results["base"], "trained": results["tuned"]})
    print(
        f"\nThe model is in {model_path}; results.json, similarity.png and search.png are beside it. "
        f"{report['seconds']:.0f} s in all."
    )


def make_trainer(world: Path, start: Path, **changes) -> ContrastiveTrainer:
    """A trainer of the miniature recipe, from a stock VLM on, with some of its settings changed."""
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    preset = recipe.pop("preset")
    for key in ("model_name_or_path", "data", "image_root"):
        recipe.pop(key)
    (args,) = HfArgumentParser(ContrastiveConfig).parse_dict(recipe | changes)
    rows = read_mmeb_train(world / "train", image_root=world)
    return ContrastiveTrainer(load_for_cpu_or_gpu(start, preset=preset), args, train_dataset=rows)


def train(world: Path, backbone: Path, home: Path, overrides: dict):
    trainer = make_trainer(world, backbone, **overrides, output_dir=str(home / "training"))
    trainer.train(resume_from_checkpoint=last_checkpoint(trainer.args.output_dir))
    trainer.save_model(str(home / "model.tmp"))
    os.replace(home / "model.tmp", home / "model")


def draw_similarity(base, tuned, tasks, path: Path):
    """The cosine matrix of 50 images and their captions, before and after."""
    task = next(task for task in tasks if task.name == "Shapes_i2t")
    images = [query.as_input() for query in task.queries[:50]]
    captions = [task.corpus[candidates[0]].as_input() for candidates in task.candidates[:50]]
    panels = {
        name: (model.encode_query(images), model.encode_document(captions))
        for name, model in (("before", base), ("after", tuned))
    }
    similarity_matrix(panels, path, "image", "caption")


def write_gallery(tasks, path: Path) -> Path:
    """The first query of three tasks, over all test images and captions."""
    by_name = {task.name: task for task in tasks}
    images = {item.image: None for name in ("Shapes_t2i", "Shapes_change") for item in by_name[name].corpus}
    texts = {item.text: None for item in by_name["Shapes_i2t"].corpus}
    queries = []
    for title, name, over in (
        ("text to image", "Shapes_t2i", "images"),
        ("image and text to image", "Shapes_change", "images"),
        ("image to text", "Shapes_i2t", "texts"),
    ):
        task = by_name[name]
        answer = task.corpus[task.candidates[0][0]]
        target = list(images).index(answer.image) if over == "images" else list(texts).index(answer.text)
        item = task.queries[0].as_input()
        if "text" in item:
            item["text"] = item["text"].replace(PLACEHOLDER, "").strip()
        queries.append({"title": title, "item": item, "over": over, "target": target})
    path.write_text(
        json.dumps({"images": list(images), "texts": list(texts), "queries": queries}, indent=1), encoding="utf-8"
    )
    return path


def copy_examples(tasks, folder: Path):
    """A hundred test pictures under plain names, for the README's snippets and the demo."""
    folder.mkdir(exist_ok=True)
    task = next(task for task in tasks if task.name == "Shapes_i2t")
    for number, query in enumerate(task.queries[:100]):
        shutil.copy(query.image, folder / f"{number}.png")


FULL = {"world": {}, "backbone": {}, "training": {}}


def main(arguments=None):
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
