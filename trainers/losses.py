"""Losses: small modules over a table of embeddings and index tensors, each readable alone."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..prompts_unime import one_of


@dataclass
class LossOutput:
    """A scalar `loss` with its graph, and detached `metrics` by name."""

    loss: torch.Tensor
    metrics: dict[str, float]


def positive_number(name: str, value: float) -> float:
    if value <= 0:
        raise ValueError(f"{name} must be positive, got {value}.")
    return value


class HardNegativeInfoNCE(nn.Module):
    """InfoNCE against the hardest in-batch candidates that are not false negatives (UniME, 2504.17432 eqs. 3-4).

    The candidates of every query are all distinct positives and explicit negatives of the whole batch. For each query:

    1. candidates that are its own positive, a copy of it, or the positive of an equal query are masked (the released
       code takes copies of the positive for negatives);
    2. candidates more similar than `cos(query, positive) + false_negative_margin` are dropped as false negatives;
    3. the `num_hard_negatives` most similar survivors stay;
    4. `loss = -log exp(s+ / t) / (exp(s+ / t) + sum_j exp(s_j / t))`, mean over queries. A query without a surviving
       negative contributes zero.

    Args:
        temperature (`float`, defaults to 0.02): t; the paper does not print it, the released code has 0.02.
        num_hard_negatives (`int`, *optional*, defaults to 8): k; `None` keeps all (plain in-batch InfoNCE of VLM2Vec).
        false_negative_margin (`float`, *optional*, defaults to 0.1): beta; `None` switches the filter off.
        threshold (`str`, defaults to `"relative"`): `"relative"` adds the margin to the positive's similarity;
            `"absolute"` takes it as the similarity above which a candidate is dropped.
        shortage (`str`, defaults to `"mask"`): what stands in for missing negatives when fewer than k survive: nothing
            (`"mask"`), the survivors over again (`"duplicate"`, the paper), or what the released code takes
            (`"released"`: the filtered candidates and, at last, the positive itself; copies are not masked and
            explicit negatives are not used).
        selection (`str`, defaults to `"hard"`): the most similar, the least similar (`"easy"`) or `"random"`
            survivors, for the paper's analysis (section 5.1). Random choices depend on the `seed` of a call.
        symmetric (`bool`, defaults to `False`): average with the loss from positives to queries.
        hardness (`float`, defaults to 0): alpha; negatives are weighted by `exp(alpha * s_j)`, without gradient.

    Example:

    ```python
    loss = HardNegativeInfoNCE()(embeddings, query=torch.tensor([0, 1]), positive=torch.tensor([2, 3])).loss
    ```
    """

    def __init__(
        self,
        temperature: float = 0.02,
        num_hard_negatives: int | None = 8,
        false_negative_margin: float | None = 0.1,
        threshold: str = "relative",
        shortage: str = "mask",
        selection: str = "hard",
        symmetric: bool = False,
        hardness: float = 0.0,
    ):
        super().__init__()
        self.temperature = positive_number("temperature", temperature)
        if num_hard_negatives is not None and num_hard_negatives < 1:
            raise ValueError(f"num_hard_negatives must be at least 1 or None, got {num_hard_negatives}.")
        self.num_hard_negatives = num_hard_negatives
        self.false_negative_margin = false_negative_margin
        self.threshold = one_of("threshold", threshold, "relative", "absolute")
        self.shortage = one_of("shortage", shortage, "mask", "duplicate", "released")
        self.selection = one_of("selection", selection, "hard", "random", "easy")
        self.symmetric, self.hardness = symmetric, hardness

    def forward(self, embeddings, query, positive, negatives=None, temperature=None, seed: int = 0) -> LossOutput:
        """Computes the loss.

        Args:
            embeddings (`Tensor` `[T, D]`): unit-norm table of distinct items.
            query, positive (`LongTensor` `[B]`), negatives (`LongTensor` `[B, K]`, -1 pads): rows of the table.
            temperature (`Tensor` `[B]`, *optional*): one for each row, in place of the one for all.
            seed (`int`): of `"random"` selection; what all ranks know of the batch, such as the sum of its hashes.
        """
        forward = self._released if self.shortage == "released" else self._direction
        temperature = self.temperature if temperature is None else temperature[:, None]
        output = forward(embeddings, query, positive, negatives, temperature, seed)
        if self.symmetric:
            back = forward(embeddings, positive, query, None, temperature, seed)
            output.loss = (output.loss + back.loss) / 2
        return output

    def _direction(self, embeddings, query, positive, negatives, temperature, seed) -> LossOutput:
        pool = positive if negatives is None else torch.cat([positive, negatives[negatives >= 0]])
        candidates, slot = pool.unique(return_inverse=True)  # [C]
        slot = slot[: len(positive)]  # [B] where each row's positive stands among the candidates
        scores = embeddings[query] @ embeddings[candidates].T  # [B, C]
        positive_scores = scores.gather(1, slot[:, None])  # [B, 1]

        with torch.no_grad():
            same_query = query[:, None] == query[None, :]  # [B, B]
            known = torch.zeros_like(scores).index_add_(1, slot, same_query.to(scores.dtype)) > 0  # [B, C]
            false_negative = self._too_similar(scores, positive_scores) & ~known
            allowed = ~known & ~false_negative
            kept = min(self.num_hard_negatives or scores.shape[1], scores.shape[1])
            chosen = self._preference(scores, seed).masked_fill(~allowed, float("-inf"))
            chosen = chosen.topk(kept, dim=1).indices  # [B, k]
            missing = ~allowed.gather(1, chosen)
            if self.shortage == "duplicate":
                survivors = (~missing).sum(1, keepdim=True)  # [B, 1]; they come first
                again = torch.arange(kept, device=chosen.device) % survivors.clamp(min=1)  # [B, k]
                chosen, missing = chosen.gather(1, again), (survivors == 0).expand_as(missing)

        negative_scores = scores.gather(1, chosen).masked_fill(missing, float("-inf"))  # [B, k]
        duplicates = (known.sum(1) - 1).float().mean().item() + (len(slot) - len(slot.unique())) / len(slot)
        filtered = (false_negative.sum() / (~known).sum().clamp(min=1)).item()
        return self._cross_entropy(positive_scores, negative_scores, temperature, filtered, duplicates)

    def _released(self, embeddings, query, positive, negatives, temperature, seed) -> LossOutput:
        """The arithmetic of UniME's `loss.py`: only the diagonal is masked, and shortages are met with what is not."""
        scores = embeddings[query] @ embeddings[positive].T  # [B, B]
        positive_scores = scores.diagonal()[:, None]  # [B, 1]
        with torch.no_grad():
            diagonal = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
            false_negative = self._too_similar(scores, positive_scores) & ~diagonal
            kept = min(self.num_hard_negatives or len(scores), len(scores))
            order = scores.masked_fill(diagonal | false_negative, float("-inf")).topk(kept, dim=1).indices
        filtered = (false_negative.sum() / (~diagonal).sum().clamp(min=1)).item()
        return self._cross_entropy(positive_scores, scores.gather(1, order), temperature, filtered, 0.0)

    def _too_similar(self, scores, positive_scores):
        if self.false_negative_margin is None:
            return torch.zeros_like(scores, dtype=torch.bool)
        base = positive_scores if self.threshold == "relative" else 0.0
        return scores > base + self.false_negative_margin

    def _preference(self, scores, seed):
        if self.selection == "random":
            generator = torch.Generator().manual_seed(seed % 2**63)
            return torch.rand(scores.shape, generator=generator).to(scores)
        return -scores if self.selection == "easy" else scores

    def _cross_entropy(self, positive_scores, negative_scores, temperature, filtered, duplicates) -> LossOutput:
        missing = negative_scores.isinf()  # [B, k]
        finite = negative_scores.masked_fill(missing, 0)  # infinity over a learnable temperature has no gradient
        negative_logits = finite / temperature + self.hardness * finite.detach()
        logits = torch.cat([positive_scores / temperature, negative_logits.masked_fill(missing, float("-inf"))], dim=1)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # bfloat16 has too few digits here
        loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
        hardest = negative_scores.detach().amax(dim=1)
        some = ~hardest.isinf()
        metrics = {
            "positive_similarity": positive_scores.mean().item(),
            "hardest_negative_similarity": hardest[some].mean().item() if some.any() else float("nan"),
            "filtered_share": filtered,
            "duplicates_masked": duplicates,
        }
        return LossOutput(loss, metrics)


