"""Checkpoints in other layouts: a stock VLM as a UniME repository and back, an adapter merged into its base."""

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ..adapters_unime import adapter_folder, base_model_of
from ..files.writing import write_text
from ..integrity_unime import add_to_manifest, remove_manifest
from ..modeling_unime import UniMEModel, require_generating_class
from .exports import write_exports, write_json
from .opening import (
    UNIME_MODEL_TYPES,
    local_folder,
    model_type_of,
    open_checkpoint,
)

HEAD_FILE = "lm_head.safetensors"  # the output head of a converted VLM, which an embedder has no use for


def convert(source, out, preset: str | None = None, reranker: bool = False, revision: str | None = None, **kwargs):
    """Writes a stock VLM as a UniME repository, remote code included; an untied output head is kept beside it.

    Args:
        source (`str` or `Path`): folder or repository of the stock VLM.
        out (`str` or `Path`): folder to write.
        preset (`str`, *optional*): prompts; by default those of the published checkpoint, or `"summary"`.
        reranker (`bool`, defaults to `False`): make a reranker, not an embedder.
        revision (`str`, *optional*): branch, tag or commit of the repository.
        kwargs: for `from_backbone`, such as `trust_remote_code`.

    Returns:
        the model that was written.

    Raises:
        ValueError: a weight did not land, or the preset does not fit.

    Example:

    ```python
    convert("Qwen/Qwen2-VL-2B-Instruct", "outputs/embedder", preset="summary")
    ```
    """
    folder = local_folder(source, revision)
    if revision:
        kwargs["revision"] = revision

    # by its source, not its folder: a published preset goes by the repository's name
    model = open_checkpoint(source, preset, reranker, **kwargs)
    model.save_pretrained(out)
    _keep_head(model, folder, out)
    return model


def merge(source, out, base=None, preset: str | None = None, reranker: bool = False, trust_remote_code: bool = False):
    """Writes a whole UniME repository from an adapter and what it was trained on.

    Args:
        source (`str` or `Path`): folder or repository of a LoRA or DoRA adapter.
        out (`str` or `Path`): folder to write.
        base (*optional*): what the adapter was trained on; by default what its own file says.
        preset (`str`, *optional*): how items are read; by default as the adapter was trained, where its files or its
            name say that, else as its base is.
        reranker (`bool`, defaults to `False`): whether a stock VLM becomes a reranker; else it becomes an embedder.
        trust_remote_code (`bool`, defaults to `False`): run the code of the base's repository.

    Returns:
        the model that was written.

    Raises:
        ValueError: there is no adapter, or it was trained on another base.

    Example:

    ```python
    merge("outputs/adapter", "outputs/merged", preset="summary")
    ```
    """
    adapter = adapter_folder(local_folder(source))
    if adapter is None:
        raise ValueError(f"{source} is not an adapter: it has no adapter_config.json.")

    # an adapter names what it was trained on
    base = base or base_model_of(adapter)
    model = open_checkpoint(source, preset, reranker, base, trust_remote_code=trust_remote_code)
    model.save_pretrained(out)
    _keep_head(model, local_folder(base), out)
    return model


def export(source, out, head=None, trust_remote_code: bool = False):
    """Writes a UniME repository as a stock `*ForConditionalGeneration` checkpoint, and as a SentenceTransformer.

    Args:
        source (`str` or `Path`): UniME folder or repository.
        out (`str` or `Path`): folder to write.
        head (*optional*): stock checkpoint to take the output head from, for an embedder that has none by itself.
        trust_remote_code (`bool`, defaults to `False`): run the code of the repository.

    Raises:
        ValueError: it is not a UniME repository, or no stock class has a head for it, or the output head is neither
            tied, nor kept by `convert`, nor given.

    Example:

    ```python
    export("outputs/embedder", "outputs/served")
    ```
    """
    folder = local_folder(source)
    out = Path(out)
    model_type = model_type_of(folder)
    if model_type not in UNIME_MODEL_TYPES:
        raise ValueError(f"{source} is not a UniME repository but a {model_type}; there is nothing to export.")

    # what no stock class can hold is refused before anything is written
    model = open_checkpoint(folder, trust_remote_code=trust_remote_code)
    require_generating_class(model.vlm.config, source)
    if getattr(model.config, "head", None) is not None:
        raise ValueError(
            f"{source} has a ranking head in the place of its output head, for which no stock class has a name; serve "
            "it as a saved UniME model."
        )

    # transformers does not know a model under the name of our attention
    vision = getattr(model.vlm.config, "vision_config", None)
    if vision is not None and vision._attn_implementation == model.vision_attention:
        vision._attn_implementation = "sdpa"

    # a reranker has its output head
    stock = model.vlm
    if isinstance(model, UniMEModel):
        stock = _with_head(model, folder, source, head)

    remove_manifest(out)  # of a UniME model that lay there
    stock.save_pretrained(out, **_published_names(stock))
    if (folder / "generation_config.json").exists():
        shutil.copy(folder / "generation_config.json", out)
    _save_stock_processor(model.processor, out)
    _remove_references_to_code(out)
    write_exports(model, out)


