"""mteb runs the embedder and the reranker, gives them both modalities, and gets what `encode` and `score` return."""

import json
import sys
import weakref

import mteb
import numpy as np
import pytest
import torch
from conftest import picture
from datasets import Dataset, Features, Image, Value
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.mocks import ALL_MOCK_TASK_TEST_GRID
from mteb.models import CrossEncoderWrapper, SentenceTransformerEncoderWrapper
from mteb.models.model_meta import ModelMeta
from mteb.types import PromptType

from unime.eval import mteb_inputs, mteb_models
from unime.eval.mteb_models import UniMECrossEncoder, UniMEEncoder, register, released_models

CAPTIONS = ["a red circle", "a blue star", "two rings", "a user"]


class Captions(AbsTaskRetrieval):
    """Four pictures with an instruction look for their captions."""

    metadata = TaskMetadata(
        name="OfflineCaptions",
        description="pictures and captions",
        reference=None,
        type="Any2AnyRetrieval",
        dataset={"path": "local/none", "revision": "0" * 40},
        category="it2t",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
        date=("2026-01-01", "2026-01-02"),
        domains=["Encyclopaedic"],
        task_subtypes=["Image Text Retrieval"],
        license="cc0-1.0",
        annotations_creators="derived",
        dialect=[],
        modalities=["text", "image"],
        sample_creation="found",
        bibtex_citation="",
        prompt={"query": "Find the caption."},
    )

    def load_data(self, **kwargs):
        features = Features({"id": Value("string"), "image": Image(), "text": Value("string")})
        rows = {"id": [f"q{i}" for i in range(4)], "image": [picture(i) for i in range(4)], "text": ["this"] * 4}
        self.dataset = {
            "default": {
                "test": {
                    "queries": Dataset.from_dict(rows, features=features),
                    "corpus": Dataset.from_dict({"id": [f"d{i}" for i in range(4)], "text": CAPTIONS}),
                    "relevant_docs": {f"q{i}": {f"d{i}": 1} for i in range(4)},
                    "top_ranked": self.top_ranked(),
                }
            }
        }
        self.data_loaded = True

    def top_ranked(self):
        return None


class Reranked(Captions):
    metadata = Captions.metadata.model_copy(update={"name": "OfflineReranking"})

    def top_ranked(self):
        return {f"q{i}": [f"d{j}" for j in range(4)] for i in range(4)}


def rank(scores, place):
    return 1 + sum(other > scores[place] for other in scores)


def measured(model, task):
    """The scores that mteb finds."""
    done = mteb.evaluate(model, task, cache=None, encode_kwargs={"batch_size": 2}, show_progress_bar=False)
    return done.task_results[0].scores["test"][0]


def test_embedder(embedder):
    model, asked = UniMEEncoder(embedder), []
    encode = model.model.encode

    def spy(items, instruction=None, role="query", **kwargs):
        found = encode(items, instruction, role, **kwargs)
        asked.append((items, instruction, role, found))
        return found

    model.model.encode = spy
    scores = measured(model, Captions())
    assert {"text", "image"} <= set(model.mteb_model_meta.modalities)
    documents, queries = sorted(asked, key=lambda entry: entry[2])
    assert [sorted(item) for item in queries[0]] == [["image", "text"]] * 4 and queries[1] == "Find the caption."
    assert documents[0] == [{"text": text} for text in CAPTIONS] and documents[1] == ""
    own = [{"image": picture(i), "text": "this"} for i in range(4)]
    expected = embedder.encode_query(own, instruction="Find the caption.")
    assert torch.allclose(queries[3], expected, atol=1e-5)
    similarity = (expected @ embedder.encode_document(CAPTIONS).T).tolist()
    hits = sum(rank(row, i) == 1 for i, row in enumerate(similarity)) / 4
    assert scores["hit_rate_at_1"] == pytest.approx(hits)


