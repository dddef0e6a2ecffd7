"""The tasks of the miniature world: one maker each, and the candidates that their test queries choose among."""

import random
from dataclasses import dataclass

from ..prompts_unime import one_of
from . import scenes
from .instructions import (
    ANSWER,
    CLASSIFY,
    FIND_CAPTION,
    FIND_CHANGED,
    FIND_IMAGE,
    FIND_SIMILAR,
    IMAGE,
    NAME_OBJECT,
    REPRESENT_CROP,
    REPRESENT_IMAGE,
    SELECT_CROP,
    prompt,
)
from .sources import Source, digit_words

CANDIDATES = 100
KINDS = {
    "Shapes_object": "Classification",
    "Digits_label": "Classification",
    "Shapes_vqa": "VQA",
    "Shapes_t2i": "Retrieval",
    "Shapes_i2t": "Retrieval",
    "Shapes_change": "Retrieval",
    "Shapes_same": "Retrieval",
    "Digits_same": "Retrieval",
    "Shapes_long_t2i": "Retrieval",
    "Shapes_long_i2t": "Retrieval",
    "Shapes_crop": "Grounding",
}


@dataclass
class Row:
    """One query with its target; both are a text and the path of an image, either of which may be empty.

    Args:
        query, target (`tuple[str, str]`): what is asked, and what is right.
        content (`str`): what the target shows; targets of equal content are equally right.
        near (`tuple[str, str]`, *optional*): a wrong target that is nearly right: the negative of a training row, and
            of a test row a candidate that must be among the others.
    """

    query: tuple[str, str]
    target: tuple[str, str]
    content: str
    near: tuple[str, str] | None = None


def make_row(task: str, source: Source) -> Row:
    """One example of a task.

    Args:
        task (`str`): one of `KINDS`.
        source ([`~unime.miniature.sources.Source`]): random numbers, split, pictures and scans.

    Raises:
        ValueError: there is no such task.
    """
    return _MAKERS[one_of("task", task, *KINDS)](source)


def _with_image(instruction: str, path: str, words: str = "") -> tuple[str, str]:
    """A text and an image; the text is an instruction and what it is about."""
    return IMAGE + prompt(instruction, words), path


# one maker a task
def _object(source: Source) -> Row:
    """A picture of one thing, and its class."""
    scene = source.scene(scenes.one)
    label = scenes.label(scene)
    query = _with_image(NAME_OBJECT, source.painter.scene(scene))
    return Row(query, (label, ""), label)


def _digit_label(source: Source) -> Row:
    """A scan, and the digit that it shows."""
    digit, image = source.digit()
    query = _with_image(CLASSIFY, source.painter.save(image))
    return Row(query, (digit_words(digit), ""), digit_words(digit))


def _question(source: Source) -> Row:
    """A picture with a question, and the answer."""
    layout = source.rng.choice((scenes.one, scenes.pair, scenes.crowd, scenes.quarters))
    scene = source.scene(layout)
    question, answer = source.rng.choice(scenes.questions(scene))
    query = _with_image(ANSWER, source.painter.scene(scene), question)
    return Row(query, (answer, ""), answer)


def _caption_to_image(source: Source) -> Row:
    """A caption of one sentence, and the picture."""
    return _text_to_image(source, _captioned_scene(source))


def _image_to_caption(source: Source) -> Row:
    """A picture, and a caption of one sentence."""
    return _image_to_text(source, _captioned_scene(source))


def _long_caption_to_image(source: Source) -> Row:
    """A caption of several sentences, and the picture."""
    return _text_to_image(source, source.scene(scenes.quarters))


def _image_to_long_caption(source: Source) -> Row:
    """A picture, and a caption of several sentences."""
    return _image_to_text(source, source.scene(scenes.quarters))


def _captioned_scene(source: Source) -> scenes.Scene:
    """A scene for a caption of one sentence."""
    layout = source.rng.choice((scenes.pair, scenes.pair, scenes.pair, scenes.crowd))
    return source.scene(layout)


def _text_to_image(source: Source, scene: scenes.Scene) -> Row:
    """A scene's caption, and its picture."""
    words = scenes.describe(scene)
    target = _with_image(REPRESENT_IMAGE, source.painter.scene(scene))
    return Row((prompt(FIND_IMAGE, words), ""), target, words)


