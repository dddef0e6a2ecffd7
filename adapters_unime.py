"""Adapters (LoRA, DoRA) of any age: where they lie, what they were trained on, and merging them without a loss."""

import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import is_peft_available

from .integrity_unime import SavedFiles
from .preset_files_unime import preset_from
from .prompts_unime import PRESETS

_CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_SUBFOLDERS = ("", "lora/")  # the second as in TIGER-Lab/VLM2Vec-Qwen2VL-7B
_TASKS = "adapters/"  # as in jinaai/jina-embeddings-v4

# Module paths of transformers 4.4x, and of the wrappers adapters were trained in: pattern -> present name
_EARLIER_NAMES = (
    (r"^(?:encoder|vlm|model)\.", ""),
    (r"^language_model\.model\.", "language_model."),
    (r"^vision_tower\.vision_model\.", "vision_tower."),
    (r"^layers\.", "language_model.layers."),
)


# where it is, and what it belongs to
def adapter_folder(source, hub: dict | None = None) -> Path | None:
    """The folder of an adapter: of the source itself or, where there is no model in it, its `lora/`.

    Args:
        source (`str` or `Path`): folder or repository of any checkpoint.
        hub (`dict`, *optional*): `revision`, `token`, ... for the Hub.

    Returns:
        `Path`, with the adapter's files in it; `None` if the checkpoint is not an adapter.
    """
    files = SavedFiles(source, hub)
    for subfolder in _SUBFOLDERS:
        if subfolder and files.weight_files():
            continue
        adapter = _folder_with_adapter(files, subfolder)
        if adapter is not None:
            return adapter
    return None


def folder_of_tasks(files: SavedFiles) -> Path | None:
    """The folder of the adapters that a checkpoint has for several tasks, beside the weights that they belong to.

    Args:
        files ([`SavedFiles`]): of the checkpoint.

    Returns:
        `Path` of its `adapters/`, with one file of weights for all tasks; `None` if it has none.
    """
    return _folder_with_adapter(files, _TASKS)


def _folder_with_adapter(files: SavedFiles, subfolder: str) -> Path | None:
    """A folder of a checkpoint, if an adapter is in it."""
    config = files.file(subfolder + _CONFIG)
    if config is None:
        return None

    # of a repository, asking for a file downloads it
    for name in _WEIGHTS:
        if files.file(subfolder + name):
            break
    return Path(config).parent


def base_model_of(adapter: Path) -> str:
    """The model that an adapter was trained on, as its `adapter_config.json` says.

    Args:
        adapter (`Path`): folder of the adapter.

    Returns:
        `str`: the folder that it names; else a folder of the same last name beside the adapter; else a repository.

    Raises:
        ValueError: it does not say.
    """
    config = SavedFiles(adapter).json(_CONFIG) or {}
    base = config.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{adapter} does not say which model it is an adapter of; name it with `base`.")

    if Path(base).is_dir():
        return base

    # an adapter in a subfolder lies beside what its repository lies beside
    repository = adapter.absolute()
    if repository.name == "lora":
        repository = repository.parent
    neighbour = repository.parent / Path(base).name
    return str(neighbour) if neighbour.is_dir() else base


def saved_settings(adapter: Path, names) -> dict:
    """Preset and settings of the processor of ours that was saved beside an adapter; empty if there is none.

    Args:
        adapter (`Path`): folder of the adapter.
        names: of the settings.
    """
    content = SavedFiles(adapter).json("processor_config.json") or {}
    if content.get("processor_class") != "UniMEProcessor":  # a stock processor has a file of the same name
        return {}
    settings = {name: content[name] for name in ("preset", *names) if name in content}
    if content.get("preset_rules") is not None:
        settings["preset"] = preset_from(content["preset_rules"], PRESETS, settings["preset"], str(adapter))
    return settings


# loading
def merge_adapter(model, adapter, task: str | None = None, unused=()):
    """Merges an adapter into the model that it was trained on.

    Args:
        model ([`UniMEModel`] or [`UniMERerankerForCausalLM`]): what the adapter was trained on.
        adapter: folder of the adapter.
        task (`str`, *optional*), unused (`tuple[str, ...]`): as in [`load_adapter`].

    Returns:
        the same model, whose weights may be trained on.

    Raises:
        ValueError: as [`load_adapter`].
    """
    merged = load_adapter(model, adapter, task, unused).merge_and_unload()

    # PEFT froze what it was put on
    for parameter in merged.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return merged


