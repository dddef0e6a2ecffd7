"""Readers of benchmarks: a public layout in, evaluation tasks out; nothing downstream knows a source format."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from ..data.readers import HUB, item_of, local_path, parquet_files, parquet_rows
from ..data.schema import Item
from .suites import BY_PLAIN_NAME, MMEB, SUGARCREPE, plain

_MMEB_EVAL = {
    "qry_text": (),
    "qry_img_path": ("qry_image_path",),
    "tgt_text": (),
    "tgt_img_path": ("tgt_image_path",),
}
_INSTRUCTIONS = {"qry_inst": (), "tgt_inst": ()}


@dataclass
class Task:
    """One evaluation data set: queries, and for each of them candidates, of which some are right.

    Args:
        name, kind (`str`): of the data set.
        queries, corpus (`list[Item]`).
        candidates (`list[list[int]]` or `None`): the candidates of each query, as indices into `corpus`; with `None`
            every query has the whole corpus.
        relevant (`list[list[int]]`): positions of the right ones within the query's candidates.
        gains (`list[list[float]]`, *optional*): how relevant these are; alike by default.
        split (`str`): for MMEB, `"IND"` or `"OOD"`.
        metric (`str`): the one number of this task, `"precision@1"` or `"ndcg@5"`.
        together (`list[int]`, *optional*): for each query a number, equal for queries that are no independent draws,
            such as captions of one image; intervals respect it.
        notes (`list[str]`): what differs from the published data set.
    """

    name: str
    kind: str
    queries: list[Item]
    corpus: list[Item]
    candidates: list[list[int]] | None
    relevant: list[list[int]]
    gains: list[list[float]] | None = None
    split: str = ""
    metric: str = "precision@1"
    together: list[int] | None = None
    notes: list[str] = field(default_factory=list)

    def options(self, query: int):
        """Indices into `corpus` of a query's candidates."""
        return range(len(self.corpus)) if self.candidates is None else self.candidates[query]


class Items:
    """Items by their raw text and image path, each looked up on the disk once, and numbered as they come."""

    def __init__(self, root):
        self.root, self.known, self.numbers = Path(root), {}, {}

    def get(self, text: str | None, image: str | None, where: str) -> Item:
        item = self.known.get((text, image))
        if item is None:
            try:
                item = self.known[text, image] = item_of(text, image, self.root)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
        return item

    def number(self, item: Item) -> int:
        return self.numbers.setdefault(item, len(self.numbers))


def chosen(root: Path, names: Iterable[str] | None, known: dict, there: Callable[[str], bool], partial: bool):
    """The tasks to read: those named, else all, else, where `partial`, those that are there."""
    if unknown := [name for name in names or () if name not in known]:
        raise ValueError(f"unknown tasks {unknown}; there are {', '.join(known)}.")
    wanted = list(names or known)
    missing = [name for name in wanted if not there(name)]
    if len(missing) == len(wanted) or (missing and not partial):
        raise ValueError(f"{root} lacks {missing}; name those to run, or take what is there with partial.")
    return [name for name in wanted if name not in missing]


# MMEB
def read_mmeb(root, names: Iterable[str] | None = None, image_root=None, partial: bool = False) -> list[Task]:
    """Reads the 36 data sets of MMEB from the layout of `TIGER-Lab/MMEB-eval`.

    Folders may spell a data set's name otherwise (`ImageNet_1K`, `Places365`).

    Args:
        root: folder with a folder for each data set, or `hf://datasets/TIGER-Lab/MMEB-eval`.
        names (*optional*): which data sets; all 36 by default.
        image_root (*optional*): where image paths start; `root` by default, and needed with a Hub name.
        partial (`bool`): take what is there, instead of an error where a data set is missing.

    Raises:
        ValueError: a data set is unknown or missing, or a row is unusable; the message names file and row.
    """
    if str(root).startswith(HUB) and image_root is None:
        raise ValueError(f"{root}: images.zip has to be unpacked; say where with image_root.")
    if unknown := [name for name in names or () if plain(name) not in BY_PLAIN_NAME]:
        raise ValueError(f"{unknown} are no data sets of MMEB; these are {', '.join(MMEB)}.")
    root = local_path(root, ["*/test-*.parquet"])
    folders: dict[str, Path] = {}
    for path in sorted({file.parent for file in root.glob("*/test-*.parquet")}):
        if (other := folders.setdefault(plain(path.name), path)) != path:
            raise ValueError(f"{other} and {path} are the same data set under two names; remove one of them.")
    names = [BY_PLAIN_NAME[plain(name)].name for name in names or ()]
    tasks = []
    for name in chosen(root, names, MMEB, lambda name: plain(name) in folders, partial):
        data_set, folder = MMEB[name], folders[plain(name)]
        task = read_mmeb_eval(root, folder.name, data_set.kind, image_root)
        task.name, task.split, task.notes = data_set.name, data_set.split, _differences(task, data_set)
        tasks.append(task)
    return tasks


