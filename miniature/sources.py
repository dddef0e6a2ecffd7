"""What the rows of the miniature world are made from: random numbers, scanned digits, and a folder for pictures."""

import hashlib
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from . import scenes


class Painter:
    """Saves pictures into one folder under names made from their content, so that equal pictures share a file.

    Args:
        root (`Path`): the world's folder; pictures go to its `images`.

    Attributes:
        descriptions (`dict[str, str]`): of each scene that was drawn, by the path of its picture.
    """

    def __init__(self, root: Path):
        self.root = root
        self.descriptions = {}
        (root / "images").mkdir(parents=True, exist_ok=True)

    def save(self, image: Image.Image) -> str:
        """Saves a picture unless it is there already, and returns its path below `root`."""
        content = image.tobytes() + str(image.size).encode()
        path = f"images/{hashlib.blake2b(content, digest_size=8).hexdigest()}.png"

        # moved into place, so that an interrupted run leaves no half of a picture
        if not (self.root / path).exists():
            draft = self.root / "images" / "drawing.png"
            image.save(draft, compress_level=1)
            os.replace(draft, self.root / path)
        return path

    def scene(self, scene: scenes.Scene) -> str:
        """Draws a scene, saves the picture, and returns its path below `root`."""
        path = self.save(scenes.draw(scene))
        self.descriptions[path] = scenes.describe(scene)
        return path


class Digits:
    """scikit-learn's bundled scans of handwritten digits, 8 x 8 pixels; every fourth is for the test split."""

    def __init__(self):
        from sklearn.datasets import load_digits

        # split -> digits with their scans
        self.scans = {True: [], False: []}
        bunch = load_digits()
        for number, (pixels, digit) in enumerate(zip(bunch.images, bunch.target)):
            scan = Image.fromarray((pixels * 15.9).astype("uint8"))  # 0 to 16 becomes 0 to 254
            self.scans[number % 4 == 0].append((int(digit), scan))

    def one(self, rng: random.Random, test: bool) -> tuple[int, Image.Image]:
        """A digit and its scan, 32 x 32 pixels."""
        digit, scan = rng.choice(self.scans[test])
        return digit, scan.resize((32, 32), Image.Resampling.BICUBIC).convert("RGB")

    def two(self, rng: random.Random, test: bool) -> tuple[str, Image.Image, Image.Image]:
        """Two scans side by side, and again smaller and in yellow, with a name for the pair."""
        scans = self.scans[test]
        numbers = [rng.randrange(len(scans)) for _ in range(2)]

        image = Image.new("L", (64, 32))
        smaller = Image.new("L", (64, 32))
        for x, number in zip((0, 32), numbers):
            scan = scans[number][1].resize((32, 32), Image.Resampling.BICUBIC)
            image.paste(scan, (x, 0))
            smaller.paste(scan.resize((28, 28)), (x + 2, 2))
        return f"scans {numbers}", image.convert("RGB"), ImageOps.colorize(smaller, "black", "yellow")


def digit_words(digit: int) -> str:
    """The label of a digit."""
    return f"the digit {scenes.NUMBERS[digit]}"


@dataclass(frozen=True)
class Source:
    """Where the rows of one split come from. Everything random about them takes from `rng`, in a fixed order.

    Args:
        rng (`random.Random`): of these rows alone.
        test (`bool`): whether the rows are of the test split.
        painter ([`Painter`]): saves their pictures.
        digits ([`Digits`]): scans of both splits.
    """

    rng: random.Random
    test: bool
    painter: Painter
    digits: Digits

    def scene(self, layout: Callable) -> scenes.Scene:
        """A scene of this split, made by [`scenes.one`], [`scenes.pair`], [`scenes.crowd`] or [`scenes.quarters`]."""
        return scenes.sample(layout, self.rng, self.test)

    def digit(self) -> tuple[int, Image.Image]:
        """As [`Digits.one`]."""
        return self.digits.one(self.rng, self.test)

    def two_digits(self) -> tuple[str, Image.Image, Image.Image]:
        """As [`Digits.two`]."""
        return self.digits.two(self.rng, self.test)