def _image_to_text(source: Source, scene: scenes.Scene) -> Row:
    """A scene's picture, and its caption."""
    words = scenes.describe(scene)
    query = _with_image(FIND_CAPTION, source.painter.scene(scene))
    return Row(query, (words, ""), words)


def _same_scene(source: Source) -> Row:
    """A picture, and another one with the same content."""
    scene = source.scene(scenes.pair)
    other = scenes.restyle(scene, source.rng)
    query = _with_image(FIND_SIMILAR, source.painter.scene(scene))
    target = _with_image(REPRESENT_IMAGE, source.painter.scene(other))
    return Row(query, target, scene.content)


def _same_digits(source: Source) -> Row:
    """Two scans, and the same two smaller and in yellow."""
    name, image, other = source.two_digits()
    query = _with_image(FIND_SIMILAR, source.painter.save(image))
    target = _with_image(REPRESENT_IMAGE, source.painter.save(other))
    return Row(query, target, name)


def _change(source: Source) -> Row:
    """A picture with a change in words, and the picture after it."""
    # the edited scene must be of the same split too
    while True:
        scene = source.scene(scenes.pair)
        words, edited = scenes.change(scene, source.rng)
        if scenes.is_test(edited.content) == source.test:
            break

    # the picture as it was is the wrong answer that is nearest
    picture = source.painter.scene(scene)
    query = _with_image(FIND_CHANGED, picture, words)
    target = _with_image(REPRESENT_IMAGE, source.painter.scene(edited))
    return Row(query, target, edited.content, near=_with_image(REPRESENT_IMAGE, picture))


def _crop(source: Source) -> Row:
    """A picture with the label of one of its things, and the crop around that thing."""
    scene = source.scene(scenes.pair)
    image = scenes.draw(scene)
    thing, other = source.rng.sample(scene.things, 2)

    # a crop around the other thing of the same picture is the wrong answer that is nearest
    query = _with_image(SELECT_CROP, source.painter.save(image), f'"{thing.label}"')
    target = _with_image(REPRESENT_CROP, source.painter.save(scenes.crop(image, thing)))
    near = _with_image(REPRESENT_CROP, source.painter.save(scenes.crop(image, other)))
    return Row(query, target, f"{thing.label} on {scene.background}", near)


_MAKERS = {
    "Shapes_object": _object,
    "Digits_label": _digit_label,
    "Shapes_vqa": _question,
    "Shapes_t2i": _caption_to_image,
    "Shapes_i2t": _image_to_caption,
    "Shapes_change": _change,
    "Shapes_same": _same_scene,
    "Digits_same": _same_digits,
    "Shapes_long_t2i": _long_caption_to_image,
    "Shapes_long_i2t": _image_to_long_caption,
    "Shapes_crop": _crop,
}


# candidates
def label_space(task: str) -> list[tuple[str, str]] | None:
    """The closed set of targets of a classification or VQA task; `None` for the other tasks."""
    if task == "Digits_label":
        labels = list(map(digit_words, range(10)))
    elif task == "Shapes_object":
        labels = scenes.labels()
    elif task == "Shapes_vqa":
        labels = scenes.answers()
    else:
        return None
    return [(label, "") for label in labels]


def with_candidates(task: str, rows: list[Row], rng: random.Random) -> list[list[tuple[str, str]]]:
    """A candidate list for each row: its target, its near miss, then targets of other content, all distinct.

    Args:
        task (`str`): one of `KINDS`.
        rows (`list[Row]`): all test rows of the task; the wrong candidates are drawn from their targets, or from the
            label set of the task where it has one.
        rng (`random.Random`): draws them.

    Returns:
        `list[list[tuple[str, str]]]`: up to `CANDIDATES` for each row, the target first.
    """
    labels = label_space(task)
    lists = []
    for row in rows:
        first = [row.target]
        if row.near is not None:
            first.append(row.near)

        pool = labels or _targets_of_other_content(row, rows)
        rest = [target for target in pool if target not in first]
        count = min(CANDIDATES - len(first), len(rest))
        lists.append(first + rng.sample(rest, count))
    return lists


def _targets_of_other_content(row: Row, rows: list[Row]) -> list[tuple[str, str]]:
    """One target of each content but that of a row."""
    targets = {}
    for other in rows:
        if other.content != row.content:
            targets[other.content] = other.target
    return list(targets.values())
