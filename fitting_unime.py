"""Whether a processor fits the model it was saved with, found out at loading rather than at the first item."""

from contextlib import contextmanager

import torch
from PIL import Image

from .integrity_unime import SavedFiles
from .preset_files_unime import preset_from
from .prompts_unime import PRESETS
from .types_unime import check_named_tokens, check_tokenizer_types, check_types

_PROCESSOR = "processor_config.json"
_TOKENIZER = "tokenizer.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_TEMPLATE = "chat_template.jinja"
_SETTINGS = {  # of a processor, each with a value of its type
    "max_length": 1,
    "max_image_pixels": 1,
    "num_frames": 1,
    "fusion": "joint",
    "anyres_padding": "even",
    "benchmarks": [],
}
_TEXT = "seen"  # stands for the text of every item


def expects_processor(files: SavedFiles) -> bool:
    """Whether a processor was saved with a model.

    Args:
        files (`SavedFiles`): of the model.

    Raises:
        ValueError: neither its manifest says so, nor is there one.
    """
    manifest = files.manifest()
    if manifest is not None:
        return manifest.get("processor_class") is not None
    if files.file(_PROCESSOR) is not None:
        return True
    if files.file("config.json") is None:
        return False  # an adapter, of which the base has the processor
    raise ValueError(f"{files.shown(_PROCESSOR)} is missing, which says how items are read.")


def check_processor_files(files: SavedFiles, with_preset: bool):
    """Checks what the files of a processor say, before they are loaded.

    Args:
        files (`SavedFiles`): of the model.
        with_preset (`bool`): whether preset and positions are those of the files; else the caller named others.

    Raises:
        ValueError: a file is missing or damaged, or the preset is lost, unknown, for another backbone, or contradicted
            by the positions; the message names the file.
    """
    processor = files.json(_PROCESSOR)
    if processor is None:
        raise ValueError(f"{files.shown(_PROCESSOR)} is missing, which says how items are read.")
    check_types(files.shown(_PROCESSOR), processor, _SETTINGS)

    # without it, special tokens would be plain text
    tokenizer_config = files.json(_TOKENIZER_CONFIG)
    if tokenizer_config is None:
        raise ValueError(f"{files.shown(_TOKENIZER_CONFIG)} is missing, which names the tokenizer's special tokens.")
    check_tokenizer_types(files.shown(_TOKENIZER_CONFIG), tokenizer_config)

    backbone = processor.get("backbone")
    if not isinstance(backbone, dict) or not backbone.get("processor_class"):
        raise ValueError(f'{files.shown(_PROCESSOR)} has lost its "backbone", the class that reads images.')

    # a preset that is given replaces the saved one, whatever is wrong with that
    if with_preset:
        _check_preset(files, processor, files.json("config.json") or {})


def _check_preset(files: SavedFiles, processor: dict, config: dict):
    """Refuses a preset that is lost, unknown, or not what the configuration was made for."""
    name = processor.get("preset")
    if name is None:
        raise ValueError(
            f'{files.shown(_PROCESSOR)} has lost its "preset", without which items would be read in another way; '
            "name it with `preset=`."
        )

    saved_rules = processor.get("preset_rules")  # of a preset that is not in the table
    if not isinstance(name, str) or (name not in PRESETS and saved_rules is None):
        raise ValueError(
            f"{files.shown(_PROCESSOR)} names the unknown preset {name!r}; choose one of {', '.join(sorted(PRESETS))}."
        )

    # a preset for any backbone names none
    preset = PRESETS[name] if saved_rules is None else preset_from(saved_rules, PRESETS, name, files.shown(_PROCESSOR))
    model_type = config.get("vlm_config", {}).get("model_type")
    if model_type and preset.model_types and model_type not in preset.model_types:
        raise ValueError(
            f"{files.shown(_PROCESSOR)} names the preset {name!r}, which is for {' and '.join(preset.model_types)}, "
            f"but the model is a {model_type}; name the right one with `preset=`."
        )

    # a reranker's configuration has none of these, and cannot contradict
    positions = config.get("positions", preset.positions)
    if positions != preset.positions:
        raise ValueError(
            f"{files.shown('config.json')} has {positions!r} positions, which contradicts the preset {name!r} of "
            f"{_PROCESSOR}: it was trained with {preset.positions!r} ones. If it is meant, pass `positions=`."
        )

    # nor may it read a vector elsewhere than it was trained to
    for field in ("pooling", "attention"):
        value = config.get(field, getattr(preset, field))
        if value != getattr(preset, field):
            raise ValueError(
                f"{files.shown('config.json')} has the {field} {value!r}, which contradicts the preset {name!r} of "
                f"{_PROCESSOR}: it was trained with {getattr(preset, field)!r}. Name the right one with `preset=`."
            )


@contextmanager
def naming_broken_processor(files: SavedFiles):
    """Turns any error of loading a processor into one that names the file.

    Args:
        files (`SavedFiles`): what it is loaded from.

    Raises:
        ValueError: in the place of the loader's own, except what refuses a repository's code.
    """
    try:
        yield
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise

        # the loader's own error seldom says which file it read
        for name in (_PROCESSOR, _TOKENIZER_CONFIG, _TOKENIZER):
            files.json(name)  # names what is no JSON
        culprit = _PROCESSOR if files.file(_TOKENIZER) else _TOKENIZER
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(
            f"{files.shown(culprit)} is damaged or missing, or a file that goes with it ({_TOKENIZER_CONFIG}, "
            f"{_TOKENIZER}): {reason}"
        ) from error


