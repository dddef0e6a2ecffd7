"""Readers: a public layout in, `Example` rows or evaluation tasks out; nothing downstream knows a source format."""

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset

from .images import resolve_image
from .schema import Example, Item, to_dataset

PLACEHOLDER = "<|image_1|>"
_MMEB_TRAIN = ["qry", "qry_image_path", "pos_text", "pos_image_path"]
_JUDGED = (
    "query_text",
    "query_image",
    "pos_text",
    "pos_image",
    "query_pos_scores",
    "hard_negatives",
    "hard_negatives_scores",
)


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


def _pair(row: dict, root: Path, path: Path, number: int) -> tuple[Item, Item]:
    """Query and positive of a row of MMEB-train."""
    query = _item(row["qry"], row["qry_image_path"], root, path, number)
    return query, _item(row["pos_text"], row["pos_image_path"], root, path, number)


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
    root = Path(root)
    image_root = Path(image_root or root)
    subsets = subsets or sorted(folder.name for folder in root.iterdir() if any(folder.glob(f"{split}-*.parquet")))
    if not subsets:
        raise ValueError(f"{root} holds no <subset>/{split}-*.parquet; is it the right folder and split?")
    examples = []
    for subset in subsets:
        rows = 0
        for path in _parquet_files(root / subset, split):
            for number, row in enumerate(_read_columns(path, _MMEB_TRAIN)):
                if limit is not None and rows == limit:
                    break
                query, positive = _pair(row, image_root, path, number)
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


def read_clusters(root, image_root=None, subsets: list[str] | None = None, limit: int | None = None) -> Dataset:
    """Reads SaHa's clusters: `<root>/<subset>_hard_negatives.json`, rows of MMEB-train with whole rows as negatives.

    Args:
        root (`str` or `Path`): folder of the files.
        image_root (`str` or `Path`, *optional*): where image paths start; `root` by default.
        subsets (`list[str]`, *optional*): which data sets; all by default.
        limit (`int`, *optional*): at most that many clusters of each.

    Returns:
        `datasets.Dataset` with the columns of [`~unime.data.schema.Example`], `negative_queries` among them.

    Raises:
        ValueError: there is no such file, a key or image is missing; the message names file and row.
    """
    root = Path(root)
    image_root, suffix = Path(image_root or root), "_hard_negatives.json"
    subsets = subsets or sorted(path.name.removesuffix(suffix) for path in root.glob(f"*{suffix}"))
    if not subsets:
        raise ValueError(f"{root} holds no <subset>{suffix}.")
    examples = []
    for subset in subsets:
        path = root / f"{subset}{suffix}"
        for number, row in enumerate(json.loads(path.read_text(encoding="utf-8"))[:limit]):
            pairs = []
            for member in (row, *row.get("neg_samples", ())):
                if missing := [name for name in _MMEB_TRAIN if name not in member]:
                    raise ValueError(f"{path}, row {number}: lacks {missing}.")
                pairs.append(_pair(member, image_root, path, number))
            (query, positive), *others = pairs
            queries, negatives = [pair[0] for pair in others], [pair[1] for pair in others]
            examples.append(Example(query, positive, negatives, dataset=subset, negative_queries=queries))
    return to_dataset(examples)


def read_text_pairs(path, limit: int | None = None) -> Dataset:
    """Reads sentence pairs: CSV, JSON lines or Parquet with the columns `sent0`, `sent1` and, if any, `hard_neg`.

    This is the layout of SimCSE's `nli_for_simcse.csv`, on which UniME's first stage trains.

    Args:
        path (`str` or `Path`): the file.
        limit (`int`, *optional*): at most that many rows.

    Returns:
        `datasets.Dataset` with the columns of [`~unime.data.schema.Example`]; `sent0` is the query.

    Raises:
        ValueError: the kind of file is unknown, a column is missing, or a sentence is empty; it names file and row.
    """
    path = Path(path)
    loaders = {".csv": Dataset.from_csv, ".jsonl": Dataset.from_json, ".parquet": Dataset.from_parquet}
    if path.suffix not in loaders:
        raise ValueError(f"{path}: text pairs are read from {', '.join(loaders)} files.")
    rows = loaders[path.suffix](str(path), keep_in_memory=True)
    missing = [name for name in ("sent0", "sent1") if name not in rows.column_names]
    if missing:
        raise ValueError(f"{path} lacks the columns {missing}; it has {rows.column_names}.")
    examples = []
    for number, row in enumerate(rows.select(range(min(limit or len(rows), len(rows))))):
        try:
            negatives = [Item(row["hard_neg"])] if row.get("hard_neg") else []
            examples.append(Example(Item(row["sent0"] or ""), Item(row["sent1"] or ""), negatives, dataset=path.stem))
        except ValueError as error:
            raise ValueError(f"{path}, row {number}: {error}") from error
    if not examples:
        raise ValueError(f"{path} holds no row.")
    return to_dataset(examples)


def read_judged(path, image_root=None, subsets: list[str] | None = None, limit: int | None = None) -> Dataset:
    """Reads UniME-V2's training layout: a JSON list of rows with mined negatives and judge scores.

    The data set of a row is the folder of its images (`images/<Subset>/Train/...`), of the query first, then of the
    positive or a negative.

    Args:
        path (`str` or `Path`): the JSON file.
        image_root (`str` or `Path`, *optional*): where image paths start; the file's folder by default.
        subsets (`list[str]`, *optional*): keep only rows of these data sets.
        limit (`int`, *optional*): at most that many rows of each.

    Returns:
        `datasets.Dataset` with the columns of [`~unime.data.schema.Example`].

    Raises:
        ValueError: the file is no such list, or a row lacks a key, has unequal numbers of negatives and scores, a
            score that is no number in [0, 1], or a missing image; the message names file and row.
    """
    path = Path(path)
    image_root = Path(image_root or path.parent)
    rows = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(rows, list):
        raise ValueError(f"{path} is no list of rows.")
    examples, counts = [], {}
    for number, row in enumerate(rows):
        missing = [name for name in _JUDGED if name not in row]
        if missing:
            raise ValueError(f"{path}, row {number}: lacks {missing}.")
        negatives, scores = row["hard_negatives"], row["hard_negatives_scores"]
        if len(negatives) != len(scores):
            raise ValueError(f"{path}, row {number}: {len(negatives)} negatives for {len(scores)} scores.")
        for score in (row["query_pos_scores"], *scores):
            if not isinstance(score, (int, float)) or not 0 <= score <= 1:
                raise ValueError(f"{path}, row {number}: the judge score {score!r} is no number in [0, 1].")
        images = [row["query_image"], row["pos_image"], *(image for _, image in negatives)]
        name = next((Path(image).parts[1] for image in images if image and len(Path(image).parts) > 2), "")
        counts[name] = counts.get(name, 0) + 1
        if (subsets and name not in subsets) or (limit is not None and counts[name] > limit):
            continue
        items = [(row["query_text"], row["query_image"]), (row["pos_text"], row["pos_image"]), *negatives]
        query, positive, *others = (_item(text, image, image_root, path, number) for text, image in items)
        examples.append(Example(query, positive, others, row["query_pos_scores"], scores, name))
    if not examples:
        raise ValueError(f"{path} holds no row{f' of {subsets}' if subsets else ''}.")
    return to_dataset(examples)


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
