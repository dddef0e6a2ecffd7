"""From logits of answers to an order: log-odds, their probabilities, and sums with retrieval scores.

A probability near one has no room left in float32, so that all confident answers would be equal; log-odds tell them
apart, and every order is taken by these.
"""

import torch

OUTPUTS = ("probability", "logit")


def ranked(log_odds: torch.Tensor, output: str, retrieval_scores=None, weight: float = 1.0) -> tuple[list, list[int]]:
    """Scores of candidates, and the candidates in their order.

    Args:
        log_odds (`Tensor` `[N]`): of each candidate.
        output (`str`): `"probability"` or `"logit"`, as what the scores are given.
        retrieval_scores (`DoubleTensor` `[N]`, *optional*): the scores are these plus `weight` times the candidate's.
        weight (`float`, defaults to 1): of the candidate's score in that sum.

    Returns:
        N scores, and the N candidates, best first. Equal scores are put in order by log-odds; where these are equal as
        well, the order stays.
    """
    if retrieval_scores is None:
        scores = log_odds if output == "logit" else log_odds.sigmoid()
        return scores.tolist(), log_odds.argsort(descending=True, stable=True).tolist()

    log_odds = log_odds.double()
    scores = log_odds if output == "logit" else log_odds.sigmoid()
    sums = (retrieval_scores + weight * scores).tolist()

    # with a weight below zero, greater log-odds put a candidate lower, in a tie as well
    ties = (weight * log_odds).tolist()
    order = sorted(range(len(sums)), key=lambda i: (-sums[i], -ties[i]))
    return sums, order


def as_retrieval_scores(scores, count: int, weight: float) -> torch.Tensor:
    """Retrieval scores `[count]` in float64, one for each candidate.

    Args:
        scores: a list, an array or a tensor.
        count (`int`): how many candidates there are.
        weight (`float`): of the reranker's score beside them.

    Raises:
        ValueError: there are more or fewer, one is NaN (which no order has a place for), or `weight` is not finite.
    """
    if scores is None or len(scores) != count:
        raise ValueError("the strategy 'fused' needs one retrieval score for each candidate.")

    scores = torch.as_tensor(scores, dtype=torch.float64).cpu()
    missing = scores.isnan().nonzero().flatten().tolist()
    if missing:
        raise ValueError(
            f"the retrieval score of candidate {missing[0]} is NaN; the strategy 'fused' needs a number for each."
        )

    # NaN is not below it either
    if not abs(weight) < float("inf"):
        raise ValueError(f"weight must be finite, got {weight}.")
    return scores


def log_odds_among(log_weights: torch.Tensor) -> torch.Tensor:
    """Log-odds `[N]` of each of N outcomes against all others, from the logarithms `[N]` of what they weigh.

    The odds of an outcome that is almost certain are taken from the others, which loses no digit. A single outcome has
    infinite log-odds.
    """
    count = len(log_weights)
    others = log_weights.repeat(count, 1).fill_diagonal_(float("-inf"))  # [N, N]
    return log_weights - others.logsumexp(dim=1)


def rival_tokens(answers: list[list[int]]) -> dict[tuple, list[int]]:
    """Beginnings of answers after which several tokens may come -> these tokens, sorted."""
    followers = {}
    for answer in answers:
        for i, token in enumerate(answer):
            followers.setdefault(tuple(answer[:i]), set()).add(token)
    return {beginning: sorted(tokens) for beginning, tokens in followers.items() if len(tokens) > 1}


def log_probability(answer: list[int], chances: dict[tuple, dict]) -> float:
    """The sum of the log-probabilities of an answer's tokens; a token without a rival is certain."""
    total = 0.0
    for i, token in enumerate(answer):
        rivals = chances.get(tuple(answer[:i]), {})
        total += rivals.get(token, 0.0)
    return total


def occurrences(prepared, tokens: list[int]) -> torch.Tensor:
    """Which tokens occur in which prompts, bool `[N, len(tokens)]`.

    Args:
        prepared (`list[PreparedItem]`): the N prompts.
        tokens (`list[int]`): the tokens.
    """
    tokens = torch.tensor(tokens)
    return torch.stack([torch.isin(tokens, torch.tensor(entry.input_ids)) for entry in prepared])


def penalised(logits: torch.Tensor, occurs: torch.Tensor, penalty: float) -> torch.Tensor:
    """Logits `[N, A]` of answers after `generate`'s repetition penalty on those that occur in the prompt.

    Args:
        logits (`Tensor` `[N, A]`): of the answers.
        occurs (`BoolTensor` `[N, A]`): whether they occur in the prompt.
        penalty (`float`): above 0; 1 changes nothing.
    """
    if penalty == 1.0:
        return logits
    penalised_logits = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(occurs, penalised_logits, logits)  # [N, A]
