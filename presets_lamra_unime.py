"""LamRA-Ret: a word is asked for, and the token before it is the embedding."""

from dataclasses import replace

from .preset_unime import ASSISTANT, CHATML, Checkpoint, Family, Instruction, Prompts, same

# collators/qwen2_vision_process.py: two frames a second, of 128 to 768 tokens each
QWEN2_VIDEO = {"fps": 2.0, "num_frames": 768, "max_frames": 768, "frame_pixels": (128 * 28 * 28, 768 * 28 * 28)}
QWEN2_VIDEO["video_pixels"] = 24_576 * 28 * 28

# dataset/ and models/ of code-kunkun/LamRA. Its prompts go on with `<emb>.` after the generation prompt, whose last
# token is pooled.
_QWEN2 = same(
    Prompts(
        text="{text}\nSummarize above sentence in one word: ",
        image="{image}\nSummarize above image in one word: ",
        both="{image}{text}\nSummarize above image and sentence in one word: ",
        video="{image}\nSummarize above video in one word: ",
        video_and_text="{image}{text}\nSummarize above video and sentence in one word: ",
    ),
    frame=CHATML,
    system=ASSISTANT,
    instruction=Instruction("text", form="{instruction} {text}"),
    positions="flat",  # of the class that made the published numbers
    resolution="tokens:4-300",
    **QWEN2_VIDEO,
    evaluates_as_trained=False,
    model_types=("qwen2_vl",),
)

PRESETS = {
    "lamra-ret": _QWEN2,
    "lamra-ret-qwen2.5-vl": replace(_QWEN2, positions="native", model_types=("qwen2_5_vl",)),
}

CHECKPOINTS = {
    "code-kunkun/LamRA-Ret": Checkpoint("lamra-ret", None, "Qwen/Qwen2-VL-7B-Instruct"),
    "code-kunkun/LamRA-Ret-Pretrained": Checkpoint("lamra-ret", None, "Qwen/Qwen2-VL-7B-Instruct"),
    "code-kunkun/LamRA-Ret-Qwen2.5VL-7b": Checkpoint("lamra-ret-qwen2.5-vl", None, "Qwen/Qwen2.5-VL-7B-Instruct"),
}

LAMRA = Family(PRESETS, CHECKPOINTS)

__all__ = ["LAMRA", "QWEN2_VIDEO"]
