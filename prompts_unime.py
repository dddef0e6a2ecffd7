"""Prompts of judges, and the presets of all families: which one a checkpoint was trained with, found by its name."""

import os
import re
import unicodedata
from typing import NamedTuple

from .preset_files_unime import is_preset_file, read_preset
from .preset_unime import BENCHMARKS, Checkpoint, Preset, Prompts
from .presets_gemma_unime import GEMMA
from .presets_gme_unime import GME
from .presets_lamra_unime import LAMRA
from .presets_llama_unime import LLAMA
from .presets_pages_unime import PAGES
from .presets_plain_unime import PLAIN
from .presets_qwen3_unime import QWEN3
from .presets_released_unime import RELEASED
from .presets_rerankers_unime import RERANKERS
from .presets_vlm2vec_unime import VLM2VEC

# How MMEB, LLaVA and Qwen spell "the image goes here"; Qwen's fence around it is the backbone's business.
PLACEHOLDER = re.compile(r"(?:<\|vision_start\|>)?(?:<\|image_\d+\|>|<image>|<\|image_pad\|>)(?:<\|vision_end\|>)?")

POINTWISE_INSTRUCTION = (
    "I will provide you with a query and a candidate. Please evaluate whether the candidate meets the requirements of "
    "the query. If it does, respond with 'Yes'; if it doesn't, respond with 'No'."
)
CHOICE_INSTRUCTION = (
    "I will provide you with a query and a candidate. Please evaluate whether the candidate meets the requirements of "
    "the query, and respond with the letter of the right option.\n"
    "A. Yes, the candidate fully matches the query.\n"
    "B. No, the candidate does not match or only partially matches.\n"
)


class Judgement(NamedTuple):
    """A way to ask about one candidate.

    Args:
        instruction (`str`): what the judge is told to do.
        yes (`str`): the answer if the candidate meets the query.
        no (`str`): the answer if it does not.
    """

    instruction: str
    yes: str
    no: str


POINTWISE = {
    "yes_no": Judgement(POINTWISE_INSTRUCTION, "Yes", "No"),
    "multiple_choice": Judgement(CHOICE_INSTRUCTION, "A", "B"),
}
LISTWISE_INSTRUCTION = (
    "I will provide you with a query followed by multiple candidates in the format: (1) cand1 (2) cand2, etc. Each "
    "candidate is independent of the others. Evaluate each candidate against the query, and respond with the number "
    "corresponding to the candidate that best meets the requirements of the query."
)
LISTWISE_ANSWER = "Ans: ("  # the forced answer prefix; the next token begins the number

FAMILIES = (PLAIN, RELEASED, VLM2VEC, GME, QWEN3, LAMRA, LLAMA, PAGES, GEMMA, RERANKERS)
PRESETS: dict[str, Preset] = {}
CHECKPOINTS: dict[str, Checkpoint] = {}
for family in FAMILIES:
    PRESETS |= family.presets
    CHECKPOINTS |= family.checkpoints


def worded(preset: Preset, benchmark: str | None) -> Preset:
    """The preset whose prompts are used on a kind of benchmark: another, or the same."""
    if benchmark in preset.benchmarks:
        return PRESETS[preset.benchmarks[benchmark]]
    return preset


def rules_of(preset: str | Preset) -> Preset:
    """What a preset says, whether it is a name of the table or a preset that is not in it."""
    return PRESETS[preset] if isinstance(preset, str) else preset


def shown(preset: str | Preset) -> str:
    """The name of a preset, as messages have it."""
    return preset if isinstance(preset, str) else preset.name


def resolve_preset(preset) -> str | Preset:
    """A preset as it was asked for: a name of the table, or what a file or a [`Preset`] says.

    Args:
        preset (`str`, path or [`Preset`]): a key of `PRESETS`, a file (see [`~unime.preset_files_unime.read_preset`]),
            or a preset itself.

    Raises:
        ValueError: there is no such preset, or the file holds none.
    """
    if is_preset_file(preset):
        return read_preset(preset, PRESETS)
    if isinstance(preset, str) and preset not in PRESETS:
        raise ValueError(
            f"unknown preset {preset!r}; choose one of {', '.join(sorted(PRESETS))}, or name a file of your own "
            "(preset.yaml)."
        )
    return preset


def fitting_presets(model_type: str | None) -> list[str]:
    """The names of the presets for a backbone; all of them where it is `None`."""
    fitting = []
    for name, preset in PRESETS.items():
        if not preset.model_types or model_type is None or model_type in preset.model_types:
            fitting.append(name)
    return fitting


