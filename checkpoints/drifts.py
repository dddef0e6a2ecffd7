"""What silently changes when a checkpoint is loaded with stock classes of a newer transformers, by its files alone."""

import json
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import transformers
from packaging.version import Version
from safetensors import safe_open
from transformers import AutoTokenizer

from ..adapters_unime import adapter_folder, adapter_weights, base_model_of, folder_of_tasks
from ..integrity_unime import SavedFiles
from ..preset_unime import Preset
from ..prompts_unime import published_preset, resolve_preset, rules_of
from .opening import local_folder, model_type_of

_QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
_OLD_ADAPTER_KEY = re.compile(r"base_model\.model\.(model\.layers\.|visual\.|language_model\.model\.)")
_HEAD_KEY = re.compile(r"(?:.*\.)?lm_head\.weight")
_SCORE_KEY = re.compile(r"(?:score|classifier|custom_text_proj|multi_vector_projector)\.")


class Drift(NamedTuple):
    """A way in which a checkpoint's results change without an error.

    Args:
        name (`str`): in a few words.
        stock (`str`): what happens with stock classes, and under which versions.
        here (`str`): what UniME does instead.
        hits (`bool`): whether it happens with the versions that are installed.
    """

    name: str
    stock: str
    here: str
    hits: bool = True


class Patient:
    """A checkpoint that is looked at, without its weights.

    Args:
        source (`str` or `Path`): folder or repository.
        preset (`str`, *optional*): how it was trained; by default what its name says.

    Raises:
        ValueError: it is not a checkpoint, or the preset is unknown.
    """

    def __init__(self, source, preset: str | None = None):
        self.source = source
        self.folder = local_folder(source)
        self.files = SavedFiles(self.folder)
        self.adapter = adapter_folder(self.folder)
        preset = preset or published_preset(source)
        self.preset = None if preset is None else resolve_preset(preset)
        self.base = None if self.adapter is None else base_model_of(self.adapter)

    @property
    def rules(self) -> Preset | None:
        """What its preset says, where there is one."""
        return None if self.preset is None else rules_of(self.preset)

    @cached_property
    def config(self) -> dict:
        """The configuration; of an adapter, that of its base if this lies here, or what lies beside the adapter."""
        if self.base is not None and Path(self.base).is_dir():
            return SavedFiles(self.base).json("config.json") or {}
        if self.adapter is None:
            model_type_of(self.folder)  # its error says what is missing
        return self.files.json("config.json") or {}

    @property
    def model_type(self) -> str | None:
        """What the configuration calls the backbone."""
        return self.config.get("model_type")

    @cached_property
    def keys(self) -> set[str]:
        """The names of the weights, as far as they can be told without reading any."""
        index = self.files.json("model.safetensors.index.json")
        if index is not None:
            return set(index.get("weight_map", {}))

        keys = set()
        for path in self.folder.glob("*.safetensors"):
            with safe_open(path, framework="pt") as file:
                keys.update(file.keys())
        return keys


def drifts_of(patient: Patient) -> list[Drift]:
    """What would change silently if stock classes loaded a checkpoint.

    Args:
        patient ([`Patient`]): the checkpoint.

    Example:

    ```python
    for drift in drifts_of(Patient("TIGER-Lab/VLM2Vec-Qwen2VL-2B")):
        print(drift.name)
    ```
    """
    drifts = []
    for check in CHECKS:
        drifts.extend(check(patient))
    return drifts


def _adapter_keys(patient: Patient) -> Iterator[Drift]:
    if patient.adapter is None:
        return
    keys = adapter_weights(patient.adapter).keys()

    # keys were named otherwise before the language model had a module of its own
    old = [key for key in keys if _OLD_ADAPTER_KEY.match(key)]
    if old:
        yield Drift(
            "adapter keys that load nothing",
            f"{len(old)} of {len(keys)} keys have the layout from before transformers 4.52 ({old[0]}). "
            "PeftModel.from_pretrained with the classes of transformers 5 loads none of them and only warns: the "
            "result is the base model.",
            "renames all keys, and refuses an adapter of which a part has no place.",
        )

    # DoRA scales its columns
    if any("lora_magnitude_vector" in key for key in keys):
        yield Drift(
            "magnitudes of DoRA lost",
            "model.load_adapter of transformers renames LoRA's keys, but not lora_magnitude_vector, which keeps the "
            "base's value.",
            "renames the magnitudes too, and merges as DoRA.",
        )

    if (patient.adapter / "adapter_model.bin").exists():
        yield Drift(
            "adapter in a pickle",
            "adapter_model.bin is not read by model.load_adapter; other readers may run the code in it.",
            "reads tensors from it and nothing else.",
        )


