"""UniME and UniME-V2: the seven checkpoints of the papers' authors."""

from .preset_unime import CAPTION, RAW, Checkpoint, Family, Prompts, same

_JOINT = "{image}\n{text}\n"
_RAW_MMEB = {"mmeb": "joint"}  # UniME's first generation is measured on MMEB with VLM2Vec's code
_QWEN = ("qwen2_vl", "qwen2_5_vl")

PRESETS = {
    "unime-phi3.5-v": same(
        Prompts(
            text="<|user|>\n{text}\nSummary above sentence in one word: <|end|>\n<|assistant|>\n",
            image="<|user|>\n{image}\nSummary above image in one word: <|end|>\n<|assistant|>\n",
            both=_JOINT,
        ),
        frame=RAW,
        verbatim=True,
        fusion="sum",
        benchmarks=_RAW_MMEB,
        processor="microsoft/Phi-3.5-vision-instruct",
        model_types=("phi3_v",),
    ),
    "unime-llava-1.6": same(
        Prompts(
            text="[INST] {text}\nSummary above sentence in one word: [/INST]",
            image="[INST] {image}\nSummary above image in one word: [/INST]",
            both=_JOINT,
        ),
        frame=RAW,
        verbatim=True,
        fusion="sum",
        benchmarks=_RAW_MMEB,
        anyres_padding="legacy",
        processor="llava-hf/llava-v1.6-mistral-7b-hf",
        model_types=("llava_next",),
    ),
    "unime-llava-onevision": same(
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
    "unime-v2-qwen2-vl": same(
        Prompts(text="{text}", image=f"{{image}} {CAPTION}", both=_JOINT),
        frame=RAW,
        verbatim=True,
        fenced=False,
        positions="flat",
        max_length=4096,
        resolution=1344,
        evaluates_as_trained=False,
        model_types=_QWEN,
    ),
    "unime-v2-llava-onevision": same(
        Prompts(text="{text}", image=f"{{image}}{CAPTION}", both="{image}{text}"),
        verbatim=True,
        strip=True,
        resolution=1344,
        anyres_padding="legacy",
        evaluates_as_trained=False,
        model_types=("llava_onevision",),
    ),
    # The reranker reads chats of its own making; only its resolution matters: squashed to 1344, then 300 tokens.
    "unime-v2-reranker": same(
        Prompts(text="{text}", image="{image}", both="{image}\n{text}"),
        resolution="1344+tokens:300",
        evaluates_as_trained=False,
        model_types=("qwen2_5_vl",),
    ),
}

CHECKPOINTS = {
    "DeepGlint-AI/UniME-Phi3.5-V-4.2B": Checkpoint("unime-phi3.5-v"),
    "DeepGlint-AI/UniME-LLaVA-1.6-7B": Checkpoint("unime-llava-1.6"),
    "DeepGlint-AI/UniME-LLaVA-OneVision-7B": Checkpoint("unime-llava-onevision"),
    "TianchengGu/UniME-V2-Qwen2VL-2B": Checkpoint("unime-v2-qwen2-vl"),
    "TianchengGu/UniME-V2-Qwen2VL-7B": Checkpoint("unime-v2-qwen2-vl"),
    "TianchengGu/UniME-V2-LLaVA-OneVision-8B": Checkpoint("unime-v2-llava-onevision"),
    "TianchengGu/UniME-V2-reranker-Qwen25VL-7B": Checkpoint("unime-v2-reranker"),
}

RELEASED = Family(PRESETS, CHECKPOINTS)

__all__ = ["RELEASED"]
