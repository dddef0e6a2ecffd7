"""What a backbone reads: its image processor, its image tokens, and how many of them an image takes.

Two classes with one interface read prompts and images: [`NativeProcessor`] stands on any processor of transformers,
[`~unime.processing_phi3_v.Phi3VProcessor`] reads Phi-3-vision, which transformers does not know.
"""

import copy
import warnings
from itertools import chain
from typing import NamedTuple

import torch
import transformers
from tokenizers import Tokenizer
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)
from transformers.processing_utils import ProcessorMixin
from transformers.utils import cached_file

from .configuration_phi3_v import Phi3VConfig
from .processing_phi3_v import (
    Phi3VImageProcessor,
    Phi3VProcessor,
    load_phi3_v_images,
    run_length,
)
from .videos_unime import clip_reader

_FILE_OPTIONS = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download", "proxies")
_PARTS = ("image_processor", "tokenizer")  # of a processor class of transformers, those that read images and texts
_COUNTS_LIKE = {"SmolVLMProcessor": "Idefics3Processor"}  # which has the method that counts tokens of equal images
_SINGLE_IMAGE = ("LlavaNextProcessor", "MllamaProcessor")  # trained on one image a prompt


class ImageSettings(NamedTuple):
    """What a preset changes in a backbone's image processor.

    Args:
        legacy_padding (`bool`): read LLaVA's tiles as transformers 4.4x padded them.
        tokens (`tuple[int, int]`, *optional*): fewest and most tokens of an image, if tokens are squares of it.
        crops (`int`, *optional*): most crops of an image, of Phi-3-vision.
        frame_pixels (`tuple[int, int]`, *optional*): fewest and most pixels of a frame of a video.
        video_pixels (`int`): most pixels of a video.
    """

    legacy_padding: bool = False
    tokens: tuple[int, int] | None = None
    crops: int | None = None
    frame_pixels: tuple[int, int] | None = None
    video_pixels: int = 90_316_800


def build_native(image_processor, tokenizer, settings: dict, images: ImageSettings):
    """The native processor of a backbone.

    Args:
        image_processor, tokenizer: of the backbone.
        settings (`dict`): `processor_class`, and the keyword arguments of its `__init__`.
        images ([`ImageSettings`]): what the preset changes in the image processor.

    Returns:
        [`NativeProcessor`] or [`~unime.processing_phi3_v.Phi3VProcessor`].
    """
    if settings["processor_class"] == Phi3VProcessor.__name__:
        return Phi3VProcessor(_with_crops(image_processor, images.crops), tokenizer)
    if settings["processor_class"] == "MllamaProcessor":
        return CrossAttentionProcessor(image_processor, tokenizer, settings, images)
    return NativeProcessor(image_processor, tokenizer, settings, images)