def find_preset(name, model_type: str, preset) -> str | Preset:
    """A preset that was asked for, if it is one for the backbone of a checkpoint.

    Args:
        name (`str` or path): repository or folder, for the message.
        model_type (`str`): of the backbone.
        preset (`str`, path or [`Preset`]): as [`resolve_preset`] takes it.

    Returns:
        a key of `PRESETS`, or a [`Preset`] that is not in the table.

    Raises:
        ValueError: the preset is unknown or for another backbone; the message lists the presets that fit.

    Example:

    ```python
    find_preset("my-checkpoint", "qwen2_vl", "unime-v2-qwen2-vl")  # "unime-v2-qwen2-vl"
    ```
    """
    preset = resolve_preset(preset)
    model_types = rules_of(preset).model_types
    if model_types and model_type not in model_types:
        raise ValueError(
            f"the preset {shown(preset)!r} is for {' and '.join(model_types)}, but {name} is a {model_type}; "
            f"choose one of {', '.join(fitting_presets(model_type))}."
        )
    return preset


def possible_names(path) -> list[str]:
    """Names under which a folder or repository may be known: its last part, and those of the Hub's cache around it."""
    levels = os.path.normpath(str(path)).split(os.sep)
    names = [levels[-1]]

    # a trainer's checkpoint has the name of the folder around it
    if len(levels) > 1 and levels[-1].startswith("checkpoint-"):
        names.append(levels[-2])

    # the Hub's cache: models--owner--name/snapshots/commit
    for level in levels:
        if level.startswith("models--"):
            names.append(level.split("--")[-1])
    return names


def published_preset(name) -> str | None:
    """The preset of the published checkpoint that a repository or folder is, by its name; `None` if it is none.

    Args:
        name (`str` or path): repository, folder, or a snapshot in the Hub's cache.

    Example:

    ```python
    published_preset("models/VLM2Vec-Qwen2VL-2B")  # "vlm2vec-qwen2-vl"
    ```
    """
    checkpoint = published_checkpoint(name)
    return None if checkpoint is None else checkpoint.preset


def published_checkpoint(name) -> Checkpoint | None:
    """What is known of the published checkpoint that a repository or folder is, by its name; `None` if it is none."""
    checkpoints_by_name = {}
    for repository, checkpoint in CHECKPOINTS.items():
        checkpoints_by_name[_plain(repository.split("/")[1])] = checkpoint

    for candidate in possible_names(name):
        if _plain(candidate) in checkpoints_by_name:
            return checkpoints_by_name[_plain(candidate)]
    return None


def is_noncommercial(license_name: str | None) -> bool:
    """Whether a license, as the Hub spells it, forbids commercial use: `"cc-by-nc-4.0"`."""
    return bool(license_name) and "nc" in license_name.lower().split("-")


def _plain(name: str) -> str:
    """A name without what its owners write differently on the Hub and in their README."""
    return re.sub(r"[-_.]", "", name.lower()).replace("reranker", "rerank")


def one_of(name: str, value: str, *allowed: str) -> str:
    """The value of a setting, if it is one of those allowed.

    Raises:
        ValueError: it is not; the message lists what is allowed.
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.")
    return value


def strip_placeholders(text: str) -> str:
    """Removes image placeholders and one newline after each (a space stays, as upstream leaves it)."""
    return re.sub(PLACEHOLDER.pattern + "\n?", "", text)


def instruct(instruction: str | None, text: str | None, form: str | None = None) -> str:
    """A text with its instruction on a line before it, or, as MMEB words it, on the same line after a colon.

    Args:
        instruction (`str`, *optional*): what the text is to be read as.
        text (`str`, *optional*): the text itself.
        form (`str`, *optional*): both as a preset has them, with `{instruction}` and `{text}` in it; what separates
            them is left out where there is no text.

    Returns:
        `str`: both, the one that is not blank, or an empty string.

    Example:

    ```python
    instruct("Find the caption:", "a ring")  # "Find the caption: a ring"
    instruct("Find the caption:", "a ring", "{instruction}{text}")  # "Find the caption:a ring"
    ```
    """
    lines = [line for line in (instruction, text) if line and line.strip()]
    if form is not None and instruction in lines:
        before, _, rest = form.partition("{instruction}")
        separator, _, after = rest.partition("{text}")
        joined = separator + text if text in lines else ""
        return before + instruction + joined + after

    if len(lines) == 2 and instruction.rstrip().endswith(":"):
        return f"{instruction.rstrip()} {text}"
    return "\n".join(lines)


def with_full_stop(instruction: str) -> str:
    """An instruction without blanks around it, ended by a full stop unless it ends in punctuation of any script."""
    instruction = instruction.strip()
    if instruction and not unicodedata.category(instruction[-1]).startswith("P"):
        instruction += "."
    return instruction


__all__ = [
    "BENCHMARKS",
    "CHECKPOINTS",
    "PRESETS",
    "Preset",
    "Prompts",
    "find_preset",
    "fitting_presets",
    "instruct",
    "is_noncommercial",
    "one_of",
    "possible_names",
    "published_checkpoint",
    "published_preset",
    "resolve_preset",
    "rules_of",
    "shown",
    "strip_placeholders",
    "with_full_stop",
    "worded",
]
