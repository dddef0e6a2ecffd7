"""MMEB-V2's visual documents and videos in their public layouts. Its images are read by `tasks.read_mmeb`."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..data.json_lists import json_list
from ..data.readers import parquet_files, parquet_rows
from ..data.schema import Item
from ..data.texts import open_text, parse_json, read_text
from .retrieval_sets import image_rows
from .suites import VIDEO, VISDOC
from .tasks import Items, Task, not_empty, select_tasks

DOCUMENT_QUERY = "Find a document image that matches the given query:"
DOCUMENT = "Understand the content of the provided document image."


# visual documents
def read_visdoc(root, names: Iterable[str] | None = None, cache=None, partial: bool = False) -> list[Task]:
    """Reads visual documents, `<root>/<data set>/{queries,corpus,qrels}/<split>-*.parquet`; nDCG@5 is their metric.

    Args:
        root: folder of the data sets, named as on the Hub (`arxivqa_test_subsampled_beir`, ...).
        names (*optional*): which of the 24 tasks; all by default.
        cache (*optional*): folder into which page images are unpacked, once; `<root>/images` by default.
        partial (`bool`, defaults to `False`): take what is there, instead of an error where a task is missing.

    Returns:
        `list[Task]`: with graded relevance; every query has all pages as candidates.

    Raises:
        ValueError: a task, a column or a document is missing; the message names file and row.

    Example:

    ```python
    tasks = read_visdoc("benchmarks-data/visdoc", ["ViDoRe_arxivqa"])
    ```
    """
    root = Path(root)
    cache = Path(cache or root / "images")
    tasks = []
    for name in select_tasks(root, names, VISDOC, lambda name: (root / VISDOC[name].folder).is_dir(), partial):
        tasks.append(_read_documents(name, root / VISDOC[name].folder, cache / name))
    return tasks


def _read_documents(name: str, root: Path, cache: Path) -> Task:
    """Reads one task: pages, then which of them are relevant, then the queries that have a relevant one."""
    split = VISDOC[name].split
    items = Items(cache)
    pages = _read_pages(root, split, cache, items)
    relevance = _read_relevance(root, split, pages)

    # every query has all pages as candidates
    task = Task(
        name,
        VISDOC[name].group,
        queries=[],
        corpus=list(items.numbers),
        candidates=None,
        relevant=[],
        gains=[],
        metric="ndcg@5",
        benchmark="mmeb",
    )

    skipped = 0
    for path in parquet_files(root / "queries", split):
        for number, row in parquet_rows(path, {"query-id": (), "query": ()}):
            where = f"{path}, row {number}"
            gains = relevance.get(str(row["query-id"]))

            if gains is None:
                skipped += 1
                continue

            if not (row["query"] or "").strip():
                raise ValueError(f"{where}: the query is empty.")

            task.queries.append(items.get(f"{DOCUMENT_QUERY} {row['query']}", "", where))
            task.relevant.append(list(gains))
            task.gains.append(list(gains.values()))

    if skipped and task.queries:
        task.notes.append(f"{skipped} queries without a relevant document left out")
    return not_empty(task, root)


def _read_pages(root: Path, split: str, cache: Path, items: Items) -> dict[str, int]:
    """The places of the pages in the corpus, by their ids."""
    pages = {}
    for path in parquet_files(root / "corpus", split):
        for number, image, row in image_rows(path, "image", ["corpus-id"], cache):
            page = items.get(DOCUMENT, image, f"{path}, row {number}")
            pages[str(row["corpus-id"])] = items.number(page)
    return pages


def _read_relevance(root: Path, split: str, pages: dict[str, int]) -> dict[str, dict[int, float]]:
    """The relevant pages of each query with their gains: `{query id: {place in the corpus: gain}}`."""
    relevance: dict[str, dict[int, float]] = {}
    for path in parquet_files(root / "qrels", split):
        for number, row in parquet_rows(path, {"query-id": (), "corpus-id": (), "score": ()}):
            page = pages.get(str(row["corpus-id"]))
            if page is None:
                raise ValueError(f"{path}, row {number}: there is no document {row['corpus-id']!r}.")

            # two ids may be one page, whose greater gain counts
            if row["score"] > 0:
                gains = relevance.setdefault(str(row["query-id"]), {})
                gains[page] = max(gains.get(page, 0.0), float(row["score"]))
    return relevance


# videos: texts and places of the release
_ANSWER = (
    "Given a video and a question, select the most accurate answer from the provided candidates. Return only the "
    "exact text of your chosen answer. Question: "
)
_CLIP = "Find the clip that corresponds to the described scene in the given video:"
_SEEKER_TEXT = "Find the clip that corresponds to the given text:"
_SEEKER_IMAGE = "Select the video clip that aligns with the given text and image:"
_SEEKER_VIDEO = "Find the clip that corresponds to the given sentence and video segment:"
_UNDERSTAND = "Understand the content of the provided video."
_UNDERSTAND_CLIP = "Understand the content of the provided video clip."
_CLASSIFY = {  # task -> instruction
    "K700": "Recognize the category of the video content.",
    "SmthSmthV2": "What actions or object interactions are being performed by the person in the video?",
    "HMDB51": "What actions or objects interactions are the person in the video doing?",
    "UCF101": "What activities or sports are being performed by the person in the video?",
    "Breakfast": "Recognize the breakfast type that the person is cooking in the video.",
}


@dataclass(frozen=True)
class _Captions:
    """A retrieval task: its instruction, and the columns of the video and of its caption."""

    instruction: str
    video: str
    caption: str


_RETRIEVE = {
    "DiDeMo": _Captions("Find a video that includes the following described scenes:", "video", "caption"),
    "MSR-VTT": _Captions("Find a video that contains the following visual content:", "video_id", "caption"),
    "MSVD": _Captions("Find the video snippet that corresponds to the given summary:", "video_id", "caption"),
    "VATEX": _Captions("Select a video that fits the description provided:", "videoID", "enCap"),
    "YouCook2": _Captions(
        "Find a video that demonstrates the following action while making a recipe:", "id", "sentence"
    ),
}
_FILES = {  # task -> its annotations, where they are not named like the task
    "SmthSmthV2": "ssv2",
    "YouCook2": "youcook2-val",
    "Charades-STA": "charades_sta",
    "MomentSeeker": "momentseeker_1k6",
}
_FOLDERS = {  # task -> names that its folder of frames may have
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
        partial (`bool`, defaults to `False`): take what is there, instead of an error where a task is missing.

    Raises:
        ValueError: a task, a key or a folder of frames is missing; the message names file and row.

    Example:

    ```python
    tasks = read_video("benchmarks-data/video/video-tasks", ["MSVD", "NExTQA"])
    ```
    """
    root = Path(root)
    kinds = {}
    for kind, tasks in VIDEO.items():
        kinds |= dict.fromkeys(tasks, kind)  # by task

    # each kind has a layout of its own
    readers = {"CLS": _read_classification, "QA": _read_questions, "RET": _read_captions, "MRET": _read_moments}
    tasks = []
    for name in select_tasks(root, names, kinds, lambda name: _annotations(root, name).exists(), partial):
        builder = _Builder(root, name, kinds[name])
        readers[kinds[name]](builder)
        tasks.append(builder.finish())
    return tasks