class NativeProcessor:
    """A backbone's own processor class, built without a video processor (which would need torchvision).

    Args: as [`build_native`].

    Attributes:
        image_token (`str`): stands for one image in a prompt.
        placeholder_id (`int`): the id of that token where the tokenizer reads it in a prompt.
        image_token_id (`int`), image_token_ids (`list[int]`): ids of the tokens that an image becomes.
        types_name (`str`): what the model calls the tensor that tells image tokens from others.
        takes_several_images (`bool`): whether a prompt may hold more than one image.
        videos ([`~unime.videos_unime.ClipReader`], *optional*): what reads videos, where the backbone has tokens of
            their own for them.
        frames ([`NativeProcessor`]): what reads frames of a video as images; another one where the preset has limits
            of their own for them.

    Raises:
        ValueError: the class does not follow the common interface; the message says what is missing.
    """

    follows_transformers = True
    needed = ("image_token", "_get_num_multimodal_tokens", "replace_image_token")  # of the processor class
    tag = None  # a pattern of what stands for an image beside its token

    def __init__(self, image_processor, tokenizer, settings: dict, images: ImageSettings):
        self.arguments = (image_processor, tokenizer, settings, images)
        self.name = settings["processor_class"]
        self.image_processor = _with_limits(image_processor, images.tokens)
        if images.legacy_padding:
            self.image_processor = _with_legacy_padding(self.image_processor)
        self.tokenizer = tokenizer
        self.takes_several_images = self.name not in _SINGLE_IMAGE

        # parts that transformers insists on, and that read neither images nor texts
        native_class = getattr(transformers, self.name)
        options = dict.fromkeys(set(native_class.get_attributes()) - set(_PARTS))
        options.update(settings)
        options.pop("processor_class")
        self.processor = _without_other_parts(native_class)(
            image_processor=self.image_processor,
            tokenizer=tokenizer,
            **options,
        )
        self._check_interface()

        self.image_token = self.processor.image_token
        self.image_token_id = self.processor.image_token_id
        self.image_token_ids = self.processor.image_token_ids
        self.placeholder_id = tokenizer.convert_tokens_to_ids(self.image_token)
        if self.placeholder_id in (None, tokenizer.unk_token_id):
            raise ValueError(f"the tokenizer has no image token {self.image_token!r}, which {self.name} needs.")

        self.videos = clip_reader(self.processor, tokenizer, images.frame_pixels, images.video_pixels)

        self.frames = self
        if images.frame_pixels and self.grain:
            limits = tuple(pixels // self.grain**2 for pixels in images.frame_pixels)
            self.frames = type(self)(image_processor, tokenizer, settings, ImageSettings(tokens=limits))

        # M-RoPE asks for the types of tokens by one name, Gemma's attention by another.
        outputs = self.processor(text=["a"], return_mm_token_type_ids=True)
        self.types_name = "mm_token_type_ids" if "mm_token_type_ids" in outputs else "token_type_ids"

    def _check_interface(self):
        missing = []
        for name in self.needed:
            inherited = getattr(type(self.processor), name, None) is getattr(ProcessorMixin, name, self)
            if getattr(self.processor, name, None) is None or inherited:
                missing.append(name)

        if missing:
            raise ValueError(
                f"{self.name} does not follow transformers' interface of image-text-to-text processors: it lacks "
                f"{' and '.join(missing)}, by which image tokens are counted and placed."
            )

    def __reduce__(self):
        return type(self), self.arguments  # the class made below has no name to be unpickled by

    @property
    def grain(self) -> int | None:
        """Pixels a side of one token, where every token is a square of the image (the Qwen-VL family)."""
        if not hasattr(self.image_processor, "merge_size"):
            return None
        return self.image_processor.patch_size * self.image_processor.merge_size

    def count_tokens(self, sizes: list[tuple[int, int]]) -> list[int]:
        """Tokens of the images, given as (width, height), of one prompt."""
        # LLaVA-OneVision cuts an image into tiles only when it is alone in its prompt.
        if self.name == "LlavaOnevisionProcessor" and len(sizes) > 1:
            return [self.processor.num_image_tokens + 1] * len(sizes)

        counts = self.processor._get_num_multimodal_tokens(image_sizes=[(height, width) for width, height in sizes])
        return list(counts.num_image_tokens)

    def tokenize(self, prompts: list[str]) -> list[list[int]]:
        """Ids of prompts, with one image token per image."""
        return self.tokenizer(prompts)["input_ids"] if prompts else []

    def read_images(self, prompts: list[list]) -> tuple[dict, list[str]]:
        """The vision tower's inputs for the images of each prompt, and the string that stands for each image.

        Args:
            prompts (`list[list[PIL.Image.Image]]`): the images of every prompt that has any.
        """
        options = self.processor._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, return_tensors="pt")
        images = list(chain.from_iterable(prompts)) if self.grain else prompts
        inputs, strings = self.processor._process_images(images, **options["images_kwargs"])

        # what only words the prompt is no tensor (Idefics names its rows and columns)
        tensors = {}
        for name, values in inputs.items():
            if name not in self.processor.unused_input_names and not _is_nested(values):
                tensors[name] = values
        return tensors, strings

    def run_length(self, string: str) -> int | None:
        """How many tokens of an image, or of a video, a string consists of; None if it holds anything else."""
        length = run_length(string, self.image_token)
        if length is None and self.videos is not None:
            length = run_length(string, self.videos.token)
        return length

    @property
    def placeholder_ids(self) -> set[int]:
        """Ids of the tokens that stand for an image or a video in a prompt."""
        return {self.placeholder_id} | ({self.videos.token_id} if self.videos is not None else set())

    def complete(self, batch: dict) -> dict:
        """The tensors of a batch, with those that only the whole batch decides."""
        return batch