def _tasks(patient: Patient) -> Iterator[Drift]:
    adapters = folder_of_tasks(patient.files)
    if adapters is None:
        return

    # which of them is merged is a choice of the preset
    task = None if patient.rules is None else patient.rules.adapter
    here = "asks for a preset that names the task." if task is None else f"merges the adapter for {task!r}."
    yield Drift(
        "adapters of tasks left out",
        f"the weights are those of the base; what was trained is in {adapters.name}/, one adapter for each task, "
        "which stock classes do not look for.",
        here,
    )


def _positions(patient: Patient) -> Iterator[Drift]:
    if patient.rules is not None and patient.rules.positions == "flat":
        yield Drift(
            "flat positions lost",
            "it was trained with 1-D positions for image tokens. transformers 5 finds images by mm_token_type_ids and "
            "gives them 3-D positions: every embedding of an item with an image moves, texts do not.",
            "passes 1-D positions.",
        )


def _attention(patient: Patient) -> Iterator[Drift]:
    if patient.rules is not None and patient.rules.attention == "bidirectional":
        yield Drift(
            "bidirectional attention lost",
            "stock classes are causal: every embedding moves.",
            "passes a mask in which every token sees every other.",
        )


def _rope_deltas(patient: Patient) -> Iterator[Drift]:
    if patient.model_type in _QWEN:
        yield Drift(
            "rope_deltas reused",
            "before transformers 5.15 a text after an image is read at the positions that the image left behind "
            "(model.rope_deltas).",
            "passes positions or token types with every batch, so that nothing is left behind.",
            hits=Version(transformers.__version__) < Version("5.15"),
        )


def _video_markers(patient: Patient) -> Iterator[Drift]:
    if patient.model_type in ("qwen3_vl", "qwen3_5"):
        yield Drift(
            "markers around videos",
            "every pair of a video's frames stands between markers of its own. transformers 4.57 put them in the "
            "place of the markers that the chat template has around a video; 5.23 leaves these two around them.",
            "feeds what 4.57 fed.",
            hits=Version(transformers.__version__) >= Version("5"),
        )


def _normalizer(patient: Patient) -> Iterator[Drift]:
    path = patient.files.file("tokenizer.json")
    if path is None:
        return
    with open(path, encoding="utf-8") as file:
        saved = json.load(file).get("normalizer")

    # what the stock class makes of it
    loaded = AutoTokenizer.from_pretrained(patient.folder, trust_remote_code=False)
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        return

    rebuilt = json.loads(backend.to_str()).get("normalizer")
    if saved is not None and saved != rebuilt:
        restored = patient.rules is not None and getattr(patient.rules, "own_normalizer", False)
        yield Drift(
            "normalizer dropped",
            f"AutoTokenizer of transformers {transformers.__version__} builds the tokenizer anew, with the normalizer "
            f"{_brief(rebuilt)} in the place of {_brief(saved)} in tokenizer.json: other ids for some texts.",
            "restores the one of tokenizer.json." if restored else "does the same as transformers under this preset.",
        )


def _image_limits(patient: Patient) -> Iterator[Drift]:
    if patient.rules is None or not getattr(patient.rules, "image_tokens", None):
        return

    # older files have the limits as numbers, newer ones as a size
    images = patient.files.json("preprocessor_config.json") or {}
    size = images.get("size") or {}
    saved = (
        images.get("min_pixels") or size.get("shortest_edge"),
        images.get("max_pixels") or size.get("longest_edge"),
    )

    # the authors give them in tokens, each of which is a square of patches
    side = (images.get("patch_size") or 14) * (images.get("merge_size") or 2)
    meant = tuple(count * side * side for count in patient.rules.image_tokens)
    if saved != meant:
        yield Drift(
            "limits of images",
            f"preprocessor_config.json resizes images to {saved[0]} to {saved[1]} pixels, and its authors' code to "
            f"{meant[0]} to {meant[1]}. min_pixels and max_pixels that are passed to from_pretrained land on an "
            "object that is discarded under transformers 4.49.",
            "gives the authors' limits to the image processor itself.",
        )


