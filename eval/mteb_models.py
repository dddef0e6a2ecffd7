"""Embedder and reranker as `mteb` models, so that `mteb.evaluate` runs them on MIEB, ViDoRe and tasks of one's own.

```python
import mteb
from unime.eval.mteb_models import UniMEEncoder

mteb.evaluate(UniMEEncoder("outputs/quickstart/model"), mteb.get_tasks(["VidoreDocVQARetrieval"]))
```
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType

from ..checkpoints.opening import open_checkpoint
from ..items_unime import item_key
from ..jobs.shards import processes
from ..modeling_unime import UniMEModel, UniMERerankerForCausalLM

MODALITIES = ["text", "image"]  # without it, mteb takes a model for a text model and drops images silently
COLUMNS = (*MODALITIES, "video")  # what of a batch is read


def model_meta(model, name: str, loader, revision: str | None = None, **facts) -> ModelMeta:
    """What mteb asks about a model: its size, width, modalities.

    Args:
        model (`UniMEModel` or `UniMERerankerForCausalLM`).
        name (`str`): `"owner/name"`; a folder's is `"unime/<folder>"`.
        loader: what makes the wrapper again from `name` and `revision`.
        revision (`str`, *optional*): of the repository.
        facts: other fields of `ModelMeta`: `training_datasets`, `license`, `citation`, ...
    """
    fields = {
        "name": name,
        "revision": revision,
        "loader": loader,
        "modalities": MODALITIES,
        "n_parameters": model.num_parameters(),
        "max_tokens": model.processor.max_length,
        "memory_usage_mb": round(model.get_memory_footprint() / 2**20),
        "embed_dim": None,
        "similarity_fn_name": None,
        "model_type": ["cross-encoder"],
        "framework": ["PyTorch", "Transformers"],
        "use_instructions": True,
        "open_weights": True,
    }

    # what an embedder has and a reranker has not
    if isinstance(model, UniMEModel):
        fields["embed_dim"] = model.config.hidden_size
        fields["similarity_fn_name"] = ScoringFunction.COSINE
        fields["model_type"] = ["dense"]
    return ModelMeta.create_empty(overwrites=fields | facts)


def _name(source) -> str:
    """What mteb calls a folder or repository."""
    path = Path(str(source))
    if path.exists():
        return f"unime/{path.resolve().name}"
    return str(source)


def _items(loader: Iterable[dict]) -> list[dict]:
    """The items of a data loader of mteb: texts, images, videos, or texts with either; an empty one is `{}`.

    A batch has a list for each modality.
    """
    items = []
    for batch in loader:
        columns = {modality: batch[modality] for modality in COLUMNS if modality in batch}
        for values in zip(*columns.values()):
            # a batch may hold items without a text or without an image
            item = {}
            for modality, value in zip(columns, values):
                is_blank = isinstance(value, str) and not value.strip()
                if value and not is_blank:
                    item[modality] = value
            items.append(item)

    return items


class UniMEEncoder(AbsEncoder):
    """[`UniMEModel`] for mteb; what it returns is what `encode` returns.

    Args:
        model_name: folder or repository, or a loaded model.
        revision, device (`str`, *optional*): as mteb passes them.
        preset (`str`, *optional*): how items are read; by default as the checkpoint was saved, or as its name says.
        trust_remote_code (`bool`, defaults to `False`): run the code of the repository.
        use_task_instructions (`bool`, defaults to `True`): put the task's prompt before queries, and before documents
            where it has one.
        default_instruction (`str`, *optional*): before queries of tasks without a prompt (mteb's own wrapper of
            UniME-V2-LLaVA-OneVision takes `"Represent the given input for retrieval."`).
        options: for `encode`: `resolution`, `batch_tokens`, ...

    Example:

    ```python
    mteb.evaluate(UniMEEncoder("owner/model", resolution=336), mteb.get_tasks(["VidoreDocVQARetrieval"]))
    ```
    """

    def __init__(
        self,
        model_name,
        revision: str | None = None,
        device: str | None = None,
        preset: str | None = None,
        use_task_instructions: bool = True,
        default_instruction: str | None = None,
        trust_remote_code: bool = False,
        **options,
    ):
        if isinstance(model_name, UniMEModel):
            name = "unime/model"
            model = model_name
        else:
            name = _name(model_name)
            model = open_checkpoint(model_name, preset, trust_remote_code=trust_remote_code)
            model = model.to(device or processes().device)  # each process of a launch has its own

        self.model = model.eval()
        self.use_task_instructions = use_task_instructions
        self.default_instruction = default_instruction
        self.options = options
        self.mteb_model_meta = model_meta(self.model, name, UniMEEncoder, revision)

    def instruction(self, task_metadata, prompt_type: PromptType | None) -> str | None:
        """What stands before each item of a task.

        Args:
            task_metadata (`TaskMetadata`): whose `prompt` is a text for queries, or one for each type, or None.
            prompt_type (`PromptType`, *optional*): of the items; without it they are queries.
        """
        if not self.use_task_instructions:
            return None
        prompt = task_metadata.prompt

        # a single text is for queries only
        if prompt_type == PromptType.document:
            if not isinstance(prompt, dict):
                return None
            return prompt.get("document") or prompt.get("passage") or None

        if isinstance(prompt, dict):
            prompt = prompt.get("query")
        return prompt or self.default_instruction

    def encode(self, inputs, *, task_metadata, hf_split, hf_subset, prompt_type=None, **kwargs) -> torch.Tensor:
        """Embeddings `[N, D]` of a data loader's items, float32; zeros for an empty item, which is like nothing."""
        role = "document" if prompt_type == PromptType.document else "query"
        items = _items(inputs)
        places = [place for place, item in enumerate(items) if item]
        vectors = self.model.encode(
            [items[place] for place in places],
            self.instruction(task_metadata, prompt_type),
            role,
            show_progress=kwargs.get("show_progress_bar"),
            **self.options,
        )

        # corpora of mteb hold empty texts, which must not end a run
        embeddings = vectors.new_zeros(len(items), vectors.shape[-1])
        embeddings[places] = vectors
        return embeddings