class MatryoshkaLoss(nn.Module):
    """The mean of a loss over prefixes of the embeddings, each normalised again (2205.13147).

    Args:
        loss (`nn.Module`): takes a table of unit-norm embeddings first.
        dims (`list[int]`): widths of the prefixes.
    """

    def __init__(self, loss: nn.Module, dims: list[int]):
        super().__init__()
        if not dims or min(dims) < 1:
            raise ValueError(f"dims must be positive widths, got {dims}.")
        self.loss, self.dims = loss, sorted(dims, reverse=True)

    def forward(self, embeddings, *args, **kwargs) -> LossOutput:
        """As the loss it wraps; the metrics are those of the widest prefix."""
        if self.dims[0] > embeddings.shape[1]:
            raise ValueError(f"Matryoshka width {self.dims[0]} exceeds the embedding's {embeddings.shape[1]}.")
        outputs = [self.loss(F.normalize(embeddings[:, :dim], dim=-1), *args, **kwargs) for dim in self.dims]
        return LossOutput(torch.stack([output.loss for output in outputs]).mean(), outputs[0].metrics)


class SimilarityDistillation(nn.Module):
    """KL divergence between the row-softmaxed similarity matrices of student and teacher (UniME, 2504.17432 eq. 2).

    `S_ij = softmax_j(e_i . e_j / t)` over the distinct texts of the whole batch, `T_ij` likewise from the teacher;
    the loss is the mean over rows.

    Args:
        temperature (`float`, defaults to 0.05): t; stated nowhere. Above 0.1 the masked loss has little signal left.
        direction (`str`, defaults to `"teacher_student"`): `"student_teacher"` is KL(S || T) as the paper prints it;
            `"teacher_student"` is KL(T || S), usual in distillation; `"symmetric"` their mean.
        diagonal (`str`, defaults to `"masked"`): `"kept"` as printed, where each text's similarity with itself makes
            both rows one-hot at small temperatures and the loss dead.
        teacher_temperature (`float`, *optional*): of the teacher's rows; the same by default.
    """

    def __init__(
        self,
        temperature: float = 0.05,
        direction: str = "teacher_student",
        diagonal: str = "masked",
        teacher_temperature: float | None = None,
    ):
        super().__init__()
        self.temperature = positive_number("temperature", temperature)
        self.teacher_temperature = positive_number("teacher_temperature", teacher_temperature or temperature)
        self.direction = one_of("direction", direction, "student_teacher", "teacher_student", "symmetric")
        self.diagonal = one_of("diagonal", diagonal, "masked", "kept")

    def forward(self, embeddings, teacher) -> LossOutput:
        """Computes the loss.

        Args:
            embeddings (`Tensor` `[N, D]`): unit-norm student embeddings of distinct texts.
            teacher (`Tensor` `[N, D']`): the teacher's, of any norm.
        """
        teacher = F.normalize(teacher.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=-1)
        student = embeddings.to(teacher.dtype)
        ours, theirs = student @ student.T, teacher @ teacher.T  # [N, N]
        mask = torch.eye(len(ours), dtype=torch.bool, device=ours.device) & (self.diagonal == "masked")
        s = F.log_softmax((ours / self.temperature).masked_fill(mask, float("-inf")), dim=1)
        t = F.log_softmax((theirs / self.teacher_temperature).masked_fill(mask, float("-inf")), dim=1)
        # a text alone in its batch has no other text to be compared with
        terms = {
            "student_teacher": lambda: kl(s, t, mask),
            "teacher_student": lambda: kl(t, s, mask),
            "symmetric": lambda: (kl(s, t, mask) + kl(t, s, mask)) / 2,
        }
        loss = terms[self.direction]().mean() if len(ours) > 1 else student.sum() * 0
        off = ~torch.eye(len(ours), dtype=torch.bool, device=ours.device)
        metrics = {"similarity_gap": (ours - theirs)[off].abs().mean().item() if len(ours) > 1 else 0.0}
        return LossOutput(loss, metrics)


