"""Losses: small modules over a table of embeddings and index tensors, each readable alone."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..prompts_unime import one_of


@dataclass
class LossOutput:
    """What a loss returns.

    Args:
        loss (`Tensor`): scalar, with its graph.
        metrics (`dict`): figures for the logs by name, NaN where a batch has nothing to measure: numbers, or scalar
            tensors without a graph. These stay where they are until they are logged, as reading one waits for a GPU.
        embeddings (`Tensor` `[T, D]`, *optional*): of the batch, without a graph, where a trainer returns them.
        row_losses (`Tensor` `[B]`, *optional*): of each row, without a graph, where the loss is their mean.
    """

    loss: torch.Tensor
    metrics: dict[str, float | torch.Tensor]
    embeddings: torch.Tensor | None = None
    row_losses: torch.Tensor | None = None


def positive_number(name: str, value: float) -> float:
    """Returns the value of an option, which must be above 0.

    Raises:
        ValueError: it is not; the message has the option's `name`.
    """
    if value <= 0:
        raise ValueError(f"{name} must be positive, got {value}.")
    return value


def at_least_float32(embeddings: torch.Tensor) -> torch.Tensor:
    """Embeddings of half precision in float32, others as they are.

    Similarities are divided by temperatures of a hundredth; rounded to bfloat16 before that, they are off by tenths.
    """
    return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))


class HardNegativeInfoNCE(nn.Module):
    """InfoNCE against the hardest in-batch candidates that are not false negatives (UniME, 2504.17432 eqs. 3-4).

    The candidates of every query are all distinct positives and explicit negatives of the whole batch. For each query:

    1. candidates that are its own positive, a copy of it, the positive of an equal query, or right as well are masked
       (the released code takes copies of the positive for negatives);
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
        self.symmetric = symmetric
        self.hardness = hardness

    def forward(
        self,
        embeddings,
        query,
        positive,
        negatives=None,
        temperature=None,
        seed: int = 0,
        also_positive=None,
        weight=None,
    ) -> LossOutput:
        """Computes the loss.

        Args:
            embeddings (`Tensor` `[T, D]`): unit-norm table of distinct items.
            query, positive (`LongTensor` `[B]`), negatives (`LongTensor` `[B, K]`, -1 pads): rows of the table.
            temperature (`Tensor` `[B]`, *optional*): one for each row, in place of the one for all.
            seed (`int`): of `"random"` selection; what all ranks know of the batch, such as the sum of its hashes.
            also_positive (`BoolTensor` `[B, T]`, *optional*): further items of the table that are right for a row.
            weight (`Tensor` `[B]`, *optional*): of each row in the mean over queries; all alike by default.
        """
        embeddings = at_least_float32(embeddings)
        forward = self._released if self.shortage == "released" else self._direction
        temperature = self.temperature if temperature is None else temperature[:, None]  # a number, or [B, 1]
        output = forward(embeddings, query, positive, negatives, temperature, seed, also_positive, weight)

        if self.symmetric:
            if also_positive is not None:
                # where a query has the row's positive among its others
                matches = also_positive[:, positive].T.to(embeddings.dtype)  # [B, B]
                also_positive = torch.zeros_like(also_positive, dtype=matches.dtype).index_add_(1, query, matches) > 0
            reverse = forward(embeddings, positive, query, None, temperature, seed, also_positive, weight)
            output.loss = (output.loss + reverse.loss) / 2
            output.row_losses = (output.row_losses + reverse.row_losses) / 2
        return output

    def _direction(
        self, embeddings, query, positive, negatives, temperature, seed, also_positive, weight
    ) -> LossOutput:
        """The loss from queries to candidates: steps 1 to 4 of the class."""
        # equal candidates are one: [C] of them, and the place of each row's positive among these
        pool = positive
        if negatives is not None:
            pool = torch.cat([positive, negatives[negatives >= 0]])
        candidates, places = pool.unique(return_inverse=True)
        positive_places = places[: len(positive)]  # [B]

        scores = embeddings[query] @ embeddings[candidates].T  # [B, C]
        positive_scores = scores.gather(1, positive_places[:, None])  # [B, 1]

        with torch.no_grad():
            # 1. a row's positive, and those of the other rows with the same query
            same_query = query[:, None] == query[None, :]  # [B, B]
            counts = torch.zeros_like(scores).index_add_(1, positive_places, same_query.to(scores.dtype))
            is_positive = counts > 0  # [B, C]
            if also_positive is not None:
                is_positive |= also_positive[:, candidates]

            # 2. what is so similar that it is probably right
            false_negative = self._too_similar(scores, positive_scores) & ~is_positive  # [B, C]

            # 3. the negatives among the rest
            selected, missing = self._select(scores, ~is_positive & ~false_negative, seed)  # [B, k], [B, k]

        # 4. the loss
        negative_scores = scores.gather(1, selected).masked_fill(missing, float("-inf"))  # [B, k]
        output = self._cross_entropy(positive_scores, negative_scores, temperature, weight)

        # masked without being the row's own positive: positives of equal queries, and copies of the positive
        others = (is_positive.sum(1) - 1).float().mean()
        distinct = torch.zeros(len(candidates), device=scores.device).index_fill_(0, positive_places, 1).sum()
        copies = 1 - distinct / len(positive_places)
        output.metrics["filtered_share"] = false_negative.sum() / (~is_positive).sum().clamp(min=1)
        output.metrics["duplicates_masked"] = others + copies
        return output

    def _select(self, scores, allowed, seed):
        """The candidates `[B, k]` that serve as negatives, and where `[B, k]` a row has too few that are allowed."""
        count = self._number_of_negatives(scores.shape[1])
        preference = self._preference(scores, seed).masked_fill(~allowed, float("-inf"))  # [B, C]
        selected = preference.topk(count, dim=1).indices  # [B, k]
        missing = ~allowed.gather(1, selected)  # [B, k]

        if self.shortage == "duplicate":
            # the allowed ones come first; they fill all places by turns
            survivors = (~missing).sum(1, keepdim=True)  # [B, 1]
            repeated = torch.arange(count, device=selected.device) % survivors.clamp(min=1)  # [B, k]
            selected = selected.gather(1, repeated)
            missing = (survivors == 0).expand_as(missing)
        return selected, missing

    def _released(
        self, embeddings, query, positive, negatives, temperature, seed, also_positive, weight
    ) -> LossOutput:
        """The arithmetic of UniME's `loss.py`: only the diagonal is masked, and where too few candidates are left,
        `topk` takes masked ones, with their scores."""
        scores = embeddings[query] @ embeddings[positive].T  # [B, B]
        positive_scores = scores.diagonal()[:, None]  # [B, 1]

        with torch.no_grad():
            diagonal = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
            false_negative = self._too_similar(scores, positive_scores) & ~diagonal  # [B, B]
            candidates = scores.masked_fill(diagonal | false_negative, float("-inf"))
            selected = candidates.topk(self._number_of_negatives(len(scores)), dim=1).indices  # [B, k]

        output = self._cross_entropy(positive_scores, scores.gather(1, selected), temperature, weight)
        output.metrics["filtered_share"] = false_negative.sum() / (~diagonal).sum().clamp(min=1)
        output.metrics["duplicates_masked"] = 0.0
        return output

    def _number_of_negatives(self, candidates: int) -> int:
        """k, or all candidates where there are fewer or no k is set."""
        return min(self.num_hard_negatives or candidates, candidates)

    def _too_similar(self, scores, positive_scores):
        """Where `[B, C]` a candidate is above the threshold of its row."""
        if self.false_negative_margin is None:
            return torch.zeros_like(scores, dtype=torch.bool)
        base = positive_scores if self.threshold == "relative" else 0.0
        return scores > base + self.false_negative_margin

    def _preference(self, scores, seed):
        """Numbers `[B, C]` of which the greatest are selected."""
        if self.selection == "random":
            generator = torch.Generator().manual_seed(seed % 2**63)
            return torch.rand(scores.shape, generator=generator).to(scores)
        return -scores if self.selection == "easy" else scores

    def _cross_entropy(self, positive_scores, negative_scores, temperature, weight) -> LossOutput:
        """The loss from scores `[B, 1]` and `[B, k]`; a negative at minus infinity does not count."""
        missing = negative_scores.isinf()  # [B, k]
        finite = negative_scores.masked_fill(missing, 0)  # infinity over a learnable temperature has no gradient
        negative_logits = finite / temperature + self.hardness * finite.detach()
        logits = torch.cat([positive_scores / temperature, negative_logits.masked_fill(missing, float("-inf"))], dim=1)

        # the positive stands in column 0
        targets = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        row_losses = F.cross_entropy(logits, targets, reduction="none")  # [B]

        hardest = negative_scores.detach().amax(dim=1)  # [B]
        metrics = {
            "positive_similarity": positive_scores.detach().mean(),
            "hardest_negative_similarity": hardest.masked_fill(hardest.isinf(), float("nan")).nanmean(),
        }
        loss = row_losses.mean() if weight is None else weighted_mean(row_losses, weight)
        return LossOutput(loss, metrics, row_losses=row_losses.detach())


