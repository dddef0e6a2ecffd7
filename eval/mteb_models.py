"""Embedder and reranker as `mteb` models, so that `mteb.evaluate` runs them on MIEB, ViDoRe and tasks of one's own.

```python
import mteb
from unime.eval.mteb_models import UniMEEncoder

mteb.evaluate(UniMEEncoder("outputs/quickstart/model"), mteb.get_tasks(["VidoreDocVQARetrieval"]))
```
"""

from pathlib import Path

import torch
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType

from ..checkpoints.opening import open_checkpoint
from ..items_unime import item_key
from ..jobs.shards import processes
from ..modeling_unime import UniMEModel, UniMERerankerForCausalLM

MODALITIES = ["text", "image"]  # undeclared, mteb takes a model for one of texts and drops images without a word


def model_meta(model, name: str, loader, revision: str | None = None, **facts) -> ModelMeta:
    """What mteb wants to know about a model: its size, width, modalities.

    Args:
        model (`UniMEModel` or `UniMERerankerForCausalLM`).
        name (`str`): `"owner/name"`; a folder's is `"unime/<folder>"`.
        loader: what makes the wrapper again from `name` and `revision`.
        facts: other fields of `ModelMeta`: `training_datasets`, `license`, `citation`, ...
    """
    embedder = isinstance(model, UniMEModel)
    known = {
        "name": name,
        "revision": revision,
        "loader": loader,
        "modalities": MODALITIES,
        "n_parameters": model.num_parameters(),
        "max_tokens": model.processor.max_length,
        "memory_usage_mb": round(model.get_memory_footprint() / 2**20),
        "embed_dim": model.config.hidden_size if embedder else None,
        "similarity_fn_name": ScoringFunction.COSINE if embedder else None,
        "model_type": ["dense"] if embedder else ["cross-encoder"],
        "framework": ["PyTorch", "Transformers"],
        "use_instructions": True,
        "open_weights": True,
    }
    return ModelMeta.create_empty(overwrites=known | facts)


def _name(source) -> str:
    path = Path(str(source))
    return f"unime/{path.resolve().name}" if path.exists() else str(source)


def _items(batch: dict) -> list[dict]:
    """The items of a batch of mteb: texts, images, or both."""
    keys = [key for key in MODALITIES if key in batch]
    return [{key: value for key, value in zip(keys, row) if value} for row in zip(*(batch[key] for key in keys))]


class UniMEEncoder(AbsEncoder):
    """[`UniMEModel`] for mteb; what it returns is what `encode` returns.

    Args:
        model_name: folder or repository, or a loaded model.
        revision, device (*optional*): as mteb passes them.
        preset (`str`, *optional*): prompts, for a stock VLM.
        use_task_instructions (`bool`): put the task's prompt before queries, and before documents where it has one.
        default_instruction (`str`, *optional*): before queries of tasks without a prompt (mteb's own wrapper of
            UniME-V2-LLaVA-OneVision takes `"Represent the given input for retrieval."`).
        options: for `encode`: `resolution`, `batch_tokens`, ...
    """

    def __init__(
        self,
        model_name,
        revision: str | None = None,
        device: str | None = None,
        preset: str | None = None,
        use_task_instructions: bool = True,
        default_instruction: str | None = None,
        **options,
    ):
        loaded = isinstance(model_name, UniMEModel)
        model = model_name if loaded else open_checkpoint(model_name, preset)
        self.model = model.eval() if loaded else model.to(device or processes().device).eval()
        self.use_task_instructions, self.default_instruction = use_task_instructions, default_instruction
        self.options = options
        name = "unime/model" if loaded else _name(model_name)
        self.mteb_model_meta = model_meta(self.model, name, UniMEEncoder, revision)

    def instruction(self, task_metadata, prompt_type: PromptType | None) -> str | None:
        """What stands before each item of a task."""
        if not self.use_task_instructions:
            return None
        prompt, query = task_metadata.prompt, prompt_type != PromptType.document
        if isinstance(prompt, dict):
            prompt = prompt.get("query" if query else "document") or prompt.get("query" if query else "passage")
        elif not query:
            prompt = None
        return prompt or (self.default_instruction if query else None)

    def encode(self, inputs, *, task_metadata, hf_split, hf_subset, prompt_type=None, **kwargs) -> torch.Tensor:
        """Embeddings `[N, D]` of a data loader's items, float32."""
        items = [item for batch in inputs for item in _items(batch)]
        role = "document" if prompt_type == PromptType.document else "query"
        said = self.instruction(task_metadata, prompt_type)
        return self.model.encode(items, said, role, show_progress=kwargs.get("show_progress_bar"), **self.options)


class UniMECrossEncoder:
    """[`UniMERerankerForCausalLM`] for mteb's reranking tasks; what it returns is what `score` returns.

    Args:
        model_name: folder or repository, or a loaded model.
        revision, device (*optional*): as mteb passes them.
        options: for `score`: `answer_format`, `resolution`, `batch_tokens`, ...
    """

    def __init__(self, model_name, revision: str | None = None, device: str | None = None, **options):
        loaded = isinstance(model_name, UniMERerankerForCausalLM)
        self.model = (
            model_name if loaded else open_checkpoint(model_name, reranker=True).to(device or processes().device)
        )
        self.model.eval()
        self.options = options
        name = "unime/reranker" if loaded else _name(model_name)
        self.mteb_model_meta = model_meta(self.model, name, UniMECrossEncoder, revision)

    def predict(self, inputs1, inputs2, *, task_metadata, hf_split, hf_subset, prompt_type=None, **kwargs):
        """One score for each pair of a query and a document `[N]`; pairs of one query share its prompt."""
        queries = [item for batch in inputs1 for item in _items(batch)]
        documents = [item for batch in inputs2 for item in _items(batch)]
        groups: dict[str, list[int]] = {}
        for number, query in enumerate(queries):
            groups.setdefault(item_key(query), []).append(number)
        scores = torch.zeros(len(queries))
        for own in groups.values():
            candidates = [documents[number] for number in own]
            scores[own] = self.model.score(queries[own[0]], candidates, show_progress=False, **self.options)
        return scores
