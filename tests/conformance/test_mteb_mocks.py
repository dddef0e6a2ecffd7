"""mteb's own mock tasks: all of the modalities that we claim run through our wrappers and through a plain model."""

import os

import pytest
from mteb.mocks.mock_run import mock_run
from mteb.models import SentenceTransformerEncoderWrapper
from mteb.results.task_result import TaskResult
from sentence_transformers import SentenceTransformer

from unime.eval.mteb_models import UniMECrossEncoder, UniMEEncoder
from unime.sentence_transformers_unime import UniMETransformer

# a few of them run among our own tests (test_mteb.py)
pytestmark = pytest.mark.skipif("CONFORMANCE" not in os.environ, reason="`make conformance` runs them, in a minute")


def outcomes(model) -> dict:
    """The tasks that fit a model's modalities, with what came of them."""
    results = {}
    for name, result in mock_run(model).items():
        if result is not None:
            results[name] = "passed" if isinstance(result, TaskResult) else result.exception
    return results


@pytest.mark.filterwarnings("ignore")
def test_every_mock_task_of_texts_images_and_videos_runs(embedder):
    results = outcomes(UniMEEncoder(embedder))
    assert len(results) >= 50 and set(results.values()) == {"passed"}, results


@pytest.mark.filterwarnings("ignore")
def test_every_mock_task_of_reranking_runs(reranker):
    results = outcomes(UniMECrossEncoder(reranker))

    # a whole corpus is for embedders, and mteb says so itself
    passed = [name for name, outcome in results.items() if outcome == "passed"]
    refused = {outcome for outcome in results.values() if outcome != "passed"}
    assert len(passed) >= 6 and refused == {"CrossEncoder search requires top_ranked documents for reranking."}, (
        results
    )


@pytest.mark.filterwarnings("ignore")
def test_a_plain_sentence_transformer_runs_those_of_texts_and_images(embedder):
    model = SentenceTransformer(modules=[UniMETransformer(embedder)], device="cpu")
    wrapper = SentenceTransformerEncoderWrapper(model)
    meta = wrapper.mteb_model_meta.model_copy(update={"modalities": ["text", "image"], "name": "unime/plain"})
    wrapper.mteb_model_meta = meta
    results = outcomes(wrapper)
    assert len(results) >= 43 and set(results.values()) == {"passed"}, results
