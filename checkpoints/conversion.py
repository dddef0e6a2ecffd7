"""Checkpoints in other layouts: a stock VLM as a UniME repository and back, an adapter merged into its base."""

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ..modeling_unime import UniMEModel
from .exports import write_exports, write_json
from .opening import (
    UNIME_TYPES,
    base_of,
    local_folder,
    model_type_of,
    open_checkpoint,
)

HEAD_FILE = "lm_head.safetensors"  # the output head of a converted VLM, which an embedder has no use for


def convert(source, out, preset: str | None = None, reranker: bool = False, revision: str | None = None, **kwargs):
    """Writes a stock VLM as a UniME repository, remote code included; an untied output head is kept beside it."""
    folder = local_folder(source, revision)
    model = open_checkpoint(source, preset, reranker, **({"revision": revision} if revision else {}), **kwargs)
    model.save_pretrained(out)
    _keep_head(model, folder, out)
    return model


def _keep_head(model, folder: Path, out):
    """Keeps the untied output head of what an embedder was made from beside it, for `export`."""
    if isinstance(model, UniMEModel) and not _ties_head(model.config.vlm_config):
        head = _find_head(folder)
        if head is not None:
            save_file({"lm_head.weight": head}, Path(out) / HEAD_FILE, metadata={"format": "pt"})


def merge(source, out, base=None, preset: str | None = None, reranker: bool = False):
    """Writes a whole UniME repository from an adapter and what it was trained on."""
    folder = local_folder(source)
    if not (folder / "adapter_config.json").exists():
        raise ValueError(f"{source} is no adapter: it has no adapter_config.json.")
    base = base or base_of(folder)
    model = open_checkpoint(folder, preset, reranker, base)
    model.save_pretrained(out)
    _keep_head(model, local_folder(base), out)
    return model


def export(source, out, head=None):
    """Writes a UniME repository as a stock `*ForConditionalGeneration` checkpoint, and as a SentenceTransformer.

    Args:
        source: UniME folder or repository.
        out: folder to write.
        head (*optional*): stock checkpoint to take the output head from, for an embedder that has none by itself.

    Raises:
        ValueError: the output head is neither tied, nor kept by `convert`, nor given.
    """
    from transformers import AutoModelForImageTextToText

    folder, out = local_folder(source), Path(out)
    if model_type_of(folder) not in UNIME_TYPES:
        raise ValueError(f"{source} is no UniME repository but a {model_type_of(folder)}; there is nothing to export.")
    model = open_checkpoint(folder)
    stock = model.vlm
    vision = getattr(stock.config, "vision_config", None)
    if vision is not None and vision._attn_implementation == model.vision_attention:
        vision._attn_implementation = "sdpa"  # transformers knows no model under the name of ours
    if isinstance(model, UniMEModel):
        with torch.device("meta"):
            stock = AutoModelForImageTextToText.from_config(model.vlm.config, dtype=model.dtype)
        stock.model = model.vlm
        if _ties_head(model.config.vlm_config):
            stock.tie_weights()
        else:
            weight = load_file(folder / HEAD_FILE)["lm_head.weight"] if (folder / HEAD_FILE).exists() else None
            weight = _find_head(local_folder(head)) if head is not None else weight
            if weight is None:
                raise ValueError(
                    f"{source} keeps no output head; name the stock checkpoint it was made from (--head), for example "
                    f"{model.config.backbone!r}."
                )
            stock.get_output_embeddings().weight = torch.nn.Parameter(weight.to(model.dtype))
    stock.save_pretrained(out, **_published_names(stock))
    if (folder / "generation_config.json").exists():
        shutil.copy(folder / "generation_config.json", out)
    _save_stock_processor(model.processor, out)
    write_exports(model, out)


def _ties_head(config) -> bool:
    return bool(getattr(config, "tie_word_embeddings", False))


def _published_names(stock) -> dict:
    """Argument of `save_pretrained` where published files name CLIP and SigLIP otherwise than transformers 5 does."""
    if stock.config.model_type not in ("llava_next", "llava_onevision", "phi3_v"):
        return {}
    tower = re.compile(r"(vision_tower|img_processor)\.")
    return {"state_dict": {tower.sub(r"\1.vision_model.", name): value for name, value in stock.state_dict().items()}}


def _find_head(folder: Path) -> torch.Tensor | None:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for key in ("lm_head.weight", "language_model.lm_head.weight"):
                if key in weights.keys():  # noqa: SIM118 (a safetensors handle is no dict)
                    return weights.get_tensor(key)
    return None


def _save_stock_processor(processor, out: Path):
    """Image processor, tokenizer and chat template in the files that the backbone's own processor reads."""
    settings = dict(processor.backbone)
    name = settings.pop("processor_class")
    processor.tokenizer.save_pretrained(out)
    if processor.chat_template:
        (out / "chat_template.jinja").write_text(processor.chat_template, encoding="utf-8")
    images = json.loads(processor.image_processor.to_json_string())
    images["image_processor_type"] = images["image_processor_type"].removesuffix("Pil")
    images["processor_class"] = name
    write_json(out / "preprocessor_config.json", images)
    write_json(out / "processor_config.json", {"processor_class": name, **settings})
