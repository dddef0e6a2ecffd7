"""Readers of benchmarks: a public layout in, evaluation tasks out; nothing downstream knows a source format."""

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from ..data.readers import HUB, item_of, local_path, parquet_files, parquet_rows
from ..data.schema import Item
from ..data.texts import read_json
from .suites import BY_PLAIN_NAME, MMEB, SUGARCREPE, DataSet, plain

_MMEB_EVAL = {  # column -> other spellings of it in public files
    "qry_text": (),
    "qry_img_path": ("qry_image_path",),
    "tgt_text": (),
    "tgt_img_path": ("tgt_image_path",),
}
_INSTRUCTIONS = {"qry_inst": (), "tgt_inst": ()}  # columns that only MMEB-V2 has
_MMEB_QUERIES = 1000  # of each data set, as published


@dataclass
class Task:
    """One evaluation data set: queries, and for each of them candidates, of which some are right.

    Args:
        name, kind (`str`): of the data set.
        queries (`list[Item]`): the questions.
        corpus (`list[Item]`): the candidates of all queries, each once.
        candidates (`list[list[int]]` or `None`): the candidates of each query, as indices into `corpus`; with `None`
            every query has the whole corpus.
        relevant (`list[list[int]]`): positions of the right ones within the query's candidates.
        gains (`list[list[float]]`, *optional*): how relevant these are; alike by default.
        split (`str`, *optional*): for MMEB, `"IND"` or `"OOD"`.
        metric (`str`, defaults to `"precision@1"`): the one number of this task; `"ndcg@5"` is the other.
        together (`list[int]`, *optional*): for each query a number, equal for queries that are not independent draws,
            such as captions of one image; intervals respect it.
        notes (`list[str]`, *optional*): what differs from the published data set.
        benchmark (`str`, *optional*): one of [`~unime.prompts_unime.BENCHMARKS`]: the kind of benchmark whose wording
            a preset uses for these items; its usual wording by default.

    Example:

    ```python
    corpus = [Item("a red circle"), Item("a blue star")]
    Task("Shapes", "Retrieval", [Item(image="circle.png")], corpus, candidates=None, relevant=[[0]])
    ```
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
    benchmark: str | None = None

    def options(self, query: int) -> range | list[int]:
        """Indices into `corpus` of a query's candidates."""
        if self.candidates is None:
            return range(len(self.corpus))
        return self.candidates[query]

    def right(self, query: int) -> list[int]:
        """Indices into `corpus` of a query's right candidates."""
        options = self.options(query)
        return [options[place] for place in self.relevant[query]]

    def gains_of(self, query: int) -> list[float]:
        """How relevant a query's right candidates are: 1 for each, where they are all alike."""
        if not self.gains:
            return [1.0] * len(self.relevant[query])
        return self.gains[query]


class Items:
    """The items of a benchmark: each is looked up on the disk once, and candidates are numbered as they come.

    Args:
        root (`str` or `Path`): where image paths start.

    Attributes:
        numbers (`dict[Item, int]`): the candidates so far, with their places in the corpus.
    """

    def __init__(self, root):
        self.root = Path(root)
        self.numbers: dict[Item, int] = {}
        self._cache: dict[tuple[str | None, str | None], Item] = {}

    def get(self, text: str | None, image: str | None, where: str) -> Item:
        """An item, by its raw text and image path; `where` (file and row) is for the message of an error."""
        item = self._cache.get((text, image))
        if item is None:
            try:
                item = item_of(text, image, self.root)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            self._cache[text, image] = item
        return item

    def number(self, item: Item) -> int:
        """A candidate's place in the corpus."""
        return self.numbers.setdefault(item, len(self.numbers))


def select_tasks(
    root: Path, names: Iterable[str] | None, available: Iterable[str], exists: Callable[[str], bool], partial: bool
) -> list[str]:
    """The names of the tasks to read.

    Args:
        root (`Path`): of the benchmark, for messages.
        names (*optional*): which tasks; all by default.
        available: the names of all tasks.
        exists: whether the files of a task are there.
        partial (`bool`): leave missing tasks out.

    Raises:
        ValueError: a name is unknown, nothing is there, or, unless `partial`, a task is missing.
    """
    available = list(available)
    names = list(names or available)
    if unknown := lacking(available, names):
        raise ValueError(f"unknown tasks {unknown}; there are {', '.join(available)}.")

    # a benchmark of which nothing is there is a mistake in the path
    present = list(filter(exists, names))
    missing = lacking(present, names)
    if not present or (missing and not partial):
        raise ValueError(f"{root} lacks {missing}; name those to run, or take what is there with partial.")
    return present


def lacking(container: Container, names: Iterable[str]) -> list[str]:
    """The names that are not in a container, in order."""
    return [name for name in names if name not in container]


