"""Which preset a checkpoint is read by: what its name or its files say that it was trained with; else it is asked for.

A wrong preset gives no error, only worse embeddings, and so nothing is guessed: only a plain VLM gets `"summary"`.
"""

import os
import re
from pathlib import Path

import transformers
import yaml
from transformers import CONFIG_MAPPING
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.utils import logging

from .integrity_unime import SavedFiles
from .preset_files_unime import preset_from
from .preset_unime import Preset
from .prompts_unime import (
    PRESETS,
    find_preset,
    fitting_presets,
    is_noncommercial,
    possible_names,
    published_checkpoint,
    published_preset,
)
from .sentence_files_unime import Unreadable, sentence_preset

EXPORTED = "unime_preset.json"  # what `unime export` writes beside a stock checkpoint
INSTRUCTIONS = "instructions"  # the default ones, which stand there beside the preset
logger = logging.get_logger("transformers.unime")

# parts of the names of embedders and rerankers, which were trained with prompts of their own
_NAMES = re.compile(
    r"unime|embedding|rerank|gme-|nomic-embed|vlm2vec|lamra|e5-v|mme5|rzen|unite-|b3_qwen|saha-|moca-|monoqwen|colqwen|colpali"
)
# layouts that no class of transformers reads, by a part of the name of a repository or of its class
_FOREIGN = {
    "LlavaQwen": "it has the layout of LLaVA-NeXT's own code; convert it with transformers' script "
    '(convert_llava_onevision_weights_to_hf.py), and open what that writes, of LLaVE with preset="llave"',
    "QQMM": "its NaViT tower and its Perceiver are classes of its authors' package alone",
}
_TAGS = re.compile(r"embed|rerank|retriev|sentence-(similarity|transformers)|feature-extraction|text-ranking")
_TOKENS = re.compile(r"<\|?(emb|embed|embedding)(_token)?\|?>")  # WeMM-Embedding pools one
_HEADS = re.compile(r"Embedding|Embedder|Rank|Retriev|SequenceClassification|RewardModel|^Col[A-Z]|^Bi[A-Z]")
_SCRIPTS = re.compile(r"embed|rerank|retriev|(^|[_-])gme[._-]")  # authors' inference beside their weights
_PUBLISHED_PIXELS = {"qwen3_vl": 1_310_720}  # of an image in Qwen3-VL-Embedding and -Reranker; Qwen3-VL has more


def choose_preset(files: SavedFiles, model_type: str, preset=None) -> str | Preset:
    """The preset of a checkpoint: the one asked for, a published one's own, or what the files say.

    Args:
        files ([`SavedFiles`]): of the checkpoint.
        model_type (`str`): of the backbone.
        preset (`str`, path or [`Preset`], *optional*): asked for.

    Returns:
        a key of `PRESETS`, or a preset that is not in the table; a line says which was taken where none was asked for.

    Raises:
        ValueError: the preset is unknown or for another backbone, or the checkpoint is an embedder or reranker and
            nothing says how it was trained; the message says what was seen, and lists the presets that fit.
    """
    if preset is not None:
        return find_preset(files.source, model_type, preset)

    preset = published_preset(files.source)
    reason = "by name"
    if preset is None:
        preset, reason = _from_files(files, model_type)
    preset = find_preset(files.source, model_type, preset)
    _say(files.source, preset, reason)
    return preset


def _from_files(files: SavedFiles, model_type: str) -> tuple[str | Preset, str]:
    """A preset, and what it was taken from."""
    exported = files.json(EXPORTED)
    if exported is not None:
        exported.pop(INSTRUCTIONS, None)
        name = exported.get("extends")
        if exported == {"extends": name} and isinstance(name, str) and name in PRESETS:
            return name, "as it was exported"
        return preset_from(exported, PRESETS, "exported", files.shown(EXPORTED)), "as it was exported"
    if files.file("modules.json"):
        try:
            return sentence_preset(files), "from its sentence-transformers files"
        except Unreadable as error:
            raise _question(files, model_type, f"its sentence-transformers files do not say how: {error}") from error

    sign = sign_of_training(files)
    if sign is not None:
        raise _question(files, model_type, sign)
    return "summary", "for a plain VLM"


def exported_instructions(files: SavedFiles) -> str | dict | None:
    """The default instructions that `unime export` wrote beside a stock checkpoint."""
    return (files.json(EXPORTED) or {}).get(INSTRUCTIONS)


def refuse_foreign_layout(files: SavedFiles):
    """Refuses a checkpoint in a layout that no class of transformers reads, and says which one it is.

    Args:
        files ([`SavedFiles`]): of the checkpoint.

    Raises:
        ValueError: it has such a layout.
    """
    config = files.json("config.json") or {}
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type in CONFIG_MAPPING:
        return

    architectures = config.get("architectures") or []

    # what it is shows in its name or in its class
    names = [*possible_names(files.source), *map(str, architectures)]
    for part, reason in _FOREIGN.items():
        if any(part in name for name in names):
            raise ValueError(f"{files.source} is a {model_type}, which transformers does not know: {reason}.")


def preset_of_adapter(source) -> str:
    """The preset that a published adapter was trained with, by its name.

    Args:
        source (`str` or path): folder or repository of an adapter over a stock VLM, beside which no preset was saved.

    Raises:
        ValueError: it is not a published one; the message asks for a preset.
    """
    preset = published_preset(source)
    if preset is None:
        raise _question(SavedFiles(source), None, "it is an adapter over a VLM")
    _say(source, preset, "by name")
    return preset


