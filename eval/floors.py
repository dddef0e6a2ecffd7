"""What a task yields without any model: chance, the commonest answer, words, thumbnails and colours.

A model that is not above these has learnt nothing that a few lines would not do.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from statistics import fmean

import bm25s
import numpy as np
import torch

from ..data.schema import Item
from ..images_unime import open_image
from ..jobs.metrics import places
from .runner import score_task
from .tasks import Task

SIDE = 16  # pixels of a thumbnail's side
SHADES = 4  # of each primary colour in a histogram


def floors_of(task: Task) -> dict[str, float]:
    """The precision@1 of methods without a model.

    Args:
        task ([`~unime.eval.tasks.Task`]).

    Returns:
        `dict[str, float]`: `chance`; `commonest answer`, which is right for the most queries; `BM25`, if all queries
        and candidates have texts; and `16 x 16 pixels` and `colours`, if all have pictures.

    Example:

    ```python
    corpus = [Item("a red ring"), Item("a blue star")]
    floors_of(Task("t", "text to text", [Item("red")], corpus, None, [[0]]))  # {"chance": 0.5, ..., "BM25": 1.0}
    ```
    """
    floors = {"chance": _chance(task), "commonest answer": _commonest_answer(task)}
    items = [*task.queries, *task.corpus]

    # words can be compared where all items have some
    if all(item.text.strip() for item in items):
        floors["BM25"] = _bm25(task)

    # and pictures where all have one
    if all(item.image and not item.is_video for item in items):
        floors["16 x 16 pixels"] = _by_pictures(task, _thumbnail)
        floors["colours"] = _by_pictures(task, _colours)
    return floors


def _chance(task: Task) -> float:
    """How often a candidate drawn at random is right."""
    shares = []
    for number, relevant in enumerate(task.relevant):
        shares.append(len(relevant) / len(task.options(number)))
    return fmean(shares)


def _commonest_answer(task: Task) -> float:
    """How often the candidate is right that is right for the most queries."""
    counts = Counter()
    for number in range(len(task.queries)):
        counts.update(task.right(number))
    return max(counts.values()) / len(task.queries)


def _bm25(task: Task) -> float:
    """BM25 over the words of the candidates, with the words of the query."""
    tokenize = partial(bm25s.tokenize, stopwords=None, return_ids=False, show_progress=False)
    corpus = tokenize([item.text for item in task.corpus])
    queries = tokenize([item.text for item in task.queries])

    # texts without a single word
    if not any(corpus):
        return 0.0
    index = bm25s.BM25()
    index.index(corpus, show_progress=False)

    def scores() -> Iterator[torch.Tensor]:
        for number, words in enumerate(queries):
            # words that no candidate has score nothing, and are unknown to the index
            in_corpus = [word for word in words if word in index.vocab_dict]
            all_scores = np.zeros(len(corpus), np.float32)
            if in_corpus:
                all_scores = index.get_scores(in_corpus)
            yield torch.from_numpy(all_scores[np.asarray(task.options(number))])

    return _precision(task, scores())


def _precision(task: Task, scores: Iterable[torch.Tensor]) -> float:
    """precision@1 from the scores `[C]` of each query's candidates; ties count as wrong."""
    hits = []
    for relevant, query_scores in zip(task.relevant, scores):
        hits.append(min(places(query_scores, relevant)) == 1)
    return fmean(hits)


def _by_pictures(task: Task, describe: Callable[[np.ndarray], np.ndarray]) -> float:
    """precision@1 by the cosine of what describes the pixels of two pictures."""
    queries = _descriptions(task.queries, describe)
    corpus = _descriptions(task.corpus, describe)
    result, _, _ = score_task(queries, corpus, task)
    return result["precision@1"]


def _descriptions(items: Sequence[Item], describe: Callable[[np.ndarray], np.ndarray]) -> torch.Tensor:
    """Unit vectors `[N, D]` that describe pictures."""
    vectors = []
    for item in items:
        pixels = np.asarray(open_image(item.image).resize((SIDE, SIDE)), np.float32)  # [16, 16, 3]
        vectors.append(torch.from_numpy(describe(pixels)))
    return torch.nn.functional.normalize(torch.stack(vectors), dim=-1)


def _thumbnail(pixels: np.ndarray) -> np.ndarray:
    """The pixels themselves, less their mean: `[768]`."""
    return (pixels - pixels.mean()).ravel()


def _colours(pixels: np.ndarray) -> np.ndarray:
    """The square roots of how often each of 64 colours occurs, `[64]`: products are Bhattacharyya's coefficient."""
    shades = (pixels * SHADES / 256).astype(np.int64)  # [16, 16, 3], from 0 to 3
    numbers = (shades[..., 0] * SHADES + shades[..., 1]) * SHADES + shades[..., 2]
    counts = np.bincount(numbers.ravel(), minlength=SHADES**3)
    return np.sqrt(counts).astype(np.float32)
