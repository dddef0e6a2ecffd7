"""A query from the command line."""

from pathlib import Path

from ..data.schema import Item
from ..prompts_unime import instruct


def one_item(text: str | None, image: str | None, instruction: str | None = None) -> dict:
    """A query that somebody typed, as `encode` takes it.

    Args:
        text, image (`str`, *optional*): what to look for; at least one of them.
        instruction (`str`, *optional*): put before the text.

    Raises:
        ValueError: the image does not exist, or there is neither a text nor an image.
    """
    if image and not Path(image).exists():
        raise ValueError(f"{image} does not exist.")

    # an instruction alone is not a query
    if text or image:
        text = instruct(instruction, text)
    path = str(Path(image).resolve()) if image else ""
    return Item(text or "", path).as_input()
