"""Next-token logits of many prompts that begin alike: the beginning is run once, images are looked at once.

A judge reads the same instruction, query and query image before every candidate. Their keys and values are computed
once and shared by all candidates; the vision features of an image are kept across calls, up to a bound.
"""

import copy
import inspect
import os
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm.auto import tqdm
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .batching_unime import plan_chunks
from .images_unime import Resolution, VideoFrame
from .items_unime import PreparedItem, item_key
from .videos_unime import Clip
from .vlm_unime import image_inputs, most_tokens, vision_parameters


class _ImageKey(NamedTuple):
    """What the features of an image depend on.

    Args:
        content: equal for equal images.
        size (`tuple[int, int]`): (width, height) at which it is read.
        resolution (`Resolution`): the policy that led to this size, as upstream resizes more than once.
        alone (`bool`): whether its prompt has no other image; LLaVA cuts such an image into more tiles.
    """

    content: object
    size: tuple[int, int]
    resolution: Resolution
    alone: bool


@dataclass(frozen=True)
class _ImageFeatures:
    """An image as the language model gets it.

    Args:
        features (`Tensor` `[tokens, H]`): in the place of its tokens.
        deepstack (`list[Tensor]`): the same for each of the deeper layers that add some (Qwen3-VL).
        grid (`Tensor` `[3]`, *optional*): its grid of patches, from which M-RoPE counts positions.
        string (`str`): what its image token becomes in the prompt.
    """

    features: torch.Tensor
    deepstack: list[torch.Tensor]
    grid: torch.Tensor | None
    string: str

    @property
    def tokens(self) -> int:
        return len(self.features)


class VisionCache:
    """Features of the images that were used last, emptied when weights of the vision tower change.

    Args:
        max_tokens (`int`, defaults to 32,768): most tokens that all these images take together.
    """

    def __init__(self, max_tokens: int = 32_768):
        self.max_tokens = max_tokens
        self.entries: OrderedDict[_ImageKey, _ImageFeatures] = OrderedDict()  # those used last come last
        self.weights = None

    def open(self, weights: tuple):
        """Empties the cache unless it was filled under these weights, or any value that changes with them."""
        if weights != self.weights:
            self.entries.clear()
            self.weights = weights

    def get(self, key) -> _ImageFeatures | None:
        """The features of an image, which counts as used now; `None` if they are not here."""
        if key in self.entries:
            self.entries.move_to_end(key)
        return self.entries.get(key)

    def put(self, key, image: _ImageFeatures):
        """Adds an image, and drops those that were not used for the longest time if there are too many tokens."""
        self.entries[key] = image
        total = sum(entry.tokens for entry in self.entries.values())
        while total > self.max_tokens and self.entries:
            _, oldest = self.entries.popitem(last=False)
            total -= oldest.tokens


def groups_of(prepared: list[PreparedItem], image_tokens: int) -> list[list[int]]:
    """Cuts prompts, in their order, into groups whose distinct images take at most that many tokens.

    Args:
        prepared (`list[PreparedItem]`): one prompt each.
        image_tokens (`int`): most tokens of a group's images; a prompt with more of them is a group of its own.

    Returns:
        `list[list[int]]`: indices into `prepared`.
    """
    groups = []
    group_images = set()
    group_tokens = 0

    for index, entry in enumerate(prepared):
        # the query's image is one object in all prompts, and counts once
        tokens_by_image = {}
        for image, tokens in zip(entry.images, entry.image_tokens):
            key = image if isinstance(image, VideoFrame) else id(image)
            tokens_by_image[key] = tokens
        new_tokens = sum(tokens for image, tokens in tokens_by_image.items() if image not in group_images)

        if not groups or group_tokens + new_tokens > image_tokens:
            groups.append([])
            group_images = set()
            group_tokens = 0
            new_tokens = sum(tokens_by_image.values())

        groups[-1].append(index)
        group_images.update(tokens_by_image)
        group_tokens += new_tokens
    return groups


class _FeaturesNotByImage(Exception):
    """The VLM does not give one tensor of features for each image."""


