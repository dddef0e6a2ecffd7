"""UniME-V2's selection, its released rows, and SaHa's clusters."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import picture
from hypothesis import given
from hypothesis import strategies as st

from unime.data.readers import read_rows
from unime.data.schema import Example, Item, to_example
from unime.mining.inspection import likely_errors
from unime.mining.pipeline import Mining
from unime.mining.pools import Pool
from unime.mining.saha import clusters, is_label_type
from unime.mining.selection import allowed, cyclic_order, released_margin, select
from unime.mining.settings import MiningConfig
from unime.mining.symptoms import comparisons, judge_symptoms, label_symptoms
from unime.mining.writers import write_judged, write_judged_shards

SAMPLE = Path(__file__).resolve().parents[2] / "shared" / "data" / "unime_v2_rows.json"
scores = st.lists(st.one_of(st.floats(0, 1), st.just(float("nan"))), max_size=60)
margins = st.one_of(st.floats(0, 0.5), st.just("released"))


@given(st.integers(0, 80), st.integers(1, 9))
def test_cyclic_order_takes_every_place_once_by_strides(count, stride):
    order = cyclic_order(count, stride)
    assert sorted(order) == list(range(count))
    assert order == sorted(order, key=lambda place: (place % stride, place))


@given(st.floats(0, 1), scores, st.integers(1, 12), margins, st.integers(1, 7), st.integers(0, 9))
def test_selection_keeps_its_rule(positive, found, count, margin, stride, seed):
    chosen, repeated = (select(positive, found, count, margin, stride, how, "drop", seed) for how in (False, True))
    limit = positive - (released_margin(positive) if margin == "released" else margin)
    free = [place for place, score in enumerate(found) if score <= limit]
    assert allowed(positive, np.array(found), margin).nonzero()[0].tolist() == free
    if not free:
        assert chosen is repeated is None
        return
    places, own = chosen
    assert len(places) == len(own) == min(count, len(free)) and own == [found[place] for place in places]
    assert all(score <= limit for score in own) and set(places) <= set(free)
    expected = [free[place] for place in cyclic_order(len(free), stride)]
    assert places == expected[:count], "in stride order, each once"
    assert repeated[0] == (expected * count)[:count], "as in the paper: repeated from the start"


@given(st.floats(0, 0.3), scores, st.integers(0, 5))
def test_fallbacks_where_no_candidate_is_allowed(positive, found, seed):
    found = [score + 0.5 for score in found if not np.isnan(score)]
    assert select(positive, found, 4, fallback="drop") is None
    lowest, random = (
        select(positive, found, 4, repeat=True, fallback=name, seed=seed) for name in ("judge_lowest", "released")
    )
    if not found:
        assert lowest is None and random is None
        return
    kept = sorted(found)[:4]
    assert sorted(set(lowest[1])) == sorted(set(kept)) and len(lowest[0]) == 4
    assert random[1] == [1.0] * 4 and set(random[0]) <= set(range(len(found)))
    assert random == select(positive, found, 4, repeat=True, fallback="released", seed=seed)
    with pytest.raises(ValueError, match="fallback must be"):
        select(positive, found, fallback="none")


def test_the_random_fallback_depends_on_the_seed():
    found = {tuple(select(0.1, [0.9] * 50, 10, fallback="released", seed=seed)[0]) for seed in range(5)}
    assert len(found) == 5 and all(len(set(places)) == 10 for places in found)


def test_the_released_rows_keep_the_released_rule():
    if not SAMPLE.exists():
        pytest.skip("the sample of the released file is not here")
    for number, row in enumerate(json.loads(SAMPLE.read_text())):
        positive, own = row["query_pos_scores"], row["hard_negatives_scores"]
        names = [tuple(pair) for pair in row["hard_negatives"]]
        assert len(own) == len(names) == 10
        assert allowed(positive, np.array(own), "released").all(), f"row {number}: margin {positive - max(own)}"
        distinct = list(dict.fromkeys(zip(names, own)))
        assert (distinct * 10)[:10] == list(zip(names, own)), f"row {number}: repeats are cyclic"
        assert (row["pos_text"], row["pos_image"]) not in names
        again, values = select(positive, [score for _, score in distinct], 10, "released", stride=1, repeat=True)
        assert again == (list(range(len(distinct))) * 10)[:10] and values == own


def test_a_pool_tells_items_apart_by_content():
    rows = [
        Example(Item("q"), Item("A Dog", ""), dataset="x"),
        Example(Item("q"), Item("a  dog"), dataset="x"),
        Example(Item("q"), Item("cat"), dataset="y"),
        Example(Item("cat"), Item("<|image_1|>\nSee", "i.png"), dataset="y"),
        Example(Item("r"), Item("see", "i.png"), dataset="x"),
    ]
    pool = Pool.of(rows)
    assert list(pool.candidates) == [Item("A Dog"), Item("cat"), Item("<|image_1|>\nSee", "i.png")]
    assert [pair[:3] for pair in pool.pairs] == [(0, 0, "x"), (0, 0, "x"), (0, 1, "y"), (1, 2, "y"), (2, 2, "x")]
    assert [pair.item.text for pair in pool.pairs[:2]] == ["A Dog", "a  dog"], "each row keeps its own spelling"
    assert [pool.excluded(query) for query in range(3)] == [[0, 1], [1, 2], [2]], (
        "own positives of all rows, and the query itself"
    )
    assert {name: own.tolist() for name, own in pool.by_dataset().items()} == {"x": [0, 2], "y": [1, 2]}
    assert Item("a", "i").identity != Item("a", "j").identity


def unit(*rows):
    array = np.array(rows, np.float32)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def test_an_owner_unlike_the_anchor_is_the_better_negative():
    """Of three owners of near candidates, the two least similar to the anchor's query are taken."""
    queries = unit([1, 0], [1, 0.1], [1, 1], [0, 1])
    neighbours = np.array([[1, 2, 3, 0, -1, -1]] * 4)
    pairs = [(query, query) for query in range(4)]
    found = clusters(queries, queries, pairs, neighbours, size=2, pool_multiplier=2)
    assert found[0] == (0, [3, 2])
    assert clusters(queries, queries, pairs, neighbours, 2, 2, labels=True)[0] == (0, [1, 2]), "labels: the nearest"
    assert found[1:] == [(1, [3, 2])], "rows 2 and 3 are used up: row 1 is left for pass 2, which uses them again"