def _annotations(root: Path, name: str) -> Path:
    """The file of a task, or, for MVBench, its folder of files."""
    if name == "MVBench":
        return root / "data" / "mvbench"
    return root / "data" / f"{_FILES.get(name, name.lower())}.jsonl"


def _frames(root: Path, name: str, kind: str) -> Path:
    """The folder of a task's videos, under whichever name it has."""
    parent = root / "frames" / f"video_{kind.lower()}"
    for folder in _FOLDERS.get(name, ()):
        if (parent / folder).is_dir():
            return parent / folder
    return parent / name


class _Row(dict):
    """A row of the annotations; a missing key is an error that says where."""

    def __init__(self, row, where: str):
        if not isinstance(row, dict):
            raise ValueError(f"{where}: is not an object.")
        super().__init__(row)
        self.where = where

    def __missing__(self, key):
        raise ValueError(f"{self.where}: lacks {key!r}; it has {list(self)}.")

    def number(self, key: str) -> int:
        """A whole number, that may be written as text."""
        if not str(self[key]).isdigit():
            raise ValueError(f"{self.where}: {key!r} is not a number but {self[key]!r}.")
        return int(self[key])

    def without_letters(self, key: str) -> list[str]:
        """Options without their letters: `"A. text."` -> `"text"`."""
        options = []
        for option in self[key]:
            if not re.match(r"[A-Z]\. ", str(option)):
                raise ValueError(f"{self.where}: the option {option!r} does not begin with its letter.")
            options.append(option[2:].strip(". "))
        return options


