"""A reranker as a long job uses it."""

import sys

from ..checkpoints.opening import open_checkpoint, require_kind
from ..modeling_unime import UniMERerankerForCausalLM
from ..prompts_unime import resolve_preset
from .checks import check_options
from .choices import MEASURED_STRATEGIES
from .embedding import checkpoint_fingerprint, preset_in_words
from .shards import processes

TAKEN = ("query", "candidates", "strategy", "retrieval_scores", "show_progress", "top_k", "return_documents")


class Reranker:
    """A reranker, loaded when it is first needed.

    Args:
        source (`str` or `Path`): folder or repository of a reranker, or of a stock VLM.
        strategy (`str`, defaults to `"pointwise"`): `"pointwise"`, `"listwise"`, `"fused"` or `"generate"`, as in
            [`UniMERerankerForCausalLM.rank`].
        dtype (`str`, defaults to `"auto"`): such as `"bfloat16"`; `"auto"` is the checkpoint's own, or float32 on a
            CPU that is slower in less.
        trust_remote_code (`bool`, defaults to `False`): run the code of the repository.
        preset (`str`, *optional*): how it is asked, by name or as a file of one's own says; by default as the
            checkpoint was saved, or as its name or files say.
        options: for the model's `rank`.

    Raises:
        ValueError: the strategy or the preset is unknown, or the strategy has no such option.

    Example:

    ```python
    reranker = Reranker("outputs/quickstart/reranker", strategy="fused", weight=0.5)
    scores = reranker.scores("a dog", [{"image": "cat.jpg"}, {"image": "dog.jpg"}], similarity=[0.5, 0.4])
    ```
    """

    def __init__(
        self,
        source,
        strategy: str = "pointwise",
        dtype: str = "auto",
        trust_remote_code: bool = False,
        preset: str | None = None,
        **options,
    ):
        if strategy not in MEASURED_STRATEGIES:
            raise ValueError(f"the strategy must be one of {', '.join(MEASURED_STRATEGIES)}, got {strategy!r}.")

        # only what scores one candidate after the other takes the options of `score`
        methods = [UniMERerankerForCausalLM.pick if strategy == "generate" else UniMERerankerForCausalLM.rank]
        if strategy in ("pointwise", "fused"):
            methods.append(UniMERerankerForCausalLM.score)
        check_options(f"the options of `rank` ({strategy})", options, methods, TAKEN)

        self.source = source
        self.strategy = strategy
        self.dtype = dtype
        self.trust_remote_code = trust_remote_code
        self.preset = None if preset is None else resolve_preset(preset)
        self.options = options
        self.model = None

    def __getstate__(self) -> dict:
        # a worker elsewhere loads the model itself
        return {**self.__dict__, "model": None}

    def settings(self) -> dict:
        """What decides an order, as JSON; a job with other settings is another job."""
        settings = {
            "reranker": checkpoint_fingerprint(self.source),
            "strategy": self.strategy,
            "scores": "logit",
            "dtype": self.dtype,
            **self.options,
        }

        # jobs of earlier versions had no preset
        if self.preset is not None:
            settings["preset"] = preset_in_words(self.preset)
        return settings

    def load(self) -> UniMERerankerForCausalLM:
        """The model, on this process's device."""
        if self.model is None:
            model = open_checkpoint(
                self.source, self.preset, reranker=True, dtype=self.dtype, trust_remote_code=self.trust_remote_code
            )
            require_kind(model, self.source, reranker=True)
            self.model = model.to(processes().device).eval()
        return self.model

    def rank(self, query, candidates: list, similarity: list[float], **options) -> list[dict]:
        """The model's ranking of candidates for a query, best first.

        Args:
            query: a text, or a dict of `text` and `image`.
            candidates (`list`): C of the same.
            similarity (`list[float]`): the embedder's C similarities, which the strategy `"fused"` adds to.
            options: for the model's `rank`, before those of this reranker.

        Returns:
            `list[dict]`: C times `{"index": int, "corpus_id": int, "score": float}`.
        """
        options = {**self.options, **options}
        if self.strategy == "fused":
            options["retrieval_scores"] = similarity
        return self.load().rank(query, candidates, strategy=self.strategy, show_progress=False, **options)

    def scores(self, query, candidates: list, similarity: list[float], benchmark: str | None = None) -> list[float]:
        """Scores by which candidates can be put in order: log-odds, as probabilities near one are all equal.

        Args:
            query, candidates, similarity: as in [`Reranker.rank`].
            benchmark (`str`, *optional*): the kind of benchmark whose wording the reranker's preset is to use.

        Returns:
            `list[float]`: C finite scores in the order of `candidates`, the greater the better. With `"fused"`, which
            adds up similarities and probabilities, these sums; places where a list is ranked in windows.
        """
        output = "probability" if self.strategy == "fused" else "logit"
        options = {"output": output, "benchmark": benchmark, **self.options}
        ranking = self.rank(query, candidates, similarity, **options)

        # a ranking has its own order; the only candidate of a list is certain
        scores = {entry["index"]: min(entry["score"], sys.float_info.max) for entry in ranking}
        return [scores[index] for index in range(len(candidates))]

    def pick(self, query, candidates: list, benchmark: str | None = None) -> int | None:
        """The index of the candidate that the model names in a written answer, or None where it names none.

        Args:
            query, candidates, benchmark: as in [`Reranker.scores`].
        """
        return self.load().pick(query, candidates, **{"benchmark": benchmark, **self.options})
