"""What several benchmarks share: words and pictures, backbones with random weights, and the peer that reads them."""

import json
import os
import platform
import time
from pathlib import Path

import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from unime import UniMEModel, UniMERerankerForCausalLM
from unime.devices_unime import cpu_capabilities, has_amx
from unime.miniature.backbone import build_config, build_tokenizer
from unime.prompts_unime import POINTWISE_INSTRUCTION

SENTENCE = "a red circle left of the large blue star near two small green squares above one ring"
WORDS = SENTENCE.split()


def machine() -> str:
    """One line: processor, threads, whether products in bfloat16 use AMX, and how busy the machine is."""
    name = cpu_capabilities().get("cpu_name") or platform.processor()
    amx = "with AMX" if has_amx() else "without AMX"
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    if limit:
        amx += f" (ONEDNN_MAX_CPU_ISA={limit})"
    load = os.getloadavg()[0]
    return (
        f"{name}, {torch.get_num_threads()} threads, {amx}; torch {torch.__version__}; load {load:.1f} on "
        f"{os.cpu_count()} cores"
    )


def picture(width: int, height: int, spread: int) -> Image.Image:
    """Random pixels; `spread` is their standard deviation, and makes two pictures of a size different."""
    return Image.effect_noise((width, height), spread).convert("RGB")


# embedders, for us and for sentence-transformers
def make_embedder(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    config: Qwen2VLConfig | Qwen3VLConfig,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Path:
    """A UniME repository over a Qwen-VL with random weights, which sentence-transformers reads in its own way.

    Args:
        folder (`Path`): the backbone goes to its `backbone`, the embedder to its `repo`.
        tokenizer (`PreTrainedTokenizerFast`): made by `build_tokenizer`.
        config (`Qwen2VLConfig` or `Qwen3VLConfig`): with the tokenizer's special ids.
        dtype (`torch.dtype`, defaults to float32): of the weights.
        device (`str`, defaults to `"cpu"`): where they are drawn, which is fast on a GPU.

    Returns:
        `Path`: the repository.
    """
    config.vision_config.temporal_patch_size = 2  # as real checkpoints have it
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=config.vision_config.patch_size,
        size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280},  # pixels
    )

    backbone = folder / "backbone"
    with torch.device(device):
        AutoModelForImageTextToText.from_config(config, dtype=dtype).save_pretrained(backbone)
    image_processor.save_pretrained(backbone)
    tokenizer.save_pretrained(backbone)

    repo = folder / "repo"
    UniMEModel.from_backbone(backbone, preset="summary", fusion="joint").save_pretrained(repo)
    _write_peer_files(repo)
    return repo


def _write_peer_files(repo: Path):
    """Tells sentence-transformers to read a repository with its own modules, and not through our file."""
    # our forward gives embeddings, whatever an item consists of
    method = {"method": "forward", "method_output_name": "embeddings"}
    modalities = {"text": method, "image": method, "image+text": method, "message": {**method, "format": "structured"}}
    module = "sentence_transformers.base.modules.transformer.Transformer"
    files = {
        "modules.json": [{"idx": 0, "name": "0", "path": "", "type": module}],
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": modalities,
            "module_output_name": "sentence_embedding",
            "processing_kwargs": {"chat_template": {"add_generation_prompt": True}},
        },
        "config_sentence_transformers.json": {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
    }
    for name, content in files.items():
        (repo / name).write_text(json.dumps(content))


def load_peer(repo: Path, dtype: torch.dtype, device: str = "cpu", attention: str = "sdpa"):
    """The same weights as a `SentenceTransformer`; they load by the package's classes, without code of their own.

    The vision attention is the stock one of the name, not ours.
    """
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(repo), device=device, model_kwargs={"dtype": dtype})
    model[0].model.set_attn_implementation(attention)
    return model


def summary_chat(text: str, image: Image.Image | None) -> list[dict]:
    """The prompt of our preset, spelled out as a chat, so that both sides feed the same tokens.

    Args:
        text (`str`): may be empty where there is an image.
        image (`Image`, *optional*).
    """
    if image is None:
        words = f"{text}\nSummary above sentence in one word:"
        return [{"role": "user", "content": [{"type": "text", "text": words}]}]

    if text:
        words = f"\n{text}\nSummary above image and sentence in one word:"
    else:
        words = "\nSummary above image in one word:"
    content = [{"type": "image", "image": image}, {"type": "text", "text": words}]
    return [{"role": "user", "content": content}]


# judges
def make_judge_backbone(folder: Path) -> Path:
    """A Qwen2-VL of hidden size 384 and 8 layers with random weights, which knows the words of a judge's prompt."""
    tokenizer = build_tokenizer([" ".join(WORDS), POINTWISE_INSTRUCTION, "Query: Candidate: Yes No"], vocab_size=800)
    tokenizer.model_max_length = 4096
    config = build_config(tokenizer, hidden_size=384, layers=8, vision_size=192, vision_layers=6, patch_size=14)

    # as Qwen2-VL reads images: up to 1024 tokens of 28 x 28 pixels
    pixels = {"shortest_edge": 28 * 28, "longest_edge": 1024 * 28 * 28}
    image_processor = Qwen2VLImageProcessorPil(patch_size=14, temporal_patch_size=1, merge_size=2, size=pixels)

    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    image_processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def timed_score(
    reranker: UniMERerankerForCausalLM, query: dict, candidates: list, share_prefix: bool
) -> tuple[float, torch.Tensor]:
    """Seconds, and scores `[C]`, of a query's candidates; the vision cache is emptied first, so no image is known."""
    reranker.vision_cache.entries.clear()

    start = time.perf_counter()
    scores = reranker.score(query, candidates, share_prefix=share_prefix, show_progress=False)
    return time.perf_counter() - start, scores
