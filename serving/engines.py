"""The two models of a server, and what they are asked: embeddings of items, and scores of documents."""

from collections.abc import Sequence
from dataclasses import replace
from threading import Lock
from typing import NamedTuple

import torch

from ..images_unime import Resolution
from ..items_unime import PreparedItem
from ..modeling_unime import UniMEModel, UniMERerankerForCausalLM
from ..processing_unime import Reading, UniMEProcessor
from ..vlm_unime import most_tokens


class Parts(NamedTuple):
    """Items that are ready to be embedded.

    Args:
        rows (`list[int]`): the item of each part: image and text of an item are two parts where their embeddings are
            added up.
        prepared (`list[PreparedItem]`): the parts, their images decoded.
    """

    rows: list[int]
    prepared: list[PreparedItem]

    @property
    def tokens(self) -> list[int]:
        """What each part costs."""
        return [entry.length for entry in self.prepared]


class EmbeddingEngine:
    """An embedder that runs the items of several requests together.

    Args:
        model (`UniMEModel`): on its device.
        batch_tokens (`int`): most padded tokens of one forward pass.

    Example:

    ```python
    engine = EmbeddingEngine(model, batch_tokens=8192)
    parts = engine.prepare(["a red circle"], Reading(), ["input 0"])
    embeddings = engine.embeddings(parts, engine.run(parts.prepared))  # [1, D]
    ```
    """

    def __init__(self, model: UniMEModel, batch_tokens: int):
        self.model = model
        self.batch_tokens = int(min(batch_tokens, most_tokens(model.device, model.dtype)))
        self._lock = Lock()

    def prepare(self, items: list, reading: Reading, names: list[str]) -> Parts:
        """Words, tokenises and decodes items, so that whatever is wrong with one is known before it is queued.

        Args:
            items (`list`): as `encode` takes them, no paths among them.
            reading ([`Reading`]): how they are read.
            names (`list[str]`): what errors call them.

        Raises:
            ValueError: an item cannot be read; the message names it.
        """
        with self._lock:  # a tokenizer is not for several threads
            rows, prepared = self.model.processor.prepare_parts(items, reading, names)
        return Parts(rows, [self._decoded(entry) for entry in prepared])

    def _decoded(self, entry: PreparedItem) -> PreparedItem:
        """The item with its images at the size the model sees, which may be far smaller than that they came in."""
        images = tuple(self.model.processor.read_image(entry, number) for number in range(len(entry.images)))
        return replace(entry, images=images, resolution=Resolution())

    def run(self, pieces: list[PreparedItem]) -> list[torch.Tensor]:
        """One embedding `[D]` for each part."""
        return list(self.model.embed_parts(pieces, self.batch_tokens, show_progress=False))

    def embeddings(self, parts: Parts, results: list[torch.Tensor], width: int | None = None) -> torch.Tensor:
        """The embeddings `[N, D]` of items, from those of their parts.

        Args:
            parts ([`Parts`]), results (`list[Tensor]`): of `prepare`, and what `run` gave for them.
            width (`int`, *optional*): keep the first dimensions only, normalised again.
        """
        embeddings = self.model.sum_parts(torch.stack(results), torch.tensor(parts.rows))
        return self.model.truncate(embeddings, width)


class Judgement(NamedTuple):
    """Documents that are to be scored for a query.

    Args:
        query, documents: items as `score` takes them, no paths among them.
        instruction (`str`, *optional*): what the query is to be read as.
    """

    query: object
    documents: list
    instruction: str | None = None


class RerankingEngine:
    """A reranker. The documents of a request share its query, and are run together and by themselves.

    Args:
        model (`UniMERerankerForCausalLM`): on its device.
        batch_tokens (`int`): most padded tokens of one forward pass.
    """

    def __init__(self, model: UniMERerankerForCausalLM, batch_tokens: int):
        self.model = model
        self.forward_tokens = batch_tokens
        self.batch_tokens = 1  # each request is a batch
        self._lock = Lock()

    def tokens(self, judgement: Judgement) -> int:
        """What a request costs: the tokens of its query and documents.

        Raises:
            ValueError: one of them cannot be read; the message names it.
        """
        names = ["query", *(f"document {number}" for number in range(len(judgement.documents)))]
        with self._lock:  # a tokenizer is not for several threads
            return token_count(self.model.processor, [judgement.query, *judgement.documents], names)

    def run(self, pieces: list[Judgement]) -> list[torch.Tensor]:
        """The scores `[N]` of each request's documents."""
        scores = []
        for query, documents, instruction in pieces:
            settings = {"batch_tokens": self.forward_tokens, "show_progress": False, "instruction": instruction}
            scores.append(self.model.score(query, documents, **settings))
        return scores


def token_count(processor: UniMEProcessor, items: Sequence, names: list[str]) -> int:
    """Tokens of all items, without the words of a question around them."""
    return sum(entry.length for entry in processor.prepare(items, names=names))
