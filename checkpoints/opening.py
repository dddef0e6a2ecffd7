"""Opening any checkpoint: UniME models, stock VLMs, and adapters over either, which are merged."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError

from ..adapters_unime import adapter_folder, base_model_of, saved_settings
from ..integrity_unime import SavedFiles
from ..modeling_unime import UniMEModel, UniMERerankerForCausalLM
from ..processing_unime import SETTINGS, UniMEProcessor
from ..recognition_unime import preset_of_adapter

HUB_ERRORS = (OSError, *HfHubHTTPError.__bases__)  # among them the base class of whichever httpx it uses
UNIME_MODEL_TYPES = ("unime", "unime_reranker")  # what `config.json` calls our models

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
        base = base or base_model_of(adapter)

    # an adapter's model is what its base is
    model_type = model_type_of(folder) if adapter is None else _type_below(base)
    model_class = UniMEModel
    if model_type == "unime_reranker" or (reranker and model_type not in UNIME_MODEL_TYPES):
        model_class = UniMERerankerForCausalLM

    with naming_untrusted_code(base or source):
        if adapter is not None or model_type not in UNIME_MODEL_TYPES:
            return model_class.from_backbone(source, preset, weights=weights, base=base, **kwargs)
        model = model_class.from_pretrained(source, preset=preset, weights=weights, **kwargs)
        _ = model.processor  # it is read on first use, and what is wrong with it is to be known now
    return model


def _type_below(source) -> str | None:
    """What `config.json` calls the model that adapters end at."""
    folder = local_folder(source, weights=False)
    adapter = adapter_folder(folder)
    return model_type_of(folder) if adapter is None else _type_below(base_model_of(adapter))


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
        base = base_model_of(adapter)

        # an adapter of ours keeps its preset itself
        if preset is None:
            kwargs = {**saved_settings(adapter, SETTINGS), **kwargs}
            preset = kwargs.pop("preset", None)
        if preset is None and _type_below(base) not in UNIME_MODEL_TYPES:
            preset = preset_of_adapter(source)
        return open_processor(base, preset, **kwargs)

    model_type = model_type_of(folder)
    with naming_untrusted_code(source):
        if model_type in UNIME_MODEL_TYPES:
            processor = UniMEProcessor.from_pretrained(source, preset=preset, **kwargs)
        else:
            processor = UniMEProcessor.from_backbone(source, preset, **kwargs)
    return processor, model_type == "unime_reranker"


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


def as_text(text: str, model):
    """A text in a form that a sentence-transformers model takes for a text, whatever it looks like.

    A model that reads pictures would fetch a string that is an address, and open one that names a picture file.

    Args:
        text (`str`): the text.
        model (`SentenceTransformer`): what is to embed it.

    Returns:
        `str`, or `dict` for a model that reads more than texts.
    """
    # models of earlier versions, which do not say what they read, read texts alone
    modalities = getattr(model, "modalities", ["text"])
    return text if set(modalities) <= {"text"} else {"text": text}


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
