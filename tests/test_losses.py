"""HardNegativeInfoNCE against a reference written out in plain float64, its gradient, and cases made by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from unime.data.schema import content_hash
from unime.trainers.losses import HardNegativeInfoNCE, JudgeAlignment, MatryoshkaLoss, SimilarityDistillation
from unime.trainers.temperatures import DatasetTemperatures, LearnTemperatures


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
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 8),
    k=st.sampled_from([None, 1, 2, 8, 50]),
    margin=st.sampled_from([None, -0.2, 0.0, 0.1, 0.5]),
    negatives=st.integers(0, 3),
)
@settings(max_examples=120, deadline=None)
def test_equals_the_float64_reference(seed, rows, k, margin, negatives):
    generator = torch.Generator().manual_seed(seed)
    table = F.normalize(torch.randn(12, 6, generator=generator, dtype=torch.float64), dim=1)
    query, positive = (torch.randint(0, 12, (rows,), generator=generator) for _ in range(2))
    more = torch.randint(-1, 12, (rows, negatives), generator=generator)
    loss = HardNegativeInfoNCE(0.05, k, margin)(table.float(), query, positive, more).loss
    expected = reference(table.tolist(), query.tolist(), positive.tolist(), more.tolist(), 0.05, k, margin)
    assert loss.item() == pytest.approx(expected, abs=2e-5, rel=1e-4)


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
    assert output.loss.item() == 0.0
    assert output.metrics["duplicates_masked"] > 0


def test_the_other_positive_of_an_equal_query_is_no_negative():
    table = unit(0.0, 0.3, 0.1)
    assert float(HardNegativeInfoNCE(0.05)(table, torch.tensor([0, 0]), torch.tensor([1, 2])).loss) == 0.0


def test_what_is_right_as_well_is_no_negative_in_either_direction():
    # 0 and 1 are queries, 2 and 3 their positives; 3 is right for 0 as well
    table = unit(0.0, 0.4, 0.1, 0.3)
    query, positive = torch.tensor([0, 1]), torch.tensor([2, 3])
    also_positive = torch.zeros(2, 4, dtype=torch.bool)
    also_positive[0, 3] = True

    # against what stays: of query 1 the candidate 2, and of positive 2 the query 1
    def alone(of, right, wrong):
        logits = torch.tensor([math.cos(of - right), math.cos(of - wrong)], dtype=torch.float64) / 0.05
        return -float(logits.log_softmax(0)[0])

    forward = HardNegativeInfoNCE(0.05, None, None)
    assert float(forward(table, query, positive, also_positive=also_positive).loss) == pytest.approx(
        alone(0.4, 0.3, 0.1) / 2, rel=1e-5
    )
    both = HardNegativeInfoNCE(0.05, None, None, symmetric=True)
    backwards = alone(0.1, 0.0, 0.4) / 2
    assert float(both(table, query, positive, also_positive=also_positive).loss) == pytest.approx(
        (alone(0.4, 0.3, 0.1) / 2 + backwards) / 2, rel=1e-5
    )


def test_rows_have_weights():
    torch.manual_seed(0)
    table = F.normalize(torch.randn(6, 8, dtype=torch.float64), dim=1)
    query, positive = torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])
    loss = HardNegativeInfoNCE(0.5, None, None)
    rows = []
    for row in range(3):
        weight = torch.zeros(3).index_fill_(0, torch.tensor([row]), 1.0)
        rows.append(float(loss(table, query, positive, weight=weight).loss))
    assert float(loss(table, query, positive).loss) == pytest.approx(sum(rows) / 3)
    weighted = loss(table, query, positive, weight=torch.tensor([3.0, 1.0, 0.0])).loss
    assert float(weighted) == pytest.approx((3 * rows[0] + rows[1]) / 4)
    nothing = loss(table.requires_grad_(), query, positive, weight=torch.zeros(3)).loss
    nothing.backward()
    assert nothing.item() == 0 and not table.grad.any()

    # the judge's distribution likewise
    scores = torch.tensor([0.9, 0.8]), torch.tensor([[0.1], [0.3]])
    arguments = (table.detach(), torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([[4], [5]]), *scores)
    align = JudgeAlignment(0.5)
    first, second = (float(align(*arguments, weight=torch.tensor(w)).loss) for w in ([1.0, 0.0], [0.0, 1.0]))
    assert float(align(*arguments, weight=torch.tensor([1.0, 3.0])).loss) == pytest.approx((first + 3 * second) / 4)


def test_filtered_candidates_never_come_back_when_too_few_survive():
    table = unit(0.0, 1.0, 0.1, 0.2)  # the negatives 2 and 3 are far more similar than the positive 1
    query, positive, negatives = torch.tensor([0]), torch.tensor([1]), torch.tensor([[2, 3]])
    filtered = HardNegativeInfoNCE(0.05, 8, 0.1)(table, query, positive, negatives)
    assert filtered.loss.item() == 0.0 and filtered.metrics["filtered_share"] == 1.0
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


# The options of the contrastive loss


def table_of(rows, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64), dim=1)


QUERY, POSITIVE = torch.tensor([0, 1, 2, 3]), torch.tensor([4, 5, 6, 7])


def info_nce(positive, negatives, temperature, weights=None):
    weights = weights or [0.0] * len(negatives)
    logits = [positive / temperature] + [n / temperature + w for n, w in zip(negatives, weights)]
    highest = max(logits)
    return highest + math.log(sum(math.exp(x - highest) for x in logits)) - logits[0]


def similarities(table):
    scores = (table[QUERY] @ table[POSITIVE].T).tolist()
    return [(row[i], sorted((s for j, s in enumerate(row) if j != i), reverse=True)) for i, row in enumerate(scores)]


def loss_of(table, **options):
    return float(HardNegativeInfoNCE(0.1, **options)(table, QUERY, POSITIVE).loss)


def test_shortage_is_masked_duplicated_or_as_released():
    table, margin = table_of(8), -0.3
    expected = dict.fromkeys(("mask", "duplicate", "released"), 0.0)
    for own, others in similarities(table):
        survivors = [s for s in others if s <= own + margin]
        filtered = [s for s in others if s > own + margin]
        again = [survivors[i % len(survivors)] for i in range(3)] if survivors else []
        # what topk returns among the excluded, all at minus infinity, is its own affair; all four are taken here
        expected["mask"] += info_nce(own, survivors, 0.1) / 4
        expected["duplicate"] += info_nce(own, again, 0.1) / 4
        expected["released"] += info_nce(own, survivors + filtered + [own], 0.1) / 4
    options = {"false_negative_margin": margin}
    assert loss_of(table, num_hard_negatives=3, shortage="mask", **options) == pytest.approx(expected["mask"])
    assert loss_of(table, num_hard_negatives=3, shortage="duplicate", **options) == pytest.approx(
        expected["duplicate"]
    )
    assert loss_of(table, num_hard_negatives=4, shortage="released", **options) == pytest.approx(expected["released"])
    assert len({round(value, 6) for value in expected.values()}) == 3


def test_released_takes_copies_of_the_positive_for_negatives():
    """Every positive twice, all else far away: the released loss cannot fall below ln 2, ours reaches zero."""
    table = unit(0.0, 0.0, math.pi, math.pi, 0.0, math.pi)
    query, positive = torch.tensor([0, 1, 2, 3]), torch.tensor([4, 4, 5, 5])
    released = HardNegativeInfoNCE(0.02, 1, 0.1, shortage="released")(table, query, positive).loss
    assert float(released) == pytest.approx(math.log(2), abs=1e-6)
    assert float(HardNegativeInfoNCE(0.02, 1, 0.1)(table, query, positive).loss) == pytest.approx(0, abs=1e-6)


def test_selection_threshold_hardness_and_both_directions():
    table = table_of(8, seed=3)
    rows = similarities(table)
    hard = sum(info_nce(own, others[:2], 0.1) for own, others in rows) / 4
    easy = sum(info_nce(own, others[-2:], 0.1) for own, others in rows) / 4
    weighted = sum(info_nce(own, others[:2], 0.1, [9 * s for s in others[:2]]) for own, others in rows) / 4
    absolute = sum(info_nce(own, [s for s in others if s <= 0.2], 0.1) for own, others in rows) / 4
    off = {"false_negative_margin": None, "num_hard_negatives": 2}
    assert loss_of(table, **off) == pytest.approx(hard)
    assert loss_of(table, selection="easy", **off) == pytest.approx(easy)
    assert loss_of(table, hardness=9.0, **off) == pytest.approx(weighted)
    assert loss_of(table, num_hard_negatives=None, false_negative_margin=0.2, threshold="absolute") == pytest.approx(
        absolute
    )
    random = loss_of(table, selection="random", **off)
    assert easy <= random <= hard and loss_of(table, selection="random", **off) == random
    back = HardNegativeInfoNCE(0.1, 2, None)(table, POSITIVE, QUERY).loss
    assert loss_of(table, symmetric=True, **off) == pytest.approx((hard + float(back)) / 2)


@pytest.mark.parametrize(
    "options", [{"shortage": "duplicate"}, {"shortage": "released"}, {"symmetric": True}, {"hardness": 2.0}]
)
def test_options_pass_gradcheck(options):
    loss = HardNegativeInfoNCE(0.5, 2, 0.4, **options)
    if options.get("hardness"):  # the weight is a constant: differentiating it numerically would not see that
        table = table_of(8).requires_grad_()
        (gradient,) = torch.autograd.grad(loss(table, QUERY, POSITIVE).loss, table)
        assert torch.isfinite(gradient).all() and gradient.abs().max() > 0
        return
    assert torch.autograd.gradcheck(lambda x: loss(x, QUERY, POSITIVE).loss, (table_of(8).requires_grad_(),))


def test_a_temperature_at_the_floor_rises_again():
    temperatures = DatasetTemperatures(["a"], start=0.02)
    callback = LearnTemperatures(temperatures, learning_rate=0.05)
    rows = torch.tensor([content_hash("a")])
    values = []
    for direction in [1.0] * 60 + [-1.0] * 60:  # first the loss asks for less, then for more
        (direction * temperatures(rows).sum()).backward()
        callback.on_pre_optimizer_step(None, None, None)
        values.append(temperatures(rows).item())
    assert min(values) == pytest.approx(0.01) and values[59] == pytest.approx(0.01)
    assert values[-1] > 0.02, "it has come back"


@pytest.mark.parametrize("name", ["contrastive", "released", "distillation", "alignment"])
def test_half_precision_is_left_before_similarities_are_taken(name):
    half = table_of(8, seed=5).detach().bfloat16()
    negatives = torch.tensor([[1, 3], [0, 5], [2, 7], [6, 0]])
    scores = torch.tensor([[0.2, 0.3], [0.1, 0.4], [0.6, 0.1], [0.2, 0.2]])
    losses = {
        "contrastive": lambda x: HardNegativeInfoNCE()(x, QUERY, POSITIVE),
        "released": lambda x: HardNegativeInfoNCE(shortage="released")(x, QUERY, POSITIVE),
        "distillation": lambda x: SimilarityDistillation()(x, x.flip(0)),
        "alignment": lambda x: JudgeAlignment()(x, QUERY, POSITIVE, negatives, torch.full((4,), 0.9), scores),
    }
    loss = losses[name](half).loss
    assert loss.dtype == torch.float32
    # the same embeddings in double precision: only their own rounding is left, which both have
    assert loss.item() == pytest.approx(losses[name](half.double()).loss.item(), rel=1e-5)


class NoReading(TorchDispatchMode):
    """Refuses what copies a number to Python, for which a GPU would be waited for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default, "a number is read"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["contrastive", "released", "distillation", "alignment"])
