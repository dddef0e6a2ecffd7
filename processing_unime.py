"""UniMEProcessor: items (texts, images, both, videos, chat messages) -> prompts -> padded tensors.

How items become prompts is in `rendering_unime.py`; here are the settings, and what becomes of prompts.

The processor carries everything that decides how an item reaches the model: the prompt preset, the chat template, the
resolution policy and the length limit. It is saved with the checkpoint and does not need torchvision, which the native
processors of most backbones do.
"""

import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, groupby, islice
from operator import itemgetter

import torch
from PIL import Image, ImageColor
from transformers import AutoConfig, AutoProcessor
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessorMixin

from .batching_unime import plan_chunks
from .configuration_unime import UniMEConfig, UniMERerankerConfig
from .controls_unime import GUARD
from .images_unime import MAX_IMAGE_PIXELS, Resolution, open_image, read_size
from .integrity_unime import HUB_KEYS, SavedFiles
from .items_unime import PreparedItem, PromptTooLong, is_chat, is_video, item_fields
from .native_unime import ImageSettings, build_native, load_parts, load_saved_images, restore_normalizer
from .preset_files_unime import preset_content, preset_from
from .prompts_unime import PLACEHOLDER, PRESETS, Preset, instruct, one_of, resolve_preset, rules_of, strip_placeholders
from .questions_unime import Question
from .recognition_unime import choose_preset, exported_instructions, refuse_foreign_layout
from .rendering_unime import PromptRenderer, Reading
from .videos_unime import MARKERS, Clip

# what a preset decides, unless it is given beside it; and what no preset decides
_PRESET_SETTINGS = (
    "max_length",
    "resolution",
    "fusion",
    "anyres_padding",
    "benchmarks",
    "video",
    "num_frames",
    "fps",
    "max_frames",
    "frame_pixels",
    "video_pixels",
    "image_tokens",
    "crops",
)
_OTHER_SETTINGS = ("max_image_pixels", "chat_template", "background", "instructions")
SETTINGS = _PRESET_SETTINGS + _OTHER_SETTINGS

_CHARACTERS = 16  # of a token, at most, in nearly every text


