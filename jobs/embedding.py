"""Embeddings of many items as a resumable stage, with any embedder, and what identifies a checkpoint."""

import hashlib
import json
import os
import struct
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch

from ..checkpoints.opening import local_folder, open_checkpoint
from ..data.schema import Item
from ..prompts_unime import PRESETS
from .shards import fingerprint, processes, read_job, run_job

SMALL, PLACES, SAMPLE = 2**18, 8, 1024  # of larger files, so many places of so many bytes in each tensor are read
_OTHER = ("README.md", "trainer_state.json", "all_results.json")  # files that do not change what a model computes
_KINDS = (".json", ".jinja", ".model", ".txt", ".py", ".safetensors", ".bin")


def checkpoint_fingerprint(source) -> str:
    """Name and digest of a checkpoint: its small files, and samples of every tensor, those of an adapter's base too.

    Seconds for 15 GB; two trainings of one model differ in nearly every weight they trained, so samples tell them
    apart. Folders of sentence-transformers' modules (`1_Pooling`) count.
    """
    folder = local_folder(source)
    digest = hashlib.blake2b(digest_size=8)
    files = [*folder.iterdir(), *folder.glob("[0-9]*_*/*")]
    for path in sorted(p for p in files if p.suffix in _KINDS and p.name not in _OTHER):
        digest.update(f"{path.relative_to(folder)}:{path.stat().st_size}:".encode())
        with open(path, "rb") as file:
            for start, size in _samples(path, file):
                file.seek(start)
                digest.update(file.read(size))
    adapter = folder / "adapter_config.json"
    if adapter.exists() and (base := json.loads(adapter.read_text())["base_model_name_or_path"]):
        digest.update(checkpoint_fingerprint(base).encode())
    return f"{Path(str(source)).name}@{digest.hexdigest()}"


def _samples(path: Path, file):
    """(start, size) of what is read of a file: all of a small one, else its head and places in each tensor."""
    size = path.stat().st_size
    if size <= SMALL:
        return [(0, size)]
    spans = [(0, size)]
    if path.suffix == ".safetensors":
        (header,) = struct.unpack("<Q", file.read(8))
        tensors = json.loads(file.read(header))
        spans = [tensor["data_offsets"] for name, tensor in tensors.items() if name != "__metadata__"]
        spans = [(8 + header + start, 8 + header + end) for start, end in spans]
    found = [(0, SAMPLE)]
    for start, end in spans:
        last = max(start, end - SAMPLE)
        found += [
            (start + number * (last - start) // (PLACES - 1), min(SAMPLE, end - start)) for number in range(PLACES)
        ]
    return found


class Embedder:
    """A UniME model or a sentence-transformers model, loaded when it is first needed.

    Args:
        source: folder or repository.
        library (`str`): `"unime"` (which also opens stock VLMs and adapters) or `"sentence-transformers"`.
        preset (`str`, *optional*): prompts, for a stock VLM.
        dtype (`str`): such as `"bfloat16"`; `"auto"` is the checkpoint's own.
        options: for the model's `encode_query` and `encode_document`.
    """

    def __init__(self, source, library: str = "unime", preset: str | None = None, dtype: str = "auto", **options):
        if library not in ("unime", "sentence-transformers"):
            raise ValueError(f"the library must be 'unime' or 'sentence-transformers', got {library!r}.")
        self.source, self.library, self.preset, self.dtype, self.options = source, library, preset, dtype, options
        self.model, self.state = None, processes()

    def settings(self) -> dict:
        """What decides an embedding."""
        own = {"library": self.library, "preset": self.preset, "dtype": self.dtype, **self.options}
        return {"model": self._fingerprint, **own}

    @cached_property
    def _fingerprint(self) -> str:
        return checkpoint_fingerprint(self.source)

    def load(self):
        if self.model is None and self.library == "unime":
            self.model = open_checkpoint(self.source, self.preset, dtype=self.dtype).to(self.state.device).eval()
        elif self.model is None:
            from sentence_transformers import SentenceTransformer

            options = {"dtype": self.dtype}
            self.model = SentenceTransformer(str(self.source), device=str(self.state.device), model_kwargs=options)
        return self.model

    def words_roles_differently(self) -> bool:
        """Whether an item's prompt as a query may not be its prompt as a document; loads the model."""
        if self.library == "unime":
            preset = PRESETS[self.load().processor.preset]
            return preset.query != preset.document
        prompts = self.load().prompts
        return prompts.get("query") != prompts.get("document")

    def encode(self, items: Sequence[Item], role: str) -> np.ndarray:
        """Embeddings `[N, D]` in float32; `role` is `"query"` or `"document"`."""
        inputs = [item.as_input() for item in items]
        if self.library == "unime":
            return self.load().encode(inputs, role=role, show_progress=False, **self.options).numpy()
        inputs = [entry if "image" in entry else entry["text"] for entry in inputs]
        encode = self.load().encode_query if role == "query" else self.load().encode_document
        with torch.inference_mode():
            found = encode(inputs, normalize_embeddings=True, show_progress_bar=False, **self.options)
        return np.asarray(found, dtype=np.float32)


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
) -> int:
    """Embeds items as a stage (see [`~unime.jobs.shards.run_job`]) split over the processes of a launch.

    Args:
        out: folder of the stage.
        items (`Sequence[Item]`): distinct items.
        embedder ([`Embedder`]).
        role (`str`): `"query"` or `"document"`.
        image_root (*optional*): paths below it identify images, so that the data may be moved.
        shard_size (`int`, defaults to 1024), retry_failed, spare (`bool`): of the stage.
        description (`str`, *optional*): what the progress bar says, by default the folder's name.

    Returns:
        how many items could be embedded; the stage's arrays are `embeddings` `[n, D]` in float32 and `row` `[n]`.
    """
    state = processes()
    run_job(
        out,
        items,
        lambda rows, _: {"embeddings": embedder.encode(rows, role)},
        {"role": role, **embedder.settings()},
        keys=lambda item: item_name(item, image_root),
        shard_size=shard_size,
        rank=state.process_index,
        world_size=state.num_processes,
        description=description or f"Embedding {Path(out).name}",
        prepare=embedder.load,
        retry_failed=retry_failed,
        spare=spare,
    )
    state.wait_for_everyone()
    return len(read_job(out, ())["row"])


def item_name(item: Item, image_root=None) -> str:
    """A text that identifies an item: its text, and its image's path below `image_root` and size in bytes.

    Of a video's folder, the names and sizes of its frames.
    """
    if not item.image:
        return item.text
    return f"{item.text}\x00{image_name(item, image_root)}\x00{_size(item.image)}"


def image_name(item: Item, image_root=None) -> str:
    """The image's path below `image_root`, as data files write it; an item without an image has an empty one.

    `image_root` may be several folders; the first that holds the image counts.
    """
    roots = image_root if isinstance(image_root, tuple) else () if image_root is None else (image_root,)
    for root in roots:
        start = f"{_resolved(str(root))}{os.sep}"
        if item.image.startswith(start):
            return item.image[len(start) :]
    return item.image


@cache
def _resolved(root: str) -> str:
    return str(Path(root).resolve())


def _size(path: str) -> int | str | None:
    try:
        if os.path.isdir(path):
            return fingerprint(f"{entry.name}:{entry.stat().st_size}" for entry in _sorted(path))
        return os.stat(path).st_size
    except FileNotFoundError:
        return None


def _sorted(folder: str):
    return sorted(os.scandir(folder), key=lambda entry: entry.name)
