"""Losses and trainers of sentence-transformers on our models equal one forward a column, whatever the items hold."""

import pytest
import torch
from conftest import picture
from datasets import Dataset
from sentence_transformers import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.cross_encoder import losses as pair_losses
from sentence_transformers.sentence_transformer import losses

from unime import UniMEModel, UniMERerankerForCausalLM
from unime.examples import triplets
from unime.sentence_transformers_unime import UniMECrossEncoder, UniMETransformer

NAMES = ["red", "blue", "green", "white"]


def text(start):
    return [f"{start} {name}" for name in NAMES]


def images(start):
    return [{"image": picture(start + i, (32 + 8 * i, 32))} for i in range(4)]


def both(start):
    return [{"text": f"a {name}", "image": picture(start + i, (32, 32))} for i, name in enumerate(NAMES)]


def mixed(start):
    return [text("some")[0], images(start)[1], both(start)[2], text("other")[3]]


COLUMNS = {
    "text": (text("an anchor of"), text("one"), text("some longer text of")),
    "image": (images(0), images(10), images(20)),
    "mixed": (mixed(0), mixed(10), mixed(20)),
}


def softmax(model):
    """The same classifier for every model."""
    torch.manual_seed(0)
    return losses.SoftmaxLoss(model, model.get_embedding_dimension(), 2)


SCORES = torch.tensor([0.9, 0.1, 0.4, 0.7])
CLASSES = torch.tensor([0, 0, 1, 1])
LOSSES = {
    # name: (loss of a model and another that guides it, columns, labels)
    "MNRL": (lambda m, g: losses.MultipleNegativesRankingLoss(m, scale=5.0), 3, None),
    "MNRL, pairs": (lambda m, g: losses.MultipleNegativesRankingLoss(m, scale=5.0), 2, None),
    "cached MNRL": (lambda m, g: losses.CachedMultipleNegativesRankingLoss(m, 5.0, mini_batch_size=3), 3, None),
    "cached MNRL, one by one": (
        lambda m, g: losses.CachedMultipleNegativesRankingLoss(m, 5.0, mini_batch_size=1),
        2,
        None,
    ),
    "cached MNRL, by tokens": (
        lambda m, g: losses.CachedMultipleNegativesRankingLoss(m, 5.0, mini_batch_num_tokens=40),
        3,
        None,
    ),
    "symmetric MNRL": (lambda m, g: losses.MultipleNegativesSymmetricRankingLoss(m, scale=5.0), 3, None),
    "cached symmetric MNRL": (
        lambda m, g: losses.CachedMultipleNegativesSymmetricRankingLoss(m, 5.0, mini_batch_size=2),
        3,
        None,
    ),
    "GIST": (lambda m, g: losses.GISTEmbedLoss(m, g), 3, None),
    "cached GIST": (lambda m, g: losses.CachedGISTEmbedLoss(m, g, mini_batch_size=2), 3, None),
    "triplet": (lambda m, g: losses.TripletLoss(m), 3, None),
    "margin MSE": (lambda m, g: losses.MarginMSELoss(m), 3, SCORES),
    "KL distillation": (lambda m, g: losses.DistillKLDivLoss(m), 3, torch.stack([SCORES, 1 - SCORES], 1)),
    "mega batch margin": (lambda m, g: losses.MegaBatchMarginLoss(m, mini_batch_size=3), 2, None),
    "embedding distillation": (lambda m, g: losses.EmbedDistillLoss(m), 2, torch.ones(4, 96)),
    "MSE": (lambda m, g: losses.MSELoss(m), 1, torch.ones(4, 96)),
    "CoSENT": (lambda m, g: losses.CoSENTLoss(m, scale=5.0), 2, SCORES),
    "AnglE": (lambda m, g: losses.AnglELoss(m, scale=5.0), 2, SCORES),
    "cosine": (lambda m, g: losses.CosineSimilarityLoss(m), 2, SCORES),
    "contrastive": (lambda m, g: losses.ContrastiveLoss(m), 2, CLASSES),
    "online contrastive": (lambda m, g: losses.OnlineContrastiveLoss(m), 2, CLASSES),
    "all triplets of a batch": (lambda m, g: losses.BatchAllTripletLoss(m), 1, CLASSES),
    "hard triplets of a batch": (lambda m, g: losses.BatchHardTripletLoss(m), 1, CLASSES),
    "soft margin": (lambda m, g: losses.BatchHardSoftMarginTripletLoss(m), 1, CLASSES),
    "semi-hard triplets": (lambda m, g: losses.BatchSemiHardTripletLoss(m), 1, CLASSES),
    "softmax": (lambda m, g: softmax(m), 2, CLASSES),
    "contrastive tension": (lambda m, g: losses.ContrastiveTensionLoss(m), 2, CLASSES.float()),
    "tension in a batch": (lambda m, g: losses.ContrastiveTensionLossInBatchNegatives(m, scale=5.0), 1, CLASSES),
    "orthogonal": (lambda m, g: losses.GlobalOrthogonalRegularizationLoss(m), 2, None),
    "Matryoshka": (
        lambda m, g: losses.MatryoshkaLoss(m, losses.MultipleNegativesRankingLoss(m), [96, 32]),
        3,
        None,
    ),
    "Matryoshka, cached": (
        lambda m, g: losses.MatryoshkaLoss(
            m, losses.CachedMultipleNegativesRankingLoss(m, mini_batch_size=2), [96, 32]
        ),
        3,
        None,
    ),
}


