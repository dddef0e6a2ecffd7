"""How a reranker is asked about candidates: its authors' prompt, filled with a query and candidates."""

import re
from dataclasses import dataclass, replace

from .items_unime import is_chat, is_video, split_item
from .preset_unime import Prompts
from .prompts_unime import instruct, strip_placeholders

_PLACE = "\U0010fffb"  # stands for the text that may be cut while a prompt is put together


@dataclass(frozen=True)
class Question:
    """A prompt about candidates, in three pieces.

    Args:
        before (`str`): the prompt up to the text of the last candidate.
        text (`str`): that text, which is cut where the prompt is too long.
        after (`str`): the rest.
        images (`tuple`): in the order of their places.
    """

    before: str
    text: str
    after: str
    images: tuple = ()


@dataclass(frozen=True)
class _Shown:
    """An item as it stands in a question.

    Args:
        turn (`str`): what stands for it.
        images (`tuple`): its images.
        text (`str`): its text, which is in `turn` already, or has its place there.
    """

    turn: str
    images: tuple
    text: str = ""


class QuestionRenderer:
    """The part of a processor that words the questions of presets that have some of their own (`Preset.judging`)."""

    def question(
        self,
        query,
        candidate,
        name: str = "candidate 0",
        answer_format: str = "yes_no",
        benchmark: str | None = None,
        instruction: str | None = None,
    ):
        """What a judge is asked about one candidate: UniME-V2's question, or the preset's own.

        Args:
            query, candidate: items.
            name (`str`): what errors call the candidate.
            answer_format (`str`): `"yes_no"`; of UniME-V2's question also `"multiple_choice"`.
            benchmark (`str`, *optional*): the kind of benchmark whose wording UniME-V2's question is to have.
            instruction (`str`, *optional*): what the query is to be read as; by default the model's, or the preset's.

        Returns:
            what [`~UniMEProcessor.prepare`] takes: chat messages, or a [`Question`].
        """
        if self.rules.judging is None:
            return self.rerank_messages(query, [candidate], "pointwise", [name], answer_format, benchmark, instruction)
        if answer_format != "yes_no":
            raise ValueError(f"the preset {self.preset!r} has a question of its own, and no other answer format.")
        return self.pair_question(query, candidate, name, instruction, benchmark)

    def pair_question(
        self,
        query,
        candidate,
        name: str = "candidate 0",
        instruction: str | None = None,
        benchmark: str | None = None,
    ) -> Question:
        """What the preset asks about one candidate.

        Args:
            query, candidate: items.
            name (`str`): what errors call the candidate.
            instruction (`str`, *optional*): what the query is to be read as; by default the model's, or the preset's.
            benchmark (`str`, *optional*): a kind of benchmark, on which the model's is left out.

        Raises:
            ValueError: the preset has no prompt for such a query or candidate, or ranks lists only.
        """
        judging = self.rules.judging
        if judging.turn is None and not judging.by_roles:
            raise ValueError(f"the preset {self.preset!r} puts lists in order, and asks about no single candidate.")

        # both sides as the preset shows them; the text of the document may be cut later
        instruction = self.instruction_for(query, instruction, benchmark=benchmark)
        shown_query, instruction = self._shown_query(query, judging.query, instruction)
        limit = judging.document_length
        document = self._shown(candidate, name, judging.document, text_limit=limit, has_place=True)
        if judging.by_roles:
            return self._by_roles(shown_query, document)

        # one pass over the turn, so that a text which spells a place is left alone
        instruction = self.controls.guard(instruction)
        inserts = {"query": shown_query.turn, "document": document.turn, "instruction": instruction}
        prompt = self._framed(_filled(judging.turn, inserts), self.rules, self.rules.system)

        # images are read in the order of their places
        images = shown_query.images + document.images
        if judging.turn.index("{document}") < judging.turn.index("{query}"):
            images = document.images + shown_query.images
        return _cut_at_place(prompt, document.text, images)

    def list_question(
        self,
        query,
        candidates: list,
        names: list[str],
        instruction: str | None = None,
        benchmark: str | None = None,
    ) -> Question:
        """What the preset asks about several candidates at once.

        Args:
            query, candidates: items.
            names (`list[str]`): what errors call the candidates.
            instruction, benchmark (`str`, *optional*): as in [`~QuestionRenderer.pair_question`].

        Raises:
            ValueError: the preset has no prompt for such a query or candidate.
        """
        judging = self.rules.judging
        lists = judging.lists
        instruction = self.instruction_for(query, instruction, benchmark=benchmark)
        shown_query, _ = self._shown_query(query, judging.query, instruction)

        # candidates are numbered in the order in which they are shown
        entries = []
        images = shown_query.images
        for number, (candidate, name) in enumerate(zip(candidates, names), 1):
            document = self._shown(candidate, name, judging.document)
            entries.append(_filled(lists.entry, {"number": str(number), "document": document.turn}))
            images += document.images

        # documents with images are worded, and wrapped, in another way
        has_images = len(images) > 0
        turn = lists.turn_with_images if has_images else lists.turn
        rules = self.rules
        if has_images and lists.images_by_template:
            rules = replace(rules, frame=None)
        inserts = {"query": shown_query.turn, "documents": "\n".join(entries)}
        prompt = self._framed(_filled(turn, inserts), rules, rules.system)

        # a template may have begun the answer already
        if not prompt.endswith(lists.opening):
            prompt += lists.opening
        return Question(prompt, "", "", images)

    def _shown_query(self, query, prompts: Prompts, instruction: str | None) -> tuple[_Shown, str]:
        """The query with its instruction, where this belongs to its text, and the instruction."""
        slot = self.rules.instruction
        if slot.place == "none":
            instruction = ""
        instruction = instruction or slot.default or ""

        # elsewhere the turn has a place for it
        spoken = instruction if slot.place == "text" else ""
        return self._shown(query, "the query", prompts, spoken), instruction

    def _shown(
        self,
        item,
        name: str,
        prompts: Prompts,
        instruction: str = "",
        text_limit: int | None = None,
        has_place: bool = False,
    ) -> _Shown:
        """What stands for an item in a question; `has_place` leaves a place for its text, which may be cut."""
        if is_chat(item):
            raise TypeError(f"{name} is a chat; the judge reads texts, images, and dicts of both.")
        text, images = split_item(item, name, self.media, may_be_empty=self.rules.empty is not None)

        # the image stands before its text, and a placeholder says nothing more
        text = text or ""
        if images:
            text = strip_placeholders(text)
        text = instruct(instruction, text, self.rules.instruction.form)

        # what the authors write in the place of nothing
        if not text and not images:
            text = self.rules.empty or ""
        if _PLACE in text:
            raise ValueError(f"{name} holds the character U+10FFFB, which has no meaning.")
        if text_limit is not None:
            text = self._first_tokens(text, text_limit)

        # kinds of items that the authors never showed have no prompt
        template = prompts.of(bool(text.strip()), len(images) > 0, is_video(item))
        if template is None:
            raise ValueError(f"{name} is {_kind(text, images)}, for which the preset {self.preset!r} has no prompt.")

        # images first: the text that is inserted last is not searched for their places
        template = template.replace("{image}", self._image_in_prompt * len(images))
        written = _PLACE if has_place else self.controls.guard(text)
        return _Shown(template.replace("{text}", written), images, text)

    def _by_roles(self, query: _Shown, document: _Shown) -> Question:
        """A question that the checkpoint's chat template words, from messages of the roles query and document."""
        messages = [
            {"role": "query", "content": self._parts(query.turn)},
            {"role": "document", "content": self._parts(document.turn)},
        ]
        prompt = self._template(messages, image=self._image_in_prompt)

        # a template of chats knows no such roles, and is silent
        if document.text and _PLACE not in prompt:
            raise ValueError(
                f"the chat template leaves out messages of the role 'document', by which the preset {self.preset!r} "
                "asks; pass the checkpoint's own with `chat_template=`."
            )
        return _cut_at_place(prompt, document.text, query.images + document.images)

    def _parts(self, turn: str) -> list[dict]:
        """A turn as the parts of a message."""
        parts = []
        for piece in re.split(f"({re.escape(self._image_in_prompt)})", turn):
            if piece == self._image_in_prompt:
                parts.append({"type": "image"})
            elif piece:
                parts.append({"type": "text", "text": piece})
        return parts

    def _first_tokens(self, text: str, count: int) -> str:
        """The beginning of a text, of at most that many tokens."""
        offsets = self.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
        if len(offsets) <= count:
            return text
        _, end = offsets[count - 1]
        return text[:end]


def _filled(turn: str, inserts: dict[str, str]) -> str:
    """A turn with what belongs in its places; what is inserted is not searched for places again."""
    return re.sub(r"\{(\w+)\}", lambda match: inserts[match[1]], turn)


def _cut_at_place(prompt: str, text: str, images: tuple) -> Question:
    """A question from a prompt in which a place is left for the text."""
    before, _, after = prompt.partition(_PLACE)
    return Question(before, text, after, images)


def _kind(text: str, images: tuple) -> str:
    """What an item is, for errors."""
    if text and images:
        return "an image with a text"
    return "an image" if images else "a text"


__all__ = ["Question", "QuestionRenderer"]