class MatryoshkaLoss(nn.Module):
    """The mean of a loss over prefixes of the embeddings, each normalised again (2205.13147).

    Args:
        loss (`nn.Module`): takes a table of unit-norm embeddings first and returns a [`LossOutput`].
        dims (`list[int]`): widths of the prefixes.

    Example:

    ```python
    loss = MatryoshkaLoss(HardNegativeInfoNCE(), dims=[2048, 512, 128])
    output = loss(embeddings, query=torch.tensor([0, 1]), positive=torch.tensor([2, 3]))
    ```
    """

    def __init__(self, loss: nn.Module, dims: list[int]):
        super().__init__()
        if not dims or min(dims) < 1:
            raise ValueError(f"dims must be positive widths, got {dims}.")
        self.loss = loss
        self.dims = sorted(dims, reverse=True)

    def forward(self, embeddings, *args, **kwargs) -> LossOutput:
        """Computes the loss. The arguments are those of the loss it wraps; the metrics are those of the widest prefix.

        Raises:
            ValueError: a prefix is wider than the embeddings.
        """
        if self.dims[0] > embeddings.shape[1]:
            raise ValueError(f"Matryoshka width {self.dims[0]} exceeds the embedding's {embeddings.shape[1]}.")

        outputs = []
        for dim in self.dims:
            prefix = F.normalize(embeddings[:, :dim], dim=-1)  # [T, dim]
            outputs.append(self.loss(prefix, *args, **kwargs))
        losses = torch.stack([output.loss for output in outputs])  # [number of widths]
        row_losses = [output.row_losses for output in outputs if output.row_losses is not None]
        rows = torch.stack(row_losses).mean(0) if row_losses else None  # [B]
        return LossOutput(losses.mean(), outputs[0].metrics, row_losses=rows)


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

    Example:

    ```python
    loss = SimilarityDistillation()(student_embeddings, teacher_embeddings).loss
    ```
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
        student = at_least_float32(embeddings)
        teacher = F.normalize(teacher.to(student.dtype), dim=-1)
        student_scores = student @ student.T  # [N, N]
        teacher_scores = teacher @ teacher.T  # [N, N]

        # a text is not compared with itself, unless the diagonal is kept
        diagonal = torch.eye(len(student), dtype=torch.bool, device=student.device)
        mask = torch.zeros_like(diagonal)
        if self.diagonal == "masked":
            mask = diagonal

        # row-wise distributions: the student's S, the teacher's T
        log_s = masked_log_softmax(student_scores / self.temperature, mask)
        log_t = masked_log_softmax(teacher_scores / self.teacher_temperature, mask)

        # a text alone in its batch has no other text to be compared with
        if len(student) == 1:
            return LossOutput(student.sum() * 0, {"similarity_gap": 0.0})
        loss = self._divergence(log_s, log_t, mask).mean()
        differences = (student_scores.detach() - teacher_scores).abs().masked_fill(diagonal, 0)  # [N, N]
        gap = differences.sum() / (len(student) * (len(student) - 1))
        return LossOutput(loss, {"similarity_gap": gap})

    def _divergence(self, log_s, log_t, mask):
        """`[N]` from log-probabilities `[N, N]`."""
        if self.direction == "student_teacher":
            return kl(log_s, log_t, mask)
        if self.direction == "teacher_student":
            return kl(log_t, log_s, mask)
        return (kl(log_s, log_t, mask) + kl(log_t, log_s, mask)) / 2


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
        in_batch_weight (`float`, defaults to 0): adds that much of InfoNCE against the candidates of the other rows,
            positives and the negatives used, which are embedded anyway. Copies of the positive, and what was mined for
            the row itself, are masked; no other false negative is filtered out.

    Example:

    ```python
    query, positive, negatives = torch.tensor([0]), torch.tensor([1]), torch.tensor([[2, 3]])
    positive_score, negative_scores = torch.tensor([0.9]), torch.tensor([[0.4, 0.1]])
    loss = JudgeAlignment()(embeddings, query, positive, negatives, positive_score, negative_scores).loss
    ```
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

    def forward(
        self,
        embeddings,
        query,
        positive,
        negatives,
        positive_score,
        negative_scores,
        also_positive=None,
        weight=None,
    ) -> LossOutput:
        """Computes the loss.

        Args:
            embeddings (`Tensor` `[T, D]`): unit-norm table of distinct items.
            query, positive (`LongTensor` `[B]`), negatives (`LongTensor` `[B, K]`, -1 pads): rows of the table.
            positive_score (`Tensor` `[B]`), negative_scores (`Tensor` `[B, K]`): in [0, 1]; NaN where there is none.
            also_positive, weight (*optional*): as in [`HardNegativeInfoNCE`]; the first is for the in-batch part.
        """
        embeddings = at_least_float32(embeddings)
        mined = negatives  # [B, K]
        negatives, negative_scores = self._first_negatives(negatives, negative_scores)  # [B, k], [B, k]
        present = negatives >= 0  # [B, k]
        if self.unscored == "released":
            negative_scores = negative_scores.nan_to_num(nan=1.0)

        # from here on without the rows that have nothing to teach, b of which are left
        usable = self._usable_rows(present, positive_score, negative_scores)  # [B]
        candidates = torch.cat([positive[:, None], negatives.clamp(min=0)], dim=1)[usable]  # [b, 1 + k]
        mask = torch.cat([torch.zeros_like(present[:, :1]), ~present], dim=1)[usable]  # [b, 1 + k]
        scores = torch.einsum("bd,bcd->bc", embeddings[query[usable]], embeddings[candidates])  # [b, 1 + k]
        judged = torch.cat([positive_score[:, None], negative_scores], dim=1)[usable].to(scores)  # [b, 1 + k]

        # P and Q over the candidates
        log_p = masked_log_softmax(scores / self.temperature, mask)
        log_q = masked_log_softmax(judged / self.judge_temperature, mask)

        # without a usable row there is still a gradient, of zero
        loss = embeddings.sum() * 0
        if len(candidates) and weight is None:
            loss = self._divergence(log_p, log_q, mask).mean()
        elif len(candidates):
            loss = weighted_mean(self._divergence(log_p, log_q, mask), weight[usable])
        if self.in_batch_weight:
            # what was mined for a row is the judge's to say; to all other rows it is a negative
            masked = rows_of_table(mined, len(embeddings))  # [B, T]
            if also_positive is not None:
                masked |= also_positive
            in_batch = self.in_batch(embeddings, query, positive, negatives, also_positive=masked, weight=weight)
            loss = loss + self.in_batch_weight * in_batch.loss

        hardest = scores[:, 1:].masked_fill(mask[:, 1:], float("-inf"))  # [b, k]
        metrics = {
            "positive_similarity": scores[:, 0].detach().mean(),
            "hardest_negative_similarity": hardest.detach().amax(1).mean() if len(candidates) else float("nan"),
            "rows_left_out": (~usable).float().mean(),
        }
        return LossOutput(loss, metrics)

    def _first_negatives(self, negatives, negative_scores):
        """The k negatives that each row uses, and their scores."""
        if self.order == "score" and negatives.shape[1]:
            # padding goes last, before it what has no score
            sort_key = negative_scores.nan_to_num(nan=-1.0).masked_fill(negatives < 0, -2.0)
            by_score = sort_key.argsort(dim=1, descending=True, stable=True)
            negatives = negatives.gather(1, by_score)
            negative_scores = negative_scores.gather(1, by_score)
        return negatives[:, : self.num_negatives], negative_scores[:, : self.num_negatives]

    def _usable_rows(self, present, positive_score, negative_scores):
        """Which rows `[B]` have all the judge's scores that they need; `present` `[B, k]` are their negatives."""
        scored = (negative_scores.isfinite() | ~present).all(1)
        usable = positive_score.isfinite() & scored & present.any(1)
        if self.unscored == "drop":
            # 1.0 for every negative is what UniME-V2's file says where none survived
            invented = ((negative_scores == 1) | ~present).all(1) & (positive_score < 1)
            usable &= ~invented
        return usable

    def _divergence(self, log_p, log_q, mask):
        """`[b]` from log-probabilities `[b, 1 + k]`."""
        # masked entries are minus infinity, and the difference of two of these is NaN
        log_p = log_p.masked_fill(mask, 0.0)
        log_q = log_q.masked_fill(mask, 0.0)

        if self.divergence == "jeffreys":
            return (kl(log_p, log_q, mask) + kl(log_q, log_p, mask)) / 2
        if self.divergence == "js":
            log_middle = torch.logaddexp(log_p, log_q) - math.log(2)
            return (kl(log_p, log_middle, mask) + kl(log_q, log_middle, mask)) / 2

        # "released": each distribution is floored where it is the approximation, and exact where it is the target
        floored_p = (log_p.exp() + 1e-8).log()
        floored_q = (log_q.exp() + 1e-8).log()
        return (kl(log_q, floored_p, mask) + kl(log_p, floored_q, mask)) / 2


def rows_of_table(places: torch.Tensor, count: int) -> torch.Tensor:
    """Where `[B, T]` the places `[B, K]` of each row are in a table of `count` rows; places below zero are none."""
    row, column = (places >= 0).nonzero(as_tuple=True)
    marked = torch.zeros(len(places), count, dtype=torch.bool, device=places.device)
    marked[row, places[row, column]] = True
    return marked


def weighted_mean(losses: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The mean of losses `[N]` with weights `[N]`; zero, with a gradient, where all weights are zero."""
    weight = weight.to(losses)
    return (losses * weight).sum() / weight.sum().clamp(min=torch.finfo(losses.dtype).tiny)


def masked_log_softmax(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Log-probabilities `[N, M]` of each row over the entries that are not masked, minus infinity at the others."""
    return F.log_softmax(logits.masked_fill(mask, float("-inf")), dim=1)


def kl(log_p: torch.Tensor, log_q: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """KL(P || Q) of each row `[N]` from log-probabilities `[N, M]`, over the entries that are not masked."""
    log_p = log_p.masked_fill(mask, 0.0)
    log_q = log_q.masked_fill(mask, 0.0)
    return (log_p.exp().masked_fill(mask, 0.0) * (log_p - log_q)).sum(1)
