"""What a backbone wants to see: its image processor, its image tokens, and how many of them an image takes."""

import warnings

import transformers
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.processing_utils import ProcessorMixin

from .processing_phi3_v import Phi3VImageProcessor, Phi3VProcessor

_SINGLE_IMAGE = ("LlavaNextProcessor",)  # trained on one image a prompt


class NativeProcessor:
    """A backbone's own processor class, built without a video processor (which would need torchvision).

    Args:
        image_processor, tokenizer: of the backbone.
        settings (`dict`): `processor_class`, and the keyword arguments of its `__init__`.
        legacy_padding (`bool`): read LLaVA's tiles as transformers 4.4x padded them.

    Raises:
        ValueError: the class does not follow the common interface; the message says what is missing.
    """

    def __init__(self, image_processor, tokenizer, settings: dict, legacy_padding: bool = False):
        self.arguments = (image_processor, tokenizer, settings, legacy_padding)
        self.name = settings["processor_class"]
        self.image_processor, self.tokenizer = image_processor, tokenizer
        self.is_phi = self.name == Phi3VProcessor.__name__
        if self.is_phi:
            self.processor = Phi3VProcessor(image_processor, tokenizer)
        else:
            options = {key: value for key, value in settings.items() if key != "processor_class"}
            read = _with_legacy_padding(image_processor) if legacy_padding else image_processor
            self.processor = _without_video(getattr(transformers, self.name))(
                image_processor=read, tokenizer=tokenizer, **options
            )
            wanted = ("image_token", "_get_num_multimodal_tokens", "replace_image_token")
            missing = [
                key
                for key in wanted
                if getattr(self.processor, key, None) is None
                or getattr(type(self.processor), key, None) is getattr(ProcessorMixin, key, self)
            ]
            if missing:
                raise ValueError(
                    f"{self.name} does not follow transformers' interface of image-text-to-text processors: it lacks "
                    f"{' and '.join(missing)}, by which image tokens are counted and placed."
                )
        self.image_token = self.processor.image_token  # stands for one image in a prompt
        self.image_token_id = self.processor.image_token_id
        self.image_token_ids = [self.image_token_id] if self.is_phi else self.processor.image_token_ids
        found = self.image_token_id if self.is_phi else tokenizer.convert_tokens_to_ids(self.image_token)
        if found is None or found == tokenizer.unk_token_id:
            raise ValueError(f"the tokenizer has no image token {self.image_token!r}, which {self.name} wants.")
        self.placeholder_id = found
        # which tokens are image tokens: M-RoPE asks for it by one name, Gemma's attention by another
        names = () if self.is_phi else self.processor(text=["a"], return_mm_token_type_ids=True)
        self.types_name = "token_type_ids" if names and "mm_token_type_ids" not in names else "mm_token_type_ids"
        self.takes_several_images = self.name not in _SINGLE_IMAGE

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
        if self.is_phi:
            return self.processor.count_image_tokens(sizes)
        if self._read_whole(sizes):
            return [self.processor.num_image_tokens + 1] * len(sizes)
        return list(self.processor._get_num_multimodal_tokens(image_sizes=[(h, w) for w, h in sizes]).num_image_tokens)

    def _read_whole(self, images) -> bool:
        """LLaVA-OneVision cuts an image into tiles only when it is alone in its prompt."""
        return self.name == "LlavaOnevisionProcessor" and len(images) > 1

    def tokenize(self, prompts: list[str]) -> list[list[int]]:
        """Ids of prompts, with one image token per image."""
        if self.is_phi:
            return [self.processor.tokenize(prompt) for prompt in prompts]
        return self.tokenizer(prompts)["input_ids"] if prompts else []

    def read_images(self, prompts: list[list]) -> tuple[dict, list[str]]:
        """The vision tower's inputs for the images of each prompt, and the string that stands for each image.

        Args:
            prompts (`list[list[PIL.Image.Image]]`): the images of every prompt that has any.
        """
        flat = [image for images in prompts for image in images]
        if self.is_phi:
            counts = [self.count_tokens([image.size])[0] for image in flat]
            return dict(self.image_processor(flat)), [self.image_token * count for count in counts]
        options = self.processor._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, return_tensors="pt")
        inputs, strings = self.processor._process_images(flat if self.grain else prompts, **options["images_kwargs"])
        return {k: v for k, v in inputs.items() if k not in self.processor.unused_input_names}, strings

    def run_length(self, string: str) -> int | None:
        """How many image tokens a string consists of; None if it holds anything else."""
        count = len(string) // len(self.image_token)
        return count if string == self.image_token * count else None


