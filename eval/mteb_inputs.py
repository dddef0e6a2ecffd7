"""What mteb hands to a model: batches of columns, of which a bounded number of pixels is held at a time."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from datasets import Video
from PIL import Image
from torch.utils.data import DataLoader

from ..st_inputs_unime import as_item

COLUMNS = ("text", "image", "video")  # what of a batch is read

_MAX_ITEMS = 1024
_MAX_PIXELS = 1 << 27  # 400 MB of decoded images


def blocks_of(*loaders: Iterable[dict], most_images: int) -> Iterator[list[tuple]]:
    """Items of one loader of mteb, or pairs of two, in blocks of a bounded size.

    Args:
        loaders (`Iterable[dict]`): batches with a list for each modality, of texts, images or videos.
        most_images (`int`): images that the model reads in one prompt.

    Yields:
        `list[tuple[dict, ...]]`: an item of each loader; an empty item is `{}`. The files of a block's videos are gone
        when the next block is asked for.

    Raises:
        ValueError: one loader has more items than the other, or an item has too many images.
    """
    with tempfile.TemporaryDirectory() as folder:
        block = []
        pixels = 0
        for entry in zip(*(_read(loader, most_images) for loader in loaders), strict=True):
            for number, item in enumerate(entry):
                if isinstance(item.get("video"), Mapping):
                    item["video"] = _file_of(item["video"], Path(folder, f"{len(block)}-{number}.mp4"))
                pixels += _pixels(item)
            block.append(entry)

            if len(block) == _MAX_ITEMS or pixels >= _MAX_PIXELS:
                yield block
                block = []
                pixels = 0

        if block:
            yield block


def _read(loader: Iterable[dict], most_images: int) -> Iterator[dict]:
    """The items of a loader, one after the other."""
    for batch in _without_decoders(loader):
        columns = {modality: batch[modality] for modality in COLUMNS if modality in batch}
        for values in zip(*columns.values(), strict=True):
            item = {}
            for modality, value in zip(columns, values):
                if not _is_empty(value):
                    item[modality] = value

            if isinstance(item.get("image"), (list, tuple)) and len(item["image"]) > most_images:
                raise ValueError(
                    f"an item has {len(item['image'])} images, and the model reads {most_images} in one prompt; "
                    "set `num_frames`."
                )
            yield as_item(item)


def _without_decoders(loader):
    """The loader with the files of videos in the place of decoders, which would need torchcodec."""
    features = getattr(getattr(loader, "dataset", None), "features", None) or {}
    if not isinstance(features.get("video"), Video):
        return loader
    dataset = loader.dataset.cast_column("video", Video(decode=False))
    return DataLoader(dataset, batch_size=loader.batch_size, collate_fn=loader.collate_fn)


def _is_empty(value) -> bool:
    """Whether a row has nothing in a column: a batch may hold items without a text or without an image."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, (list, tuple)) and not value)


def _file_of(video: Mapping, file: Path) -> str:
    """The path of a video that a data set stores, written to `file` if it is in memory."""
    if not video.get("bytes"):
        return video["path"]
    file.write_bytes(video["bytes"])
    return str(file)


def _pixels(item: dict) -> int:
    """Pixels of the images of an item that are in memory."""
    images = []
    for kind in ("image", "video"):
        value = item.get(kind)
        images += value if isinstance(value, (list, tuple)) else [value]
    return sum(image.width * image.height for image in images if isinstance(image, Image.Image))