def check_special_tokens(files: SavedFiles):
    """Refuses special tokens that only the settings of a tokenizer name, once the tokenizer is known to load.

    Args:
        files (`SavedFiles`): of the model.

    Raises:
        ValueError: a token is not in the tokenizer's file; the message names the settings, and the key in them.
    """
    tokenizer = files.json(_TOKENIZER)
    if tokenizer is not None:  # else it is in the format of another library
        check_named_tokens(files.shown(_TOKENIZER_CONFIG), files.json(_TOKENIZER_CONFIG), tokenizer)


def check_processor(files: SavedFiles, model, processor):
    """Reads a small item of each kind, as the first call would, and compares the outcome with the model.

    Args:
        files (`SavedFiles`): what both were loaded from.
        model ([`~unime.vlm_unime.UniMEPreTrainedModel`]): the model.
        processor ([`~unime.processing_unime.UniMEProcessor`]): its processor.

    Raises:
        ValueError: they do not fit, or an item cannot be read; the message names the file.
    """
    # a token without a row of the table fails only when a text has it
    rows = model.get_input_embeddings().num_embeddings
    if len(processor.tokenizer) > rows:
        raise ValueError(
            f"{files.shown(_TOKENIZER)} has {len(processor.tokenizer)} tokens, the model only {rows} embeddings."
        )

    # the forward pass puts pixels in the places of this token
    image_token_id = getattr(model.config.vlm_config, "image_token_id", None)
    if image_token_id is not None and image_token_id not in processor.image_token_ids:
        raise ValueError(
            f"{files.shown(_TOKENIZER)} reads the image token {processor.image_token!r} as "
            f"{processor.image_token_ids}, config.json has {image_token_id}."
        )
    if processor.padding_id is None:
        raise ValueError(f"{files.shown(_TOKENIZER_CONFIG)} names neither a pad token nor an end-of-text token.")

    # sizes of images are settings of the image processor, whichever prompt an image stands in
    with _naming(files, _PROCESSOR, "images cannot be measured"):
        processor._count_tokens(((64, 64),), "image")

    # now as the first call would read items; what fails is the fault of the file that words them
    name = _TEMPLATE if processor.uses_template or model.judges else _PROCESSOR
    longest = processor.tokenizer.model_max_length  # a model may be meant for short texts only
    with _naming(files, name, "items cannot be worded"):
        entries = processor.prepare(_small_items(model, processor), resolution="native", max_length=longest)
    for entry in entries[1:]:  # the first is an image
        if _TEXT not in entry.prompt:
            raise ValueError(f"{files.shown(_TEMPLATE)} leaves out the text of a message.")

    with _naming(files, _PROCESSOR, "images cannot be read"):
        batch = processor.collate(entries)
        _check_pixels(batch, model.config.vlm_config)


def _small_items(model, processor) -> list:
    """An image, a text, and both; for a reranker in the questions that its preset has for them."""
    image = {"image": Image.new("RGB", (64, 64))}
    items = [image, {"text": _TEXT}]
    if processor.rules.query.both is not None:
        items.append({"text": _TEXT, **image})
    if not model.judges:
        return items

    # a judge reads items only as candidates
    query = {"text": _TEXT}
    judging = processor.rules.judging
    small_items = [image]
    for item in items:
        if judging is not None and judging.document.of("text" in item, "image" in item) is None:
            continue
        if model.gives_places:
            small_items.append(processor.list_question(query, [item, item], ["candidate 0", "candidate 1"]))
        else:
            small_items.append(processor.question(query, item))
    return small_items


@contextmanager
def _naming(files: SavedFiles, name: str, what: str):
    """Turns any error into one that names a file."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(f"{files.shown(name)} does not fit this model, {what}: {reason}") from error


def _check_pixels(batch, config):
    """Compares what an image became with what the vision tower takes."""
    pixels = batch["pixel_values"]
    if not torch.isfinite(pixels).all():
        raise ValueError("pixels come out as NaN or infinity.")

    vision = getattr(config, "vision_config", None)
    if hasattr(vision, "temporal_patch_size"):  # Qwen-VL: patches [P, channels * time * height * width]
        channels = getattr(vision, "in_channels", None) or getattr(vision, "in_chans", 3)
        width = channels * vision.temporal_patch_size * vision.patch_size**2
        tokens = int((batch["image_grid_thw"].prod(dim=1) // vision.spatial_merge_size**2).sum())
        image_tokens = int((batch["input_ids"] == config.image_token_id).sum())
        if tokens != image_tokens:
            raise ValueError(f"images take {image_tokens} tokens, and the vision tower gives {tokens}.")
    else:
        width = getattr(vision, "image_size", pixels.shape[-1])
        if isinstance(width, (list, tuple)):  # InternVL: height and width
            width = width[-1]

    if pixels.shape[-1] != width:
        raise ValueError(f"patches or tiles are {pixels.shape[-1]} wide, and the vision tower takes {width}.")


__all__ = [
    "check_processor",
    "check_processor_files",
    "check_special_tokens",
    "expects_processor",
    "naming_broken_processor",
]