def test_figures_for_the_logs_are_not_read_and_hold_no_graph(name):
    table = table_of(8, seed=5).detach().requires_grad_()
    negatives = torch.tensor([[1, 3], [0, 5], [2, 7], [6, 0]])
    scores = torch.full((4, 2), 0.2)
    losses = {
        "contrastive": lambda x: HardNegativeInfoNCE()(x, QUERY, POSITIVE, negatives),
        "released": lambda x: HardNegativeInfoNCE(shortage="released")(x, QUERY, POSITIVE),
        "distillation": lambda x: SimilarityDistillation()(x, x.detach().flip(0)),
        "alignment": lambda x: JudgeAlignment()(x, QUERY, POSITIVE, negatives, torch.full((4,), 0.9), scores),
    }
    with NoReading():
        output = losses[name](table)
    assert output.loss.requires_grad and output.metrics
    assert not any(torch.as_tensor(value).requires_grad for value in output.metrics.values())


def test_temperatures_of_rows_follow_their_data_set():
    table = table_of(8, seed=3)
    temperatures = DatasetTemperatures(["b", "a", "b"], start=0.2)
    with torch.no_grad():
        temperatures.log_temperature.copy_(torch.tensor([0.3, 1e-4]).log())
    datasets = torch.tensor([content_hash(name) for name in "aabb"])
    found = temperatures(datasets)
    assert found.tolist() == pytest.approx([0.3, 0.3, 0.01, 0.01]), "none below 0.01"
    loss = HardNegativeInfoNCE(num_hard_negatives=None, false_negative_margin=None)
    each = [HardNegativeInfoNCE(t, None, None)(table, QUERY, POSITIVE).loss for t in (0.3, 0.01)]
    mixed = loss(table, QUERY, POSITIVE, None, found).loss
    assert min(loss.item() for loss in each) < mixed.item() < max(loss.item() for loss in each)
    by_hand = 0.0
    for row, t in enumerate(found.double().tolist()):
        scores = [float(table[QUERY[row]] @ table[p]) / t for p in POSITIVE]
        by_hand += math.log(sum(math.exp(s - scores[row]) for s in scores)) / 4
    assert mixed.item() == pytest.approx(by_hand, rel=1e-6)
    own = torch.tensor([0.3, 0.2, 0.1, 0.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: loss(table, QUERY, POSITIVE, None, t).loss, (own,))


def test_matryoshka_is_the_mean_over_normalised_prefixes():
    table, inner = table_of(8), HardNegativeInfoNCE(0.1, 2, None)
    expected = sum(float(inner(F.normalize(table[:, :d], dim=1), QUERY, POSITIVE).loss) for d in (6, 3, 2)) / 3
    assert float(MatryoshkaLoss(inner, [2, 6, 3])(table, QUERY, POSITIVE).loss) == pytest.approx(expected)
    with pytest.raises(ValueError, match="width 7 exceeds the embedding's 6"):
        MatryoshkaLoss(inner, [7])(table, QUERY, POSITIVE)


@pytest.mark.parametrize(
    "options",
    [{"shortage": "x"}, {"selection": "x"}, {"threshold": "x"}, {"temperature": 0.0}, {"num_hard_negatives": 0}],
)
def test_unknown_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        HardNegativeInfoNCE(**options)


# Distillation


def row_softmax(table, temperature, keep):
    rows = []
    for i, a in enumerate(table):
        logits = [sum(x * y for x, y in zip(a, b)) / temperature for b in table]
        others = [x for j, x in enumerate(logits) if keep or j != i]
        highest = max(others)
        total = highest + math.log(sum(math.exp(x - highest) for x in others))
        rows.append([x - total for j, x in enumerate(logits) if keep or j != i])
    return rows


@pytest.mark.parametrize("direction", ["student_teacher", "teacher_student", "symmetric"])
@pytest.mark.parametrize("diagonal", ["masked", "kept"])
def test_distillation_equals_the_float64_reference(direction, diagonal):
    student, teacher = table_of(7), table_of(7, width=9, seed=1)
    s = row_softmax(student.tolist(), 0.1, diagonal == "kept")
    t = row_softmax(teacher.tolist(), 0.2, diagonal == "kept")
    divergence = lambda p, q: sum(math.exp(a) * (a - b) for x, y in zip(p, q) for a, b in zip(x, y)) / 7  # noqa: E731
    expected = {"student_teacher": divergence(s, t), "teacher_student": divergence(t, s)}
    expected["symmetric"] = sum(expected.values()) / 2
    loss = SimilarityDistillation(0.1, direction, diagonal, teacher_temperature=0.2)
    assert loss(student, teacher * 3).loss.item() == pytest.approx(expected[direction], rel=1e-9)
    assert float(loss(student.float(), teacher.float()).loss) == pytest.approx(expected[direction], rel=1e-4)
    table = student.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher).loss, (table,))