class UniMECrossEncoder:
    """[`UniMERerankerForCausalLM`] for mteb's reranking tasks; it returns the log-odds of `score`.

    Args:
        model_name: folder or repository, or a loaded model.
        revision, device (`str`, *optional*): as mteb passes them.
        trust_remote_code (`bool`, defaults to `False`): run the code of the repository.
        options: for `score`: `answer_format`, `resolution`, `batch_tokens`, ...
    """

    def __init__(
        self,
        model_name,
        revision: str | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
        **options,
    ):
        if isinstance(model_name, UniMERerankerForCausalLM):
            name = "unime/reranker"
            model = model_name
        else:
            name = _name(model_name)
            model = open_checkpoint(model_name, reranker=True, trust_remote_code=trust_remote_code)
            model = model.to(device or processes().device)

        self.model = model.eval()
        self.options = {"output": "logit", **options}  # probabilities near one would be ties
        self.mteb_model_meta = model_meta(self.model, name, UniMECrossEncoder, revision)

    def predict(self, inputs1, inputs2, *, task_metadata, hf_split, hf_subset, prompt_type=None, **kwargs):
        """One score for each pair of a query and a document `[N]`."""
        queries = _items(inputs1)
        documents = _items(inputs2)

        # pairs of one query are scored together, so that they share its prompt
        pairs_of: dict[str, list[int]] = {}
        for pair, query in enumerate(queries):
            pairs_of.setdefault(item_key(query), []).append(pair)

        scores = torch.zeros(len(queries))  # [N]
        for pairs in pairs_of.values():
            query = queries[pairs[0]]
            candidates = [documents[pair] for pair in pairs]
            scores[pairs] = self.model.score(query, candidates, show_progress=False, **self.options)
        return scores
