"""Batches of sentence-transformers: features with one row for each item, whatever an item is made of.

So the losses there may cut them into mini-batches and join them. The parts of an item whose embeddings are added up
stand side by side in its row.
"""

import torch

# what the library, its trainer and its losses put beside the model's inputs
_BOOKKEEPING = ("task", "modality", "prompt_length", "sentence_embedding", "token_embeddings", "scores")


def features_of(processor, rows, prepared, padding_side: str | None = None) -> dict:
    """Features of items with one row `[N, ...]` for each, from parts that are prepared.

    Args:
        processor ([`~unime.processing_unime.UniMEProcessor`]): that has prepared them.
        rows (`Sequence[int]` `[P]`): the item of each part, in ascending order.
        prepared (`list[PreparedItem]` `[P]`): the parts.
        padding_side (`str`, *optional*): the preset's by default.
    """
    features = dict(processor.collate(prepared, padding_side))
    rows = torch.tensor(list(rows))  # [P]
    if not len(rows):
        return features

    # the library cuts the tensors of all images, and of all videos, by these numbers
    # (not by their class, which a processor of another copy of this code has made)
    is_clip = [[hasattr(image, "frames") for image in entry.images] for entry in prepared]
    image_counts = _counts([len(clips) - sum(clips) for clips in is_clip], rows)  # [N]
    video_counts = _counts([sum(clips) for clips in is_clip], rows)  # [N]
    if image_counts.any():
        features["num_images_per_sample"] = image_counts
    if video_counts.any():
        features["num_videos_per_sample"] = video_counts
    if "batch_num_images" in features:  # LLaVA-OneVision's, of the items that have images
        features["batch_num_images"] = image_counts

    if len(image_counts) == len(rows):
        return features
    return {**features, **_side_by_side(features, rows)}


def _counts(parts: list[int], rows: torch.Tensor) -> torch.Tensor:
    """Numbers `[N]` of items from those of their parts `[P]`."""
    return torch.zeros(int(rows[-1]) + 1, dtype=torch.long).index_add(0, rows, torch.tensor(parts))


def _side_by_side(features: dict, rows: torch.Tensor) -> dict:
    """The tensors of tokens `[P, L]` with the parts of an item in one row, and `part_numbers`, all `[N, K x L]`.

    Columns in which no item has a token are left out.
    """
    first_part = torch.searchsorted(rows, rows)  # [P], where the parts of its item begin
    numbers = torch.arange(len(rows)) - first_part  # [P], of each part in its item, from 0
    shape = features["attention_mask"].shape
    count = int(rows[-1]) + 1

    joined = {}
    for name, tensor in {**features, "part_numbers": (numbers + 1)[:, None].expand(shape)}.items():
        if tensor.shape == shape:
            table = tensor.new_zeros(count, int(numbers.max()) + 1, shape[1])  # [N, K, L]
            table[rows, numbers] = tensor
            joined[name] = table.flatten(1)

    is_attended = joined["attention_mask"].bool()
    joined["part_numbers"] = joined["part_numbers"].where(is_attended, 0)
    columns = is_attended.any(dim=0)
    return {name: tensor[:, columns] for name, tensor in joined.items()}


def rows_of_parts(numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The item of each part `[P]`, and which tokens of its row belong to the part `[P, L]`."""
    counts = numbers.amax(dim=1)  # [N]
    rows = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)  # [P]
    first_part = torch.searchsorted(rows, rows)  # [P]
    number = torch.arange(len(rows), device=rows.device) - first_part + 1  # [P]
    return rows, numbers[rows] == number[:, None]


def split_parts(inputs: dict, rows: torch.Tensor, is_of_part: torch.Tensor, padding_id: int) -> dict:
    """The model's inputs with one row for each part, in which the tokens of the item's other parts are padding."""
    shape = inputs["attention_mask"].shape
    split = {}
    for name, tensor in inputs.items():
        if tensor.shape == shape:
            padding = padding_id if name == "input_ids" else 0
            tensor = tensor[rows].masked_fill(~is_of_part, padding)
        split[name] = tensor
    return split


def sides_of(attention_mask: torch.Tensor, boundary: int | None) -> list[torch.Tensor]:
    """The rows of a batch that may share a forward pass: a longer one would change the rotary factors of the others.

    Args:
        attention_mask (`LongTensor` `[N, L]`): 0 at padding.
        boundary (`int`, *optional*): the longest sequence that is read by the factors of short ones.

    Returns:
        `list[LongTensor]`: the numbers of all rows, or of the short and of the long ones.
    """
    is_long = attention_mask.sum(dim=1) > (boundary or float("inf"))  # [N]
    sides = [is_long.logical_not().nonzero().flatten(), is_long.nonzero().flatten()]
    return [rows for rows in sides if len(rows)]


def rows_of(inputs: dict, rows: torch.Tensor, image_token_id: int) -> tuple[dict, torch.Tensor]:
    """The model's inputs for some rows, without the columns in which none of them has a token.

    Args:
        inputs (`dict`): tensors of N rows of tokens, and of their images in the same order.
        rows (`LongTensor` `[n]`): in ascending order.
        image_token_id (`int`): by which the images of a row are counted; text stands between any two of them.

    Returns:
        the inputs, and which of the columns they have `[L]`.
    """
    mask = inputs["attention_mask"]
    columns = mask[rows].any(dim=0)  # [L]

    # an image begins where its tokens do
    is_image = inputs["input_ids"] == image_token_id  # [N, L]
    begins = is_image.clone()
    begins[:, 1:] &= is_image[:, :-1].logical_not()
    row_of_image = begins.nonzero()[:, 0]  # [images]
    is_taken = torch.isin(row_of_image, rows)

    taken = {}
    for name, tensor in inputs.items():
        if tensor.shape == mask.shape:
            taken[name] = tensor[rows][:, columns]
        elif is_taken.any():
            taken[name] = tensor[is_taken]
    return taken, columns


def model_inputs(features: dict) -> dict:
    """What of the features the model takes.

    Raises:
        ValueError: features were cut into mini-batches, and the images that came along are not those of their items.
    """
    inputs = {name: value for name, value in features.items() if name not in _BOOKKEEPING}
    image_counts = inputs.pop("num_images_per_sample", None)
    inputs.pop("num_videos_per_sample", None)
    images = inputs.get("image_grid_thw", inputs.get("pixel_values"))

    # tensors of images have as many rows as there are images, or as there are items that have any
    count = 0 if images is None else len(images)
    if image_counts is not None and count not in (int(image_counts.sum()), int((image_counts > 0).sum())):
        raise ValueError(
            "sentence-transformers cannot cut the images of this backbone into mini-batches; take a loss that is not "
            "cached."
        )
    return inputs


__all__ = ["features_of", "model_inputs", "rows_of", "rows_of_parts", "sides_of", "split_parts"]