def test_distillation_is_zero_for_a_perfect_student_and_for_a_single_text():
    table = table_of(5)
    assert float(SimilarityDistillation()(table, table).loss) == pytest.approx(0, abs=1e-9)
    alone = table[:1].clone().requires_grad_()
    loss = SimilarityDistillation()(alone, table[:1]).loss
    loss.backward()
    assert loss.item() == 0 and not alone.grad.any()


def test_a_kept_diagonal_is_dead_at_small_temperatures():
    """At 0.02 both rows are one-hot when a text may be compared with itself (specification of the paper's eq. 2)."""
    student = F.normalize(table_of(100, 256) + 1 / 16, dim=1).requires_grad_()  # mean cosine 0.5
    teacher = F.normalize(table_of(100, 256, seed=1) + 1 / 32, dim=1)  # 0.2
    norms = {}
    for diagonal in ("kept", "masked"):
        loss = SimilarityDistillation(0.02, "student_teacher", diagonal)(student, teacher).loss
        (gradient,) = torch.autograd.grad(loss, student)
        norms[diagonal] = gradient.norm().item()
    assert norms["kept"] < norms["masked"] / 1000


# Alignment with a judge


def judged(rows=4, k=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    table = table_of(rows * (k + 2), seed=seed)
    query, positive = torch.arange(rows), torch.arange(rows, 2 * rows)
    negatives = torch.arange(2 * rows, rows * (k + 2)).view(rows, k)
    scores = torch.rand(rows, k + 1, generator=generator, dtype=torch.float64)
    return table, query, positive, negatives, scores[:, 0], scores[:, 1:]


def divergence_by_hand(table, query, positive, negatives, positive_score, negative_scores, t, kind):
    total, rows = 0.0, 0
    for q, c, ns, s, ss in zip(*(x.tolist() for x in (query, positive, negatives, positive_score, negative_scores))):
        kept = [(n, score) for n, score in zip(ns, ss) if n >= 0]
        cosines = [float(table[q] @ table[i]) / t for i in [c, *(n for n, _ in kept)]]
        judge = [x / t for x in [s, *(score for _, score in kept)]]
        log = lambda xs: [x - max(xs) - math.log(sum(math.exp(y - max(xs)) for y in xs)) for x in xs]  # noqa: E731
        p, q_ = log(cosines), log(judge)
        d = lambda a, b: sum(math.exp(x) * (x - y) for x, y in zip(a, b))  # noqa: E731
        if kind == "jeffreys":
            total += (d(p, q_) + d(q_, p)) / 2
        elif kind == "js":
            m = [math.log((math.exp(x) + math.exp(y)) / 2) for x, y in zip(p, q_)]
            total += (d(p, m) + d(q_, m)) / 2
        else:
            floor = lambda xs: [math.log(math.exp(x) + 1e-8) for x in xs]  # noqa: E731
            total += (d(q_, floor(p)) + d(p, floor(q_))) / 2
        rows += 1
    return total / rows


@pytest.mark.parametrize("kind", ["jeffreys", "js", "released"])
def test_alignment_equals_the_float64_reference(kind):
    batch = judged()
    batch[3][1, 2] = -1  # one row has two negatives only
    loss = JudgeAlignment(0.1, divergence=kind)
    expected = divergence_by_hand(*batch, 0.1, kind)
    assert loss(*batch).loss.item() == pytest.approx(expected, rel=1e-9)
    assert loss(batch[0].float(), *batch[1:]).loss.item() == pytest.approx(expected, rel=1e-4)
    table = batch[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, *batch[1:]).loss, (table,))


