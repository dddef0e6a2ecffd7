"""UniMEProcessor: items (texts, images, both, chat messages) -> prompts -> padded tensors.

The processor carries everything that decides how an item reaches the model: the prompt preset, the chat template,
the resolution limits and the length limit. It is saved with the checkpoint and needs neither torchvision nor the
native processor of the backbone.
"""

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

PLACEHOLDERS = ("<|image_1|>", "<image>", "<|image_pad|>")  # how MMEB, LLaVA and Qwen spell "the image goes here"
MAX_IMAGE_PIXELS = 100_000_000

POINTWISE_INSTRUCTION = (
    "I will provide you with a query and a candidate. Please evaluate whether the candidate meets the requirements of "
    "the query. If it does, respond with 'Yes'; if it doesn't, respond with 'No'."
)
LISTWISE_INSTRUCTION = (
    "I will provide you with a query followed by multiple candidates in the format: (1) cand1 (2) cand2, etc. Each "
    "candidate is independent of the others. Evaluate each candidate against the query, and respond with the number "
    "corresponding to the candidate that best meets the requirements of the query."
)
LISTWISE_ANSWER = "Ans: ("  # the forced answer prefix; the next token is the number


class Prompts(NamedTuple):
    """The user turn by kind of item. `{image}` stands where the image goes, `{text}` where the text goes."""

    text: str
    image: str
    both: str

    def of(self, has_text: bool, has_image: bool) -> str:
        return self.both if has_text and has_image else self.image if has_image else self.text


@dataclass(frozen=True)
class Preset:
    """One way to turn an item into a prompt, for the query side and for the document side.

    `chat` wraps the user turn in the chat template with a generation prompt; otherwise the string is fed raw.
    """

    query: Prompts
    document: Prompts
    system: str | None = None
    chat: bool = True


_SUMMARY = Prompts(
    text="{text}\nSummary above sentence in one word:",
    image="{image}\nSummary above image in one word:",
    both="{image}\n{text}\nSummary above image and sentence in one word:",
)
_JOINT = Prompts(text="{text}", image="{image}\nRepresent the given image.\n", both="{image}\n{text}\n")
_PLAIN = Prompts(text="{text}", image="{image}", both="{image}\n{text}")

PRESETS = {
    # UniME stage 1 and zero-shot (2504.17432 section 3.2): the next token after the prompt sums the item up.
    "summary": Preset(query=_SUMMARY, document=_SUMMARY),
    # From Generator to Embedder (2508.00955): a shared system sentence, and a one-word request on the query side only.
    "hierarchical": Preset(
        system="Given an image, summarize the provided image in one word. "
        "Given only text, describe the text in one word.",
        query=Prompts(
            text="{text}\nRepresent the given text in one word.",
            image="{image}\nRepresent the given text/image in one word.",
            both="{image}\n{text}\nRepresent the given text/image in one word.",
        ),
        document=_PLAIN,
    ),
    # VLM2Vec and UniME stage 2 on MMEB: the data set's own strings, unwrapped.
    "joint": Preset(query=_JOINT, document=_JOINT, chat=False),
}


