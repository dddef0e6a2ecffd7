"""What a rehearsal shows of a model's reading: every setting with its source, and prompts as they are fed."""

from collections.abc import Iterable

from ..adapters_unime import adapter_folder
from ..checkpoints.opening import UNIME_MODEL_TYPES, local_folder, model_type_of
from ..data.collators import Fed
from ..items_unime import PreparedItem
from ..preset_unime import RAW
from ..prompts_unime import worded
from ..videos_unime import Clip

OF_PROCESSOR = ("resolution", "fusion", "max_length", "anyres_padding")
NO_LIMIT = 10**9  # tokens; tokenizers write a very large number where they have no limit
EXAMPLES = 3  # prompts of each kind


def shown_prompt(prepared: PreparedItem, processor) -> str:
    """The ids of a sequence as text: special tokens are visible, each image is its token times its count."""
    native = processor._native
    media = {native.placeholder_id: processor.image_token}
    if native.videos is not None:
        media[native.videos.token_id] = native.videos.token

    # an image is its token, so many times
    counts = iter(prepared.image_tokens)
    pieces = []
    text_ids = []
    for token in [*prepared.input_ids, *prepared.written]:
        if token not in media:
            text_ids.append(token)
            continue

        # the text before the image is decoded as a whole, as a letter may be several tokens
        pieces.append(processor.tokenizer.decode(text_ids))
        pieces.append(f"{media[token]} x {next(counts)}")
        text_ids = []

    pieces.append(processor.tokenizer.decode(text_ids))
    return "".join(pieces)


def shown_images(prepared: PreparedItem, original_size) -> list[str]:
    """A line for each image or video: its size and the size at which it is read, both in pixels, and its tokens.

    Args:
        prepared ([`~unime.items_unime.PreparedItem`]): the sequence.
        original_size: maps an image to its (width, height).
    """
    lines = []
    for image, size, tokens in zip(prepared.images, prepared.sizes, prepared.image_tokens):
        what = "image"
        if isinstance(image, Clip):
            what = f"video of {len(image.frames)} frames"
            image = image.frames[0]

        before = " x ".join(map(str, original_size(image)))
        after = " x ".join(map(str, size))
        lines.append(f"{what} of {before} pixels, read at {after}: {tokens} tokens")
    return lines


def examples(fed: Iterable[Fed], processor, original_size, count: int = EXAMPLES) -> list[dict]:
    """The first sequences of every kind as a rehearsal shows them, one kind after the other.

    Args:
        fed (`Iterable[Fed]`): what the model would be fed.
        processor ([`~unime.processing_unime.UniMEProcessor`]): that prepared it.
        original_size: maps an image to its (width, height).
        count (`int`): how many of each kind.
    """
    by_kind = {}
    shown_keys = set()
    for entry in fed:
        rows = by_kind.setdefault(entry.kind, [])
        if len(rows) == count or entry.key in shown_keys:
            continue

        shown_keys.add(entry.key)
        rows.append(
            {
                "kind": f"{entry.kind} {len(rows) + 1}",
                "tokens": f"{entry.prepared.length} tokens",
                "images": shown_images(entry.prepared, original_size),
                "prompt": shown_prompt(entry.prepared, processor),
            }
        )

    # queries of all kinds, then positives, ...: by the word with which a kind begins
    words = list(dict.fromkeys(kind.split()[0] for kind in by_kind))
    kinds = sorted(by_kind, key=lambda kind: words.index(kind.split()[0]))
    ordered = []
    for kind in kinds:
        ordered += by_kind[kind]
    return ordered