def _say(source, preset: str | Preset, reason: str):
    """Prints which preset was taken; `--quiet` and transformers' verbosity leave it out."""
    name = preset if isinstance(preset, str) else preset.name
    checkpoint = published_checkpoint(source)
    license_note = ""
    if checkpoint is not None and is_noncommercial(checkpoint.license):
        license_note = f" (license {checkpoint.license}: not for commercial use)"
    logger.warning(f'{os.path.basename(os.path.normpath(str(source)))}: preset "{name}" {reason}{license_note}')


def sign_of_training(files: SavedFiles) -> str | None:
    """What tells that a checkpoint is an embedder or a reranker, and no plain VLM; `None` if nothing does."""
    names = " ".join(possible_names(files.source))
    if _NAMES.search(names.lower()):
        return "its name says so"
    if files.file("1_Pooling/config.json"):
        return "it has 1_Pooling/config.json"

    # then what is written in its files
    for sign in (_sign_in_configuration, _sign_in_card, _sign_in_files):
        reason = sign(files)
        if reason is not None:
            return reason
    return None


def _sign_in_configuration(files: SavedFiles) -> str | None:
    """A class of embedders or one that is the authors' own, or a base that is an embedder."""
    config = files.json("config.json") or {}
    auto_map = config.get("auto_map") or {}
    classes = [*(config.get("architectures") or ()), *auto_map.values()]
    for name in classes:
        if isinstance(name, str) and _HEADS.search(name.rpartition(".")[2]):
            return f"config.json names the class {name}"

    # whoever trains a backbone of transformers with a class of another name trains it for something else
    if config.get("model_type") in CONFIG_MAPPING_NAMES:
        for name in config.get("architectures") or ():
            if isinstance(name, str) and not hasattr(transformers, name):
                return f"config.json names the class {name}, which transformers does not have"

    base = config.get("_name_or_path")
    return f"config.json says that it was made from {base}" if _is_trained(base) else None


def _sign_in_card(files: SavedFiles) -> str | None:
    """A tag of embedders in the head of its README.md, or a base that is one."""
    metadata = card_metadata(files)
    for tag in card_tags(files):
        if _TAGS.search(tag):
            return f"its card has the tag {tag!r}"

    bases = metadata.get("base_model") or []
    for base in bases if isinstance(bases, list) else [bases]:
        if _is_trained(base):
            return f"its card says that it was made from {base}"
    return None


def _is_trained(name) -> bool:
    """Whether a model that another was made from is an embedder or a reranker by its name."""
    if not isinstance(name, str):
        return False
    return published_preset(name) is not None or _NAMES.search(" ".join(possible_names(name)).lower()) is not None


def _sign_in_files(files: SavedFiles) -> str | None:
    """A token that is pooled, limits of images that no plain VLM has, or a script that embeds."""
    settings = files.json("tokenizer_config.json") or {}
    for token in (settings.get("added_tokens_decoder") or {}).values():
        if isinstance(token, dict) and _TOKENS.fullmatch(str(token.get("content"))):
            return f"its tokenizer has the token {token['content']}"

    model_type = (files.json("config.json") or {}).get("model_type")
    size = (files.json("preprocessor_config.json") or {}).get("size")
    pixels = size.get("longest_edge") if isinstance(size, dict) else None
    if pixels is not None and pixels == _PUBLISHED_PIXELS.get(model_type):
        return f"its images have at most {pixels:,} pixels, as those of Qwen3-VL-Embedding and -Reranker have"

    # of a repository, files cannot be listed without asking the Hub
    if os.path.isdir(files.source):
        folder = Path(files.source)
        for script in sorted([*folder.glob("*.py"), *folder.glob("scripts/*.py")]):
            if _SCRIPTS.search(script.name.lower()) and not script.name.endswith("_unime.py"):
                return f"it has {script.relative_to(folder)}"
    return None


def card_tags(files: SavedFiles) -> list[str]:
    """The tags, pipeline and library in the head of a checkpoint's README.md, in lower case."""
    return [tag.lower() for tag in _tags(card_metadata(files))]


def card_metadata(files: SavedFiles) -> dict:
    """The head of a checkpoint's README.md; empty if there is none, or if it is not YAML."""
    path = files.file("README.md")
    if path is None:
        return {}
    with open(path, encoding="utf-8", errors="replace") as file:
        match = re.match(r"---\s*\n(.*?)\n---", file.read(100_000), re.DOTALL)
    try:
        metadata = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError:  # cards are written by hand; the Hub shows such a one without its metadata, too
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _tags(metadata: dict) -> list[str]:
    tags = metadata.get("tags") or []
    tags = tags if isinstance(tags, list) else [tags]
    return [str(tag) for tag in (*tags, metadata.get("pipeline_tag"), metadata.get("library_name")) if tag]


def _question(files: SavedFiles, model_type: str | None, sign: str) -> ValueError:
    """The error that asks for a preset."""
    return ValueError(
        f"{files.source} was trained with prompts of its own ({sign}), and UniME does not know them; pass `preset=`: "
        f"a file of your own (preset.yaml), or one of {', '.join(fitting_presets(model_type))}. Commands take "
        "`--preset` and `--reranker-preset`, mining `judge_preset`; `unime convert SOURCE OUT --preset NAME` makes a "
        "folder that knows its preset (--reranker for a judge)."
    )


__all__ = [
    "card_metadata",
    "card_tags",
    "choose_preset",
    "exported_instructions",
    "preset_of_adapter",
    "refuse_foreign_layout",
    "sign_of_training",
]