def test_reranker(reranker):
    scores = measured(UniMECrossEncoder(reranker), Reranked())
    own = [{"image": picture(i), "text": "this"} for i in range(4)]
    found = [reranker.score(query, CAPTIONS).tolist() for query in own]
    assert scores["hit_rate_at_1"] == pytest.approx(sum(rank(row, i) == 1 for i, row in enumerate(found)) / 4)
    assert UniMECrossEncoder(reranker).mteb_model_meta.model_type == ["cross-encoder"]


def test_models_are_named_and_described(tmp_path, embedder):
    embedder.save_pretrained(tmp_path / "mine")
    meta = UniMEEncoder(tmp_path / "mine").mteb_model_meta
    assert meta.name == "unime/mine" and meta.embed_dim == embedder.config.hidden_size
    assert meta.n_parameters == embedder.num_parameters() and meta.loader is UniMEEncoder


def test_instructions(embedder):
    meta = Captions.metadata
    plain = UniMEEncoder(embedder, use_task_instructions=False)
    assert plain.instruction(meta, PromptType.query) is None
    model = UniMEEncoder(embedder, default_instruction="Represent it.")
    assert model.instruction(meta, PromptType.query) == "Find the caption."
    bare = meta.model_copy(update={"prompt": None})
    assert model.instruction(bare, PromptType.query) == "Represent it."
    assert model.instruction(bare, PromptType.document) is None
    words = meta.model_copy(update={"prompt": "Look."})
    assert [model.instruction(words, kind) for kind in (PromptType.query, PromptType.document)] == ["Look.", None]


OPTIONS = {"task_metadata": Captions.metadata, "hf_split": "test", "hf_subset": "default"}


def test_videos_are_read_and_empty_documents_are_like_nothing(embedder):
    frames = [picture(i) for i in range(3)]
    model = UniMEEncoder(embedder)
    batches = [{"text": ["a cat", ""], "video": [frames, frames]}, {"text": ["", " ", "a dog"]}]
    embeddings = model.encode(batches[:1], prompt_type=PromptType.document, **OPTIONS)
    items = [{"text": "a cat", "video": frames}, {"video": frames}]
    assert torch.allclose(embeddings, embedder.encode_document(items), atol=1e-5)
    empty, blank, text = model.encode(batches[1:], prompt_type=PromptType.document, **OPTIONS)
    assert not empty.any() and not blank.any()
    assert torch.allclose(text, embedder.encode_document("a dog"), atol=1e-5)
    assert not model.encode([{"text": ["", ""]}], **OPTIONS).any()


def test_several_images_are_read_in_one_prompt(embedder):
    pages = [picture(i) for i in range(3)]
    model = UniMEEncoder(embedder)
    (found,) = model.encode([{"text": ["pages"], "image": [pages]}], **OPTIONS)
    assert torch.allclose(
        found, embedder.encode_query({"text": "pages", "image": pages}, instruction="Find the caption."), atol=1e-5
    )
    with pytest.raises(ValueError, match="an item has 9 images, and the model reads 8 in one prompt"):
        model.encode([{"image": [pages * 3]}], **OPTIONS)


def test_pixels_of_a_tensor_are_a_video(embedder):
    frames = [picture(i) for i in range(3)]
    tensor = torch.stack([torch.tensor(np.array(frame)).permute(2, 0, 1) for frame in frames])  # [3, 3, H, W]
    found = UniMEEncoder(embedder).encode([{"video": [tensor]}], prompt_type=PromptType.document, **OPTIONS)
    assert torch.allclose(found, embedder.encode_document([{"video": frames}]), atol=1e-5)


def test_a_corpus_is_never_held_as_a_whole(embedder, monkeypatch):
    monkeypatch.setattr(mteb_inputs, "_MAX_PIXELS", 4 * 64 * 48)
    references = []
    alive = []  # at each batch, how many images there are

    def corpus():
        for seed in range(6):
            images = [picture(2 * seed), picture(2 * seed + 1)]
            references.extend(map(weakref.ref, images))
            alive.append(sum(reference() is not None for reference in references))
            yield {"image": images}

    found = UniMEEncoder(embedder).encode(corpus(), prompt_type=PromptType.document, **OPTIONS)
    assert max(alive) <= 8, "a block of four, and what is read of the next"
    assert torch.allclose(found, embedder.encode_document([picture(seed) for seed in range(12)]), atol=1e-5)


