"""Embedders on Llama 3: E5-V (LLaVA-NeXT) and mmE5 (Llama 3.2 Vision), and MoCa, which has mmE5's strings."""

from .preset_unime import RAW, Checkpoint, Family, Instruction, Prompts, same

_QUESTION = "Represent the given image with the following question:"
# what an instruction makes of a text ends in a line break, as MMEB's queries do
_MMEB = Instruction("text", form="{instruction} {text}\n", default=Prompts(text="", image="", both=_QUESTION))

PRESETS = {
    # README and retrieval.py of kongds/E5-V. The prompt ends in two line breaks, a space and another line break; image
    # and text are a question of composed retrieval, whose targets place their image themselves.
    "e5-v": same(
        Prompts(
            text="{text}\nSummary above sentence in one word: ",
            image="{image}\nSummary above image in one word: ",
            both='{image}Modify this image with "{text}", desribe modified image in one word:',
        ),
        frame="<|start_header_id|>user<|end_header_id|>\n\n{user}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n \n",
        verbatim=True,
        anyres_padding="legacy",
        evaluates_as_trained=False,
        model_types=("llava_next",),
    ),
    # demo.py of haon-chen/mmE5: the processor writes a BOS before every text, and the tokenizer another one
    "mme5": same(
        Prompts(
            text="<|begin_of_text|>{text}",
            image="{image}<|begin_of_text|>Represent the given image.\n",
            both="{image}<|begin_of_text|>{text}",
        ),
        frame=RAW,
        instruction=_MMEB,
        padding_side="right",
        evaluates_as_trained=False,
        model_types=("mllama",),
    ),
    # demo.py of haon-chen/MoCa: mmE5's strings on a Qwen2.5-VL whose tokens all see each other
    "moca": same(
        Prompts(text="{text}", image="{image}Represent the given image.\n", both="{image}{text}"),
        frame=RAW,
        instruction=_MMEB,
        verbatim=True,
        pooling="mean",
        attention="bidirectional",
        padding_side="right",
        evaluates_as_trained=False,
        model_types=("qwen2_5_vl",),
    ),
}

CHECKPOINTS = {
    "royokong/e5-v": Checkpoint("e5-v"),
    "intfloat/mmE5-mllama-11b-instruct": Checkpoint("mme5", "mit", "meta-llama/Llama-3.2-11B-Vision"),
    "moca-embed/MoCa-Qwen25VL-3B": Checkpoint("moca", "mit", "Qwen/Qwen2.5-VL-3B-Instruct"),
    "moca-embed/MoCa-Qwen25VL-7B": Checkpoint("moca", "mit", "Qwen/Qwen2.5-VL-7B-Instruct"),
}

LLAMA = Family(PRESETS, CHECKPOINTS)

__all__ = ["LLAMA"]
