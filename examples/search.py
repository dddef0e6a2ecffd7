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
CELL, LINE = 132, 180


def main(model_path: str, gallery_path: str, picture_path: str):
    model = AutoModel.from_pretrained(model_path, trust_remote_code=True)
    with open(gallery_path, encoding="utf-8") as file:
        gallery = json.load(file)
    entries = {"images": [{"image": path} for path in gallery["images"]], "texts": gallery["texts"]}
    indexed = {kind: model.encode_document(items) for kind, items in entries.items()}  # [N, D]

    sheet = Image.new("RGB", (40 + CELL * (TOP + 2), LINE * len(gallery["queries"]) + 10), "white")
    pen = ImageDraw.Draw(sheet)
    for row, query in enumerate(gallery["queries"]):
        scores = model.similarity(model.encode_query(query["item"]), indexed[query["over"]])[0]
        top = scores.topk(TOP).indices.tolist()
        rank = 1 + int((scores > scores[query["target"]]).sum())
        print(f"{query['title']}: the right answer is number {rank} of {len(scores)}")
        y = 10 + row * LINE
        pen.text((10, y), query["title"], fill="black")
        draw_item(sheet, pen, query["item"], 10, y + 20, "query", "black")
        for place, index in enumerate(top):
            right = index == query["target"]
            caption = f"{place + 1}. {scores[index]:.3f}" + ("  right" if right else "")
            draw_item(
                sheet,
                pen,
                entries[query["over"]][index],
                40 + CELL * (place + 2),
                y + 20,
                caption,
                "green" if right else "gray",
            )
    sheet.save(picture_path)


def draw_item(sheet, pen, item, x, y, caption, colour):
    pen.text((x, y), caption, fill=colour)
    item = {"text": item} if isinstance(item, str) else item
    y += 14
    if item.get("image"):
        picture = Image.open(item["image"]).convert("RGB")
        picture = picture.resize((picture.width * 3 // 2, picture.height * 3 // 2), Image.Resampling.BICUBIC)
        sheet.paste(picture, (x, y))
        pen.rectangle((x - 2, y - 2, x + picture.width + 1, y + picture.height + 1), outline=colour, width=2)
        y += picture.height + 4
    width = 20 if caption != "query" else 38
    pen.multiline_text((x, y), "\n".join(textwrap.wrap(item.get("text", ""), width)[:5]), fill="black", spacing=2)


if __name__ == "__main__":
    main(*sys.argv[1:])
