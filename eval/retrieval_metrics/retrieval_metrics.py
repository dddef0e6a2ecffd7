"""Retrieval metrics with strict ties, as a module of `evaluate`: `evaluate.load("eval/retrieval_metrics")`."""

from statistics import fmean

import datasets
import evaluate
import torch

from unime.eval.metrics import mean_reciprocal_rank, ndcg_at, places, recall_at, tied

_DESCRIPTION = (
    "Ranks of relevant candidates by score; a relevant one stands after equal wrong ones, so ties never help."
)
_INPUTS = """
Args:
    predictions: for each query, one score per candidate.
    references: for each query, one gain per candidate; 0 is wrong.
    ks: places at which recall (of at least one relevant candidate) and nDCG are taken.
Returns:
    precision@1, mrr, recall@k, ndcg@k, ties (queries whose best relevant candidate has the score of a wrong one).
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class RetrievalMetrics(evaluate.Metric):
    """A thin shell over `unime.eval.metrics`."""

    def _info(self):
        numbers = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": numbers, "references": numbers}),
        )

    def _compute(self, predictions, references, ks=(1, 5, 10)):
        ranks, gained, ties = [], {k: [] for k in ks}, 0
        for number, (scores, gains) in enumerate(zip(predictions, references)):
            if len(scores) != len(gains):
                raise ValueError(f"query {number}: {len(scores)} scores for {len(gains)} gains.")
            relevant = [i for i, gain in enumerate(gains) if gain > 0]
            own, scores = [gains[i] for i in relevant], torch.tensor(scores, dtype=torch.float64)
            try:
                found = places(scores, relevant, own)
            except ValueError as error:
                raise ValueError(f"query {number}: {error}") from error
            ranks.append(min(found))
            ties += tied(scores, relevant)
            for k in ks:
                gained[k].append(ndcg_at(found, k, own))
        recalls = {f"recall@{k}": recall_at(ranks, k) for k in ks}
        return {
            "precision@1": recall_at(ranks, 1),
            "mrr": mean_reciprocal_rank(ranks),
            **recalls,
            **{f"ndcg@{k}": fmean(values) for k, values in gained.items()},
            "ties": ties,
        }
