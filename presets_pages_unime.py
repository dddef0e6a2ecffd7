"""Embedders of pages on Qwen2.5-VL: nomic-embed-multimodal and jina-embeddings-v4."""

from dataclasses import replace

from .preset_unime import RAW, Checkpoint, Family, Instruction, Preset, Prompts, same

_NC = "cc-by-nc-4.0"
_PAGE = "<|im_start|>user\n{image}Describe the image.<|im_end|>"
_QWEN = {size: f"Qwen/Qwen2.5-VL-{size}-Instruct" for size in ("3B", "7B")}

# The single vector; an image's is the mean over its own tokens and their two markers. As in mteb, the vectors of an
# image and its text are added.
_JINA = Preset(
    query=Prompts(text="Query: {text}", image=f"{_PAGE}\n", both=None),
    document=Prompts(text="Passage: {text}", image=f"{_PAGE}\n", both=None),
    frame=RAW,
    instruction=Instruction("none"),
    fusion="sum",
    pooling="image",
    widths=(128, 256, 512, 1024, 2048),
    adapter="retrieval",
    unused_weights=("multi_vector_projector.",),
    evaluates_as_trained=False,
    model_types=("qwen2_5_vl",),
)

PRESETS = {
    # biqwen2_5 of nomic-ai/colpali. As in mteb, text documents are worded as queries too, and the vectors of an image
    # and its text are added.
    "nomic-embed-multimodal": same(
        Prompts(text="Query: {text}", image=_PAGE, both=None),
        frame=RAW,
        appended="<|endoftext|>",  # and it is pooled
        instruction=Instruction("none"),
        fusion="sum",
        image_tokens=(4, 768),
        evaluates_as_trained=False,
        model_types=("qwen2_5_vl",),
    ),
    # the card's own code, for each of its tasks
    "jina-embeddings-v4": _JINA,
    "jina-embeddings-v4-code": replace(_JINA, adapter="code"),
    "jina-embeddings-v4-text-matching": replace(_JINA, adapter="text-matching", document=_JINA.query),
}

CHECKPOINTS = {
    "nomic-ai/nomic-embed-multimodal-3b": Checkpoint("nomic-embed-multimodal", "apache-2.0", _QWEN["3B"]),
    "nomic-ai/nomic-embed-multimodal-7b": Checkpoint("nomic-embed-multimodal", "apache-2.0", _QWEN["7B"]),
    "jinaai/jina-embeddings-v4": Checkpoint("jina-embeddings-v4", _NC, _QWEN["3B"]),
    # with the adapter of a task merged
    "jinaai/jina-embeddings-v4-vllm-retrieval": Checkpoint("jina-embeddings-v4", _NC, _QWEN["3B"]),
    "jinaai/jina-embeddings-v4-vllm-code": Checkpoint("jina-embeddings-v4-code", _NC, _QWEN["3B"]),
    "jinaai/jina-embeddings-v4-vllm-text-matching": Checkpoint("jina-embeddings-v4-text-matching", _NC, _QWEN["3B"]),
}

PAGES = Family(PRESETS, CHECKPOINTS)

__all__ = ["PAGES"]
