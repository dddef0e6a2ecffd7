"""Layouts that other projects write, told apart by their columns and translated into rows of our own.

sentence-transformers' pairs, triplets and labelled lists; the conversations of ms-swift, LLaVA, ShareGPT and chat
templates; pictures with captions or labels. A mapping of columns (`query=caption`) goes before what is recognised.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from .texts import require_text, shown

QUERIES = ("anchor", "query", "sentence1", "question", "text1")  # what a query is called
ANSWERS = ("positive", "answer", "sentence2", "text2", "response", "document", "passage")
CAPTIONS = ("caption", "captions", "text", "txt", "description", "prompt", "title", "sentence")
PICTURES = ("image", "images", "img", "picture", "photo", "video", "png", "jpg")
SCORES = ("label", "score", "similarity_score")  # of a pair
DOCUMENTS = ("documents", "docs", "passages", "candidates")  # a list, of which labels say which are right
LABELS = ("labels", "scores", "label", "score")
RIGHT = 0.5  # labels and scores from here on are those of right answers
_NEGATIVE = re.compile(r"negatives?(_\d+)?")
_MEDIA = re.compile(r"(^|_)(image|images|img|photo|picture|video|file_name|path|png|jpg)($|_)", re.IGNORECASE)
_PLACE = re.compile(r"<image>|<video>|<\|image_\d+\|>")
_SPEAKERS = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}  # LLaVA's and others' names
_ITEM_KEYS = ("text", "image", "video", "instruction")
TARGETS = (
    "query",
    "positive",
    "positives",
    "negative",
    "negatives",
    "positive_score",
    "negative_scores",
    "score",
    "weight",
    "dataset",
    "instruction",
)
PASSED = ("dataset", "weight", "positive_score", "positive_scores", "negative_scores")  # columns that rows keep


class Layout(NamedTuple):
    """A layout of rows.

    Args:
        name (`str`): for reports.
        takes (`dict[str, str]`): what each column is taken for, of those that are read.
        translate: maps a row to rows of our own layout, of which there may be none.
        of_items (`bool`, defaults to `False`): whether a row may as well be one item, as a picture with its caption.
    """

    name: str
    takes: dict[str, str]
    translate: Callable[[dict], list[dict]]
    of_items: bool = False


def layout_of(columns: Iterable[str]) -> Layout | None:
    """The layout of rows with these columns, or None if it is not one of these.

    Args:
        columns: names of all columns.

    Example:

    ```python
    layout_of(["anchor", "positive", "negative_1"]).takes  # {"anchor": "query", "positive": "positive", ...}
    ```
    """
    columns = list(columns)
    for recognise in (_messages, _conversations, _swift, _labelled_list, _pairs, _captioned):
        layout = recognise(columns)
        if layout is not None:
            return layout
    return None


def _first(columns: Iterable[str], names: Iterable[str]) -> str | None:
    """The first of some names that is a column."""
    return next((name for name in names if name in columns), None)


# a mapping that the user gives
def read_mapping(columns: Iterable[str] | Mapping[str, str] | None) -> dict[str, str]:
    """The columns that a user names: `["query=caption", "positive.image=photo"]`.

    Args:
        columns: such texts, or a mapping of what a column is taken for to its name.

    Returns:
        `dict[str, str]`: the column for each of `query`, `positive`, `negatives`, ..., or for a part of one of these,
        such as `query.text`.

    Raises:
        ValueError: a text is not of this form, or names something that rows do not have.
    """
    if not columns:
        return {}
    pairs = columns.items() if isinstance(columns, Mapping) else [text.partition("=")[::2] for text in columns]

    mapping = {}
    for target, column in pairs:
        name, _, part = target.partition(".")
        is_one = "," not in column or "=" not in column  # not several with a comma between them
        if name not in TARGETS or (part and part not in _ITEM_KEYS) or not column or not is_one:
            raise ValueError(
                f"--columns {target}={column}: write what a row has, =, and the name of its column, such as "
                f"query=caption or positive.image=photo; several with blanks between them. A row has "
                f"{', '.join(TARGETS)}; an item has {', '.join(_ITEM_KEYS)}."
            )
        mapping[target] = column
    return mapping


def mapped_layout(mapping: dict[str, str]) -> Layout:
    """The layout in which the user names the columns.

    Args:
        mapping (`dict[str, str]`): from [`read_mapping`].
    """

    def translate(row: dict) -> list[dict]:
        missing = [column for column in mapping.values() if column not in row]
        if missing:
            raise ValueError(f"lacks the columns {missing} of --columns; it has {shown(list(row))}.")

        own = {}
        for target, column in mapping.items():
            name, _, part = target.partition(".")
            value = row[column]
            if part:
                own.setdefault(name, {})[part] = value
            elif name in ("query", "positive", "negative", "negatives", "positives"):
                own[name] = media_or_text(column, value)
            else:
                own[name] = value
        return _labelled(_with_negatives(own, own), own)

    return Layout("columns as given", {column: target for target, column in mapping.items()}, translate)


def is_of_media(column: str) -> bool:
    """Whether the name of a column speaks of an image, a picture, a video or a path."""
    return bool(_MEDIA.search(column))


def media_or_text(column: str, value):
    """A value as an item: what a column of pictures holds is a path, what others hold is a text.

    Args:
        column (`str`): its name.
        value: a text, a path, or anything else, which says itself what it is; or a list of these.
    """
    if not is_of_media(column):
        return value
    if isinstance(value, list) and value and all(isinstance(entry, str) for entry in value):
        return {"images": value}
    return {"image": value} if isinstance(value, str) and value else value


# sentence-transformers
def _pairs(columns: list[str]) -> Layout | None:
    """`anchor, positive, negative_1, ...`, `sentence1, sentence2, score`, `question, answer`, and the like."""
    query = _first(columns, QUERIES)
    positive = _first([column for column in columns if column != query], ANSWERS)
    if query is None or positive is None:
        return None

    negatives = [column for column in columns if _NEGATIVE.fullmatch(column)]
    rejected = _first(columns, ("rejected_response", "hard_neg"))  # ms-swift's name, and SimCSE's
    if rejected:
        negatives.append(rejected)
    score = _first(columns, SCORES)
    instruction = _first(columns, ("instruction",))

    takes = {query: "query", positive: "positive"} | dict.fromkeys(negatives, "negative")
    if score:
        takes[score] = "score of the pair"
    if instruction:
        takes[instruction] = "instruction"
    images = _first(columns, PICTURES)
    if images:
        takes[images] = "image of the query"
    _keep_passed(columns, takes)

    def translate(row: dict) -> list[dict]:
        own = {name: row[name] for name in PASSED if name in row}
        own["query"] = row[query]
        own["positive"] = row[positive]
        own["negatives"] = _all_of(row, negatives)
        if images:
            own["query"] = _placed(row[query], _listed(row[images]))
        if instruction:
            own["instruction"] = row[instruction]
        if score:
            own["score"] = row[score]
        return _labelled(own, own)

    return Layout("pairs and triplets (sentence-transformers)", takes, translate)


def _labelled_list(columns: list[str]) -> Layout | None:
    """A query, documents, and labels that say which are right: what listwise losses of cross-encoders read."""
    query = _first(columns, QUERIES)
    documents = _first(columns, DOCUMENTS)
    labels = _first(columns, LABELS)
    if None in (query, documents, labels):
        return None

    def translate(row: dict) -> list[dict]:
        entries = row[documents]
        marks = row[labels]
        if not isinstance(entries, list) or not isinstance(marks, list) or len(entries) != len(marks):
            raise ValueError(f"{documents!r} and {labels!r} must be lists of equal length.")

        own = {name: row[name] for name in PASSED if name in row}
        right, wrong = parted(entries, [_score_of(mark) for mark in marks])
        return [own | {"query": row[query]} | right | wrong] if right else []

    takes = {query: "query", documents: "positives and negatives", labels: "their scores"}
    return Layout("labelled lists (sentence-transformers)", _keep_passed(columns, takes), translate)


def parted(entries: list, scores: list[float]) -> tuple[dict, dict]:
    """Right and wrong answers of a list with scores, as keys of our own layout; two empty ones without a right answer.

    Args:
        entries (`list`): items.
        scores (`list[float]`): of each, in [0, 1]; from a half on, they are right.
    """
    right = [(entry, score) for entry, score in zip(entries, scores) if score >= RIGHT]
    wrong = [(entry, score) for entry, score in zip(entries, scores) if score < RIGHT]
    if not right:
        return {}, {}

    # yes and no are no judge's scores
    is_graded = not set(scores) <= {0, 1}
    positives = {"positives": [entry for entry, _ in right]}
    negatives = {"negatives": [entry for entry, _ in wrong]}
    if is_graded:
        positives["positive_scores"] = [score for _, score in right]
        negatives["negative_scores"] = [score for _, score in wrong]
    return positives, negatives


def _labelled(own: dict, row: dict) -> list[dict]:
    """A pair whose score says whether it is one: none below a half; an instruction becomes the query's."""
    own = {key: value for key, value in own.items() if key not in ("score", "instruction")}
    instruction = row.get("instruction")
    if instruction:
        own["query"] = _as_object(own["query"]) | {"instruction": instruction}

    score = row.get("score")
    if score is None:
        return [own]
    score = _score_of(score)
    if score < RIGHT:
        return []
    if score < 1:
        own.setdefault("positive_score", score)
    return [own]