class UniMEProcessor(ProcessorMixin, PromptRenderer):
    """Tokenizer + image processor + prompt preset.

    Args:
        image_processor: of the backbone.
        tokenizer: the backbone's tokenizer, with a chat template if the preset needs one.
        chat_template (`str`, *optional*): Jinja template; the tokenizer's own by default.
        preset (`str`, path or `Preset`, defaults to `"summary"`): a key of `PRESETS`, a file of one's own (see
            [`~unime.preset_files_unime.read_preset`]), or a preset itself.
        max_length (`int`, *optional*): longest sequence in tokens; longer texts are cut, images never are. By default
            the preset's limit, or the tokenizer's if that is lower.
        max_image_pixels (`int`): larger images are refused before they are decoded.
        resolution (*optional*): a policy that [`~unime.images_unime.Resolution`] reads; the preset's by default.
        fusion (`str`, *optional*): `"joint"` or `"sum"`, how an item of image and text is embedded; the preset's by
            default.
        anyres_padding (`str`, *optional*): `"even"` or `"legacy"`; the preset's by default.
        benchmarks (`list[str]`, *optional*): the kinds of benchmark that are worded in the way that the preset has for
            them; all by default. A model that was trained with the preset's usual prompts alone has none.
        video (`str`, *optional*): `"tokens"` reads a video as the backbone does, where it has tokens for videos
            (Qwen-VL), and `"frames"` as a row of images; the preset's by default.
        num_frames (`int`, *optional*): frames read of a video; the preset's by default.
        fps (`float`, *optional*): frames read of a second of a video file, at most `max_frames`, in the place of
            `num_frames`; likewise.
        max_frames (`int`, *optional*): see `fps`.
        frame_pixels (`tuple[int, int]`, *optional*): fewest and most pixels of a frame of a video: of one that is read
            as tokens of its own whatever `resolution` says of images, else after it.
        video_pixels (`int`, *optional*): most pixels of the frames of such a video, of which two are one, together.
        image_tokens (`tuple[int, int]`, *optional*): fewest and most tokens of an image of Qwen-VL; the preset's or
            the image processor's by default.
        crops (`int`, *optional*): most crops of an image of Phi-3-vision; likewise.
        background (`str`, defaults to `"white"`): the colour behind what is transparent in an image, as Pillow names
            colours (`"black"`, `"#808080"`).
        instructions (`str` or `dict`, *optional*): the instruction of items that come without one, or one for each
            role (`{"query": ..., "document": ...}`, either may be missing). On a benchmark it is left out.
        backbone (`dict`, *optional*): `processor_class` of the backbone with its settings; Qwen2-VL's by default.
        preset_rules (`dict`, *optional*): of a saved processor: what its preset says, where it is not in the table.
    """

    return_mm_token_type_ids = True  # M-RoPE needs to know which tokens are image tokens
    text_kwargs = {"padding": True}

    def __init__(
        self,
        image_processor,
        tokenizer,
        chat_template=None,
        preset="summary",
        max_length=None,
        max_image_pixels=MAX_IMAGE_PIXELS,
        resolution=None,
        fusion=None,
        anyres_padding=None,
        video=None,
        num_frames=None,
        fps=None,
        max_frames=None,
        frame_pixels=None,
        video_pixels=None,
        image_tokens=None,
        crops=None,
        backbone=None,
        benchmarks=None,
        preset_rules=None,
        background="white",
        instructions=None,
        **kwargs,
    ):
        if preset_rules is not None:
            preset = preset_from(preset_rules, PRESETS, preset, f"the preset {preset!r}")
        self.backbone = backbone or {"processor_class": "Qwen2VLProcessor"}
        self.max_image_pixels = max_image_pixels
        ImageColor.getrgb(background)  # raises early
        self.background = background
        self.instructions = _checked_instructions(instructions)
        self._take_preset(
            preset,
            image_processor,
            tokenizer,
            max_length=max_length,
            resolution=resolution,
            fusion=fusion,
            anyres_padding=anyres_padding,
            benchmarks=benchmarks,
            video=video,
            num_frames=num_frames,
            fps=fps,
            max_frames=max_frames,
            frame_pixels=frame_pixels,
            video_pixels=video_pixels,
            image_tokens=image_tokens,
            crops=crops,
        )

        # ProcessorMixin reads these of the processor itself
        self.image_token = self._native.image_token
        self.image_token_id = self._native.image_token_id
        self.image_token_ids = self._native.image_token_ids

        # Qwen-VL puts images between two tokens of its own.
        has_markers = not {None, tokenizer.unk_token_id} & set(tokenizer.convert_tokens_to_ids(list(MARKERS)))
        self._fenced_image = self.image_token.join(MARKERS) if has_markers else self.image_token

        super().__init__(image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template)

    def _take_preset(
        self,
        preset: str,
        image_processor,
        tokenizer,
        max_length=None,
        resolution=None,
        fusion=None,
        anyres_padding=None,
        benchmarks=None,
        video=None,
        num_frames=None,
        fps=None,
        max_frames=None,
        frame_pixels=None,
        video_pixels=None,
        image_tokens=None,
        crops=None,
    ):
        """Sets what a preset decides; a setting that is not None is taken in the place of the preset's."""
        preset = resolve_preset(preset)
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length}.")

        # one that is not in the table is saved whole
        self.rules = defaults = rules_of(preset)
        self.preset = preset if isinstance(preset, str) else preset.name
        self.preset_rules = None if isinstance(preset, str) else preset_content(preset)

        self.max_length = min(max_length or defaults.max_length, tokenizer.model_max_length)
        self.resolution = defaults.resolution if resolution is None else resolution
        self.fusion = one_of("fusion", fusion or defaults.fusion, "joint", "sum")
        self.anyres_padding = one_of("anyres_padding", anyres_padding or defaults.anyres_padding, "even", "legacy")
        self.benchmarks = list(defaults.benchmarks if benchmarks is None else benchmarks)
        self.video = one_of("video", video or defaults.video, "tokens", "frames")
        self.num_frames = num_frames or defaults.num_frames
        self.fps = fps or defaults.fps
        self.max_frames = max_frames or defaults.max_frames
        self.frame_pixels = frame_pixels or defaults.frame_pixels
        self.video_pixels = video_pixels or defaults.video_pixels
        self.image_tokens = image_tokens or defaults.image_tokens
        self.crops = crops or defaults.crops
        Resolution.parse(self.resolution)  # raises early

        # tiles and limits are a matter of the backbone's processor, so there is another one for each preset
        images = ImageSettings(
            self.anyres_padding == "legacy", self.image_tokens, self.crops, self.frame_pixels, self.video_pixels
        )
        self._native = build_native(image_processor, tokenizer, self.backbone, images)

    def use_preset(self, preset: str, **settings):
        """Reads items by another preset from now on: its prompts, fusion, resolution, limit and padding.

        Of a model, take [`~unime.vlm_unime.UniMEPreTrainedModel.use_preset`], which also changes its positions.

        Args:
            preset (`str`): a key of `PRESETS`.
            settings: `max_length`, `resolution`, `fusion`, `anyres_padding`, `benchmarks`, `video`, `num_frames`,
                `fps`, `max_frames`, `frame_pixels`, `video_pixels`, `image_tokens` and `crops`, where they are to
                differ from the preset's; and `chat_template`, `max_image_pixels`, `background` and `instructions`,
                which stay otherwise.

        Raises:
            ValueError: the preset or a setting is unknown.
        """
        for name in _OTHER_SETTINGS:
            if name in settings:
                setattr(self, name, settings.pop(name))

        # both follow from the template, which may have changed
        self._template_takes_strings = None
        self._controls = None
        self._take_preset(preset, self.image_processor, self.tokenizer, **settings)

    @property
    def shown_preset(self) -> str | Preset:
        """The name of the preset, or all of one that is not in the table."""
        return self.preset if self.preset_rules is None else self.rules

    @property
    def padding_id(self) -> int | None:
        """The token that fills a batch, which no token attends to: the pad token, or else the end-of-text token."""
        pad_id = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad_id is None else pad_id

    def to_dict(self):
        # It holds image processor and tokenizer a second time.
        native = self._native
        self._native = None
        try:
            content = super().to_dict()
        finally:
            self._native = native

        # who loads the model decides that anew
        content.pop("allow_urls", None)
        return content

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, preset: str | None = None, **kwargs):
        """As in transformers; a preset takes the place of all that was saved, except settings that stand beside it.

        Args:
            pretrained_model_name_or_path (`str` or path): a saved UniME model, folder or repository.
            preset (`str`, *optional*): a key of `PRESETS`; as it was saved by default.
            kwargs: settings of `__init__`; the rest (`revision`, `token`, ...) goes to the Hub loaders.
        """
        processor = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        if preset is not None:
            settings = {key: kwargs[key] for key in SETTINGS if key in kwargs}
            processor.use_preset(preset, **settings)
        return processor

    @classmethod
    def _get_arguments_from_pretrained(cls, path, processor_dict=None, **kwargs):
        kwargs["trust_remote_code"] = bool(kwargs.get("trust_remote_code"))  # None would ask in the terminal
        image_processor = load_saved_images(path, (processor_dict or {}).get("image_processor", {}), kwargs)
        tokenizer = cls._load_tokenizer_from_pretrained("tokenizer", path, **{"subfolder": "", **kwargs})

        # transformers drops it from some tokenizers
        saved = processor_dict or {}
        rules = saved.get("preset_rules") or {}
        if saved.get("preset") in PRESETS and not rules:
            rules = vars(PRESETS[saved["preset"]])
        if rules.get("own_normalizer"):
            restore_normalizer(tokenizer, path, kwargs)
        return [image_processor, tokenizer]

    @classmethod
    def from_backbone(cls, path_or_repo, preset: str | None = None, processor=None, **kwargs):
        """Builds the processor of a stock VLM checkpoint without torchvision, from old or new processor files.

        Args:
            path_or_repo: directory or repository.
            preset (`str`, *optional*): by default the one of the published checkpoint, or `"summary"`.
            processor (*optional*): where tokenizer and image processor are, if not beside the weights; UniME's first
                two checkpoints were trained with those of their stock backbones, which is the default for them.
            kwargs: keyword arguments of `__init__`; the rest (`revision`, `token`, ...) goes to the Hub loaders. No
                code of the repository runs without `trust_remote_code=True`.
        """
        settings = {key: kwargs.pop(key) for key in SETTINGS if key in kwargs}
        kwargs["trust_remote_code"] = bool(kwargs.get("trust_remote_code"))  # None would ask in the terminal
        files = SavedFiles(path_or_repo, {key: kwargs[key] for key in HUB_KEYS if key in kwargs})
        refuse_foreign_layout(files)
        config = AutoConfig.from_pretrained(path_or_repo, **kwargs)
        preset = choose_preset(files, config.model_type, preset)

        # A folder has its own files; a published repository may lack those that it was trained with.
        if processor is None and rules_of(preset).processor and not os.path.isdir(path_or_repo):
            processor = rules_of(preset).processor
        if processor is not None:
            kwargs.pop("revision", None)  # of the model

        source = path_or_repo if processor is None else processor
        image_processor, tokenizer, template, backbone = load_parts(source, config, kwargs)
        if rules_of(preset).own_normalizer:
            restore_normalizer(tokenizer, source, kwargs)
        settings.setdefault("chat_template", template)
        settings.setdefault("instructions", exported_instructions(files))
        return cls(image_processor, tokenizer, preset=preset, backbone=backbone, **settings)

    # transformers' own path: processor(text=..., images=...), apply_chat_template(...)
    def __call__(
        self, images: ImageInput | None = None, text: str | list[str] | None = None, **kwargs
    ) -> BatchFeature:
        """As in transformers: prompts that hold image tokens, and their images in order -> tensors."""
        if self._native.follows_transformers:
            return super().__call__(images=images, text=text, **kwargs)

        texts = [text] if isinstance(text, str) else list(text)
        remaining = iter(_flatten(images or []))
        prepared = []
        for number, (prompt, ids) in enumerate(zip(texts, self._native.tokenize(texts))):
            name = f"text {number}"
            placed_count = ids.count(self._native.placeholder_id)
            placed = tuple(islice(remaining, placed_count))
            if len(placed) < placed_count:
                raise ValueError(f"{name} holds more image tokens than there are images left.")

            # such images are open already, and are read at the size that they have
            sizes = tuple(image.size for image in placed)
            prepared.append(PreparedItem(name, prompt, ids, placed, sizes, self._count_tokens(sizes, name)))

        if next(remaining, None) is not None:
            raise ValueError("there are more images than image tokens.")
        return self.collate(prepared)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that the processor returns, for an image and a text."""
        names = [*super().model_input_names, self._native.types_name]
        return list(dict.fromkeys(names))

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers."""
        files = super().save_pretrained(save_directory, *args, **kwargs)
        vars(self).pop("auto_map", None)  # of the files; a processor that was loaded has none either
        return files

    def _get_num_multimodal_tokens(self, image_sizes=None, **kwargs):
        """The numbers of image tokens, by which vLLM plans: those of the backbone's own processor."""
        return self._native.processor._get_num_multimodal_tokens(image_sizes=image_sizes, **kwargs)

    def replace_image_token(self, image_inputs, image_idx, **kwargs):
        return self._native.processor.replace_image_token(image_inputs, image_idx=image_idx, **kwargs)

    # prompts -> tensors
    def prepare(self, items, reading: Reading | None = None, names=None, **settings) -> list[PreparedItem]:
        """Tokenises items and counts their image tokens, reading only the headers of image files.

        Args:
            items (`list`): what [`~UniMEProcessor.render`] takes.
            reading ([`Reading`], *optional*): how they are read.
            names (`list[str]`, *optional*): what errors call the items; `item 0`, `item 1`, ... by default.
            settings: fields of [`Reading`] by name, in place of those of `reading`.

        Raises:
            ValueError: an item is empty, an image unreadable or too large, or an image alone exceeds `max_length`.

        Example:

        ```python
        entries = processor.prepare(["a red circle", {"image": "photo.jpg"}], max_length=512)
        batch = processor.collate(entries)
        ```
        """
        reading = _with_settings(reading, settings)
        names = names or _numbered("item", len(items))
        items = [_without_lists(item, name) for item, name in zip(items, names)]
        instructions = [self._instruction_of(item, reading) for item in items]
        return self._prepare(items, instructions, reading, names)

    def _prepare(self, items, instructions: list, reading: Reading, names: list[str]) -> list[PreparedItem]:
        """Items tokenised and measured, each with an instruction of its own, or None."""
        resolution = Resolution.parse(self.resolution if reading.resolution is None else reading.resolution)
        limit = min(reading.max_length or self.max_length, self.tokenizer.model_max_length)
        readings = {instruction: replace(reading, instruction=instruction) for instruction in set(instructions)}

        items = [self._clipped(item, limit, name) for item, name in zip(items, names)]
        prompts = []
        images = []
        for item, instruction, name in zip(items, instructions, names):
            prompt, item_images = self._render(item, readings[instruction], name)

            # what is never cut is refused before the whole of it is tokenised
            if is_chat(item) and self._beginning(prompt, limit) != prompt:
                raise PromptTooLong(f"{name} takes far more tokens than the limit of {limit}; shorten it.")
            prompts.append(prompt + reading.suffix)
            images.append(item_images)

        # all prompts are tokenised at once, which a fast tokenizer does on several threads
        token_ids = self._tokenize(prompts)
        prepared = []
        cut_names = set()
        counts = {}
        for i, item in enumerate(items):
            entry = self._plan(names[i], prompts[i], token_ids[i], images[i], resolution, counts, is_video(item))
            entry = self._with_appended_id(entry)
            if entry.length > limit:
                entry = self._shorten(entry, item, readings[instructions[i]], limit)
                cut_names.add(names[i])
            prepared.append(entry)

        # the image and the text of a sum are two parts of one item, under one name
        if cut_names:
            warnings.warn(
                f"{len(cut_names)} of {len(set(names))} items were longer than {limit} tokens; "
                "their texts were cut to fit.",
                stacklevel=4,
            )
        return prepared

    def _with_appended_id(self, entry: PreparedItem) -> PreparedItem:
        """The item, followed by the token that the preset names by its id."""
        appended = self.rules.appended
        return replace(entry, written=(appended,)) if isinstance(appended, int) else entry

    def _clipped(self, item, limit: int, name: str):
        """An item without the end of a text that is far above the limit; a chat is never cut."""
        text = _text_of(item)
        beginning = self._beginning(text, limit)
        if beginning == text:
            return item
        if not beginning.strip():
            raise ValueError(f"{name} begins with more blanks than fit into {limit} tokens; strip it.")
        if isinstance(item, Question):
            return replace(item, text=beginning)
        return {**item, "text": beginning} if isinstance(item, Mapping) else beginning

    def _beginning(self, text: str, limit: int) -> str:
        """The text, or a beginning that is above the limit by itself: tokenising megabytes would take minutes."""
        # enough for nearly every text; a run of blanks may be a single token, hence the loop
        size = _CHARACTERS * limit
        while size < len(text):
            beginning = text[:size]
            if len(self.tokenizer(beginning, verbose=False)["input_ids"]) > 2 * limit:
                return beginning
            size *= 4
        return text

    def _tokenize(self, prompts: list[str]) -> list[list[int]]:
        """Ids of prompts; a text that was guarded is tokenised as text."""
        token_ids = self._native.tokenize(prompts)
        for number, prompt in enumerate(prompts):
            if GUARD in prompt:
                token_ids[number] = self.controls.unguard(token_ids[number])
        return token_ids

    def _plan(
        self,
        name: str,
        prompt: str,
        ids: list[int],
        images: tuple,
        resolution: Resolution,
        counts: dict,
        of_video: bool,
    ) -> PreparedItem:
        """A tokenised item with the sizes at which its images will be read, and the tokens that they take.

        `counts` holds the tokens by sizes, of frames and of other images: transformers checks all its settings for
        each count, which takes longer than reading a small image.
        """
        placed = sum(map(ids.count, self._native.placeholder_ids))
        if placed != len(images):
            raise ValueError(
                f"{name} holds {placed} image tokens for {len(images)} images; remove {self.image_token!r} from "
                "its text."
            )

        sizes = []
        for number, image in enumerate(images, 1):
            image_name = name + _place(number, len(images))
            sizes.append(self._fit(image, resolution, image_name))
        sizes = tuple(sizes)

        if any(isinstance(image, Clip) for image in images):
            image_tokens = self._count_with_videos(images, sizes, name)
        else:
            if (sizes, of_video) not in counts:
                counts[sizes, of_video] = self._count_tokens(sizes, name, of_video)
            image_tokens = counts[sizes, of_video]
        return PreparedItem(name, prompt, ids, images, sizes, image_tokens, resolution, of_video=of_video)

    def _count_with_videos(self, images: tuple, sizes: tuple[tuple[int, int], ...], name: str) -> tuple[int, ...]:
        """Tokens of each image and video of a prompt."""
        is_clip = [isinstance(image, Clip) for image in images]
        of_images = iter(self._count_tokens([size for size, clip in zip(sizes, is_clip) if not clip], name))

        counts = []
        for image, size, clip in zip(images, sizes, is_clip):
            counts.append(self._native.videos.count_tokens(image, size) if clip else next(of_images))
        return tuple(counts)

    def _fit(self, image, resolution: Resolution, name: str) -> tuple[int, int]:
        """(width, height) at which an image, or a frame of a video, is read."""
        if isinstance(image, Clip):
            # limits of its own go before the policy, which is one for images
            resolution = Resolution() if self.frame_pixels else resolution
            size = self._fit(image.frames[0], resolution, name)
            return self._native.videos.fit(len(image.frames), *size)

        size = read_size(image, name)
        if resolution == Resolution():
            return size

        def count(*candidate):
            return self._native.count_tokens([candidate])[0]

        grain = self._native.grain
        smallest = self._native.image_processor.size["shortest_edge"] if grain else 1
        try:
            return resolution.fit(*size, count, grain, smallest)
        except ValueError as error:
            raise ValueError(f"{name}: image of {size[0]} x {size[1]} pixels: {error}") from error

    def _count_tokens(self, sizes, name: str, of_video: bool = False) -> tuple[int, ...]:
        """Tokens of each image of a prompt."""
        if not sizes:
            return ()
        native = self._native.frames if of_video else self._native
        try:
            return tuple(native.count_tokens(list(sizes)))
        except ValueError as error:
            # the sizes are counted together, and the error does not say which it is about
            place = self._uncountable(sizes)
            width, height = sizes[place]
            name = name + _place(place + 1, len(sizes))
            raise ValueError(f"{name}: image of {width} x {height} pixels: {error}") from error

    def _uncountable(self, sizes) -> int:
        """The place of the first size whose tokens cannot be counted."""
        for place, size in enumerate(sizes):
            try:
                self._native.count_tokens([size])
            except ValueError:
                return place
        return 0

    def _shorten(self, entry: PreparedItem, item, reading: Reading, limit: int) -> PreparedItem:
        """The item with its text cut so that it has at most `limit` tokens."""
        # image tokens are not cut, so the text alone gives what is too much
        shorter = None
        if not is_chat(item):
            excess = entry.length - limit
            shorter = self._cut_text(entry, item, reading, len(entry.input_ids) - excess)

        if shorter is None:
            raise PromptTooLong(
                f"{entry.name} takes {entry.length} tokens ({sum(entry.image_tokens)} of them image tokens), above "
                f"the limit of {limit}. Chats and images are not cut: lower the resolution, shorten the text or raise "
                "`max_length`."
            )

        prompt, ids = shorter
        return replace(entry, prompt=prompt, input_ids=ids)

    def _cut_text(self, entry: PreparedItem, item, reading: Reading, target: int) -> tuple[str, list[int]] | None:
        """Prompt and ids with the text cut until at most `target` ids remain; None when no text would be left."""
        # guarded as in the prompt, so that it is cut between the same tokens
        places_image = len(entry.images) > 0 and not isinstance(item, Question)
        guarded = self.controls.guard(_text_of(item), places_image)
        offsets = self.tokenizer(guarded, return_offsets_mapping=True)["offset_mapping"]

        keep = len(offsets) - 1
        while keep > 0:
            _, end = offsets[keep - 1]
            beginning = guarded[:end].replace(GUARD, "").rstrip(GUARD)  # it may end within a guard
            if not beginning.strip():
                return None

            # images that stand among the words are not cut off with them
            if len(entry.images) > 1 and _places(beginning) != _places(_text_of(item)):
                return None

            if isinstance(item, Question):
                prompt, _ = self._render(replace(item, text=beginning), reading, entry.name)
            else:
                prompt = self._prompt(beginning, len(entry.images), reading, entry.name, is_video(item))
                prompt = self._with_videos(prompt, entry.images)
            prompt += reading.suffix
            (ids,) = self._tokenize([prompt])
            if len(ids) <= target:
                return prompt, ids
            keep -= max(1, len(ids) - target)  # tokens may merge differently at the seam, hence a loop
        return None

    def prepare_parts(
        self, items, reading: Reading | None = None, names=None, **settings
    ) -> tuple[list[int], list[PreparedItem]]:
        """Prepares what is embedded for each item: itself, or, where the fusion is a sum, its image and its text.

        Args:
            items, reading, names, settings: as in [`~UniMEProcessor.prepare`].

        Returns:
            the number of its item for each part, and the parts; embeddings of one item's parts are added up.
        """
        reading = _with_settings(reading, settings)
        if reading.fusion is not None:
            one_of("fusion", reading.fusion, "joint", "sum")
        names = names or _numbered("item", len(items))
        has_slot = self._words(reading.benchmark).instruction.place != "none"

        rows = []
        parts = []
        instructions = []
        for row, item in enumerate(items):
            item = _without_lists(item, names[row])
            fusion = reading.fusion or self._fusion(item, reading.benchmark)
            instruction = self._instruction_of(item, reading) if has_slot else None
            for item_part, instruction_of_part in _split_into_parts(item, fusion, instruction):
                rows.append(row)
                parts.append(item_part)
                instructions.append(instruction_of_part)

        # errors call a part by the name of its item
        part_names = [names[row] for row in rows]
        return rows, self._prepare(parts, instructions, reading, part_names)

    def _instruction_of(self, item, reading: Reading) -> str | None:
        """What an item is read as."""
        return self.instruction_for(item, reading.instruction, reading.role, reading.benchmark)

    def _fusion(self, item, benchmark: str | None) -> str:
        """How an item is embedded, if it has both image and text, where the call does not say it."""
        # a text that places its image is one of MMEB's
        text = item.get("text") if isinstance(item, Mapping) else None
        if benchmark is None and isinstance(text, str) and PLACEHOLDER.search(text):
            benchmark = "mmeb"
        words = self._words(benchmark)
        return self.fusion if words is self.rules else words.fusion

    def read_image(self, entry: PreparedItem, index: int) -> Image.Image:
        """An image of a prepared item, decoded and at the size that was planned."""
        return self._read_at(entry.images[index], entry, entry.sizes[index])

    def _read_at(self, source, entry: PreparedItem, planned: tuple[int, int]) -> Image.Image:
        """An image, or a frame of a video, decoded and at a size (width, height)."""
        try:
            image = open_image(source, self.max_image_pixels, self.background)
        except ValueError as error:
            raise ValueError(f"{entry.name}: {error}") from error

        # Upstream resizes twice, first to a square where the policy has one.
        side = entry.resolution.side
        first_size = (side, side) if side else image.size
        for size in (first_size, planned):
            if image.size != size:
                image = image.resize(size, entry.resolution.resampling)
        return image

    def read_images(self, prepared: Sequence[PreparedItem]) -> tuple[dict, list[list[str]]]:
        """Decodes the images of prepared items.

        Returns:
            The vision tower's inputs, all images in order, and for each item the strings its image tokens become.
        """
        groups = []
        clips = []
        for entry in prepared:
            images = []
            for index, image in enumerate(entry.images):
                if isinstance(image, Clip):
                    frames = [self._read_at(frame, entry, entry.sizes[index]) for frame in image.frames]
                    clips.append((image, frames))
                else:
                    images.append(self.read_image(entry, index))
            if images:
                groups.append((self._native.frames if entry.of_video else self._native, images))

        inputs, strings = _read_groups(groups)
        videos, video_strings = self._native.videos.read(clips) if clips else ({}, [])

        # the strings come back in one list of each kind; each item takes as many as it has images and videos
        of_images = iter(strings)
        of_videos = iter(video_strings)
        strings_by_item = []
        for entry in prepared:
            kinds = [of_videos if isinstance(image, Clip) else of_images for image in entry.images]
            strings_by_item.append(list(map(next, kinds)))
        return {**inputs, **videos}, strings_by_item

    def read_loose_images(self, places, alone: bool) -> tuple[dict, list[str]]:
        """As `read_images`, for single images `(entry, index)` out of prompts in which each is alone, or none is."""
        images = [self.read_image(entry, index) for entry, index in places]

        # A single image that is to be read as one of several is doubled.
        groups = [images if len(images) > 1 else images * 2]
        if alone:
            groups = [[image] for image in images]

        inputs, strings = self._native.read_images(groups)
        return inputs, strings[: len(images)]

    def expand(self, entry: PreparedItem, strings: Sequence[str]) -> list[int]:
        """The ids of an item with its image tokens repeated as often as the images need.

        Args:
            entry (`PreparedItem`): the item.
            strings (`Sequence[str]`): what each image token becomes, from [`~UniMEProcessor.read_images`].

        Raises:
            RuntimeError: an image became another number of tokens than was planned.
        """
        counts = [self._native.run_length(string) for string in strings]

        # Some backbones put other tokens between the image tokens; the unfolded prompt is then tokenised again.
        if None in counts:
            pieces = re.split("|".join(map(re.escape, self._media_tokens)), entry.prompt)
            prompt = "".join(chain.from_iterable(zip(pieces, [*strings, ""])))
            ids = self.tokenizer(prompt)["input_ids"]
            if GUARD in prompt:
                ids = self.controls.unguard(ids)
            return [*ids, *entry.written]

        if tuple(counts) != entry.image_tokens:
            raise RuntimeError(
                f"the images of {entry.name} gave {counts} tokens where {entry.image_tokens} were planned."
            )

        # the placeholder of an image is one token, and becomes a run of it
        remaining = iter(counts)
        placeholder_ids = self._native.placeholder_ids
        ids = []
        for token in entry.input_ids:
            repeats = next(remaining) if token in placeholder_ids else 1
            ids.extend([token] * repeats)
        return [*ids, *entry.written]

    def pad(self, sequences: Sequence[list[int]], side: str | None = None) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` and `mm_token_type_ids`, all `[N, L]`, padded on the preset's side.

        (Gemma calls the last one `token_type_ids`.)
        """
        longest = max(map(len, sequences))
        is_left = (side or self.rules.padding_side) == "left"
        input_ids = torch.full((len(sequences), longest), self.padding_id)  # [N, L]
        attention_mask = torch.zeros_like(input_ids)
        for row, ids in enumerate(sequences):
            start = longest - len(ids) if is_left else 0
            columns = slice(start, start + len(ids))
            input_ids[row, columns] = torch.tensor(ids)
            attention_mask[row, columns] = 1

        # 1 for images, 2 for videos
        types = torch.isin(input_ids, torch.tensor(self._native.image_token_ids)).int()
        if self._native.videos is not None:
            types = types.masked_fill(input_ids == self._native.videos.token_id, 2)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            self._native.types_name: types * attention_mask.int(),
        }

    @property
    def _media_tokens(self) -> list[str]:
        """The tokens that stand for images and videos in a prompt."""
        videos = self._native.videos
        return [self.image_token] if videos is None else [self.image_token, videos.token]

    def collate(self, prepared: Sequence[PreparedItem], padding_side: str | None = None) -> BatchFeature:
        """Decodes the images of prepared items and pads everything.

        Args:
            prepared (`list[PreparedItem]`): from [`~UniMEProcessor.prepare`].
            padding_side (`str`, *optional*): `"left"` or `"right"`; the preset's by default.

        Returns:
            `BatchFeature` with `input_ids`, `attention_mask`, `mm_token_type_ids` `[N, L]`, and with images what the
            backbone's image processor returns (`pixel_values` and `image_grid_thw` or `image_sizes`).
        """
        inputs, strings = self.read_images(prepared)
        sequences = [self.expand(entry, texts) for entry, texts in zip(prepared, strings)]
        return BatchFeature(self._native.complete({**self.pad(sequences, padding_side), **inputs}))


def _read_groups(groups: list[tuple]) -> tuple[dict, list[str]]:
    """The vision tower's inputs for the images of several prompts, and the string that stands for each.

    Args:
        groups (`list[tuple]`): a native processor and the images that it reads, of each prompt that has any.
    """
    tensors = []
    strings = []
    for native, run in groupby(groups, key=itemgetter(0)):
        run_tensors, run_strings = native.read_images([images for _, images in run])
        tensors.append(run_tensors)
        strings += run_strings

    if len(tensors) < 2:
        return (tensors[0] if tensors else {}), strings
    return {name: torch.cat([entry[name] for entry in tensors]) for name in tensors[0]}, strings


def _split_into_parts(item, fusion: str, instruction: str | None) -> list[tuple]:
    """(item, instruction) of each part whose embeddings add up to an item's: itself, or its image and its text."""
    whole = [(item, instruction)]
    if fusion == "joint" or is_chat(item) or isinstance(item, str):
        return whole
    if isinstance(item, Mapping) and not isinstance(item.get("text") or "", str):
        return whole  # an error that `split_item` names

    # several images with their places among the words are one thing
    text = ""
    picture = {"image": item}
    if isinstance(item, Mapping):
        text = item.get("text") or ""
        if _places(text) > 1:
            return whole

        # apart from its text, an image needs no place in it
        text = strip_placeholders(text)
        picture = {key: value for key, value in item.items() if key not in ("text", "instruction")}
    if all(value is None or (isinstance(value, str) and not value) for value in picture.values()):
        return whole

    # the instruction belongs to the text of a sum, not to its image
    spoken = instruct(instruction, text)
    if not spoken:
        return [(item, None)]
    return [(picture, None), (spoken, None)]


def _without_lists(item, name: str):
    """An item whose texts and images stand in a list as one text with places for the images; others as they are."""
    if isinstance(item, (list, tuple)) and not is_chat(item):
        return item_fields(item, name)
    return item


def _text_of(item) -> str:
    """The text of an item or question that is cut where it is too long; empty if there is none, as of a chat."""
    text = item
    if isinstance(item, Question):
        text = item.text
    elif isinstance(item, Mapping):
        text = item.get("text")
    return text if isinstance(text, str) else ""


def _places(text: str) -> int:
    """How many places for images a text has."""
    return len(PLACEHOLDER.findall(text))


def _checked_instructions(instructions: str | Mapping | None) -> str | dict | None:
    """Default instructions, which are one text or one for each role."""
    if instructions is None or isinstance(instructions, str):
        return instructions

    is_by_role = isinstance(instructions, Mapping) and instructions.keys() <= {"query", "document"}
    if not is_by_role or not all(isinstance(text, str) for text in instructions.values()):
        raise ValueError(f"instructions must be a text, or texts under 'query' and 'document', not {instructions!r}.")
    return dict(instructions)


def _with_settings(reading: Reading | None, settings: dict) -> Reading:
    """A reading with some of its fields replaced by name."""
    if reading is not None and not isinstance(reading, Reading):
        raise TypeError(f"reading must be a Reading, not {reading!r}; name its fields: prepare(items, role='query').")
    return replace(reading or Reading(), **settings)


def _numbered(kind: str, count: int) -> list[str]:
    """Names by which errors call things: `item 0`, `item 1`, ..."""
    return [f"{kind} {number}" for number in range(count)]


def _place(number: int, count: int) -> str:
    """Which of several images of an item is meant, for the end of its name."""
    return f", image {number} of {count}" if count > 1 else ""


def _flatten(images) -> Iterable:
    """The images of a batch, given one by one or as a list for each prompt."""
    for entry in images:
        yield from entry if isinstance(entry, list) else [entry]


UniMEProcessor.register_for_auto_class()

# Copies that travel with saved models are found through their `auto_map` instead.
if __package__ == "unime":
    AutoProcessor.register(UniMEConfig, UniMEProcessor, exist_ok=True)
    AutoProcessor.register(UniMERerankerConfig, UniMEProcessor, exist_ok=True)

__all__ = ["SETTINGS", "Reading", "UniMEProcessor", "open_image", "plan_chunks"]
