"""`unime eval errors`: a page of the worst mistakes of a measured model, with what came first and what is right."""

import html
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from ..data.schema import Item
from ..files.writing import read_arrays, write_text
from ..jobs.item_pages import figure_of, page_of
from .runner import RANKINGS, read_result
from .tasks import Task

SHOWN = 6  # candidates of each mistake
LEAST = 10  # right answers from which it is told how sure a model is of them
RIGHT = "#2f855a"
WRONG = "#c53030"


@dataclass(frozen=True)
class Mistake:
    """A query whose right answer did not come first.

    Args:
        query (`Item`), right (`list[Item]`): what was asked, and the answers that count as right.
        rank (`int`): of the best of these, from 1.
        candidates (`int`): that the query has.
        first (`list[tuple]`): what came first: `(item, similarity, whether it is right)`.
        doubt (`str`): why the right answer is likely not right; empty where there is no sign of it.
    """

    query: Item
    right: list[Item]
    rank: int
    candidates: int
    first: list[tuple[Item, float, bool]]
    doubt: str


def mistakes_of(task: Task, ranks: list[int], top: np.ndarray, similarity: np.ndarray) -> list[Mistake]:
    """The mistakes of a task, the worst first: those whose right answer came last.

    An answer is doubted where the model is as sure of what came first as it is, on average, of answers that are right
    (of which there must be `LEAST`), and puts the given one into the lower half of all candidates; or where the query
    has, under another number, the answer that came first.

    Args:
        task ([`~unime.eval.tasks.Task`]).
        ranks (`list[int]`): of each query's best right answer.
        top (array `[Q, depth]`), similarity (array `[Q, depth]`): of the best candidates, as a result keeps them.
    """
    # as sure as the model is where it is right
    sure = [float(similarity[number, 0]) for number, rank in enumerate(ranks) if rank == 1]
    threshold = fmean(sure) if len(sure) >= LEAST else float("inf")

    # what equal queries count as right, under any number
    right_of: dict[Item, set[Item]] = {}
    for number in range(len(ranks)):
        right_of.setdefault(task.queries[number], set()).update(_right(task, number))

    mistakes = []
    for number, rank in enumerate(ranks):
        if rank == 1:
            continue

        # what came first, and whether it is right
        right = _right(task, number)
        first = []
        for position, value in zip(top[number].tolist(), similarity[number].tolist()):
            if position >= 0:  # -1 where a task has fewer candidates
                first.append((task.corpus[position], value, task.corpus[position] in right))

        # two signs that the right answer may not be the only one
        query = task.queries[number]
        count = len(task.options(number))
        doubt = ""
        if first and first[0][0] in right_of[query] and not first[0][2]:
            doubt = "the same query has this answer elsewhere"
        elif first and first[0][1] >= threshold and rank > count / 2:
            doubt = f"the model is as sure of the first as where it is right, and puts this one at {rank} of {count}"
        mistakes.append(Mistake(query, right, rank, count, first, doubt))

    return sorted(mistakes, key=lambda mistake: -mistake.rank)


def _right(task: Task, number: int) -> list[Item]:
    """The right answers of a query."""
    options = task.options(number)
    return [task.corpus[options[place]] for place in task.relevant[number]]


def write_mistakes(path, tasks: Iterable[Task], out, count: int) -> dict[str, tuple[int, int]]:
    """Writes the page of a result.

    Args:
        path (`str` or `Path`): of `results.json`.
        tasks: those that were measured.
        out (`str` or `Path`): the HTML file.
        count (`int`): how many mistakes of each data set are shown.

    Returns:
        `{data set: (mistakes, those whose right answer is doubted)}`.

    Raises:
        ValueError: the result, or its rankings, cannot be read.
    """
    path = Path(path)
    results = read_result(path)["tasks"]
    rankings, _ = read_arrays(path.with_name(RANKINGS))

    counts = {}
    sections = []
    for task in tasks:
        if task.name not in results or f"{task.name}/top" not in rankings:
            continue

        top = rankings[f"{task.name}/top"]
        mistakes = mistakes_of(task, results[task.name]["ranks"], top, rankings[f"{task.name}/similarity"])
        doubted = [mistake for mistake in mistakes if mistake.doubt]
        counts[task.name] = (len(mistakes), len(doubted))

        # what is doubted stands first: it may be no mistake
        shown = doubted[:count]
        shown += [mistake for mistake in mistakes if not mistake.doubt][: count - len(shown)]
        queries = len(results[task.name]["ranks"])
        sections.append(
            f"<h1>{html.escape(task.name)}</h1><p>{len(mistakes)} of {queries} queries were not answered right; "
            f"{len(doubted)} right answers are likely label errors. {len(shown)} are shown.</p>"
        )
        for mistake in shown:
            sections += _section(mistake)

    write_text(out, page_of(f"Mistakes of {path.parent.parent.name}", sections))
    return counts


def _section(mistake: Mistake) -> list[str]:
    """Lines of a mistake: query and right answers, then what came first."""
    note = f" \N{MIDDLE DOT} <b>likely label error: {html.escape(mistake.doubt)}</b>" if mistake.doubt else ""
    lines = [
        f"<section><h2>the right answer is at {mistake.rank} of {mistake.candidates}{note}</h2><div class=row>",
        figure_of(mistake.query, "query", "wide"),
    ]
    for item in mistake.right[:SHOWN]:
        lines.append(figure_of(item, "right", "wide positive"))

    # what the model took for better
    lines.append("</div><p>what came first</p><div class=row>")
    for place, (item, similarity, is_right) in enumerate(mistake.first[:SHOWN], 1):
        lines.append(figure_of(item, f"{place}. {similarity:.3f}", "", RIGHT if is_right else WRONG))
    lines.append("</div></section>")
    return lines
