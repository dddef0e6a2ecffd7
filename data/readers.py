"""Readers: a public layout in, `Example` rows or evaluation tasks out; nothing downstream knows a source format."""

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset

from .images import resolve_image
from .schema import Example, Item, to_dataset

PLACEHOLDER = "<|image_1|>"


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


def _read_columns(path: Path, names: list[str]) -> list[dict]:
    table = pq.read_table(path)
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise ValueError(f"{path} lacks the columns {missing}; it has {table.column_names}.")
    return table.select(names).to_pylist()


def _item(text: str | None, image: str | None, root: Path, path: Path, row: int) -> Item:
    """An item of a data file; a placeholder without an image is a known oddity of MMEB and is dropped."""
    try:
        image = resolve_image(root, image or "")
        text = text or ""
        return Item(text if image else text.replace(PLACEHOLDER + "\n", "").replace(PLACEHOLDER, ""), image)
    except ValueError as error:
        raise ValueError(f"{path}, row {row}: {error}") from error


def read_mmeb_train(
    root, subsets: list[str] | None = None, split: str = "original", image_root=None, limit: int | None = None
) -> Dataset:
    """Reads TIGER-Lab/MMEB-train's layout: `<root>/<subset>/<split>-*.parquet`, images relative to `image_root`.

    Args:
        root (`str` or `Path`): folder with one folder a subset.
        subsets (`list[str]`, *optional*): all that are there by default.
        split (`str`): `"original"` or `"diverse_instruction"`.
        image_root (`str` or `Path`, *optional*): where image paths start; `root` by default.
        limit (`int`, *optional*): at most that many rows of each subset (the papers take 50,000).

    Returns:
        `datasets.Dataset` with the columns of [`~unime.data.schema.Example`].

    Raises:
        ValueError: a subset, column or image is missing, or a row is empty; the message names file and row.
    """
    root, names = Path(root), ["qry", "qry_image_path", "pos_text", "pos_image_path"]
    image_root = Path(image_root or root)
    subsets = subsets or sorted(folder.name for folder in root.iterdir() if any(folder.glob(f"{split}-*.parquet")))
    if not subsets:
        raise ValueError(f"{root} holds no <subset>/{split}-*.parquet; is it the right folder and split?")
    examples = []
    for subset in subsets:
        rows = 0
        for path in _parquet_files(root / subset, split):
            for number, row in enumerate(_read_columns(path, names)):
                if limit is not None and rows == limit:
                    break
                query = _item(row["qry"], row["qry_image_path"], image_root, path, number)
                positive = _item(row["pos_text"], row["pos_image_path"], image_root, path, number)
                examples.append(Example(query, positive, dataset=subset))
                rows += 1
    return to_dataset(examples)


def read_mmeb_eval(root, name: str, kind: str, image_root=None) -> Task:
    """Reads one data set of the layout of `TIGER-Lab/MMEB-eval`: `<root>/<name>/test-*.parquet`, target first.

    Candidates equal to the target are dropped, so that the target is the only right answer.

    Raises:
        ValueError: a column or image is missing, or lists differ in length; the message names file and row.
    """
    root, names = Path(root), ["qry_text", "qry_img_path", "tgt_text", "tgt_img_path"]
    image_root, index = Path(image_root or root), {}
    task = Task(name, kind, [], [], [], [])
    for path in _parquet_files(root / name, "test"):
        for number, row in enumerate(_read_columns(path, names)):
            texts, images = row["tgt_text"], row["tgt_img_path"]
            if len(texts) != len(images) or not texts:
                raise ValueError(f"{path}, row {number}: {len(texts)} target texts for {len(images)} target images.")
            items = dict.fromkeys(_item(text, image, image_root, path, number) for text, image in zip(texts, images))
            task.queries.append(_item(row["qry_text"], row["qry_img_path"], image_root, path, number))
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
            task.queries.append(_item("", row["filename"], Path(image_root), path, key))
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


def _parquet_files(folder: Path, split: str) -> list[Path]:
    paths = sorted(folder.glob(f"{split}-*.parquet"))
    if not paths:
        raise ValueError(f"{folder} holds no {split}-*.parquet.")
    return paths
