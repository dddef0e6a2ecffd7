"""What the command line names: a query, and data that has moved."""

from pathlib import Path

from ..data.items import Item


def one_item(text: str | None, image: str | None, instruction: str | None = None) -> dict:
    """A query that somebody typed, as `encode` takes it.

    Args:
        text, image (`str`, *optional*): what to look for; at least one of them.
        instruction (`str`, *optional*): of the item, in place of the model's default.

    Raises:
        ValueError: the image does not exist, or there is neither a text nor an image.
    """
    if image and not Path(image).exists():
        raise ValueError(f"{image} does not exist.")

    path = str(Path(image).resolve()) if image else ""
    return Item(text or "", path, instruction=instruction or "").as_input()


def moved_source(source: dict, options, names: tuple[str, ...] = ("data", "image_root")) -> dict:
    """Where the data of a result is now: where it was for the model, unless the options name another place.

    Args:
        source (`dict`): what the result was measured on.
        options: settings of a command.
        names (`tuple[str, ...]`): which of them name a place.
    """
    moved = dict(source)
    for name in names:
        if getattr(options, name):
            moved[name] = getattr(options, name)
    return moved