def test_pairs_with_nothing_in_them_come_last(reranker, monkeypatch):
    monkeypatch.setattr(mteb_inputs, "_MAX_ITEMS", 2)
    model = UniMECrossEncoder(reranker)
    queries = [{"text": ["a", "a", "b"]}, {"text": ["b"]}]
    documents = [{"text": ["a star", "", "a ring"]}, {"text": ["a cross"]}]
    scores = model.predict(queries, documents, **OPTIONS)
    expected = [
        reranker.score("a", ["a star"], output="logit"),
        reranker.score("b", ["a ring", "a cross"], output="logit"),
    ]
    assert torch.allclose(scores[[0, 2, 3]], torch.cat(expected), atol=1e-5)
    assert scores[1] < scores[[0, 2, 3]].min() - 100 and torch.isfinite(scores).all()


def test_released_checkpoints_are_known():
    metas = {meta.name: meta for meta in released_models()}
    assert len(metas) == 7
    listed = mteb.get_model_meta("TianchengGu/UniME-V2-LLaVA-OneVision-8B")
    own = metas[listed.name]
    for field in (
        "revision",
        "license",
        "n_parameters",
        "embed_dim",
        "modalities",
        "adapted_from",
        "training_datasets",
    ):
        assert getattr(own, field) == getattr(listed, field), field
    assert own.loader is UniMEEncoder and own.max_tokens == 32768

    judge = metas["TianchengGu/UniME-V2-reranker-Qwen25VL-7B"]
    assert judge.model_type == ["cross-encoder"] and judge.embed_dim is None and judge.loader is UniMECrossEncoder
    assert metas["DeepGlint-AI/UniME-LLaVA-1.6-7B"].modalities == ["text", "image"], "one image in a prompt"


def test_mteb_sees_the_modalities_of_a_saved_model(embedder, reranker, tmp_path):
    for model, kind in ((embedder, "dense"), (reranker, "cross-encoder")):
        model.save_pretrained(tmp_path / kind)
        files = ("config_sentence_transformers", "sentence_bert_config", "modules", "config")
        contents = [json.loads((tmp_path / kind / f"{name}.json").read_text(encoding="utf-8")) for name in files]
        loader, model_type, modalities = ModelMeta._resolve_loader("owner/name", *contents)
        assert model_type == kind and modalities == ["image", "text", "video"]
        assert loader in (SentenceTransformerEncoderWrapper, CrossEncoderWrapper)


@pytest.mark.filterwarnings("ignore:Could not find model")
def test_mteb_finds_a_model_in_a_folder_once_it_is_told(embedder, reranker, tmp_path, monkeypatch):
    monkeypatch.setattr(mteb_models, "MODEL_REGISTRY", registry := {})
    monkeypatch.setattr(sys.modules["mteb.models.get_model_meta"], "MODEL_REGISTRY", registry)
    for model, name, wrapper in ((embedder, "embedder", UniMEEncoder), (reranker, "reranker", UniMECrossEncoder)):
        folder = str(tmp_path / name)
        model.save_pretrained(folder)

        # by itself it knows no loader for what is not on the Hub
        with pytest.raises(NotImplementedError, match="No model implementation"):
            mteb.get_model(folder)
        meta = register(folder, resolution=56)
        assert meta.modalities == ["text", "image", "video"] and meta.name == f"unime/{name}"
        loaded = mteb.get_model(folder)
        assert isinstance(loaded, wrapper) and loaded.options["resolution"] == 56
        assert loaded.mteb_model_meta.modalities == meta.modalities


def test_mock_tasks_of_each_modality_run(embedder):
    names = (
        "MockRetrievalTask",
        "MockImageTextPairClassification",
        "MockVideoClassification",
        "MockVideoRetrievalV2T",
    )
    tasks = [task for task in ALL_MOCK_TASK_TEST_GRID if task.metadata.name in names]
    assert len(tasks) == 4
    mteb.evaluate(UniMEEncoder(embedder), tasks, cache=None, show_progress_bar=False)
