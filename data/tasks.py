"""Readers of benchmarks: a public layout in, evaluation tasks out; nothing downstream knows a source format."""

import json
from dataclasses import dataclass
from pathlib import Path

from .readers import item_of, parquet_files, parquet_rows
from .schema import Item

_MMEB_EVAL = {"qry_text": (), "qry_img_path": (), "tgt_text": (), "tgt_img_path": ()}


@dataclass
class Task:
    """One evaluation data set: queries, each with its own candidates, of which those in `relevant` are right.

    `candidates[i]` holds indices into `corpus`, and `relevant[i]` positions within `candidates[i]`.
    """

    name: str
    kind: str
    queries: list[Item]
    corpus: list[Item]
    candidates: list[list[int]]
    relevant: list[list[int]]


def read_mmeb_eval(root, name: str, kind: str, image_root=None) -> Task:
    """Reads one data set of the layout of `TIGER-Lab/MMEB-eval`: `<root>/<name>/test-*.parquet`, target first.

    Candidates equal to the target are dropped, so that the target is the only right answer.

    Raises:
        ValueError: a column or image is missing, or lists differ in length; the message names file and row.
    """
    root, index = Path(root), {}
    image_root = Path(image_root or root)
    task = Task(name, kind, [], [], [], [])
    for path in parquet_files(root / name, "test"):
        for number, row in parquet_rows(path, _MMEB_EVAL):
            texts, images = row["tgt_text"], row["tgt_img_path"]
            if len(texts) != len(images) or not texts:
                raise ValueError(f"{path}, row {number}: {len(texts)} target texts for {len(images)} target images.")
            pairs = [(row["qry_text"], row["qry_img_path"]), *zip(texts, images)]
            query, *items = _items(pairs, image_root, f"{path}, row {number}")
            items = dict.fromkeys(items)
            task.queries.append(query)
            task.candidates.append([index.setdefault(item, len(index)) for item in items])
            task.relevant.append([0])
    task.corpus = list(index)
    return task


def read_sugarcrepe(root, image_root) -> list[Task]:
    """Reads SugarCrepe's layout: `<root>/<subset>.json` with filename, caption, negative_caption."""
    tasks = []
    for path in sorted(Path(root).glob("*.json")):
        index, task = {}, Task(path.stem, "Compositional", [], [], [], [])
        for key, row in json.loads(path.read_text(encoding="utf-8")).items():
            missing = [name for name in ("filename", "caption", "negative_caption") if name not in row]
            if missing:
                raise ValueError(f"{path}, row {key}: lacks {missing}.")
            task.queries += _items([("", row["filename"])], Path(image_root), f"{path}, row {key}")
            captions = [Item(row["caption"]), Item(row["negative_caption"])]
            task.candidates.append([index.setdefault(item, len(index)) for item in captions])
            task.relevant.append([0])
        task.corpus = list(index)
        tasks.append(task)
    if not tasks:
        raise ValueError(f"{root} holds no SugarCrepe files (*.json).")
    return tasks


def read_world_tasks(root) -> list[Task]:
    """The evaluation tasks of a miniature world written by `unime.data.shapes`."""
    root = Path(root)
    kinds = json.loads((root / "world.json").read_text(encoding="utf-8"))["tasks"]
    tasks = [read_mmeb_eval(root / "eval", name, kind, image_root=root) for name, kind in kinds.items()]
    return tasks + read_sugarcrepe(root / "compositional", root / "images")


def _items(pairs, root: Path, where: str) -> list[Item]:
    try:
        return [item_of(text, image, root) for text, image in pairs]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
