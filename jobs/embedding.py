"""Embeddings of many items as a resumable job, with any embedder, and what identifies a checkpoint."""

import hashlib
import json
import os
import struct
from collections.abc import Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from accelerate import PartialState

from ..adapters_unime import adapter_folder, base_model_of
from ..checkpoints.dual_encoders import DualEncoder, open_dual_encoder
from ..checkpoints.opening import (
    as_text,
    local_folder,
    open_checkpoint,
    open_sentence_transformer,
    require_kind,
)
from ..data.items import Item
from ..files.addresses import to_path
from ..files.identity import file_identity
from ..items_unime import describe
from ..modeling_unime import UniMEModel
from ..preset_files_unime import preset_content
from ..prompts_unime import resolve_preset
from .checks import check_options
from .choices import LIBRARIES
from .engines import RayEngine
from .shards import processes, read_job, run_job

TAKEN = ("items", "inputs", "role", "prompt_name", "show_progress", "show_progress_bar")  # arguments that a job sets
# of files above SMALL bytes, each tensor is read in so many PLACES, SAMPLE bytes at each
SMALL = 2**18
PLACES = 8
SAMPLE = 1024
BLOCK = 2**24  # bytes that are read at a time of a file that is read whole

_KINDS = (".json", ".jinja", ".model", ".txt", ".py", ".safetensors", ".bin")
_OTHER = ("README.md", "trainer_state.json", "all_results.json")  # files that do not change what a model computes


def preset_in_words(preset) -> str | dict | None:
    """A preset as a manifest has it: its name, or all of one that is not in the table."""
    return preset if preset is None or isinstance(preset, str) else preset_content(preset)


# checkpoints
def checkpoint_fingerprint(source, whole: bool = False) -> str:
    """Name and digest of a checkpoint: its small files, and samples of every tensor, those of an adapter's base too.

    Seconds for 15 GB; two trainings of one model differ in nearly every weight they trained, so samples tell them
    apart. Folders of sentence-transformers' modules (`1_Pooling`) count.

    Args:
        source (`str` or `Path`): folder or repository.
        whole (`bool`, defaults to `False`): read every byte, so that a single changed weight is seen; half a minute
            for 15 GB.

    Returns:
        `str`: such as `"my-model@0123456789abcdef"`.
    """
    folder = local_folder(source)
    adapter = adapter_folder(folder)
    if adapter is not None:
        folder = adapter

    # names and sizes count, too, and what the files hold
    digest = hashlib.blake2b(digest_size=8)
    for path in _model_files(folder):
        digest.update(f"{path.relative_to(folder)}:{path.stat().st_size}:".encode())

        with open(path, "rb") as file:
            spans = _blocks(path) if whole else _samples(path, file)
            for start, size in spans:
                file.seek(start)
                digest.update(file.read(size))

    # an adapter computes nothing without the model that it was trained on
    if adapter is not None:
        _, _, base = checkpoint_fingerprint(base_model_of(adapter), whole).rpartition("@")
        digest.update(base.encode())
    return f"{Path(str(source)).name}@{digest.hexdigest()}"


def _model_files(folder: Path) -> list[Path]:
    """The files that decide what a checkpoint computes, in order."""
    files = []
    for path in (*folder.iterdir(), *folder.glob("[0-9]*_*/*")):
        if path.suffix in _KINDS and path.name not in _OTHER:
            files.append(path)
    return sorted(files)


def _blocks(path: Path) -> list[tuple[int, int]]:
    """`(start, size)` of all of a file, in pieces that are read at a time."""
    return [(start, BLOCK) for start in range(0, path.stat().st_size, BLOCK)]


def _samples(path: Path, file: BinaryIO) -> list[tuple[int, int]]:
    """`(start, size)` of what is read of a file: all of a small one, else its head and places in each tensor."""
    size = path.stat().st_size
    if size <= SMALL:
        return [(0, size)]

    # the head has the names of all tensors, and each of them is looked at in several places
    samples = [(0, SAMPLE)]
    for start, end in _tensor_spans(path, file, size):
        last = max(start, end - SAMPLE)
        for number in range(PLACES):
            place = start + number * (last - start) // (PLACES - 1)
            samples.append((place, min(SAMPLE, end - start)))
    return samples


