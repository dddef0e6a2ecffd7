"""HardNegativeInfoNCE against a reference written out in plain float64, its gradient, and cases made by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from unime.trainers.losses import HardNegativeInfoNCE


def reference(table, query, positive, negatives, temperature, k, margin):
    """Row by row with Python floats: own positives masked, false negatives dropped, the k hardest kept."""
    candidates = sorted({*positive, *(n for row in negatives for n in row if n >= 0)})
    total = 0.0
    for q, p in zip(query, positive):
        own = {other for other_query, other in zip(query, positive) if other_query == q}
        sim = {c: sum(a * b for a, b in zip(table[q], table[c])) for c in candidates}
        survivors = [sim[c] for c in candidates if c not in own and (margin is None or sim[c] <= sim[p] + margin)]
        hard = sorted(survivors, reverse=True)[: k or len(survivors)]
        logits = [sim[p] / temperature] + [s / temperature for s in hard]
        highest = max(logits)
        total += highest + math.log(sum(math.exp(x - highest) for x in logits)) - logits[0]
    return total / len(query)


@given(
    seed=st.integers(0, 10_000), rows=st.integers(1, 8), k=st.sampled_from([None, 1, 2, 8, 50]),
    margin=st.sampled_from([None, -0.2, 0.0, 0.1, 0.5]), negatives=st.integers(0, 3),
)  # fmt: skip
@settings(max_examples=120, deadline=None)
def test_equals_the_float64_reference(seed, rows, k, margin, negatives):
    generator = torch.Generator().manual_seed(seed)
    table = F.normalize(torch.randn(12, 6, generator=generator, dtype=torch.float64), dim=1)
    query, positive = (torch.randint(0, 12, (rows,), generator=generator) for _ in range(2))
    more = torch.randint(-1, 12, (rows, negatives), generator=generator)
    loss = HardNegativeInfoNCE(0.05, k, margin)(table.float(), query, positive, more).loss
    expected = reference(table.tolist(), query.tolist(), positive.tolist(), more.tolist(), 0.05, k, margin)
    assert float(loss) == pytest.approx(expected, abs=2e-5, rel=1e-4)


@pytest.mark.parametrize("k", [None, 2])
def test_gradient_passes_gradcheck(k):
    generator = torch.Generator().manual_seed(1)
    table = F.normalize(torch.randn(7, 4, generator=generator, dtype=torch.float64), dim=1).requires_grad_()
    query, positive, negatives = (
        torch.tensor([0, 1, 2]),
        torch.tensor([3, 4, 5]),
        torch.tensor([[6, -1], [-1, -1], [3, 6]]),
    )
    loss = HardNegativeInfoNCE(0.5, k, 0.5)
    assert torch.autograd.gradcheck(lambda x: loss(x, query, positive, negatives).loss, (table,))


def unit(*angles):
    return torch.tensor([[math.cos(a), math.sin(a)] for a in angles])


def test_copies_of_the_positive_are_never_negatives():
    table = unit(0.0, 0.1, 0.2)  # rows 0 and 1 share the positive 2 by index
    output = HardNegativeInfoNCE(0.05)(table, torch.tensor([0, 1]), torch.tensor([2, 2]))
    assert float(output.loss) == 0.0
    assert output.metrics["duplicates_masked"] > 0


def test_the_other_positive_of_an_equal_query_is_no_negative():
    table = unit(0.0, 0.3, 0.1)
    assert float(HardNegativeInfoNCE(0.05)(table, torch.tensor([0, 0]), torch.tensor([1, 2])).loss) == 0.0


def test_filtered_candidates_never_come_back_when_too_few_survive():
    table = unit(0.0, 1.0, 0.1, 0.2)  # the negatives 2 and 3 are far more similar than the positive 1
    query, positive, negatives = torch.tensor([0]), torch.tensor([1]), torch.tensor([[2, 3]])
    filtered = HardNegativeInfoNCE(0.05, 8, 0.1)(table, query, positive, negatives)
    assert float(filtered.loss) == 0.0 and filtered.metrics["filtered_share"] == 1.0
    assert float(HardNegativeInfoNCE(0.05, 8, None)(table, query, positive, negatives).loss) > 5


def test_more_hard_negatives_than_candidates_and_a_single_row():
    table = unit(0.0, 0.1, 1.0, 1.2)
    few = HardNegativeInfoNCE(0.05, 100)(table, torch.tensor([0, 2]), torch.tensor([1, 3])).loss
    assert torch.isfinite(few) and torch.equal(
        few, HardNegativeInfoNCE(0.05, None)(table, torch.tensor([0, 2]), torch.tensor([1, 3])).loss
    )
    assert float(HardNegativeInfoNCE(0.05)(table, torch.tensor([0]), torch.tensor([1])).loss) == 0.0


def test_a_row_without_negatives_gives_finite_zero_gradient():
    table = unit(0.0, 0.5).requires_grad_()
    HardNegativeInfoNCE(0.02)(table, torch.tensor([0]), torch.tensor([1])).loss.backward()
    assert torch.equal(table.grad, torch.zeros_like(table))


@pytest.mark.parametrize("bad", [{"temperature": 0.0}, {"num_hard_negatives": 0}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        HardNegativeInfoNCE(**bad)