def _score_of(value) -> float:
    """A label or score as a number in [0, 1]."""
    if isinstance(value, str):
        # a cell of a CSV file
        try:
            value = float(value)
        except ValueError as error:
            raise ValueError(f"the score {shown(value)} is not a number in [0, 1].") from error
    if not isinstance(value, (bool, int, float)) or not 0 <= value <= 1:
        raise ValueError(
            f"the score {shown(value)} is not a number in [0, 1]; divide by the highest one, or leave the column out "
            "by --columns."
        )
    return float(value)


def _as_object(value) -> dict:
    """An item as an object that an instruction can be added to."""
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, Mapping) and not value.keys() <= {"bytes", "path"}:
        return dict(value)
    return {"image": value}


def _with_negatives(own: dict, row: dict) -> dict:
    """A row whose single negatives stand in the list of all."""
    singles = [name for name in row if _NEGATIVE.fullmatch(name) and name != "negatives"]
    negatives = row.get("negatives")
    if negatives is not None and not isinstance(negatives, list):
        negatives = [negatives]

    own = {key: value for key, value in own.items() if key not in singles}
    if singles:
        own["negatives"] = [*(negatives or []), *_all_of(row, singles)]
    elif negatives is not None:
        own["negatives"] = negatives
    return own


def with_single_negatives(row: dict) -> dict:
    """A row of our own layout that may also have `negative`, `negative_1`, ...: one list of all negatives."""
    if not any(_NEGATIVE.fullmatch(name) and name != "negatives" for name in row):
        return row
    return _with_negatives(row, row)