def _head(patient: Patient) -> Iterator[Drift]:
    if not patient.keys or patient.adapter is not None:
        return

    # a head that is tied to the embeddings is in no file
    text = patient.config.get("text_config") or {}
    is_tied = patient.config.get("tie_word_embeddings", text.get("tie_word_embeddings", True))
    heads = sorted(key for key in patient.keys if _SCORE_KEY.match(key))
    if not any(_HEAD_KEY.fullmatch(key) for key in patient.keys) and not is_tied:
        yield Drift(
            "head missing from the files",
            "a class with a language head starts with a random lm_head, and only reports it as newly initialised.",
            "takes the model without its head for an embedder, and refuses to judge with a head that did not land.",
        )

    # a head of scores has a name of its own
    if heads:
        yield Drift(
            "head left out",
            f"stock classes report {heads[0]} as unexpected and go on without it.",
            "reads it where the preset has a score by a head, and refuses the weights otherwise.",
        )


def _vision_layers(patient: Patient) -> Iterator[Drift]:
    if patient.model_type == "mllama":
        yield Drift(
            "intermediate layers of the vision tower",
            "transformers 5 takes outputs of the layers in intermediate_layers_indices, 4.49 took their inputs: image "
            "features shift by a layer.",
            "takes the layers that the weights were trained with.",
            hits=Version(transformers.__version__) >= Version("5"),
        )


def _tiles(patient: Patient) -> Iterator[Drift]:
    if patient.rules is not None and patient.rules.anyres_padding == "legacy":
        yield Drift(
            "odd padding of tiles",
            "transformers 4.4x pads the canvas of LLaVA's tiles a pixel short where the padding is odd; "
            "transformers 5 does not.",
            'pads as it was trained (anyres_padding="legacy").',
        )


def _ends(patient: Patient) -> Iterator[Drift]:
    if patient.rules is not None and patient.rules.appended:
        yield Drift(
            "token at the end",
            f"its authors' code appends {patient.rules.appended!r} to prompts, which a chat template need not do.",
            "appends it.",
        )


def _penalty(patient: Patient) -> Iterator[Drift]:
    settings = patient.files.json("generation_config.json") or {}
    penalty = settings.get("repetition_penalty", 1.0)

    # an embedder generates nothing
    is_judge = patient.rules is not None and patient.rules.judging is not None
    if is_judge and penalty != 1.0:
        yield Drift(
            "repetition penalty in scores",
            f"scores of generate() are divided by the repetition penalty {penalty} where an answer occurs in the "
            "prompt; logits of a forward pass are not.",
            "scores as the preset says that its authors did.",
        )


def _own_code(patient: Patient) -> Iterator[Drift]:
    references = sorted(str(name) for name in (patient.config.get("auto_map") or {}).values())
    if references:
        yield Drift(
            "code of the repository",
            f"config.json names {references[0]}; without trust_remote_code the stock class of {patient.model_type} is "
            "built instead, without what that class adds.",
            "runs no code of the repository; what the class adds is in the preset, where the checkpoint is known.",
        )


CHECKS: tuple[Callable[[Patient], Iterator[Drift]], ...] = (
    _adapter_keys,
    _tasks,
    _positions,
    _attention,
    _rope_deltas,
    _video_markers,
    _normalizer,
    _image_limits,
    _head,
    _vision_layers,
    _tiles,
    _ends,
    _penalty,
    _own_code,
)


def _brief(normalizer) -> str:
    """A normalizer in a few words."""
    if normalizer is None:
        return "none"
    names = [step["type"] for step in normalizer.get("normalizers", [normalizer])]
    return "+".join(names)