class SharedPrefix:
    """Prompts of one call: their images, looked at already, and how far the prompts are equal.

    Args:
        model ([`UniMERerankerForCausalLM`]): the reranker.
        prepared (`list[PreparedItem]`): one prompt each.
        batch_tokens (`int`): padded tokens of one forward pass.
        show_progress (`bool`): whether there is a bar while many images are looked at.

    Attributes:
        length (`int`): tokens with which all prompts begin.
        prefix_images (`int`): images among them.
    """

    def __init__(self, model, prepared: list[PreparedItem], batch_tokens: int, show_progress: bool):
        self.model = model
        self.batch_tokens = batch_tokens
        self.keys = _image_keys(prepared, model.processor)  # of the images of each prompt
        self.images = self._look_at_images(prepared, show_progress)

        self.ids = []  # of each prompt, its images unfolded
        for entry, keys in zip(prepared, self.keys):
            strings = [self.images[key].string for key in keys]
            self.ids.append(model.processor.expand(entry, strings))
        self.length, self.prefix_images = self._common_beginning()

    @classmethod
    def of(cls, model, prepared, batch_tokens, show_progress=False):
        """The shared prefix of several prompts; `None` where sharing would change results or is not supported.

        The VLM must take features of images that were computed before, and compute the same behind a cache as without
        one; no prompt may hold a video, or cross the length at which rotary factors change. Arguments are those of the
        class.
        """
        if any(isinstance(image, Clip) for entry in prepared for image in entry.images):
            return None  # features of videos are not kept

        boundary = model.config.length_boundary
        if "mm_encoder_outputs" not in inspect.signature(model.vlm.forward).parameters:
            return None
        if boundary is not None and max(entry.length for entry in prepared) > boundary:
            return None

        try:
            shared = cls(model, prepared, batch_tokens, show_progress)
        except _FeaturesNotByImage:
            return None

        # tokens of an image see each other in both directions, but behind a cache only backwards (Gemma)
        text = model.config.vlm_config.get_text_config()
        follows_images = any(len(keys) > shared.prefix_images for keys in shared.keys)
        if shared.length and follows_images and getattr(text, "use_bidirectional_attention", None):
            return None
        return shared

    def _look_at_images(self, prepared, show_progress) -> dict[_ImageKey, _ImageFeatures]:
        """The features of all images, from the cache or from the vision tower."""
        cache = self.model.vision_cache
        cache.open(_vision_state(self.model))

        images = {}
        missing = {}  # key -> (prompt, index of the image in it)
        for entry, keys in zip(prepared, self.keys):
            for index, key in enumerate(keys):
                cached = cache.get(key)
                if cached is not None:
                    images[key] = cached
                elif key not in missing:
                    missing[key] = (entry, index)

        silent = not show_progress or len(missing) < 8
        with tqdm(total=len(missing), desc="Seeing", disable=silent, unit="image", leave=False) as bar:
            for alone in (True, False):  # read differently, hence never in one chunk
                keys = [key for key in missing if key.alone == alone]
                lengths = []
                for key in keys:
                    entry, index = missing[key]
                    lengths.append(entry.image_tokens[index])

                batch_tokens = min(self.batch_tokens, most_tokens(self.model.device, self.model.dtype))
                for chunk in plan_chunks(lengths, batch_tokens, max_padding=1.0):
                    chunk_keys = [keys[i] for i in chunk]
                    features = self._run_vision_tower([missing[key] for key in chunk_keys], alone)
                    for key, image in zip(chunk_keys, features):
                        images[key] = image
                        cache.put(key, image)
                    bar.update(len(chunk))
        return images

    def _run_vision_tower(self, places, alone: bool) -> list[_ImageFeatures]:
        """Features of images `(prompt, index)`, read as images that are alone in their prompt or one of several."""
        model = self.model
        inputs, strings = model.processor.read_loose_images(places, alone)
        tensors = {key: value.to(model.device) for key, value in image_inputs(model.vlm, inputs).items()}
        outputs = model.vlm.get_image_features(**tensors, return_dict=True)

        # features of all images in one tensor: only the VLM itself knows how to tell them apart
        by_image = isinstance(outputs.pooler_output, (list, tuple))
        if not by_image or len(outputs.pooler_output) < len(strings):
            raise _FeaturesNotByImage

        # copies, because a view would keep the features of the whole chunk alive
        layers = getattr(outputs, "deepstack_features", None) or []  # [layers][images]
        grids = inputs.get("image_grid_thw")
        images = []
        for index, string in enumerate(strings):
            features = outputs.pooler_output[index].clone()  # [tokens, H]
            deepstack = [layer[index].clone() for layer in layers]
            grid = None if grids is None else grids[index].clone()
            images.append(_ImageFeatures(features, deepstack, grid, string))
        return images

    def _common_beginning(self) -> tuple[int, int]:
        """Tokens and images with which all prompts begin; at least one token of each is left over."""
        if len(self.ids) == 1:
            return 0, 0

        # equal ids are not enough, because the tokens of all images have the same id
        numbers = {key: number for number, key in enumerate(self.images)}
        first_ids = np.array(self.ids[0])
        first_images, still_to_come = self._images_of_tokens(first_ids, self.keys[0], numbers)
        length = min(len(ids) for ids in self.ids) - 1
        for row in range(1, len(self.ids)):
            ids = np.array(self.ids[row])
            images, _ = self._images_of_tokens(ids, self.keys[row], numbers)
            same_ids = ids[:length] == first_ids[:length]
            same_images = images[:length] == first_images[:length]
            differences = np.flatnonzero(~(same_ids & same_images))
            if len(differences):
                length = int(differences[0])

        # an image is not cut in two
        while length and still_to_come[length - 1] > 0:
            length -= 1

        ends_image = (first_images >= 0) & (still_to_come == 0)
        return length, int(ends_image[:length].sum())

    def _images_of_tokens(self, ids: np.ndarray, keys, numbers) -> tuple[np.ndarray, np.ndarray]:
        """For each token `[L]` of a prompt the number of its image, or -1, and how many tokens of it come after."""
        images = np.full(len(ids), -1)
        still_to_come = np.zeros(len(ids), dtype=np.int64)
        if keys:
            is_image = ids == self.model.processor.image_token_id
            counts = [self.images[key].tokens for key in keys]
            images[is_image] = np.repeat([numbers[key] for key in keys], counts)
            still_to_come[is_image] = np.concatenate([np.arange(count)[::-1] for count in counts])
        return images, still_to_come

    def last_logits(self, columns: torch.Tensor, bar: tqdm) -> torch.Tensor:
        """Logits of the token after each prompt.

        Args:
            columns (`LongTensor` `[C]`): the tokens whose logits are returned.
            bar (`tqdm`): advanced by one for each prompt.

        Returns:
            float32 tensor `[N, C]` on the CPU.
        """
        prefix = None
        if self.length:
            _, prefix = self._run([0], 0, self.length, slice(0, self.prefix_images))

        # every row of a chunk gets a copy of the prefix, so that rows are limited beside the tokens
        longest = max(len(ids) for ids in self.ids)
        max_rows = max(1, 2 * self.batch_tokens // longest)
        chunks = []
        for chunk in plan_chunks([len(ids) - self.length for ids in self.ids], self.batch_tokens):
            for start in range(0, len(chunk), max_rows):
                chunks.append(chunk[start : start + max_rows])

        # nothing of a forward pass but its last logits `[rows, vocabulary]` stays in memory
        logits = torch.empty(len(self.ids), len(columns))
        for chunk in chunks:
            cache = None if prefix is None else _repeated(prefix, len(chunk))
            last, _ = self._run(chunk, self.length, None, slice(self.prefix_images, None), cache)  # [n, vocabulary]
            logits[chunk] = last[:, columns.to(last.device)].float().cpu()
            bar.update(len(chunk))
        return logits

    def _run(self, rows: list[int], start: int, end: int | None, images: slice, cache=None) -> tuple:
        """The logits `[n, vocabulary]` after a range of tokens and images of some prompts, and the cache behind them.

        Padding stands on the right. Between the cache and the prompt it would move a sliding window, and let the
        state of linear attention fade.
        """
        model = self.model
        pieces = [self.ids[row][start:end] for row in rows]
        inputs = model.processor.pad(pieces, side="right")
        width = inputs["input_ids"].shape[1]

        # positions of the whole prompts, of which the range is taken
        positions = []
        for row in rows:
            row_positions = self._positions(torch.tensor([self.ids[row]]), self.keys[row])[..., start:end]
            positions.append(F.pad(row_positions, (0, width - row_positions.shape[-1])))
        inputs["position_ids"] = torch.cat(positions, dim=-2)  # [3, n, width] or [n, width]

        # all rows see the tokens in the cache
        inputs["attention_mask"] = F.pad(inputs["attention_mask"], (start, 0), value=1)  # [n, start + width]
        inputs = {key: value.to(model.device) for key, value in inputs.items()}

        features = []
        for row in rows:
            features += [self.images[key] for key in self.keys[row][images]]
        if features:
            inputs["mm_encoder_outputs"] = {"image": _join(features)}

        # rows end in a few columns, and only their logits are wanted
        ends, places = torch.tensor([len(piece) - 1 for piece in pieces]).unique(return_inverse=True)
        spares_logits = bool(model.keep_last_logits)
        if spares_logits:
            inputs["logits_to_keep"] = ends.to(model.device)
        outputs = model(**inputs, past_key_values=cache, use_cache=self.length > 0)

        logits = outputs.logits if spares_logits else outputs.logits[:, ends]  # [n, ends, vocabulary]
        return logits[torch.arange(len(rows)), places], outputs.past_key_values

    def _positions(self, ids: torch.Tensor, keys) -> torch.Tensor:
        """Position ids of a whole prompt `[1, L]`: `[3, 1, L]` for M-RoPE, else `[1, L]`."""
        vlm = self.model.vlm
        rope_owner = None
        for module in (vlm, getattr(vlm, "model", None)):
            if rope_owner is None and hasattr(module, "get_rope_index"):
                rope_owner = module

        # tokens are numbered one after the other where there is no image, or no M-RoPE
        numbers = torch.arange(ids.shape[1])[None]  # [1, L]
        if rope_owner is None:
            return numbers
        if not keys:
            return numbers.expand(3, 1, -1)

        is_image = torch.isin(ids, torch.tensor(self.model.processor.image_token_ids)).int()
        grids = torch.stack([self.images[key].grid for key in keys])  # [images, 3]
        return rope_owner.get_rope_index(
            input_ids=ids, mm_token_type_ids=is_image, image_grid_thw=grids, attention_mask=torch.ones_like(ids)
        )[0]


def _repeated(prefix: Cache, rows: int) -> Cache:
    """A cache of some rows that all begin with the one row of another, which stays as it is.

    Keys and values are views: a forward pass copies them once, when it puts each row's own behind them.
    """
    cache = copy.copy(prefix)
    cache.layers = []
    for layer in prefix.layers:
        if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer):
            layer = copy.copy(layer)
            if layer.get_seq_length():  # there are none where layers share what another one holds
                layer.keys = layer.keys.expand(rows, -1, -1, -1)  # [rows, heads, length, head_dim]
                layer.values = layer.values.expand(rows, -1, -1, -1)
        else:
            # a running state is written to where it lies
            layer = copy.deepcopy(layer)
            layer.reorder_cache(torch.zeros(rows, dtype=torch.long))
        cache.layers.append(layer)
    return cache


