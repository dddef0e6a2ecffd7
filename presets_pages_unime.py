"""Embedders of pages on Qwen2.5-VL: nomic-embed-multimodal and jina-embeddings-v4."""

from .preset_unime import RAW, Checkpoint, Family, Instruction, Preset, Prompts, same

_PAGE = "<|im_start|>user\n{image}Describe the image.<|im_end|>"
_QWEN = {size: f"Qwen/Qwen2.5-VL-{size}-Instruct" for size in ("3B", "7B")}

PRESETS = {
    # mteb words text documents as queries too, and adds the vectors of an image and its text
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
    # the single vector; an image's is the mean over its own tokens and their two markers
    "jina-embeddings-v4": Preset(
        query=Prompts(text="Query: {text}", image=f"{_PAGE}\n", both=None),
        document=Prompts(text="Passage: {text}", image=f"{_PAGE}\n", both=None),
        frame=RAW,
        instruction=Instruction("none"),
        pooling="image",
        widths=(128, 256, 512, 1024, 2048),
        evaluates_as_trained=False,
        model_types=("qwen2_5_vl",),
    ),
}

CHECKPOINTS = {
    "nomic-ai/nomic-embed-multimodal-3b": Checkpoint("nomic-embed-multimodal", "apache-2.0", _QWEN["3B"]),
    "nomic-ai/nomic-embed-multimodal-7b": Checkpoint("nomic-embed-multimodal", "apache-2.0", _QWEN["7B"]),
    "jinaai/jina-embeddings-v4": Checkpoint("jina-embeddings-v4", "cc-by-nc-4.0", _QWEN["3B"]),
}

PAGES = Family(PRESETS, CHECKPOINTS)

__all__ = ["PAGES"]
