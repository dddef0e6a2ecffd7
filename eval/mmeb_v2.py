"""MMEB-V2's visual documents and videos in their public layouts. Its images are read by `tasks.read_mmeb`."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from ..data.json_lists import json_list
from ..data.readers import parquet_files, parquet_rows
from .retrieval_sets import image_rows
from .suites import VIDEO, VISDOC
from .tasks import Items, Task, chosen, not_empty

DOCUMENT_QUERY = "Find a document image that matches the given query:"
DOCUMENT = "Understand the content of the provided document image."


# visual documents
def read_visdoc(root, names: Iterable[str] | None = None, cache=None, partial: bool = False) -> list[Task]:
    """Reads visual documents, `<root>/<data set>/{queries,corpus,qrels}/<split>-*.parquet`; nDCG@5 is their metric.

    Args:
        root: folder of the data sets, named as on the Hub (`arxivqa_test_subsampled_beir`, ...).
        names (*optional*): which of the 24 tasks; all by default.
        cache (*optional*): folder into which page images are unpacked, once; `<root>/images` by default.
        partial (`bool`): take what is there, instead of an error where a task is missing.

    Raises:
        ValueError: a task, a column or a document is missing; the message names file and row.
    """
    root = Path(root)
    wanted = chosen(root, names, VISDOC, lambda name: (root / VISDOC[name][1]).is_dir(), partial)
    return [_read_documents(name, root / VISDOC[name][1], Path(cache or root / "images") / name) for name in wanted]


def _read_documents(name: str, root: Path, cache: Path) -> Task:
    group, _, split = VISDOC[name]
    items, pages = Items(cache), {}
    for path in parquet_files(root / "corpus", split):
        for number, image, row in image_rows(path, "image", ["corpus-id"], cache):
            pages[str(row["corpus-id"])] = items.number(items.get(DOCUMENT, image, f"{path}, row {number}"))
    found: dict[str, dict[int, float]] = {}
    for path in parquet_files(root / "qrels", split):
        for number, row in parquet_rows(path, {"query-id": (), "corpus-id": (), "score": ()}):
            page = pages.get(str(row["corpus-id"]))
            if page is None:
                raise ValueError(f"{path}, row {number}: there is no document {row['corpus-id']!r}.")
            if row["score"] > 0:
                own = found.setdefault(str(row["query-id"]), {})
                own[page] = max(own.get(page, 0.0), float(row["score"]))
    task = Task(name, group, [], list(items.numbers), None, [], [], metric="ndcg@5")
    without = 0
    for path in parquet_files(root / "queries", split):
        for number, row in parquet_rows(path, {"query-id": (), "query": ()}):
            own = found.get(str(row["query-id"]))
            if own is None:
                without += 1
                continue
            if not (row["query"] or "").strip():
                raise ValueError(f"{path}, row {number}: the query is empty.")
            task.queries.append(items.get(f"{DOCUMENT_QUERY} {row['query']}", "", f"{path}, row {number}"))
            task.relevant.append(list(own))
            task.gains.append(list(own.values()))
    if without and task.queries:
        task.notes.append(f"{without} queries without a relevant document left out")
    return not_empty(task, root)


# videos
_ACTION = "What actions or objects interactions are the person in the video doing?"
_ANSWER = (
    "Given a video and a question, select the most accurate answer from the provided candidates. Return only the "
    "exact text of your chosen answer. Question: "
)
_CLIP = "Find the clip that corresponds to the described scene in the given video:"
_UNDERSTAND = "Understand the content of the provided video."
_CLASS = {  # task -> instruction
    "K700": "Recognize the category of the video content.",
    "SmthSmthV2": "What actions or object interactions are being performed by the person in the video?",
    "HMDB51": _ACTION,
    "UCF101": "What activities or sports are being performed by the person in the video?",
    "Breakfast": "Recognize the breakfast type that the person is cooking in the video.",
}
_FOUND = {  # task -> instruction, columns of the video and of its caption
    "DiDeMo": ("Find a video that includes the following described scenes:", "video", "caption"),
    "MSR-VTT": ("Find a video that contains the following visual content:", "video_id", "caption"),
    "MSVD": ("Find the video snippet that corresponds to the given summary:", "video_id", "caption"),
    "VATEX": ("Select a video that fits the description provided:", "videoID", "enCap"),
    "YouCook2": ("Find a video that demonstrates the following action while making a recipe:", "id", "sentence"),
}
_FILES = {
    "SmthSmthV2": "ssv2",
    "YouCook2": "youcook2-val",
    "Charades-STA": "charades_sta",
    "MomentSeeker": "momentseeker_1k6",
}
_FOLDERS = {
    "SmthSmthV2": ("SSv2", "SmthSmthV2"),
    "Charades-STA": ("Charades-STA", "Charades_STA"),
    "EgoSchema": ("EgoSchema", "egoschema"),
}


def read_video(root, names: Iterable[str] | None = None, partial: bool = False) -> list[Task]:
    """Reads MMEB-V2's videos: `<root>/data/<task>.jsonl`, frames in `<root>/frames/video_<kind>/<task>/<video>/`.

    A video is an item whose image is its folder of frames. Of the classification tasks, the classes are those that
    occur in the file, or the lines of `<root>/data/<task>.labels.txt`.

    Args:
        root: the folder `video-tasks` of `TIGER-Lab/MMEB-V2`, unpacked.
        names (*optional*): which of the 18 tasks; all by default.
        partial (`bool`): take what is there, instead of an error where a task is missing.

    Raises:
        ValueError: a task, a key or a folder of frames is missing; the message names file and row.
    """
    root = Path(root)
    kinds = {name: kind for kind, own in VIDEO.items() for name in own}
    wanted = chosen(root, names, kinds, lambda name: _annotations(root, name).exists(), partial)
    return [_READERS[kinds[name]](root, name, kinds[name]) for name in wanted]


def _annotations(root: Path, name: str) -> Path:
    return root / "data" / ("mvbench" if name == "MVBench" else f"{_FILES.get(name, name.lower())}.jsonl")


def _frames(root: Path, name: str, kind: str) -> Path:
    home = root / "frames" / f"video_{kind.lower()}"
    return next((home / folder for folder in _FOLDERS.get(name, (name,)) if (home / folder).is_dir()), home / name)


class _Building:
    """A video task in the making, and what is needed for that."""

    def __init__(self, root: Path, name: str, kind: str):
        self.path, self.folder = _annotations(root, name), _frames(root, name, kind)
        self.items = Items(self.folder)
        self.task = Task(name, kind, [], [], [], [])

    def rows(self):
        for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines()):
            if line.strip():
                where = f"{self.path}, row {number}"
                try:
                    yield where, _Row(json.loads(line), where)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{where}: {error}") from error

    def ask(self, query, candidates: list, relevant: list[int]):
        """A query with candidates of its own; equal ones count once."""
        own = dict.fromkeys(candidates)
        places = {item: place for place, item in enumerate(own)}
        self.task.queries.append(query)
        self.task.candidates.append([self.items.number(item) for item in own])
        self.task.relevant.append(sorted({places[candidates[i]] for i in relevant}))

    def done(self) -> Task:
        self.task.corpus = list(self.items.numbers)
        return not_empty(self.task, self.path)


class _Row(dict):
    """A row whose missing keys are errors that say where."""

    def __init__(self, row, where: str):
        if not isinstance(row, dict):
            raise ValueError(f"{where}: is no object.")
        super().__init__(row)
        self.where = where

    def __missing__(self, key):
        raise ValueError(f"{self.where}: lacks {key!r}; it has {list(self)}.")

    def number(self, key: str) -> int:
        """A whole number, that may be written as text."""
        if not str(self[key]).isdigit():
            raise ValueError(f"{self.where}: {key!r} is no number but {self[key]!r}.")
        return int(self[key])

    def bare(self, key: str) -> list[str]:
        """Options without their letters: `"A. text."` -> `"text"`."""
        if odd := [option for option in self[key] if not re.match(r"[A-Z]\. ", str(option))]:
            raise ValueError(f"{self.where}: the option {odd[0]!r} does not begin with its letter.")
        return [option[2:].strip(". ") for option in self[key]]


def _classes(root: Path, name: str, kind: str) -> Task:
    made = _Building(root, name, kind)
    rows = list(made.rows())
    listed = made.path.with_suffix(".labels.txt")
    labels = listed.read_text(encoding="utf-8").splitlines() if listed.exists() else []
    labels = list(dict.fromkeys(labels or (row["pos_text"] for _, row in rows)))
    if not listed.exists() and name != "SmthSmthV2":
        made.task.notes.append(f"{len(labels)} classes, those that occur")
    for where, row in rows:
        query = made.items.get(_CLASS[name], str(row["video_id"]), where)
        texts = [row["pos_text"], *row["neg_text"]] if name == "SmthSmthV2" else labels
        if row["pos_text"] not in texts:
            raise ValueError(f"{where}: {row['pos_text']!r} is none of the classes.")
        made.ask(query, [made.items.get(text, "", where) for text in texts], [texts.index(row["pos_text"])])
    return made.done()


def _retrieval(root: Path, name: str, kind: str) -> Task:
    made = _Building(root, name, kind)
    instruction, key, said = _FOUND[name]
    made.task.candidates = None
    for where, row in made.rows():
        caption = row[said][0] if isinstance(row[said], list) else row[said]
        video = Path(str(row[key])).stem if name == "DiDeMo" else str(row[key])
        made.task.queries.append(made.items.get(f"{instruction} {caption}", "", where))
        made.task.relevant.append([made.items.number(made.items.get(_UNDERSTAND, video, where))])
    return made.done()


def _moments(root: Path, name: str, kind: str) -> Task:
    made = _Building(root, name, kind)
    for where, row in made.rows():
        if name == "MomentSeeker":
            clips, right = _seeker_clips(row)
            query = _seeker_query(made, row, where)
        else:
            video = Path(row["video_path"]).stem
            parts = sorted(p.name for p in (made.folder / video).glob("*") if p.is_dir() and p.name != "query")
            right = [i for i, part in enumerate(parts) if part.startswith("positive")]
            clips = [f"{video}/{part}" for part in parts]
            query = made.items.get(f"{_CLIP} {row['query']}", f"{video}/query", where)
        if not right:
            raise ValueError(f"{where}: no clip of {made.folder} is right.")
        text = "Understand the content of the provided video clip." if name == "MomentSeeker" else _UNDERSTAND
        made.ask(query, [made.items.get(text, clip, where) for clip in clips], right)
    return made.done()


def _seeker_clips(row: _Row) -> tuple[list[str], list[int]]:
    own = [*row["positive_frames"], *row["negative_frames"]]
    clips = [f"video_frames/{clip['output_path'].replace('/', '_').removesuffix('.mp4')}" for clip in own]
    return clips, list(range(len(row["positive_frames"])))


def _seeker_query(made: _Building, row: _Row, where: str):
    given, text = row.get("input_frames") or "", row["query"]
    if given.endswith(".mp4"):
        said = "Find the clip that corresponds to the given sentence and video segment:"
        folder = f"video_frames/{given.replace('/', '_').removesuffix('.mp4')}"
        return made.items.get(f"{said} {text}", folder, where)
    if given.endswith(".jpg"):
        said = "Select the video clip that aligns with the given text and image:"
        return made.items.get(f"{said} {text}", f"query_{given}", where)
    return made.items.get(f"Find the clip that corresponds to the given text: {text}", "", where)


def _answers(root: Path, name: str, kind: str) -> Task:
    made = _Building(root, name, kind)
    for where, row in _mvbench_rows(made.path) if name == "MVBench" else made.rows():
        video, question, answers, right = _QUESTIONS[name](row)
        if not 0 <= right < len(answers):
            raise ValueError(f"{where}: the answer {row['answer']!r} is none of the options.")
        query = made.items.get(f"{_ANSWER} {question}", video, where)
        made.ask(query, [made.items.get(str(answer), "", where) for answer in answers], [right])
    return made.done()


def _mvbench_rows(folder: Path):
    for path in sorted(folder.glob("*.json")):
        for where, row in json_list(path):
            yield where, _Row({**row, "subset": path.stem} if isinstance(row, dict) else row, where)


def _lettered(options: list[str]) -> list[str]:
    return [f"({letter}) {option}" for letter, option in zip("ABCDEFGHIJ", options)]


def _place(value, options: list) -> int:
    return options.index(value) if value in options else -1


_QUESTIONS: dict[str, Callable] = {  # row -> folder of the video, question, answers, which is right
    "Video-MME": lambda row: (
        row["videoID"],
        "\n".join([row["question"], *row["options"]]),
        row.bare("options"),
        _place(row["answer"], list("ABCD")),
    ),
    "EgoSchema": lambda row: (
        row["video_idx"],
        row["question"] + " ".join(row["option"]),
        row.bare("option"),
        row.number("answer"),
    ),
    "NExTQA": lambda row: (
        str(row["video"]),
        "\n".join([row["question"], "Options:", *_lettered([row[f"a{i}"] for i in range(5)])]),
        [row[f"a{i}"] for i in range(5)],
        row.number("answer"),
    ),
    "MVBench": lambda row: (
        f"{row['subset']}/{row['video']}",
        "\n".join([row["question"], "Options:", *_lettered(row["candidates"])]),
        _lettered(row["candidates"]),
        _place(row["answer"], row["candidates"]),
    ),
    "ActivityNetQA": lambda row: (
        f"v_{row['video_name']}",
        f"{row['question']}? (A) yes; (B) no.",
        ["yes", "no"],
        _place(row["answer"], ["yes", "no"]),
    ),
}
_READERS = {"CLS": _classes, "QA": _answers, "RET": _retrieval, "MRET": _moments}
