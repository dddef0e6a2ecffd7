"""What belongs together in a saved model's folder: a manifest that is written with the weights, and checks at loading.

A folder that lost a file, or has one of another model, mostly still loads and gives other results without a word.
Published checkpoints have no manifest, which is not an error.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from safetensors import safe_open
from transformers.utils import cached_file

from .types_unime import check_configuration_types

MANIFEST = "unime_manifest.json"
HUB_KEYS = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download", "proxies")
FORMAT = 1
_FLOATS = ("F64", "F32", "F16", "BF16")
_INTEGER_BUFFERS = ("position_ids", "relative_position_index", "num_batches_tracked")  # not weights, and integers
_MEND = "Save the model anew; if the change was meant, delete the manifest."


# writing
def write_manifest(model, folder):
    """Writes the manifest of a model that was just saved.

    Args:
        model ([`~unime.vlm_unime.UniMEPreTrainedModel`]): what was saved.
        folder (`str` or path): where; it holds nothing else that is loaded.
    """
    processor = model.processor if model.has_processor else None
    manifest = {
        "format": FORMAT,
        "model_type": model.config.model_type,
        "preset": getattr(processor, "preset", None),
        "positions": getattr(model.config, "positions", None),
        "processor_class": processor.backbone["processor_class"] if processor else None,
        "tokens": len(processor.tokenizer) if processor else None,
        "vocabulary": vocabulary_digest(processor.tokenizer) if processor else None,
        "files": sorted(name for name in os.listdir(folder) if name in _SMALL_FILES),
        "settings": {},
        "weights": {},
    }

    # the small files may be edited by hand: loading asks for their names, and for their hashes only where it verifies
    for name in manifest["files"]:
        manifest["settings"][name] = sha256(os.path.join(folder, name))
    for name in _names_of_weights(folder):
        manifest["weights"][name] = sha256(os.path.join(folder, name))
    _write(manifest, folder)


def add_to_manifest(folder, name: str):
    """Notes a weight file that was written beside a saved model.

    Args:
        folder (`str` or path): of the saved model.
        name (`str`): the file.
    """
    manifest = SavedFiles(folder).manifest()
    manifest["weights"][name] = sha256(os.path.join(folder, name))
    _write(manifest, folder)


def remove_manifest(folder):
    """Removes the manifest of what is about to be written over, so that a save that is cut short leaves none."""
    path = os.path.join(folder, MANIFEST)
    if os.path.exists(path):
        os.remove(path)


def _write(manifest: dict, folder):
    """The file appears when it is complete."""
    path = os.path.join(folder, MANIFEST)
    with open(path + ".part", "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=2)
        file.write("\n")
    os.replace(path + ".part", path)


def _names_of_weights(folder) -> list[str]:
    """The files of a folder that hold the model's weights."""
    names = []
    for name in sorted(os.listdir(folder)):
        if name.startswith("model") and name.endswith(".safetensors"):
            names.append(name)
    return names


def sha256(path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def vocabulary_digest(tokenizer) -> str:
    """What tells a tokenizer's tokens with their ids from those of any other."""
    entries = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:16]


# reading
_INDEX = "model.safetensors.index.json"
_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    _INDEX,
)

_STOCK_FILES = ("preprocessor_config.json", "chat_template.json", "special_tokens_map.json")  # of stock checkpoints


