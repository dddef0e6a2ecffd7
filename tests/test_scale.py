"""Data larger than memory: what is read from the disk in parts is what was read whole."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from test_pipeline import contents

from unime.data import schema
from unime.data.readers import read_judged, read_rows
from unime.data.schema import Example, Item, to_dataset, to_example
from unime.jobs import results
from unime.jobs.embedding import Embedder
from unime.jobs.results import JobResults, SomeRows
from unime.jobs.shards import run_job
from unime.mining import ivfpq, pipeline, saha
from unime.mining.ivfpq import IvfPqIndex, build_ivfpq, measure_recall
from unime.mining.judging import Judge
from unime.mining.pipeline import Mining
from unime.mining.retrieval import exact_top_k
from unime.mining.settings import MiningConfig

VALUES = np.random.default_rng(0).standard_normal((23, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    """A job of 23 rows in shards of 5, of which rows 7, 21 and 22 failed, and all of one shard."""

    def work(rows):
        if {7, 10, 11, 12, 13, 14, 21, 22} & set(rows):
            raise ValueError("bad")
        return {"value": VALUES[rows], "name": np.array(rows)}

    out = tmp_path_factory.mktemp("job")
    run_job(out, list(range(23)), work, {}, shard_size=5, spare=True)
    return out


@hypothesis_settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 22), max_size=30), st.integers(-30, 30), st.integers(-30, 30), st.integers(1, 4))
def test_a_stored_array_is_indexed_as_one_in_memory(job, rows, start, stop, step):
    results = JobResults(job)
    expected = np.where(results.present[:, None], VALUES, 0)
    stored = results["value"]
    assert np.flatnonzero(~results.present).tolist() == [7, 10, 11, 12, 13, 14, 21, 22]
    assert results.names == ["name", "value"] and stored.shape == expected.shape and stored.dtype == np.float32
    assert (stored[start:stop:step] == expected[start:stop:step]).all()
    assert (stored[rows] == expected[np.array(rows, int)]).all()
    assert (stored[expected[:, 0] > 0] == expected[expected[:, 0] > 0]).all()
    assert (np.concatenate(list(stored.blocks())) == expected).all()
    numbers = np.array(rows, int)
    assert (SomeRows(stored, numbers)[2:9] == expected[numbers][2:9]).all()
    if rows:
        assert (stored[rows[0]] == expected[rows[0]]).all()


def test_rows_that_are_asked_for_often_are_read_in_pieces(job, monkeypatch):
    monkeypatch.setattr(results, "PIECE", 7 * VALUES[0].nbytes)
    rows = np.array([3, 1, 2] * 10 + [8])
    sizes = [len(values) for _, values in JobResults(job)["value"].pieces(rows)]
    assert sizes == [7, 7, 7, 7, 2, 1]
    assert (JobResults(job)["value"][rows] == VALUES[rows]).all()


def test_retrieval_streams_a_stored_corpus(job):
    stored = JobResults(job)["value"]
    expected = exact_top_k(VALUES, stored[:], 4, corpus_block=6)
    found = exact_top_k(VALUES, stored, 4, corpus_block=6)
    assert (found[0] == expected[0]).all() and (found[1] == expected[1]).all()


def test_rows_beyond_memory_lie_in_a_file_and_are_the_same(monkeypatch, tmp_path):
    examples = [
        Example(Item(f"q {n}", f"{n}.png" * (n % 2)), Item(f"p {n}"), [Item("n")] * (n % 3), dataset="d")
        for n in range(50)
    ]
    whole = to_dataset(examples, block=7)
    monkeypatch.setattr(schema, "IN_MEMORY", 300)
    monkeypatch.setattr(schema.tempfile, "tempdir", str(tmp_path))
    mapped = to_dataset(iter(examples), block=7)
    assert list(map(to_example, mapped)) == list(map(to_example, whole)) == examples
    assert mapped.features == whole.features and not list(tmp_path.iterdir()), "the file has no name any more"


# ivfpq
@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """11,000 vectors about 300 centres, as the embeddings of a job, of which one failed."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((300, 16))
    found = centres[rng.integers(0, 300, 11_000)] + 0.4 * rng.standard_normal((11_000, 16))
    found = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)

    def work(rows):
        if 40 in rows:
            raise ValueError("bad")
        return {"embeddings": found[rows]}

    out = tmp_path_factory.mktemp("vectors")
    run_job(out, list(range(len(found))), work, {}, shard_size=2000)
    return JobResults(out)["embeddings"]


