"""GME and its look-alikes on Qwen2-VL: one string, four different embeddings."""

from .preset_unime import ASSISTANT, CHATML, Checkpoint, Family, Instruction, Prompts, same

_PLAIN = Prompts(text="{text}", image="{image}", both="{image}{text}")
_SETTINGS = {
    "frame": CHATML,
    "system": ASSISTANT,
    "appended": "<|endoftext|>",  # and it is pooled
    "image_tokens": (256, 1280),  # a small picture is enlarged
    "evaluates_as_trained": False,
    "model_types": ("qwen2_vl",),
}

PRESETS = {
    # gme_inference.py of the card: an instruction is given to queries only. Images are resized twice, and the limits
    # of the second step enlarge small ones.
    "gme": same(
        _PLAIN,
        instruction=Instruction("system", default=ASSISTANT, roles=("query",)),
        positions="flat",
        padding_side="right",
        resolution="tokens:4-16384",
        max_length=1800,
        video="frames",
        **_SETTINGS,
    ),
    # rzen_embed_inference.py of 360CVGroup/RzenEmbed: the instruction stands directly before the text, after an image
    "rzenembed": same(
        _PLAIN,
        instruction=Instruction("text", form="{instruction}{text}"),
        positions="flat",
        padding_side="right",
        resolution="tokens:4-16384",
        max_length=2000,
        video="frames",
        frame_pixels=(160 * 28 * 28, 180 * 28 * 28),
        **_SETTINGS,
    ),
    # ops_mm_embedding_v1.py of the card: the only one of the four that calls the whole model, and so has M-RoPE
    "ops-mm": same(_PLAIN, instruction=Instruction("system", default=ASSISTANT), video="frames", **_SETTINGS),
    # inference/ of friedrichor/UNITE: what is asked for is part of the turn, an instruction part of the text
    "unite": same(
        Prompts(
            text="{text}\nSummary above sentence in one word:",
            image="{image}\nSummary above image in one word:",
            both="{image}{text}\nSummary above sentence and image in one word:",
            video="{image}\nSummary above video in one word:",
            video_and_text="{image}{text}\nSummary above sentence and video in one word:",
        ),
        positions="flat",
        resolution="tokens:4-16384",
        num_frames=32,
        fps=1.0,
        max_frames=32,
        frame_pixels=(128 * 28 * 28, 360 * 420),
        **_SETTINGS,
    ),
}

CHECKPOINTS = {
    "Alibaba-NLP/gme-Qwen2-VL-2B-Instruct": Checkpoint("gme", "apache-2.0", "Qwen/Qwen2-VL-2B-Instruct"),
    "Alibaba-NLP/gme-Qwen2-VL-7B-Instruct": Checkpoint("gme", "apache-2.0", "Qwen/Qwen2-VL-7B-Instruct"),
    "qihoo360/RzenEmbed": Checkpoint("rzenembed", "mit"),
    "OpenSearch-AI/Ops-MM-embedding-v1-2B": Checkpoint("ops-mm", "apache-2.0"),
    "OpenSearch-AI/Ops-MM-embedding-v1-7B": Checkpoint("ops-mm", "apache-2.0"),
    "friedrichor/Unite-Base-Qwen2-VL-2B": Checkpoint("unite", "apache-2.0"),
    "friedrichor/Unite-Base-Qwen2-VL-7B": Checkpoint("unite", "apache-2.0"),
    "friedrichor/Unite-Instruct-Qwen2-VL-2B": Checkpoint("unite", "apache-2.0"),
    "friedrichor/Unite-Instruct-Qwen2-VL-7B": Checkpoint("unite", "apache-2.0"),
}

GME = Family(PRESETS, CHECKPOINTS)

__all__ = ["GME"]