class CrossAttentionProcessor(NativeProcessor):
    """Mllama's (Llama 3.2 Vision), whose language model looks at images by cross-attention: an image is one token."""

    needed = ("image_token", "replace_image_token")

    def count_tokens(self, sizes: list[tuple[int, int]]) -> list[int]:
        """Tokens of the images of one prompt: its token alone, as the features of an image stand beside the text."""
        return [1] * len(sizes)

    def complete(self, batch: dict) -> dict:
        """Gives every row its image, or none, and says which tokens look at it.

        Args:
            batch (`dict`): tensors of N rows, and those of the images of P of them.

        Returns:
            `dict`: with `pixel_values` and what belongs to them for N rows, blank where a row has no image, and
            `cross_attention_mask` `[N, L, 1, tiles]`.
        """
        completed = {name: values for name, values in batch.items() if name != self.types_name}
        if "pixel_values" not in batch:
            return completed

        is_image = (batch["input_ids"] == self.image_token_id) & batch["attention_mask"].bool()  # [N, L]
        rows = is_image.any(dim=1).nonzero().flatten()  # [P]
        for name in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask"):
            values = batch[name]
            blank = values.new_zeros(len(is_image), *values.shape[1:])
            completed[name] = blank.index_copy(0, rows, values)

        # an image is seen by its token and by all after it
        tiles = completed["aspect_ratio_mask"].sum(dim=2).tolist()  # [N, 1]
        spans = [get_cross_attention_token_mask(ids.tolist(), self.image_token_id) for ids in batch["input_ids"]]
        mask = convert_sparse_cross_attention_mask_to_dense(
            spans, tiles, self.image_processor.max_image_tiles, is_image.shape[1]
        )
        completed["cross_attention_mask"] = torch.from_numpy(mask)

        # of a blank image too a tile is seen: attention to nothing has no value
        completed["aspect_ratio_mask"][:, :, 0] = 1
        return completed


def _is_nested(values) -> bool:
    """Whether values are lists of lists, and neither a tensor nor a list of tensors."""
    return isinstance(values, list) and any(isinstance(entry, (list, tuple, int)) for entry in values)


class _PartsThatAreGiven(ProcessorMixin):
    """Stands between a processor class and its base, which refuses a part that is None."""

    def __init__(self, *args, **kwargs):
        parts = {name: value for name, value in kwargs.items() if value is not None}
        super().__init__(*args, **parts)


def _without_other_parts(cls):
    """The class with an `__init__` that needs neither a video processor nor one of audio."""
    attributes = [name for name in cls.get_attributes() if name in _PARTS]
    body = {"get_attributes": classmethod(lambda _: attributes)}
    if cls.__name__ in _COUNTS_LIKE:
        relative = getattr(transformers, _COUNTS_LIKE[cls.__name__])
        body["_get_num_multimodal_tokens"] = relative._get_num_multimodal_tokens
    return type(cls.__name__, (cls, _PartsThatAreGiven), body)


def _with_limits(image_processor, tokens: tuple[int, int] | None):
    """A copy that resizes every image to so many tokens, where tokens are squares of the image; else the same."""
    if tokens is None or not hasattr(image_processor, "merge_size"):
        return image_processor

    area = (image_processor.patch_size * image_processor.merge_size) ** 2  # pixels of a token
    fewest, most = tokens
    limited = copy.copy(image_processor)
    limited.size = type(image_processor.size)(shortest_edge=fewest * area, longest_edge=most * area)
    return limited


def _with_crops(image_processor, crops: int | None):
    """A copy of Phi-3-vision's image processor with another number of crops, or the same."""
    if crops is None:
        return image_processor
    cropping = copy.copy(image_processor)
    cropping.num_crops = crops
    return cropping


def _with_legacy_padding(image_processor):
    """A copy that pads both sides of LLaVA's canvas by half the missing pixels, rounded down."""

    class Legacy(type(image_processor)):
        def _get_padding_size(self, original_resolution, target_resolution):
            height = (target_resolution[0] - original_resolution[0]) // 2
            width = (target_resolution[1] - original_resolution[1]) // 2
            return (height, height), (width, width)

    legacy = Legacy.__new__(Legacy)
    legacy.__dict__.update(image_processor.__dict__)
    return legacy


def load_saved_images(path, saved: dict, hub: dict):
    """The image processor of a UniME repository: with PIL wherever it runs, so that pixels are always the same.

    Args:
        path: directory or repository.
        saved (`dict`): settings of the image processor as the repository has them.
        hub (`dict`): `revision`, `token`, `trust_remote_code`, ... for the loader.
    """
    if saved.get("image_processor_type") == Phi3VImageProcessor.__name__:
        return load_phi3_v_images(saved)
    return AutoImageProcessor.from_pretrained(path, backend="pil", **hub)