def reading(model, given: dict[str, str], settings: dict) -> list[dict]:
    """How a model reads items: each setting with its value and where that came from.

    Args:
        model: an embedder or reranker.
        given (`dict[str, str]`): where each setting of the command was given: `"recipe"` or `"command line"`.
        settings (`dict`): the command's own `resolution`, `max_length`, `fusion` and `benchmark`; None if not given.

    Returns:
        `list[dict]`: `setting`, `value` and `source`, which is the recipe, the command line, the preset or the
        checkpoint.
    """
    processor = model.processor
    preset = processor.rules
    words = preset
    rows = [_row("preset", processor.preset, given.get("preset", "checkpoint"))]

    # a kind of benchmark may have another preset's words, and keeps everything else
    if settings.get("benchmark") is not None:
        words = worded(preset, settings["benchmark"])
        rows.append(_row("benchmark", settings["benchmark"], given.get("benchmark", "default of the command")))

    for name in OF_PROCESSOR:
        value = getattr(processor, name)
        source = "preset" if value == getattr(preset, name) else "checkpoint"

        # the command's own goes before what the processor has
        if settings.get(name) is not None:
            source = given.get(name, "default of the command")
            value = settings[name]
        rows.append(_row(name, value, source))

    positions = getattr(model.config, "positions", "native")  # a reranker has the backbone's
    rows.append(_row("positions", positions, "preset" if positions == preset.positions else "checkpoint"))
    rows.append(_row("padding", preset.padding_side, "preset"))
    rows.append(_row("pooling", getattr(model.config, "pooling", "none: it reads answers"), "checkpoint"))
    rows.append(_row("turns", _frame_in_words(words.frame), "preset"))
    rows.append(_row("image tokens", "between the backbone's markers" if words.fenced else "bare", "preset"))

    for role in ("query", "document"):
        instruction = processor.default_instruction(role)
        if instruction:
            source = given.get(f"{role}_instruction", "checkpoint")
            rows.append(_row(f"default instruction of a {role}", instruction, source))

    # of the preset's kinds of benchmark, a model may have been trained without some
    apart = [f"{kind} as {preset.benchmarks[kind]}" for kind in processor.benchmarks if kind in preset.benchmarks]
    rows.append(_row("worded apart", ", ".join(apart) or "nothing", "preset"))
    rows.append(_row("image limits", _image_limits(processor), "checkpoint"))
    return rows


def _frame_in_words(frame: str | None) -> str:
    """What stands around the user's turn."""
    if frame is None:
        return "chat template"
    return "raw text" if frame == RAW else "a frame of the preset"


def _row(setting: str, value, source: str) -> dict:
    return {"setting": setting, "value": str(value), "source": source}


def _image_limits(processor) -> str:
    """What the backbone's image processor allows, in pixels or tiles."""
    images = processor._native.image_processor
    if processor._native.name == "Phi3VProcessor":
        return f"{images.num_crops} crops of {images.crop_size} pixels"

    # those of Qwen are given in pixels
    if hasattr(images, "merge_size"):
        size = images.size
        side = images.patch_size * images.merge_size
        return f"{size['shortest_edge']:,} to {size['longest_edge']:,} pixels, a token is {side} x {side}"

    # those of LLaVA in shapes of tiles
    pinpoints = getattr(images, "image_grid_pinpoints", None)
    if not pinpoints:
        return "none"
    return f"{len(pinpoints)} shapes of tiles, up to {max(map(max, pinpoints))} pixels a side"


def changes(model, reading_rows: list[dict], source) -> list[str]:
    """What differs from the checkpoint's own settings, a line for each.

    Args:
        model: an embedder or reranker.
        reading_rows (`list[dict]`): of [`reading`].
        source (`str` or `Path`): the checkpoint that the model was opened from.
    """
    values = {row["setting"]: row["value"] for row in reading_rows}
    lines = []
    for name, value in _settings_of(source, model).items():
        if name in values and values[name] != str(value):
            lines.append(f"{name} is {values[name]} here, and {value} in the checkpoint.")
    return lines


def _settings_of(source, model) -> dict:
    """The checkpoint's own settings: those saved in a UniME checkpoint, or how a stock VLM is read."""
    folder = local_folder(source, weights=False)
    if adapter_folder(folder) is None and model_type_of(folder) in UNIME_MODEL_TYPES:
        saved = type(model.processor).from_pretrained(folder)
        config = type(model.config).from_pretrained(folder)
        settings = {name: getattr(saved, name) for name in ("preset", *OF_PROCESSOR)}
        return {**settings, "positions": getattr(config, "positions", "native")}

    # a stock VLM has no more settings than its tokenizer and its chat template
    processor = model.processor
    tokenizer = processor.tokenizer
    settings = {"resolution": "native", "positions": "native", "padding": tokenizer.padding_side}
    if tokenizer.model_max_length < NO_LIMIT:
        settings["max_length"] = tokenizer.model_max_length
    if processor.chat_template is not None:
        settings["turns"] = "chat template"
    return settings
