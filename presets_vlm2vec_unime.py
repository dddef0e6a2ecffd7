"""VLM2Vec, and what was trained with its code: raw prompts, bare image tokens, and so positions of text for them."""

from .preset_unime import RAW, Checkpoint, Family, Preset, Prompts, same
from .presets_plain_unime import HIERARCHICAL_DOCUMENT, HIERARCHICAL_QUERY, SUMMARISE

_QWEN = ("qwen2_vl", "qwen2_5_vl")
_QWEN2_VL = {size: f"Qwen/Qwen2-VL-{size}-Instruct" for size in ("2B", "7B")}

PRESETS = {
    # with the words of its demos; MMEB's strings stay as they are
    "vlm2vec-qwen2-vl": same(
        Prompts(text="{text}", image="{image} Represent the given image.", both="{image} {text}"),
        frame=RAW,
        verbatim=True,
        fenced=False,
        positions="flat",
        max_length=4096,
        resolution="tokens:1280",
        evaluates_as_trained=False,
        model_types=_QWEN,
    ),
    # SaHa's checkpoints (Gen2Embed): a frame around VLM2Vec's bare image tokens
    "saha-qwen2-vl": Preset(
        query=HIERARCHICAL_QUERY,
        document=HIERARCHICAL_DOCUMENT,
        system=SUMMARISE,
        fenced=False,
        positions="flat",
        max_length=2048,
        resolution="pixels:984064",  # 992 x 992; the authors scale the long side to at most 992 pixels
        evaluates_as_trained=False,
        model_types=_QWEN,
        documents_as_queries=("RefCOCO-Matching",),
    ),
}

CHECKPOINTS = {
    "TIGER-Lab/VLM2Vec-Qwen2VL-2B": Checkpoint("vlm2vec-qwen2-vl", "apache-2.0", _QWEN2_VL["2B"]),
    "TIGER-Lab/VLM2Vec-Qwen2VL-7B": Checkpoint("vlm2vec-qwen2-vl", "apache-2.0", _QWEN2_VL["7B"]),
    "Y-J-Ju/SaHa-Qwen2-VL-2B-Instruct": Checkpoint("saha-qwen2-vl", None, _QWEN2_VL["2B"]),
    "Y-J-Ju/SaHa-Qwen2-VL-7B-Instruct": Checkpoint("saha-qwen2-vl", None, _QWEN2_VL["7B"]),
}

VLM2VEC = Family(PRESETS, CHECKPOINTS)

__all__ = ["VLM2VEC"]
