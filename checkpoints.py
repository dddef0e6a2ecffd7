"""Checkpoints in and out: adapters, and the commands `unime convert`, `unime export` and `unime merge`."""

import argparse
import json
import re
import shutil
from pathlib import Path

import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from .exports import write_exports, write_json
from .modeling_unime import UniMEModel, UniMERerankerForCausalLM
from .prompts_unime import PRESETS, find_preset

HEAD_FILE = "lm_head.safetensors"  # the output head of a converted VLM, which an embedder has no use for
HUB_ERRORS = (OSError, *HfHubHTTPError.__bases__)  # among them the base class of whichever httpx it uses
_OURS = ("unime", "unime_reranker")
_RENAMED = (  # module paths of transformers 4.4x, and of the wrappers adapters were trained in
    (r"^(?:encoder|vlm|model)\.", ""),
    (r"^language_model\.model\.", "language_model."),
    (r"^vision_tower\.vision_model\.", "vision_tower."),
    (r"^layers\.", "language_model.layers."),
)


def local_folder(source, revision: str | None = None) -> Path:
    """The folder of a checkpoint, downloaded if it is a repository."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), revision=revision))
    except (*HUB_ERRORS, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{source} is no folder here, and cannot be had from the Hub: {reason}") from error


def open_checkpoint(
    source, preset: str | None = None, reranker: bool = False, base=None, change_preset: bool = False, **kwargs
):
    """Opens a UniME checkpoint, a stock VLM, or an adapter over either, which is merged into it.

    Args:
        source: folder or repository.
        preset (`str`, *optional*): for a stock VLM.
        reranker (`bool`): whether a stock VLM becomes a reranker; else it becomes an embedder.
        base (*optional*): what an adapter was trained on; by default what its own file says.
        change_preset (`bool`): give a UniME checkpoint the prompts of another preset, because it is to be trained on.
        kwargs: for `from_pretrained`.

    Raises:
        ValueError: `preset` does not fit the checkpoint, or a weight did not land.
    """
    folder = local_folder(source, kwargs.get("revision"))
    if (folder / "adapter_config.json").exists():
        kwargs.pop("revision", None)
        model = open_checkpoint(base or _base_of(folder), preset, reranker, change_preset=change_preset, **kwargs)
        return load_adapter(model, folder).merge_and_unload()
    model_type = _model_type(folder)
    if model_type not in _OURS:
        return (UniMERerankerForCausalLM if reranker else UniMEModel).from_backbone(source, preset, **kwargs)
    model = (UniMEModel if model_type == "unime" else UniMERerankerForCausalLM).from_pretrained(source, **kwargs)
    if change_preset and preset is not None:
        model.processor.preset = find_preset(source, model.config.vlm_config.model_type, preset)
    elif preset not in (None, model.processor.preset):
        raise ValueError(
            f"{source} was made with the preset {model.processor.preset!r}, not {preset!r}; leave `preset` out."
        )
    return model


def _model_type(folder: Path) -> str | None:
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} is no checkpoint: it has no config.json.")
    return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")


def _base_of(adapter: Path) -> str:
    base = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{adapter} does not say which model it is an adapter of; name it with `base`.")
    return base


def load_adapter(model, path):
    """Puts a LoRA or DoRA adapter on a model, whichever key layout it was saved in, and checks that it landed.

    Args:
        model (`UniMEModel` or `UniMERerankerForCausalLM`).
        path: folder of the adapter.

    Returns:
        `peft.PeftModel` around `model`; `merge_and_unload()` gives the merged model.

    Raises:
        ValueError: a weight of the adapter has no place in the model, or has another shape: it was trained on another
            base.
    """
    from peft import PeftConfig, PeftModel, set_peft_model_state_dict
    from peft.utils import load_peft_weights

    config = PeftConfig.from_pretrained(path)
    modules = dict(model.named_modules())
    targets, weights = set(), {}
    for key, weight in load_peft_weights(path, device="cpu").items():
        found = re.fullmatch(r"base_model\.model\.(.+?)\.(lora_.+)", key)
        place = found and _place(found[1], modules)
        if place is None:
            raise ValueError(f"the adapter {path} was trained on another base: {key} has no place in this model.")
        targets.add(place)
        weights[f"base_model.model.{place}.{found[2]}"] = weight
    if not targets:
        raise ValueError(f"the adapter {path} holds no weight.")
    config.target_modules, config.task_type = sorted(targets), None
    for pattern in ("rank_pattern", "alpha_pattern"):
        renamed = {_place(key, modules) or key: value for key, value in (getattr(config, pattern) or {}).items()}
        setattr(config, pattern, renamed)
    adapted = PeftModel(model, config)
    try:
        result = set_peft_model_state_dict(adapted, weights)
    except RuntimeError as error:
        raise ValueError(f"the adapter {path} was trained on another base: {error}") from error
    missing = [key for key in result.missing_keys if "lora_" in key]
    if missing or result.unexpected_keys:
        raise ValueError(
            f"the adapter {path} did not land: missing {missing[:4]}, unexpected {result.unexpected_keys[:4]}."
        )
    return adapted.eval()


def _place(path: str, modules: dict) -> str | None:
    """The module that an adapter's path means, by its present or an earlier name."""
    forms = [path]
    for form in forms:  # grows while it is read
        for pattern, replacement in _RENAMED:
            renamed = re.sub(pattern, replacement, form)
            if renamed not in forms:
                forms.append(renamed)
    names = (prefix + form for form in forms for prefix in ("", "vlm.", "vlm.model."))
    return next((name for name in names if name in modules), None)


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
    base = base or _base_of(folder)
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
    if _model_type(folder) not in _OURS:
        raise ValueError(f"{source} is no UniME repository but a {_model_type(folder)}; there is nothing to export.")
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


def main(arguments=None):
    """The command `unime`."""
    parser = argparse.ArgumentParser(prog="unime", description="Convert, export and merge checkpoints.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("convert", "stock VLM -> UniME repository"),
        ("export", "UniME repository -> stock VLM checkpoint and SentenceTransformer"),
        ("merge", "LoRA or DoRA adapter -> whole UniME repository"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("source", help="folder or Hub repository")
        command.add_argument("out", help="folder to write")
        if name == "export":
            command.add_argument("--head", help="stock checkpoint to take the output head from")
            continue
        command.add_argument("--preset", choices=sorted(PRESETS), help="prompts, for a stock VLM")
        command.add_argument("--reranker", action="store_true", help="make a reranker, not an embedder")
        if name == "merge":
            command.add_argument("--base", help="what the adapter was trained on (default: what its file says)")
        else:
            command.add_argument("--revision", help="branch, tag or commit of the repository")
    options = vars(parser.parse_args(arguments))
    run = {"convert": convert, "export": export, "merge": merge}[options.pop("command")]
    try:
        run(**options)
    except ValueError as error:
        raise SystemExit(f"unime: {error}") from error
    print(f"written to {options['out']}")


if __name__ == "__main__":
    main()