def _all_of(row: dict, names: Iterable[str]) -> list:
    """The values of several columns, each one or a list; empty ones are left out."""
    values = []
    for name in names:
        value = row[name]
        values += value if isinstance(value, list) else [value]
    return [value for value in values if value not in (None, "")]


def _keep_passed(columns: Iterable[str], takes: dict[str, str]) -> dict[str, str]:
    """What columns are taken for, with those that every layout may have."""
    for name in PASSED:
        if name in columns:
            takes.setdefault(name, name.replace("_", " "))
    return takes


# conversations
def _conversations(columns: list[str]) -> Layout | None:
    """LLaVA's and ShareGPT's `conversations`: what is asked of a picture is the query, the answer the positive."""
    if "conversations" not in columns:
        return None
    return _chat_layout(columns, "conversations", "conversations (LLaVA, ShareGPT)")


def _messages(columns: list[str]) -> Layout | None:
    """`messages` of a chat template, or of ms-swift without answers of their own."""
    if "messages" not in columns or not {"positive_messages", "negative_messages"}.isdisjoint(columns):
        return None
    return _chat_layout(columns, "messages", "messages (chat templates, ms-swift)")


def _chat_layout(columns: list[str], name: str, title: str) -> Layout:
    media = [column for column in ("image", "images", "video", "videos") if column in columns]
    takes = {name: "queries and positives, a row for each answer"} | dict.fromkeys(media, "images of the questions")
    _keep_passed(columns, takes)

    def translate(row: dict) -> list[dict]:
        images = [image for column in media for image in _listed(row[column])]
        turns = [_turn(message) for message in _messages_of(row, name)]

        # a system's message is no answer, and what was said before does not count
        rows = []
        question = None
        asked_images = []
        for role, content in turns:
            if role == "user":
                asked_images = images or asked_images  # of every question, as its answers are about them
                question = _placed(content, asked_images)
            elif role == "assistant" and question is not None:
                own = {key: row[key] for key in PASSED if key in row}
                rows.append(own | {"query": question, "positive": content})
                question = None
        if not rows:
            raise ValueError(f"{name!r} has no question with an answer.")
        return rows

    return Layout(title, takes, translate)


def _swift(columns: list[str]) -> Layout | None:
    """ms-swift's rows for embedders and rerankers: `messages` with `positive_messages` and `negative_messages`."""
    if "messages" not in columns or "positive_messages" not in columns:
        return None

    takes = {"messages": "query", "positive_messages": "positives"}
    for column, what in (
        ("negative_messages", "negatives"),
        ("images", "images of the query"),
        ("positive_images", "images of the positives"),
        ("negative_images", "images of the negatives"),
        ("label", "score of the pair"),
    ):
        if column in columns:
            takes[column] = what
    _keep_passed(columns, takes)

    def translate(row: dict) -> list[dict]:
        own = {name: row[name] for name in PASSED if name in row}
        own["query"] = _last_turn(_messages_of(row, "messages"), _listed(row.get("images")))
        own["positives"] = _lists_of_turns(row, "positive_messages", "positive_images")
        own["negatives"] = _lists_of_turns(row, "negative_messages", "negative_images")

        label = row.get("label")
        if label is not None and _score_of(label) < RIGHT:
            return []
        return [own]

    return Layout("messages with positives (ms-swift)", takes, translate)