def test_the_number_and_order_of_negatives_are_options():
    table, query, positive, negatives, score, scores = judged(k=4)
    best = scores.argsort(dim=1, descending=True)[:, :2]
    first = divergence_by_hand(table, query, positive, negatives[:, :2], score, scores[:, :2], 0.1, "jeffreys")
    top = divergence_by_hand(
        table, query, positive, negatives.gather(1, best), score, scores.gather(1, best), 0.1, "jeffreys"
    )
    batch = (table, query, positive, negatives, score, scores)
    assert float(JudgeAlignment(0.1, num_negatives=2)(*batch).loss) == pytest.approx(first)
    assert float(JudgeAlignment(0.1, num_negatives=2, order="score")(*batch).loss) == pytest.approx(top)
    assert first != pytest.approx(top)


def test_rows_without_judge_scores_are_left_out_and_counted():
    table, query, positive, negatives, score, scores = judged()
    score, scores, negatives = score.clone(), scores.clone(), negatives.clone()
    score[0], scores[1, 2] = float("nan"), float("nan")
    negatives[2] = -1
    batch = (table, query, positive, negatives, score, scores)
    output = JudgeAlignment(0.1)(*batch)
    alone = JudgeAlignment(0.1)(*(x if x is table else x[3:] for x in batch))
    assert output.loss.item() == pytest.approx(alone.loss.item()) and output.metrics["rows_left_out"] == 0.75
    table = table.clone().requires_grad_()
    none = JudgeAlignment(0.1)(table, query[:1], positive[:1], negatives[:1], score[:1], scores[:1])
    none.loss.backward()
    assert none.loss.item() == 0 and not table.grad.any()


