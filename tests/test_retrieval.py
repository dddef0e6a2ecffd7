"""Exact retrieval against a float64 reference, whatever the blocks; FAISS gives the same."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unime.devices_unime import is_amd
from unime.mining import retrieval
from unime.mining.retrieval import FaissIndex, exact_top_k


def reference(queries, corpus, k, below=None, excluded=None):
    scores = queries.astype(np.float64) @ corpus.astype(np.float64).T
    if below is not None:
        scores[scores >= np.asarray(below)[:, None]] = -np.inf
    for row, own in enumerate(excluded or []):
        scores[row, own] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    values = np.take_along_axis(scores, order, 1)
    pad = ((0, 0), (0, k - order.shape[1]))
    order, values = np.pad(order, pad), np.pad(values, pad, constant_values=-np.inf)
    return np.where(values == -np.inf, -1, order), values


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 700),
    st.integers(1, 12),
    st.integers(1, 4),
    st.integers(3, 800),
    st.booleans(),
    st.integers(0, 99),
)
def test_every_block_size_gives_the_reference(q, n, k, block, corpus_block, rules, seed):
    """Small integers: scores are exact in float32, and many are equal."""
    rng = np.random.default_rng(seed)
    queries, corpus = (rng.integers(-3, 4, (rows, 3)).astype(np.float32) for rows in (q, n))
    below = rng.integers(-5, 9, q).astype(np.float32) if rules else None
    excluded = [rng.integers(0, n, rng.integers(0, 5)).tolist() for _ in range(q)] if rules else None
    indices, scores = exact_top_k(queries, corpus, k, below, excluded, block, corpus_block, screen=seed % 2 == 0)
    expected_indices, expected = reference(queries, corpus, k, below, excluded)
    assert (scores == expected).all()
    assert ((indices == -1) == (expected_indices == -1)).all()
    for row, own in enumerate(indices):
        own = own[own >= 0]
        assert len(set(own)) == len(own) and (queries[row] @ corpus[own].T == scores[row, : len(own)]).all()
        assert rules is False or not set(own) & set(excluded[row])


def test_large_blocks_take_the_shortcut_and_keep_order(monkeypatch):
    rng = np.random.default_rng(0)
    queries, corpus = rng.normal(size=(7, 16)).astype(np.float32), rng.normal(size=(5000, 16)).astype(np.float32)
    assert 2 * 3 * retrieval.GROUP < 5000
    indices, scores = exact_top_k(queries, corpus, 3)
    expected, values = reference(queries, corpus, 3)
    assert (indices == expected).all() and np.allclose(scores, values, atol=1e-5)


@pytest.mark.parametrize("spread", [1.0, 0.02])
@pytest.mark.parametrize("rules", [False, True])
def test_a_short_list_in_bfloat16_leaves_nothing_out(spread, rules, monkeypatch):
    """Spread out, the list proves itself for nearly all rows; with all scores nearly alike it must not be trusted."""
    rng = np.random.default_rng(1)
    queries, corpus = (rng.normal(size=(rows, 32)).astype(np.float32) * spread for rows in (40, 6000))
    if spread < 1:
        queries[:, 0], corpus[:, 0] = 1, 1
    scores = queries @ corpus.T
    below = np.quantile(scores, 0.995, axis=1) if rules else None
    excluded = [np.argsort(-row)[3:9].tolist() for row in scores] if rules else None
    direct = []
    own = retrieval._direct
    monkeypatch.setattr(retrieval, "_direct", lambda part, *rest: direct.append(len(part)) or own(part, *rest))
    found, values = exact_top_k(queries, corpus, 4, below, excluded, screen=True)
    assert sum(direct) < 40 if spread == 1 and not rules else direct
    expected, others = exact_top_k(queries, corpus, 4, below, excluded, screen=False)
    assert (found == expected).all() and np.allclose(values, others, atol=1e-5)
    if spread == 1:
        assert (found == reference(queries, corpus, 4, below, excluded)[0]).all()


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="of one width"):
        exact_top_k(np.zeros((2, 3)), np.zeros((2, 4)), 1)
    with pytest.raises(ValueError, match="k must be positive"):
        exact_top_k(np.zeros((2, 3)), np.zeros((2, 3)), 0)
    with pytest.raises(ValueError, match="not finite"):
        exact_top_k(np.ones((2, 3)), np.array([[1, 1, 1], [1, np.nan, 1]]), 1)


def test_faiss_finds_the_same_and_goes_deeper_where_rules_leave_too_few():
    pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    rng = np.random.default_rng(0)
    queries, corpus = rng.normal(size=(20, 8)).astype(np.float32), rng.normal(size=(600, 8)).astype(np.float32)
    below, excluded = np.linspace(-9, 6, 20), [[row, row + 1] for row in range(20)]
    expected, values = exact_top_k(queries, corpus, 5, below, excluded)
    indices, scores = FaissIndex(corpus).top_k(queries, 5, below, excluded)
    assert (indices == expected).all() and np.allclose(scores, values, atol=1e-5)
    whole = FaissIndex(corpus, "ivf", lists=6, probes=6)
    assert (whole.top_k(queries, 5, below, excluded)[0] == expected).all(), "with all cells looked into, ivf is exact"
    some = FaissIndex(corpus, "ivf", lists=24, probes=6).top_k(queries, 5)[0]
    shared = np.mean([len(set(a) & set(b)) for a, b in zip(some, exact_top_k(queries, corpus, 5)[0])])
    assert 2.5 < shared < 5
    with pytest.raises(ValueError, match="'exact', 'flat' or 'ivf'"):
        FaissIndex(corpus, "tree")


def test_the_blas_of_numpy_gives_the_same(monkeypatch):
    rng = np.random.default_rng(3)
    queries, corpus = rng.normal(size=(9, 24)).astype(np.float32), rng.normal(size=(3000, 24)).astype(np.float32)
    expected = exact_top_k(queries, corpus, 4, block=4, corpus_block=1000)
    monkeypatch.setattr(retrieval, "is_amd", lambda: not is_amd())
    indices, scores = exact_top_k(queries, corpus, 4, block=4, corpus_block=1000)
    assert (indices == expected[0]).all() and np.allclose(scores, expected[1], atol=1e-5)
