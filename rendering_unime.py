"""Items (texts, images, both, videos, chat messages) -> prompts, as a preset words them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from .controls_unime import GUARD, ControlTokens
from .images_unime import Media, Resolution
from .items_unime import (
    instruction_of,
    is_chat,
    is_image,
    is_video,
    judge_messages,
    read_frames,
    read_source,
    require_unicode,
    split_item,
)
from .prompts_unime import (
    BENCHMARKS,
    PLACEHOLDER,
    Preset,
    Prompts,
    instruct,
    one_of,
    strip_placeholders,
    with_full_stop,
    worded,
)
from .questions_unime import Question, QuestionRenderer
from .videos_unime import MARKERS, Clip


@dataclass(frozen=True)
class Reading:
    """How items are read: everything beside an item that decides its prompt and its pixels.

    Args:
        instruction (`str`, *optional*): put before the text of every item (see [`~unime.prompts_unime.instruct`]); by
            default the model's own for the role, except on a benchmark, and `""` for none.
        role (`str`, defaults to `"query"`): `"query"` or `"document"`, for presets that word them differently.
        max_length (`int`, *optional*): limit in tokens above which texts are cut; the processor's by default.
        resolution (*optional*): a policy that [`~unime.images_unime.Resolution`] reads; the processor's by default.
        fusion (`str`, *optional*): `"joint"` or `"sum"`; the processor's by default.
        suffix (`str`): appended to every prompt (a forced answer prefix).
        benchmark (`str`, *optional*): `"mmeb"`, `"retrieval"` or `"sugarcrepe"`: word items as the preset does on this
            kind of benchmark.
    """

    instruction: str | None = None
    role: str = "query"
    max_length: int | None = None
    resolution: str | int | None = None
    fusion: str | None = None
    suffix: str = ""
    benchmark: str | None = None

    def __post_init__(self):
        if self.benchmark is not None:
            one_of("benchmark", self.benchmark, *BENCHMARKS)
        if self.role not in ("query", "document"):
            raise ValueError(f"role must be 'query' or 'document', got {self.role!r}.")
        if self.max_length is not None and not (type(self.max_length) is int and self.max_length > 0):
            raise ValueError(f"max_length must be a whole number from 1, got {self.max_length!r}.")
        if self.resolution is not None:
            Resolution.parse(self.resolution)  # raises early
        require_unicode(self.instruction or "", "the instruction")


class PromptRenderer(QuestionRenderer):
    """The half of a processor that words items; the other half makes tensors of prompts.

    It reads these attributes of the processor: `preset`, `rules` (what the preset says), `benchmarks`, `tokenizer`,
    `chat_template`, `num_frames`, `fps`, `max_frames`, `video`, `instructions`, `image_token`, `_fenced_image` and
    `_native`.
    """

    allow_urls = False  # whether images are read by `https://` addresses; this is not saved
    _template_takes_strings = None  # tried out on first use
    _controls = None  # likewise

    def document_role(self, dataset: str) -> str:
        """The role in which the preset words the documents of a data set: `"document"`, but for a few `"query"`."""
        return "query" if dataset in self.rules.documents_as_queries else "document"

    def wording(self, role: str, benchmark: str | None = None, dataset: str = "") -> tuple[str, str | None]:
        """The role and the kind of benchmark to embed the items of a data set with, equal where their prompts are.

        Args:
            role (`str`): `"query"` or `"document"`, what the items are in the data set.
            benchmark (`str`, *optional*): the kind of benchmark that it belongs to.
            dataset (`str`): its name.

        Example:

        ```python
        role, benchmark = processor.wording("document", "mmeb", "GQA")
        model.encode(answers, role=role, benchmark=benchmark)
        ```
        """
        words = self._words(benchmark)
        if role == "document":
            role = self.document_role(dataset)

        # on a benchmark, default instructions are left out
        defaults = (self.default_instruction("query"), self.default_instruction("document"))
        if words is self.rules and not any(defaults):
            benchmark = None
        if benchmark is not None:
            defaults = ("", "")

        # equal prompts under one role: their items are embedded once
        if words.query == words.document and defaults[0] == defaults[1]:
            role = "query"
        return role, benchmark

    def default_instruction(self, role: str) -> str | None:
        """The instruction of items that come without one, as it was saved with the model."""
        if isinstance(self.instructions, Mapping):
            return self.instructions.get(role)
        return self.instructions

    def instruction_for(
        self, item, instruction: str | None = None, role: str = "query", benchmark: str | None = None
    ) -> str | None:
        """What an item is read as: its own instruction, that of the call, or the default of its role.

        Args:
            item: an item of any kind.
            instruction (`str`, *optional*): of the call; `""` for none, not even the default. A preset whose prompt
                always has one, as its authors' does, then puts its own there.
            role (`str`, defaults to `"query"`): `"query"` or `"document"`.
            benchmark (`str`, *optional*): its items come with instructions of their own, so that there is no default.
        """
        if instruction is None and benchmark is None:
            instruction = self.default_instruction(role)
        return instruction_of(item) or instruction

    def _words(self, benchmark: str | None) -> Preset:
        """The preset whose prompts are used on a kind of benchmark, or elsewhere."""
        return worded(self.rules, benchmark) if benchmark in self.benchmarks else self.rules

    @property
    def uses_template(self) -> bool:
        """Whether the preset words items in the backbone's chat template."""
        return self.rules.frame is None

    @property
    def controls(self) -> ControlTokens:
        """The control tokens of the backbone, which no text of a user may hold as such."""
        if self._controls is None:
            self._controls = ControlTokens(self.tokenizer, self.chat_template, self._native.tag)
        return self._controls

    @property
    def media(self) -> Media:
        """How images and videos of items are got at."""
        as_clips = self.video == "tokens" and self._native.videos is not None
        return Media(self.num_frames, self.fps, self.max_frames, allow_urls=self.allow_urls, as_clips=as_clips)

    @property
    def takes_several_images(self) -> bool:
        """Whether a prompt may hold more than one image."""
        return self._native.takes_several_images

    # items -> prompts
    def render(
        self,
        item,
        instruction: str | None = None,
        role: str = "query",
        name: str = "item",
        generate: bool = True,
        benchmark: str | None = None,
    ):
        """Returns the prompt of an item, with one image token per image, and its images.

        The text of an item that has an image may place it itself, by a placeholder of MMEB, LLaVA or Qwen: under
        presets that read MMEB's strings it is the whole prompt, under the others it stands for image and text in the
        preset's prompt. In any other text a placeholder is text, and so is a control token (`<|im_end|>`) in every
        text: [`~UniMEProcessor.prepare`] does not tokenise it as one, although the prompt shows it.

        Args:
            item: a string, PIL image, path, `{"text", "image"}` or `{"text", "video"}` dict, chat messages (which
                bypass the preset), or a [`~unime.questions_unime.Question`].
            instruction (`str`, *optional*): put before the text, on a line of its own or after a colon; the model's
                default as in [`Reading`].
            role (`str`): `"query"` or `"document"`; presets may word them differently.
            name (`str`): what errors call the item.
            generate (`bool`): end chat messages with the beginning of an answer.
            benchmark (`str`, *optional*): a kind of benchmark that the preset may word in a way of its own.

        Example:

        ```python
        prompt, images = processor.render({"text": "at night", "image": "photo.jpg"}, role="document")
        ```
        """
        reading = Reading(self.instruction_for(item, instruction, role, benchmark), role, benchmark=benchmark)
        prompt, images = self._render(item, reading, name, generate)
        return prompt.replace(GUARD, ""), images

    def _render(self, item, reading: Reading, name: str, generate: bool = True) -> tuple[str, tuple]:
        if isinstance(item, Question):
            prompt = item.before + self.controls.guard(item.text) + item.after + _appended_text(self.rules)
            images = item.images
        elif is_chat(item):
            prompt, images = self._render_chat(item, name, generate)
        else:
            may_be_empty = self._words(reading.benchmark).empty is not None
            text, images = split_item(item, name, self.media, may_be_empty)
            prompt = self._prompt(text, len(images), reading, name, is_video(item))

        if len(images) > 1 and not self.takes_several_images:
            raise ValueError(f"{name} has {len(images)} images, but {self._native.name} takes one image at a time.")
        return self._with_videos(prompt, images), images

    def _with_videos(self, prompt: str, images: tuple) -> str:
        """A prompt with the token of a video in the place of an image's, where a video stands."""
        pieces = prompt.split(self.image_token)
        if len(pieces) != len(images) + 1:
            return prompt  # which is refused when it is tokenised

        marked = pieces[0]
        for image, piece in zip(images, pieces[1:]):
            token = self.image_token
            if isinstance(image, Clip):
                token = self._native.videos.token
                if self._native.videos.marks_frames:
                    marked = marked.removesuffix(MARKERS[0])
                    piece = piece.removeprefix(MARKERS[1])
            marked += token + piece
        return marked

    def _prompt(self, text: str | None, image_count: int, reading: Reading, name: str, of_video: bool = False) -> str:
        """The preset's prompt for a text (or None) and a number of images, with the controls of the text guarded."""
        words = self._words(reading.benchmark)
        text = text or ""
        if text and not image_count and not strip_placeholders(text).strip():
            raise ValueError(f"{name} is empty: its text holds only an image placeholder.")
        if not text and not image_count:
            text = words.empty or ""

        # the preset places the image itself, before the instruction and the text
        instruction = self._instruction(text, image_count, reading, words)
        place = words.instruction.place
        if instruction and place == "text":
            # unless several images have places of their own among the words
            if image_count == 1 or len(PLACEHOLDER.findall(text)) != image_count:
                text = strip_placeholders(text) if image_count else text
            text = instruct(instruction, text, words.instruction.form)
        text = self.controls.guard(text, places_image=image_count > 0)
        instruction = self.controls.guard(instruction)

        # beside an image, a placeholder alone is no text
        has_text = bool(text.strip())
        if image_count:
            has_text = bool(strip_placeholders(text).strip())

        slot = instruction if place == "slot" else ""
        prompts = getattr(words, reading.role)
        turn = self._user_turn(text, has_text, image_count, prompts, words, name, of_video, slot)
        if place == "turn":
            turn = instruct(instruction, turn, words.instruction.form)

        is_raw_joint = words.raw_joint and has_text and image_count > 0
        if not is_raw_joint:
            turn = self._framed(turn, words, instruction if place == "system" else words.system)
        return turn + _appended_text(words)

    def _instruction(self, text: str, image_count: int, reading: Reading, words: Preset) -> str:
        """The instruction of an item: the one given, or the preset's own for such an item; empty if there is none."""
        slot = words.instruction
        instruction = ""
        if slot.place != "none" and reading.role in slot.roles:
            instruction = reading.instruction or ""
        if slot.full_stop:
            instruction = with_full_stop(instruction)
        if instruction.strip():
            return instruction

        # a text that places its image brings its instruction with it
        if isinstance(slot.default, str):
            return slot.default
        if image_count and PLACEHOLDER.search(text):
            return ""
        return slot.default.of(bool(text.strip()), image_count > 0) or ""

    def _user_turn(
        self,
        text: str,
        has_text: bool,
        image_count: int,
        prompts: Prompts,
        words: Preset,
        name: str,
        of_video: bool,
        instruction: str = "",
    ) -> str:
        """What the user says, with an image token for each image, and the instruction where the prompt has a slot."""
        template = prompts.of(has_text, image_count > 0, of_video)
        if template is None:
            raise ValueError(f"{name} has an image and a text, which the preset {self.preset!r} has no prompt for.")

        # a text that says itself where its image stands
        if has_text and image_count and PLACEHOLDER.search(text):
            places = len(PLACEHOLDER.findall(text))
            if places != image_count and image_count > 1:
                raise ValueError(f"{name} places {places or 'no'} images in its text but has {image_count}.")
            turn = text if words.verbatim else _fill(_without_image(template), text, instruction)
            return PLACEHOLDER.sub(lambda _: self._image_in_prompt, turn)

        template = template.replace("{image}", self._image_in_prompt * image_count)
        return _fill(template, text, instruction)

    @property
    def _image_in_prompt(self) -> str:
        """What stands for an image in a prompt of the preset."""
        return self._fenced_image if self.rules.fenced else self.image_token

    def _framed(self, turn: str, words: Preset, system: str | None) -> str:
        """The user's turn between what the preset, or the backbone's chat template, puts around it."""
        if words.frame is not None:
            turn = turn.strip() if words.strip else turn
            before, _, after = words.frame.partition("{user}")
            return before.replace("{system}", system or "") + turn + after

        first, *others = turn.split(self._image_in_prompt)
        content = [_text_part(first, words.strip)]
        for piece in others:
            content.append({"type": "image"})
            content.append(_text_part(piece, words.strip))

        messages = [{"role": "user", "content": _without_empty_texts(content)}]
        if system:
            messages.insert(0, {"role": "system", "content": [_text_part(system)]})
        return self._template(messages, image=self._image_in_prompt)

    def _template(self, messages, add_generation_prompt: bool = True, image: str | None = None) -> str:
        """Renders messages whose content is a list of text and image parts.

        A template that takes strings gets `image` in the place of images, the backbone's fenced one by default.
        """
        if self.chat_template is None:
            raise ValueError(
                f"the preset {self.preset!r} needs a chat template, and this checkpoint has none; pass "
                "`chat_template=`, or choose a preset that feeds raw prompts (joint)."
            )
        if self._template_takes_strings is None:
            self._template_takes_strings = self._renders_strings()

        turns = []
        for message in messages:
            if self._template_takes_strings:
                content = "".join(entry.get("text", image or self._fenced_image) for entry in message["content"])
            else:  # such templates put a line break between image and text themselves
                content = _without_leading_breaks(message["content"])
            turns.append({**message, "content": content})
        return self._apply_template(turns, add_generation_prompt)

    def _apply_template(self, turns, add_generation_prompt: bool) -> str:
        return self.tokenizer.apply_chat_template(
            turns,
            chat_template=self.chat_template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )

    def _renders_strings(self) -> bool:
        """Whether the chat template renders a content that is a string; others take only lists of parts."""
        probe = "is this text rendered"
        try:
            return probe in self._apply_template([{"role": "user", "content": probe}], False)
        except Exception:  # a Jinja template may fail in any way on content it was not written for
            return False

    def _render_chat(self, messages, name: str, generate: bool) -> tuple[str, tuple]:
        """Prompt and images of chat messages."""
        turns = []
        images = []
        for message in messages:
            entries = message.get("content")
            if isinstance(entries, str):
                entries = [_text_part(entries)]
            if not isinstance(entries, (list, tuple)):
                raise ValueError(f"{name} has a message whose content is neither a text nor a list: {entries!r}.")

            # in the template a video is as many images as it has frames
            content = []
            for entry in entries:
                entry_images = self._images_of(entry, name)
                images.extend(entry_images)
                if entry["type"] == "text":
                    content.append(_text_part(entry["text"]))
                else:
                    content.extend([{"type": "image"}] * len(entry_images))

            # a role is a user's text as well
            if not isinstance(message["role"], str):
                raise ValueError(f"{name} has a message whose role is no text: {str(message['role'])[:80]!r}.")
            role = self.controls.guard(message["role"])
            turns.append({"role": role, "content": self._guarded_parts(content)})
        return self._template(turns, generate) + _appended_text(self.rules), tuple(images)

    def _guarded_parts(self, content: list[dict]) -> list[dict]:
        """The parts of a message, with the control tokens of its texts guarded, across neighbouring texts too."""
        parts = []
        for kind, run in groupby(content, key=itemgetter("type")):
            entries = list(run)

            # a template puts neighbouring texts together, and half a control token of each would be a whole one
            if kind == "text":
                texts = self.controls.guard_all([entry["text"] for entry in entries])
                entries = [_text_part(text) for text in texts]
            parts.extend(entries)
        return parts

    def _images_of(self, entry: dict, name: str) -> Sequence:
        """The image, or the frames of the video, in an entry of a message's content; none for a text."""
        kind = entry.get("type") if isinstance(entry, Mapping) else None
        if kind == "image" and is_image(entry.get("image")):
            return (read_source(entry["image"], name, self.media),)
        if kind == "video" and entry.get("video") is not None:
            return read_frames(entry["video"], name, self.media)
        if kind == "text" and isinstance(entry.get("text"), str):
            require_unicode(entry["text"], name)
            return ()

        raise ValueError(f"{name} has a message part that is neither text, image nor video: {str(entry)[:80]!r}.")

    def rerank_messages(
        self,
        query,
        candidates,
        strategy: str,
        names=None,
        answer_format: str = "yes_no",
        benchmark: str | None = None,
        instruction: str | None = None,
    ) -> list[dict]:
        """[`~unime.items_unime.judge_messages`] with this processor's number of frames, as on a kind of benchmark."""
        if benchmark is not None:
            one_of("benchmark", benchmark, *BENCHMARKS)
        image_text = self.rules.judged_images.get(benchmark, "")
        instruction = self.instruction_for(query, instruction, benchmark=benchmark)
        return judge_messages(query, candidates, strategy, names, answer_format, self.media, image_text, instruction)

    def answer_ids(self, answer: str) -> list[int]:
        """Ids of an assistant's turn, up to the token that ends it, as they follow the generation prompt."""
        question = [{"role": "user", "content": [_text_part("?")]}]
        turn = {"role": "assistant", "content": [_text_part(self.controls.guard(answer))]}
        before = self._template(question)
        whole = self._template([*question, turn], add_generation_prompt=False)

        if whole.startswith(before):
            after = whole.removeprefix(before).rstrip("\n")
        else:  # the template writes assistant turns in a way of its own
            after = self.controls.guard(answer) + (self.tokenizer.eos_token or "")
        return self.controls.unguard(self.tokenizer(after, add_special_tokens=False)["input_ids"])