def not_empty(task: Task, source) -> Task:
    """The task; `ValueError` if its files hold no query. `source` is the file or folder, for the message."""
    if not task.queries:
        raise ValueError(f"{source} holds no usable row of {task.name}.")
    return task


# MMEB
def read_mmeb(root, names: Iterable[str] | None = None, image_root=None, partial: bool = False) -> list[Task]:
    """Reads the 36 data sets of MMEB from the layout of `TIGER-Lab/MMEB-eval`.

    Folders may spell a data set's name otherwise (`ImageNet_1K`, `Places365`).

    Args:
        root: folder with a folder for each data set, or `hf://datasets/TIGER-Lab/MMEB-eval`.
        names (*optional*): which data sets; all 36 by default.
        image_root (*optional*): where image paths start; `root` by default, and needed with a Hub name.
        partial (`bool`, defaults to `False`): take what is there, instead of an error where a data set is missing.

    Returns:
        `list[Task]`: with notes of what differs from the published data sets.

    Raises:
        ValueError: a data set is unknown or missing, or a row is unusable; the message names file and row.

    Example:

    ```python
    tasks = read_mmeb("benchmarks-data/mmeb", ["GQA", "Places365"])
    ```
    """
    if str(root).startswith(HUB) and image_root is None:
        raise ValueError(f"{root}: images.zip has to be unpacked; say where with image_root.")
    names = _published_names(names or ())

    # of a data set on the Hub, only these files are downloaded
    root = local_path(root, ["*/test-*.parquet"])
    folders = _mmeb_folders(root)
    tasks = []
    for name in select_tasks(root, names, MMEB, lambda name: plain(name) in folders, partial):
        data_set = MMEB[name]
        task = read_mmeb_eval(root, folders[plain(name)].name, data_set.kind, image_root)
        task.name = data_set.name
        task.split = data_set.split
        task.notes = _differences(task, data_set)
        tasks.append(task)
    return tasks


def _published_names(names: Iterable[str]) -> list[str]:
    """The names of data sets as the papers spell them."""
    published = []
    unknown = []
    for name in names:
        if plain(name) in BY_PLAIN_NAME:
            published.append(BY_PLAIN_NAME[plain(name)].name)
        else:
            unknown.append(name)

    if unknown:
        raise ValueError(f"{unknown} are not data sets of MMEB; these are {', '.join(MMEB)}.")
    return published


def _mmeb_folders(root: Path) -> dict[str, Path]:
    """The folders of data sets, by their plain names."""
    folders: dict[str, Path] = {}
    for folder in sorted({path.parent for path in root.glob("*/test-*.parquet")}):
        other = folders.setdefault(plain(folder.name), folder)
        if other != folder:
            raise ValueError(f"{other} and {folder} are the same data set under two names; remove one of them.")
    return folders


def _differences(task: Task, data_set: DataSet) -> list[str]:
    """What is unusual in a data set, for those who compare with published numbers."""
    notes = []
    most_candidates = max(map(len, task.candidates))
    if most_candidates != data_set.candidates:
        notes.append(f"{most_candidates} candidates a query, published with {data_set.candidates}")

    if len(task.queries) != _MMEB_QUERIES:
        notes.append(f"{len(task.queries)} queries, published with {_MMEB_QUERIES}")

    # spacing and punctuation of the instructions differ between releases
    instruction = plain(data_set.instruction)
    without_it = 0
    for query in task.queries:
        if instruction not in plain(query.text):
            without_it += 1
    if without_it:
        notes.append(f"{without_it} queries do not say {data_set.instruction!r}")
    return notes


def read_mmeb_eval(root, name: str, kind: str, image_root=None) -> Task:
    """Reads one data set of the layout of `TIGER-Lab/MMEB-eval`: `<root>/<name>/test-*.parquet`, target first.

    Candidates equal to the target are dropped, so that the target is the only right answer. Where the columns
    `qry_inst` and `tgt_inst` hold the instructions (MMEB-V2), they are put before the texts.

    Args:
        root (`str` or `Path`): folder of all data sets.
        name (`str`): the data set's folder, and the name of the task.
        kind (`str`): of the task.
        image_root (`str` or `Path`, *optional*): where image paths start; `root` by default.

    Raises:
        ValueError: a column or image is missing, or lists differ in length; the message names file and row.
    """
    root = Path(root)
    items = Items(image_root or root)
    task = Task(name, kind, queries=[], corpus=[], candidates=[], relevant=[], benchmark="mmeb")
    for path in parquet_files(root / name, "test"):
        columns = _mmeb_columns(path)
        for number, row in parquet_rows(path, columns):
            where = f"{path}, row {number}"
            query = _join(row.get("qry_inst") or "", row["qry_text"])
            task.queries.append(items.get(query, row["qry_img_path"], where))

            # the target comes first, so equal candidates after it fall together with it
            targets = dict.fromkeys(_mmeb_targets(row, items, where))
            task.candidates.append(list(map(items.number, targets)))
            task.relevant.append([0])

    task.corpus = list(items.numbers)
    return not_empty(task, root / name)