def _tensor_spans(path: Path, file: BinaryIO, size: int) -> list[tuple[int, int]]:
    """`(start, end)` of each tensor of a safetensors file; any other file counts as one tensor."""
    if path.suffix != ".safetensors":
        return [(0, size)]

    # eight bytes with the length of the header, the header, and the tensors, whose offsets start after it
    (length,) = struct.unpack("<Q", file.read(8))
    if length > size:
        raise ValueError(f"{path} is damaged: its header would be longer than the file.")

    # offsets count from the end of the header
    spans = []
    try:
        for name, tensor in json.loads(file.read(length)).items():
            if name != "__metadata__":
                start, end = tensor["data_offsets"]
                spans.append((8 + length + start, 8 + length + end))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: its header cannot be read ({error}).") from error
    return spans


# embedders
class Embedder:
    """A UniME model or a sentence-transformers model, loaded when it is first needed.

    Args:
        source (`str` or `Path`): folder or repository.
        library (`str`, defaults to `"unime"`): `"unime"` (which also opens stock VLMs, adapters and dual encoders
            such as CLIP) or `"sentence-transformers"`.
        preset (`str`, *optional*): how items are read, by name or as a file of one's own says; by default as the
            checkpoint was saved, or as its name says.
        dtype (`str`, defaults to `"auto"`): such as `"bfloat16"`; `"auto"` is the checkpoint's own, or float32 on a
            CPU that is slower in less.
        trust_remote_code (`bool`, defaults to `False`): run the code of the repository.
        options: for the model's `encode` (UniME), or its `encode_query` and `encode_document`.

    Raises:
        ValueError: the library is unknown, or its `encode` has no such option.

    Example:

    ```python
    embedder = Embedder("outputs/quickstart/model", batch_tokens=4096)
    embeddings = embedder.encode([Item("a dog"), Item(image="photos/dog.jpg")], "document")  # [2, D]
    ```
    """

    def __init__(
        self,
        source,
        library: str = "unime",
        preset: str | None = None,
        dtype: str = "auto",
        trust_remote_code: bool = False,
        **options,
    ):
        if library not in LIBRARIES:
            raise ValueError(f"the library must be 'unime' or 'sentence-transformers', got {library!r}.")
        if preset is not None:
            preset = resolve_preset(preset)  # a misspelt one should not cost the reading of data
        if library == "unime":
            check_options("the options of `encode`", options, [UniMEModel.encode], TAKEN)

        self.source = source
        self.library = library
        self.preset = preset
        self.dtype = dtype
        self.trust_remote_code = trust_remote_code
        self.options = options

        self.model = None  # loaded where there is anything to embed

    def __getstate__(self) -> dict:
        # a worker elsewhere loads the model itself
        return {**self.__dict__, "model": None}

    @property
    def state(self) -> PartialState:
        """The processes of this launch."""
        return processes()

    @classmethod
    def of(cls, settings) -> "Embedder":
        """The embedder that the settings of a command name.

        Args:
            settings: has `model`, `library`, `preset`, `dtype`, `trust_remote_code`, and `options` or None.
        """
        return cls(
            settings.model,
            settings.library,
            settings.preset,
            settings.dtype,
            settings.trust_remote_code,
            **settings.options or {},
        )

    def settings(self) -> dict:
        """What decides an embedding, as JSON; a job with other settings is another job."""
        return {
            "model": self._fingerprint,
            "library": self.library,
            "preset": preset_in_words(self.preset),
            "dtype": self.dtype,
            **self.options,
        }

    @cached_property
    def _fingerprint(self) -> str:
        return checkpoint_fingerprint(self.source)

    def load(self):
        """The model, on this process's device."""
        if self.model is not None:
            return self.model

        if self.library == "unime":
            # CLIP and its like are not VLMs, and are opened otherwise
            self.model = self._open_baseline()
            if self.model is not None:
                return self.model

            model = open_checkpoint(
                self.source, self.preset, dtype=self.dtype, trust_remote_code=self.trust_remote_code
            )
            require_kind(model, self.source, reranker=False)
            self.model = model.to(self.state.device).eval()
        else:
            self.model = open_sentence_transformer(
                self.source, self.state.device, self.trust_remote_code, model_kwargs={"dtype": self.dtype}
            )

            # which options there are is known only now
            check_options("the options of `encode`", self.options, [self.model.encode], TAKEN)
        return self.model

    def _open_baseline(self) -> DualEncoder | None:
        """The model, if it is a dual encoder."""
        model = open_dual_encoder(self.source, self.state.device, self.trust_remote_code, self.dtype)
        if model is None:
            return None
        if self.preset is not None:
            raise ValueError(f"{self.source} is a dual encoder, which has no prompts: leave out the preset.")
        check_options(f"the options of {self.source}, a dual encoder", self.options, [DualEncoder.encode], TAKEN)
        return model

    def default_instruction(self) -> str:
        """What the model puts before a query that comes without an instruction; empty if nothing. Loads the model."""
        model = self.load()
        if isinstance(model, DualEncoder):
            return ""
        if self.library == "unime":
            return model.processor.default_instruction("query") or ""
        return model.prompts.get("query") or ""

    def wording(self, role: str, task) -> tuple[str, str | None]:
        """The role and the kind of benchmark to embed a task's items with, equal where prompts are; loads the model.

        Args:
            role (`str`): `"query"` or `"document"`.
            task ([`~unime.eval.tasks.Task`]): whose queries or corpus are to be embedded.
        """
        model = self.load()
        if isinstance(model, DualEncoder):
            return "query", None
        if self.library == "unime":
            return model.processor.wording(role, task.benchmark, task.name)

        # where both are prompted alike, an item is embedded once for both
        if model.prompts.get("query") == model.prompts.get("document"):
            role = "query"
        return role, None

    def encode(
        self, items: Sequence[Item], role: str, benchmark: str | None = None, of_training: bool = False
    ) -> np.ndarray:
        """Embeds items.

        Args:
            items (`Sequence[Item]`): N texts, images, or both.
            role (`str`): `"query"` or `"document"`.
            benchmark (`str`, *optional*): the kind of benchmark whose wording a preset of UniME is to use.
            of_training (`bool`, defaults to `False`): put a UniME model's default instruction before items that come
                without one, on a benchmark too, as a training does.

        Returns:
            `np.ndarray` `[N, D]` in float32.
        """
        inputs = [item.as_input() for item in items]
        model = self.load()
        if isinstance(model, DualEncoder):
            return model.encode(inputs, **self.options).numpy()  # [N, D]
        if self.library == "unime":
            options = {"benchmark": benchmark, **self.options}
            if of_training:
                options.setdefault("instruction", model.processor.default_instruction(role))
            return model.encode(inputs, role=role, show_progress=False, **options).numpy()  # [N, D]

        # sentence-transformers has its own ideas of items, and of what a string is
        for number, entry in enumerate(inputs):
            self._require_modalities(entry, model.modalities)
            if entry.keys() == {"text"}:
                inputs[number] = as_text(entry["text"], model)

        # its models word queries and documents by themselves
        encode = model.encode_query if role == "query" else model.encode_document
        with torch.inference_mode():
            embeddings = encode(inputs, normalize_embeddings=True, show_progress_bar=False, **self.options)
        return np.asarray(embeddings, dtype=np.float32)  # [N, D]

    def _require_modalities(self, entry: dict, modalities: list):
        """Refuses an item of which the model would read a part only, or nothing."""
        readable = {modality for modality in modalities if isinstance(modality, str)}
        unreadable = sorted(entry.keys() - readable)
        if unreadable:
            kinds = ", ".join(sorted(readable))
            raise ValueError(f"{describe(entry)}: {self.source} reads {kinds}, no {' and '.join(unreadable)}.")