class _Builder:
    """A video task in the making: where its files are, and what was read so far."""

    def __init__(self, root: Path, name: str, kind: str):
        self.name = name
        self.path = _annotations(root, name)
        self.folder = _frames(root, name, kind)
        self.items = Items(self.folder)
        self.task = Task(name, kind, queries=[], corpus=[], candidates=[], relevant=[], benchmark="mmeb")

    def rows(self) -> Iterator[_Row]:
        """The rows of the annotations."""
        if self.path.is_dir():
            yield from self._rows_of_folder()
            return

        # lines of JSON
        with open_text(self.path) as lines:
            for number, line in enumerate(lines):
                if not line.strip():
                    continue

                where = f"{self.path}, row {number}"
                try:
                    row = parse_json(line)
                except ValueError as error:
                    raise ValueError(f"{where}: {error}") from error
                yield _Row(row, where)

    def _rows_of_folder(self) -> Iterator[_Row]:
        """Rows of a folder of JSON lists, each with the name of its file as `subset`."""
        for path in sorted(self.path.glob("*.json")):
            for where, content in json_list(path):
                row = _Row(content, where)
                row["subset"] = path.stem
                yield row

    def item(self, row: _Row, text: str, video: str = "") -> Item:
        """An item of a row: a text, a video (its folder below that of the task), or both."""
        return self.items.get(text, video, row.where)

    def text_items(self, row: _Row, texts: list[str]) -> list[Item]:
        """Several texts of a row."""
        return [self.item(row, text) for text in texts]

    def clip_items(self, row: _Row, instruction: str, clips: list[str]) -> list[Item]:
        """Several videos of a row, with an instruction."""
        return [self.item(row, instruction, clip) for clip in clips]

    def add(self, query: Item, candidates: list[Item], right: list[int]):
        """Adds a query with candidates of its own, of which those at the places `right` are right.

        Equal candidates count once.
        """
        # a candidate's place among the distinct ones
        places: dict[Item, int] = {}
        for candidate in candidates:
            places.setdefault(candidate, len(places))

        right_places = {places[candidates[place]] for place in right}
        self.task.queries.append(query)
        self.task.candidates.append(list(map(self.items.number, places)))
        self.task.relevant.append(sorted(right_places))

    def finish(self) -> Task:
        """The task, with all candidates as its corpus."""
        self.task.corpus = list(self.items.numbers)
        return not_empty(self.task, self.path)


# classification
def _read_classification(builder: _Builder):
    """Classification: the candidates of a video are the classes."""
    rows = list(builder.rows())
    labels = _labels(builder, rows)
    for row in rows:
        texts = labels
        if builder.name == "SmthSmthV2":  # the only task with other candidates for every query
            texts = [row["pos_text"], *row["neg_text"]]

        if row["pos_text"] not in texts:
            raise ValueError(f"{row.where}: {row['pos_text']!r} is not one of the classes.")

        query = builder.item(row, _CLASSIFY[builder.name], str(row["video_id"]))
        builder.add(query, builder.text_items(row, texts), [texts.index(row["pos_text"])])


def _labels(builder: _Builder, rows: list[_Row]) -> list[str]:
    """The classes: those of a file of labels, or else those that occur."""
    path = builder.path.with_suffix(".labels.txt")
    labels = []
    if path.exists():
        labels = read_text(path).splitlines()
    if not labels:
        labels = [row["pos_text"] for row in rows]
    labels = list(dict.fromkeys(labels))

    # with fewer classes than there are, the task is easier
    if not path.exists() and builder.name != "SmthSmthV2":
        builder.task.notes.append(f"{len(labels)} classes, those that occur")
    return labels


# retrieval
def _read_captions(builder: _Builder):
    """Retrieval: the candidates of a caption are all videos of the task."""
    layout = _RETRIEVE[builder.name]
    builder.task.candidates = None  # every query has all videos
    for row in builder.rows():
        # of several captions the first counts
        caption = row[layout.caption]
        if isinstance(caption, list):
            caption = caption[0]

        video = str(row[layout.video])
        if builder.name == "DiDeMo":  # its column holds the name of a file
            video = Path(video).stem

        query = builder.item(row, f"{layout.instruction} {caption}")
        answer = builder.item(row, _UNDERSTAND, video)
        builder.task.queries.append(query)
        builder.task.relevant.append([builder.items.number(answer)])


# moments
def _read_moments(builder: _Builder):
    """Moment retrieval: the candidates of a query are clips."""
    for row in builder.rows():
        if builder.name == "MomentSeeker":
            _add_seeker_moment(builder, row)
        else:
            _add_moment(builder, row)


def _add_moment(builder: _Builder, row: _Row):
    """Adds a query with the clips of its video: folders beside the query's own, of which `positive*` are right."""
    video = Path(row["video_path"]).stem
    clips = []
    right = []
    for path in sorted((builder.folder / video).glob("*")):
        if not path.is_dir() or path.name == "query":
            continue

        if path.name.startswith("positive"):
            right.append(len(clips))
        clips.append(f"{video}/{path.name}")
    _require_right_clip(builder, row, right)

    query = builder.item(row, f"{_CLIP} {row['query']}", f"{video}/query")
    builder.add(query, builder.clip_items(row, _UNDERSTAND, clips), right)