def test_a_confidently_wrong_row_keeps_its_gradient_unless_released():
    """The judge is sure of the positive (0.95 against 0.05), the student of a negative (cosine 0 against 0.9)."""
    angles = [math.acos(x) for x in (0.0, 0.9, 0.0, 0.0)]
    for kind, low, high in (("jeffreys", 5, 100), ("released", 0, 1e-3), ("js", 0, 1e-3)):
        table = unit(0.0, *angles).double().requires_grad_()
        loss = JudgeAlignment(0.02, divergence=kind)
        score, scores = torch.tensor([0.95]), torch.tensor([[0.05, 0.05, 0.05]])
        value = loss(table, torch.tensor([0]), torch.tensor([1]), torch.tensor([[2, 3, 4]]), score, scores).loss
        (gradient,) = torch.autograd.grad(value, table)
        assert low <= float(gradient[1].norm()) <= high, kind


@pytest.mark.parametrize("order", ["file", "score"])
@pytest.mark.parametrize("k", [2, 3])
def test_candidates_of_other_rows_are_added_and_none_that_was_mined_for_the_row(order, k):
    batch = judged()
    table, query, positive, negatives, _, scores = batch
    negatives[1, 2] = -1
    negatives[2, 0] = positive[3]  # another row's answer, which the judge scored for this one
    also = torch.zeros(len(query), len(table), dtype=torch.bool)
    also[0, positive[2]] = True  # right for the first row, too

    used = []
    for row, row_scores in zip(negatives.tolist(), scores.tolist()):
        present = [(score, item) for score, item in zip(row_scores, row) if item >= 0]
        if order == "score":
            present.sort(reverse=True)
        used.append([item for _, item in present[:k]])
    everything = {*positive.tolist(), *(item for items in used for item in items)}
    extra = 0.0
    for row, (q, right) in enumerate(zip(query.tolist(), positive.tolist())):
        masked = {right, *negatives[row].tolist(), *also[row].nonzero()[:, 0].tolist()}
        logits = [float(table[q] @ table[i]) / 0.1 for i in [right, *sorted(everything - masked)]]
        extra += math.log(sum(map(math.exp, logits))) - logits[0]

    plain = JudgeAlignment(0.1, num_negatives=k, order=order)(*batch).loss
    added = JudgeAlignment(0.1, num_negatives=k, order=order, in_batch_weight=0.5)(*batch, also_positive=also).loss
    assert float(added) == pytest.approx(float(plain) + 0.5 * extra / len(query))


def test_rows_with_the_released_fallback_score_are_left_out_unless_asked_for():
    table, query, positive, negatives, positive_score, negative_scores = judged()
    negative_scores[1] = 1.0  # no negative survived the judge there
    negative_scores[2, 0] = float("nan")
    batch = (table, query, positive, negatives, positive_score, negative_scores)
    assert JudgeAlignment(num_negatives=3)(*batch).metrics["rows_left_out"] == 0.5
    kept = JudgeAlignment(num_negatives=3, unscored="released")(*batch)
    filled = (*batch[:5], negative_scores.nan_to_num(nan=1.0))
    expected = divergence_by_hand(*filled, 0.02, "jeffreys")
    assert kept.metrics["rows_left_out"] == 0 and kept.loss.item() == pytest.approx(expected, rel=1e-5)