def _differences(task: Task, data_set) -> list[str]:
    """What is unusual in a data set, for those who compare with published numbers."""
    notes = []
    sizes = [len(candidates) for candidates in task.candidates]
    if max(sizes) != data_set.candidates:
        notes.append(f"{max(sizes)} candidates a query, published with {data_set.candidates}")
    if len(sizes) != 1000:
        notes.append(f"{len(sizes)} queries, published with 1000")
    odd = sum(plain(data_set.instruction) not in plain(query.text) for query in task.queries)
    if odd:
        notes.append(f"{odd} queries do not say {data_set.instruction!r}")
    return notes


def read_mmeb_eval(root, name: str, kind: str, image_root=None) -> Task:
    """Reads one data set of the layout of `TIGER-Lab/MMEB-eval`: `<root>/<name>/test-*.parquet`, target first.

    Candidates equal to the target are dropped, so that the target is the only right answer. Where the columns
    `qry_inst` and `tgt_inst` hold the instructions (MMEB-V2), they are put before the texts.

    Raises:
        ValueError: a column or image is missing, or lists differ in length; the message names file and row.
    """
    root = Path(root)
    items = Items(image_root or root)
    task = Task(name, kind, [], [], [], [])
    for path in parquet_files(root / name, "test"):
        for number, row in parquet_rows(path, _MMEB_EVAL | _instructions(path)):
            where = f"{path}, row {number}"
            texts, images = row["tgt_text"], row["tgt_img_path"]
            if not isinstance(texts, list) or not isinstance(images, list):
                raise ValueError(f"{where}: tgt_text and tgt_img_path are lists, the target first.")
            if len(texts) != len(images) or not texts:
                raise ValueError(f"{where}: {len(texts)} target texts for {len(images)} target images.")
            said = _said(row, len(texts))
            if len(said[1]) != len(texts):
                raise ValueError(f"{where}: {len(said[1])} target instructions for {len(texts)} target texts.")
            task.queries.append(items.get(_join(said[0], row["qry_text"]), row["qry_img_path"], where))
            pairs = zip(said[1], texts, images)
            own = dict.fromkeys(items.get(_join(inst, text), image, where) for inst, text, image in pairs)
            task.candidates.append([items.number(item) for item in own])
            task.relevant.append([0])
    task.corpus = list(items.numbers)
    return not_empty(task, root / name)


def not_empty(task: Task, source) -> Task:
    """The task; an error, if its files hold no query."""
    if not task.queries:
        raise ValueError(f"{source} holds no usable row of {task.name}.")
    return task


def _instructions(path: Path) -> dict:
    return _INSTRUCTIONS if set(_INSTRUCTIONS) <= set(pq.read_schema(path).names) else {}


def _said(row: dict, count: int) -> tuple[str, list[str]]:
    """The instructions of a query and of its targets."""
    targets = row.get("tgt_inst") or ""
    return row.get("qry_inst") or "", targets if isinstance(targets, list) else [targets] * count


def _join(instruction: str, text: str | None) -> str:
    """Instruction and text as MMEB-V2 joins them: a space between, a line break at the end."""
    if not instruction.strip():
        return text or ""
    return " ".join(part for part in (instruction.rstrip(), text) if part).rstrip() + "\n"


# SugarCrepe
def read_sugarcrepe(root, image_root) -> list[Task]:
    """Reads SugarCrepe's layout: `<root>/<subset>.json` with filename, caption, negative_caption.

    Raises:
        ValueError: there is no such file, or a row lacks a key or an image; the message names file and row.
    """
    tasks = []
    for path in sorted(Path(root).glob("*.json")):
        items, task = Items(image_root), Task(path.stem, "Compositional", [], [], [], [])
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is no JSON: {error}") from error
        if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
            raise ValueError(f"{path} is no object of rows by their number.")
        for key, row in rows.items():
            where = f"{path}, row {key}"
            missing = [name for name in ("filename", "caption", "negative_caption") if name not in row]
            if missing:
                raise ValueError(f"{where}: lacks {missing}.")
            captions = [items.get(row[name], "", where) for name in ("caption", "negative_caption")]
            if captions[0] == captions[1]:
                raise ValueError(f"{where}: caption and negative_caption are equal.")
            task.queries.append(items.get("", row["filename"], where))
            task.candidates.append([items.number(item) for item in captions])
            task.relevant.append([0])
        task.corpus = list(items.numbers)
        published = SUGARCREPE.get(task.name)
        if published and published != len(task.queries):
            task.notes.append(f"{len(task.queries)} pairs, published with {published}")
        tasks.append(not_empty(task, path))
    if not tasks:
        raise ValueError(f"{root} holds no SugarCrepe files (*.json).")
    return tasks


# the miniature world
def read_world_tasks(root) -> list[Task]:
    """The evaluation tasks of a miniature world written by `unime.miniature.world`."""
    root = Path(root)
    kinds = json.loads((root / "world.json").read_text(encoding="utf-8"))["tasks"]
    tasks = [read_mmeb_eval(root / "eval", name, kind, image_root=root) for name, kind in kinds.items()]
    compositional = read_sugarcrepe(root / "compositional", root / "images")
    for task in compositional:
        task.notes.clear()  # its pairs are its own
    return tasks + compositional
