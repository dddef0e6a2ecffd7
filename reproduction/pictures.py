"""What the stages do to similarities and to the next word: claims F5 and F6."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch

from ..data.schema import Item
from ..eval.figures import next_tokens, similarity_matrix
from ..miniature.scenes import COLOURS, SHAPES, plural
from ..trainers.starting import load_model
from .findings import Finding, compare_values
from .laboratory import Laboratory

PAIRS = 50
SHOWN = 3  # pictures in the figure of next words
WORDS = 10  # next words of each
# what a picture shows, in place of how a sentence begins
CONCRETE = frozenset([*COLOURS, *SHAPES, *map(plural, SHAPES)])


def _models(laboratory: Laboratory) -> Iterator:
    """Titles with embedders: the raw backbone, and the first seed after each stage."""
    yield "raw", load_model(laboratory.backbone, "summary")
    yield "stage 1", load_model(laboratory.stage_1(0))
    yield "stages 1 + 2", load_model(laboratory.stages_1_2(0))


def _pairs(laboratory: Laboratory) -> tuple[list[Item], list[Item]]:
    """Pictures and their captions, all different."""
    task = laboratory.by_name["Shapes_i2t"]
    pairs = {}
    for query, candidates, relevant in zip(task.queries, task.candidates, task.relevant):
        caption = task.corpus[candidates[relevant[0]]]
        if query not in pairs and caption not in pairs.values():
            pairs[query] = caption
    return list(pairs)[:PAIRS], list(pairs.values())[:PAIRS]


def matrix_sharpens(laboratory: Laboratory) -> Finding:
    """F5: the similarity matrix of 50 pairs sharpens from raw to stage 1 to stage 2."""
    images, captions = _pairs(laboratory)
    panels = {}
    for title, model in _models(laboratory):
        rows = model.encode_query([item.as_input() for item in images])
        columns = model.encode_document([item.as_input() for item in captions])
        panels[title] = (rows.float().cpu(), columns.float().cpu())
    picture = similarity_matrix(panels, laboratory.out / "F5.png", "picture", "caption")

    # of each picture: how far its caption stands out, in units of how the others spread
    sharpness = {title: _sharpness(*panel) for title, panel in panels.items()}
    titles = list(panels)
    comparisons = []
    for earlier, later in pairwise(titles):
        name = f"how far matches stand out: {later} over {earlier}"
        comparisons.append(compare_values(name, sharpness[later], sharpness[earlier], unit="standard deviations"))
    table = {title: {"matches stand out by": f"{values.mean():.2f}"} for title, values in sharpness.items()}
    return Finding(
        f"Cosines of {len(images)} pictures with {len(captions)} captions of the test split. A picture's caption "
        "stands out by its cosine less the mean of the others, over the standard deviation of the others.",
        comparisons,
        table,
        [picture.name],
        ["The paper shows the matrices without figures."],
    )


def _sharpness(rows: torch.Tensor, columns: torch.Tensor) -> np.ndarray:
    """By how many standard deviations of the others the match of each row stands out, `[N]`."""
    matrix = (rows @ columns.T).double().numpy()  # [N, N]
    others = matrix[~np.eye(len(matrix), dtype=bool)].reshape(len(matrix), -1)  # [N, N - 1]
    return (np.diag(matrix) - others.mean(1)) / others.std(1).clip(1e-9)


def words_become_concrete(laboratory: Laboratory) -> Finding:
    """F6: the next-token distribution after "in one word:" moves to concrete words and spreads over them."""
    images, _ = _pairs(laboratory)
    head = load_model(laboratory.backbone, reranker=True).get_output_embeddings().weight.detach()

    panels = {}
    concrete = {}
    effective = {}
    for title, model in _models(laboratory):
        probabilities = _next_word_probabilities(model, head, images)  # [N, V]
        vocabulary = [model.processor.tokenizer.decode([token]) for token in range(probabilities.shape[1])]
        is_concrete = torch.tensor([word.strip().lower() in CONCRETE for word in vocabulary])
        concrete[title] = probabilities[:, is_concrete].sum(1).numpy()

        # how many words the concrete mass is spread over: the exponential of its entropy
        share = probabilities[:, is_concrete] / probabilities[:, is_concrete].sum(1, keepdim=True).clamp(min=1e-12)
        effective[title] = torch.special.entr(share).sum(1).exp().numpy()
        panels[title] = _most_probable(images[:SHOWN], probabilities, vocabulary)
    picture = next_tokens(panels, laboratory.out / "F6.png")

    last = "stages 1 + 2"
    comparisons = [
        compare_values(
            "probability of concrete words: stage 1 over raw", concrete["stage 1"], concrete["raw"], unit="probability"
        ),
        compare_values(
            f"probability of concrete words: {last} over raw", concrete[last], concrete["raw"], unit="probability"
        ),
        compare_values(
            f"words they are spread over: {last} over stage 1", effective[last], effective["stage 1"], unit="words"
        ),
    ]
    table = {}
    for title in panels:
        table[title] = {
            "concrete": f"{concrete[title].mean():.3f}",
            "spread over": f"{effective[title].mean():.2f} words",
        }
    return Finding(
        f"The distribution of the word after the prompt of each of {len(images)} pictures, through the output head of "
        "the backbone. Concrete are the names of colours and shapes.",
        comparisons,
        table,
        [picture.name],
        [
            "The backbone's own lessons teach it such words (`Summary above image in one word:` red), other than the "
            "papers' backbones; the paper's picture goes from Pastoral (90 %) to Farm (92.5 %) to House (64.9 %)."
        ],
    )


def _next_word_probabilities(model, head: torch.Tensor, images: list[Item]) -> torch.Tensor:
    """Probabilities `[N, V]` of the token after each picture's prompt."""
    model.config.normalize = False  # the last hidden state itself
    states = model.encode_query([item.as_input() for item in images]).float().cpu()  # [N, D]
    logits = states @ head.float().cpu().T  # [N, V]
    return logits[:, : len(model.processor.tokenizer)].double().softmax(-1)


def _most_probable(images: list[Item], probabilities: torch.Tensor, vocabulary: list[str]) -> list:
    """Each picture with its most probable next words."""
    lines = []
    for image, row in zip(images, probabilities):
        values, tokens = row.topk(min(WORDS, len(row)))
        words = [vocabulary[token] for token in tokens.tolist()]
        lines.append((image, list(zip(words, values.tolist()))))
    return lines