def _text_part(text: str, strip: bool = False) -> dict:
    return {"type": "text", "text": text.strip() if strip else text}


def _appended_text(words: Preset) -> str:
    """What a preset writes after every prompt, if that is a text."""
    return words.appended if isinstance(words.appended, str) else ""


def _without_image(template: str) -> str:
    """A prompt for image and text, without the place for the image and the line break after it."""
    return template.replace("{image}\n", "").replace("{image}", "")


def _fill(template: str, text: str, instruction: str = "") -> str:
    """Puts text and instruction into a prompt as they are; a prompt that ends in a line break does not end in two."""
    if template.endswith("{text}\n") and text.endswith("\n"):
        template = template.removesuffix("\n")

    # neither is searched for the place of the other
    pieces = template.split("{instruction}")
    return instruction.join(piece.replace("{text}", text) for piece in pieces)


def _without_leading_breaks(content: list[dict]) -> list[dict]:
    """The parts of a message without the line break with which a text after an image begins."""
    entries = []
    for entry in content:
        follows_image = bool(entries) and entries[-1]["type"] == "image"
        if follows_image and entry["type"] == "text":
            entry = {**entry, "text": entry["text"].removeprefix("\n")}
        entries.append(entry)
    return _without_empty_texts(entries)


def _without_empty_texts(content: list[dict]) -> list[dict]:
    return [entry for entry in content if entry.get("text") != ""]


__all__ = ["PromptRenderer", "Reading"]
