"""Next-token logits of many prompts that begin alike: the beginning is run once, images are looked at once.

A judge reads the same instruction, query and query image before every candidate. Their keys and values are computed
once and shared by all candidates; the vision features of an image are kept across calls, up to a bound.
"""

import copy
import inspect
import os
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm.auto import tqdm
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .batching_unime import plan_chunks
from .images_unime import VideoFrame
from .items_unime import PreparedItem, item_key
from .vlm_unime import image_inputs, vision_parameters


@dataclass
class _Seen:
    """An image as the language model gets it: features `[tokens, H]`, those added at deeper layers (Qwen3-VL), its
    patch grid (M-RoPE), and the string its image token becomes."""

    features: torch.Tensor
    deepstack: list[torch.Tensor]
    grid: torch.Tensor | None
    string: str

    @property
    def tokens(self) -> int:
        return len(self.features)


class VisionCache:
    """Features of the images seen last, at most `max_tokens` of their tokens; emptied when vision weights change."""

    def __init__(self, max_tokens: int = 32_768):
        self.max_tokens = max_tokens
        self.entries: OrderedDict[tuple, _Seen] = OrderedDict()
        self.weights = None

    def open(self, weights: tuple):
        if weights != self.weights:
            self.entries.clear()
            self.weights = weights

    def get(self, key) -> _Seen | None:
        if key in self.entries:
            self.entries.move_to_end(key)
        return self.entries.get(key)

    def put(self, key, seen: _Seen):
        self.entries[key] = seen
        total = sum(entry.tokens for entry in self.entries.values())
        while total > self.max_tokens and self.entries:
            total -= self.entries.popitem(last=False)[1].tokens


def groups_of(prepared: list[PreparedItem], image_tokens: int) -> list[list[int]]:
    """Cuts prompts, in their order, into groups whose distinct images take at most that many tokens."""
    groups, known, total = [], set(), 0
    for index, entry in enumerate(prepared):
        own = {
            image if isinstance(image, VideoFrame) else id(image): tokens
            for image, tokens in zip(entry.images, entry.image_tokens)
        }
        new = sum(tokens for image, tokens in own.items() if image not in known)
        if not groups or total + new > image_tokens:
            groups.append([])
            known, total, new = set(), 0, sum(own.values())
        groups[-1].append(index)
        known.update(own)
        total += new
    return groups


class _NotByImage(Exception):
    """The VLM does not give one tensor of features for each image."""