class JudgeAlignment(nn.Module):
    """Aligns the student's distribution over {positive, k negatives} with the judge's (UniME-V2, 2510.13515 eqs. 2-4).

    `P = softmax(cos(e_q, E_c) / t)`, `Q = softmax(judge scores / t_judge)`. Rows without usable judge scores are left
    out and counted: the positive's or a used negative's score is missing, there is no negative, or all negatives have
    the 1.0 that UniME-V2's file gives to random ones where none survived, which would teach that the positive is
    wrong.

    Args:
        temperature (`float`, defaults to 0.02): t.
        judge_temperature (`float`, *optional*): t_judge; the same by default, as in the paper.
        num_negatives (`int`, defaults to 8): k.
        order (`str`, defaults to `"file"`): take the first k negatives of the row, or those with the highest judge
            `"score"`.
        divergence (`str`, defaults to `"jeffreys"`): `(KL(P || Q) + KL(Q || P)) / 2`, what paper and code compute and
            call Jensen-Shannon; `"js"` is the true Jensen-Shannon divergence; `"released"` floors probabilities at
            1e-8 as the released code does, which takes the gradient from the rows that are most wrong.
        unscored (`str`, defaults to `"drop"`): `"released"` keeps rows whose negatives have 1.0, and reads missing
            scores of negatives as 1.0.
        in_batch_weight (`float`, defaults to 0): adds that much of a plain in-batch InfoNCE, in which copies of the
            positive are masked.
    """

    def __init__(
        self,
        temperature: float = 0.02,
        judge_temperature: float | None = None,
        num_negatives: int = 8,
        order: str = "file",
        divergence: str = "jeffreys",
        in_batch_weight: float = 0.0,
        unscored: str = "drop",
    ):
        super().__init__()
        self.unscored = one_of("unscored", unscored, "drop", "released")
        self.temperature = positive_number("temperature", temperature)
        self.judge_temperature = positive_number("judge_temperature", judge_temperature or temperature)
        self.num_negatives = int(positive_number("num_negatives", num_negatives))
        self.order = one_of("order", order, "file", "score")
        self.divergence = one_of("divergence", divergence, "jeffreys", "js", "released")
        self.in_batch_weight = in_batch_weight
        self.in_batch = HardNegativeInfoNCE(temperature, num_hard_negatives=None, false_negative_margin=None)

    def forward(self, embeddings, query, positive, negatives, positive_score, negative_scores) -> LossOutput:
        """Computes the loss.

        Args:
            embeddings (`Tensor` `[T, D]`): unit-norm table of distinct items.
            query, positive (`LongTensor` `[B]`), negatives (`LongTensor` `[B, K]`, -1 pads): rows of the table.
            positive_score (`Tensor` `[B]`), negative_scores (`Tensor` `[B, K]`): in [0, 1]; NaN where there is none.
        """
        if self.order == "score" and negatives.shape[1]:
            by_score = negative_scores.nan_to_num(nan=-1.0).masked_fill(negatives < 0, -2.0)
            best = by_score.argsort(dim=1, descending=True, stable=True)
            negatives, negative_scores = negatives.gather(1, best), negative_scores.gather(1, best)
        negatives, negative_scores = negatives[:, : self.num_negatives], negative_scores[:, : self.num_negatives]
        present = negatives >= 0  # [B, k]
        if self.unscored == "released":
            negative_scores = negative_scores.nan_to_num(nan=1.0)
        usable = positive_score.isfinite() & (negative_scores.isfinite() | ~present).all(1) & present.any(1)  # [B]
        if self.unscored == "drop":
            usable &= ~(((negative_scores == 1) | ~present).all(1) & (positive_score < 1))
        candidates = torch.cat([positive[:, None], negatives.clamp(min=0)], dim=1)[usable]  # [b, 1 + k]
        scores = torch.einsum("bd,bcd->bc", embeddings[query[usable]], embeddings[candidates])
        judged = torch.cat([positive_score[:, None], negative_scores], dim=1)[usable].to(scores)
        mask = torch.cat([torch.zeros_like(present[:, :1]), ~present], dim=1)[usable]
        dtype = torch.promote_types(scores.dtype, torch.float32)
        p = F.log_softmax((scores.to(dtype) / self.temperature).masked_fill(mask, float("-inf")), dim=1)
        q = F.log_softmax((judged.to(dtype) / self.judge_temperature).masked_fill(mask, float("-inf")), dim=1)
        loss = self._divergence(p, q, mask).mean() if len(p) else embeddings.sum() * 0
        if self.in_batch_weight:
            loss = loss + self.in_batch_weight * self.in_batch(embeddings, query, positive).loss
        hardest = scores[:, 1:].masked_fill(mask[:, 1:], float("-inf"))
        metrics = {
            "positive_similarity": scores[:, 0].mean().item(),
            "hardest_negative_similarity": hardest.amax(1).mean().item() if len(p) else float("nan"),
            "rows_left_out": (~usable).float().mean().item(),
        }
        return LossOutput(loss, metrics)

    def _divergence(self, p, q, mask):
        """`[b]` from log-probabilities `[b, 1 + k]`."""
        p, q = p.masked_fill(mask, 0.0), q.masked_fill(mask, 0.0)  # before arithmetic in which infinities meet
        if self.divergence == "jeffreys":
            return (kl(p, q, mask) + kl(q, p, mask)) / 2
        if self.divergence == "js":
            middle = torch.logaddexp(p, q) - math.log(2)
            return (kl(p, middle, mask) + kl(q, middle, mask)) / 2
        floored_p, floored_q = (p.exp() + 1e-8).log(), (q.exp() + 1e-8).log()  # the targets' own logs are exact
        return (kl(q, floored_p, mask) + kl(p, floored_q, mask)) / 2


def kl(log_p: torch.Tensor, log_q: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """KL(P || Q) of each row `[N]` from log-probabilities `[N, M]`, over the entries that are not masked."""
    log_p, log_q = log_p.masked_fill(mask, 0.0), log_q.masked_fill(mask, 0.0)
    return (log_p.exp().masked_fill(mask, 0.0) * (log_p - log_q)).sum(1)