def open_image(source, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Opens a path or takes a PIL image, and returns it upright, in RGB, fully decoded (alpha composed over white).

    Raises:
        ValueError: the file is missing, unreadable or truncated, or the image has more than `max_pixels` pixels.
    """
    name = (
        f"image {str(source)!r}"
        if isinstance(source, (str, os.PathLike))
        else f"image of type {type(source).__name__}"
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is checked below
            image = source if isinstance(source, Image.Image) else Image.open(source)
        width, height = image.size
        if width * height > max_pixels:
            raise ValueError(
                f"{name} has {width} x {height} = {width * height:,} pixels, above the limit of {max_pixels:,}. "
                "Resize it, or raise `max_image_pixels`."
            )
        image.load()
        image = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, Image.DecompressionBombError, AttributeError) as error:
        raise ValueError(f"{name} cannot be read: {error or type(error).__name__}") from error
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):  # 16-bit greyscale would be clipped to white by convert()
        return image.convert("I").point(lambda value: value / 256).convert("L").convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"{name} has mode {image.mode!r}, whose range of values is not known; convert it to 8 bits.")
    if image.mode == "La":
        image = image.convert("LA")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def plan_chunks(
    lengths: Sequence[int], token_budget: int, max_padding: float = 0.05, slack: int = 256
) -> list[list[int]]:
    """Packs sequences, sorted by length, into chunks of at most `token_budget` padded tokens each.

    A chunk is closed when the next, longer sequence would leave more than `max_padding` of it padded, unless that is
    fewer than `slack` tokens: starting another forward pass costs about as much as those. A single sequence above the
    budget gets a chunk of its own.

    Args:
        lengths (`Sequence[int]`): tokens of each sequence.
        token_budget (`int`): most padded tokens (longest x count) in one chunk.
        max_padding (`float`, defaults to 0.05): padded share above which a chunk is closed.
        slack (`int`, defaults to 256): padded tokens that are always tolerated.

    Returns:
        `list[list[int]]`: indices into `lengths`; every index occurs exactly once, the longest sequences come first.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget must be positive, got {token_budget}.")
    chunks, tokens = [], 0
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        padded = lengths[index] * (len(chunks[-1]) + 1) if chunks else 0
        padding = padded - tokens - lengths[index]
        if not chunks or padded > token_budget or padding > max(slack, max_padding * padded):
            chunks.append([])
            tokens = 0
        chunks[-1].append(index)
        tokens += lengths[index]
    return chunks[::-1]


@dataclass(frozen=True)
class PreparedItem:
    """A tokenised item: ids with one placeholder per image, its images undecoded, and its length in tokens."""

    name: str
    input_ids: list[int]
    images: tuple
    image_tokens: tuple[int, ...]

    @property
    def length(self) -> int:
        return len(self.input_ids) + sum(self.image_tokens) - len(self.images)


def is_chat(item) -> bool:
    return isinstance(item, (list, tuple)) and bool(item) and all(isinstance(m, Mapping) and "role" in m for m in item)


def split_item(item, name: str = "item"):
    """Returns (text, image) of a string, a PIL image, a path or a `{"text", "image"}` dict; absent parts are None.

    A `str` is always text; a path to an image is an `os.PathLike` or the value of the dict's `"image"` key.
    """
    if isinstance(item, str):
        text, image = item, None
    elif isinstance(item, (Image.Image, os.PathLike)):
        text, image = None, item
    elif isinstance(item, Mapping):
        unknown = sorted(item.keys() - {"text", "image"})
        if unknown:
            raise ValueError(f"{name} has unknown keys {unknown}; an item has 'text', 'image' or both.")
        text, image = item.get("text"), item.get("image")
        image = None if isinstance(image, str) and not image else image
    else:
        raise TypeError(
            f"{name} is a {type(item).__name__}; expected a string, a PIL image, a path, a dict with 'text' and/or "
            "'image', or a list of chat messages."
        )
    if image is not None and not isinstance(image, (str, os.PathLike, Image.Image)):
        raise TypeError(f"{name} has an image of type {type(image).__name__}; expected a path or a PIL image.")
    if text is not None and not isinstance(text, str):
        raise TypeError(f"{name} has a text of type {type(text).__name__}; expected a string.")
    if image is None and not (text and text.strip()):
        raise ValueError(f"{name} is empty: it has neither text nor image.")
    return text, image


def item_key(item, max_pixels: int = MAX_IMAGE_PIXELS, name: str = "item") -> str:
    """A key that is equal for items of equal content: texts by value, paths by name, images by what the model sees."""
    digest = hashlib.blake2b(digest_size=16)

    def feed(value):
        if isinstance(value, Image.Image):
            try:
                seen = open_image(value, max_pixels)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            digest.update(f"P{seen.size}".encode() + seen.tobytes())
        elif isinstance(value, Mapping):
            digest.update(b"D")
            for key in sorted(value):
                feed(key)
                feed(value[key])
        elif isinstance(value, (list, tuple)):
            digest.update(b"L")
            for element in value:
                feed(element)
        else:
            text = os.fspath(value) if isinstance(value, os.PathLike) else value
            digest.update(f"{type(text).__name__}{isinstance(value, os.PathLike)}{len(str(text))}:{text}".encode())

    feed(item)
    return digest.hexdigest()


def strip_placeholders(text: str) -> str:
    """Removes image placeholders and one newline after each (a space is kept, as upstream does)."""
    for placeholder in PLACEHOLDERS:
        text = text.replace(placeholder + "\n", "").replace(placeholder, "")
    return text


class UniMEProcessor(ProcessorMixin):
    """Tokenizer + image processor + prompt preset.

    Args:
        image_processor: any image processor that returns `image_grid_thw` (the Qwen-VL family).
        tokenizer: the backbone's tokenizer, with a chat template if the preset wants one.
        chat_template (`str`, *optional*): Jinja template; the tokenizer's own by default.
        preset (`str`, defaults to `"summary"`): a key of `PRESETS`.
        max_length (`int`, defaults to 4096): longest sequence in tokens; longer texts are cut, images never are.
        max_image_pixels (`int`): larger images are refused before they are decoded.
        image_token (`str`): the placeholder token of the backbone.
    """

    return_mm_token_type_ids = True  # M-RoPE needs to know which tokens are image tokens
    text_kwargs = {"padding": True}

    def __init__(
        self,
        image_processor,
        tokenizer,
        chat_template=None,
        preset="summary",
        max_length=4096,
        max_image_pixels=MAX_IMAGE_PIXELS,
        image_token="<|image_pad|>",
        **kwargs,
    ):
        if preset not in PRESETS:
            raise ValueError(f"unknown preset {preset!r}; choose one of {', '.join(sorted(PRESETS))}.")
        self.preset = preset
        self.max_length = min(max_length, tokenizer.model_max_length)
        self.max_image_pixels = max_image_pixels
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        if self.image_token_id is None or self.image_token_id == tokenizer.unk_token_id:
            raise ValueError(f"the tokenizer has no image token {image_token!r}; pass `image_token=`.")
        fence = tokenizer.convert_tokens_to_ids(
            ["<|vision_start|>", "<|vision_end|>"]
        )  # Qwen-VL puts images between these
        fenced = None not in fence and tokenizer.unk_token_id not in fence
        self._image_string = f"<|vision_start|>{image_token}<|vision_end|>" if fenced else image_token
        super().__init__(image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template)

    @classmethod
    def from_backbone(cls, path_or_repo, preset: str = "summary", **kwargs):
        """Builds the processor of a stock VLM checkpoint without torchvision.

        Keyword arguments of `__init__` are recognised; the rest (`revision`, `token`, ...) goes to the Hub loaders.
        """
        own = {
            k: kwargs.pop(k) for k in ("max_length", "max_image_pixels", "image_token", "chat_template") if k in kwargs
        }
        image_processor = AutoImageProcessor.from_pretrained(path_or_repo, backend="pil", **kwargs)
        tokenizer = AutoTokenizer.from_pretrained(path_or_repo, **kwargs)
        return cls(image_processor, tokenizer, preset=preset, **own)

    # transformers' own path: processor(text=..., images=...), apply_chat_template(...)
    def replace_image_token(self, image_inputs, image_idx, **kwargs):
        merge = self.image_processor.merge_size**2
        return self.image_token * int(image_inputs["image_grid_thw"][image_idx].prod() // merge)

    # items -> prompts
    def render(self, item, instruction: str | None = None, role: str = "query", name: str = "item"):
        """Returns the prompt of an item, with one image token per image, and its images.

        Args:
            item: a string, PIL image, path, `{"text", "image"}` dict or chat messages (which bypass the preset).
            instruction (`str`, *optional*): put on a line of its own before the text.
            role (`str`): `"query"` or `"document"`; presets may word them differently.
        """
        if role not in ("query", "document"):
            raise ValueError(f"role must be 'query' or 'document', got {role!r}.")
        if is_chat(item):
            return self._apply_template(item, name)
        text, image = split_item(item, name)
        preset = PRESETS[self.preset]
        text = strip_placeholders(text or "").rstrip("\n")
        if instruction:
            text = f"{instruction}\n{text}" if text.strip() else instruction
        if image is None and not text.strip():
            raise ValueError(f"{name} is empty: its text holds only an image placeholder.")
        prompt = getattr(preset, role).of(bool(text.strip()), image is not None)
        before, has_text, after = prompt.partition("{text}")
        turn = before.replace("{image}", self._image_string) + (text if has_text else "") + after
        images = () if image is None else (image,)
        return (self._wrap(turn, preset.system) if preset.chat else turn), images

    def _wrap(self, turn: str, system: str | None) -> str:
        messages = [{"role": "user", "content": turn}]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        return self._template(messages)

    def _template(self, messages) -> str:
        return self.tokenizer.apply_chat_template(
            messages, chat_template=self.chat_template, tokenize=False, add_generation_prompt=True
        )

    def _apply_template(self, messages, name: str):
        images, turns = [], []
        for message in messages:
            content, parts = message.get("content", ""), []
            for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
                if part.get("type") == "image" and part.get("image") is not None:
                    images.append(part["image"])
                    parts.append(self._image_string)
                elif part.get("type") == "text" and isinstance(part.get("text"), str):
                    parts.append(part["text"])
                else:
                    raise ValueError(f"{name} has a message part that is neither text nor image: {str(part)[:80]!r}.")
            turns.append({"role": message["role"], "content": "".join(parts)})
        return self._template(turns), tuple(images)

    def rerank_messages(self, query, candidates, strategy: str, names: list[str] | None = None) -> list[dict]:
        """The judge's user turn: instruction, `Query:`, the query, `Candidate:` or `Candidates:` and the candidates.

        Images stand before the text of their item; placeholders are stripped from texts (2510.13515, released code).
        `names` says how errors call the candidates.
        """

        def parts(item, item_name):
            text, image = split_item(item, item_name)
            text = strip_placeholders(text or "")
            return [{"type": "image", "image": image}] * (image is not None) + [{"type": "text", "text": text}] * bool(
                text
            )

        def words(text):
            return {"type": "text", "text": text}

        listwise = strategy == "listwise"
        content = [words(LISTWISE_INSTRUCTION if listwise else POINTWISE_INSTRUCTION), words("Query:")]
        content += [*parts(query, "query"), words("Candidates:" if listwise else "Candidate:")]
        for index, candidate in enumerate(candidates):
            content += [words(f"({index + 1}) ")] * listwise
            content += parts(candidate, names[index] if names else f"candidate {index}")
        return [{"role": "user", "content": content}]

    # prompts -> tensors
    def prepare(
        self, items, instruction=None, role="query", max_length=None, suffix="", names=None
    ) -> list[PreparedItem]:
        """Tokenises items and counts their image tokens, reading only the headers of image files.

        Args:
            items (`list`): what [`~UniMEProcessor.render`] takes.
            max_length (`int`, *optional*): overrides the processor's own limit.
            suffix (`str`): appended to every prompt (a forced answer prefix).
            names (`list[str]`, *optional*): how errors call the items; `item 0`, `item 1`, ... by default.

        Raises:
            ValueError: an item is empty, an image unreadable or too large, or an image alone exceeds `max_length`.
        """
        limit = min(max_length or self.max_length, self.tokenizer.model_max_length)
        names = names or [f"item {i}" for i in range(len(items))]
        rendered = [self.render(item, instruction, role, name) for item, name in zip(items, names)]
        ids = self.tokenizer([prompt + suffix for prompt, _ in rendered])["input_ids"] if rendered else []
        prepared, cut = [], 0
        for name, item, tokens, (_, images) in zip(names, items, ids, rendered):
            if tokens.count(self.image_token_id) != len(images):
                raise ValueError(
                    f"{name} holds {tokens.count(self.image_token_id)} image tokens for {len(images)} images; remove "
                    f"{self.image_token!r} from its text."
                )
            counts = tuple(self._count_image_tokens(image, name) for image in images)
            entry = PreparedItem(name, tokens, images, counts)
            if entry.length > limit:
                target = len(tokens) - (entry.length - limit)
                shorter = None if is_chat(item) else self._cut(item, instruction, role, suffix, target, name)
                if shorter is None:
                    raise ValueError(
                        f"{name} takes {entry.length} tokens ({sum(counts)} of them image tokens), above the limit of "
                        f"{limit}. Chats and images are not cut: lower the resolution, shorten the text or raise "
                        "`max_length`."
                    )
                entry, cut = replace(entry, input_ids=shorter), cut + 1
            prepared.append(entry)
        if cut:
            warnings.warn(
                f"{cut} of {len(items)} items were longer than {limit} tokens; their texts were cut to fit.",
                stacklevel=3,
            )
        return prepared

    def _cut(self, item, instruction, role, suffix, target: int, name: str) -> list[int] | None:
        """Ids of the prompt with its text cut until at most `target` remain; None when no text would be left."""
        text, image = split_item(item, name)
        ends = [end for _, end in self.tokenizer(text or "", return_offsets_mapping=True)["offset_mapping"]]
        keep = len(ends) - 1
        while keep > 0:
            shorter = {"text": text[: ends[keep - 1]], "image": image}
            if not shorter["text"].strip():
                return None
            ids = self.tokenizer(self.render(shorter, instruction, role, name)[0] + suffix)["input_ids"]
            if len(ids) <= target:
                return ids
            keep -= max(1, len(ids) - target)  # tokens may merge differently at the seam, hence a loop
        return None

    def _count_image_tokens(self, image, name: str) -> int:
        size = image.size if isinstance(image, Image.Image) else self._read_size(image, name)
        try:
            patches = self.image_processor.get_number_of_image_patches(size[1], size[0])
        except ValueError as error:
            raise ValueError(f"{name}: image of {size[0]} x {size[1]} pixels: {error}") from error
        return patches // self.image_processor.merge_size**2

    def _read_size(self, path, name: str) -> tuple[int, int]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(path) as image:
                    width, height = image.size
                    turned = image.getexif().get(0x0112, 1) >= 5  # orientations 5 to 8 swap the sides
        except (OSError, SyntaxError, Image.DecompressionBombError, AttributeError) as error:
            raise ValueError(f"{name}: image {str(path)!r} cannot be read: {error}") from error
        return (height, width) if turned else (width, height)

    def collate(self, prepared: Sequence[PreparedItem]) -> BatchFeature:
        """Decodes the images of prepared items and pads everything on the left.

        Returns:
            `BatchFeature` with `input_ids`, `attention_mask`, `mm_token_type_ids` `[N, L]`, and with images
            `pixel_values` `[patches, patch_dim]` and `image_grid_thw` `[images, 3]`.
        """
        images = []
        for entry in prepared:
            for image in entry.images:
                try:
                    images.append(open_image(image, self.max_image_pixels))
                except ValueError as error:
                    raise ValueError(f"{entry.name}: {error}") from error
        longest = max(entry.length for entry in prepared)
        input_ids = torch.full((len(prepared), longest), self.tokenizer.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, entry in enumerate(prepared):
            counts, ids = iter(entry.image_tokens), []
            for token in entry.input_ids:
                ids.extend([token] * next(counts) if token == self.image_token_id else [token])
            input_ids[row, longest - len(ids) :] = torch.tensor(ids)
            attention_mask[row, longest - len(ids) :] = 1
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        if images:
            batch.update(self.image_processor(images=images, return_tensors="pt"))
            expected = torch.tensor([count for entry in prepared for count in entry.image_tokens])
            got = batch["image_grid_thw"].prod(-1) // self.image_processor.merge_size**2
            if not torch.equal(expected, got):
                row = int((expected != got).nonzero()[0])
                raise RuntimeError(
                    f"image {row} of the batch gave {got[row]} tokens where {expected[row]} were planned."
                )
        batch["mm_token_type_ids"] = ((input_ids == self.image_token_id) & attention_mask.bool()).int()
        return BatchFeature(batch)


UniMEProcessor.register_for_auto_class()

__all__ = ["PRESETS", "Preset", "Prompts", "UniMEProcessor", "open_image", "plan_chunks"]