def _add_seeker_moment(builder: _Builder, row: _Row):
    """Adds a query of MomentSeeker with the clips that its row lists, the right ones first."""
    clips = []
    for clip in (*row["positive_frames"], *row["negative_frames"]):
        clips.append(_seeker_folder(clip["output_path"]))
    right = list(range(len(row["positive_frames"])))
    _require_right_clip(builder, row, right)

    query = _seeker_query(builder, row)
    builder.add(query, builder.clip_items(row, _UNDERSTAND_CLIP, clips), right)


def _seeker_query(builder: _Builder, row: _Row) -> Item:
    """A text, alone or with an image or a video."""
    attachment = row.get("input_frames") or ""
    if attachment.endswith(".mp4"):
        return builder.item(row, f"{_SEEKER_VIDEO} {row['query']}", _seeker_folder(attachment))
    if attachment.endswith(".jpg"):
        return builder.item(row, f"{_SEEKER_IMAGE} {row['query']}", f"query_{attachment}")
    return builder.item(row, f"{_SEEKER_TEXT} {row['query']}")


def _seeker_folder(path: str) -> str:
    """The folder of frames of a video file of MomentSeeker."""
    return f"video_frames/{path.replace('/', '_').removesuffix('.mp4')}"


def _require_right_clip(builder: _Builder, row: _Row, right: list[int]):
    """A query without a right clip could only be answered wrongly."""
    if not right:
        raise ValueError(f"{row.where}: no clip of {builder.folder} is right.")


# questions
@dataclass(frozen=True)
class _Question:
    """A question about a video.

    Args:
        video (`str`): its folder below that of the task.
        text (`str`): the question, with its options where the release prints them.
        answers (`list[str]`): the candidates.
        right (`int`): the place of the right one; -1 if it is not one of them.
    """

    video: str
    text: str
    answers: list[str]
    right: int


def _read_questions(builder: _Builder):
    """Questions: the candidates of a question are its options."""
    for row in builder.rows():
        question = _QUESTIONS[builder.name](row)
        if not 0 <= question.right < len(question.answers):
            raise ValueError(f"{row.where}: the answer {row['answer']!r} is not one of the options.")

        query = builder.item(row, f"{_ANSWER} {question.text}", question.video)
        answers = list(map(str, question.answers))
        builder.add(query, builder.text_items(row, answers), [question.right])


def _video_mme(row: _Row) -> _Question:
    """Options have letters, and the answer is one of these."""
    text = "\n".join([row["question"], *row["options"]])
    return _Question(row["videoID"], text, row.without_letters("options"), _place(row["answer"], list("ABCD")))


def _ego_schema(row: _Row) -> _Question:
    """Options have letters, and the answer is a number."""
    text = row["question"] + " ".join(row["option"])
    return _Question(row["video_idx"], text, row.without_letters("option"), row.number("answer"))


def _next_qa(row: _Row) -> _Question:
    """Options have columns of their own, and the answer is a number."""
    answers = [row[f"a{number}"] for number in range(5)]
    text = "\n".join([row["question"], "Options:", *_lettered(answers)])
    return _Question(str(row["video"]), text, answers, row.number("answer"))


def _mv_bench(row: _Row) -> _Question:
    """Options are a list, and the answer is one of them."""
    options = _lettered(row["candidates"])
    text = "\n".join([row["question"], "Options:", *options])
    return _Question(f"{row['subset']}/{row['video']}", text, options, _place(row["answer"], row["candidates"]))


def _activity_net_qa(row: _Row) -> _Question:
    """The answer is yes or no."""
    answers = ["yes", "no"]
    text = f"{row['question']}? (A) yes; (B) no."
    return _Question(f"v_{row['video_name']}", text, answers, _place(row["answer"], answers))


def _lettered(options: list[str]) -> list[str]:
    """Options as the release prints them."""
    return [f"({letter}) {option}" for letter, option in zip("ABCDEFGHIJ", options)]


def _place(value, options: list) -> int:
    """Where a value stands among options; -1 if it does not."""
    if value not in options:
        return -1
    return options.index(value)


_QUESTIONS: dict[str, Callable[[_Row], _Question]] = {
    "Video-MME": _video_mme,
    "EgoSchema": _ego_schema,
    "NExTQA": _next_qa,
    "MVBench": _mv_bench,
    "ActivityNetQA": _activity_net_qa,
}
