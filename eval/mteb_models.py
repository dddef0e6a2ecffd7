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
from mteb.models.model_implementations import MODEL_REGISTRY
from mteb.models.model_meta import ModelMeta
from mteb.types import PromptType
from tqdm.auto import tqdm

from ..checkpoints.opening import open_checkpoint
from ..items_unime import item_key
from ..jobs.shards import processes
from ..modeling_unime import UniMEModel, UniMERerankerForCausalLM
from .mteb_inputs import blocks_of
from .mteb_metas import model_meta, released_metas

_LOWEST = torch.finfo(torch.float32).min


def _opened(source, revision: str | None, device: str | None, **options):
    """The model of a folder or repository, on a device: by default that of this process of a launch."""
    if revision is not None:
        options["revision"] = revision
    return open_checkpoint(source, **options).to(device or processes().device)


def _name(source) -> str:
    """What mteb calls a folder or repository."""
    path = Path(str(source))
    if path.exists():
        return f"unime/{path.resolve().name}"
    return str(source)


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
        name = "unime/model"
        model = model_name
        if not isinstance(model_name, UniMEModel):
            name = _name(model_name)
            model = _opened(model_name, revision, device, preset=preset, trust_remote_code=trust_remote_code)

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
        instruction = self.instruction(task_metadata, prompt_type)

        # a corpus of pictures does not fit the memory, and is never held as a whole
        embeddings = []
        with tqdm(desc="Encoding", unit="item", disable=not kwargs.get("show_progress_bar", True)) as bar:
            for block in blocks_of(inputs, most_images=self.model.processor.num_frames):
                items = [item for (item,) in block]
                embeddings.append(self._embed(items, instruction, role))
                bar.update(len(items))
        return torch.cat(embeddings)

    def _embed(self, items: list[dict], instruction: str | None, role: str) -> torch.Tensor:
        """Embeddings `[N, D]` of items, some of which may be empty."""
        # where the authors have a prompt for it, an empty item has an embedding of its own
        if self.model.processor.rules.empty is not None:
            items = [item or {"text": ""} for item in items]

        places = [place for place, item in enumerate(items) if item]
        filled = [items[place] for place in places]
        # a task without an instruction has none, whatever the model was saved with
        vectors = self.model.encode(filled, instruction or "", role, show_progress=False, **self.options)

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
        name = "unime/reranker"
        model = model_name
        if not isinstance(model_name, UniMERerankerForCausalLM):
            name = _name(model_name)
            model = _opened(model_name, revision, device, reranker=True, trust_remote_code=trust_remote_code)

        self.model = model.eval()
        self.options = {"output": "logit", **options}  # probabilities near one would be ties
        self.mteb_model_meta = model_meta(self.model, name, UniMECrossEncoder, revision)

    def predict(self, inputs1, inputs2, *, task_metadata, hf_split, hf_subset, prompt_type=None, **kwargs):
        """One score for each pair of a query and a document `[N]`."""
        scores = []
        for block in blocks_of(inputs1, inputs2, most_images=self.model.processor.num_frames):
            scores.append(self._score(block))
        return torch.cat(scores)

    def _score(self, pairs: list[tuple[dict, dict]]) -> torch.Tensor:
        """Scores `[N]` of pairs; the lowest there is where one of the two is empty."""
        scores = torch.full((len(pairs),), _LOWEST)

        # pairs of one query are scored together, so that they share its prompt
        places_of: dict[str, list[int]] = {}
        for place, (query, document) in enumerate(pairs):
            if query and document:
                places_of.setdefault(item_key(query), []).append(place)

        for places in places_of.values():
            query = pairs[places[0]][0]
            candidates = [pairs[place][1] for place in places]
            scores[places] = self.model.score(query, candidates, show_progress=False, **self.options)
        return scores


def register(source, **options) -> ModelMeta:
    """Lets `mteb.get_model` find a model in a folder, where it looks for names on the Hub alone.

    Args:
        source: folder of an embedder or a reranker; `mteb.get_model` then takes it as it is written here.
        options: for [`UniMEEncoder`] or [`UniMECrossEncoder`]: `preset`, `resolution`, ...

    Returns:
        what mteb knows of the model from now on, its modalities among it.

    Example:

    ```python
    register("outputs/quickstart/model")
    model = mteb.get_model("outputs/quickstart/model")
    ```
    """
    model = open_checkpoint(source, preset=options.get("preset"), weights=False)
    wrapper = UniMEEncoder if isinstance(model, UniMEModel) else UniMECrossEncoder

    def load(name, **settings):
        return wrapper(source, **{**options, **settings})

    meta = model_meta(model, _name(source), load)
    MODEL_REGISTRY[str(source)] = meta
    return meta


def released_models() -> list:
    """What mteb asks about the seven released checkpoints, with these wrappers as loaders.

    Example:

    ```python
    metas = {meta.name: meta for meta in released_models()}
    model = metas["TianchengGu/UniME-V2-Qwen2VL-2B"].load_model()
    ```
    """
    return released_metas(UniMEEncoder, UniMECrossEncoder)
