"""What a trainer starts from: a model, its name or a function that makes one; rows of any kind; arguments or none."""

import os
from collections.abc import Callable
from inspect import signature
from pathlib import Path

import datasets
import torch
from datasets import Dataset
from torch.utils.data import IterableDataset
from transformers import set_seed

from ..data.readers import rows_of_dataset
from ..data.schema import to_dataset, to_example
from ..data.tables import has_files
from .adapters import without_adapter


def load_model(path, preset: str | None = None, reranker: bool = False, **kwargs):
    """Loads a model in float32: a UniME checkpoint, a stock VLM, or an earlier stage's adapter, merged first.

    A preset that is not the checkpoint's own is what it will be trained for. Without an accelerator, and unless an
    attention is named, text attention runs as plain matrix products, whose backward is faster there.

    Args:
        path (`str` or `Path`): folder or Hub id.
        preset (`str`, *optional*): how items are read; as the checkpoint was saved by default, or as its name says.
        reranker (`bool`, defaults to `False`): load a reranker, not an embedder.
        kwargs: for `from_pretrained`, such as `dtype`, `attn_implementation` or `quantization`; None counts as not
            given.

    Example:

    ```python
    model = load_model("Qwen/Qwen2-VL-2B-Instruct", preset="summary")
    trainer = ContrastiveTrainer(model, ContrastiveConfig(output_dir="out"), train_dataset=rows)
    ```
    """
    from ..checkpoints.opening import open_checkpoint, require_kind

    options = {"dtype": "float32"}
    for name, value in kwargs.items():
        if value is not None:
            options[name] = value
    model = open_checkpoint(path, preset, reranker, **options)
    require_kind(model, path, reranker)

    # plain products are the faster attention on a CPU
    if "attn_implementation" not in options and not torch.accelerator.is_available():
        plain_attention(model)
    return model


def plain_attention(model):
    """Lets the language model's attention run as plain matrix products; the vision tower keeps its own."""
    config = model.config.vlm_config
    if hasattr(config, "text_config") and hasattr(config, "vision_config"):
        vision = config.vision_config._attn_implementation
        model.vlm.set_attn_implementation({"text_config": "eager", "vision_config": vision})


def default_output(model, stage: str) -> str:
    """Where a training without arguments saves: the model's name and the stage, as TRL's trainers do.

    Args:
        model: a model, a name or `None`.
        stage (`str`): such as `"Contrastive"`.
    """
    if model is not None and not isinstance(model, (str, os.PathLike)):
        model = without_adapter(model).source
    return f"{Path(model or 'model').name}-{stage}"


def first_model(model, model_init: Callable | None, reranker: bool, seed: int):
    """The model that a trainer begins with.

    Args:
        model: a model, or the name of one, which is loaded by [`load_model`].
        model_init (*optional*): makes a model, of a trial of a hyperparameter search or of nothing.
        reranker (`bool`): load a reranker, not an embedder.
        seed (`int`): set before `model_init` is called.

    Raises:
        ValueError: there is neither a model nor a function that makes one, or both.
    """
    if (model is None) == (model_init is None):
        raise ValueError("a trainer needs either `model` or `model_init`.")

    # every trial begins from the same weights
    if model_init is not None:
        set_seed(seed)
        return call_model_init(model_init, None)
    if isinstance(model, (str, os.PathLike)):
        return load_model(model, reranker=reranker)
    return model


def call_model_init(model_init: Callable, trial):
    """The model that the user's function makes; it takes the trial of a hyperparameter search or nothing."""
    return model_init(trial) if signature(model_init).parameters else model_init()


def as_rows(rows, name: str):
    """Rows as trainers read them: a `Dataset`, a stream, or a `dict` of these.

    Args:
        rows: a `Dataset`, of the columns of [`~unime.data.schema.Example`] or of any layout that
            [`~unime.data.readers.rows_of_dataset`] reads; an `IterableDataset`, which is read as it comes; a list of
            [`~unime.data.schema.Example`]s or of dicts with `query` and `positive` (see
            [`~unime.data.schema.to_example`]); a dict of these, for evaluation; or `None`.
        name (`str`): of the argument, for errors.

    Raises:
        ValueError: a row of a list cannot be read; the message has its number.
        TypeError: it is something else.
    """
    if rows is None:
        return None

    # of other columns, such as those of pictures
    if isinstance(rows, (Dataset, datasets.IterableDataset)) and not _is_ours(rows):
        return rows_of_dataset(rows, name)
    if isinstance(rows, (Dataset, IterableDataset)):
        return rows
    if isinstance(rows, dict):
        return {key: as_rows(value, f"{name}[{key!r}]") for key, value in rows.items()}
    if not isinstance(rows, (list, tuple)):
        raise TypeError(f"{name} must be a Dataset, an IterableDataset or a list of rows, not {type(rows).__name__}.")

    examples = []
    for number, row in enumerate(rows):
        try:
            examples.append(to_example(row))
        except ValueError as error:
            raise ValueError(f"{name}, row {number}: {error}") from error
    return to_dataset(examples)


def _is_ours(rows) -> bool:
    """Whether a data set has our own columns, whose images are paths."""
    features = rows.features or {}
    is_item = "query" in features and not has_files(features)
    return not features or (is_item and "positive" in features)


def dataset_names(rows) -> list[str]:
    """The name of the data set of each row.

    Raises:
        ValueError: the rows are a stream, or several sets of rows, of which not all are known beforehand.
    """
    if not isinstance(rows, Dataset):
        raise ValueError("learn_temperatures must know all data sets beforehand, which only a Dataset tells.")
    return list(rows["dataset"])
