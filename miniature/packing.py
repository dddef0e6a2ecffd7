"""Lessons of the miniature judge as batches: all candidates of a query are read in one sequence.

Each candidate sees the query and itself only, and stands where it would stand alone, so the answers are those of the
judge's ordinary prompt.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from ..items_unime import PreparedItem
from ..modeling_unime import UniMERerankerForCausalLM
from ..prompts_unime import LISTWISE_ANSWER, POINTWISE
from .backbone import IGNORED
from .lessons import Lesson

LONGEST_LIST = 9  # whose numbers are one token
HIDDEN = torch.finfo(torch.float32).min  # added to the attention's score of a token that is not seen


@dataclass
class _Prompt:
    """The whole prompt of one candidate, of `p` tokens."""

    ids: torch.Tensor  # [p]
    positions: torch.Tensor  # [3, p]
    images: list[int]  # places of its images in the batch
    image_tokens: list[int]  # how many tokens each of them has


@dataclass
class _Sequence:
    """A packed lesson of `l` tokens: what [`Packed`] gives of it, before padding."""

    ids: torch.Tensor  # [l]
    mask: torch.Tensor  # [l, l]
    positions: torch.Tensor  # [3, l]
    words: torch.Tensor  # [l]
    so_far: torch.Tensor  # [l]
    ends: list[int]
    order: list[int]

    def padded(self, width: int) -> "_Sequence":
        """The same with tokens on the right that nothing depends on."""
        added = width - len(self.ids)
        mask = F.pad(self.mask, (0, added, 0, added), value=HIDDEN)
        mask[:, 0] = 0.0  # padding sees the first token, so that its softmax is defined
        return replace(
            self,
            ids=F.pad(self.ids, (0, added)),
            mask=mask,
            positions=F.pad(self.positions, (0, added)),
            words=F.pad(self.words, (0, added), value=IGNORED),
            so_far=F.pad(self.so_far, (0, added), value=IGNORED),
        )


class Packed:
    """Lessons -> one sequence each: the query's prompt up to where candidates differ, then every candidate's rest.

    Gives `input_ids` `[B, L]`, `attention_mask` `[B, 1, L, L]` (added to the attention's scores), `position_ids`
    `[3, B, L]`, `words` `[B, L]` (the next token of candidates that are right and have no image, else -100), `so_far`
    `[B, L]` (1 where a candidate's prompt is up to that token the beginning of a right one's, 0 where it is not, -100
    outside of candidates that are texts), `ends` `[C, 2]` (row and place where each answer is due), `answers` `[C]`,
    `weights` `[C]` (each lesson's add up to one B-th, of which a list's last answer is a half), `verdicts` `[2]` (the
    tokens of No and Yes), `images` (their pixels and grids), and `order`: which image stands at each place. A listwise
    lesson is its one prompt; its answer is due behind the right candidate, behind each one after it, and at the end.

    Args:
        model ([`~unime.modeling_unime.UniMERerankerForCausalLM`]): its processor reads the lessons, and it says which
            positions tokens have.
    """

    def __init__(self, model: UniMERerankerForCausalLM):
        self.processor = model.processor
        self.rope = model.vlm.model.get_rope_index
        tokenizer = self.processor.tokenizer
        _, yes, no = POINTWISE["yes_no"]
        self.tokenizer = tokenizer
        self.answers = [tokenizer(word)["input_ids"][0] for word in (no, yes)]
        self.numbers = [tokenizer(str(number))["input_ids"][0] for number in range(1, LONGEST_LIST + 1)]

    def __call__(self, lessons: list[Lesson]) -> dict:
        prompts = [self._prepare(lesson) for lesson in lessons]

        # every image is read once, however many prompts it is in
        images = {}
        for entries in prompts:
            for entry in entries:
                for image in entry.images:
                    images[id(image)] = image
        places = {key: place for place, key in enumerate(images)}
        pixels = {}
        if images:
            pixels = self.processor.image_processor(list(images.values()), return_tensors="pt")

        sequences = []
        for lesson, entries in zip(lessons, prompts):
            whole = [self._prompt(entry, places, pixels.get("image_grid_thw")) for entry in entries]
            sequences.append(self._pack(lesson, whole))

        # every lesson counts as much, however many answers it asks for
        answers = [self._answers(lesson) for lesson in lessons]
        weights = [_weights(len(part), lesson.listwise) for part, lesson in zip(answers, lessons)]
        batch = {
            "answers": torch.cat(answers),
            "weights": torch.cat(weights) / len(lessons),
            "verdicts": torch.tensor(self.answers),
            "images": dict(pixels),
        }
        return {**self._pad(sequences), **batch}

    def _prepare(self, lesson: Lesson) -> list[PreparedItem]:
        """The tokenised prompts of all candidates, as the judge would read each alone, and of all right texts.

        Of a list, the only one.
        """
        if lesson.listwise:
            turn = self.processor.rerank_messages(lesson.query, lesson.candidates, "listwise")
            return self.processor.prepare([turn], suffix=LISTWISE_ANSWER)

        items = lesson.candidates + lesson.phrasings
        turns = [self.processor.rerank_messages(lesson.query, [item], "pointwise") for item in items]
        return self.processor.prepare(turns)

    def _answers(self, lesson: Lesson) -> torch.Tensor:
        """The first token of each candidate's answer, `[C]`; of a list, the number of what is right, wherever due."""
        if lesson.listwise:
            place = lesson.right.index(True)
            due = len(lesson.candidates) - place + 1
            return torch.tensor([self.numbers[place]] * due)
        return torch.tensor([self.answers[right] for right in lesson.right])

    def _prompt(self, entry: PreparedItem, places: dict[int, int], grids: torch.Tensor | None) -> _Prompt:
        """A prompt with all of its image tokens, and where these put the tokens behind them."""
        # an image has one token so far, and as many as its features from here on
        ids = torch.tensor(entry.input_ids)
        repeats = torch.ones_like(ids)
        repeats[ids == self.processor.image_token_id] = torch.tensor(entry.image_tokens, dtype=torch.long)
        ids = torch.repeat_interleave(ids, repeats)  # [p]

        images = [places[id(image)] for image in entry.images]
        positions, _ = self.rope(
            input_ids=ids[None],
            mm_token_type_ids=(ids == self.processor.image_token_id).int()[None],
            attention_mask=torch.ones_like(ids)[None],
            image_grid_thw=grids[images] if images else None,
        )  # [3, 1, p]
        return _Prompt(ids, positions[:, 0], images, entry.image_tokens)

    def _pack(self, lesson: Lesson, prompts: list[_Prompt]) -> _Sequence:
        """One lesson in one sequence: the beginning that its prompts share, and the rest of each."""
        # behind the candidates' prompts are those of right texts, which are not read but compared with
        count = 1 if lesson.listwise else len(lesson.candidates)
        prompts, right_prompts = prompts[:count], prompts[count:]

        # images that all prompts have are the query's, and come first
        query_images = len(set.intersection(*(set(prompt.images) for prompt in prompts)))
        shared = self._shared_length(prompts, query_images)

        ids = [prompts[0].ids[:shared]]
        positions = [prompts[0].positions[:, :shared]]
        words = [torch.full((shared,), IGNORED)]
        so_far = [self._right_in_list(lesson, prompts[0].ids[:shared])]
        order = prompts[0].images[:query_images]
        for prompt, right in zip(prompts, lesson.right):
            rest = prompt.ids[shared:]

            # what the picture shows is learnt from texts that are right
            next_words = torch.full_like(rest, IGNORED)
            if right and len(prompt.images) == query_images:
                next_words[:-1] = rest[1:]

            ids.append(rest)
            positions.append(prompt.positions[:, shared:])
            words.append(next_words)
            so_far.append(_right_so_far(prompt, right_prompts)[shared:])
            order = order + prompt.images[query_images:]

        # a token sees the shared beginning and the tokens of its own candidate, up to itself
        lengths = torch.tensor([len(span) for span in ids])  # [1 + C]
        owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths)  # [l], 0 is the beginning
        sees = (owner[:, None] == owner[None]) | (owner[None] == 0)  # [l, l]
        mask = torch.where(sees.tril(), 0.0, HIDDEN)

        ends = (lengths.cumsum(0)[1:] - 1).tolist()
        if lesson.listwise:
            # the answer is known, and asked for, as soon as the right candidate has been read
            spans = self._spans(prompts[0].ids.tolist(), len(lesson.candidates))
            from_right_on = spans[lesson.right.index(True) :]
            ends = [end - 1 for _, end in from_right_on] + ends
        return _Sequence(
            ids=torch.cat(ids),
            mask=mask,
            positions=torch.cat(positions, dim=1),
            words=torch.cat(words),
            so_far=torch.cat(so_far),
            ends=ends,
            order=order,
        )

    def _right_in_list(self, lesson: Lesson, ids: torch.Tensor) -> torch.Tensor:
        """For each token of a list's candidates whether it is right so far, `[p]`; of pictures, at their last token.

        Args:
            lesson ([`~unime.miniature.lessons.Lesson`]): nothing is known of one that is no list.
            ids (`LongTensor` `[p]`): its prompt, or all of it but for its end.
        """
        labels = torch.full_like(ids, IGNORED)
        if not lesson.listwise:
            return labels

        phrasings = [self._words(item) for item in lesson.phrasings]
        for number, (start, end) in enumerate(self._spans(ids.tolist(), len(lesson.candidates))):
            labels[end - 1] = int(lesson.right[number])
            if phrasings:
                labels[start:end] = _begins_like(ids[start:end], phrasings)
        return labels

    def _spans(self, ids: list[int], count: int) -> list[tuple[int, int]]:
        """Where each candidate of a list begins and ends, behind its number in brackets and before the next one."""
        starts = []
        ends = []
        place = 0
        for number in range(1, count + 1):
            mark = self.tokenizer(f"({number})")["input_ids"]
            while ids[place : place + len(mark)] != mark:
                place += 1
                if place == len(ids):
                    raise ValueError(f"the prompt of a list has no candidate ({number}).")

            ends.append(place)
            place += len(mark)
            starts.append(place)

        # the first number ends nothing, and the last candidate ends with the turn
        ends = [*ends[1:], ids.index(self.tokenizer.eos_token_id, place)]
        return list(zip(starts, ends))

    def _words(self, item: dict) -> torch.Tensor:
        """The tokens of a text as it stands in a list, behind a space."""
        return torch.tensor(self.tokenizer(f" {item['text']}")["input_ids"])

    def _shared_length(self, prompts: list[_Prompt], query_images: int) -> int:
        """How many tokens all prompts of a lesson begin with."""
        shared = _common([prompt.ids.tolist() for prompt in prompts])

        # a candidate's image looks like any other until it is filled in, so the beginning ends before it
        first = prompts[0]
        if len(first.images) > query_images:
            image_places = torch.nonzero(first.ids == self.processor.image_token_id)[:, 0]
            query_tokens = sum(first.image_tokens[:query_images])
            shared = min(shared, int(image_places[query_tokens]))
        return shared

    def _pad(self, sequences: list[_Sequence]) -> dict:
        """Packed lessons as one batch, padded on the right."""
        ends = []
        order = []
        for row, sequence in enumerate(sequences):
            for end in sequence.ends:
                ends.append((row, end))
            order += sequence.order

        width = max(len(sequence.ids) for sequence in sequences)
        rows = [sequence.padded(width) for sequence in sequences]
        return {
            "input_ids": torch.stack([row.ids for row in rows]),
            "attention_mask": torch.stack([row.mask for row in rows])[:, None],
            "position_ids": torch.stack([row.positions for row in rows], dim=1),
            "words": torch.stack([row.words for row in rows]),
            "so_far": torch.stack([row.so_far for row in rows]),
            "ends": torch.tensor(ends),
            "order": order,
        }