def _mmeb_columns(path: Path) -> dict[str, tuple[str, ...]]:
    """The columns of a file, with those of the instructions where there are both."""
    present = pq.read_schema(path).names
    if lacking(present, _INSTRUCTIONS):
        return _MMEB_EVAL
    return _MMEB_EVAL | _INSTRUCTIONS


def _mmeb_targets(row: dict, items: Items, where: str) -> list[Item]:
    """The candidates of a row, the right one first."""
    texts = row["tgt_text"]
    images = row["tgt_img_path"]
    if not isinstance(texts, list) or not isinstance(images, list):
        raise ValueError(f"{where}: tgt_text and tgt_img_path are lists, the target first.")
    if len(texts) != len(images) or not texts:
        raise ValueError(f"{where}: {len(texts)} target texts for {len(images)} target images.")

    # one instruction for all targets, or one for each
    instructions = row.get("tgt_inst") or ""
    if not isinstance(instructions, list):
        instructions = [instructions] * len(texts)
    if len(instructions) != len(texts):
        raise ValueError(f"{where}: {len(instructions)} target instructions for {len(texts)} target texts.")

    targets = []
    for instruction, text, image in zip(instructions, texts, images):
        targets.append(items.get(_join(instruction, text), image, where))
    return targets


def _join(instruction: str, text: str | None) -> str:
    """Instruction and text as MMEB-V2 joins them: a space between, a line break at the end."""
    text = text or ""
    if not instruction.strip():
        return text
    return f"{instruction.rstrip()} {text}".rstrip() + "\n"


# SugarCrepe
def read_sugarcrepe(root, image_root) -> list[Task]:
    """Reads SugarCrepe's layout: `<root>/<subset>.json` with filename, caption, negative_caption.

    Args:
        root (`str` or `Path`): folder of the files, one a subset.
        image_root (`str` or `Path`): folder of the images, COCO val2017.

    Raises:
        ValueError: there is no such file, or a row lacks a key or an image; the message names file and row.
    """
    tasks = []
    for path in sorted(Path(root).glob("*.json")):
        tasks.append(_read_subset(path, image_root))
    if not tasks:
        raise ValueError(f"{root} holds no SugarCrepe files (*.json).")
    return tasks


def _read_subset(path: Path, image_root) -> Task:
    """Reads one file as a task, whose queries have two candidates each."""
    items = Items(image_root)
    task = Task(path.stem, "Compositional", queries=[], corpus=[], candidates=[], relevant=[], benchmark="sugarcrepe")
    for key, row in _subset_rows(path).items():
        where = f"{path}, row {key}"
        if missing := lacking(row, ("filename", "caption", "negative_caption")):
            raise ValueError(f"{where}: lacks {missing}.")

        caption = items.get(row["caption"], "", where)
        negative = items.get(row["negative_caption"], "", where)
        if caption == negative:
            raise ValueError(f"{where}: caption and negative_caption are equal.")

        # the right caption is the first of the two
        task.queries.append(items.get("", row["filename"], where))
        task.candidates.append([items.number(caption), items.number(negative)])
        task.relevant.append([0])

    task.corpus = list(items.numbers)
    published = SUGARCREPE.get(task.name)
    if published and published != len(task.queries):
        task.notes.append(f"{len(task.queries)} pairs, published with {published}")
    return not_empty(task, path)


def _subset_rows(path: Path) -> dict[str, dict]:
    """The rows of a file by their numbers."""
    rows = read_json(path)
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise ValueError(f"{path} is not an object of rows by their number.")
    return rows


# the miniature world
def read_world_tasks(root) -> list[Task]:
    """The evaluation tasks of a miniature world.

    Args:
        root (`str` or `Path`): folder that `python -m unime.miniature.world` wrote.

    Example:

    ```python
    tasks = read_world_tasks("outputs/world")
    ```
    """
    root = Path(root)
    world = read_json(root / "world.json")
    tasks = []
    for name, kind in world["tasks"].items():
        tasks.append(read_mmeb_eval(root / "eval", name, kind, image_root=root))

    for task in read_sugarcrepe(root / "compositional", root / "images"):
        # its subsets have the released names, but pairs of their own, and its judges know no request after images
        task.notes.clear()
        task.benchmark = None
        tasks.append(task)
    return tasks