def _image_keys(prepared: list[PreparedItem], processor) -> list[list[_ImageKey]]:
    """Keys of the images of each prompt."""
    contents = {}  # by object: the query's image is one object in all prompts, and is read once
    keys = []
    for entry in prepared:
        alone = len(entry.images) == 1
        entry_keys = []
        for image, size in zip(entry.images, entry.sizes):
            if id(image) not in contents:
                contents[id(image)] = _content_of(image, processor.max_image_pixels, entry.name)
            entry_keys.append(_ImageKey(contents[id(image)], size, entry.resolution, alone))
        keys.append(entry_keys)
    return keys


def _content_of(image, max_pixels: int, name: str):
    """What is equal for equal images: a hash of the pixels, or a file with its inode, size and times of change."""
    if isinstance(image, VideoFrame):
        return image
    if isinstance(image, Image.Image):
        return item_key(image, max_pixels, name)
    status = os.stat(image)
    return os.fspath(image), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _vision_state(model) -> tuple:
    """Changes whenever a weight outside the language model does, an adapter is switched, or another processor set."""
    weights = tuple((weight.data_ptr(), weight._version) for weight in vision_parameters(model.vlm))

    adapters = []
    for module in model.vlm.modules():
        if hasattr(module, "merged_adapters"):
            adapters.append((module.disable_adapters, tuple(module.active_adapters), tuple(module.merged_adapters)))
    return id(model.processor), weights, tuple(adapters)


def _join(images: list[_ImageFeatures]) -> BaseModelOutputWithPooling:
    """The vision tower's output for several images, from what each of them gave."""
    by_image = [image.deepstack for image in images]  # [images][layers]
    output = BaseModelOutputWithPooling(pooler_output=[image.features for image in images])
    output.deepstack_features = [list(layer) for layer in zip(*by_image)]  # [layers][images]
    return output


__all__ = ["SharedPrefix", "VisionCache", "groups_of"]