class Given(torch.nn.Module):
    """A module whose embeddings are given: item `i` of column `c` has row `i` of the table that `c` names."""

    modalities = ["text"]
    max_seq_length = 1024

    def __init__(self, tables, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer
        self.tables = torch.nn.ParameterList([torch.nn.Parameter(table.clone()) for table in tables])

    def features(self, column):
        rows = torch.arange(len(self.tables[column]))
        ids = torch.stack([rows, torch.full_like(rows, column)], 1)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def get_embedding_dimension(self):
        return self.tables[0].shape[1]

    def forward(self, features, **kwargs):
        rows = [self.tables[column][row] for row, column in features["input_ids"].tolist()]
        return {**features, "sentence_embedding": torch.stack(rows)}


@pytest.fixture(scope="module")
def model(backbone):
    wrapped = UniMETransformer(UniMEModel.from_backbone(backbone, fusion="sum"))
    return SentenceTransformer(modules=[wrapped], device="cpu").train()


@pytest.fixture(scope="module")
def guide(tmp_path_factory):
    from conftest import save_backbone

    path = save_backbone(tmp_path_factory.mktemp("guide"), seed=7)
    wrapped = UniMETransformer(UniMEModel.from_backbone(path, fusion="sum"))
    return SentenceTransformer(modules=[wrapped], device="cpu")


def value_and_gradients(loss, features, labels, parameters):
    for parameter in parameters:
        parameter.grad = None
    result = loss(features, labels)
    if isinstance(result, dict):
        result = sum(result.values())
    result.backward()

    # a loss may look away from a column
    gradients = []
    for parameter in parameters:
        gradients.append(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone())
    return result.item(), gradients


@pytest.mark.parametrize("kind", COLUMNS)
def test_every_loss_equals_one_forward_a_column(model, guide, kind):
    columns = COLUMNS[kind]
    tables = [model[0].model.encode(column) for column in columns]
    given = SentenceTransformer(modules=[Given(tables, model.tokenizer)], device="cpu")
    guides = [guide[0].model.encode(column) for column in columns]
    given_guide = SentenceTransformer(modules=[Given(guides, model.tokenizer)], device="cpu")
    weight = model[0].model.get_input_embeddings().weight

    for name, (make, count, labels) in LOSSES.items():
        features = [model.preprocess(column) for column in columns[:count]]
        found, (gradient,) = value_and_gradients(make(model, guide), features, labels, [weight])

        # the loss of the embeddings that `encode` gives, and where it pulls them
        tables = list(given[0].tables[:count])
        given_features = [given[0].features(column) for column in range(count)]
        expected, pulls = value_and_gradients(make(given, given_guide), given_features, labels, tables)
        assert found == pytest.approx(expected, abs=2e-4, rel=2e-4), name

        # the same pull, through the model, one column after the other
        weight.grad = None
        for column, pull in zip(columns, pulls):
            model(model.preprocess(column))["sentence_embedding"].backward(pull)
        assert torch.allclose(gradient, weight.grad, atol=2e-4 * (1 + weight.grad.abs().max())), name


def test_features_of_sums_are_cut_and_joined_by_item(model):
    items = both(0)
    features = model.preprocess(items)
    assert features["part_numbers"].amax(1).tolist() == [2, 2, 2, 2]
    assert features["num_images_per_sample"].tolist() == [1, 1, 1, 1]

    outputs = model(features)
    assert outputs["token_embeddings"].shape[:2] == outputs["attention_mask"].shape
    assert torch.allclose(outputs["sentence_embedding"], model[0].model.encode(items), atol=1e-5)


def test_images_that_were_cut_wrongly_are_refused(model):
    features = model.preprocess(images(0))
    features["image_grid_thw"] = features["image_grid_thw"][:2]
    with pytest.raises(ValueError, match="take a loss that is not cached"):
        model(features)


def arguments(cls, path, **settings):
    return cls(
        str(path),
        per_device_train_batch_size=4,
        report_to=[],
        logging_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        **settings,
    )


def test_a_training_goes_on_where_it_was_saved(backbone, tmp_path):
    def train(steps, resume=None):
        model = SentenceTransformer(modules=[UniMETransformer(UniMEModel.from_backbone(backbone))], device="cpu")
        rows = Dataset.from_dict({"anchor": text("an anchor of"), "positive": text("one"), "negative": text("no")})
        args = arguments(SentenceTransformerTrainingArguments, tmp_path / "run", max_steps=steps, save_steps=2)
        trainer = SentenceTransformerTrainer(
            model, args, rows, loss=losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=2)
        )
        trainer.train(resume_from_checkpoint=resume)
        return model.encode(text("one"))

    whole = train(4)
    again = train(4, resume=str(tmp_path / "run" / "checkpoint-2"))
    assert abs(whole - again).max() < 1e-6