def load_parts(path, config, hub: dict):
    """Image processor, tokenizer, chat template and settings of a stock checkpoint.

    Args:
        path: directory or repository.
        config: configuration of the backbone; what it says about the vision tower goes before what old processor
            files say.
        hub (`dict`): `revision`, `token`, `trust_remote_code`, ... for the loaders.

    Raises:
        ValueError: transformers has no processor for the backbone.
    """
    try:
        saved, _ = ProcessorMixin.get_processor_dict(path, **hub)
    except OSError:  # a checkpoint without processor files: tokenizer and image processor have files of their own
        saved = {}
    template = saved.pop("chat_template", None)

    if config.model_type == Phi3VConfig.model_type:
        image_processor, tokenizer = _load_phi3_v_parts(path, hub)
        return image_processor, tokenizer, template, {"processor_class": Phi3VProcessor.__name__}

    name = PROCESSOR_MAPPING_NAMES.get(config.model_type)
    if name is None:
        raise ValueError(
            f"{path} is a {config.model_type}, for which transformers has no processor; only image-text-to-text "
            "models with a processor of their own can be wrapped."
        )
    image_processor = AutoImageProcessor.from_pretrained(path, backend="pil", **hub)
    tokenizer = AutoTokenizer.from_pretrained(path, **hub)
    settings = {**_processor_settings(name, saved), **_tile_settings(config)}
    return image_processor, tokenizer, template, {"processor_class": name, **settings}


def restore_normalizer(tokenizer, path, hub: dict):
    """Gives a tokenizer the normalizer that its file has, where transformers has put another one in its place.

    Qwen3.5's class makes one of its own since transformers 5.18, without what a checkpoint added to it.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): loaded from `path`.
        path: directory or repository.
        hub (`dict`): `revision`, `token`, ... for the Hub.
    """
    file = cached_file(path, "tokenizer.json", **{key: value for key, value in hub.items() if key in _FILE_OPTIONS})
    tokenizer.backend_tokenizer.normalizer = Tokenizer.from_file(file).normalizer


def _load_phi3_v_parts(path, hub: dict):
    """Image processor and tokenizer of a published Phi-3-vision or Phi-3.5-vision checkpoint.

    Args:
        path: directory or repository.
        hub (`dict`): `revision`, `token`, `trust_remote_code`, ... for the loaders.
    """
    published, _ = Phi3VImageProcessor.get_image_processor_dict(path, **hub)
    image_processor = load_phi3_v_images({**Phi3VImageProcessor().to_dict(), **published})

    # The Llama class that AutoTokenizer may pick would drop the token between a special token and a newline.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path, **hub)
    _warn_of_lost_spaces(tokenizer, path)
    return image_processor, tokenizer


def _warn_of_lost_spaces(tokenizer, path):
    """Warns of a tokenizer that differs from the published one, and so gives other embeddings.

    Phi-3.5-vision's own starts every piece after a special token with a space token; copies made by a slow tokenizer
    do not.
    """
    ids = tokenizer("<|user|>\n")["input_ids"]
    if tokenizer.convert_tokens_to_ids("<|user|>") == 32010 and ids != [1, 32010, 29871, 13]:
        warnings.warn(
            f"the tokenizer of {path} reads '<|user|>\\n' as {ids}, where that of Phi-3.5-vision gives "
            "[1, 32010, 29871, 13]; if the model was trained with the latter, pass "
            "`processor='microsoft/Phi-3.5-vision-instruct'`.",
            stacklevel=5,
        )


def _processor_settings(name: str, saved: dict) -> dict:
    """Those of the saved settings that the processor class takes, without the parts that it is built from."""
    arguments = getattr(transformers, name).__init__.__code__.co_varnames
    parts = ("image_processor", "tokenizer", "video_processor", "feature_extractor", "chat_template")
    return {key: value for key, value in saved.items() if key in arguments and key not in parts}


def _tile_settings(config) -> dict:
    """What LLaVA's processors must know about the vision tower; processor files of 4.4x lack some of it."""
    if config.model_type not in ("llava_next", "llava_onevision"):
        return {}

    vision = config.vision_config
    settings = {"vision_feature_select_strategy": config.vision_feature_select_strategy}
    if config.model_type == "llava_next":
        has_class_token = "clip" in vision.model_type
        return {**settings, "patch_size": vision.patch_size, "num_additional_image_tokens": int(has_class_token)}

    # LLaVA-OneVision asks for the tokens of a whole tile
    side = vision.image_size // vision.patch_size
    return {**settings, "num_image_tokens": side * side, "vision_aspect_ratio": config.vision_aspect_ratio}


__all__ = ["ImageSettings", "NativeProcessor", "build_native", "load_parts", "load_saved_images", "restore_normalizer"]