def _with_head(model, folder: Path, source, head):
    """The stock model that an embedder is the inside of, with its output head."""
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):  # its weights come from the embedder
        stock = AutoModelForImageTextToText.from_config(model.vlm.config, dtype=model.dtype)
    stock.model = model.vlm

    # a tied head is the embeddings of the tokens
    if _ties_head(model.config.vlm_config):
        stock.tie_weights()
        return stock

    if head is not None:
        weight = _find_head(local_folder(head))
    elif (folder / HEAD_FILE).exists():
        weight = load_file(folder / HEAD_FILE)["lm_head.weight"]
    else:
        weight = None

    if weight is None:
        raise ValueError(
            f"{source} keeps no output head; name the stock checkpoint it was made from (--head), for example "
            f"{model.config.backbone!r}."
        )
    stock.get_output_embeddings().weight = torch.nn.Parameter(weight.to(model.dtype))
    return stock


def _keep_head(model, folder: Path, out):
    """Keeps the untied output head of what an embedder was made from beside it, for `export`."""
    if not isinstance(model, UniMEModel) or _ties_head(model.config.vlm_config):
        return

    # the manifest was written with the model, before this file
    head = _find_head(folder)
    if head is not None:
        save_file({"lm_head.weight": head}, Path(out) / HEAD_FILE, metadata={"format": "pt"})
        add_to_manifest(out, HEAD_FILE)


def _ties_head(config) -> bool:
    """Whether the output head is the table of word embeddings."""
    return bool(getattr(config, "tie_word_embeddings", False))


def _find_head(folder: Path) -> torch.Tensor | None:
    """The output head `[vocabulary, H]` in the weight files of a folder, under its new or old name."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for key in ("lm_head.weight", "language_model.lm_head.weight"):
                if key in weights.keys():  # noqa: SIM118 (a safetensors handle is not a dict)
                    return weights.get_tensor(key)
    return None


def _published_names(stock) -> dict:
    """Argument of `save_pretrained` where published files name CLIP and SigLIP otherwise than transformers 5 does."""
    if stock.config.model_type not in ("llava_next", "llava_onevision", "phi3_v"):
        return {}

    tower = re.compile(r"(vision_tower|img_processor)\.")
    weights = {}
    for name, weight in stock.state_dict().items():
        weights[tower.sub(r"\1.vision_model.", name)] = weight
    return {"state_dict": weights}


def _save_stock_processor(processor, out: Path):
    """Image processor, tokenizer and chat template in the files that the backbone's own processor reads."""
    settings = dict(processor.backbone)
    processor_class = settings.pop("processor_class")
    processor.tokenizer.save_pretrained(out)
    if processor.chat_template:
        write_text(out / "chat_template.jinja", processor.chat_template)

    # Pillow's class of an image processor is called by its plain name in files
    images = json.loads(processor.image_processor.to_json_string())
    images["image_processor_type"] = images["image_processor_type"].removesuffix("Pil")
    images["processor_class"] = processor_class
    write_json(out / "preprocessor_config.json", images)
    write_json(out / "processor_config.json", {"processor_class": processor_class, **settings})


def _remove_references_to_code(out: Path):
    """Removes what the files of a folder say about code that is not in it, as it was in the UniME repository."""
    for file in out.glob("*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        auto_map = content.get("auto_map")
        if auto_map is None:
            continue

        content["auto_map"] = {}
        for auto_class, reference in auto_map.items():
            # a tokenizer has two classes, a slow one and a fast one, of which one may be missing
            references = [reference] if isinstance(reference, str) else [name for name in reference if name]
            if all("--" in name or (out / f"{name.split('.')[0]}.py").exists() for name in references):
                content["auto_map"][auto_class] = reference

        if not content["auto_map"]:
            del content["auto_map"]
        write_json(file, content)
