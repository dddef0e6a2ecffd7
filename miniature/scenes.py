"""Scenes of the miniature world: what is in a picture, how it is drawn, and how it is put into words.

A scene is a handful of coloured shapes on a dark background. Everything a task says about a picture is derived from
its scene, so labels are true by construction.
"""

import math
import random
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
SIDES = {"left of": ((16, 32), (48, 32)), "above": ((32, 16), (32, 48))}
INVERSE = {"left of": "right of", "above": "below"}
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
        return f"{self.colour} {self.shape}"

    @property
    def label(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Things on a background. `relation` holds for the first two things of a pair; `layout` says how it was made."""

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
        things = ",".join(
            thing.kind for thing in self.things
        )  # short captions do not name sizes, so sizes do not count
        return f"{self.layout}|{things}|{self.relation}"


def is_test(content: str, share: int = 6) -> bool:
    """Whether a content belongs to the test split: one in `share`, the same in every process."""
    return random.Random(f"split:{content}").randrange(share) == 0


def kinds() -> list[tuple[str, str]]:
    return list(product(COLOURS, SHAPES))


def _thing(rng, centre, jitter, kind=None, size=None) -> Thing:
    colour, shape = kind or rng.choice(kinds())
    x, y = (c + rng.randint(-jitter, jitter) for c in centre)
    return Thing(colour, shape, size or rng.choice(list(SIZES)), x, y)


def one(rng) -> Scene:
    """One thing anywhere."""
    return Scene((_thing(rng, (32, 32), 17),), rng.choice(list(BACKGROUNDS)), "one")


def pair(rng) -> Scene:
    """Two things of different kinds, one left of or above the other."""
    relation = rng.choice(list(SIDES))
    first, second = rng.sample(kinds(), 2)
    places = SIDES[relation]
    things = (_thing(rng, places[0], 3, first), _thing(rng, places[1], 3, second))
    return Scene(things, rng.choice(list(BACKGROUNDS)), "pair", relation)


def crowd(rng) -> Scene:
    """Two to five small things of one kind."""
    spots = rng.sample([(x, y) for x in (12, 32, 52) for y in (12, 32, 52)], rng.randint(2, 5))
    kind = rng.choice(kinds())
    return Scene(tuple(_thing(rng, spot, 2, kind, "small") for spot in spots), rng.choice(list(BACKGROUNDS)), "crowd")


def quarters(rng) -> Scene:
    """Three things of different kinds in three corners."""
    places = rng.sample(list(CORNERS), 3)
    places.sort(key=list(CORNERS).index)
    chosen = rng.sample(kinds(), 3)
    things = tuple(_thing(rng, CORNERS[place], 2, kind) for place, kind in zip(places, chosen))
    return Scene(things, rng.choice(list(BACKGROUNDS)), "quarters", ";".join(places))


# words
def a(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def plural(words: str) -> str:
    return words + ("es" if words.endswith("s") else "s")


def label(scene: Scene) -> str:
    """The class of a picture of one thing or of a crowd."""
    thing = scene.things[0]
    return thing.label if scene.layout == "one" else f"{NUMBERS[len(scene.things)]} {plural(thing.kind)}"


def labels() -> list[str]:
    """Every class."""
    found = [f"{size} {colour} {shape}" for size in SIZES for colour, shape in kinds()]
    return found + [f"{NUMBERS[n]} {plural(colour + ' ' + shape)}" for n in range(2, 6) for colour, shape in kinds()]


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
    """Several sentences that name every thing with its size and corner."""
    where = scene.relation.split(";")
    sentences = [f"The background is {scene.background}."]
    sentences += [f"In the {place} there is {a(thing.label)}." for place, thing in zip(where, scene.things)]
    return " ".join(sentences)


def paraphrase(scene: Scene) -> str:
    """Another text with the meaning of `caption`, or, for three things in corners, of `long_caption`."""
    first = scene.things[0]
    if scene.layout == "one":
        return f"there is {a(first.shape)}, it is {first.colour} and {first.size}"
    if scene.layout == "crowd":
        return f"there are {NUMBERS[len(scene.things)]} {plural(first.shape)}, all of them {first.colour}"
    if scene.layout == "quarters":
        places = zip(scene.relation.split(";"), scene.things)
        found = [f"{a(thing.label)} is in the {place}" for place, thing in places]
        return f"{', '.join(reversed(found))}, on {scene.background}"
    second = scene.things[1]
    if caption(scene).startswith(a(first.kind)):
        return f"there is {a(second.kind)} {INVERSE[scene.relation]} {a(first.kind)}"
    return f"there is {a(first.kind)} {scene.relation} {a(second.kind)}"


def contradiction(scene: Scene, rng) -> str:
    """A text like `caption` or `long_caption` that is false in one respect."""
    if scene.layout == "pair":
        return rng.choice(list(negatives(scene, rng).values()))
    index = rng.randrange(len(scene.things))
    wrong = scene.things[index]
    if rng.random() < 0.5:
        wrong = replace(wrong, colour=rng.choice([colour for colour in COLOURS if colour != wrong.colour]))
    else:
        wrong = replace(wrong, shape=rng.choice([shape for shape in SHAPES if shape != wrong.shape]))
    things = (
        (wrong,) * len(scene.things)
        if scene.layout == "crowd"
        else (*scene.things[:index], wrong, *scene.things[index + 1 :])
    )
    return describe(replace(scene, things=things))


def describe(scene: Scene) -> str:
    """The fullest true text: `long_caption` of three things in corners, `caption` of anything else."""
    return long_caption(scene) if scene.layout == "quarters" else caption(scene)


def questions(scene: Scene) -> list[tuple[str, str]]:
    """Questions about a scene with their one true answer."""
    if scene.layout == "one":
        thing = scene.things[0]
        return [
            ("What color is the object?", thing.colour),
            ("What shape is the object?", thing.shape),
            ("How large is the object?", thing.size),
            ("What is shown?", thing.kind),
        ]
    if scene.layout == "crowd":
        thing = scene.things[0]
        return [
            ("How many objects are there?", NUMBERS[len(scene.things)]),
            ("What color are the objects?", thing.colour),
            ("What shape are the objects?", thing.shape),
        ]
    if scene.layout == "quarters":
        return [
            (f"What is in the {place}?", thing.kind) for place, thing in zip(scene.relation.split(";"), scene.things)
        ]
    first, second = scene.things
    found = [
        (f"What is {scene.relation} the {second.kind}?", first.kind),
        (f"What is {INVERSE[scene.relation]} the {first.kind}?", second.kind),
    ]
    if first.shape != second.shape:
        found.append((f"What color is the {first.shape}?", first.colour))
    if first.colour != second.colour:
        found.append((f"Which shape is {second.colour}?", second.shape))
    return found


def answers() -> list[str]:
    """Every answer a question can have: the candidates of visual question answering."""
    found = [*COLOURS, *SHAPES, *SIZES, *BACKGROUNDS, *NUMBERS[1:6], "yes", "no", *CORNERS, *SIDES, *INVERSE.values()]
    return found + [f"{colour} {shape}" for colour, shape in kinds()] + labels()[: 2 * len(kinds())]


def change(scene: Scene, rng) -> tuple[str, Scene]:
    """An edit of one thing of a pair, in words, and the edited scene."""
    index = rng.randrange(2)
    thing, other = scene.things[index], scene.things[1 - index]
    attribute = rng.choice(("colour", "shape"))
    options = COLOURS if attribute == "colour" else SHAPES
    value = rng.choice([v for v in options if v != getattr(thing, attribute) and v != getattr(other, attribute)])
    edited = replace(thing, **{attribute: value})
    words = f"the {thing.kind} is now {value}" if attribute == "colour" else f"the {thing.kind} is now a {value}"
    things = (edited, other) if index == 0 else (other, edited)
    return words, replace(scene, things=things)


def restyle(scene: Scene, rng) -> Scene:
    """The same content moved a little, on another background."""
    background = rng.choice([b for b in BACKGROUNDS if b != scene.background])
    moved = tuple(replace(t, x=t.x + rng.randint(-3, 3), y=t.y + rng.randint(-3, 3)) for t in scene.things)
    return replace(scene, things=moved, background=background)


def negatives(scene: Scene, rng) -> dict[str, str]:
    """SugarCrepe-style captions of a pair that are false in one respect: replaced, swapped or added words."""
    first, second = scene.things
    colours = [c for c in COLOURS if c not in (first.colour, second.colour)]
    shapes = [s for s in SHAPES if s not in (first.shape, second.shape)]
    other = "above" if scene.relation == "left of" else "left of"

    def words(left, relation, right):
        return caption(replace(scene, things=(left, right), relation=relation))

    found = {
        "replace_att": words(replace(first, colour=rng.choice(colours)), scene.relation, second),
        "replace_obj": words(first, scene.relation, replace(second, shape=rng.choice(shapes))),
        "replace_rel": words(first, other, second),
        "swap_obj": words(second, scene.relation, first),
        "add_att": caption(scene).replace(a(second.kind), a(f"{rng.choice(colours)} and {second.kind}"), 1),
        "add_obj": f"{caption(scene)} and {a(rng.choice(colours))} {rng.choice(shapes)}",
    }
    if first.colour != second.colour and first.shape != second.shape:
        found["swap_att"] = words(
            replace(first, colour=second.colour), scene.relation, replace(second, colour=first.colour)
        )
    return found


# pictures
def _outline(thing: Thing, scale: int):
    x, y, r = thing.x * scale, thing.y * scale, SIZES[thing.size] * scale

    def polygon(angles, radii):
        return [(x + q * math.cos(math.radians(a)), y + q * math.sin(math.radians(a))) for a, q in zip(angles, radii)]

    if thing.shape == "triangle":
        return polygon((-90, 30, 150), (1.15 * r,) * 3)
    if thing.shape == "star":
        return polygon([-90 + 36 * i for i in range(10)], [1.15 * r, 0.48 * r] * 5)
    if thing.shape == "cross":
        w = 0.34 * r
        return [
            (x + a * w if abs(a) == 1 else x + a / 2 * r, y + b * w if abs(b) == 1 else y + b / 2 * r)
            for a, b in (
                (-1, -2),
                (1, -2),
                (1, -1),
                (2, -1),
                (2, 1),
                (1, 1),
                (1, 2),
                (-1, 2),
                (-1, 1),
                (-2, 1),
                (-2, -1),
                (-1, -1),
            )
        ]
    q = 0.85 * r  # square
    return [(x - q, y - q), (x + q, y - q), (x + q, y + q), (x - q, y + q)]


def draw(scene: Scene) -> Image.Image:
    """The picture of a scene, `PIXELS` x `PIXELS`, smoothed."""
    scale = 3
    image = Image.new("RGB", (SIDE * scale, SIDE * scale), BACKGROUNDS[scene.background])
    pen = ImageDraw.Draw(image)
    for thing in scene.things:
        x, y, r, colour = thing.x * scale, thing.y * scale, SIZES[thing.size] * scale, COLOURS[thing.colour]
        if thing.shape == "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        elif thing.shape == "ring":
            pen.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=max(2, int(0.36 * r)))
        else:
            pen.polygon(_outline(thing, scale), fill=colour)
    return image.reduce(SIDE * scale // PIXELS)


def crop(image: Image.Image, thing: Thing) -> Image.Image:
    """Half the picture's width and height around a thing, moved inside where it stands near the edge."""
    half = PIXELS // 2
    left, top = (min(max(c * PIXELS // SIDE - half // 2, 0), half) for c in (thing.x, thing.y))
    return image.crop((left, top, left + half, top + half))