def load_adapter(model, path, task: str | None = None, unused=()):
    """Puts a LoRA or DoRA adapter on a model, whichever key layout it was saved in, and checks that it landed.

    With the classes of transformers 5, PEFT by itself loads nothing of an adapter from before transformers 4.52, and
    only warns.

    Args:
        model ([`UniMEModel`] or [`UniMERerankerForCausalLM`]): what the adapter was trained on.
        path: folder of the adapter, whose weights are in safetensors or in a `.bin` file.
        task (`str`, *optional*): which adapter to take of a file that has one for each of several tasks.
        unused (`tuple[str, ...]`): beginnings of the names of modules that the model does without.

    Returns:
        `peft.PeftModel` around `model`; `merge_and_unload()` gives the merged model.

    Raises:
        ImportError: PEFT is not installed.
        ValueError: a weight of the adapter has no place in the model, has another shape or is missing.

    Example:

    ```python
    model = load_adapter(UniMEModel.from_pretrained("me/my-embedder"), "outputs/adapter").merge_and_unload()
    ```
    """
    # PEFT takes as long to load as torch, and with it bitsandbytes, which warns on machines without a GPU
    if is_peft_available():
        from peft import PeftConfig, PeftModel, set_peft_model_state_dict
    else:
        raise ImportError(f"{path} is an adapter, which needs PEFT: pip install peft")

    modules = dict(model.named_modules())
    weights = adapter_weights(path)
    if task is not None:
        weights = _of_task(weights, task, path)
    weights, targets = _renamed_weights(weights, path, modules, unused)

    # settings of single modules follow the names of their modules
    config = PeftConfig.from_pretrained(path)
    config.target_modules = sorted(targets)
    config.task_type = None
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = getattr(config, name) or {}
        setattr(config, name, {_present_name(key, modules) or key: value for key, value in pattern.items()})

    adapted = PeftModel(model, config)
    try:
        result = set_peft_model_state_dict(adapted, weights)
    except RuntimeError as error:
        raise ValueError(f"the adapter {path} was trained on another base: {error}") from error

    # what does not land would silently leave the base as it is
    missing = [key for key in result.missing_keys if "lora_" in key]
    if missing or result.unexpected_keys:
        raise ValueError(
            f"the adapter {path} did not land: missing {missing[:4]}, unexpected {result.unexpected_keys[:4]}."
        )
    return adapted.eval()


def _of_task(weights: dict, task: str, path) -> dict:
    """The weights of one task, under the names that they would have without the others."""
    task_weights = {}
    tasks = set()
    for key, weight in weights.items():
        match = re.fullmatch(r"(.+\.lora_[AB])\.([^.]+)\.(weight|bias)", key)
        if match is None:
            raise ValueError(f"the adapter {path}: {key} does not say which task it belongs to.")

        # the others are named where this one is not among them
        tasks.add(match[2])
        if match[2] == task:
            task_weights[f"{match[1]}.{match[3]}"] = weight

    if not task_weights:
        raise ValueError(f"the adapter {path} has no task {task!r}; it has {', '.join(sorted(tasks))}.")
    return task_weights


def _renamed_weights(weights: dict, path, modules: dict, unused=()) -> tuple[dict, set[str]]:
    """An adapter's weights under the names of the model's own modules, and the names of these modules."""
    renamed = {}
    targets = set()
    for key, weight in weights.items():
        if not weight.is_floating_point():
            raise ValueError(f"the adapter {path}: {key} is of type {weight.dtype}, which is not a type of weights.")

        # what the base does not have any more, such as its head, may be left out
        match = re.fullmatch(r"base_model\.model\.(.+?)\.(lora_.+)", key)
        if match and f"{match[1]}.".startswith(tuple(unused)):
            continue
        name = _present_name(match[1], modules) if match else None
        if name is None:
            raise ValueError(f"the adapter {path} was trained on another base: {key} has no place in this model.")

        targets.add(name)
        renamed[f"base_model.model.{name}.{match[2]}"] = weight

    if not targets:
        raise ValueError(f"the adapter {path} has no weights.")
    return renamed, targets


def adapter_weights(path) -> dict[str, torch.Tensor]:
    """The weights of an adapter by the names in its file; of a `.bin` file, tensors are read and no code is run.

    Args:
        path: folder of the adapter.

    Raises:
        ValueError: there is no such file, or it is damaged.
    """
    for name in _WEIGHTS:
        file = Path(path) / name
        if not file.exists():
            continue
        try:
            weights = load_file(file) if file.suffix == ".safetensors" else _load_pickle(file)
        except (SafetensorError, OSError, EOFError, RuntimeError) as error:
            raise ValueError(f"the adapter {path} cannot be read: {name}: {error}") from error

        # a pickle may hold anything
        if not all(isinstance(weight, torch.Tensor) for weight in weights.values()):
            raise ValueError(f"the adapter {path} cannot be read: {name}: not every entry is a tensor.")
        return weights
    raise ValueError(f"the adapter {path} cannot be read: it has neither {_WEIGHTS[0]} nor {_WEIGHTS[1]}.")


def _load_pickle(file: Path) -> dict:
    """The dictionary of a `.bin` file."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # whose advice is to run what is in the file
        raise RuntimeError("it is damaged, or holds more than tensors, which is not read.") from error
    if not isinstance(content, dict):
        raise RuntimeError(f"it holds a {type(content).__name__}, not a dictionary of tensors.")
    return content


def _present_name(path: str, modules: dict) -> str | None:
    """The name of the module that an adapter's path means, by its present or an earlier name."""
    # every name that the rules lead to, applied once or one after the other
    candidates = [path]
    for candidate in candidates:  # grows while it is read
        for pattern, replacement in _EARLIER_NAMES:
            renamed = re.sub(pattern, replacement, candidate)
            if renamed not in candidates:
                candidates.append(renamed)

    for candidate in candidates:
        for prefix in ("", "vlm.", "vlm.model."):
            if prefix + candidate in modules:
                return prefix + candidate
    return None


__all__ = [
    "adapter_folder",
    "adapter_weights",
    "base_model_of",
    "folder_of_tasks",
    "load_adapter",
    "merge_adapter",
    "saved_settings",
]