def test_duplicates_never_share_a_cluster():
    """Queries 1 and 2 own candidate 1; query 3 shares the anchor's positive; query 4 owns candidates 1 and 2."""
    queries = unit([1, 0], [0.9, 0.2], [0.9, 0.1], [0.8, 0.1], [0, 1], [0.1, 1])
    pairs = [(0, 0), (1, 1), (2, 1), (3, 0), (4, 1), (4, 2), (5, 2), (1, 1)]
    neighbours = np.tile(np.array([0, 1, 2]), (6, 1))
    found = clusters(queries, queries[:3], pairs, neighbours, size=3, pool_multiplier=1, labels=True)
    positives = [[pairs[row][1] for row in (anchor, *members)] for anchor, members in found]
    assert all(len(set(own)) == len(own) for own in positives)
    assert found[0] == (0, [2, 6]), "of the owners of candidate 1 the most similar; then the one of candidate 2"


@given(st.integers(0, 30))
def test_clusters_use_each_row_once_in_the_first_pass_and_cover_all_queries(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 40))
    queries, corpus = unit(*rng.normal(size=(count, 5))), unit(*rng.normal(size=(max(2, count // 2), 5)))
    pairs = [(int(rng.integers(count)), int(rng.integers(len(corpus)))) for _ in range(count)]
    neighbours = np.argsort(-queries @ corpus.T, axis=1)[:, :12]
    found = clusters(queries, corpus, pairs, neighbours, size=3, pool_multiplier=2)
    members = [pairs[row][0] for anchor, own in found for row in (anchor, *own)]
    anchors = [pairs[anchor][0] for anchor, _ in found]
    assert len(set(anchors)) == len(anchors)
    assert max(map(members.count, members), default=0) <= 3, "once in pass 1, twice in pass 2"
    for anchor, own in found:
        positives = [pairs[row][1] for row in (anchor, *own)]
        assert 1 <= len(own) <= 3 and len(set(positives)) == len(positives)
    assert found == clusters(queries, corpus, pairs, neighbours, size=3, pool_multiplier=2)


def test_label_sets_are_measured():
    assert is_label_type(2, 8_500) and is_label_type(397, 19_900) and is_label_type(1_000, 100_000)
    assert not is_label_type(9_000, 70_000) and not is_label_type(100_000, 100_000)


def test_a_judge_that_guesses_is_told():
    random = np.random.default_rng(0)
    positive, scores = random.random(50), random.random((50, 20))
    scores[3, 5:] = np.nan
    counted = [(p > s) + (p == s) / 2 for p, row in zip(positive, scores) for s in row if not np.isnan(s)]
    assert comparisons(positive, scores) == pytest.approx(sum(counted))
    assert comparisons(np.full(3, 0.5), np.full((3, 2), 0.5)) == 3.0, "of equal scores, half count"
    (line,) = judge_symptoms(0.51, 0.45, 0.445)
    assert "positives 0.450, candidates 0.445, and 51% of the candidates score below their positive" in line
    assert judge_symptoms(0.9, 0.8, 0.1) == []


def test_label_sets_are_told():
    rows = [Example(Item(f"q {n}"), Item(f"label {n % 3}"), dataset="digits") for n in range(60)]
    rows += [Example(Item(f"p {n}"), Item(f"caption {n}"), dataset="captions") for n in range(60)]
    (line,) = label_symptoms(Pool.of(rows), num_negatives=10)
    assert line.startswith("digits: 3 distinct positives in 60 pairs are labels, of which 2 can be negatives")


@pytest.mark.parametrize("layout", ["json", "parquet"])
def test_all_that_a_row_says_goes_through_the_files_of_mining(layout, tmp_path):
    names = [f"{number}.png" for number in range(8)]
    for number, name in enumerate(names):
        picture(number).save(tmp_path / name)
    paths = [str(tmp_path / name) for name in names]
    example = Example(
        query=Item("like <|image_1|> and <|image_2|>", paths[0], (paths[1],), "Find it."),
        positive=Item("", paths[2], (paths[3], paths[4])),
        negatives=[Item("a text"), Item("", paths[5], (paths[6],))],
        positive_score=0.75,
        negative_scores=[0.5, 0.25],
        dataset="several",
        other_positives=[Item("right, too"), Item("", paths[7], (paths[0],))],
        weight=2.5,
    )
    plain = Example(Item("a query"), Item("an answer"), [Item("no")], 1.0, [0.0], "plain")

    # what a pair of the pool knows of its row
    (pair, _) = Pool.of([example, plain]).pairs
    assert (pair.others, pair.weight) == (example.other_positives, 2.5)

    path = tmp_path / "judged.json"
    if layout == "json":
        write_judged(path, [example, plain], tmp_path)
    else:
        path = tmp_path / "judged"
        write_judged_shards(path, 2, 2, lambda numbers: [[example, plain][number] for number in numbers], tmp_path)
    assert list(map(to_example, read_rows(path, tmp_path))) == [example, plain]


def test_mined_rows_keep_weights_and_other_positives(backbone, tmp_path):
    lines = []
    for number in range(12):
        positives = [{"text": f"thing {number}"}, {"text": f"object {number}"}]
        lines.append(json.dumps({"query": f"what is {number}", "positives": positives, "weight": 1 + number}))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))

    # an untrained embedder may have nothing below a positive
    settings = {"embedder": str(backbone), "judge": str(backbone), "fallback": "judge_lowest", "top_k": 4}
    settings["delta"] = "none"
    mining = Mining(MiningConfig(data=str(tmp_path / "pairs.jsonl"), out=str(tmp_path / "mined"), **settings))
    mining.run()
    rows = list(map(to_example, read_rows(tmp_path / "mined" / "judged", tmp_path)))
    assert len(rows) == 24
    for row in rows:
        number = row.query.text.split()[-1]
        assert row.weight == 1 + int(number) and row.negatives
        assert {item.text for item in (row.positive, *row.other_positives)} == {f"thing {number}", f"object {number}"}


def test_a_positive_that_the_judge_doubts_is_a_likely_label_error():
    def row(positive, *scores):
        return {"positive_score": positive, "scores": np.array(scores)}

    # the fourth: most candidates are above it, and one is as sure as what is right; the fifth has a near miss only
    rows = [row(0.9, 0.1, 0.2), row(0.8, 0.3, 0.1), row(0.7, 0.2), row(0.2, 0.9, 0.5, 0.1), row(0.6, 0.65, 0.1)]
    assert likely_errors(rows) == {3: "the judge puts 2 of 3 candidates above it, one at 0.900"}
    assert likely_errors([*rows, row(0.4)]) == likely_errors(rows), "a row without candidates says nothing"

    # a judge that guesses knows no error
    assert likely_errors([row(0.5, 0.6, 0.4), row(0.2, 0.9, 0.5, 0.1), row(0.9, 0.8)]) == {}