class SavedFiles:
    """The files of a checkpoint, in a folder, or in a repository and the cache of the Hub.

    Args:
        source (`str` or path): folder or repository.
        hub (`dict`, *optional*): `revision`, `token`, ... for the Hub.
    """

    def __init__(self, source, hub: dict | None = None):
        self.source = source
        self.hub = hub or {}
        self._paths: dict[str, str | None] = {}

    def file(self, name: str, **options) -> str | None:
        """The path of a file, downloaded if need be; `None` if there is no such file."""
        quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        if options:
            return cached_file(self.source, name, **{**self.hub, **quiet, **options})

        # of a repository, each question is a request to the Hub
        if name not in self._paths:
            self._paths[name] = cached_file(self.source, name, **{**self.hub, **quiet})
        return self._paths[name]

    def json(self, name: str) -> dict | None:
        """The content of a JSON file; `None` if there is no such file.

        Raises:
            ValueError: it holds no JSON object; the message names the file.
        """
        path = self.file(name)
        if path is None and os.path.isdir(self.shown(name)):
            raise ValueError(f"{self.shown(name)} is damaged: it is a folder.")
        if path is None:
            return None

        try:
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.shown(name)} is damaged: {error}") from error

        # a list is JSON as well
        if not isinstance(content, dict):
            raise ValueError(f"{self.shown(name)} is damaged: it holds no JSON object.")
        return content

    def shown(self, name: str) -> str:
        """A file as messages call it."""
        return os.path.join(str(self.source), name)

    # before anything is built
    def check_configuration(self, model_class):
        """Refuses a configuration of another model, or one that would build a model of default size.

        Args:
            model_class: the class that is loading.

        Raises:
            ValueError: there is no usable `config.json`, or another file that loading would pass over is damaged.
        """
        config = self.json("config.json")
        if config is None:
            if self.file("adapter_config.json"):
                return  # transformers puts it on its base
            raise ValueError(f"{self.shown('config.json')} is missing, without which there is no model to build.")

        model_type = config.get("model_type")
        if model_type is None:
            raise ValueError(f'{self.shown("config.json")} is damaged: "model_type" is missing.')
        if model_type != model_class.config_class.model_type:
            raise ValueError(
                f"{self.shown('config.json')} describes a {model_type}, not a {model_class.config_class.model_type}; "
                f"wrap a stock VLM with `{model_class.__name__}.from_backbone`."
            )

        # transformers would take its defaults, and build another model
        vlm_config = config.get("vlm_config")
        if not isinstance(vlm_config, dict) or not vlm_config.get("model_type"):
            raise ValueError(f'{self.shown("config.json")} is damaged: "vlm_config" describes no model.')

        # a value of another type is refused in whatever way the backbone's class refuses it
        check_configuration_types(self.shown("config.json"), config, model_class.config_class)
        try:
            _check_heads(model_class.config_class.from_dict(config))
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{self.shown('config.json')} is damaged: {reason}") from error
        self.json("generation_config.json")  # transformers would go on without it

    @contextmanager
    def naming_configuration(self) -> Iterator[None]:
        """Turns what transformers raises over a configuration that it cannot build into an error that names the file.

        Raises:
            ValueError: in the place of the loader's own.
        """
        try:
            yield
        except (KeyError, AttributeError, IndexError, TypeError, ZeroDivisionError) as error:
            if "keyword argument" in str(error):  # of the caller, not of the file
                raise
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"{self.shown('config.json')} (or generation_config.json) describes no model that is known: {reason}"
            ) from error

    @contextmanager
    def naming_damaged_json(self) -> Iterator[None]:
        """Names the damaged JSON file, if there is one, behind an error of loading what was not saved by us.

        Raises:
            ValueError: in the place of the loader's own, where a file is no JSON object.
        """
        try:
            yield
        except Exception as error:
            for name in (*_SMALL_FILES, *_STOCK_FILES):
                if name.endswith(".json"):
                    self.json(name)

            # transformers speaks of a backend where the file is missing
            if "backend tokenizer" in str(error):
                raise ValueError(f"{self.source} has no tokenizer.json, nor another tokenizer that opens.") from error
            raise

    def check_shards(self):
        """Refuses an index of weight files that is damaged, or names a file that is not there.

        Raises:
            ValueError: with the name of the file.
        """
        # transformers takes the single file where there are both
        if self.file("model.safetensors"):
            return
        index = self.json(_INDEX)
        if index is None:
            return

        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f'{self.shown(_INDEX)} is damaged: it has no "weight_map".')
        if not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError(f"{self.shown(_INDEX)} is damaged: not every weight has the name of a file.")

        # of a repository, asking for a file would download it
        for name in sorted(set(weight_map.values())):
            if os.path.isdir(self.source) and self.file(name) is None:
                raise ValueError(f"{self.shown(name)} is missing, which {_INDEX} names.")

    def check_weight_types(self):
        """Refuses weights that are not floating-point numbers, which would be cast without their scales.

        Quantised checkpoints say so in their configuration, and are left alone.

        Raises:
            ValueError: with the name of the tensor and of its file.
        """
        config = self.json("config.json") or {}
        sections = [config, config.get("vlm_config") or {}, config.get("text_config") or {}]
        if any(section.get("quantization_config") for section in sections):
            return

        # without a note of how they were quantised, integers are not weights
        for name in self.weight_files():
            path = self.file(name)
            types = {} if path is None else _types_of_tensors(path)
            for tensor, kind in types.items():
                if kind not in _FLOATS and tensor.rpartition(".")[2] not in _INTEGER_BUFFERS:
                    raise ValueError(
                        f"{self.shown(name)}: {tensor} is of type {kind}, which is not a type of weights. If these "
                        "were quantised by another program, load the checkpoint that it started from."
                    )

    def weight_files(self) -> list[str]:
        """The files that transformers loads the weights from."""
        for name in ("model.safetensors", "pytorch_model.bin"):
            if self.file(name):
                return [name]
            index = self.json(f"{name}.index.json")
            if index is not None:
                return sorted(set(index.get("weight_map", {}).values()))
        return []

    # the manifest
    def manifest(self) -> dict | None:
        """What was saved with the model; `None` if there is no manifest."""
        manifest = self.json(MANIFEST)
        if manifest is None:
            return None

        if not isinstance(manifest.get("weights"), dict):
            raise ValueError(f'{self.shown(MANIFEST)} is damaged: it has no "weights". {_MEND}')
        if not isinstance(manifest.get("settings", {}), dict):  # older manifests have none
            raise ValueError(f'{self.shown(MANIFEST)} is damaged: its "settings" are no object. {_MEND}')
        if "processor_class" not in manifest:
            raise ValueError(f'{self.shown(MANIFEST)} is damaged: it has no "processor_class". {_MEND}')
        names = manifest.get("files")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f'{self.shown(MANIFEST)} is damaged: its "files" are no list of names. {_MEND}')
        return manifest

    def check_manifest(self, model, trusts_files: bool):
        """Compares a loaded model and its files with the manifest that was saved with them, if there is one.

        Args:
            model ([`~unime.vlm_unime.UniMEPreTrainedModel`]): what was loaded.
            trusts_files (`bool`): whether preset and positions are those of the files; else the caller named others.

        Raises:
            ValueError: a file is missing or of another model; the message names it.
        """
        manifest = self.manifest()
        if manifest is None:
            return

        for name in (*manifest.get("files", ()), *manifest.get("weights", ())):
            if self.file(name) is None:
                raise ValueError(f"{self.shown(name)} is missing, which {MANIFEST} names. {_MEND}")

        # what the files say now, each with the file to blame
        config = self.json("config.json")
        processor = self.json("processor_config.json") or {}
        facts = {
            "model_type": ("config.json", config.get("model_type")),
            "processor_class": ("processor_config.json", processor.get("backbone", {}).get("processor_class")),
        }
        if trusts_files:
            facts["preset"] = ("processor_config.json", processor.get("preset"))
            facts["positions"] = ("config.json", config.get("positions"))
        if model.has_processor:
            tokenizer = model.processor.tokenizer
            facts["tokens"] = ("tokenizer.json", len(tokenizer))
            facts["vocabulary"] = ("tokenizer.json", vocabulary_digest(tokenizer))

        for key, (name, value) in facts.items():
            if key in manifest and manifest[key] != value:
                raise ValueError(
                    f"{self.shown(name)} is of another model: its {key} is {value!r}, and {MANIFEST} was saved with "
                    f"{manifest[key]!r}. {_MEND}"
                )

    def absent_weights(self) -> list[str]:
        """The weight files of a repository's manifest that are not in the cache yet, and so will be downloaded."""
        if os.path.isdir(self.source):
            return []
        manifest = self.manifest() or {}
        return [name for name in manifest.get("weights", ()) if self.file(name, local_files_only=True) is None]

    def verify(self, names: list[str] | None = None):
        """Compares files with the hashes of the manifest.

        Args:
            names (`list[str]`, *optional*): weight files that were just downloaded, which leave the cache if they
                differ; by default all weight files, and those of settings, tokenizer and template.

        Raises:
            ValueError: a file differs; the message names it.

        Warns:
            UserWarning: there is no manifest to compare with.
        """
        # nothing was downloaded, so there is nothing to compare
        if names is not None and not names:
            return

        manifest = self.manifest()
        if manifest is None:
            warnings.warn(f"{self.source} has no {MANIFEST}, so its weights cannot be verified.", stacklevel=4)
            return
        if names is None:
            self._verify_settings(manifest.get("settings", {}))

        for name, expected in manifest["weights"].items():
            path = self.file(name)
            if names is not None and name not in names:
                continue
            if path is None:
                raise ValueError(f"{self.shown(name)} is missing, which {MANIFEST} names. {_MEND}")

            # a broken download would otherwise lie in the cache for good
            if sha256(path) != expected:
                if names is not None:
                    _forget(path)
                raise ValueError(
                    f"{self.shown(name)} is not the file that was saved: its SHA-256 differs from that in {MANIFEST}. "
                    "Download or save it anew."
                )

    def _verify_settings(self, hashes: dict[str, str]):
        """Compares the small files with their hashes by name."""
        for name, expected in hashes.items():
            path = self.file(name)
            if path is None or sha256(path) != expected:
                raise ValueError(
                    f"{self.shown(name)} is not the file that was saved: its SHA-256 differs from that in {MANIFEST}. "
                    "If the change is meant, load without `verify` and save the model anew."
                )


