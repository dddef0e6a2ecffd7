"""Opening any checkpoint: UniME models, stock VLMs, and adapters over either, which are merged."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError

from ..integrity_unime import SavedFiles
from ..modeling_unime import UniMEModel, UniMERerankerForCausalLM
from ..processing_unime import SETTINGS, UniMEProcessor
from ..prompts_unime import published_preset

HUB_ERRORS = (OSError, *HfHubHTTPError.__bases__)  # among them the base class of whichever httpx it uses
UNIME_MODEL_TYPES = ("unime", "unime_reranker")  # what `config.json` calls our models

# Module paths of transformers 4.4x, and of the wrappers adapters were trained in: pattern -> present name
_EARLIER_NAMES = (
    (r"^(?:encoder|vlm|model)\.", ""),
    (r"^language_model\.model\.", "language_model."),
    (r"^vision_tower\.vision_model\.", "vision_tower."),
    (r"^layers\.", "language_model.layers."),
)

# what is not downloaded where weights are not needed
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack", "*.onnx")


def local_folder(source, revision: str | None = None, weights: bool = True) -> Path:
    """The folder of a checkpoint, downloaded if it is a repository.

    Args:
        source (`str` or `Path`): folder, or repository on the Hub.
        revision (`str`, *optional*): branch, tag or commit of the repository.
        weights (`bool`, defaults to `True`): download them too.

    Raises:
        ValueError: there is no such folder, the Hub does not give such a repository, or a weight file that was
            downloaded is not the one that was saved.
    """
    if Path(source).is_dir():
        return Path(source)

    from huggingface_hub import snapshot_download

    # the manifest is asked before the download: only files that were not here yet are read once more
    try:
        if not weights:
            return Path(snapshot_download(str(source), revision=revision, ignore_patterns=list(_WEIGHTS)))
        downloaded = SavedFiles(str(source), {"revision": revision}).absent_weights()
        folder = Path(snapshot_download(str(source), revision=revision))
    except (*HUB_ERRORS, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{source} is not a folder here, and is not available from the Hub: {reason}") from error
    SavedFiles(folder).verify(downloaded)
    return folder


def open_checkpoint(
    source, preset: str | None = None, reranker: bool = False, base=None, weights: bool = True, **kwargs
):
    """Opens a UniME checkpoint, a stock VLM, or an adapter over either, which is merged into it.

    Args:
        source (`str` or `Path`): folder or repository.
        preset (`str`, *optional*): how items are read, all of it: prompts, positions, resolution, fusion, limit and
            padding. By default as the checkpoint was saved, or as a published one of its name was trained.
        reranker (`bool`, defaults to `False`): whether a stock VLM becomes a reranker; else it becomes an embedder.
        base (*optional*): what an adapter was trained on; by default what its own file says.
        weights (`bool`, defaults to `True`): load them; otherwise they are on the meta device, and nothing is merged.
        kwargs: for `from_backbone` or `from_pretrained`; settings of the processor among them go before the preset's.
            Code of a repository, of an adapter's base too, runs only with `trust_remote_code=True`; a saved UniME
            model is opened by the classes of this package without it.

    Returns:
        [`UniMEModel`] or [`UniMERerankerForCausalLM`].

    Raises:
        ValueError: `preset` does not fit the checkpoint, a weight did not land, or the checkpoint needs code of its
            repository, which was not trusted.

    Example:

    ```python
    model = open_checkpoint("Qwen/Qwen2-VL-2B-Instruct", preset="summary")
    ```
    """
    folder = local_folder(source, kwargs.get("revision"), weights)

    adapter = adapter_folder(folder)
    if adapter is not None:
        kwargs.pop("revision", None)  # of the adapter, not of its base
        if preset is None:  # what the adapter was trained with, its base does not know
            kwargs = {**_saved_settings(adapter), **kwargs}
            preset = kwargs.pop("preset", None) or published_preset(source)

        model = open_checkpoint(base or base_model_of(adapter), preset, reranker, weights=weights, **kwargs)
        if not weights:
            return model

        # PEFT froze what it was put on, and the merged model may be trained on
        merged = load_adapter(model, adapter).merge_and_unload()
        for parameter in merged.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        return merged

    model_type = model_type_of(folder)
    with naming_untrusted_code(source):
        if model_type not in UNIME_MODEL_TYPES:
            model_class = UniMERerankerForCausalLM if reranker else UniMEModel
            return model_class.from_backbone(source, preset, weights=weights, **kwargs)

        model_class = UniMEModel if model_type == "unime" else UniMERerankerForCausalLM
        model = model_class.from_pretrained(source, preset=preset, weights=weights, **kwargs)
        _ = model.processor  # it is read on first use, and what is wrong with it is to be known now
    return model


def open_processor(source, preset: str | None = None, **kwargs) -> tuple[UniMEProcessor, bool]:
    """Opens what a checkpoint reads items with, without its weights.

    Args:
        source (`str` or `Path`): folder or repository of any checkpoint that [`open_checkpoint`] opens.
        preset (`str`, *optional*): as there.
        kwargs: `revision`, `trust_remote_code` and settings of the processor, as there.

    Returns:
        the processor, and whether the checkpoint is a saved reranker.

    Raises:
        ValueError: as [`open_checkpoint`].
    """
    folder = local_folder(source, kwargs.get("revision"))
    adapter = adapter_folder(folder)
    if adapter is not None:
        kwargs.pop("revision", None)  # of the adapter, not of its base
        if preset is None:
            kwargs = {**_saved_settings(adapter), **kwargs}
            preset = kwargs.pop("preset", None) or published_preset(source)
        return open_processor(base_model_of(adapter), preset, **kwargs)

    model_type = model_type_of(folder)
    with naming_untrusted_code(source):
        if model_type in UNIME_MODEL_TYPES:
            processor = UniMEProcessor.from_pretrained(source, preset=preset, **kwargs)
        else:
            processor = UniMEProcessor.from_backbone(source, preset, **kwargs)
    return processor, model_type == "unime_reranker"


def adapter_folder(folder: Path) -> Path | None:
    """Where in a folder an adapter lies: in itself, or, where there is no model in it, in `lora/`; `None` if nowhere.

    Args:
        folder (`Path`): of any checkpoint.
    """
    candidates = [folder]
    if not any(folder.glob("*.safetensors")):
        candidates.append(folder / "lora")  # as in TIGER-Lab/VLM2Vec-Qwen2VL-7B
    for candidate in candidates:
        if (candidate / "adapter_config.json").exists():
            return candidate
    return None


def _saved_settings(adapter: Path) -> dict:
    """Preset and settings of the processor that was saved beside an adapter; empty if it is not ours."""
    file = adapter / "processor_config.json"
    if not file.exists():
        return {}

    # a stock processor has a file of the same name
    content = SavedFiles(adapter).json(file.name)
    if content.get("processor_class") != UniMEProcessor.__name__:
        return {}
    return {name: content[name] for name in ("preset", *SETTINGS) if name in content}


def open_sentence_transformer(source, device, trust_remote_code: bool = False, **kwargs):
    """Opens any sentence-transformers model; a saved UniME embedder by this package's own class, which needs no trust.

    Args:
        source (`str` or `Path`): folder or repository.
        device: where the model is put.
        trust_remote_code (`bool`, defaults to `False`): run the code of the repository.
        kwargs: for `SentenceTransformer`.

    Returns:
        `SentenceTransformer`.

    Raises:
        ValueError: the model needs code of its repository, which was not trusted.

    Example:

    ```python
    model = open_sentence_transformer("outputs/quickstart/model", "cpu")
    ```
    """
    from sentence_transformers import SentenceTransformer

    from ..sentence_transformers_unime import UniMETransformer

    # `modules.json` of a saved embedder names our class by the file that travels with it; that file is not run
    name = f"{UniMETransformer.__module__.rpartition('.')[2]}.{UniMETransformer.__name__}"
    options = {"device": str(device), "trust_remote_code": trust_remote_code, **kwargs}
    with naming_untrusted_code(source):
        return SentenceTransformer._load_with_module_classes(str(source), {name: UniMETransformer}, **options)


@contextmanager
def naming_untrusted_code(source) -> Iterator[None]:
    """Turns the error of a loader that was not allowed to run a repository's code into one that says how to allow it.

    Args:
        source: the folder or repository, for the message.

    Raises:
        ValueError: in the place of the loader's own.
    """
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{source} needs code of its repository. Read that code, then allow it with `trust_remote_code=True` "
            "(`--trust-remote-code` on the command line)."
        ) from error


def model_type_of(folder: Path) -> str | None:
    """What the `config.json` of a checkpoint calls its model: one of `UNIME_MODEL_TYPES`, `"qwen2_vl"`, ...

    Raises:
        ValueError: there is no `config.json`.
    """
    config = SavedFiles(folder).json("config.json")
    if config is None:
        raise ValueError(f"{folder} is not a checkpoint: it has neither config.json nor adapter_config.json.")

    return config.get("model_type")


def base_model_of(adapter: Path) -> str:
    """The folder or repository of the model that an adapter was trained on, as its `adapter_config.json` says.

    Raises:
        ValueError: it does not say.
    """
    config = SavedFiles(adapter).json("adapter_config.json") or {}
    base = config.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{adapter} does not say which model it is an adapter of; name it with `base`.")
    return base


def require_kind(model, source, reranker: bool):
    """Refuses a reranker where an embedder is needed, and the other way round.

    Args:
        model: opened by [`open_checkpoint`].
        source: folder or repository, for the message.
        reranker (`bool`): which of the two is needed.

    Raises:
        ValueError: the model is the other of the two.
    """
    if isinstance(model, UniMERerankerForCausalLM) == reranker:
        return
    if reranker:
        raise ValueError(f"{source} is an embedder; a reranker or a stock VLM is needed.")
    raise ValueError(f"{source} is a reranker; an embedder or a stock VLM is needed.")


def load_adapter(model, path):
    """Puts a LoRA or DoRA adapter on a model, whichever key layout it was saved in, and checks that it landed.

    Args:
        model ([`UniMEModel`] or [`UniMERerankerForCausalLM`]): what the adapter was trained on.
        path: folder of the adapter.

    Returns:
        `peft.PeftModel` around `model`; `merge_and_unload()` gives the merged model.

    Raises:
        ValueError: a weight of the adapter has no place in the model, or has another shape: it was trained on another
            base.

    Example:

    ```python
    model = load_adapter(UniMEModel.from_pretrained("me/my-embedder"), "outputs/adapter").merge_and_unload()
    ```
    """
    from peft import PeftConfig, PeftModel, set_peft_model_state_dict

    modules = dict(model.named_modules())
    weights, targets = _renamed_weights(path, modules)

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

    missing = [key for key in result.missing_keys if "lora_" in key]
    if missing or result.unexpected_keys:
        raise ValueError(
            f"the adapter {path} did not land: missing {missing[:4]}, unexpected {result.unexpected_keys[:4]}."
        )
    return adapted.eval()


def _renamed_weights(path, modules: dict) -> tuple[dict, set[str]]:
    """An adapter's weights under the names of the model's own modules, and the names of these modules."""
    weights = {}
    targets = set()
    for key, weight in _adapter_weights(path).items():
        if not weight.is_floating_point():
            raise ValueError(f"the adapter {path}: {key} is of type {weight.dtype}, which is not a type of weights.")
        match = re.fullmatch(r"base_model\.model\.(.+?)\.(lora_.+)", key)
        name = _present_name(match[1], modules) if match else None
        if name is None:
            raise ValueError(f"the adapter {path} was trained on another base: {key} has no place in this model.")
        targets.add(name)
        weights[f"base_model.model.{name}.{match[2]}"] = weight

    if not targets:
        raise ValueError(f"the adapter {path} has no weights.")
    return weights, targets


def _adapter_weights(path) -> dict:
    """The weights of an adapter as they are stored."""
    from peft.utils import load_peft_weights

    try:
        return load_peft_weights(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"the adapter {path} cannot be read: adapter_model.safetensors: {error}") from error


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
