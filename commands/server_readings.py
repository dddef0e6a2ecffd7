"""The ways in which a server may read an item other than its model was trained to, and what each comes to."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import product

import torch
import torch.nn.functional as F

from ..modeling_unime import UniMEModel
from ..prompts_unime import strip_placeholders

RIGHT = "right"  # as the model was trained
MOST_DEVIATIONS = 3  # of a reading that is tried: with all of them at once, any vector would be explained by chance
_TEMPLATE = "start it with --chat-template and the file of the exported folder's templates/"
_LAST = """ask for the last one (vLLM: --pooler-config '{"pooling_type": "LAST"}')"""
EXPLANATIONS = {
    ("prompt", "own template"): "it words items with the checkpoint's own chat template, not the preset's: "
    f"{_TEMPLATE}",
    ("prompt", "own template, unanswered"): "it words items with the checkpoint's own chat template, and without the "
    f"beginning of an answer: {_TEMPLATE}",
    ("prompt", "bare"): f"it applies no template: {_TEMPLATE}, and send messages, not input",
    ("prompt", "other role"): "its template is that of the other role: queries and documents have templates of their "
    "own with this preset",
    ("start", "without"): "the token that begins every text is missing: take the template from a fresh `unime "
    "export`, which writes that token",
    ("start", "twice"): "the token that begins every text stands there twice: the server adds it to a template that "
    "has it (add_special_tokens)",
    ("pooling", "mean"): f"it averages over all tokens: {_LAST}",
    ("pooling", "first"): f"it takes the first token: {_LAST}",
    ("positions", "native"): "it numbers image tokens in two dimensions, where this checkpoint was trained with flat "
    "positions: no server does that; serve it with transformers, or a model trained with native positions",
    ("positions", "flat"): "it numbers image tokens one after the other, where this checkpoint was trained with the "
    "backbone's own positions: the server does not know the architecture well enough",
}


@dataclass(frozen=True)
class Reading:
    """How an item is read; every field that is not `"right"` is a deviation that `EXPLANATIONS` words.

    Args:
        prompt (`str`): the words around the item.
        start (`str`): the token that begins every text: there once, `"without"` it, or `"twice"`.
        pooling (`str`): which token's state is the embedding: the last, the `"first"`, or the `"mean"` of all.
        positions (`str`): how image tokens are numbered.
    """

    prompt: str = RIGHT
    start: str = RIGHT
    pooling: str = RIGHT
    positions: str = RIGHT

    @property
    def deviations(self) -> list[tuple[str, str]]:
        """Field and value of what is not right."""
        deviations = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value != RIGHT:
                deviations.append((field.name, value))
        return deviations

    def explain(self) -> list[str]:
        """What is wrong and what to do, one sentence a deviation."""
        return [EXPLANATIONS[deviation] for deviation in self.deviations]


class Readings:
    """Embeddings of an item under every reading, the likelier ones first.

    Args:
        model (`UniMEModel`): the model that the server claims to serve.
        role (`str`): `"query"` or `"document"`: as what the server is to read items.

    Example:

    ```python
    for reading, vector in Readings(model, "query").of({"text": "a red circle"}):
        print(reading.deviations, vector @ served_vector)
    ```
    """

    def __init__(self, model: UniMEModel, role: str):
        self.model = model
        self.processor = model.processor
        self.role = role

    def of(self, item: dict) -> Iterator[tuple[Reading, torch.Tensor]]:
        """Readings of an item, those with the fewest deviations first.

        Args:
            item (`dict`): with `text`, `image`, or both.

        Returns:
            pairs of a [`Reading`] and its normalised embedding `[D]`; readings that are impossible for this model are
            left out.
        """
        (entry,) = self.processor.prepare([item], role=self.role)
        images = [self.processor.read_image(entry, number) for number in range(len(entry.images))]
        prompts = self._prompts(item, entry.prompt)
        positions = [RIGHT]
        if images:
            positions.append("native" if self.model.config.positions == "flat" else "flat")

        combinations = product(prompts, (RIGHT, "without", "twice"), (RIGHT, "mean", "first"), positions)
        readings = [Reading(*combination) for combination in combinations]
        readings.sort(key=lambda reading: len(reading.deviations))

        # readings that differ in their pooling only share a forward pass
        states_of = {}
        for reading in readings:
            if len(reading.deviations) > MOST_DEVIATIONS:
                return
            key = (reading.prompt, reading.start, reading.positions)
            if key not in states_of:
                states_of[key] = self._run(prompts[reading.prompt], images, reading)
            states = states_of[key]  # [L, D], or None where the reading is impossible
            if states is not None:
                yield reading, F.normalize(_pool(states, reading.pooling), dim=-1)

    def _prompts(self, item: dict, right: str) -> dict[str, str]:
        """The wordings a server may use, without those that come to the right one."""
        text = item.get("text") or ""
        has_image = "image" in item
        if has_image:
            text = strip_placeholders(text)

        # as a chat, which the checkpoint's own template words
        parts = []
        if has_image:
            parts.append({"type": "image", "image": item["image"]})
        if text:
            parts.append({"type": "text", "text": text})
        chat = [{"role": "user", "content": parts}]

        prompts = {}
        if self.processor.chat_template:
            prompts["own template"] = self.processor.render(chat)[0]
            prompts["own template, unanswered"] = self.processor.render(chat, generate=False)[0]

        prompts["bare"] = text
        if has_image:
            prompts["bare"] = self.processor.image_token + text

        other_role = "document" if self.role == "query" else "query"
        prompts["other role"] = self.processor.render(item, role=other_role)[0]
        wrong = {name: prompt for name, prompt in prompts.items() if prompt != right}
        return {RIGHT: right, **wrong}

    @torch.inference_mode()
    def _run(self, prompt: str, images: list, reading: Reading) -> torch.Tensor | None:
        """The last hidden states `[L, D]` of a prompt, or None where it does not begin with a token of its own."""
        batch = dict(self.processor(text=[prompt], images=[images] if images else None, return_tensors="pt"))
        if reading.start != RIGHT:
            batch = self._with_start(batch, reading.start)
            if batch is None:
                return None
        batch = {name: value.to(self.model.device) for name, value in batch.items()}

        # the positions are a setting of the model, which is put back whatever happens
        config = self.model.config
        trained_positions = config.positions
        try:
            if reading.positions != RIGHT:
                config.positions = reading.positions
            return self.model(**batch).last_hidden_state[0].float().cpu()
        finally:
            config.positions = trained_positions

    def _with_start(self, batch: dict, change: str) -> dict | None:
        """The batch with its first token taken away or doubled; None where that is not a token of its own."""
        token_ids = batch["input_ids"]  # [1, L]
        if token_ids.shape[1] < 2 or int(token_ids[0, 0]) != self.processor.tokenizer.bos_token_id:
            return None

        changed = dict(batch)
        for name, value in batch.items():
            if value.shape[:2] != token_ids.shape:  # pixels, for example
                continue
            rest = value[:, 1:]
            changed[name] = rest if change == "without" else torch.cat([value[:, :1], value], dim=1)
        return changed


def _pool(states: torch.Tensor, pooling: str) -> torch.Tensor:
    """The embedding `[D]` of hidden states `[L, D]`."""
    if pooling == "mean":
        return states.mean(0)
    if pooling == "first":
        return states[0]
    return states[-1]
