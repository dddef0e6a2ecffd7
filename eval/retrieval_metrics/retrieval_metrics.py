"""Retrieval metrics with strict ties, as a module of `evaluate`: `evaluate.load("eval/retrieval_metrics")`."""

from statistics import fmean

import datasets
import evaluate
import torch

from unime.jobs.metrics import mean_reciprocal_rank, ndcg_at, places, recall_at, tied

_DESCRIPTION = (
    "Ranks of relevant candidates by score; a relevant one stands after equal wrong ones, so ties never help."
)
_INPUTS = """
Args:
    predictions: for each query, one score per candidate.
    references: for each query, one gain per candidate; 0 is wrong.
    ks: how many places count for recall (of at least one relevant candidate) and nDCG.
Returns:
    precision@1, mrr, recall@k, ndcg@k, ties (queries whose best relevant candidate has the score of a wrong one).
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class RetrievalMetrics(evaluate.Metric):
    """`unime.jobs.metrics` with the interface of `evaluate`."""

    def _info(self):
        """What `evaluate` knows of the module."""
        numbers = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": numbers, "references": numbers}),
        )

    def _compute(self, predictions, references, ks=(1, 5, 10)):
        """Metrics over all queries, as `compute` returns them."""
        ranks = []  # of each query's best relevant candidate
        ndcgs = {k: [] for k in ks}  # one for each query
        ties = 0

        for number, (scores, gains) in enumerate(zip(predictions, references)):
            if len(scores) != len(gains):
                raise ValueError(f"query {number}: {len(scores)} scores for {len(gains)} gains.")

            # what is not relevant has no gain
            scores = torch.tensor(scores, dtype=torch.float64)  # [C]
            relevant = []
            relevant_gains = []
            for candidate, gain in enumerate(gains):
                if gain > 0:
                    relevant.append(candidate)
                    relevant_gains.append(gain)

            try:
                relevant_ranks = places(scores, relevant, relevant_gains)
            except ValueError as error:
                raise ValueError(f"query {number}: {error}") from error

            ranks.append(min(relevant_ranks))
            ties += tied(scores, relevant)
            for k in ks:
                ndcgs[k].append(ndcg_at(relevant_ranks, k, relevant_gains))

        results = {"precision@1": recall_at(ranks, 1), "mrr": mean_reciprocal_rank(ranks)}
        for k in ks:
            results[f"recall@{k}"] = recall_at(ranks, k)
        for k in ks:
            results[f"ndcg@{k}"] = fmean(ndcgs[k])
        results["ties"] = ties
        return results
