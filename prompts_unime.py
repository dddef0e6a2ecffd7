"""Prompt presets: how an item becomes a prompt, and which preset each published checkpoint was trained with."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

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

# Kinds of benchmark that a preset may word in a way of its own: MMEB and MMEB-V2, image-text retrieval (short and long
# captions), and SugarCrepe.
BENCHMARKS = ("mmeb", "retrieval", "sugarcrepe")
_CAPTION = "Find an image caption describing the given image."


class Prompts(NamedTuple):
    """The user turn by kind of item. `{image}` stands where the image goes, `{text}` where the text goes.

    Args:
        text (`str`): of an item that is a text.
        image (`str`): of an item that is an image.
        both (`str`): of an item with both.
    """

    text: str
    image: str
    both: str

    def of(self, has_text: bool, has_image: bool) -> str:
        """The turn of an item that has a text, an image, or both."""
        if not has_image:
            return self.text
        return self.both if has_text else self.image


@dataclass(frozen=True)
class Preset:
    """One way to read items: prompts by role, and everything else that decides which embedding comes out.

    The pooled token is the last one everywhere.

    Args:
        query, document (`Prompts`): user turns by kind of item.
        system (`str`, *optional*): system turn.
        chat (`bool`): wrap the turn in the chat template with a generation prompt; otherwise it is fed raw.
        raw_joint (`bool`): image-and-text prompts, and texts that place the image themselves, are fed raw whatever
            `chat` says: MMEB's strings as UniME's second stage saw them.
        verbatim (`bool`): a text that places the image itself is the whole turn; otherwise it replaces image and
            text in the prompt.
        fenced (`bool`): whether images stand between the backbone's own markers (Qwen's `<|vision_start|>`).
        strip (`bool`): strip texts.
        benchmarks (`Mapping`): kind of benchmark (of `BENCHMARKS`) -> the preset whose prompts, chat and fusion are
            used there; this one's own on kinds that are not named.
        judged_images (`Mapping`): kind of benchmark -> what a judge reads after an image without a text; nothing on
            kinds that are not named. By default as UniME-V2's released code has it (2510.13515).
        fusion (`str`): `"joint"` reads image and text in one prompt; `"sum"` adds their two embeddings.
        positions (`str`): `"native"`, or `"flat"`: 1-D positions for image tokens too.
        padding_side (`str`): side of the padding in a batch.
        max_length (`int`): default limit in tokens, above which texts are cut.
        resolution: default resolution policy (see [`~unime.images_unime.Resolution`]).
        anyres_padding (`str`): `"even"`, or `"legacy"`: the canvas of LLaVA's tiles comes out a pixel short when its
            padding is odd, as transformers 4.4x did.
        processor (`str`, *optional*): repository of the tokenizer and image processor the checkpoints were trained
            with, where it is not their own.
        model_types (`tuple`): backbones the preset is for; empty for any.
        documents_as_queries (`tuple`): data sets whose documents are worded as queries.
        evaluates_as_trained (`bool`): whether a model that is trained with it is evaluated at the resolution of its
            training, which is then saved with it (UniME), or at the preset's (UniME-V2, VLM2Vec, SaHa).
    """

    query: Prompts
    document: Prompts
    system: str | None = None
    chat: bool = True
    raw_joint: bool = False
    verbatim: bool = False
    fenced: bool = True
    strip: bool = False
    fusion: str = "joint"
    benchmarks: Mapping[str, str] = field(default_factory=dict)
    judged_images: Mapping[str, str] = field(
        default_factory=lambda: {"retrieval": f" {_CAPTION}", "sugarcrepe": f" {_CAPTION}"}
    )
    positions: str = "native"
    padding_side: str = "left"
    max_length: int = 32_768
    resolution: str | int = "native"
    anyres_padding: str = "even"
    processor: str | None = None
    model_types: tuple[str, ...] = ()
    documents_as_queries: tuple[str, ...] = ()
    evaluates_as_trained: bool = True

    def on(self, benchmark: str | None) -> "Preset":
        """The preset whose prompts are used on a kind of benchmark: another, or this one."""
        if benchmark in self.benchmarks:
            return PRESETS[self.benchmarks[benchmark]]
        return self


def _same(prompts: Prompts, **settings) -> Preset:
    """A preset that words queries and documents alike."""
    return Preset(query=prompts, document=prompts, **settings)


_JOINT = "{image}\n{text}\n"
_RAW_MMEB = {"mmeb": "joint"}  # UniME's first generation is measured on MMEB with VLM2Vec's code
_SYSTEM = "Given an image, summarize the provided image in one word. Given only text, describe the text in one word."
_QWEN = ("qwen2_vl", "qwen2_5_vl")

# SaHa's, of which documents are the bare items
_HIERARCHICAL_QUERY = Prompts(
    text="{text}\nRepresent the given text in one word.",
    image="{image}\nRepresent the given text/image in one word.",
    both="{image}\n{text}\nRepresent the given text/image in one word.",
)
_HIERARCHICAL_DOCUMENT = Prompts(text="{text}", image="{image}", both="{image}\n{text}")

PRESETS = {
    # Zero-shot, and UniME stage 1 (2504.17432 section 3.2): the next token after the prompt sums the item up, and an
    # image with a text is the sum of its two embeddings.
    "summary": _same(
        Prompts(
            text="{text}\nSummary above sentence in one word:",
            image="{image}\nSummary above image in one word:",
            both="{image}\n{text}\nSummary above image and sentence in one word:",
        ),
        fusion="sum",
    ),
    # From Generator to Embedder (2508.00955): a shared system sentence, and a one-word request on the query side only.
    "hierarchical": Preset(query=_HIERARCHICAL_QUERY, document=_HIERARCHICAL_DOCUMENT, system=_SYSTEM),
    # The same as SaHa's checkpoints were trained (Gen2Embed): bare image tokens, and so positions of text for them.
    "saha-qwen2-vl": Preset(
        query=_HIERARCHICAL_QUERY,
        document=_HIERARCHICAL_DOCUMENT,
        system=_SYSTEM,
        fenced=False,
        positions="flat",
        max_length=2048,
        resolution="pixels:984064",  # 992 x 992; the authors scale the long side to at most 992 pixels
        evaluates_as_trained=False,
        model_types=_QWEN,
        documents_as_queries=("RefCOCO-Matching",),
    ),
    # VLM2Vec and UniME stage 2 on MMEB: the data set's own strings, unwrapped.
    "joint": _same(
        Prompts(text="{text}", image="{image}\nRepresent the given image.\n", both=_JOINT), chat=False, verbatim=True
    ),
    # VLM2Vec's own checkpoints, with the words of its demos; MMEB's strings stay as they are.
    "vlm2vec-qwen2-vl": _same(
        Prompts(text="{text}", image="{image} Represent the given image.", both="{image} {text}"),
        chat=False,
        verbatim=True,
        fenced=False,
        positions="flat",
        max_length=4096,
        resolution="tokens:1280",
        evaluates_as_trained=False,
        model_types=_QWEN,
    ),
    "unime-phi3.5-v": _same(
        Prompts(
            text="<|user|>\n{text}\nSummary above sentence in one word: <|end|>\n<|assistant|>\n",
            image="<|user|>\n{image}\nSummary above image in one word: <|end|>\n<|assistant|>\n",
            both=_JOINT,
        ),
        chat=False,
        verbatim=True,
        fusion="sum",
        benchmarks=_RAW_MMEB,
        processor="microsoft/Phi-3.5-vision-instruct",
        model_types=("phi3_v",),
    ),
    "unime-llava-1.6": _same(
        Prompts(
            text="[INST] {text}\nSummary above sentence in one word: [/INST]",
            image="[INST] {image}\nSummary above image in one word: [/INST]",
            both=_JOINT,
        ),
        chat=False,
        verbatim=True,
        fusion="sum",
        benchmarks=_RAW_MMEB,
        anyres_padding="legacy",
        processor="llava-hf/llava-v1.6-mistral-7b-hf",
        model_types=("llava_next",),
    ),
    "unime-llava-onevision": _same(
        Prompts(
            text="{text}\nSummary above sentence in one word:\n",
            image="{image}Summary above image in one word:\n",
            both=_JOINT,
        ),
        raw_joint=True,
        verbatim=True,
        fusion="sum",
        benchmarks=_RAW_MMEB,
        resolution=336,
        anyres_padding="legacy",
        model_types=("llava_onevision",),
    ),
    "unime-v2-qwen2-vl": _same(
        Prompts(text="{text}", image=f"{{image}} {_CAPTION}", both=_JOINT),
        chat=False,
        verbatim=True,
        fenced=False,
        positions="flat",
        max_length=4096,
        resolution=1344,
        evaluates_as_trained=False,
        model_types=_QWEN,
    ),
    "unime-v2-llava-onevision": _same(
        Prompts(text="{text}", image=f"{{image}}{_CAPTION}", both="{image}{text}"),
        verbatim=True,
        strip=True,
        resolution=1344,
        anyres_padding="legacy",
        evaluates_as_trained=False,
        model_types=("llava_onevision",),
    ),
    # The reranker reads chats of its own making; only its resolution matters: squashed to 1344, then 300 tokens.
    "unime-v2-reranker": _same(
        Prompts(text="{text}", image="{image}", both="{image}\n{text}"),
        resolution="1344+tokens:300",
        evaluates_as_trained=False,
        model_types=("qwen2_5_vl",),
    ),
}

CHECKPOINTS = {
    "DeepGlint-AI/UniME-Phi3.5-V-4.2B": "unime-phi3.5-v",
    "DeepGlint-AI/UniME-LLaVA-1.6-7B": "unime-llava-1.6",
    "DeepGlint-AI/UniME-LLaVA-OneVision-7B": "unime-llava-onevision",
    "TianchengGu/UniME-V2-Qwen2VL-2B": "unime-v2-qwen2-vl",
    "TianchengGu/UniME-V2-Qwen2VL-7B": "unime-v2-qwen2-vl",
    "TianchengGu/UniME-V2-LLaVA-OneVision-8B": "unime-v2-llava-onevision",
    "TianchengGu/UniME-V2-reranker-Qwen25VL-7B": "unime-v2-reranker",
    "TIGER-Lab/VLM2Vec-Qwen2VL-2B": "vlm2vec-qwen2-vl",
    "TIGER-Lab/VLM2Vec-Qwen2VL-7B": "vlm2vec-qwen2-vl",
    "Y-J-Ju/SaHa-Qwen2-VL-2B-Instruct": "saha-qwen2-vl",
    "Y-J-Ju/SaHa-Qwen2-VL-7B-Instruct": "saha-qwen2-vl",
}


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
    presets_by_name = {}
    for repository, preset in CHECKPOINTS.items():
        presets_by_name[_plain(repository.split("/")[1])] = preset

    for candidate in _possible_names(name):
        if _plain(candidate) in presets_by_name:
            return presets_by_name[_plain(candidate)]
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


def instruct(instruction: str | None, text: str | None) -> str:
    """A text with its instruction on a line before it, or, as MMEB words it, on the same line after a colon.

    Args:
        instruction (`str`, *optional*): what the text is to be read as.
        text (`str`, *optional*): the text itself.

    Returns:
        `str`: both, the one that is not blank, or an empty string.

    Example:

    ```python
    instruct("Find the caption:", "a ring")  # "Find the caption: a ring"
    ```
    """
    lines = [line for line in (instruction, text) if line and line.strip()]
    if len(lines) == 2 and instruction.rstrip().endswith(":"):
        return f"{instruction.rstrip()} {text}"
    return "\n".join(lines)


__all__ = [
    "BENCHMARKS",
    "CHECKPOINTS",
    "PRESETS",
    "Preset",
    "Prompts",
    "find_preset",
    "instruct",
    "one_of",
    "published_preset",
    "strip_placeholders",
]
