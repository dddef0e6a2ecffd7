"""HTML pages that show items with their pictures, each page one file."""

import base64
import html
import io

from ..data.schema import PLACEHOLDER, Item
from ..images_unime import open_image

SIDE = 112  # pixels of a thumbnail
STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 1280px; color: #1a202c }
section { border-top: 2px solid #cbd5e0; padding: 1em 0 } h2 { font-size: 1em; margin: 0 0 .6em }
.row { display: flex; flex-wrap: wrap; gap: 8px; margin-bottom: .6em }
figure { margin: 0; padding: 6px; width: 124px; border: 2px solid #e2e8f0; border-radius: 4px; font-size: 12px }
figure img { max-width: 112px; max-height: 112px; display: block } figcaption { overflow-wrap: anywhere }
.wide { width: 260px } .positive { border-color: #2f855a } b { font-variant-numeric: tabular-nums }
"""


def page_of(title: str, body: list[str]) -> str:
    """A whole page.

    Args:
        title (`str`): a text.
        body (`list[str]`): lines of HTML.
    """
    page = f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"
    return page + "\n".join(body) + "\n"


def figure_of(item: Item, caption: str, kind: str, colour: str | None = None) -> str:
    """An item with its picture and text.

    Args:
        item ([`~unime.data.schema.Item`]): what is shown.
        caption (`str`): above its text.
        kind (`str`): its CSS classes, of `STYLE`.
        colour (`str`, *optional*): of its frame.
    """
    picture = f"<img src='{_thumbnail(item.image)}' alt=''>" if item.image and not item.is_video else ""
    style = f" style='border-color:{colour}'" if colour else ""
    words = f"<b>{html.escape(caption)}</b><br>{html.escape(words_of(item))}"
    return f"<figure class='{kind}'{style}>{picture}<figcaption>{words}</figcaption></figure>"


def words_of(item: Item) -> str:
    """An item's text without placeholders; of a video its file's name, too."""
    words = item.text.replace(PLACEHOLDER, "").strip()
    return f"{item.image.rpartition('/')[2]} {words}".strip() if item.is_video else words


def _thumbnail(path: str) -> str:
    """A small copy of an image inside the page, which stays one file."""
    image = open_image(path)
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