class SharedPrefix:
    """Prompts of one call, their images seen, and how far they are equal.

    Args:
        model: the reranker.
        prepared (`list[PreparedItem]`): one prompt each.
        batch_tokens (`int`): tokens of one forward pass.
    """

    def __init__(self, model, prepared: list[PreparedItem], batch_tokens: int, show_progress: bool):
        self.model, self.batch_tokens = model, batch_tokens
        self.seen: dict[tuple, _Seen] = {}
        self.images = _keys_of(prepared, model.processor)
        self._look(prepared, show_progress)
        strings = [[self.seen[key].string for key in keys] for keys in self.images]
        self.ids = [model.processor.expand(entry, texts) for entry, texts in zip(prepared, strings)]
        self.length, self.prefix_images = self._common()

    @classmethod
    def of(cls, model, prepared, batch_tokens, show_progress=False):
        """The shared prefix of several prompts; None where sharing would change results or is not supported.

        The VLM must take images seen before, and no prompt may cross the length at which rotary factors change.
        """
        boundary = model.config.length_boundary
        if "mm_encoder_outputs" not in inspect.signature(model.vlm.forward).parameters:
            return None
        if boundary is not None and max(entry.length for entry in prepared) > boundary:
            return None
        try:
            return cls(model, prepared, batch_tokens, show_progress)
        except _NotByImage:
            return None

    def _look(self, prepared, show_progress):
        """Runs the vision tower over the distinct images that are not in the cache."""
        model, cache = self.model, self.model.vision_cache
        cache.open(_vision_state(model))
        wanted = {}
        for entry, keys in zip(prepared, self.images):
            for index, key in enumerate(keys):
                if (known := cache.get(key)) is not None:
                    self.seen[key] = known
                elif key not in wanted:
                    wanted[key] = (entry, index)
        silent = not show_progress or len(wanted) < 8
        with tqdm(total=len(wanted), desc="Seeing", disable=silent, unit="image", leave=False) as bar:
            for alone in (True, False):
                pending = [(key, place) for key, place in wanted.items() if key[-1] == alone]
                lengths = [entry.image_tokens[index] for _, (entry, index) in pending]
                for chunk in plan_chunks(lengths, self.batch_tokens, max_padding=1.0):
                    keys, places = zip(*(pending[i] for i in chunk))
                    for key, seen in zip(keys, self._see(places, alone)):
                        self.seen[key] = seen
                        cache.put(key, seen)
                    bar.update(len(chunk))

    def _see(self, places, alone: bool) -> list[_Seen]:
        """Features of images, read as they are when alone in their prompt, or one of several."""
        model = self.model
        inputs, strings = model.processor.read_loose_images(places, alone)
        tensors = {key: value.to(model.device) for key, value in image_inputs(model.vlm, inputs).items()}
        outputs = model.vlm.get_image_features(**tensors, return_dict=True)
        by_image = isinstance(outputs.pooler_output, (list, tuple))
        if not by_image or len(outputs.pooler_output) < len(strings):
            raise _NotByImage  # features of all images in one tensor: how they are told apart is the VLM's own affair
        deepstack = getattr(outputs, "deepstack_features", None) or []  # [layers][images]
        grids = inputs.get("image_grid_thw")
        return [  # copies: a view would keep the features of the whole chunk alive
            _Seen(
                outputs.pooler_output[i].clone(),
                [layer[i].clone() for layer in deepstack],
                None if grids is None else grids[i].clone(),
                text,
            )
            for i, text in enumerate(strings)
        ]

    def _common(self) -> tuple[int, int]:
        """Tokens and images with which all prompts begin; at least one token of each is left over."""
        if len(self.ids) == 1:
            return 0, 0
        numbers = {key: number for number, key in enumerate(self.seen)}
        first, *others = (self._marked(ids, keys, numbers) for ids, keys in zip(self.ids, self.images))
        length = min(map(len, self.ids)) - 1
        for other in others:
            differs = np.flatnonzero(first[:length] != other[:length])
            length = int(differs[0]) if len(differs) else length
        left = -1 - first[:length]  # at image tokens: image number * 2^32 + tokens of it still to come
        while length and left[length - 1] > 0 and left[length - 1] % 2**32:
            length -= 1  # an image is not cut in two
        left = left[:length]
        return length, int(((left >= 0) & (left % 2**32 == 0)).sum())

    def _marked(self, ids, keys, numbers) -> np.ndarray:
        """Ids in which every image token tells its image and how many of it are still to come (negative)."""
        marked = np.array(ids, dtype=np.int64)
        spans = [numbers[key] * 2**32 + np.arange(self.seen[key].tokens)[::-1] for key in keys]
        if spans:
            marked[marked == self.model.processor.image_token_id] = -1 - np.concatenate(spans)
        return marked

    def last_logits(self, columns: torch.Tensor, bar: tqdm) -> torch.Tensor:
        """Logits `[N, len(columns)]` of the token after each prompt, float32."""
        lengths = [len(ids) - self.length for ids in self.ids]
        prefix = self._run([0], 0, self.length, slice(0, self.prefix_images)).past_key_values if self.length else None
        logits = torch.empty(len(self.ids), len(columns))
        rows = max(1, 2 * self.batch_tokens // max(map(len, self.ids)))  # bounds the copies of the prefix
        chunks = plan_chunks(lengths, self.batch_tokens)
        chunks = [chunk[i : i + rows] for chunk in chunks for i in range(0, len(chunk), rows)]
        for chunk in chunks:
            cache = copy.deepcopy(prefix)
            if cache is not None:
                cache.batch_repeat_interleave(len(chunk))
            out = self._run(chunk, self.length, None, slice(self.prefix_images, None), cache).logits[:, -1]
            logits[chunk] = out[:, columns.to(out.device)].float().cpu()
            bar.update(len(chunk))
        return logits

    def _run(self, rows: list[int], start: int, end: int | None, images: slice, cache=None):
        """The model's output for a range of tokens of some prompts, padded on the left, after what is in `cache`."""
        model = self.model
        inputs = model.processor.pad([self.ids[row][start:end] for row in rows], side="left")
        width = inputs["input_ids"].shape[1]
        positions = []
        for row in rows:
            own = self._positions(torch.tensor([self.ids[row]]), self.images[row])[..., start:end]
            positions.append(F.pad(own, (width - own.shape[-1], 0)))
        inputs["position_ids"] = torch.cat(positions, dim=-2)  # [3, N, width] or [N, width]
        inputs["attention_mask"] = F.pad(inputs["attention_mask"], (start, 0), value=1)  # [N, start + width]
        inputs = {key: value.to(model.device) for key, value in inputs.items()}
        seen = [self.seen[key] for row in rows for key in self.images[row][images]]
        if seen:
            inputs["mm_encoder_outputs"] = {"image": _join(seen)}
        return model(**inputs, past_key_values=cache, use_cache=self.length > 0, **model.keep_last_logits)

    def _positions(self, ids: torch.Tensor, keys) -> torch.Tensor:
        """Position ids of a whole prompt `[1, L]`: `[3, 1, L]` for M-RoPE, else `[1, L]`."""
        model = self.model
        owner = next((m for m in (model.vlm, getattr(model.vlm, "model", None)) if hasattr(m, "get_rope_index")), None)
        if owner is None or not keys:
            flat = torch.arange(ids.shape[1])[None]
            return flat if owner is None else flat.expand(3, 1, -1)
        is_image = torch.isin(ids, torch.tensor(model.processor.image_token_ids)).int()
        grid = torch.stack([self.seen[key].grid for key in keys])
        return owner.get_rope_index(
            input_ids=ids, mm_token_type_ids=is_image, image_grid_thw=grid, attention_mask=torch.ones_like(ids)
        )[0]


def _keys_of(prepared, processor) -> list[list[tuple]]:
    """What tells images apart: content, size as read, and whether they are alone in their prompt."""
    known = {}  # the query's image is one object in all prompts

    def content(image):
        if id(image) not in known:
            if isinstance(image, VideoFrame):
                known[id(image)] = image
            elif isinstance(image, Image.Image):
                known[id(image)] = item_key(image, processor.max_image_pixels)
            else:
                status = os.stat(image)
                known[id(image)] = (os.fspath(image), status.st_mtime_ns, status.st_size)
        return known[id(image)]

    return [
        [
            (content(image), size, entry.resolution, len(entry.images) == 1)
            for image, size in zip(entry.images, entry.sizes)
        ]
        for entry in prepared
    ]


def _vision_state(model) -> tuple:
    """Changes whenever a weight outside the language model does, an adapter is switched, or another processor set."""
    adapters = (m for m in model.vlm.modules() if hasattr(m, "merged_adapters"))
    return (
        id(model.processor),
        tuple((p.data_ptr(), p._version) for p in vision_parameters(model.vlm)),
        tuple((m.disable_adapters, tuple(m.active_adapters), tuple(m.merged_adapters)) for m in adapters),
    )


def _join(seen: list[_Seen]) -> BaseModelOutputWithPooling:
    """The vision tower's output for several images, from what each of them gave."""
    joined = BaseModelOutputWithPooling(pooler_output=[entry.features for entry in seen])
    joined.deepstack_features = [list(layer) for layer in zip(*(entry.deepstack for entry in seen))]
    return joined


__all__ = ["SharedPrefix", "VisionCache", "groups_of"]