@pytest.fixture
def judge(backbone):
    return CrossEncoder(modules=[UniMECrossEncoder(UniMERerankerForCausalLM.from_backbone(backbone))], device="cpu")


PAIRS = [(query, candidate) for query, candidate in zip(text("an anchor of"), mixed(0))]
PAIR_LOSSES = {
    "binary": (lambda m: pair_losses.BinaryCrossEntropyLoss(m), 1, [1.0, 0.0, 1.0, 0.0]),
    "MSE": (lambda m: pair_losses.MSELoss(m), 1, [0.5, 0.1, 0.9, 0.3]),
    "margin MSE": (lambda m: pair_losses.MarginMSELoss(m), 2, [0.5, 0.1, 0.9, 0.3]),
    "MNRL": (lambda m: pair_losses.MultipleNegativesRankingLoss(m, num_negatives=None), 1, None),
    "cached MNRL": (
        lambda m: pair_losses.CachedMultipleNegativesRankingLoss(m, num_negatives=None, mini_batch_size=3),
        1,
        None,
    ),
}
LIST_LOSSES = ("LambdaLoss", "ListMLELoss", "ListNetLoss", "PListMLELoss", "RankNetLoss", "ADRMSELoss")


def test_losses_of_cross_encoders_see_the_scores_of_score(judge):
    queries, candidates = text("an anchor of"), mixed(0)
    model = judge[0].model
    expected = torch.stack([model.score(query, candidates, output="logit") for query in queries])  # [4, 4]

    features = judge.preprocess(PAIRS)
    scores = judge(features)["scores"]
    assert scores.shape == (4, 1) and torch.allclose(scores[:, 0].float(), expected.diagonal(), atol=1e-5)

    labels = torch.tensor([1.0, 0.0, 1.0, 0.0])
    found = pair_losses.BinaryCrossEntropyLoss(judge)([queries, candidates], labels)
    binary = torch.nn.functional.binary_cross_entropy_with_logits(expected.diagonal(), labels)
    assert found.item() == pytest.approx(binary.item(), abs=1e-5)

    ranking = torch.nn.functional.cross_entropy(10 * expected.sigmoid(), torch.arange(4))
    for make in (PAIR_LOSSES["MNRL"][0], PAIR_LOSSES["cached MNRL"][0]):
        assert make(judge)([queries, candidates], None).item() == pytest.approx(ranking.item(), abs=1e-4)


def test_every_loss_of_cross_encoders_runs_on_mixed_pairs(judge):
    judge.train()
    weight = judge[0].model.get_input_embeddings().weight
    for name, (make, count, labels) in PAIR_LOSSES.items():
        columns = [text("an anchor of"), mixed(0), mixed(10)][: count + 1]
        weight.grad = None
        make(judge)(columns, None if labels is None else torch.tensor(labels)).backward()
        assert weight.grad.abs().sum() > 0, name

    lists = [mixed(0), mixed(10)[:3]]
    labels = [torch.tensor([1.0, 0, 0, 1]), torch.tensor([0.0, 1, 0])]
    for name in LIST_LOSSES:
        weight.grad = None
        getattr(pair_losses, name)(judge, mini_batch_size=3)([text("an anchor of")[:2], lists], labels).backward()
        assert weight.grad.abs().sum() > 0, name


def test_the_trainer_of_cross_encoders_learns_pairs_with_images(judge, tmp_path):
    rows = {"query": text("an anchor of"), "answer": images(0), "label": [1.0, 0.0, 1.0, 0.0]}
    args = arguments(CrossEncoderTrainingArguments, tmp_path, max_steps=6, learning_rate=2e-4, save_strategy="no")
    trainer = CrossEncoderTrainer(judge, args, Dataset.from_dict(rows), loss=pair_losses.BinaryCrossEntropyLoss(judge))
    trainer.train()
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert history[-1] < 0.9 * history[0]


def test_the_example_trains_both_on_triplets_of_the_miniature_world(backbone, tmp_path):
    small = ["--rows", "16", "--test-rows", "8", "--steps", "2"]
    results = triplets.main(["--backbone", str(backbone), "--out", str(tmp_path), *small])
    assert sorted(results) == ["embedder", "reranker"]
    assert UniMEModel.from_pretrained(tmp_path / "embedder").encode("a red ring").isfinite().all()

    rows = triplets.triplets(3, seed=0)
    anchors = list(rows["anchor"])
    assert anchors == list(triplets.triplets(3, seed=0)["anchor"])
    pairs = triplets.labelled_pairs(rows)
    assert list(pairs["query"]) == anchors * 2 and list(pairs["label"]) == [1, 1, 1, 0, 0, 0]
    pictures = [picture.tobytes() for picture in rows["positive"]]
    assert [answer.tobytes() for answer in pairs["answer"]] == [*pictures, *pictures[1:], pictures[0]]
    assert not {picture.tobytes() for picture in rows["negative"]} & set(pictures)
