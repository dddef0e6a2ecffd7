"""`unime mine inspect`: a page, a picture and histograms of what was mined, and of what was not and why."""

import html
import random
import textwrap
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from ..data.schema import Item
from ..files.writing import write_text, write_whole
from ..images_unime import open_image
from ..jobs.item_pages import figure_of, page_of, words_of
from .calibration import sentence
from .selection import allowed
from .symptoms import TELLS, comparisons

SHEET_ROWS = 6  # of the picture
SHEET_COLUMNS = 8

# what became of a candidate, as the page words it
NEGATIVE = "negative"
REFUSED = "left out: judged too close to the positive"
SPARE = "allowed, not needed"
COLOURS = {NEGATIVE: "#2b6cb0", REFUSED: "#c53030", SPARE: "#718096"}
POSITIVE_COLOUR = "#2f855a"


@dataclass(frozen=True)
class Candidate:
    """A retrieved candidate as the page shows it: its rank from 1, and what became of it."""

    item: Item
    rank: int
    fate: str
    score: float
    similarity: float


@dataclass(frozen=True)
class Case:
    """A judged row as the page shows it; it is dropped where no candidate became a negative.

    `doubt` says why its positive is likely not right, and is empty where there is no sign of it.
    """

    dataset: str
    query: Item
    positive: Item
    positive_score: float
    positive_similarity: float
    dropped: bool
    candidates: list[Candidate]
    doubt: str = ""

    def with_fate(self, fate: str) -> list[Candidate]:
        """The candidates of one fate, nearest first."""
        return [candidate for candidate in self.candidates if candidate.fate == fate]


def fate(positive_score: float, scores: np.ndarray, selected: Sequence[int], margin: float | str) -> list[str]:
    """What became of each candidate: selected, refused by the judge, or allowed but not needed.

    Args:
        positive_score (`float`): the judge's score of the positive.
        scores (array `[n]`): those of the candidates.
        selected (`Sequence[int]`): places of the negatives among the candidates.
        margin (`float` or `"released"`): see [`~unime.mining.selection.allowed`].

    Returns:
        `NEGATIVE`, `REFUSED` or `SPARE` for each of them.
    """
    fates = []
    for place, is_allowed in enumerate(allowed(positive_score, scores, margin).tolist()):
        if place in selected:
            fates.append(NEGATIVE)
        elif is_allowed:
            fates.append(SPARE)
        else:
            fates.append(REFUSED)
    return fates


def likely_errors(judged: Collection[dict]) -> dict[int, str]:
    """The rows whose positive is likely not right, by their places, and why.

    The judge is as sure of a candidate as it is, on average, of positives that score highest, and more than half of
    the candidates score above the positive. Of a judge that cannot tell right from wrong, nothing is learnt.

    Args:
        judged (`Collection[dict]`): rows with `positive_score` and the `scores` of their candidates.
    """
    # how often the judge puts a candidate below the positive, and how sure it is where it puts all of them there
    count = 0
    below = 0.0
    highest = []
    for row in judged:
        positive = row["positive_score"]
        scores = row["scores"]
        if len(scores):
            count += len(scores)
            below += comparisons(np.array([positive]), scores[None])
            if positive > scores.max():
                highest.append(positive)
    if not highest or below / count < TELLS:
        return {}

    # a candidate of which it is as sure as that
    threshold = fmean(highest)
    errors = {}
    for place, row in enumerate(judged):
        scores = row["scores"]
        above = int((scores > row["positive_score"]).sum())
        if above > len(scores) / 2 and scores.max() >= threshold:
            errors[place] = f"the judge puts {above} of {len(scores)} candidates above it, one at {scores.max():.3f}"
    return errors