@pytest.fixture(scope="module")
def index_folder(vectors, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    build_ivfpq(folder, vectors, np.flatnonzero(vectors.present), {"model": "m"}, lists=64)
    return folder


def test_ivfpq_finds_nearly_all_and_gives_exact_scores(vectors, index_folder):
    rows = np.flatnonzero(vectors.present)
    index = IvfPqIndex(index_folder, vectors, probes=16, short_list=6)
    recall = measure_recall(index_folder, index, rows, vectors, 200, 10, "cpu")
    manifest = json.loads((index_folder / "manifest.json").read_text())
    assert recall == manifest["recall@10"] and 0.95 < recall <= 1 and manifest["recall_queries"] == 200

    # rules count after the exact scores, and the search goes deeper where they leave too few
    queries = vectors[100:400]
    nearest, scores = exact_top_k(queries, vectors, 60)
    below = scores[:, 12]
    excluded = [own[14:17].tolist() for own in nearest]
    found, values = index.top_k(queries, 5, below, excluded)
    true = np.einsum("qd,qkd->qk", queries, np.stack([vectors[own] for own in found]))
    assert np.allclose(values, true, atol=1e-6) and (values < below[:, None]).all() and (found >= 0).all()
    assert (np.diff(values, axis=1) <= 0).all() and 40 not in found
    assert not any(set(own) & set(bad) for own, bad in zip(found, excluded))
    expected, _ = exact_top_k(queries, vectors, 5, below, excluded)
    assert np.mean([np.isin(own, wanted).mean() for own, wanted in zip(found, expected)]) > 0.9


def test_what_the_index_trains_is_bounded(vectors, tmp_path, monkeypatch):
    """Also where the corpus is large: cells by what they are trained on, and no ordering of codes."""
    import faiss

    index = ivfpq._new_index(faiss, 256, 8)
    assert not faiss.downcast_index(index.index).do_polysemous_training

    # 5,000 rows of width 16 suffice for 128 cells
    sizes = []
    monkeypatch.setattr(ivfpq, "TRAINED", 5000 * 16)
    monkeypatch.setattr(ivfpq, "_merge", lambda *rest: None)
    with monkeypatch.context() as patch:
        kind = type(ivfpq._new_index(faiss, 16, 8))
        train = kind.train
        patch.setattr(kind, "train", lambda index, rows: (sizes.append(rows.shape), train(index, rows)))
        build_ivfpq(tmp_path, vectors, np.flatnonzero(vectors.present), {"model": "m"})
    assert sizes == [(5000, 16)] and json.loads((tmp_path / "manifest.json").read_text())["lists"] == 128


def test_an_interrupted_index_goes_on_and_another_is_refused(vectors, index_folder, tmp_path, monkeypatch):
    rows = np.flatnonzero(vectors.present)
    shutil.copy(index_folder / "trained.index", tmp_path)
    monkeypatch.setattr(ivfpq, "BLOCK", 4000)

    def refuse(*rest):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ivfpq, "_merge", refuse)
        build_ivfpq(tmp_path, vectors, rows, {"model": "m"}, lists=64)
    parts = sorted(tmp_path.glob("part-*"))
    assert len(parts) == 3
    parts[1].unlink()
    monkeypatch.setattr(ivfpq, "_new_index", refuse)
    (tmp_path / "merged.ivfdata").write_bytes(b"of an attempt that was killed")

    build_ivfpq(tmp_path, vectors, rows, {"model": "m"}, lists=64)
    assert not list(tmp_path.glob("part-*"))
    shutil.move(tmp_path, moved := tmp_path.with_name("moved"))
    one, other = (IvfPqIndex(folder, vectors, 16) for folder in (index_folder, moved))
    for first, second in zip(one.top_k(vectors[:20], 8), other.top_k(vectors[:20], 8)):
        assert (first == second).all()
    with pytest.raises(ValueError, match="model: m there, n now"):
        build_ivfpq(index_folder, vectors, rows, {"model": "n"}, lists=64)


