"""Scenes of the miniature world: what is in a picture, how it is drawn, and how it is put into words.

A scene is a handful of coloured shapes on a dark background. Everything a task says about a picture is derived from
its scene, so labels are true by construction.

```python
scene = sample(pair, random.Random(0), test=False)
draw(scene).save("pair.png")
print(caption(scene), questions(scene))
```
"""

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import product

from PIL import Image, ImageDraw

SIDE = 64  # coordinates run from 0 to SIDE
PIXELS = 48  # a picture's side in pixels
COLOURS = {
    "red": (226, 48, 44),
    "green": (44, 176, 62),
    "blue": (52, 92, 236),
    "yellow": (244, 222, 40),
    "orange": (246, 140, 26),
    "purple": (164, 62, 204),
    "pink": (250, 150, 200),
    "white": (246, 246, 246),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = {"small": 9, "large": 14}  # radius
BACKGROUNDS = {"black": (8, 8, 8), "navy": (14, 18, 62), "brown": (62, 38, 20), "teal": (6, 58, 58)}
CORNERS = {"top left": (17, 17), "top right": (47, 17), "bottom left": (17, 47), "bottom right": (47, 47)}
SIDES = {"left of": ((16, 32), (48, 32)), "above": ((32, 16), (32, 48))}  # where a pair's first and second thing are
INVERSE = {"left of": "right of", "above": "below"}
GRID = tuple(product((12, 32, 52), repeat=2))  # where the things of a crowd may be
CROWD_SIZES = range(2, 6)
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Thing:
    """One coloured shape with its centre."""

    colour: str
    shape: str
    size: str
    x: int
    y: int

    @property
    def kind(self) -> str:
        """Colour and shape, as short captions name it."""
        return f"{self.colour} {self.shape}"

    @property
    def label(self) -> str:
        """Size, colour and shape."""
        return f"{self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Things on a background.

    Args:
        things (`tuple[Thing]`): what the picture shows.
        background (`str`): a name in `BACKGROUNDS`.
        layout (`str`): which function made it: `"one"`, `"pair"`, `"crowd"` or `"quarters"`.
        relation (`str`): how the first thing of a pair stands to the second; in quarters, the corner of each thing,
            joined by semicolons.
    """

    things: tuple[Thing, ...]
    background: str
    layout: str
    relation: str = ""

    @property
    def content(self) -> str:
        """What the scene shows, apart from where exactly it shows it: train and test never share it."""
        if self.layout == "one":
            thing = self.things[0]
            return f"one|{thing.label}|{self.background}|{thing.x // 22}{thing.y // 22}"

        # short captions do not name sizes, so sizes do not count
        things = ",".join(thing.kind for thing in self.things)
        return f"{self.layout}|{things}|{self.relation}"

    @property
    def corners(self) -> list[str]:
        """The corner of each thing, in quarters."""
        return self.relation.split(";")


def is_test(content: str, share: int = 6) -> bool:
    """Whether a content belongs to the test split: one in `share`, the same in every process."""
    return random.Random(f"split:{content}").randrange(share) == 0


def sample(make: Callable, rng: random.Random, test: bool) -> Scene:
    """Draws scenes until one belongs to a split.

    Args:
        make (`Callable`): a layout: [`one`], [`pair`], [`crowd`] or [`quarters`].
        rng (`random.Random`): every draw takes from it.
        test (`bool`): the test split, or else the training split.
    """
    while True:
        scene = make(rng)
        if is_test(scene.content) == test:
            return scene


def nearby(x: int, y: int, distance: int, rng: random.Random) -> tuple[int, int]:
    """A place at most so far from another, in x as in y."""
    return x + rng.randint(-distance, distance), y + rng.randint(-distance, distance)


def without(options: Iterable, *excluded) -> list:
    """The options, in their order, but for those that are excluded."""
    return [option for option in options if option not in excluded]


# layouts
def kinds() -> list[tuple[str, str]]:
    """Every colour with every shape."""
    return list(product(COLOURS, SHAPES))


def _thing(rng, centre, jitter, kind=None, size=None) -> Thing:
    """A thing within `jitter` of a centre; kind and size are drawn unless they are given."""
    colour, shape = kind or rng.choice(kinds())
    x, y = nearby(*centre, jitter, rng)
    return Thing(colour, shape, size or rng.choice(list(SIZES)), x, y)


def one(rng: random.Random) -> Scene:
    """One thing anywhere."""
    thing = _thing(rng, (32, 32), 17)
    return Scene((thing,), rng.choice(list(BACKGROUNDS)), "one")


def pair(rng: random.Random) -> Scene:
    """Two things of different kinds, one left of or above the other."""
    relation = rng.choice(list(SIDES))
    first_kind, second_kind = rng.sample(kinds(), 2)
    first_place, second_place = SIDES[relation]

    first = _thing(rng, first_place, 3, first_kind)
    second = _thing(rng, second_place, 3, second_kind)
    return Scene((first, second), rng.choice(list(BACKGROUNDS)), "pair", relation)


def crowd(rng: random.Random) -> Scene:
    """Two to five small things of one kind."""
    spots = rng.sample(GRID, rng.choice(CROWD_SIZES))
    kind = rng.choice(kinds())
    things = tuple(_thing(rng, spot, 2, kind, "small") for spot in spots)
    return Scene(things, rng.choice(list(BACKGROUNDS)), "crowd")


def quarters(rng: random.Random) -> Scene:
    """Three things of different kinds in three corners."""
    # the things are listed in the order of CORNERS, whatever order the corners were drawn in
    corners = rng.sample(list(CORNERS), 3)
    corners.sort(key=list(CORNERS).index)

    things = []
    for corner, kind in zip(corners, rng.sample(kinds(), 3)):
        things.append(_thing(rng, CORNERS[corner], 2, kind))
    return Scene(tuple(things), rng.choice(list(BACKGROUNDS)), "quarters", ";".join(corners))


# words
def a(words: str) -> str:
    """The words behind their indefinite article."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def plural(words: str) -> str:
    """The plural of a noun phrase."""
    if words.endswith("s"):
        return f"{words}es"
    return f"{words}s"


def label(scene: Scene) -> str:
    """The class of a picture of one thing or of a crowd."""
    thing = scene.things[0]
    if scene.layout == "one":
        return thing.label
    return f"{NUMBERS[len(scene.things)]} {plural(thing.kind)}"


def labels() -> list[str]:
    """Every class: those of one thing first, then those of crowds."""
    classes = list(map(" ".join, product(SIZES, COLOURS, SHAPES)))
    for number, (colour, shape) in product(CROWD_SIZES, kinds()):
        classes.append(f"{NUMBERS[number]} {plural(f'{colour} {shape}')}")
    return classes


def caption(scene: Scene) -> str:
    """One sentence; for a pair, either direction says the same thing and the content decides which is used."""
    if scene.layout == "one":
        return a(label(scene))
    if scene.layout == "crowd":
        return label(scene)

    first, second = scene.things[:2]
    if random.Random(f"voice:{scene.content}").random() < 0.5:
        return f"{a(first.kind)} {scene.relation} {a(second.kind)}"
    return f"{a(second.kind)} {INVERSE[scene.relation]} {a(first.kind)}"


def long_caption(scene: Scene) -> str:
    """Several sentences that name every thing of quarters with its size and corner."""
    sentences = [f"The background is {scene.background}."]
    for corner, thing in zip(scene.corners, scene.things):
        sentences.append(f"In the {corner} there is {a(thing.label)}.")
    return " ".join(sentences)


def describe(scene: Scene) -> str:
    """The fullest true text: `long_caption` of three things in corners, `caption` of anything else."""
    return long_caption(scene) if scene.layout == "quarters" else caption(scene)


def phrasings(scene: Scene) -> list[str]:
    """All true texts that `describe` and `paraphrase` can give, for a pair in both directions."""
    if scene.layout != "pair":
        return [describe(scene), paraphrase(scene)]

    first, second = (a(thing.kind) for thing in scene.things)
    texts = []
    for sentence in (f"{first} {scene.relation} {second}", f"{second} {INVERSE[scene.relation]} {first}"):
        texts += [sentence, f"there is {sentence}"]
    return texts


def paraphrase(scene: Scene) -> str:
    """Another text with the meaning of `caption`, or, for three things in corners, of `long_caption`."""
    first = scene.things[0]
    if scene.layout == "one":
        return f"there is {a(first.shape)}, it is {first.colour} and {first.size}"
    if scene.layout == "crowd":
        return f"there are {NUMBERS[len(scene.things)]} {plural(first.shape)}, all of them {first.colour}"
    if scene.layout == "quarters":
        clauses = []
        for corner, thing in zip(scene.corners, scene.things):
            clauses.append(f"{a(thing.label)} is in the {corner}")
        return f"{', '.join(reversed(clauses))}, on {scene.background}"

    # a pair is told in the direction that its caption does not take
    second = scene.things[1]
    if caption(scene).startswith(a(first.kind)):
        return f"there is {a(second.kind)} {INVERSE[scene.relation]} {a(first.kind)}"
    return f"there is {a(first.kind)} {scene.relation} {a(second.kind)}"


def contradiction(scene: Scene, rng: random.Random) -> str:
    """A text like `caption` or `long_caption` that is false in one respect."""
    if scene.layout == "pair":
        return rng.choice(list(negatives(scene, rng).values()))

    index = rng.randrange(len(scene.things))
    wrong = scene.things[index]
    if rng.random() < 0.5:
        wrong = replace(wrong, colour=rng.choice(without(COLOURS, wrong.colour)))
    else:
        wrong = replace(wrong, shape=rng.choice(without(SHAPES, wrong.shape)))

    # the things of a crowd are all alike, so all of them change
    if scene.layout == "crowd":
        things = (wrong,) * len(scene.things)
    else:
        things = (*scene.things[:index], wrong, *scene.things[index + 1 :])
    return describe(replace(scene, things=things))


def questions(scene: Scene) -> list[tuple[str, str]]:
    """Questions about a scene with their one true answer."""
    thing = scene.things[0]
    if scene.layout == "one":
        return [
            ("What color is the object?", thing.colour),
            ("What shape is the object?", thing.shape),
            ("How large is the object?", thing.size),
            ("What is shown?", thing.kind),
        ]
    if scene.layout == "crowd":
        return [
            ("How many objects are there?", NUMBERS[len(scene.things)]),
            ("What color are the objects?", thing.colour),
            ("What shape are the objects?", thing.shape),
        ]
    if scene.layout == "quarters":
        pairs = []
        for corner, thing in zip(scene.corners, scene.things):
            pairs.append((f"What is in the {corner}?", thing.kind))
        return pairs

    first, second = scene.things
    pairs = [
        (f"What is {scene.relation} the {second.kind}?", first.kind),
        (f"What is {INVERSE[scene.relation]} the {first.kind}?", second.kind),
    ]
    # these two have one answer only where the things differ in what the question names
    if first.shape != second.shape:
        pairs.append((f"What color is the {first.shape}?", first.colour))
    if first.colour != second.colour:
        pairs.append((f"Which shape is {second.colour}?", second.shape))
    return pairs


def answers() -> list[str]:
    """Every answer a question can have: the candidates of visual question answering."""
    words = [*COLOURS, *SHAPES, *SIZES, *BACKGROUNDS, *NUMBERS[1:6], "yes", "no", *CORNERS, *SIDES, *INVERSE.values()]
    single_things = list(map(" ".join, kinds()))
    return words + single_things + labels()[: len(SIZES) * len(kinds())]


# other scenes, and texts that are false
def change(scene: Scene, rng: random.Random) -> tuple[str, Scene]:
    """An edit of one thing of a pair, in words, and the edited scene."""
    index = rng.randrange(2)
    thing = scene.things[index]
    other = scene.things[1 - index]

    # the new value is that of neither thing, so that the two things stay different
    if rng.choice(("colour", "shape")) == "colour":
        colour = rng.choice(without(COLOURS, thing.colour, other.colour))
        edited = replace(thing, colour=colour)
        words = f"the {thing.kind} is now {colour}"
    else:
        shape = rng.choice(without(SHAPES, thing.shape, other.shape))
        edited = replace(thing, shape=shape)
        words = f"the {thing.kind} is now a {shape}"

    things = (edited, other) if index == 0 else (other, edited)
    return words, replace(scene, things=things)


def restyle(scene: Scene, rng: random.Random) -> Scene:
    """The same content moved a little, on another background."""
    background = rng.choice(without(BACKGROUNDS, scene.background))
    things = []
    for thing in scene.things:
        x, y = nearby(thing.x, thing.y, 3, rng)
        things.append(replace(thing, x=x, y=y))
    return replace(scene, things=tuple(things), background=background)


def negatives(scene: Scene, rng: random.Random) -> dict[str, str]:
    """Captions of a pair that are false in one respect, as in SugarCrepe: replaced, swapped or added words.

    Returns:
        A caption for each of SugarCrepe's subsets; `"swap_att"` only where the things share neither colour nor shape.
    """
    first, second = scene.things
    colours = without(COLOURS, first.colour, second.colour)
    shapes = without(SHAPES, first.shape, second.shape)
    other_relation = "above" if scene.relation == "left of" else "left of"

    def caption_of(first, relation, second):
        return caption(replace(scene, things=(first, second), relation=relation))

    captions = {
        "replace_att": caption_of(replace(first, colour=rng.choice(colours)), scene.relation, second),
        "replace_obj": caption_of(first, scene.relation, replace(second, shape=rng.choice(shapes))),
        "replace_rel": caption_of(first, other_relation, second),
        "swap_obj": caption_of(second, scene.relation, first),
        "add_att": caption(scene).replace(a(second.kind), a(f"{rng.choice(colours)} and {second.kind}"), 1),
        "add_obj": f"{caption(scene)} and {a(rng.choice(colours))} {rng.choice(shapes)}",
    }

    # swapped attributes say something else only where both differ
    if first.colour != second.colour and first.shape != second.shape:
        recoloured_first = replace(first, colour=second.colour)
        recoloured_second = replace(second, colour=first.colour)
        captions["swap_att"] = caption_of(recoloured_first, scene.relation, recoloured_second)
    return captions


# pictures
def _outline(thing: Thing, scale: int) -> list[tuple[float, float]]:
    """The corners of a triangle, star, cross or square."""
    x = thing.x * scale
    y = thing.y * scale
    radius = SIZES[thing.size] * scale

    if thing.shape == "triangle":
        return _around(x, y, angles=(-90, 30, 150), radii=(1.15 * radius,) * 3)
    if thing.shape == "star":
        return _around(x, y, angles=range(-90, 270, 36), radii=(1.15 * radius, 0.48 * radius) * 5)

    # offsets from the centre, clockwise from the top left
    if thing.shape == "cross":
        r = radius
        w = 0.34 * radius  # half the width of a beam
        offsets = ((-w, -r), (w, -r), (w, -w), (r, -w), (r, w), (w, w), (w, r), (-w, r), (-w, w), (-r, w))
        offsets += ((-r, -w), (-w, -w))
    else:
        h = 0.85 * radius  # half the side of a square
        offsets = ((-h, -h), (h, -h), (h, h), (-h, h))
    return [(x + dx, y + dy) for dx, dy in offsets]


def _around(x, y, angles, radii) -> list[tuple[float, float]]:
    """Points at angles (degrees) and distances from a centre."""
    points = []
    for angle, radius in zip(angles, radii):
        angle = math.radians(angle)
        points.append((x + radius * math.cos(angle), y + radius * math.sin(angle)))
    return points


def draw(scene: Scene) -> Image.Image:
    """The picture of a scene, `PIXELS` x `PIXELS`, smoothed."""
    # drawn large and reduced at the end: that is the smoothing
    scale = 3
    image = Image.new("RGB", (SIDE * scale, SIDE * scale), BACKGROUNDS[scene.background])
    pen = ImageDraw.Draw(image)

    for thing in scene.things:
        x = thing.x * scale
        y = thing.y * scale
        r = SIZES[thing.size] * scale
        box = (x - r, y - r, x + r, y + r)
        colour = COLOURS[thing.colour]
        if thing.shape == "circle":
            pen.ellipse(box, fill=colour)
        elif thing.shape == "ring":
            pen.ellipse(box, outline=colour, width=max(2, int(0.36 * r)))
        else:
            pen.polygon(_outline(thing, scale), fill=colour)
    return image.reduce(SIDE * scale // PIXELS)


def crop(image: Image.Image, thing: Thing) -> Image.Image:
    """Half the picture's width and height around a thing, moved inside where it stands near the edge."""
    half = PIXELS // 2
    x = _window_start(thing.x, half)
    y = _window_start(thing.y, half)
    return image.crop((x, y, x + half, y + half))


def _window_start(centre: int, width: int) -> int:
    """The first pixel of a window of that width around a coordinate of a scene, inside the picture."""
    start = centre * PIXELS // SIDE - width // 2
    return min(max(start, 0), PIXELS - width)