def draw(mining, path: Path):
    """Writes the page, and beside it a PNG of its first rows, one of histograms, and one of the judge's calibration
    where rows have known answers.

    Args:
        mining ([`~unime.mining.pipeline.Mining`]): a folder in which `judge` is finished.
        path (`Path`): the HTML file.

    Raises:
        ValueError: no row was judged.
    """
    config = mining.config
    judged = mining.judged
    if not len(judged):
        raise ValueError(f"{mining.out} has no judged row: there was no pair to mine.")

    # what is doubted stands first, on half of the page at most; then a sample of the rows, in their order
    errors = likely_errors(judged)
    doubted = list(errors)[: config.count // 2]
    others = [place for place in range(len(judged)) if place not in errors]
    places = random.Random(config.seed).sample(others, min(config.count - len(doubted), len(others)))
    cases = [_case(mining, judged[place], errors.get(place, "")) for place in [*doubted, *sorted(places)]]

    # what became of all candidates, not only of those shown
    fates = Counter()
    for row in judged:
        fates.update(_fates(mining, row))

    calibration = sentence(mining, path.with_suffix(".calibration.png"))
    write_text(path, _page(path.stem, cases, fates, len(judged), len(errors), calibration))
    _sheet(cases[:SHEET_ROWS], path.with_suffix(".png"))
    _histograms(judged, config.margin, path.with_suffix(".histograms.png"))


def _selected(mining, row: dict) -> list[int]:
    """Places of the negatives among a row's candidates."""
    choice = mining.choice(row)
    return [] if choice is None else choice[0]


def _fates(mining, row: dict) -> list[str]:
    """What became of each candidate of a row."""
    return fate(row["positive_score"], row["scores"], _selected(mining, row), mining.config.margin)


def _case(mining, row: dict, doubt: str) -> Case:
    """One row as the page shows it."""
    candidates = []
    columns = zip(row["candidates"], _fates(mining, row), row["scores"], row["similarities"])
    for rank, (number, candidate_fate, score, similarity) in enumerate(columns, start=1):
        item = mining.pool.candidates[number]
        candidates.append(Candidate(item, rank, candidate_fate, float(score), float(similarity)))

    pair = row["pair"]
    return Case(
        dataset=pair.dataset,
        query=pair.query_item,
        positive=pair.item,
        positive_score=row["positive_score"],
        positive_similarity=row["positive_similarity"],
        dropped=not _selected(mining, row),
        candidates=candidates,
        doubt=doubt,
    )


def _page(title: str, cases: list[Case], fates: Counter, rows: int, errors: int, calibration: str) -> str:
    """The HTML page: a summary with the judge's calibration, then a section for each row."""
    total = max(sum(fates.values()), 1)
    counts = ", ".join(f"{fates[name]:,} {name} ({fates[name] / total:.0%})" for name in COLOURS)
    body = [f"<h1>{html.escape(title)}</h1><p>{len(cases)} of {rows:,} rows. Of all candidates: {counts}.</p>"]
    body.append(f"<p>{errors:,} positives are likely label errors. {html.escape(calibration)}</p>")
    for case in cases:
        body += _section(case)

    return page_of(title, body)


def _section(case: Case) -> list[str]:
    """Lines of a row: query and positive, then its candidates by what became of them."""
    note = " · <b>row dropped: no candidate is allowed</b>" if case.dropped else ""
    if case.doubt:
        note += f" · <b>likely label error: {html.escape(case.doubt)}</b>"
    caption = f"positive: judge {case.positive_score:.3f}, similarity {case.positive_similarity:.3f}"
    lines = [
        f"<section><h2>{html.escape(case.dataset)}{note}</h2><div class=row>",
        figure_of(case.query, "query", "wide"),
        figure_of(case.positive, caption, "wide positive"),
        "</div>",
    ]

    for name, colour in COLOURS.items():
        candidates = case.with_fate(name)
        if candidates:
            lines.append(f"<p style='color:{colour}'>{name}</p><div class=row>")
            lines += [figure_of(candidate.item, _caption(candidate), "", colour) for candidate in candidates]
            lines.append("</div>")

    lines.append("</section>")
    return lines


def _caption(candidate: Candidate) -> str:
    return f"{candidate.rank}. judge {candidate.score:.3f}, similarity {candidate.similarity:.3f}"


def _pyplot():
    """matplotlib, which draws to files without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _sheet(cases: list[Case], path: Path):
    """The first rows as a picture: query, positive, then candidates framed in the colour of what became of them."""
    plt = _pyplot()
    figure, axes = plt.subplots(
        len(cases),
        SHEET_COLUMNS,
        figsize=(1.9 * SHEET_COLUMNS, 2.5 * len(cases)),
        squeeze=False,
        layout="constrained",
    )
    for line, case in zip(axes, cases):
        cells = [
            (case.query, f"{case.dataset}\nquery", "black"),
            (case.positive, f"positive\njudge {case.positive_score:.3f}", POSITIVE_COLOUR),
        ]
        for candidate in _sheet_candidates(case, SHEET_COLUMNS - len(cells)):
            word = candidate.fate.split(":")[0].split(",")[0]  # "negative", "left out" or "allowed"
            cells.append((candidate.item, f"{word}\njudge {candidate.score:.3f}", COLOURS[candidate.fate]))

        for axis, cell in zip(line, cells):
            _cell(axis, *cell)

        # cells for which there is no candidate
        for axis in line[len(cells) :]:
            axis.axis("off")

    write_whole(path, lambda draft: figure.savefig(draft, dpi=90, format="png"))
    plt.close(figure)


def _sheet_candidates(case: Case, count: int) -> list[Candidate]:
    """Negatives, with two places reserved for refused candidates, then the others until the line is full."""
    negatives = case.with_fate(NEGATIVE)[: count - 2]
    refused = case.with_fate(REFUSED)[: count - len(negatives)]
    first = negatives + refused
    others = [candidate for candidate in case.candidates if candidate not in first]
    return (first + others)[:count]


def _cell(axis, item: Item, title: str, colour: str):
    """One item of the picture: its image above its text, or its text alone, in a coloured frame."""
    axis.set_title(title, fontsize=8, color=colour, parse_math=False)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=2)

    words = words_of(item)
    if item.image:
        axis.imshow(open_image(item.image))
        axis.set_xlabel("\n".join(textwrap.wrap(words, 24)[:5]), fontsize=6, parse_math=False)
    else:
        text = "\n".join(textwrap.wrap(words, 18)[:8])
        axis.text(0.5, 0.5, text, ha="center", va="center", fontsize=7, parse_math=False)


def _column(judged: list[dict], name: str) -> list:
    return [row[name] for row in judged]


def _histograms(judged: list[dict], margin: float | str, path: Path):
    """Judge scores of positives and candidates, and similarity against judge score."""
    plt = _pyplot()
    figure, (score_axis, similarity_axis) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    positives = np.array(_column(judged, "positive_score"))  # [R]
    scores = np.concatenate(_column(judged, "scores"))  # [C], of the candidates of all rows
    is_allowed = np.concatenate([allowed(row["positive_score"], row["scores"], margin) for row in judged])  # [C]

    # there are far more candidates than positives: each kind is drawn as shares of itself
    bins = np.linspace(0, 1, 41)
    for values, label, colour in (
        (positives, "positives", POSITIVE_COLOUR),
        (scores[is_allowed], "candidates allowed", COLOURS[NEGATIVE]),
        (scores[~is_allowed], "candidates left out", COLOURS[REFUSED]),
    ):
        weights = np.full(len(values), 1 / max(len(values), 1))
        label = f"{label} ({len(values):,})"
        score_axis.hist(values, bins, weights=weights, histtype="step", linewidth=2, label=label, color=colour)
    score_axis.set(xlabel="judge score", ylabel="share", title="Judge scores")
    score_axis.legend()

    # all candidates as a density, with the positives as dots on top
    similarities = np.concatenate(_column(judged, "similarities"))  # [C]
    positive_similarities = _column(judged, "positive_similarity")  # [R]
    mesh = similarity_axis.hexbin(similarities, scores, gridsize=40, bins="log", cmap="viridis", mincnt=1)
    similarity_axis.scatter(positive_similarities, positives, s=4, color="#e53e3e", alpha=0.5, label="positives")
    similarity_axis.set(xlabel="similarity to the query", ylabel="judge score", title="Similarity against judge score")
    similarity_axis.legend(loc="lower left")

    figure.colorbar(mesh, ax=similarity_axis, label="candidates")
    write_whole(path, lambda draft: figure.savefig(draft, dpi=100, format="png"))
    plt.close(figure)
