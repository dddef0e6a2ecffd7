"""What an evaluation during training measures beside its loss: how well each data set's answers are found."""

from statistics import fmean

import torch

from ..jobs.metrics import average_precision, mean_reciprocal_rank, ndcg_at, places, recall_at
from .gathered_table import GatheredTable

MEASURES = ("precision@1", "recall@5", "recall@10", "mrr", "ndcg@10", "map")
UNNAMED = "rows"  # what a data set without a name is called in the logs


class _Side:
    """The distinct items of one side of a data set, numbered as they come, with their embeddings.

    Attributes:
        vectors (`list[Tensor]`): `[D]` each.
    """

    def __init__(self):
        self.vectors: list[torch.Tensor] = []
        self._numbers: dict[int, int] = {}

    def number(self, key: int, vector: torch.Tensor) -> int:
        """The number of the item with a content hash; a new one is added."""
        if key not in self._numbers:
            self._numbers[key] = len(self.vectors)
            self.vectors.append(vector)
        return self._numbers[key]

    def stacked(self) -> torch.Tensor:
        """All embeddings, `[N, D]` in double precision, in which the order of summation cannot break a tie."""
        return torch.stack(self.vectors).double()


class RetrievalMeasures:
    """Collects the queries and positives of evaluation batches, and measures retrieval as `unime eval pairs` does.

    Each data set is a task of its own: its candidates are its distinct positives, rows with equal queries are one
    query with several right answers, and ties count as wrong.

    Example:

    ```python
    measures = RetrievalMeasures()
    measures.add(table, embeddings, {content_hash("emoji"): "emoji"})
    measures.results()  # {"emoji/precision@1": 0.5, ..., "precision@1": 0.5}
    ```
    """

    def __init__(self):
        self._queries: dict[str, _Side] = {}
        self._answers: dict[str, _Side] = {}
        self._relevant: dict[str, dict[int, dict[int, None]]] = {}

    def add(self, table: GatheredTable, embeddings: torch.Tensor, names: dict[int, str]):
        """Adds the rows of a batch, of all ranks.

        Args:
            table ([`~unime.trainers.gathered_table.GatheredTable`]): says which items are queries and positives.
            embeddings (`Tensor` `[T, D]`): of its items.
            names (`dict[int, str]`): of the data sets, by the hashes in `table.dataset`.
        """
        vectors = embeddings.detach().float().cpu()
        hashes = table.hashes.tolist()
        rows = zip(table.dataset.tolist(), table.query.tolist(), table.positive.tolist())
        for dataset, query, positive in rows:
            name = names[dataset] or UNNAMED
            queries = self._queries.setdefault(name, _Side())
            answers = self._answers.setdefault(name, _Side())

            # equal items of several batches are one
            number = queries.number(hashes[query], vectors[query])
            answer = answers.number(hashes[positive], vectors[positive])
            self._relevant.setdefault(name, {}).setdefault(number, {})[answer] = None

    def results(self) -> dict[str, float]:
        """`NAME/precision@1`, `recall@5`, ... (all of `MEASURES`) of each data set, and the means over data sets."""
        results = {}
        for name, queries in self._queries.items():
            answers = self._answers[name].stacked()  # [N, D]
            ranks_of_all = []
            for number, vector in enumerate(queries.stacked()):
                scores = (answers @ vector).float()  # [N]
                ranks_of_all.append(places(scores, list(self._relevant[name][number])))
            for measure, value in _measures(ranks_of_all).items():
                results[f"{name}/{measure}"] = value

        # each data set counts alike
        for measure in MEASURES if results else ():
            results[measure] = fmean(results[f"{name}/{measure}"] for name in self._queries)
        return results


def _measures(ranks_of_all: list[list[int]]) -> dict[str, float]:
    """The measures over queries, from the ranks of each one's right answers."""
    best = list(map(min, ranks_of_all))
    values = (
        recall_at(best, 1),
        recall_at(best, 5),
        recall_at(best, 10),
        mean_reciprocal_rank(best),
        fmean(ndcg_at(ranks, 10) for ranks in ranks_of_all),
        fmean(map(average_precision, ranks_of_all)),
    )
    return dict(zip(MEASURES, values))
