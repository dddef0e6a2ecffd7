"""Searches with a saved model the way a stranger would: transformers only, remote code, no `unime` import.

    python examples/search.py MODEL GALLERY.json SEARCH.png

`GALLERY.json` holds `images` (paths), `texts`, and `queries`: `{"title", "item", "over", "target"}`, where `over` is
"images" or "texts" and `target` an index into them.
"""

import json
import sys
import textwrap

from PIL import Image, ImageDraw
from transformers import AutoModel

TOP = 5
CELL = 132  # width of one result in the picture, in pixels
LINE = 180  # height of one query


def main(model_path: str, gallery_path: str, picture_path: str):
    """Prints the rank of each query's target, and draws each query beside its best matches."""
    model = AutoModel.from_pretrained(model_path, trust_remote_code=True)
    with open(gallery_path, encoding="utf-8") as file:
        gallery = json.load(file)

    # everything that is searched is embedded once
    images = [{"image": path} for path in gallery["images"]]
    entries = {"images": images, "texts": gallery["texts"]}
    embeddings = {}
    for kind, items in entries.items():
        embeddings[kind] = model.encode_document(items)  # [N, D]

    sheet = Image.new("RGB", (40 + CELL * (TOP + 2), LINE * len(gallery["queries"]) + 10), "white")
    for row, query in enumerate(gallery["queries"]):
        query_embedding = model.encode_query(query["item"])
        scores = model.similarity(query_embedding, embeddings[query["over"]])[0]  # [N]

        # of equal scores the target's counts first
        rank = 1 + int((scores > scores[query["target"]]).sum())
        print(f"{query['title']}: the right answer is number {rank} of {len(scores)}")

        draw_search(sheet, 10 + row * LINE, query, entries[query["over"]], scores)
    sheet.save(picture_path)


def draw_search(sheet, y, query, entries, scores):
    """Draws a query and the best of the entries it was compared with, side by side."""
    # the query takes two columns
    ImageDraw.Draw(sheet).text((10, y), query["title"], fill="black")
    draw_item(sheet, query["item"], 10, y + 20, "query", "black", line_width=38)

    for place, index in enumerate(scores.topk(TOP).indices.tolist()):
        caption = f"{place + 1}. {scores[index]:.3f}"
        colour = "gray"
        if index == query["target"]:
            caption += "  right"
            colour = "green"
        draw_item(sheet, entries[index], 40 + CELL * (place + 2), y + 20, caption, colour)


def draw_item(sheet, item, x, y, caption, colour, line_width=20):
    """Draws a caption, and below it the item's image, half as large again, and the first five lines of its text."""
    pen = ImageDraw.Draw(sheet)
    pen.text((x, y), caption, fill=colour)
    y += 14

    # a text may stand for an item that has nothing else
    if isinstance(item, str):
        item = {"text": item}
    if item.get("image"):
        picture = Image.open(item["image"]).convert("RGB")
        picture = picture.resize((picture.width * 3 // 2, picture.height * 3 // 2), Image.Resampling.BICUBIC)
        sheet.paste(picture, (x, y))
        pen.rectangle((x - 2, y - 2, x + picture.width + 1, y + picture.height + 1), outline=colour, width=2)
        y += picture.height + 4

    lines = textwrap.wrap(item.get("text", ""), line_width)[:5]
    pen.multiline_text((x, y), "\n".join(lines), fill="black", spacing=2)


if __name__ == "__main__":
    main(*sys.argv[1:])
