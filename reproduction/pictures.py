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


def _models(laboratory: Laboratory) -> Iterator[tuple[str, list]]:
    """Titles with embedders: the raw one, which all seeds share, and those of each seed after each stage."""
    yield "raw", [load_model(laboratory.instructed, "summary")]
    yield "stage 1", [load_model(laboratory.stage_1(seed)) for seed in laboratory.seeds]
    yield "stages 1 + 2", [load_model(laboratory.stages_1_2(seed)) for seed in laboratory.seeds]


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
    cosines = {}  # by which a picture's caption stands out, [S, N]
    deviations = {}  # the same in standard deviations of the other captions
    table = {}
    for title, models in _models(laboratory):
        by_seed = [_encoded(model, images, captions) for model in models]
        panels[title] = by_seed[0]

        above, spread = zip(*(contrast_of(*panel) for panel in by_seed))
        cosines[title] = np.stack(above)
        deviations[title] = cosines[title] / np.stack(spread)
        table[title] = {
            "matches stand out by": f"{cosines[title].mean():.3f}",
            "in standard deviations of the others": f"{deviations[title].mean():.2f}",
        }
    picture = similarity_matrix(panels, laboratory.out / "F5.png", "picture", "caption")

    comparisons = []
    for unit, values in (("cosine", cosines), ("standard deviations", deviations)):
        for earlier, later in pairwise(panels):
            name = f"how far matches stand out: {later} over {earlier}"
            comparisons.append(compare_values(name, values[later], values[earlier], unit=unit))
    return Finding(
        f"Cosines of {len(images)} pictures with {len(captions)} captions of the test split. A picture's caption "
        "stands out by its cosine less the mean of the others, as the colours of the matrix show it; beside it in "
        "standard deviations of the others.",
        comparisons,
        table,
        [picture.name],
        ["The paper shows the matrices without figures."],
    )


def _encoded(model, images: list[Item], captions: list[Item]) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit-norm embeddings `[N, D]` of pictures and of their captions."""
    rows = model.encode_query([item.as_input() for item in images])
    columns = model.encode_document([item.as_input() for item in captions])
    return rows.float().cpu(), columns.float().cpu()


def contrast_of(rows: torch.Tensor, columns: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """By how much the match of each row is above the others, and how these spread, `[N]` each."""
    matrix = (rows @ columns.T).double().numpy()  # [N, N]
    others = matrix[~np.eye(len(matrix), dtype=bool)].reshape(len(matrix), -1)  # [N, N - 1]
    return np.diag(matrix) - others.mean(1), others.std(1).clip(1e-9)


def words_become_concrete(laboratory: Laboratory) -> Finding:
    """F6: the next-token distribution after "in one word:" moves to concrete words and spreads over them."""
    images, captions = _pairs(laboratory)
    backbone = load_model(laboratory.instructed, reranker=True)
    head = backbone.get_output_embeddings().weight.detach()
    tokenizer = backbone.processor.tokenizer
    vocabulary = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    is_concrete = torch.tensor([word.strip().lower() in CONCRETE for word in vocabulary])
    is_right = torch.stack([named_in(caption.text, vocabulary) for caption in captions]) & is_concrete  # [N, V]

    panels = {}
    right = {}  # probability of what is shown, [S, N]
    spread = {}  # words that it is spread over, [S, N]
    table = {}
    for title, models in _models(laboratory):
        by_seed = torch.stack([_next_word_probabilities(model, head, images) for model in models])  # [S, N, V]
        panels[title] = _most_probable(images[:SHOWN], by_seed[0], vocabulary)

        of_right = by_seed * is_right
        right[title] = of_right.sum(-1).numpy()
        spread[title] = words_spread_over(of_right)
        table[title] = {
            "what is shown": f"{right[title].mean():.3f}",
            "spread over": f"{spread[title].mean():.2f} words",
            "any colour or shape": f"{by_seed[..., is_concrete].sum(-1).mean():.3f}",
        }
    picture = next_tokens(panels, laboratory.out / "F6.png")

    first = "stage 1"
    last = "stages 1 + 2"
    shown = "probability of what is shown"
    comparisons = [
        compare_values(f"{shown}: {first} over raw", right[first], right["raw"], unit="probability"),
        compare_values(f"{shown}: {last} over raw", right[last], right["raw"], unit="probability"),
        compare_values(f"words it is spread over: {last} over {first}", spread[last], spread[first], unit="words"),
    ]
    return Finding(
        f"The distribution of the word after the prompt of each of {len(images)} pictures, through the output head of "
        "the backbone. Concrete are the colours and shapes that the picture shows.",
        comparisons,
        table,
        [picture.name],
        [
            "The backbone's own lessons teach it to name a word of what is shown (`Summary above image in one word:` "
            "red), which the papers' backbones were not. The paper's picture goes from Pastoral (90 %) to Farm "
            "(92.5 %) to House (64.9 %)."
        ],
    )


def _next_word_probabilities(model, head: torch.Tensor, images: list[Item]) -> torch.Tensor:
    """Probabilities `[N, V]` of the token after each picture's prompt."""
    model.config.normalize = False  # the last hidden state itself
    states = model.encode_query([item.as_input() for item in images]).float().cpu()  # [N, D]
    logits = states @ head.float().cpu().T  # [N, V]
    return logits[:, : len(model.processor.tokenizer)].double().softmax(-1)


def words_spread_over(probabilities: torch.Tensor) -> np.ndarray:
    """How many words each row of probabilities `[..., V]` is spread over, `[...]`: the exponential of its entropy."""
    share = probabilities / probabilities.sum(-1, keepdim=True).clamp(min=1e-12)
    return torch.special.entr(share).sum(-1).exp().numpy()


def named_in(caption: str, vocabulary: list[str]) -> torch.Tensor:
    """Which words `[V]` a caption has, in the singular or the plural."""
    caption_words = caption.split()
    words = [word.strip().lower() for word in vocabulary]
    return torch.tensor([word in caption_words or plural(word) in caption_words for word in words])


def _most_probable(images: list[Item], probabilities: torch.Tensor, vocabulary: list[str]) -> list:
    """Each picture with its most probable next words."""
    lines = []
    for image, row in zip(images, probabilities):
        values, tokens = row.topk(min(WORDS, len(row)))
        words = [vocabulary[token] for token in tokens.tolist()]
        lines.append((image, list(zip(words, values.tolist()))))
    return lines
