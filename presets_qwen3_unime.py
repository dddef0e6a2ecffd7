"""Embedders on Qwen3-VL and Qwen3.5: Qwen3-VL-Embedding and WeMM-Embedding."""

from .preset_unime import CHATML, Checkpoint, Family, Instruction, Prompts, same

QWEN3_FRAMES = (128 * 32 * 32, 768 * 32 * 32)  # of qwen-vl-utils, for patches of 16 pixels
_PLAIN = Prompts(text="{text}", image="{image}", both="{image}{text}")

PRESETS = {
    # src/models/qwen3_vl_embedding.py of QwenLM/Qwen3-VL-Embedding. Its limit is 1,800 tokens of an image; that of
    # preprocessor_config.json, which other libraries read, is 1,280.
    "qwen3-vl-embedding": same(
        _PLAIN,
        frame=CHATML,
        instruction=Instruction("system", default="Represent the user's input.", full_stop=True),
        empty="NULL",
        padding_side="right",
        max_length=8192,
        image_tokens=(4, 1800),
        num_frames=64,
        fps=1.0,
        max_frames=64,
        frame_pixels=QWEN3_FRAMES,
        video_pixels=10 * 768 * 1024,
        widths=(64, 128, 256, 512, 1024, 2048, 4096),
        evaluates_as_trained=False,
        model_types=("qwen3_vl",),
    ),
    # modeling_wemm_embedding.py of the card: no system turn and no generation prompt; the tokenizer takes line breaks
    # from before its special tokens, and ends every prompt in `<embedding>`, which is pooled.
    "wemm-embedding": same(
        _PLAIN,
        frame="<|im_start|>user\n{user}<|im_end|>\n",
        instruction=Instruction("text", form="{instruction}{text}"),
        strip=True,
        padding_side="right",
        resolution="tokens:4-16384",
        own_normalizer=True,
        num_frames=64,
        fps=2.0,
        max_frames=64,
        frame_pixels=QWEN3_FRAMES,
        widths=(64, 128, 256, 512, 1024, 2048, 2560, 4096),
        evaluates_as_trained=False,
        model_types=("qwen3_5",),
    ),
}

CHECKPOINTS = {
    "Qwen/Qwen3-VL-Embedding-2B": Checkpoint("qwen3-vl-embedding", "apache-2.0", "Qwen/Qwen3-VL-2B-Instruct"),
    "Qwen/Qwen3-VL-Embedding-8B": Checkpoint("qwen3-vl-embedding", "apache-2.0", "Qwen/Qwen3-VL-8B-Instruct"),
    "tencent/WeMM-Embedding-2B": Checkpoint("wemm-embedding", "apache-2.0"),
    "tencent/WeMM-Embedding-4B": Checkpoint("wemm-embedding", "apache-2.0"),
    "tencent/WeMM-Embedding-9B": Checkpoint("wemm-embedding", "apache-2.0"),
}

QWEN3 = Family(PRESETS, CHECKPOINTS)

__all__ = ["QWEN3", "QWEN3_FRAMES"]
