"""Checkpoints in and out: adapters, and the commands `unime convert`, `unime export` and `unime merge`."""

import json
import re
from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError

from ..modeling_unime import UniMEModel, UniMERerankerForCausalLM
from ..prompts_unime import find_preset

HUB_ERRORS = (OSError, *HfHubHTTPError.__bases__)  # among them the base class of whichever httpx it uses
UNIME_TYPES = ("unime", "unime_reranker")
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
        model = open_checkpoint(base or base_of(folder), preset, reranker, change_preset=change_preset, **kwargs)
        return load_adapter(model, folder).merge_and_unload()
    model_type = model_type_of(folder)
    if model_type not in UNIME_TYPES:
        return (UniMERerankerForCausalLM if reranker else UniMEModel).from_backbone(source, preset, **kwargs)
    model = (UniMEModel if model_type == "unime" else UniMERerankerForCausalLM).from_pretrained(source, **kwargs)
    if change_preset and preset is not None:
        model.processor.preset = find_preset(source, model.config.vlm_config.model_type, preset)
    elif preset not in (None, model.processor.preset):
        raise ValueError(
            f"{source} was made with the preset {model.processor.preset!r}, not {preset!r}; leave `preset` out."
        )
    return model


def model_type_of(folder: Path) -> str | None:
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} is no checkpoint: it has no config.json.")
    return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")


def base_of(adapter: Path) -> str:
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