def _without_video(cls):
    """The class with an `__init__` that asks for no video processor."""
    attributes = [name for name in cls.get_attributes() if name != "video_processor"]
    return type(cls.__name__, (cls,), {"get_attributes": classmethod(lambda _: attributes)})


def _with_legacy_padding(image_processor):
    """A copy that pads both sides of LLaVA's canvas by half the missing pixels, rounded down."""

    class Legacy(type(image_processor)):
        def _get_padding_size(self, original_resolution, target_resolution):
            halves = [(target - size) // 2 for size, target in zip(original_resolution, target_resolution)]
            return tuple((half, half) for half in halves)

    legacy = Legacy.__new__(Legacy)
    legacy.__dict__.update(image_processor.__dict__)
    return legacy


def load_saved_images(path, saved: dict, hub: dict):
    """The image processor of a UniME repository: with PIL wherever it runs, so that pixels are always the same."""
    if saved.get("image_processor_type") == Phi3VImageProcessor.__name__:
        kept = ("num_crops", "image_mean", "image_std", "crop_size", "num_img_tokens")
        return Phi3VImageProcessor(**{key: saved[key] for key in kept})
    return AutoImageProcessor.from_pretrained(path, backend="pil", **hub)


def load_parts(path, config, hub: dict):
    """Image processor, tokenizer, chat template and settings of a stock checkpoint.

    Args:
        path: directory or repository.
        config: configuration of the backbone; what it says about the vision tower goes before what old processor
            files say.
        hub (`dict`): `revision`, `token`, ... for the loaders.
    """
    try:
        saved, _ = ProcessorMixin.get_processor_dict(path, **hub)
    except OSError:
        saved = {}
    template = saved.pop("chat_template", None)
    if config.model_type == "phi3_v":
        published, _ = Phi3VImageProcessor.get_image_processor_dict(path, **hub)
        image_processor = load_saved_images(path, {**Phi3VImageProcessor().to_dict(), **published}, hub)
        # the Llama class that AutoTokenizer may pick would drop the token between a special token and a newline
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path, **hub)
        _warn_of_lost_spaces(tokenizer, path)
        return image_processor, tokenizer, template, {"processor_class": Phi3VProcessor.__name__}
    name = PROCESSOR_MAPPING_NAMES.get(config.model_type)
    if name is None:
        raise ValueError(
            f"{path} is a {config.model_type}, for which transformers has no processor; only image-text-to-text "
            "models with a processor of their own can be wrapped."
        )
    image_processor = AutoImageProcessor.from_pretrained(path, backend="pil", **hub)
    tokenizer = AutoTokenizer.from_pretrained(path, **hub)
    known = getattr(transformers, name).__init__.__code__.co_varnames
    settings = {key: value for key, value in saved.items() if key in known}
    for key in ("image_processor", "tokenizer", "video_processor", "feature_extractor", "chat_template"):
        settings.pop(key, None)
    settings.update(_tile_settings(config))
    return image_processor, tokenizer, template, {"processor_class": name, **settings}


def _warn_of_lost_spaces(tokenizer, path):
    """Phi-3.5-vision's published tokenizer starts every piece after a special token with a space token; copies made by
    a slow tokenizer do not, and give other embeddings."""
    ids = tokenizer("<|user|>\n")["input_ids"]
    if tokenizer.convert_tokens_to_ids("<|user|>") == 32010 and ids != [1, 32010, 29871, 13]:
        warnings.warn(
            f"the tokenizer of {path} reads '<|user|>\\n' as {ids}, where that of Phi-3.5-vision gives "
            "[1, 32010, 29871, 13]; if the model was trained with the latter, pass "
            "`processor='microsoft/Phi-3.5-vision-instruct'`.",
            stacklevel=4,
        )


def _tile_settings(config) -> dict:
    """What LLaVA's processors must know about the vision tower; processor files of 4.4x lack some of it."""
    if config.model_type not in ("llava_next", "llava_onevision"):
        return {}
    vision = config.vision_config
    settings = {"vision_feature_select_strategy": config.vision_feature_select_strategy}
    if config.model_type == "llava_next":
        with_class_token = "clip" in vision.model_type
        return {**settings, "patch_size": vision.patch_size, "num_additional_image_tokens": int(with_class_token)}
    side = vision.image_size // vision.patch_size
    return {**settings, "num_image_tokens": side * side, "vision_aspect_ratio": config.vision_aspect_ratio}


__all__ = ["NativeProcessor", "load_parts", "load_saved_images"]
