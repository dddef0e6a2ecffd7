"""A reranker as a long job uses it."""

from ..checkpoints.opening import open_checkpoint
from ..modeling_unime import UniMERerankerForCausalLM
from .embedding import checkpoint_fingerprint
from .shards import processes

STRATEGIES = ("pointwise", "listwise", "fused")


class Reranker:
    """A reranker, loaded when it is first needed.

    Args:
        source: folder or repository.
        strategy (`str`): `"pointwise"`, `"listwise"` or `"fused"`, as in [`UniMERerankerForCausalLM.rank`].
        dtype (`str`): such as `"bfloat16"`; `"auto"` is the checkpoint's own.
        options: for the model's `rank`.
    """

    def __init__(self, source, strategy: str = "pointwise", dtype: str = "auto", **options):
        if strategy not in STRATEGIES:
            raise ValueError(f"the strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}.")
        self.source, self.strategy, self.dtype, self.options = source, strategy, dtype, options
        self.model = None

    def settings(self) -> dict:
        """What decides an order."""
        own = {"strategy": self.strategy, "dtype": self.dtype, **self.options}
        return {"reranker": checkpoint_fingerprint(self.source), **own}

    def load(self) -> UniMERerankerForCausalLM:
        if self.model is None:
            model = open_checkpoint(self.source, reranker=True, dtype=self.dtype)
            if not isinstance(model, UniMERerankerForCausalLM):
                raise ValueError(f"{self.source} is an embedder; a reranker or a stock VLM is needed.")
            self.model = model.to(processes().device).eval()
        return self.model

    def scores(self, query, candidates: list, similarity: list[float]) -> list[float]:
        """One score per candidate."""
        extra = {"retrieval_scores": similarity} if self.strategy == "fused" else {}
        found = self.load().rank(
            query, candidates, strategy=self.strategy, show_progress=False, **extra, **self.options
        )
        scores = {entry["index"]: entry["score"] for entry in found}
        return [scores[i] for i in range(len(candidates))]
