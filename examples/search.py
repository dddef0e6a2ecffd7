"""Searches with a saved model the way a stranger would: transformers only, remote code, no `unime` import.

    python examples/search.py MODEL GALLERY.json SEARCH.png --trust-remote-code

The code that lies beside the model is run, so it is asked for: read it first, where somebody else saved the model.
`GALLERY.json` holds `images` (paths), `texts`, and `queries`: `{"title", "instruction", "item", "over", "right"}`,
where `over` is "images" or "texts", and `right` lists the indices into them of all right answers.
"""

import argparse
import json
from functools import cache

import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import AutoModel

TOP = 5
MARGIN = 56
SIDE = 208  # of a picture, in pixels
GAP = 28  # between two columns
QUERY_WIDTH = 470
ROW = 346  # height of one query
HEAD = 168

INK = "#1f2328"
GREY = "#6e7781"
LINE = "#d8dee4"
PAPER = "#f6f8fa"
GREEN = "#1a7f37"


def main(model_path: str, gallery_path: str, picture_path: str, trust_remote_code: bool = False):
    """Prints the rank of each query's best right answer, and draws each query beside its best matches."""
    model = AutoModel.from_pretrained(model_path, trust_remote_code=trust_remote_code)
    with open(gallery_path, encoding="utf-8") as file:
        gallery = json.load(file)

    # everything that is searched is embedded once
    images = [{"image": path} for path in gallery["images"]]
    entries = {"images": images, "texts": gallery["texts"]}
    embeddings = {}
    for kind, items in entries.items():
        embeddings[kind] = model.encode_document(items)  # [N, D]

    queries = gallery["queries"]
    sizes = f"{len(images)} pictures or {len(gallery['texts'])} captions"
    sheet = Sheet(len(queries), f"The best five of {sizes}, with their similarity to the query")
    for row, query in enumerate(queries):
        query_embedding = model.encode_query(query["item"], instruction=query["instruction"])  # [D]
        scores = model.similarity(query_embedding, embeddings[query["over"]])[0]  # [N]

        # of equal scores, those of wrong answers count first
        is_wrong = torch.ones(len(scores), dtype=torch.bool)
        is_wrong[query["right"]] = False
        best_right = scores[query["right"]].max()
        rank = 1 + int((is_wrong & (scores >= best_right)).sum())
        print(f"{query['title']}: the right answer is number {rank} of {len(scores)}")

        sheet.draw_search(row, query, entries[query["over"]], scores)
    sheet.image.save(picture_path)


class Sheet:
    """The picture of all searches, one row a query.

    Args:
        rows (`int`): how many queries there are.
        subtitle (`str`): what stands below the heading.
    """

    def __init__(self, rows: int, subtitle: str):
        width = 2 * MARGIN + QUERY_WIDTH + TOP * (GAP + SIDE)
        self.image = Image.new("RGB", (width, HEAD + rows * ROW + MARGIN // 2), "white")
        self.pen = ImageDraw.Draw(self.image)

        self.write((MARGIN, 48), "Searches with the trained embedder", 46)
        self.write((MARGIN, 110), subtitle, 24, GREY)

        # what the green frames mean
        x = width - MARGIN - self.pen.textlength("right answer", font(24))
        self.write((x, 110), "right answer", 24, GREEN)
        self.draw_tick(x - 40, 112)

    def draw_search(self, row: int, query: dict, entries: list, scores: torch.Tensor):
        """A query on the left, and the best of the entries it was compared with on the right."""
        y = HEAD + row * ROW
        self.pen.line((MARGIN, y, self.image.width - MARGIN, y), LINE, 2)
        self.draw_query(y + 28, query)

        for place, index in enumerate(scores.topk(min(TOP, len(scores))).indices.tolist()):
            x = MARGIN + QUERY_WIDTH + GAP + place * (SIDE + GAP)
            is_right = index in query["right"]

            # place and similarity stand above the answer, the mark at its right end
            self.write((x, y + 28), str(place + 1), 30, GREEN if is_right else INK)
            self.write((x + 32, y + 36), f"{float(scores[index]):.2f}", 22, GREEN if is_right else GREY)
            if is_right:
                self.draw_tick(x + SIDE - 30, y + 34)
            self.draw_answer(x, y + 80, entries[index], is_right)

    def draw_query(self, y: int, query: dict):
        """The title of a search; below it the picture of the query, and its text beside the picture."""
        self.write((MARGIN, y), query["title"], 30)
        y += 52
        x = MARGIN
        width = QUERY_WIDTH - GAP

        item = query["item"]
        if item.get("image"):
            self.image.paste(enlarged(item["image"]), (x, y))
            x += SIDE + 24
            width -= SIDE + 24
        self.write_lines((x, y - 4), wrapped(item.get("text", ""), width, 24), 24)

    def draw_answer(self, x: int, y: int, entry, is_right: bool):
        """A picture or a caption in a frame, which is green and thick where the answer is right."""
        box = (x, y, x + SIDE - 1, y + SIDE - 1)
        if isinstance(entry, str):
            self.pen.rectangle(box, PAPER)
            lines = wrapped(entry, SIDE - 36, 24)[:5]
            self.write_lines((x + 18, y + (SIDE - 32 * len(lines)) // 2), lines, 24)
        else:
            self.image.paste(enlarged(entry["image"]), (x, y))

        # around what it frames, not over it
        thickness = 6 if is_right else 1
        box = (x - thickness, y - thickness, x + SIDE + thickness - 1, y + SIDE + thickness - 1)
        self.pen.rectangle(box, outline=GREEN if is_right else LINE, width=thickness)

    def draw_tick(self, x: float, y: float):
        """A white tick on a green disc of 28 pixels."""
        self.pen.ellipse((x, y, x + 28, y + 28), GREEN)
        self.pen.line((x + 7, y + 15, x + 12, y + 20, x + 21, y + 9), "white", 3, joint="curve")

    def write(self, place: tuple[float, float], text: str, size: int, colour: str = INK):
        """One line of text."""
        self.pen.text(place, text, colour, font(size))

    def write_lines(self, place: tuple[float, float], lines: list[str], size: int):
        """Lines of text below each other."""
        x, y = place
        for line in lines:
            self.write((x, y), line, size)
            y += size * 4 // 3


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with Pillow."""
    return ImageFont.load_default(size)


def enlarged(path: str) -> Image.Image:
    """A picture as a square of `SIDE` pixels."""
    return Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def wrapped(text: str, width: int, size: int) -> list[str]:
    """A text in lines of at most so many pixels; a longer word has a line of its own."""
    lines = [""]
    for word in text.split():
        line = f"{lines[-1]} {word}".strip()
        if lines[-1] and font(size).getlength(line) > width:
            lines.append(word)
        else:
            lines[-1] = line
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model_path", "gallery_path", "picture_path"):
        parser.add_argument(name)
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code that lies beside the model")
    main(**vars(parser.parse_args()))
