"""sentence-transformers trains both of our models on captions, their pictures, and pictures with one thing changed.

    python -m unime.examples.triplets --backbone outputs/backbone --out outputs/triplets

A `SentenceTransformer` learns from triplets by a cached contrastive loss, a `CrossEncoder` from pairs by binary cross
entropy. Both are measured on scenes that no training has seen: how often is the caption's picture preferred to the
changed one?
"""

import argparse
import random
from pathlib import Path

import numpy as np
from datasets import Dataset
from sentence_transformers import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

from ..miniature.scenes import caption, change, draw, pair, sample
from ..modeling_unime import UniMEModel, UniMERerankerForCausalLM


def triplets(count: int, seed: int, test: bool = False) -> Dataset:
    """Rows of an `anchor`, a caption, its picture (`positive`), and one in which a thing has changed (`negative`).

    Args:
        count (`int`): rows.
        seed (`int`): of the drawing.
        test (`bool`, defaults to `False`): draw scenes of the test split.
    """
    rng = random.Random(seed)
    rows = {"anchor": [], "positive": [], "negative": []}
    for _ in range(count):
        scene = sample(pair, rng, test)
        _, changed = change(scene, rng)
        rows["anchor"].append(caption(scene))
        rows["positive"].append(draw(scene))
        rows["negative"].append(draw(changed))
    return Dataset.from_dict(rows)


def labelled_pairs(rows: Dataset) -> Dataset:
    """Pairs of a `query` and an `answer`: captions with their own pictures, `label` 1, and with those of others, 0.

    Changed pictures are too hard for a small model to begin with.
    """
    captions = list(rows["anchor"])
    pictures = list(rows["positive"])
    others = pictures[1:] + pictures[:1]
    labels = [1.0] * len(rows) + [0.0] * len(rows)
    return Dataset.from_dict({"query": captions * 2, "answer": pictures + others, "label": labels})


def preferred_by_embedder(model: SentenceTransformer, rows: Dataset) -> float:
    """The share of captions whose own picture is more similar to them than the changed one."""
    anchors = model.encode_query(list(rows["anchor"]))  # [N, D]
    positives = model.encode_document(list(rows["positive"]))
    negatives = model.encode_document(list(rows["negative"]))
    return float(np.mean((anchors * positives).sum(1) > (anchors * negatives).sum(1)))


def preferred_by_reranker(model: CrossEncoder, rows: Dataset) -> float:
    """The share of captions whose own picture has the higher score."""
    positives = model.predict(list(zip(rows["anchor"], rows["positive"])))  # [N]
    negatives = model.predict(list(zip(rows["anchor"], rows["negative"])))
    return float(np.mean(positives > negatives))


def train_embedder(model: SentenceTransformer, rows: Dataset, out: Path, steps: int):
    """Trains on triplets; in each step every picture of the batch is a candidate for every caption."""
    arguments = SentenceTransformerTrainingArguments(str(out), **_settings(steps, 32))
    loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=16)
    SentenceTransformerTrainer(model, arguments, rows, loss=loss).train()


def train_reranker(model: CrossEncoder, rows: Dataset, out: Path, steps: int):
    """Trains on labelled pairs."""
    arguments = CrossEncoderTrainingArguments(str(out), **_settings(steps, 48))
    CrossEncoderTrainer(model, arguments, labelled_pairs(rows), loss=BinaryCrossEntropyLoss(model)).train()


def _settings(steps: int, batch_size: int) -> dict:
    return {
        "max_steps": steps,
        "per_device_train_batch_size": batch_size,
        "learning_rate": 5e-4,
        "warmup_steps": steps // 10,
        "logging_steps": max(1, steps // 10),
        "save_strategy": "no",
        "report_to": [],
        "seed": 0,
    }


def main(arguments=None) -> dict:
    """The command `python -m unime.examples.triplets`; returns what both models prefer before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", type=Path, default=Path("outputs/backbone"), help="a stock VLM")
    parser.add_argument("--out", type=Path, default=Path("outputs/triplets"), help="folder to write")
    parser.add_argument("--rows", type=int, default=2000, help="triplets to train on")
    parser.add_argument("--test-rows", type=int, default=500, help="triplets of unseen scenes to measure on")
    parser.add_argument("--steps", type=int, default=200, help="of each training")
    options = parser.parse_args(arguments)

    rows = triplets(options.rows, seed=0)
    unseen = triplets(options.test_rows, seed=1, test=True)
    results = {}
    for kind, model_class, library_class, train, preferred in (
        ("embedder", UniMEModel, SentenceTransformer, train_embedder, preferred_by_embedder),
        ("reranker", UniMERerankerForCausalLM, CrossEncoder, train_reranker, preferred_by_reranker),
    ):
        folder = options.out / kind
        model_class.from_backbone(options.backbone).save_pretrained(folder)
        model = library_class(str(folder), trust_remote_code=True)

        before = preferred(model, unseen)
        train(model, rows, folder / "training", options.steps)
        model.save_pretrained(str(folder))
        results[kind] = (before, preferred(library_class(str(folder), trust_remote_code=True), unseen))
        print(f"{kind}: the caption's own picture is preferred {before:.1%} -> {results[kind][1]:.1%}")
    return results


if __name__ == "__main__":
    main()
