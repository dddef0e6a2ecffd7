"""Losses: small modules over a table of embeddings and index tensors, each readable alone."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class LossOutput:
    """A scalar `loss` with its graph, and detached `metrics` by name."""

    loss: torch.Tensor
    metrics: dict[str, float]


class HardNegativeInfoNCE(nn.Module):
    """InfoNCE against the hardest in-batch candidates that are not false negatives (UniME, 2504.17432 eqs. 3-4).

    The candidates of every query are all distinct positives and explicit negatives of the whole batch. For each query:

    1. candidates that are its own positive, a copy of it, or the positive of an equal query are masked (the released
       code takes copies of the positive for negatives);
    2. candidates more similar than `cos(query, positive) + false_negative_margin` are dropped as false negatives;
    3. the `num_hard_negatives` most similar survivors stay. Missing ones are left out of the softmax, never refilled
       with filtered ones;
    4. `loss = -log exp(s+ / t) / (exp(s+ / t) + sum_j exp(s_j / t))`, mean over queries. A query without a surviving
       negative contributes zero.

    Args:
        temperature (`float`, defaults to 0.02): t; the paper does not print it, the released code has 0.02.
        num_hard_negatives (`int`, *optional*, defaults to 8): k; `None` keeps all (plain in-batch InfoNCE of VLM2Vec).
        false_negative_margin (`float`, *optional*, defaults to 0.1): beta; `None` switches the filter off.

    Example:

    ```python
    loss = HardNegativeInfoNCE()(embeddings, query=torch.tensor([0, 1]), positive=torch.tensor([2, 3])).loss
    ```
    """

    def __init__(
        self, temperature: float = 0.02, num_hard_negatives: int | None = 8, false_negative_margin: float | None = 0.1
    ):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}.")
        if num_hard_negatives is not None and num_hard_negatives < 1:
            raise ValueError(f"num_hard_negatives must be at least 1 or None, got {num_hard_negatives}.")
        self.temperature = temperature
        self.num_hard_negatives = num_hard_negatives
        self.false_negative_margin = false_negative_margin

    def forward(self, embeddings, query, positive, negatives=None) -> LossOutput:
        """Computes the loss.

        Args:
            embeddings (`Tensor` `[T, D]`): unit-norm table of distinct items.
            query, positive (`LongTensor` `[B]`), negatives (`LongTensor` `[B, K]`, -1 pads): rows of the table.
        """
        pool = positive if negatives is None else torch.cat([positive, negatives[negatives >= 0]])
        candidates, slot = pool.unique(return_inverse=True)  # [C]
        slot = slot[: len(positive)]  # [B] where each row's positive stands among the candidates
        scores = embeddings[query] @ embeddings[candidates].T  # [B, C]
        positive_scores = scores.gather(1, slot[:, None])  # [B, 1]

        with torch.no_grad():
            same_query = query[:, None] == query[None, :]  # [B, B]
            known = torch.zeros_like(scores).index_add_(1, slot, same_query.to(scores.dtype)) > 0  # [B, C]
            false_negative = torch.zeros_like(known)
            if self.false_negative_margin is not None:
                false_negative = (scores > positive_scores + self.false_negative_margin) & ~known
            allowed = ~known & ~false_negative
            kept = min(self.num_hard_negatives or scores.shape[1], scores.shape[1])
            hardest = scores.masked_fill(~allowed, float("-inf")).topk(kept, dim=1).indices  # [B, k]
            missing = ~allowed.gather(1, hardest)

        negative_scores = scores.gather(1, hardest).masked_fill(missing, float("-inf"))  # [B, k]
        logits = torch.cat([positive_scores, negative_scores], dim=1) / self.temperature  # [B, 1 + k]
        logits = logits.to(
            torch.promote_types(logits.dtype, torch.float32)
        )  # bfloat16 has too few digits for a softmax
        loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
        some = ~missing[:, 0]
        metrics = {
            "positive_similarity": positive_scores.mean().item(),
            "hardest_negative_similarity": negative_scores[some, 0].mean().item() if some.any() else float("nan"),
            "filtered_share": (false_negative.sum() / (~known).sum().clamp(min=1)).item(),
            "duplicates_masked": (known.sum(1) - 1).float().mean().item()
            + (len(slot) - len(slot.unique())) / len(slot),
        }
        return LossOutput(loss, metrics)
