"""Prompts of judges, and the presets of all families: which one a checkpoint was trained with, found by its name."""

import os
import re
import unicodedata
from typing import NamedTuple

from .preset_unime import BENCHMARKS, Checkpoint, Preset, Prompts
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

FAMILIES = (PLAIN, RELEASED, VLM2VEC, GME, QWEN3, LAMRA, LLAMA, PAGES, RERANKERS)
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


def find_preset(name, model_type: str, preset: str | None = None, strict: bool = True) -> str:
    """The preset to use for a checkpoint: the one asked for, a published repository's own, or `"summary"`.

    Args:
        name (`str` or path): repository or folder.
        model_type (`str`): of the backbone.
        preset (`str`, *optional*): asked for by name.
        strict (`bool`, defaults to `True`): refuse embedders and rerankers, by their names, that are not in the table.

    Returns:
        a key of `PRESETS`.

    Raises:
        ValueError: the preset is unknown or for another backbone, or the repository is by its name an embedder or
            reranker without a known preset; the message lists the presets that fit.

    Example:

    ```python
    find_preset("TianchengGu/UniME-V2-Qwen2VL-2B", "qwen2_vl")  # "unime-v2-qwen2-vl"
    ```
    """
    fitting = []
    for key, settings in PRESETS.items():
        if not settings.model_types or model_type in settings.model_types:
            fitting.append(key)

    if preset is None:
        preset = published_preset(name)

        # a wrong prompt gives no error, only worse embeddings
        if preset is None and strict and _has_own_prompts(name):
            raise ValueError(
                f"{name} is not a published checkpoint that UniME knows, but its name says that it was trained with "
                f"its own prompts; pass `preset=`, one of {', '.join(fitting)}."
            )
        if preset is None:
            preset = "summary"

    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; choose one of {', '.join(sorted(PRESETS))}.")
    if preset not in fitting:
        raise ValueError(
            f"the preset {preset!r} is for {' and '.join(PRESETS[preset].model_types)}, but {name} is a {model_type}; "
            f"choose one of {', '.join(fitting)}."
        )
    return preset


# parts of the names of embedders and rerankers, which were trained with prompts of their own
_TRAINED = ("unime", "embedding", "rerank", "gme-", "vlm2vec", "lamra", "e5-v", "mme5", "rzen", "nomic-embed", "saha-")


def _has_own_prompts(path) -> bool:
    """Whether a folder or repository is by its name no plain VLM, but an embedder or a reranker."""
    names = " ".join(_possible_names(path)).lower()
    return any(part in names for part in _TRAINED)


def _possible_names(path) -> list[str]:
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

    for candidate in _possible_names(name):
        if _plain(candidate) in checkpoints_by_name:
            return checkpoints_by_name[_plain(candidate)]
    return None


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
    "instruct",
    "one_of",
    "published_checkpoint",
    "published_preset",
    "strip_placeholders",
    "with_full_stop",
    "worded",
]
