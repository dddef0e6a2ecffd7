"""Lessons for a judge of the miniature world: a query, candidates, and which of them meet it.

A lesson covers one of the world's tasks. Its difficulty rises with `level`: below 1 there is one thing in a picture,
and wrong candidates are wrong in everything; from 1 on there are whole scenes; from 2 to 3 more and more of the wrong
candidates are wrong in one respect only, as hard negatives are. Right candidates are drawn anew, so that what a
picture shows counts, and not its pixels.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from . import scenes
from .sources import Digits, digit_words

SINGLE = {"i2t": 2, "t2i": 3, "same": 3, "label": 1, "question": 1, "digit": 2, "crop": 1}
WHOLE = {
    "i2t": 3,
    "t2i": 3,
    "long_i2t": 2,
    "long_t2i": 2,
    "same": 2,
    "change": 3,
    "crop": 2,
    "label": 2,
    "question": 3,
    "digit": 1,
    "digits": 1,
}
PICTURE = "Represent the given image.\n"


@dataclass
class Lesson:
    """`query` and `candidates` are items with PIL images; `right` says which candidates meet the query."""

    task: str
    query: dict
    candidates: list[dict]
    right: list[bool]


def make_lesson(rng: random.Random, digits: Digits, level: float, count: int = 8) -> Lesson:
    """A lesson with `count` candidates; contents of the test split never occur."""
    single = level < 1 or rng.random() < 0.15
    weights = SINGLE if single else WHOLE
    task = rng.choices(list(weights), weights.values())[0]
    query, candidate = _MAKERS[task.removeprefix("long_")](rng, digits, single, task)
    near = min(max(level - 2, 0), 1)
    kinds = rng.choices(("right", "near", "far"), (4, 4 * near, 5 - 4 * near), k=count)
    pairs = [candidate(kind) for kind in kinds]
    return Lesson(task, query, [item for item, _ in pairs], [right for _, right in pairs])


def _item(text: str, image=None) -> dict:
    return {"text": text} if image is None else {"text": text, "image": image}


def redraw(scene: scenes.Scene, rng) -> scenes.Scene:
    """The same content: other places where these do not count, another background, other sizes in a pair."""
    if scene.layout == "quarters":  # its description names places, sizes and background
        return scene
    background = rng.choice(list(scenes.BACKGROUNDS))
    if scene.layout == "one":
        spots = [(32 + rng.randint(-17, 17), 32 + rng.randint(-17, 17))]
    elif scene.layout == "crowd":
        spots = _spots(rng, len(scene.things))
    else:
        spots = [(thing.x + rng.randint(-3, 3), thing.y + rng.randint(-3, 3)) for thing in scene.things]
    things = [replace(thing, x=x, y=y) for thing, (x, y) in zip(scene.things, spots)]
    if scene.layout == "pair":
        things = [replace(thing, size=rng.choice(list(scenes.SIZES))) for thing in things]
    return replace(scene, things=tuple(things), background=background)


def alter(scene: scenes.Scene, rng) -> scenes.Scene:
    """A scene that differs in one respect: a colour, a shape, a size, a number, or who is where."""
    if scene.layout == "pair":
        first, second = scene.things
        kind = rng.randrange(4)
        if kind == 0:  # change places
            return replace(
                scene, things=(replace(second, x=first.x, y=first.y), replace(first, x=second.x, y=second.y))
            )
        if kind == 1 and first.colour != second.colour and first.shape != second.shape:
            return replace(scene, things=(replace(first, colour=second.colour), replace(second, colour=first.colour)))
        return scenes.change(scene, rng)[1]
    index = rng.randrange(len(scene.things))
    wrong = scene.things[index]
    attribute, options = rng.choice((("colour", scenes.COLOURS), ("shape", scenes.SHAPES), ("size", scenes.SIZES)))
    if scene.layout == "crowd" and attribute == "size":  # whose things are all small: another number of them
        count = rng.choice([number for number in range(2, 6) if number != len(scene.things)])
        return replace(scene, things=tuple(replace(wrong, x=x, y=y) for x, y in _spots(rng, count)))
    value = rng.choice([option for option in options if option != getattr(wrong, attribute)])
    if scene.layout == "crowd":
        return replace(scene, things=tuple(replace(thing, **{attribute: value}) for thing in scene.things))
    changed = replace(wrong, **{attribute: value})
    return replace(scene, things=(*scene.things[:index], changed, *scene.things[index + 1 :]))


def _spots(rng, count: int) -> list[tuple[int, int]]:
    spots = rng.sample([(x, y) for x in (12, 32, 52) for y in (12, 32, 52)], count)
    return [(x + rng.randint(-2, 2), y + rng.randint(-2, 2)) for x, y in spots]


def _other(kind: str, scene: scenes.Scene, make: Callable, rng) -> scenes.Scene:
    if kind == "right":
        return scene
    return alter(scene, rng) if kind == "near" else scenes.sample(make, rng, False)


def _caption(rng, digits, single: bool, task: str):
    """Image to text and text to image, with short and long captions."""
    choices = (scenes.one,) if single else (scenes.pair, scenes.pair, scenes.crowd)
    make = scenes.quarters if task.startswith("long") else rng.choice(choices)
    scene = scenes.sample(make, rng, False)
    words = scenes.describe(scene)
    to_text = task.endswith("i2t")

    def candidate(kind):
        other = _other(kind, scene, make, rng)
        right = scenes.describe(other) == words
        if not to_text:
            return _item(PICTURE, scenes.draw(redraw(other, rng))), right
        return _item(scenes.paraphrase(other) if rng.random() < 0.3 else scenes.describe(other)), right

    if to_text:
        return _item("Find an image caption describing the given everyday image.\n", scenes.draw(scene)), candidate
    return _item(f"Find me an everyday image that matches the given caption: {words}\n"), candidate


def _same(rng, digits, single: bool, task: str):
    make = scenes.one if single else scenes.pair
    scene = scenes.sample(make, rng, False)

    def shown(other):
        sizes = [thing.size for thing in other.things] if single else []
        return [thing.kind for thing in other.things], other.relation, sizes

    def candidate(kind):
        other = _other(kind, scene, make, rng)
        return _item(PICTURE, scenes.draw(redraw(other, rng))), shown(other) == shown(scene)

    text = "Find a day-to-day image that looks similar to the provided image.\n"
    return _item(text, scenes.draw(scene)), candidate


def _change(rng, digits, single: bool, task: str):
    scene = scenes.sample(scenes.pair, rng, False)
    words, edited = scenes.change(scene, rng)

    def candidate(kind):
        if kind == "near":
            other = rng.choice((scene, scenes.change(scene, rng)[1], alter(edited, rng)))
        else:
            other = _other(kind, edited, scenes.pair, rng)
        picture = redraw(other, rng) if rng.random() < 0.5 else other
        return _item(PICTURE, scenes.draw(picture)), other.content == edited.content

    text = f"Given an image, find a similar everyday image with the described changes: {words}\n"
    return _item(text, scenes.draw(scene)), candidate


def _crop(rng, digits, single: bool, task: str):
    make = scenes.one if single else scenes.pair
    scene = scenes.sample(make, rng, False)
    wanted = rng.choice(scene.things)

    def candidate(kind):
        other, thing = scene, wanted
        if kind == "right" and rng.random() < 0.5:  # the same thing, a little elsewhere
            thing = replace(wanted, x=wanted.x + rng.randint(-3, 3), y=wanted.y + rng.randint(-3, 3))
            other = replace(scene, things=tuple(thing if own == wanted else own for own in scene.things))
        elif kind == "near" and not single and rng.random() < 0.5:
            thing = next(own for own in scene.things if own != wanted)
        elif kind != "right":
            other = _other(kind, scene, make, rng)
            thing = rng.choice(other.things)
        picture = scenes.crop(scenes.draw(other), thing)
        right = thing.label == wanted.label and other.background == scene.background
        return _item("Represent the given cropped image of the object.\n", picture), right

    text = f'Select the portion of the image that isolates the object labeled as "{wanted.label}"\n'
    return _item(text, scenes.draw(scene)), candidate


def _label(rng, digits, single: bool, task: str):
    scene = scenes.sample(scenes.one if single or rng.random() < 0.6 else scenes.crowd, rng, False)
    words = scenes.label(scene)

    def candidate(kind):
        wrong = rng.choice(scenes.labels())
        other = wrong if kind == "far" else scenes.label(_other(kind, scene, scenes.one, rng))
        return _item(other), other == words

    return _item("Identify the object shown in the image\n", scenes.draw(scene)), candidate


def _question(rng, digits, single: bool, task: str):
    make = scenes.one if single else rng.choice((scenes.pair, scenes.crowd, scenes.quarters))
    scene = scenes.sample(make, rng, False)
    known = scenes.questions(scene)
    question, answer = rng.choice(known)

    def candidate(kind):
        other = answer if kind == "right" else rng.choice(known)[1] if kind == "near" else rng.choice(scenes.answers())
        return _item(other), other == answer

    text = f"Represent the given image with the following question: {question}\n"
    return _item(text, scenes.draw(scene)), candidate


def _digit(rng, digits, single: bool, task: str):
    digit, image = digits.one(rng, False)

    def candidate(kind):
        other = digit if kind == "right" else rng.randrange(10)
        return _item(digit_words(other)), other == digit

    return _item("Represent the given image for classification\n", image), candidate


def _digits(rng, digits, single: bool, task: str):
    name, image, same = digits.two(rng, False)

    def candidate(kind):
        other, _, picture = (name, None, same) if kind == "right" else digits.two(rng, False)
        return _item(PICTURE, picture), other == name

    text = "Find a day-to-day image that looks similar to the provided image.\n"
    return _item(text, image), candidate


_MAKERS = {
    "i2t": _caption,
    "t2i": _caption,
    "same": _same,
    "change": _change,
    "crop": _crop,
    "label": _label,
    "question": _question,
    "digit": _digit,
    "digits": _digits,
}
