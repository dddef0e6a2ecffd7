"""UniMEProcessor: items (texts, images, both, videos, chat messages) -> prompts -> padded tensors.

The processor carries everything that decides how an item reaches the model: the prompt preset, the chat template, the
resolution policy and the length limit. It is saved with the checkpoint and does not need torchvision, which the native
processors of most backbones do.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from PIL import Image
from transformers import AutoConfig, AutoProcessor
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .batching_unime import plan_chunks
from .configuration_unime import UniMEConfig, UniMERerankerConfig
from .images_unime import MAX_IMAGE_PIXELS, Resolution, open_image, read_size
from .items_unime import PreparedItem, is_chat, is_image, judge_messages, read_frames, split_item
from .native_unime import NativeProcessor, load_parts, load_saved_images
from .prompts_unime import PLACEHOLDER, PRESETS, Preset, Prompts, find_preset, instruct, one_of, strip_placeholders

SETTINGS = ("max_length", "max_image_pixels", "chat_template", "resolution", "fusion", "anyres_padding", "num_frames")


class UniMEProcessor(ProcessorMixin):
    """Tokenizer + image processor + prompt preset.

    Args:
        image_processor: of the backbone.
        tokenizer: the backbone's tokenizer, with a chat template if the preset wants one.
        chat_template (`str`, *optional*): Jinja template; the tokenizer's own by default.
        preset (`str`, defaults to `"summary"`): a key of `PRESETS`.
        max_length (`int`, *optional*): longest sequence in tokens; longer texts are cut, images never are. By default
            the preset's limit, or the tokenizer's if that is lower.
        max_image_pixels (`int`): larger images are refused before they are decoded.
        resolution (*optional*): a policy that [`~unime.images_unime.Resolution`] reads; the preset's by default.
        fusion (`str`, *optional*): `"joint"` or `"sum"`, how an item of image and text is embedded; the preset's by
            default.
        anyres_padding (`str`, *optional*): `"even"` or `"legacy"`; the preset's by default.
        num_frames (`int`, defaults to 8): frames read of a video.
        backbone (`dict`, *optional*): `processor_class` of the backbone with its settings; Qwen2-VL's by default.
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
        num_frames=8,
        backbone=None,
        **kwargs,
    ):
        if preset not in PRESETS:
            raise ValueError(f"unknown preset {preset!r}; choose one of {', '.join(sorted(PRESETS))}.")
        defaults = PRESETS[preset]
        self.preset = preset
        self.max_length = min(max_length or defaults.max_length, tokenizer.model_max_length)
        self.max_image_pixels = max_image_pixels
        self.resolution = defaults.resolution if resolution is None else resolution
        self.fusion = one_of("fusion", fusion or defaults.fusion, "joint", "sum")
        self.anyres_padding = one_of("anyres_padding", anyres_padding or defaults.anyres_padding, "even", "legacy")
        self.num_frames = num_frames
        self.backbone = backbone or {"processor_class": "Qwen2VLProcessor"}
        Resolution.parse(self.resolution)  # raises early
        self._native = NativeProcessor(image_processor, tokenizer, self.backbone, self.anyres_padding == "legacy")
        self.image_token, self.image_token_id = self._native.image_token, self._native.image_token_id
        self.image_token_ids = self._native.image_token_ids
        fence = ("<|vision_start|>", "<|vision_end|>")  # Qwen-VL puts images between these
        fenced = not {None, tokenizer.unk_token_id} & set(tokenizer.convert_tokens_to_ids(list(fence)))
        self._fenced_image = f"{fence[0]}{self.image_token}{fence[1]}" if fenced else self.image_token
        self._template_takes_strings = None  # found out on first use
        super().__init__(image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template)

    @property
    def takes_several_images(self) -> bool:
        """Whether a prompt may hold more than one image."""
        return self._native.takes_several_images

    def to_dict(self):
        kept = self._native
        self._native = None  # it holds image processor and tokenizer a second time
        try:
            return super().to_dict()
        finally:
            self._native = kept

    @classmethod
    def _get_arguments_from_pretrained(cls, path, processor_dict=None, **kwargs):
        image_processor = load_saved_images(path, (processor_dict or {}).get("image_processor", {}), kwargs)
        tokenizer = cls._load_tokenizer_from_pretrained("tokenizer", path, **{"subfolder": "", **kwargs})
        return [image_processor, tokenizer]

    @classmethod
    def from_backbone(cls, path_or_repo, preset: str | None = None, processor=None, **kwargs):
        """Builds the processor of a stock VLM checkpoint without torchvision, from old or new processor files.

        Args:
            path_or_repo: directory or repository.
            preset (`str`, *optional*): by default the one of the published checkpoint, or `"summary"`.
            processor (*optional*): where tokenizer and image processor are, if not beside the weights; UniME's first
                two checkpoints were trained with those of their stock backbones, which is the default for them.
            kwargs: keyword arguments of `__init__`; the rest (`revision`, `token`, ...) goes to the Hub loaders.
        """
        own = {key: kwargs.pop(key) for key in SETTINGS if key in kwargs}
        config = AutoConfig.from_pretrained(path_or_repo, **{"trust_remote_code": False, **kwargs})
        preset = find_preset(path_or_repo, config.model_type, preset)
        if processor is None and PRESETS[preset].processor and not os.path.isdir(path_or_repo):
            processor = PRESETS[preset].processor
        if processor is not None:
            kwargs.pop("revision", None)  # of the model
        source = path_or_repo if processor is None else processor
        image_processor, tokenizer, template, backbone = load_parts(source, config, kwargs)
        own.setdefault("chat_template", template)
        return cls(image_processor, tokenizer, preset=preset, backbone=backbone, **own)

    # transformers' own path: processor(text=..., images=...), apply_chat_template(...)
    def __call__(self, images=None, text=None, **kwargs):
        """As in transformers: prompts that hold image tokens, and their images in order -> tensors."""
        if not self._native.is_phi:
            return super().__call__(images=images, text=text, **kwargs)
        texts = [text] if isinstance(text, str) else list(text)
        flat = iter(image for entry in images or [] for image in (entry if isinstance(entry, list) else [entry]))
        prepared = []
        for number, (prompt, ids) in enumerate(zip(texts, self._native.tokenize(texts))):
            own = tuple(next(flat, None) for _ in range(ids.count(self._native.placeholder_id)))
            if None in own:
                raise ValueError(f"text {number} holds more image tokens than there are images left.")
            sizes, name = tuple(image.size for image in own), f"text {number}"
            prepared.append(PreparedItem(name, prompt, ids, own, sizes, self._count_tokens(sizes, name)))
        if next(flat, None) is not None:
            raise ValueError("there are more images than image tokens.")
        return self.collate(prepared)

    def replace_image_token(self, image_inputs, image_idx, **kwargs):
        return self._native.processor.replace_image_token(image_inputs, image_idx=image_idx, **kwargs)

    # items -> prompts
    def render(
        self, item, instruction: str | None = None, role: str = "query", name: str = "item", generate: bool = True
    ):
        """Returns the prompt of an item, with one image token per image, and its images.

        A text that holds an image placeholder of MMEB, LLaVA or Qwen places the image itself: under presets that read
        MMEB's strings it is the whole prompt, under the others it stands for image and text in the preset's prompt.

        Args:
            item: a string, PIL image, path, `{"text", "image"}` or `{"text", "video"}` dict, or chat messages (which
                bypass the preset).
            instruction (`str`, *optional*): put before the text, on a line of its own or after a colon.
            role (`str`): `"query"` or `"document"`; presets may word them differently.
            generate (`bool`): end chat messages with the beginning of an answer.
        """
        if role not in ("query", "document"):
            raise ValueError(f"role must be 'query' or 'document', got {role!r}.")
        if is_chat(item):
            prompt, images = self._apply_template(item, name, generate)
        else:
            text, images = split_item(item, name, self.num_frames)
            prompt = self._prompt(text, len(images), instruction, role, name)
        if len(images) > 1 and not self.takes_several_images:
            raise ValueError(f"{name} has {len(images)} images, but {self._native.name} takes one image at a time.")
        return prompt, images

    def _prompt(self, text: str | None, images: int, instruction, role: str, name: str) -> str:
        preset = PRESETS[self.preset]
        prompts: Prompts = getattr(preset, role)
        text = text or ""
        if instruction or not images:
            text = strip_placeholders(text)
        if instruction:
            text = instruct(instruction, text)
        places_image = PLACEHOLDER.search(text) is not None
        has_text = bool(strip_placeholders(text).strip())
        if not has_text and not images:
            raise ValueError(f"{name} is empty: its text holds only an image placeholder.")
        raw = not preset.chat or (preset.raw_joint and has_text and images > 0)
        image = self._fenced_image if preset.fenced else self.image_token
        if places_image and has_text:
            turn = text if preset.verbatim else _fill(prompts.both.replace("{image}\n", ""), text)
            if images > 1:
                raise ValueError(f"{name} places one image in its text but has {images}.")
            turn = PLACEHOLDER.sub(lambda _: image, turn)
        else:
            template = prompts.of(has_text, images > 0).replace("{image}", image * images)
            turn = _fill(template, text) if has_text else template
        return turn if raw else self._wrap(turn, preset, image)

    def _wrap(self, turn: str, preset: Preset, image: str) -> str:
        pieces = turn.split(image)
        content = [self._text_part(pieces[0], preset.strip and len(pieces) > 1)]
        for piece in pieces[1:]:
            content += [{"type": "image"}, self._text_part(piece, preset.strip)]
        messages = [{"role": "user", "content": [part for part in content if part.get("text") != ""]}]
        if preset.system:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": preset.system}]})
        return self._template(messages)

    @staticmethod
    def _text_part(text: str, strip: bool) -> dict:
        return {"type": "text", "text": text.strip() if strip else text}

    def _template(self, messages, add_generation_prompt: bool = True) -> str:
        """Renders messages whose content is a list of text and image parts."""

        def apply(turns, generate):
            return self.tokenizer.apply_chat_template(
                turns, chat_template=self.chat_template, tokenize=False, add_generation_prompt=generate
            )

        if self.chat_template is None:
            raise ValueError(
                f"the preset {self.preset!r} wants a chat template, and this checkpoint has none; pass "
                "`chat_template=`, or choose a preset that feeds raw prompts (joint)."
            )
        if self._template_takes_strings is None:
            probe = "is this text rendered"
            try:
                self._template_takes_strings = probe in apply([{"role": "user", "content": probe}], False)
            except Exception:  # a Jinja template may fail in any way on content it was not written for
                self._template_takes_strings = False
        if self._template_takes_strings:
            messages = [
                {**m, "content": "".join(part.get("text", self._fenced_image) for part in m["content"])}
                for m in messages
            ]
        else:  # such templates put a line break between image and text themselves
            messages = [{**m, "content": _without_leading_breaks(m["content"])} for m in messages]
        return apply(messages, add_generation_prompt)

    def _apply_template(self, messages, name: str, generate: bool):
        images, turns = [], []
        for message in messages:
            content, parts = message.get("content", ""), []
            for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
                if part.get("type") == "image" and is_image(part.get("image")):
                    images.append(part["image"])
                    parts.append({"type": "image"})
                elif part.get("type") == "video" and part.get("video") is not None:
                    frames = read_frames(part["video"], name, self.num_frames)
                    images.extend(frames)
                    parts.extend([{"type": "image"}] * len(frames))
                elif part.get("type") == "text" and isinstance(part.get("text"), str):
                    parts.append({"type": "text", "text": part["text"]})
                else:
                    raise ValueError(
                        f"{name} has a message part that is neither text, image nor video: {str(part)[:80]!r}."
                    )
            turns.append({"role": message["role"], "content": parts})
        return self._template(turns, generate), tuple(images)

    def rerank_messages(
        self, query, candidates, strategy: str, names=None, answer_format: str = "yes_no"
    ) -> list[dict]:
        """[`~unime.items_unime.judge_messages`] with this processor's number of frames."""
        return judge_messages(query, candidates, strategy, names, answer_format, self.num_frames)

    def answer_ids(self, answer: str) -> list[int]:
        """Ids of an assistant's turn, up to the token that ends it, as they follow the generation prompt."""
        question = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
        turn = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        before, whole = self._template(question), self._template([*question, turn], add_generation_prompt=False)
        if whole.startswith(before):
            after = whole.removeprefix(before).rstrip("\n")
        else:  # the template writes assistant turns in a way of its own
            after = answer + (self.tokenizer.eos_token or "")
        return self.tokenizer(after, add_special_tokens=False)["input_ids"]

    # prompts -> tensors
    def prepare(
        self, items, instruction=None, role="query", max_length=None, suffix="", names=None, resolution=None
    ) -> list[PreparedItem]:
        """Tokenises items and counts their image tokens, reading only the headers of image files.

        Args:
            items (`list`): what [`~UniMEProcessor.render`] takes.
            max_length (`int`, *optional*): overrides the processor's own limit.
            suffix (`str`): appended to every prompt (a forced answer prefix).
            names (`list[str]`, *optional*): how errors call the items; `item 0`, `item 1`, ... by default.
            resolution (*optional*): overrides the processor's own policy.

        Raises:
            ValueError: an item is empty, an image unreadable or too large, or an image alone exceeds `max_length`.
        """
        limit = min(max_length or self.max_length, self.tokenizer.model_max_length)
        policy = Resolution.parse(self.resolution if resolution is None else resolution)
        names = names or [f"item {i}" for i in range(len(items))]
        rendered = [self.render(item, instruction, role, name) for item, name in zip(items, names)]
        prompts = [prompt + suffix for prompt, _ in rendered]
        prepared, cut = [], 0
        for name, item, prompt, ids, (_, images) in zip(
            names, items, prompts, self._native.tokenize(prompts), rendered
        ):
            placed = ids.count(self._native.placeholder_id)
            if placed != len(images):
                raise ValueError(
                    f"{name} holds {placed} image tokens for {len(images)} images; remove {self.image_token!r} from "
                    "its text."
                )
            sizes = tuple(self._fit(image, policy, name) for image in images)
            counts = self._count_tokens(sizes, name)
            entry = PreparedItem(name, prompt, ids, images, sizes, counts, policy)
            if entry.length > limit:
                target = len(ids) - (entry.length - limit)
                shorter = None if is_chat(item) else self._cut(item, images, instruction, role, suffix, target, name)
                if shorter is None:
                    raise ValueError(
                        f"{name} takes {entry.length} tokens ({sum(counts)} of them image tokens), above the limit of "
                        f"{limit}. Chats and images are not cut: lower the resolution, shorten the text or raise "
                        "`max_length`."
                    )
                entry, cut = replace(entry, prompt=shorter[0], input_ids=shorter[1]), cut + 1
            prepared.append(entry)
        if cut:
            warnings.warn(
                f"{cut} of {len(items)} items were longer than {limit} tokens; their texts were cut to fit.",
                stacklevel=3,
            )
        return prepared

    def prepare_parts(
        self, items, instruction=None, role="query", max_length=None, names=None, resolution=None, fusion=None
    ) -> tuple[list[int], list[PreparedItem]]:
        """Prepares what is embedded for each item: itself, or, where the fusion is a sum, its image and its text.

        Args:
            fusion (`str`, *optional*): `"joint"` or `"sum"`; overrides the processor's own.
            items, instruction, role, max_length, names, resolution: as in [`~UniMEProcessor.prepare`].

        Returns:
            the number of its item for each part, and the parts; embeddings of one item's parts are added up.
        """
        fusion = one_of("fusion", fusion or self.fusion, "joint", "sum")
        names = names or [f"item {i}" for i in range(len(items))]
        parts = [(row, *part) for row, item in enumerate(items) for part in _parts(item, fusion, instruction)]
        prepared = [None] * len(parts)
        for said in {said for *_, said in parts}:  # the instruction belongs to the text of a sum, not to its image
            chosen = [number for number, part in enumerate(parts) if part[2] == said]
            own, named = [parts[number][1] for number in chosen], [names[parts[number][0]] for number in chosen]
            for number, entry in zip(chosen, self.prepare(own, said, role, max_length, "", named, resolution)):
                prepared[number] = entry
        return [row for row, *_ in parts], prepared

    def _cut(self, item, images, instruction, role, suffix, target: int, name: str) -> tuple[str, list[int]] | None:
        """Prompt and ids with the text cut until at most `target` remain; None when no text would be left."""
        text = item if isinstance(item, str) else item.get("text") if isinstance(item, Mapping) else None
        ends = [end for _, end in self.tokenizer(text or "", return_offsets_mapping=True)["offset_mapping"]]
        keep = len(ends) - 1
        while keep > 0:
            shorter = text[: ends[keep - 1]]
            if not shorter.strip():
                return None
            prompt = self._prompt(shorter, len(images), instruction, role, name) + suffix
            (ids,) = self._native.tokenize([prompt])
            if len(ids) <= target:
                return prompt, ids
            keep -= max(1, len(ids) - target)  # tokens may merge differently at the seam, hence a loop
        return None

    def _count_tokens(self, sizes, name: str) -> tuple[int, ...]:
        try:
            return tuple(self._native.count_tokens(list(sizes))) if sizes else ()
        except ValueError as error:
            raise ValueError(f"{name}: image of {sizes[0][0]} x {sizes[0][1]} pixels: {error}") from error

    def _fit(self, image, policy: Resolution, name: str) -> tuple[int, int]:
        size, grain = read_size(image, name), self._native.grain
        if policy == Resolution():
            return size
        smallest = self.image_processor.size["shortest_edge"] if grain else 1
        try:
            return policy.fit(*size, lambda *s: self._native.count_tokens([s])[0], grain, smallest)
        except ValueError as error:
            raise ValueError(f"{name}: image of {size[0]} x {size[1]} pixels: {error}") from error

    def read_image(self, entry: PreparedItem, index: int) -> Image.Image:
        """An image of a prepared item, decoded and at the size that was planned."""
        try:
            image = open_image(entry.images[index], self.max_image_pixels)
        except ValueError as error:
            raise ValueError(f"{entry.name}: {error}") from error
        side = entry.resolution.side
        for size in ((side, side) if side else image.size, entry.sizes[index]):  # upstream resizes once for each
            image = image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
        return image

    def read_images(self, prepared: Sequence[PreparedItem]) -> tuple[dict, list[list[str]]]:
        """Decodes the images of prepared items.

        Returns:
            The vision tower's inputs, all images in order, and for each item the strings its image tokens become.
        """
        groups = [[self.read_image(entry, i) for i in range(len(entry.images))] for entry in prepared]
        if not any(groups):
            return {}, [[] for _ in prepared]
        inputs, strings = self._native.read_images([g for g in groups if g])
        remaining = iter(strings)
        return inputs, [[next(remaining) for _ in group] for group in groups]

    def read_loose_images(self, places, alone: bool) -> tuple[dict, list[str]]:
        """As `read_images`, for single images `(entry, index)` out of prompts in which each is alone, or none is."""
        images = [self.read_image(entry, index) for entry, index in places]
        groups = [[image] for image in images] if alone else [images if len(images) > 1 else images * 2]
        inputs, strings = self._native.read_images(groups)
        return inputs, strings[: len(images)]

    def expand(self, entry: PreparedItem, strings: Sequence[str]) -> list[int]:
        """The ids of an item with its image tokens repeated as often as the images need.

        Args:
            strings (`Sequence[str]`): what each image token becomes, from [`~UniMEProcessor.read_images`].
        """
        runs = [self._native.run_length(string) for string in strings]
        if None in runs:  # other tokens stand between the image tokens: the text as a whole decides on its tokens
            pieces = entry.prompt.split(self.image_token)
            ids = self.tokenizer("".join(a + b for a, b in zip(pieces, [*strings, ""])))["input_ids"]
            return [*ids, *entry.written]
        if tuple(runs) != entry.image_tokens:
            raise RuntimeError(
                f"the images of {entry.name} gave {runs} tokens where {entry.image_tokens} were planned."
            )
        counts, ids = iter(runs), []
        for token in entry.input_ids:
            ids.extend([token] * next(counts) if token == self._native.placeholder_id else [token])
        return [*ids, *entry.written]

    def pad(self, sequences: Sequence[list[int]], side: str | None = None) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` and `mm_token_type_ids`, all `[N, L]`, padded on the preset's side.

        (Gemma calls the last one `token_type_ids`.)
        """
        longest = max(map(len, sequences))
        left = (side or PRESETS[self.preset].padding_side) == "left"
        input_ids = torch.full((len(sequences), longest), self.tokenizer.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, ids in enumerate(sequences):
            columns = slice(longest - len(ids), longest) if left else slice(0, len(ids))
            input_ids[row, columns] = torch.tensor(ids)
            attention_mask[row, columns] = 1
        is_image = torch.isin(input_ids, torch.tensor(self._native.image_token_ids)) & attention_mask.bool()
        return {"input_ids": input_ids, "attention_mask": attention_mask, self._native.types_name: is_image.int()}

    def collate(self, prepared: Sequence[PreparedItem], padding_side: str | None = None) -> BatchFeature:
        """Decodes the images of prepared items and pads everything.

        Returns:
            `BatchFeature` with `input_ids`, `attention_mask`, `mm_token_type_ids` `[N, L]`, and with images what the
            backbone's image processor returns (`pixel_values` and `image_grid_thw` or `image_sizes`).
        """
        inputs, strings = self.read_images(prepared)
        return BatchFeature(
            {**self.pad([self.expand(e, s) for e, s in zip(prepared, strings)], padding_side), **inputs}
        )


def _parts(item, fusion: str, instruction: str | None) -> list[tuple]:
    """(item, instruction) pairs whose embeddings add up to an item's: itself, or its image and its text."""
    if fusion == "joint" or is_chat(item) or isinstance(item, str):
        return [(item, instruction)]
    picture = {key: item[key] for key in item if key != "text"} if isinstance(item, dict) else {"image": item}
    text = (item.get("text") if isinstance(item, dict) else None) or ""
    if not any(picture.values()) or PLACEHOLDER.search(text):
        return [(item, instruction)]
    spoken = instruct(instruction, text)
    return [(picture, None), (spoken, None)] if spoken else [(item, None)]


def _fill(template: str, text: str) -> str:
    """Puts the text into a prompt; a line break with which it already ends is not written twice."""
    before, _, after = template.partition("{text}")
    return before + text + (after[1:] if after.startswith("\n") and text.endswith("\n") else after)


def _without_leading_breaks(content: list[dict]) -> list[dict]:
    after_image = [False, *(part["type"] == "image" for part in content)]
    parts = [
        {**part, "text": part["text"].removeprefix("\n")} if after and part["type"] == "text" else part
        for after, part in zip(after_image, content)
    ]
    return [part for part in parts if part.get("text") != ""]


UniMEProcessor.register_for_auto_class()

# Copies that travel with saved models are found through their `auto_map` instead.
if __package__ == "unime":
    AutoProcessor.register(UniMEConfig, UniMEProcessor, exist_ok=True)
    AutoProcessor.register(UniMERerankerConfig, UniMEProcessor, exist_ok=True)

__all__ = ["SETTINGS", "UniMEProcessor", "open_image", "plan_chunks"]
