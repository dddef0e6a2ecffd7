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
    # the authors give an instruction to queries only
    "gme": same(
        _PLAIN,
        instruction=Instruction("system", default=ASSISTANT, roles=("query",)),
        positions="flat",
        padding_side="right",
        resolution="tokens:4-16384",
        max_length=1800,
        **_SETTINGS,
    ),
    "rzenembed": same(
        _PLAIN,
        instruction=Instruction("text", form="{instruction}{text}"),
        positions="flat",
        padding_side="right",
        resolution="tokens:4-16384",
        max_length=2000,
        **_SETTINGS,
    ),
    "ops-mm": same(_PLAIN, instruction=Instruction("system", default=ASSISTANT), **_SETTINGS),
    "unite": same(
        Prompts(
            text="{text}\nSummary above sentence in one word:",
            image="{image}\nSummary above image in one word:",
            both="{image}{text}\nSummary above sentence and image in one word:",
            video="{image}\nSummary above video in one word:",
        ),
        positions="flat",
        resolution="tokens:4-16384",
        num_frames=32,
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
