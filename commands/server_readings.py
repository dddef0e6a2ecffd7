"""The ways in which a server may read an item other than its model was trained to, and what each comes to."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import product

import torch
import torch.nn.functional as F

from ..modeling_unime import UniMEModel
from ..prompts_unime import strip_placeholders

RIGHT = "right"  # as the model was trained
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
    """How an item is read; every field that is not `"right"` is a deviation that `EXPLANATIONS` words."""

    prompt: str = RIGHT
    start: str = RIGHT
    pooling: str = RIGHT
    positions: str = RIGHT

    @property
    def deviations(self) -> list[tuple[str, str]]:
        found = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return [(name, value) for name, value in found if value != RIGHT]

    def explain(self) -> list[str]:
        """What is wrong and what to do, one sentence a deviation."""
        return [EXPLANATIONS[deviation] for deviation in self.deviations]


class Readings:
    """Embeddings of an item under every reading, the likelier ones first.

    Args:
        model (`UniMEModel`).
        role (`str`): `"query"` or `"document"`: as what the server is to read items.
    """

    def __init__(self, model: UniMEModel, role: str):
        self.model, self.processor, self.role = model, model.processor, role

    def of(self, item: dict) -> Iterator[tuple[Reading, torch.Tensor]]:
        """Readings with their normalised embeddings `[D]`, those with the fewest deviations first."""
        (entry,) = self.processor.prepare([item], role=self.role)
        planned = [self.processor.read_image(entry, i) for i in range(len(entry.images))]
        prompts = self._prompts(item, entry.prompt)
        positions = [RIGHT]
        if planned:
            positions.append("native" if self.model.config.positions == "flat" else "flat")
        readings = product(prompts, (RIGHT, "without", "twice"), (RIGHT, "mean", "first"), positions)
        hidden = {}
        for reading in sorted((Reading(*reading) for reading in readings), key=lambda own: len(own.deviations)):
            if len(reading.deviations) > 3:
                return
            key = (reading.prompt, reading.start, reading.positions)
            if key not in hidden:
                hidden[key] = self._run(prompts[reading.prompt], planned, reading)
            states = hidden[key]  # [L, D], or None where the reading is impossible
            if states is not None:
                vector = {"mean": states.mean(0), "first": states[0]}.get(reading.pooling, states[-1])
                yield reading, F.normalize(vector, dim=-1)

    def _prompts(self, item: dict, right: str) -> dict[str, str]:
        text, has_image = strip_placeholders(item.get("text") or ""), "image" in item
        parts = [{"type": "image", "image": item["image"]}] if has_image else []
        chat = [{"role": "user", "content": [*parts, {"type": "text", "text": text}] if text else parts}]
        other = {"query": "document", "document": "query"}[self.role]
        found = {RIGHT: right}
        if self.processor.chat_template:
            found["own template"] = self.processor.render(chat)[0]
            found["own template, unanswered"] = self.processor.render(chat, generate=False)[0]
        found["bare"] = self.processor.image_token * has_image + text
        found["other role"] = self.processor.render(item, role=other)[0]
        return {name: prompt for name, prompt in found.items() if name == RIGHT or prompt != right}

    @torch.inference_mode()
    def _run(self, prompt: str, images: list, reading: Reading) -> torch.Tensor | None:
        batch = dict(self.processor(text=[prompt], images=[images] if images else None, return_tensors="pt"))
        if reading.start != RIGHT and not self._change_start(batch, reading.start):
            return None
        own, config = self.model.config.positions, self.model.config
        try:
            config.positions = own if reading.positions == RIGHT else reading.positions
            batch = {name: value.to(self.model.device) for name, value in batch.items()}
            return self.model(**batch).last_hidden_state[0].float().cpu()
        finally:
            config.positions = own

    def _change_start(self, batch: dict, change: str) -> bool:
        """Takes the first token away or doubles it; false where a text does not begin with a token of its own."""
        ids = batch["input_ids"]
        if ids.shape[1] < 2 or int(ids[0, 0]) != self.processor.tokenizer.bos_token_id:
            return False
        for name, value in batch.items():
            if value.shape[:2] == ids.shape:
                batch[name] = value[:, 1:] if change == "without" else torch.cat([value[:, :1], value], dim=1)
        return True
