"""Lessons for a judge of the miniature world: a query, candidates, and which of them meet it.

A lesson covers one of the world's tasks. Its difficulty rises with `level`: at 0 captions of whole scenes are compared
with a picture; from there to 1 there is one thing in a picture, and wrong candidates are wrong in everything; from 1
on there are whole scenes; from 2 to 3 more and more of the wrong candidates are wrong in one respect only, as hard
negatives are. Wrong captions of one sentence are such near misses from the beginning: where they go wrong is said
word by word. Right candidates are drawn anew, so that what a picture shows counts, and not its pixels.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from PIL import Image

from . import scenes
from .instructions import (
    ANSWER,
    CLASSIFY,
    FIND_CAPTION,
    FIND_CHANGED,
    FIND_IMAGE,
    FIND_SIMILAR,
    NAME_OBJECT,
    REPRESENT_CROP,
    REPRESENT_IMAGE,
    SELECT_CROP,
    prompt,
)
from .sources import Digits, digit_words

# weights of the tasks: with captions alone, with one thing in a picture, with whole scenes, and with long captions
COMPARE = {"i2t": 1}
SINGLE = {"i2t": 2, "t2i": 3, "same": 3, "label": 1, "question": 1, "digit": 3, "crop": 1}
WHOLE = {
    "i2t": 8,  # who is where is learnt from some thousands of captions that are wrong about it
    "t2i": 3,
    "same": 2,
    "change": 3,
    "crop": 2,
    "label": 2,
    "question": 3,
    "digit": 3,
    "digits": 2,
}
LONG = {"long_i2t": 1, "long_t2i": 1}


@dataclass
class Lesson:
    """A query with candidates, as items with PIL images; `right` says which candidates meet the query.

    Each candidate is judged by itself, or, in a `listwise` lesson, the one that is right is picked from the list.
    `phrasings` are all texts that are right, where candidates are texts.
    """

    task: str
    query: dict
    phrasings: list[dict]
    candidates: list[dict]
    right: list[bool]
    listwise: bool = False


def make_lesson(rng: random.Random, digits: Digits, level: float, count: int = 8, long: bool = False) -> Lesson:
    """A lesson from the training split; contents of the test split never occur.

    Args:
        rng (`random.Random`): everything random about the lesson takes from it.
        digits ([`~unime.miniature.sources.Digits`]): scans for the tasks with digits.
        level (`float`): how hard it is, from 0 to 3.
        count (`int`, defaults to 8): number of candidates; of captions of one sentence there are twice as many.
        long (`bool`, defaults to `False`): whether it is about captions of several sentences; not below level 1.

    Example:

    ```python
    lesson = make_lesson(random.Random(0), Digits(), level=2.5)
    print(lesson.query["text"], lesson.right)
    ```
    """
    lesson, make_candidate = _begin(rng, digits, level, long)

    # captions take few tokens, and say more about one picture the more there are
    near = _share_of_near(level)
    if lesson.task == "i2t":
        near = 1
        count = 2 * count

    # four ninths are right; with the level, far candidates give way to near ones
    kinds = rng.choices(("right", "near", "far"), (4, 4 * near, 5 - 4 * near), k=count)

    for kind in kinds:
        item, right = make_candidate(kind)
        lesson.candidates.append(item)
        lesson.right.append(right)
    return lesson


def make_list(rng: random.Random, digits: Digits, level: float, count: int = 8, long: bool = False) -> Lesson:
    """A lesson whose candidates stand in one list; exactly one of them, in any place, is right.

    Args:
        rng, digits, level, long: as in [`make_lesson`].
        count (`int`, defaults to 8): number of candidates.
    """
    lesson, make_candidate = _begin(rng, digits, level, long)
    lesson.listwise = True
    place = rng.randrange(count)

    while len(lesson.candidates) < count:
        is_answer = len(lesson.candidates) == place
        near = _share_of_near(level)
        kind = "right" if is_answer else rng.choices(("near", "far"), (4 * near, 5 - 4 * near))[0]

        # what is drawn as a wrong candidate may be right by chance
        item, right = make_candidate(kind)
        if right == is_answer:
            lesson.candidates.append(item)
            lesson.right.append(right)
    return lesson


def _begin(rng: random.Random, digits: Digits, level: float, long: bool) -> tuple[Lesson, Callable]:
    """A lesson without candidates yet, and the function that makes one of a kind, with whether it is right."""
    single = 0 < level < 1 or (level > 1 and not long and rng.random() < 0.15)
    if single:
        weights = SINGLE
    elif level == 0:
        weights = COMPARE
    elif long:
        weights = LONG
    else:
        weights = WHOLE
    task = rng.choices(list(weights), weights.values())[0]
    query, phrasings, make_candidate = _MAKERS[task](_Source(rng, digits, single, task))
    return Lesson(task, query, [_item(text) for text in phrasings], candidates=[], right=[]), make_candidate


def _share_of_near(level: float) -> float:
    """How many of the wrong candidates are near misses, from 0 to 1 of what there may be."""
    return min(max(level - 2, 0), 1)


# other scenes
def redraw(scene: scenes.Scene, rng: random.Random) -> scenes.Scene:
    """The same content: other places where these do not count, another background, other sizes in a pair."""
    # the description of quarters names places, sizes and background
    if scene.layout == "quarters":
        return scene

    background = rng.choice(list(scenes.BACKGROUNDS))
    if scene.layout == "one":
        spots = [scenes.nearby(32, 32, 17, rng)]
    elif scene.layout == "crowd":
        spots = _spots(rng, len(scene.things))
    else:
        spots = [scenes.nearby(thing.x, thing.y, 3, rng) for thing in scene.things]

    things = []
    for thing, (x, y) in zip(scene.things, spots):
        things.append(replace(thing, x=x, y=y))

    # short captions do not name sizes
    if scene.layout == "pair":
        things = [replace(thing, size=rng.choice(list(scenes.SIZES))) for thing in things]
    return replace(scene, things=tuple(things), background=background)


def alter(scene: scenes.Scene, rng: random.Random) -> scenes.Scene:
    """A scene that differs in one respect: a colour, a shape, a size, a number, or who is where."""
    if scene.layout == "pair":
        return _alter_pair(scene, rng)

    index = rng.randrange(len(scene.things))
    thing = scene.things[index]
    attribute, options = rng.choice((("colour", scenes.COLOURS), ("shape", scenes.SHAPES), ("size", scenes.SIZES)))

    # the things of a crowd are all small: another number of them stands for another size
    if scene.layout == "crowd" and attribute == "size":
        count = rng.choice(scenes.without(scenes.CROWD_SIZES, len(scene.things)))
        things = [replace(thing, x=x, y=y) for x, y in _spots(rng, count)]
        return replace(scene, things=tuple(things))

    change = {attribute: rng.choice(scenes.without(options, getattr(thing, attribute)))}
    things = list(scene.things)
    for place, other in enumerate(things):
        # the things of a crowd are all alike and change together
        if place == index or scene.layout == "crowd":
            things[place] = replace(other, **change)
    return replace(scene, things=tuple(things))


def _alter_pair(scene: scenes.Scene, rng: random.Random) -> scenes.Scene:
    """The things change places or colours or stand otherwise, or one of them gets another colour or shape."""
    first, second = scene.things
    kind = rng.randrange(4)
    if kind == 0:
        # side by side or one above the other, the things keep their order or change it
        relation = rng.choice(list(scenes.SIDES))
        things = scene.things if relation != scene.relation else (second, first)
        return _placed(replace(scene, things=things, relation=relation), rng)
    if kind == 1 and first.colour != second.colour and first.shape != second.shape:
        things = (replace(first, colour=second.colour), replace(second, colour=first.colour))
        return replace(scene, things=things)
    return scenes.change(scene, rng)[1]


def _placed(scene: scenes.Scene, rng: random.Random) -> scenes.Scene:
    """A pair whose things stand where its relation says."""
    things = []
    for thing, place in zip(scene.things, scenes.SIDES[scene.relation]):
        x, y = scenes.nearby(*place, 3, rng)
        things.append(replace(thing, x=x, y=y))
    return replace(scene, things=tuple(things))


def _spots(rng: random.Random, count: int) -> list[tuple[int, int]]:
    """Places for the things of a crowd."""
    places = rng.sample(scenes.GRID, count)
    return [scenes.nearby(x, y, 2, rng) for x, y in places]


# One maker a task. It returns the query, all texts that are right where candidates are texts, and a function that
# makes a candidate of a kind ("right", "near" or "far"), with whether it is right: what is drawn as a wrong candidate
# may be right by chance.
@dataclass(frozen=True)
class _Source:
    """What a maker draws from; `single` asks for one thing in a picture."""

    rng: random.Random
    digits: Digits
    single: bool
    task: str

    def scene(self, layout: Callable) -> scenes.Scene:
        """A scene of the training split."""
        return scenes.sample(layout, self.rng, test=False)

    def scene_of_kind(self, kind: str, scene: scenes.Scene, layout: Callable) -> scenes.Scene:
        """The scene itself, one that differs in one respect, or any of a layout."""
        if kind == "right":
            return scene
        if kind == "near":
            return alter(scene, self.rng)
        return self.scene(layout)

    def redrawn(self, scene: scenes.Scene) -> Image.Image:
        """Another picture with the content of a scene."""
        return scenes.draw(redraw(scene, self.rng))


def _item(text: str, image: Image.Image | None = None) -> dict:
    """An item as processors take it."""
    if image is None:
        return {"text": text}
    return {"text": text, "image": image}


def _caption_layout(source: _Source) -> Callable:
    """The layout of a scene for a caption: short, or long."""
    if source.task.startswith("long"):
        return scenes.quarters
    if source.single:
        return source.rng.choice((scenes.one,))
    return source.rng.choice((scenes.pair, scenes.pair, scenes.crowd))


def _image_to_text(source: _Source):
    """A picture; the candidates are captions."""
    layout = _caption_layout(source)
    scene = source.scene(layout)
    words = scenes.describe(scene)

    def candidate(kind):
        # half of a pair's near misses say something more, or what replaces or swaps words of its caption
        if kind == "near" and scene.layout == "pair" and source.rng.random() < 0.5:
            return _item(scenes.contradiction(scene, source.rng)), False

        other = source.scene_of_kind(kind, scene, layout)
        text = source.rng.choice(scenes.phrasings(other))
        return _item(text), scenes.describe(other) == words

    return _item(prompt(FIND_CAPTION), scenes.draw(scene)), scenes.phrasings(scene), candidate


def _text_to_image(source: _Source):
    """A caption; the candidates are pictures."""
    layout = _caption_layout(source)
    scene = source.scene(layout)
    words = scenes.describe(scene)

    def candidate(kind):
        other = source.scene_of_kind(kind, scene, layout)
        item = _item(prompt(REPRESENT_IMAGE), source.redrawn(other))
        return item, scenes.describe(other) == words

    return _item(prompt(FIND_IMAGE, words)), (), candidate


def _same(source: _Source):
    """A picture; the candidates are pictures, of the same content or of another."""
    layout = scenes.one if source.single else scenes.pair
    scene = source.scene(layout)

    def candidate(kind):
        other = source.scene_of_kind(kind, scene, layout)
        item = _item(prompt(REPRESENT_IMAGE), source.redrawn(other))
        return item, _meaning(other) == _meaning(scene)

    return _item(prompt(FIND_SIMILAR), scenes.draw(scene)), (), candidate


def _meaning(scene: scenes.Scene) -> tuple:
    """What two pictures of the same share; sizes count for single things only, as redrawing a pair changes them."""
    kinds = [thing.kind for thing in scene.things]
    size = scene.things[0].size if scene.layout == "one" else ""
    return kinds, scene.relation, size


def _change(source: _Source):
    """A picture with a change in words; the candidates are pictures."""
    rng = source.rng
    scene = source.scene(scenes.pair)
    words, edited = scenes.change(scene, rng)

    def candidate(kind):
        # near are: no change at all, another change, and the right change with a second one
        if kind == "near":
            other = rng.choice((scene, scenes.change(scene, rng)[1], alter(edited, rng)))
        else:
            other = source.scene_of_kind(kind, edited, scenes.pair)
        right = other.content == edited.content
        if rng.random() < 0.5:
            other = redraw(other, rng)
        return _item(prompt(REPRESENT_IMAGE), scenes.draw(other)), right

    return _item(prompt(FIND_CHANGED, words), scenes.draw(scene)), (), candidate


def _crop(source: _Source):
    """A picture with the label of one of its things; the candidates are crops."""
    rng = source.rng
    layout = scenes.one if source.single else scenes.pair
    scene = source.scene(layout)
    index = rng.randrange(len(scene.things))
    target = scene.things[index]

    def candidate(kind):
        other = scene
        thing = target

        # half of the right ones show the thing a little elsewhere
        if kind == "right":
            if rng.random() < 0.5:
                x, y = scenes.nearby(target.x, target.y, 3, rng)
                thing = replace(target, x=x, y=y)
                things = (*scene.things[:index], thing, *scene.things[index + 1 :])
                other = replace(scene, things=things)

        # half of the near ones show the other thing of the same picture
        elif kind == "near" and not source.single and rng.random() < 0.5:
            thing = scene.things[1 - index]
        else:
            other = source.scene_of_kind(kind, scene, layout)
            thing = rng.choice(other.things)

        picture = scenes.crop(scenes.draw(other), thing)
        right = thing.label == target.label and other.background == scene.background
        return _item(prompt(REPRESENT_CROP), picture), right

    return _item(prompt(SELECT_CROP, f'"{target.label}"'), scenes.draw(scene)), (), candidate


def _label(source: _Source):
    """A picture of one thing or of a crowd; the candidates are classes."""
    rng = source.rng
    layout = scenes.one if source.single or rng.random() < 0.6 else scenes.crowd
    scene = source.scene(layout)
    words = scenes.label(scene)

    def candidate(kind):
        # drawn even where it is not used: all later random numbers depend on it
        label = rng.choice(scenes.labels())
        if kind != "far":
            label = scenes.label(source.scene_of_kind(kind, scene, layout))
        return _item(label), label == words

    return _item(prompt(NAME_OBJECT), scenes.draw(scene)), [words], candidate


def _question(source: _Source):
    """A picture with a question; the candidates are answers."""
    rng = source.rng
    layout = scenes.one if source.single else rng.choice((scenes.pair, scenes.crowd, scenes.quarters))
    scene = source.scene(layout)
    questions = scenes.questions(scene)
    question, answer = rng.choice(questions)

    def candidate(kind):
        # near are the answers to other questions about the same picture
        if kind == "right":
            words = answer
        elif kind == "near":
            words = rng.choice(questions)[1]
        else:
            words = rng.choice(scenes.answers())
        return _item(words), words == answer

    return _item(prompt(ANSWER, question), scenes.draw(scene)), [answer], candidate


def _digit(source: _Source):
    """A scan; the candidates are digits in words."""
    digit, image = source.digits.one(source.rng, test=False)

    def candidate(kind):
        other = digit if kind == "right" else source.rng.randrange(10)
        return _item(digit_words(other)), other == digit

    return _item(prompt(CLASSIFY), image), [digit_words(digit)], candidate


def _digits(source: _Source):
    """Two scans; the candidates are two scans, smaller and in yellow."""
    name, image, same = source.digits.two(source.rng, test=False)

    def candidate(kind):
        other = name
        picture = same
        if kind != "right":
            other, _, picture = source.digits.two(source.rng, test=False)
        return _item(prompt(REPRESENT_IMAGE), picture), other == name

    return _item(prompt(FIND_SIMILAR), image), (), candidate


_MAKERS = {
    "i2t": _image_to_text,
    "t2i": _text_to_image,
    "long_i2t": _image_to_text,
    "long_t2i": _text_to_image,
    "same": _same,
    "change": _change,
    "crop": _crop,
    "label": _label,
    "question": _question,
    "digit": _digit,
    "digits": _digits,
}