def _lists_of_turns(row: dict, name: str, images: str) -> list:
    """The items of a list of conversations, each with its list of images."""
    entries = row.get(name) or []
    pictures = row.get(images) or []
    if not isinstance(entries, list) or not isinstance(pictures, list):
        raise ValueError(f"{name!r} and {images!r} must be lists.")

    # one conversation may stand without a list around it
    if entries and isinstance(entries[0], Mapping):
        entries = [entries]
        pictures = [pictures]
    items = []
    for place, messages in enumerate(entries):
        own_pictures = pictures[place] if place < len(pictures) else None
        items.append(_last_turn(messages, _listed(own_pictures)))
    return items


def _last_turn(messages, images: list):
    """What the last message of a conversation says, with its images."""
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"a conversation must be a list of messages, not {shown(messages)}.")
    _, content = _turn(messages[-1])
    return _placed(content, images)


def _messages_of(row: dict, name: str) -> list:
    messages = row[name]
    if not isinstance(messages, list):
        raise ValueError(f"{name!r} must be a list of messages, not {shown(messages)}.")
    return messages


def _turn(message) -> tuple[str, object]:
    """Role and content of a message, in either spelling."""
    if not isinstance(message, Mapping):
        raise ValueError(f"a message must be an object, not {shown(message)}.")
    role = message.get("role") or message.get("from")
    content = message.get("content") if message.get("content") is not None else message.get("value")
    if not isinstance(role, str) or not isinstance(content, (str, list)):
        raise ValueError(f"a message has 'role' and 'content', or 'from' and 'value'; got {shown(message)}.")
    return _SPEAKERS.get(role, role), content


def _placed(content, images: list):
    """A text with places for images (`<image>`), or a list of parts, and images, as one item."""
    if isinstance(content, list) or not images:
        return content
    require_text(content)

    # the images come first where the text does not say where they stand
    pieces = _PLACE.split(content)
    if len(pieces) == 1:
        item = {"text": content, "images": images}
    elif len(pieces) == 2:
        item = {"text": (pieces[0] + pieces[1]).strip("\n"), "images": images}
    elif len(pieces) == len(images) + 1:
        parts = []
        for number, piece in enumerate(pieces):
            if number > 0:
                parts.append({"image": images[number - 1]})
            if piece:
                parts.append({"text": piece})
        return parts
    else:
        raise ValueError(f"the text has {len(pieces) - 1} places for {len(images)} images.")
    return {key: value for key, value in item.items() if value}


def _listed(value) -> list:
    """A value as a list, which may be one or be missing."""
    if value in (None, "", []):
        return []
    return value if isinstance(value, list) else [value]


# pictures with captions, or with labels
def _captioned(columns: list[str]) -> Layout | None:
    """A picture with its caption, which is the query, or with its label, which is the positive."""
    picture = _first(columns, PICTURES)
    if picture is None:
        return None
    caption = _first(columns, CAPTIONS)
    label = _first(columns, ("label", "labels", "cls", "class"))
    if caption is None and label is None:
        return None

    def translate_captions(row: dict) -> list[dict]:
        own = {name: row[name] for name in PASSED if name in row}
        captions = _listed(row[caption])
        if not captions:
            raise ValueError(f"{caption!r} is empty.")
        return [own | {"query": text, "positive": media_or_text("image", row[picture])} for text in captions]

    def translate_labels(row: dict) -> list[dict]:
        own = {name: row[name] for name in PASSED if name in row}
        name = row[label]
        if not isinstance(name, str):
            raise ValueError(
                f"{label!r} is {shown(name)}, which is not the name of a label; store it as a ClassLabel, or name "
                "another column by --columns positive=..."
            )
        return [own | {"query": media_or_text("image", row[picture]), "positive": name}]

    if caption is not None:
        takes = {caption: "query", picture: "positive"}
        return Layout("pictures with captions", _keep_passed(columns, takes), translate_captions, of_items=True)
    takes = {picture: "query", label: "positive"}
    return Layout("pictures with labels", _keep_passed(columns, takes), translate_labels, of_items=True)
