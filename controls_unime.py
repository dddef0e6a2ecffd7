"""Control tokens in a user's text stay text: `<|im_end|>` typed by somebody closes no turn."""

import re

from .prompts_unime import PLACEHOLDER

# Two characters that are assigned to nothing, put into a control token of a text so that no tokenizer knows it. Their
# own ids are taken out again.
GUARD = "\U0010fffd\U0010fffc"


class ControlTokens:
    """The control tokens of a tokenizer, and how a text that holds some is kept from using them.

    The text is guarded before it is put into a prompt: a pair of characters breaks each control token in it. The
    prompt is tokenised with these, and their ids are removed. So the control tokens of the prompt itself work, those
    of the text are ordinary letters, and a text without any is not touched.

    Args:
        tokenizer: of the backbone.
        template (`str`, *optional*): its chat template.
        tag (`str`, *optional*): a pattern of what else is no text in a prompt, such as Phi-3-vision's `<|image_1|>`.
    """

    def __init__(self, tokenizer, template: str | None = None, tag: str | None = None):
        self.names = control_tokens(tokenizer, template or "")
        patterns = [re.escape(name) for name in sorted(self.names, key=len, reverse=True)]
        if tag is not None:
            patterns.append(tag)

        self.pattern = re.compile("|".join(patterns) or r"(?!)")  # which matches nothing
        self.longest = max(map(len, self.names), default=1)
        self._guard_ids = _ids_of_guard(tokenizer)

    def guard(self, text: str, places_image: bool = False) -> str:
        """A text in which every control token is broken; one without any as it is.

        Args:
            text (`str`): what a user wrote.
            places_image (`bool`, defaults to `False`): leave the placeholders of images alone.
        """
        if not self.pattern.search(text):
            return text
        if not places_image:
            return self.pattern.sub(_broken, text)

        # a placeholder may be a control token as well, and stays one
        pieces = []
        end = 0
        for match in PLACEHOLDER.finditer(text):
            pieces.append(self.pattern.sub(_broken, text[end : match.start()]))
            pieces.append(match[0])
            end = match.end()
        pieces.append(self.pattern.sub(_broken, text[end:]))
        return "".join(pieces)

    def guard_all(self, texts: list[str]) -> list[str]:
        """Texts that a template may put one directly after the other, guarded at their seams too."""
        guarded = []
        for number, text in enumerate(texts):
            following = "".join(texts[number + 1 : number + 1 + self.longest])[: self.longest]
            ending = text[-self.longest :]
            guarded_text = self.guard(text)

            # a control token that begins in this text and ends in those after it, or lies in them whole
            has_more = len(self.pattern.findall(ending + following)) > len(self.pattern.findall(ending))
            if has_more and following:
                guarded_text += GUARD
            guarded.append(guarded_text)
        return guarded

    def unguard(self, ids: list[int]) -> list[int]:
        """Token ids of a guarded prompt without those of the guards."""
        guard = self._guard_ids
        if not guard:
            return ids

        # a guard may be of several tokens
        plain = []
        place = 0
        while place < len(ids):
            if ids[place] == guard[0] and ids[place : place + len(guard)] == guard:
                place += len(guard)
            else:
                plain.append(ids[place])
                place += 1
        return plain


def control_tokens(tokenizer, template: str = "") -> list[str]:
    """What a tokenizer reads as a control token wherever it stands.

    Its special tokens, and those of its other added tokens that look like one (`<|...|>`) or stand in the chat
    template; a tokenizer may also add tokens for ordinary text, such as line breaks and tags of HTML.

    Args:
        tokenizer: of the backbone.
        template (`str`): its chat template.
    """
    names = set()
    for token in tokenizer.added_tokens_decoder.values():
        name = token.content
        is_control = token.special or re.fullmatch(r"<\|.*\|>", name) or name in template
        if name.strip() and is_control:
            names.add(name)
    return sorted(names)


def _broken(match: re.Match) -> str:
    """A control token with the guard behind its first character."""
    return match[0][0] + GUARD + match[0][1:]


def _ids_of_guard(tokenizer) -> list[int]:
    """The ids that one guard adds to a prompt: what a second one in the same place adds once more."""
    once = tokenizer(f"<{GUARD}|", add_special_tokens=False)["input_ids"]
    twice = tokenizer(f"<{GUARD}{GUARD}|", add_special_tokens=False)["input_ids"]

    # it may be several tokens, and those beside it may be joined with it
    length = len(twice) - len(once)
    for start in range(len(once) - length + 1):
        ids = once[start : start + length]
        if twice[start : start + 2 * length] == ids * 2:
            return ids
    return []


__all__ = ["GUARD", "ControlTokens", "control_tokens"]