def embed(
    out,
    items: Sequence[Item],
    embedder: Embedder,
    role: str,
    image_root=None,
    shard_size: int = 1024,
    retry_failed: bool = False,
    description: str | None = None,
    spare: bool = False,
    benchmark: str | None = None,
    engine: RayEngine | None = None,
    of_training: bool = False,
) -> int:
    """Embeds items as a job (see [`~unime.jobs.shards.run_job`]) split over the processes of a launch.

    Args:
        out (`str` or `Path`): folder of the job.
        items (`Sequence[Item]`): distinct items.
        embedder ([`Embedder`]): embeds them.
        role (`str`): `"query"` or `"document"`.
        image_root (`str` or `Path`, *optional*): paths below it identify images, so that the data may be moved.
        shard_size (`int`, defaults to 1024): items of a shard.
        retry_failed (`bool`, defaults to `False`): do shards with failed items once more.
        description (`str`, *optional*): what the progress bar says, by default the folder's name.
        spare (`bool`, defaults to `False`): go on where all items of a shard fail.
        benchmark (`str`, *optional*): the kind of benchmark whose wording a preset is to use.
        engine ([`~unime.jobs.engines.RayEngine`], *optional*): workers that embed, in place of this process.
        of_training (`bool`, defaults to `False`): as in [`Embedder.encode`].

    Returns:
        `int`: how many items could be embedded. `read_job(out)` has their arrays: `embeddings` `[n, D]` in float32 and
        `row` `[n]`, the number of each item.

    Raises:
        ValueError: the folder holds another job, or every item of a shard failed.

    Example:

    ```python
    items = [Item("a dog"), Item(image="photos/dog.jpg")]
    embed("outputs/embeddings", items, Embedder("outputs/quickstart/model"), "document")
    ```
    """
    state = processes()
    settings = {"role": role, **embedder.settings()}
    if benchmark is not None:
        settings["benchmark"] = benchmark

    run_job(
        out,
        items,
        partial(_embeddings, role=role, benchmark=benchmark, of_training=of_training),
        settings,
        keys=lambda item: item_name(item, image_root),
        shard_size=shard_size,
        rank=state.process_index,
        world_size=state.num_processes,
        description=description or f"Embedding {to_path(out).name}",
        prepare=partial(_loaded, embedder),
        retry_failed=retry_failed,
        spare=spare,
        engine=engine,
    )

    # only when all processes have finished does the job have all its shards
    state.wait_for_everyone()
    return len(read_job(out, ())["row"])


