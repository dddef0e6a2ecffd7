"""Every saved embedder is a SentenceTransformer, every saved reranker a CrossEncoder, with our own numbers."""

import base64
import copy
import json
import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fresh_process, picture
from datasets import Dataset
from sentence_transformers import (
    CrossEncoder,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.modality import infer_modality
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.util import mine_hard_negatives

from unime import UniMEModel, UniMERerankerForCausalLM
from unime.checkpoints.opening import open_sentence_transformer
from unime.data.schema import Item
from unime.jobs.embedding import Embedder
from unime.sentence_transformers_unime import UniMECrossEncoder, UniMETransformer
from unime.trainers.distillation import encode_teacher

TEXTS = ["a red circle", "a blue star left of it", "Query"]


def items():
    chat = [{"role": "user", "content": [{"type": "image", "image": picture(4)}, {"type": "text", "text": "What?"}]}]
    return [*TEXTS, picture(1), {"image": picture(2)}, {"image": picture(3), "text": "a star"}, chat]


@pytest.fixture(scope="module")
def saved(backbone, tmp_path_factory):
    home = tmp_path_factory.mktemp("saved")
    UniMEModel.from_backbone(backbone).save_pretrained(home / "embedder")
    UniMERerankerForCausalLM.from_backbone(backbone).save_pretrained(home / "reranker")
    return home


@pytest.fixture(scope="module")
def sentences(saved):
    return SentenceTransformer(str(saved / "embedder"), trust_remote_code=True, device="cpu")


def test_embeddings_are_those_of_encode(saved, sentences):
    model = UniMEModel.from_pretrained(saved / "embedder")
    assert np.abs(sentences.encode(items()) - model.encode(items()).numpy()).max() < 1e-5
    asked = sentences.encode_query(items(), prompt="Find it.")
    assert np.abs(asked - model.encode_query(items(), instruction="Find it.").numpy()).max() < 1e-5
    assert sentences.get_embedding_dimension() == model.config.hidden_size and sentences.supports("image")
    assert sentences.prompts == {"query": "", "document": ""} and sentences.max_seq_length == 1024


def test_texts_are_texts_whatever_they_name(saved, sentences, tmp_path):
    picture(5).save(tmp_path / "five.png")
    path = str(tmp_path / "five.png")
    address = f"data:image/png;base64,{base64.b64encode(Path(path).read_bytes()).decode()}"
    texts = [path, "http://127.0.0.1:9/five.png", "https://youtu.be/five", str(tmp_path / "five.mp4"), address]
    (tmp_path / "five.mp4").write_bytes(b"no video")

    model = UniMEModel.from_pretrained(saved / "embedder")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the data URI is longer than the model reads
        expected = model.encode(texts).numpy()
        assert np.abs(sentences.encode(texts) - expected).max() < 1e-5
        embedder = Embedder(saved / "embedder", "sentence-transformers")
        assert np.abs(embedder.encode([Item(text) for text in texts], "query") - expected).max() < 1e-5
        teacher = encode_teacher(str(saved / "embedder"), texts, tmp_path / "teacher")
    hashes = np.array([Item(text).content_hash for text in texts])
    assert np.abs(teacher(torch.from_numpy(hashes)).numpy() - expected).max() < 1e-5

    pairs = [("a", text) for text in texts[:3]]
    scores = CrossEncoder(str(saved / "reranker"), trust_remote_code=True, device="cpu").predict(pairs)
    own = UniMERerankerForCausalLM.from_pretrained(saved / "reranker").score("a", texts[:3])
    assert scores == pytest.approx(own.tolist(), abs=1e-5)


class Reader(torch.nn.Module):
    """What a foreign model that reads pictures makes of its inputs: one-hot by kind."""

    modalities = ["text", "image", "message"]

    def preprocess(self, inputs, **kwargs):
        kinds = [infer_modality(value, self.modalities) for value in inputs]
        return {"kinds": torch.tensor([self.modalities.index(kind) for kind in kinds])}

    def forward(self, features, **kwargs):
        return {"sentence_embedding": torch.eye(2)[features["kinds"]]}


def test_foreign_models_that_read_pictures_are_given_texts_as_texts(tmp_path):
    picture(5).save(tmp_path / "five.png")
    strings = [str(tmp_path / "five.png"), "https://example.org/five.png", "a text"]
    foreign = SentenceTransformer(modules=[Reader()], device="cpu")
    assert foreign.encode(strings).argmax(1).tolist() == [1, 1, 0], "by itself it takes them for pictures"

    embedder = Embedder("nowhere", "sentence-transformers")
    embedder.model = foreign
    assert embedder.encode([Item(text) for text in strings], "query").argmax(1).tolist() == [0, 0, 0]


def test_images_may_be_named_by_path_or_data_uri(saved, sentences, tmp_path):
    picture(5).save(tmp_path / "five.png")
    path = str(tmp_path / "five.png")
    address = f"data:image/png;base64,{base64.b64encode(Path(path).read_bytes()).decode()}"
    expected = UniMEModel.from_pretrained(saved / "embedder").encode(picture(5)).numpy()
    for value in ({"image": path}, {"image": address}):
        assert np.abs(sentences.encode(value) - expected).max() < 1e-5


@pytest.mark.parametrize("preset, kind", [("hierarchical", "qwen2_vl"), ("unime-llava-1.6", "llava_next")])
def test_prompts_of_a_preset_and_summed_parts_are_kept(preset, kind, tiny, tmp_path):
    model = UniMEModel.from_backbone(tiny(kind)[0], preset=preset)
    model.save_pretrained(tmp_path)
    loaded = SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
    own = [item for item in items() if not isinstance(item, list)]
    for role in ("query", "document"):
        found = getattr(loaded, f"encode_{role}")(own)
        assert np.abs(found - model.encode(own, role=role).numpy()).max() < 1e-5


def test_trust_may_be_given_among_the_arguments_of_the_model_too(saved, sentences):
    twice = SentenceTransformer(
        str(saved / "embedder"), trust_remote_code=True, device="cpu", model_kwargs={"trust_remote_code": True}
    )
    assert np.abs(twice.encode("a red circle") - sentences.encode("a red circle")).max() < 1e-6


def test_scores_are_those_of_score(saved):
    model, own = UniMERerankerForCausalLM.from_pretrained(saved / "reranker"), items()[:-1]
    loaded = CrossEncoder(str(saved / "reranker"), trust_remote_code=True, device="cpu")
    query = {"image": picture(9), "text": "Find a caption."}
    expected = model.score(query, own)
    assert np.abs(loaded.predict([(query, item) for item in own]) - expected.numpy()).max() < 1e-5
    order = [entry["corpus_id"] for entry in loaded.rank(query, own)]
    assert order == expected.argsort(descending=True).tolist()
    asked = loaded.predict([("a", "b")], prompt="Find it.")
    assert np.abs(asked - model.score("a", ["b"], instruction="Find it.").numpy()).max() < 1e-5


def test_confident_answers_are_ranked_by_their_log_odds(saved):
    loaded = CrossEncoder(str(saved / "reranker"), trust_remote_code=True, device="cpu")
    expected = loaded[0].model.score("a", TEXTS, output="logit")
    yes, no = loaded[0].model.yes_no_tokens

    def be_sure(model, arguments, output):
        last = output.logits[:, -1]
        last[:, yes] = 25 + 10 * (last[:, yes] - last[:, no])
        last[:, no] = 0

    loaded[0].model.register_forward_hook(be_sure)
    assert loaded.predict([("a", text) for text in TEXTS]).tolist() == [1.0, 1.0, 1.0]
    order = [entry["corpus_id"] for entry in loaded.rank("a", TEXTS)]
    assert order == expected.argsort(descending=True).tolist()
    logits = loaded.predict([("a", text) for text in TEXTS], activation_fn=torch.nn.Identity())
    assert logits == pytest.approx((25 + 10 * expected).tolist(), abs=1e-4)


ALONE = """
import importlib.util, json, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder)]
assert importlib.util.find_spec("unime") is None
from sentence_transformers import CrossEncoder, SentenceTransformer
embedder = SentenceTransformer(sys.argv[1] + "/embedder", trust_remote_code=True, device="cpu")
reranker = CrossEncoder(sys.argv[1] + "/reranker", trust_remote_code=True, device="cpu")
embedder.save_pretrained(sys.argv[2])
again = SentenceTransformer(sys.argv[2], trust_remote_code=True, device="cpu")
found = [model.encode("a red circle").tolist() for model in (embedder, again)]
print(json.dumps([*found, reranker.predict([("a", "a red circle")]).tolist()]))
"""


def test_without_the_package_only_the_repository_is_needed(saved, tmp_path):
    first, again, score = fresh_process(ALONE, saved, tmp_path / "again", PYTHONSAFEPATH="1")
    expected = UniMEModel.from_pretrained(saved / "embedder").encode("a red circle")
    assert torch.tensor(first) == pytest.approx(expected.numpy(), abs=1e-5) and first == again
    reranker = UniMERerankerForCausalLM.from_pretrained(saved / "reranker")
    assert score == pytest.approx(reranker.score("a", ["a red circle"]).tolist(), abs=1e-5)
    assert UniMEModel.from_pretrained(tmp_path / "again").encode("a red circle").tolist() == expected.tolist()


SAVED_WITH_THE_PACKAGE = """
import importlib.util, json, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder)]
assert importlib.util.find_spec("unime") is None
from sentence_transformers import CrossEncoder, SentenceTransformer
embedder = SentenceTransformer(sys.argv[1] + "/embedder", trust_remote_code=True, device="cpu")
reranker = CrossEncoder(sys.argv[1] + "/reranker", trust_remote_code=True, device="cpu")
print(json.dumps([embedder.encode("a red circle").tolist(), reranker.predict([("a", "a red circle")]).tolist()]))
"""


def test_what_is_built_from_the_package_needs_no_package(embedder, reranker, tmp_path):
    sentences = SentenceTransformer(modules=[UniMETransformer(embedder)], device="cpu")
    pairs = CrossEncoder(modules=[UniMECrossEncoder(reranker)], device="cpu")
    expected = sentences.encode("a red circle"), pairs.predict([("a", "a red circle")])

    # copies and what was pickled are saved as the models themselves
    copy.deepcopy(sentences).save_pretrained(str(tmp_path / "embedder"))
    pickle.loads(pickle.dumps(pairs)).save(str(tmp_path / "reranker"))
    for name, kind in (("embedder", "UniMETransformer"), ("reranker", "UniMECrossEncoder")):
        (module,) = json.loads((tmp_path / name / "modules.json").read_text(encoding="utf-8"))
        assert module["type"] == f"sentence_transformers_unime.{kind}"
    alone = fresh_process(SAVED_WITH_THE_PACKAGE, tmp_path, PYTHONSAFEPATH="1")
    for found, value in zip(alone, expected, strict=True):
        assert np.abs(np.array(found) - value).max() <= 1e-5

    # our own loader finds the class by that name, without trust
    again = open_sentence_transformer(tmp_path / "embedder", "cpu")
    assert type(again[0]) is UniMETransformer
    assert np.abs(again.encode("a red circle") - expected[0]).max() <= 1e-6


def test_its_trainer_trains_on_images_and_its_tools_run(saved, tmp_path):
    model = SentenceTransformer(str(saved / "embedder"), trust_remote_code=True, device="cpu")
    rows = Dataset.from_dict({"anchor": [picture(i) for i in range(4)], "positive": ["a", "b", "c", "d"]})
    args = SentenceTransformerTrainingArguments(
        str(tmp_path),
        max_steps=6,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    loss = MultipleNegativesRankingLoss(model, scale=5.0)
    trainer = SentenceTransformerTrainer(model, args, rows, loss=loss)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]
    queries, corpus = {"q": "a red circle"}, {"d1": "a red circle", "d2": "a star"}
    found = InformationRetrievalEvaluator(queries, corpus, {"q": {"d1"}}, accuracy_at_k=[1])(model)
    assert found["cosine_accuracy@1"] == 1.0
    pairs = Dataset.from_dict({"query": TEXTS, "answer": ["a circle", "a star", "a question"]})
    mined = mine_hard_negatives(pairs, model, num_negatives=1, verbose=False)
    assert mined.column_names == ["query", "answer", "negative"] and len(mined) == 3


def test_long_items_do_not_change_the_rotary_factors_of_short_ones(tiny, tmp_path):
    """Phi-3's change for a whole batch, where one of its items is long."""
    folder = tmp_path / "phi"
    shutil.copytree(tiny("phi3_v")[0], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "original_max_position_embeddings": 60}))

    long = "a red circle left of a blue star " * 12
    mixed = ["a star", long, {"text": "a ring"}, long + "x", "a"]
    model = UniMEModel.from_backbone(folder, preset="unime-phi3.5-v", fusion="joint")
    assert model.config.length_boundary == 60
    sentences = SentenceTransformer(modules=[UniMETransformer(model)], device="cpu")
    together = sentences.encode(mixed, batch_size=8)
    assert np.abs(together - model.encode(mixed).numpy()).max() <= 1e-5
    features = sentences.preprocess(["a star", long])
    states = sentences(features)["token_embeddings"]
    alone = sentences(sentences.preprocess(["a star"]))["token_embeddings"][0]
    assert (states[0, -len(alone) :] - alone).abs().max() <= 1e-5

    # images, which are longer than that, stay with their items; and so do parts of sums
    images = [picture(1), "a star", {"image": picture(2), "text": "a ring"}, "a ring"]
    for fusion in ("joint", "sum"):
        model.processor.fusion = fusion
        assert np.abs(sentences.encode(images, batch_size=8) - model.encode(images).numpy()).max() <= 1e-5

    # a judge's questions are longer, and so is its boundary here
    pairs = [("a star", "a ring"), ("a star", long), ("a ring", "a star")]
    processor = UniMERerankerForCausalLM.from_backbone(folder, preset="summary", weights=False).processor
    (entry,) = processor.prepare([processor.question(*pairs[0])])
    config["original_max_position_embeddings"] = entry.length + 5
    (folder / "config.json").write_text(json.dumps(config))
    judge = UniMERerankerForCausalLM.from_backbone(folder, preset="summary")
    encoder = CrossEncoder(modules=[UniMECrossEncoder(judge)], device="cpu")
    expected = [float(judge.score(query, [candidate])) for query, candidate in pairs]
    assert encoder.predict(pairs, batch_size=8) == pytest.approx(expected, abs=1e-5)