def _weights(count: int, listwise: bool) -> torch.Tensor:
    """What each answer of a lesson counts, which is 1 for all together.

    The answer at the end of a list counts a half, wherever in the list the right one stands. If it counted as much as
    those before it, it would count the more the later that is, and late numbers would be learnt.
    """
    if not listwise:
        return torch.full((count,), 1 / count)
    weights = torch.full((count,), 0.5 / (count - 1))
    weights[-1] = 0.5
    return weights


def _right_so_far(prompt: _Prompt, right_prompts: list[_Prompt]) -> torch.Tensor:
    """For each token, whether the prompt up to it is the beginning of a right one, `[p]`; -100 where none is known."""
    if not right_prompts:
        return torch.full_like(prompt.ids, IGNORED)
    return _begins_like(prompt.ids, [other.ids for other in right_prompts])


def _begins_like(ids: torch.Tensor, others: list[torch.Tensor]) -> torch.Tensor:
    """For each token, whether one of the others begins with all tokens up to it, `[p]`."""
    is_beginning = torch.zeros_like(ids)
    for other in others:
        length = min(len(ids), len(other))
        equal = ids[:length] == other[:length]
        is_beginning[:length] |= equal.long().cumprod(dim=0)
    return is_beginning


def _common(rows: list[list[int]]) -> int:
    """How many ids all rows begin with, at least one less than the shortest has."""
    limit = min(map(len, rows)) - 1
    for place, ids in zip(range(limit), zip(*rows)):
        if len(set(ids)) > 1:
            return place
    return limit
