"""The text teacher of the distillation stage: opening it, embedding with it once, and the table of its embeddings."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from ..checkpoints.nv_embed import LICENSE, MAX_LENGTH, is_nv_embed, load_nv_embed
from ..checkpoints.opening import as_text, local_folder, open_sentence_transformer
from ..data.schema import Item
from ..files.writing import has_json
from ..jobs.embedding import checkpoint_fingerprint
from ..jobs.shards import MANIFEST, fingerprint, processes, read_job, read_manifest, run_job
from ..vlm_unime import bitsandbytes_config

SIDES = ("left", "right")  # where a tokenizer may pad


class TeacherTable:
    """Teacher embeddings `[N, D]` by the content of their texts.

    Args:
        texts (`list[str]`): distinct texts.
        embeddings (`np.ndarray` `[N, D]`): in the same order.

    Raises:
        ValueError: their numbers differ.

    Example:

    ```python
    table = TeacherTable(["a cat", "a dog"], np.eye(2))
    table(torch.tensor([Item("a dog").content_hash]))  # [[0, 1]]
    ```
    """

    def __init__(self, texts: list[str], embeddings: np.ndarray):
        if len(texts) != len(embeddings):
            raise ValueError(f"{len(embeddings)} teacher embeddings for {len(texts)} texts.")

        # batches carry hashes of their items, not the texts
        self.rows = {Item(text).content_hash: row for row, text in enumerate(texts)}
        self.texts = texts
        self.embeddings = torch.from_numpy(np.asarray(embeddings))

    def __call__(self, hashes: torch.Tensor) -> torch.Tensor:
        """Embeddings `[n, D]` of texts.

        Args:
            hashes (`LongTensor` `[n]`): their content hashes.

        Raises:
            ValueError: a text has no embedding here.
        """
        rows = [self.rows.get(key) for key in hashes.tolist()]
        if None in rows:
            raise ValueError(f"{rows.count(None)} of {len(rows)} texts of a batch have no teacher embedding.")
        return self.embeddings[torch.tensor(rows)].to(hashes.device)


@dataclass(frozen=True)
class Teacher:
    """A text embedder and how it reads: NV-Embed-v2, or any sentence-transformers model.

    A checkpoint is NV-Embed-v2 if its `config.json` has the `model_type` `nvembed`. It is built from transformers' own
    parts ([`~unime.checkpoints.nv_embed.NVEmbedModel`]), and always appends EOS and pads on the right.

    Args:
        model (`str` or `Path`): folder or Hub id.
        prompt (`str`, defaults to `""`): put before every text; NV-Embed-v2's instruction.
        append_eos (`bool`, defaults to `False`): put the tokenizer's EOS behind every text.
        padding_side (`str`, *optional*): `"left"` or `"right"`; the tokenizer's own by default.
        max_length (`int`, *optional*): tokens of a text; the model's own by default, 4,096 for NV-Embed-v2.
        dtype (`str`, *optional*): of its weights; bfloat16 for NV-Embed-v2, else the checkpoint's own by default.
        quantization (`str`, *optional*): `"nf4"` or `"int8"`, for small GPUs.
        trust_remote_code (`bool`, defaults to `False`): run the code of the repository of another model.

    Raises:
        ValueError: the padding side or the quantisation is unknown, or the length is not a number of tokens.

    Example:

    ```python
    teacher = Teacher("nvidia/NV-Embed-v2", quantization="nf4")
    ```
    """

    model: str | Path
    prompt: str = ""
    append_eos: bool = False
    padding_side: str | None = None
    max_length: int | None = None
    dtype: str | None = None
    quantization: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self):
        if self.padding_side not in (None, *SIDES):
            raise ValueError(f"a teacher's padding side is left or right, not {self.padding_side!r}.")
        if self.quantization is not None:
            bitsandbytes_config(self.quantization)  # refuses another before the files are read
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"a teacher's max_length is a number of tokens, not {self.max_length}.")

    @cached_property
    def folder(self) -> Path:
        """Where its files are; a repository is downloaded."""
        return local_folder(self.model)

    @cached_property
    def is_nv_embed(self) -> bool:
        """Whether it is NV-Embed-v2, whatever its folder is called."""
        return is_nv_embed(self.folder)

    def settings(self) -> dict:
        """What decides an embedding, as JSON: the content of the files, not their name or place, and how it reads.

        Raises:
            ValueError: NV-Embed-v2 is to pad on the left.
        """
        settings = {
            "weights": self._digest,
            "prompt": self.prompt,
            "append_eos": self.append_eos,
            "padding_side": self.padding_side,
            "max_length": self.max_length,
            "dtype": self.dtype or "auto",
            "quantization": self.quantization,
        }

        # its defaults are the same job, whether they are written out or left out
        if self.is_nv_embed:
            if self.padding_side == "left":
                raise ValueError(f"{self.model} is NV-Embed, which pads on the right; leave the padding side out.")
            settings |= {"append_eos": True, "padding_side": "right"}
            settings["max_length"] = self.max_length or MAX_LENGTH
            settings["dtype"] = self.dtype or "bfloat16"
        return settings

    @cached_property
    def _digest(self) -> str:
        # without the name before the @: a checkpoint may be moved
        return checkpoint_fingerprint(self.folder, whole=True).rpartition("@")[2]

    def load(self, device, batch_size: int = 32):
        """Loads the model.

        Args:
            device: where it goes.
            batch_size (`int`, defaults to 32): texts that are run together.

        Returns:
            a function from N texts to their embeddings `[N, D]`, an array in float32.

        Raises:
            ValueError: a weight did not land, or the model cannot read as it is told to.
        """
        if self.is_nv_embed:
            return self._load_nv_embed(device, batch_size)
        return self._load_sentence_transformer(device, batch_size)

    def _load_nv_embed(self, device, batch_size: int):
        settings = self.settings()
        model = load_nv_embed(self.folder, settings["dtype"], self.quantization, device)
        return lambda texts: model.encode(texts, self.prompt, batch_size, settings["max_length"])

    def _load_sentence_transformer(self, device, batch_size: int):
        model_kwargs = {}
        if self.dtype is not None:
            model_kwargs["dtype"] = self.dtype
        if self.quantization is not None:
            model_kwargs["quantization_config"] = bitsandbytes_config(self.quantization)

        model = open_sentence_transformer(self.folder, device, self.trust_remote_code, model_kwargs=model_kwargs)

        # some models have a processor around the tokenizer
        tokenizer = getattr(model.tokenizer, "tokenizer", model.tokenizer)
        if self.padding_side is not None:
            tokenizer.padding_side = self.padding_side
        if self.max_length is not None:
            model.max_seq_length = self.max_length
        ending = self._ending(tokenizer)

        def encode(texts: list[str]) -> np.ndarray:
            inputs = [as_text(f"{text}{ending}", model) for text in texts]
            prompt = self.prompt or None  # None leaves it to the model, which may have a default
            embeddings = model.encode(inputs, prompt=prompt, batch_size=batch_size, show_progress_bar=False)
            return embeddings.astype(np.float32)

        return encode

    def _ending(self, tokenizer) -> str:
        """What is put behind every text."""
        if not self.append_eos:
            return ""
        eos = getattr(tokenizer, "eos_token", None)
        if eos is None:
            raise ValueError(f"{self.model} has no EOS token that could be appended; leave `teacher_append_eos` out.")
        return eos


def encode_teacher(model, texts: list[str], out, batch_size: int = 32, **options) -> TeacherTable:
    """Embeds texts with a teacher, once; a killed job goes on where it stopped.

    A job is identified by the texts, the content of the teacher's files and how it reads. Where the folder holds the
    job of another teacher, or of other texts, that is left alone, and a folder within takes this one.

    Args:
        model (`str` or `Path`): folder or Hub id, such as `"nvidia/NV-Embed-v2"`.
        texts (`list[str]`): distinct texts.
        out (`str` or `Path`): folder for the embeddings.
        batch_size (`int`, defaults to 32): texts of one batch.
        options: of [`Teacher`].

    Returns:
        [`TeacherTable`]: of all texts, on every rank.

    Raises:
        ValueError: the teacher does not open, or cannot read as it is told to.
    """
    state = processes()
    teacher = Teacher(model, **options)
    settings = teacher.settings()
    folder = _job_folder(Path(out), texts, settings)

    run_job(
        folder,
        texts,
        lambda shard, encode: {"embeddings": encode(list(shard))},
        settings,
        rank=state.process_index,
        world_size=state.num_processes,
        description="Teacher",
        failures=(),  # a text that cannot be embedded ends the job: the student needs all of them
        prepare=lambda: teacher.load(state.device, batch_size),
    )

    # each rank has embedded its shards, and reads those of the others
    state.wait_for_everyone()
    return TeacherTable(texts, read_job(folder)["embeddings"])


def _job_folder(out: Path, texts: list[str], settings: dict) -> Path:
    """The folder of a job: `out` itself, or one within where another job is there already."""
    path = out / MANIFEST
    if not has_json(path):  # one that is damaged is written anew
        return out

    manifest = read_manifest(out)
    if manifest["fingerprint"] == fingerprint(texts) and manifest["settings"] == settings:
        return out
    return out / fingerprint([json.dumps(settings, sort_keys=True), *texts])[:16]


def license_of(model: str) -> str | None:
    """The licence of a teacher that forbids commercial use, as the Hub spells it; `None` if it is not known here.

    Args:
        model (`str`): folder, or name of a repository, which is not opened.
    """
    if "nv-embed" in model.lower() or is_nv_embed(Path(model)):
        return LICENSE
    return None