def _check_heads(config):
    """Refuses attention heads that rotary positions cannot turn (Qwen2-VL, 2409.12191)."""
    _check_sections(config.get_text_config())

    # height and width turn pairs of a half of each head
    vision = getattr(config.vlm_config, "vision_config", None)
    if getattr(vision, "model_type", "").startswith("qwen"):
        width = getattr(vision, "embed_dim", None) or vision.hidden_size
        if width % (4 * vision.num_heads):
            raise ValueError(
                f"vision_config has {vision.num_heads} heads, which do not divide a width of {width} by 4."
            )


def _check_sections(config):
    """Refuses sections of rotary positions that do not make up the turned part of a head."""
    rope = getattr(config, "rope_parameters", None) or {}
    default = None
    if config.model_type.startswith(("qwen2_vl", "qwen2_5_vl")):
        default = [16, 24, 24]  # what transformers takes where the configuration names none

    sections = rope.get("mrope_section", default)
    if "mrope_section" not in rope and default is None:
        return

    # a section is so many pairs of the turned numbers of a head
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    turned = int(head * rope.get("partial_rotary_factor", 1.0)) // 2
    if not isinstance(sections, (list, tuple)) or sum(sections) != turned:
        raise ValueError(f"mrope_section is {sections}, and must be a list whose sum is {turned}.")


def _forget(path: str):
    """Removes a file from the cache of the Hub, so that it is downloaded anew the next time."""
    blob = os.path.realpath(path)
    os.remove(path)
    if os.path.exists(blob):
        os.remove(blob)


def _types_of_tensors(path: str) -> dict[str, str]:
    """The type of each tensor of a weight file, as safetensors calls it."""
    if path.endswith(".bin"):
        tensors = torch.load(path, map_location="meta", mmap=True, weights_only=True)
        names = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
        return {name: names.get(tensor.dtype, str(tensor.dtype)) for name, tensor in tensors.items()}

    types = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (a safetensors handle is not a dict)
            types[name] = file.get_slice(name).get_dtype()
    return types


__all__ = ["HUB_KEYS", "MANIFEST", "SavedFiles", "add_to_manifest", "remove_manifest", "write_manifest"]