def _loaded(embedder: Embedder) -> Embedder:
    """The embedder with its model in memory, so that a broken checkpoint is not taken for the fault of an item."""
    embedder.load()
    return embedder


def _embeddings(
    items: Sequence[Item], embedder: Embedder, role: str, benchmark: str | None, of_training: bool
) -> dict[str, np.ndarray]:
    """The work of the job."""
    return {"embeddings": embedder.encode(items, role, benchmark, of_training)}


# names of items
def item_name(item: Item, image_root=None) -> str:
    """A text that identifies an item: its text, its image's path below `image_root`, and what the file holds.

    Of a video's folder, the names and contents of its frames.
    """
    # a file that was replaced by another of the same name is another item
    name = item.text
    for path in item.images:
        name += f"\x00{path_name(path, image_root)}\x00{file_identity(path)}"
    return f"{name}\x00\x00{item.instruction}" if item.instruction else name


def image_name(item: Item, image_root=None) -> str | list[str]:
    """The image's path below `image_root`, as data files write it; of several images, a list of these.

    Args:
        item ([`~unime.data.schema.Item`]): without an image, its name is empty.
        image_root (*optional*): as in [`path_name`].
    """
    if item.more_images:
        return [path_name(path, image_root) for path in item.images]
    return path_name(item.image, image_root)


def path_name(path: str, image_root=None) -> str:
    """A path below `image_root`, as data files write it.

    Args:
        path (`str`): of an image.
        image_root (`str`, `Path` or a tuple of these, *optional*): the first of several folders that holds the image
            counts; an image outside of them keeps its whole path.
    """
    roots = image_root
    if image_root is None:
        roots = ()
    elif not isinstance(image_root, tuple):
        roots = (image_root,)

    # the first folder that holds it
    for root in roots:
        start = f"{_resolved(str(root))}{os.sep}"
        if path.startswith(start):
            return path[len(start) :]
    return path


@cache
def _resolved(root: str) -> str:
    return str(Path(root).resolve())
