"""VLM2Vec, and what was trained with its code: raw prompts, bare image tokens, and so positions of text for them."""

from dataclasses import replace

from .preset_unime import ASSISTANT, CHATML, RAW, Checkpoint, Family, Instruction, Preset, Prompts, same
from .presets_plain_unime import HIERARCHICAL_DOCUMENT, HIERARCHICAL_QUERY, SUMMARISE

_QWEN = ("qwen2_vl", "qwen2_5_vl")
_QWEN2_VL = {size: f"Qwen/Qwen2-VL-{size}-Instruct" for size in ("2B", "7B")}

_QUESTION = "Represent the given image with the following question:"

# the words of its demos; MMEB's strings, which place their image, stay as they are
_VLM2VEC = same(
    Prompts(
        text="{text}",
        image="{image} Represent the given image.",
        both="{image} {text}",
        video="{image} Represent the given video.",
    ),
    frame=RAW,
    instruction=Instruction("text", form="{instruction} {text}", default=Prompts(text="", image="", both=_QUESTION)),
    verbatim=True,
    evaluates_as_trained=False,
)

PRESETS = {
    # src/model of TIGER-AI-Lab/VLM2Vec, main: bare image tokens, for which transformers 4 had positions of text; an
    # image with a side below 28 pixels becomes a square of 56
    "vlm2vec-qwen2-vl": replace(
        _VLM2VEC,
        fenced=False,
        positions="flat",
        max_length=4096,
        resolution="tiny:56+tokens:1280",
        model_types=_QWEN,
    ),
    # the demo of its authors reads 16 crops, their evaluation 4
    "vlm2vec-phi3.5-v": replace(_VLM2VEC, padding_side="right", crops=4, model_types=("phi3_v",)),
    # branch v1; the evaluation squashes images to 1344 x 1344 first, which `resolution=1344` does
    "vlm2vec-llava-1.6": replace(
        _VLM2VEC,
        anyres_padding="legacy",
        processor="llava-hf/llava-v1.6-mistral-7b-hf",
        model_types=("llava_next",),
    ),
    # zhibinlan/LLaVE: VLM2Vec's strings in a chat in which the assistant says a line break, as LLaVA-OneVision reads
    # images; the repositories have the layout of LLaVA-NeXT's own code, and are read once they are converted
    "llave": replace(
        _VLM2VEC,
        frame=CHATML + "\n<|im_end|>\n",
        system=ASSISTANT,
        model_types=("llava_onevision",),
    ),
    # eval_mmeb.py of raghavlite/B3: VLM2Vec's code with MMEB's own strings
    "b3": same(
        Prompts(text="{text}", image="{image}\nRepresent the given image.\n", both="{image}\n{text}"),
        frame=RAW,
        instruction=Instruction(
            "text", form="{instruction} {text}\n", default=Prompts(text="", image="", both=_QUESTION)
        ),
        verbatim=True,
        fenced=False,
        positions="flat",
        resolution="tiny:56",
        image_tokens=(4, 1280),
        evaluates_as_trained=False,
        model_types=("qwen2_vl",),
    ),
    # SaHa's checkpoints (src/model_utils.py and src/dataset.py of Gen2Embed): a chat around VLM2Vec's bare image
    # tokens, and sides of images that follow no other rule
    "saha-qwen2-vl": Preset(
        query=HIERARCHICAL_QUERY,
        document=HIERARCHICAL_DOCUMENT,
        frame=CHATML,
        system=SUMMARISE,
        fenced=False,
        positions="flat",
        max_length=2048,
        resolution="ratio:2+sides:336-992+lanczos",
        evaluates_as_trained=False,
        model_types=_QWEN,
        documents_as_queries=("RefCOCO-Matching",),
    ),
}

CHECKPOINTS = {
    "TIGER-Lab/VLM2Vec-Qwen2VL-2B": Checkpoint("vlm2vec-qwen2-vl", "apache-2.0", _QWEN2_VL["2B"]),
    "TIGER-Lab/VLM2Vec-Qwen2VL-7B": Checkpoint("vlm2vec-qwen2-vl", "apache-2.0", _QWEN2_VL["7B"]),
    "VLM2Vec/VLM2Vec-V2.0": Checkpoint("vlm2vec-qwen2-vl", "apache-2.0", _QWEN2_VL["2B"]),
    "TIGER-Lab/VLM2Vec-Full": Checkpoint("vlm2vec-phi3.5-v", "apache-2.0", "microsoft/Phi-3.5-vision-instruct"),
    "TIGER-Lab/VLM2Vec-LoRA": Checkpoint("vlm2vec-phi3.5-v", "apache-2.0", "microsoft/Phi-3.5-vision-instruct"),
    "TIGER-Lab/VLM2Vec-LLaVa-Next": Checkpoint("vlm2vec-llava-1.6", None, "llava-hf/llava-v1.6-mistral-7b-hf"),
    "zhibinlan/LLaVE-0.5B": Checkpoint("llave"),
    "zhibinlan/LLaVE-2B": Checkpoint("llave", "apache-2.0"),
    "zhibinlan/LLaVE-7B": Checkpoint("llave", "apache-2.0"),
    "raghavlite/B3_Qwen2_2B": Checkpoint("b3", None, _QWEN2_VL["2B"]),
    "raghavlite/B3_Qwen2_7B": Checkpoint("b3", None, _QWEN2_VL["7B"]),
    "Y-J-Ju/SaHa-Qwen2-VL-2B-Instruct": Checkpoint("saha-qwen2-vl", None, _QWEN2_VL["2B"]),
    "Y-J-Ju/SaHa-Qwen2-VL-7B-Instruct": Checkpoint("saha-qwen2-vl", None, _QWEN2_VL["7B"]),
}

VLM2VEC = Family(PRESETS, CHECKPOINTS)

__all__ = ["VLM2VEC"]