# the whole chain, with models that cost nothing
class Free(Embedder):
    """Embeds a text by the number in it."""

    def __init__(self):
        super().__init__("free")

    def load(self):
        return None

    def settings(self):
        return {"model": "free@0"}

    def encode(self, items, role, benchmark=None, of_training=False):
        numbers = np.array([int(item.text.split()[1]) for item in items])
        vectors = np.stack([VALUES[numbers % 23], VALUES[numbers % 19], VALUES[numbers % 7]], 1).reshape(-1, 9)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class FreeJudge(Judge):
    def log_odds(self, batch):
        return [np.linspace(2, -2, len(candidates)).astype(np.float32) for _, candidates in batch]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """`mine(name, **settings)`: runs mining of 120 pairs of two data sets into a folder."""
    monkeypatch.setattr(MiningConfig, "make_embedder", lambda config: Free())
    monkeypatch.setattr(pipeline, "open_judge", lambda config: FreeJudge())
    lines = []
    for number in range(120):
        row = {"query": f"q {number % 80}", "positive": f"p {number}", "dataset": "ab"[number % 2]}
        lines.append(json.dumps(row) + "\n")
    (tmp_path / "pairs.jsonl").write_text("".join(lines))

    def run(name, **changes):
        config = {"data": str(tmp_path / "pairs.jsonl"), "out": str(tmp_path / name), "judge": "j", "server": "s"}
        config |= {"top_k": 8, "num_negatives": 3, "embed_shard": 16, "retrieve_shard": 9, "judge_shard": 7}
        mining = Mining(MiningConfig(**config | changes))
        mining.run()
        mining.saha()
        return mining

    return run


def test_clusters_from_the_disk_are_those_from_memory(mine, monkeypatch):
    whole = contents(mine("whole", retrieve_shard=500).out / "saha")
    monkeypatch.setattr(saha, "IN_MEMORY", 0)
    mining = mine("streamed")
    streamed = contents(mining.out / "saha")
    assert streamed == whole and len(whole) == 3 and not (mining.out / "saha-neighbours").exists()


def test_selected_rows_in_parquet_are_those_in_json(mine, monkeypatch):
    json_rows = read_judged(mine("json", layout="json").out / "judged.json")

    # a file takes several blocks
    monkeypatch.setattr(pipeline, "SELECTED", 20)
    mining = mine("parquet", select_shard=50)
    folder = mining.out / "judged"
    files = sorted(path.name for path in folder.glob("rows-*"))
    assert files == ["rows-000000000.parquet", "rows-000000050.parquet", "rows-000000100.parquet"]
    for rows in (read_judged(folder), read_rows(folder)):
        assert list(map(to_example, rows)) == list(map(to_example, json_rows))
    assert set(read_judged(folder, subsets=["b"])["dataset"]) == {"b"}

    # a file that is missing is written again, the others are left
    whole = contents(folder)
    (folder / files[1]).unlink()
    before = (folder / files[0]).stat().st_mtime_ns
    mining.select()
    assert contents(folder) == whole and (folder / files[0]).stat().st_mtime_ns == before
    mining.config.margin = "0.5"
    with pytest.raises(ValueError, match="settings.margin: 0.01 there, 0.5 now"):
        mining.select()


def test_a_corpus_too_small_for_ivfpq_is_searched_exactly_and_that_is_said(mine, capsys):
    exact = mine("exact", pool="dataset")
    mining = mine("small", index="ivfpq", pool="dataset")
    assert "a: 60 candidates are searched exactly, 9984 are the least for ivfpq" in capsys.readouterr().out
    assert contents(mining.out / "judged") != {} and (
        read_judged(mining.out / "judged").data == read_judged(exact.out / "judged").data
    )
    assert not (mining.out / "index").exists()


def test_the_plan_of_the_scale_benchmark_holds():
    """Its texts say what its models need to know."""
    import runpy

    plan = runpy.run_path(str(ROOT / "benchmarks" / "mining.py"))
    texts = ["which picture shows thing 7 of kind 0", "a picture of thing 41 of kind 1 on a table"]
    assert list(map(plan["number_of"], texts)) == [7, 41]
    vectors = plan["embeddings_of"](texts, "query")
    assert vectors.shape == (2, 256) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    odds = plan["log_odds_of"](Item(texts[0]), [Item(texts[0]), Item(texts[1])])
    assert odds[0] == 3 and odds[1] < -1
