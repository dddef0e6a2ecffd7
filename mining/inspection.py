"""`unime mine inspect`: a page, a picture and histograms of what was mined, and of what was not and why."""

import base64
import html
import io
import random
from collections import Counter
from pathlib import Path

import numpy as np

from ..data.schema import PLACEHOLDER, Item
from ..images_unime import open_image
from .selection import allowed

SIDE = 112  # pixels of a thumbnail
KEPT, REFUSED, SPARE = "negative", "left out: judged too close to the positive", "allowed, not needed"
COLOURS = {KEPT: "#2b6cb0", REFUSED: "#c53030", SPARE: "#718096"}
STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 1280px; color: #1a202c }
section { border-top: 2px solid #cbd5e0; padding: 1em 0 } h2 { font-size: 1em; margin: 0 0 .6em }
.row { display: flex; flex-wrap: wrap; gap: 8px; margin-bottom: .6em }
figure { margin: 0; padding: 6px; width: 124px; border: 2px solid #e2e8f0; border-radius: 4px; font-size: 12px }
figure img { max-width: 112px; max-height: 112px; display: block } figcaption { overflow-wrap: anywhere }
.wide { width: 260px } .positive { border-color: #2f855a } b { font-variant-numeric: tabular-nums }
"""


def fate(positive_score: float, scores: np.ndarray, chosen: list[int], margin) -> list[str]:
    """What became of each candidate: selected, refused by the judge, or allowed but not needed."""
    free = allowed(positive_score, scores, margin)
    return [
        KEPT if place in chosen else SPARE if own else REFUSED for place, own in zip(range(len(scores)), free.tolist())
    ]


def draw(mining, path: Path):
    """Writes the page, and beside it a PNG of its first rows and one of histograms.

    Args:
        mining ([`~unime.mining.pipeline.Mining`]): a folder in which `judge` is finished.
        path (`Path`): the HTML file.
    """
    config, judged = mining.config, mining.judged
    if not judged:
        raise ValueError(f"{mining.out} holds no judged row.")
    places = random.Random(config.seed).sample(range(len(judged)), min(config.count, len(judged)))
    cases = [_case(mining, judged[place]) for place in sorted(places)]
    fates = Counter()
    for row in judged:
        fates.update(fate(row["positive_score"], row["scores"], _places(mining, row), config.margin))
    path.write_text(_page(path.stem, cases, fates, len(judged)), encoding="utf-8")
    _sheet(cases[:6], path.with_suffix(".png"))
    _histograms(judged, fates, config.margin, path.with_suffix(".histograms.png"))


def _places(mining, row) -> list[int]:
    found = mining.choice(row)
    return [] if found is None else found[0]


def _case(mining, row) -> dict:
    """One row as the page shows it."""
    pair = row["pair"]
    chosen = _places(mining, row)
    fates = fate(row["positive_score"], row["scores"], chosen, mining.config.margin)
    shown = [
        {
            "item": mining.pool.candidates[candidate],
            "fate": own,
            "score": float(score),
            "similarity": float(similarity),
            "rank": rank + 1,
        }
        for rank, (candidate, own, score, similarity) in enumerate(
            zip(row["candidates"], fates, row["scores"], row["similarities"])
        )
    ]
    return {
        "dataset": pair.dataset,
        "query": mining.pool.queries[pair.query],
        "positive": pair.item,
        "positive_score": row["positive_score"],
        "positive_similarity": row["positive_similarity"],
        "dropped": not chosen,
        "candidates": shown,
    }


def _page(title: str, cases: list[dict], fates: Counter, rows: int) -> str:
    total = max(sum(fates.values()), 1)
    counts = ", ".join(f"{fates[name]:,} {name} ({fates[name] / total:.0%})" for name in COLOURS)
    body = [f"<h1>{html.escape(title)}</h1><p>{len(cases)} of {rows:,} rows. Of all candidates: {counts}.</p>"]
    for case in cases:
        fields = f"judge {case['positive_score']:.3f}, similarity {case['positive_similarity']:.3f}"
        note = " · <b>row dropped: no candidate is allowed</b>" if case["dropped"] else ""
        body.append(f"<section><h2>{html.escape(case['dataset'])}{note}</h2><div class=row>")
        body.append(_figure(case["query"], "query", "wide"))
        body.append(_figure(case["positive"], f"positive: {fields}", "wide positive"))
        body.append("</div>")
        for name in COLOURS:
            own = [candidate for candidate in case["candidates"] if candidate["fate"] == name]
            if own:
                body.append(f"<p style='color:{COLOURS[name]}'>{name}</p><div class=row>")
                body += [_figure(entry["item"], _caption(entry), "", COLOURS[name]) for entry in own]
                body.append("</div>")
        body.append("</section>")
    page = f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"
    return page + "\n".join(body) + "\n"


def _caption(entry: dict) -> str:
    return f"{entry['rank']}. judge {entry['score']:.3f}, similarity {entry['similarity']:.3f}"


def _figure(item: Item, caption: str, kind: str, colour: str | None = None) -> str:
    picture = f"<img src='{_thumbnail(item.image)}' alt=''>" if item.image else ""
    style = f" style='border-color:{colour}'" if colour else ""
    words = f"<b>{html.escape(caption)}</b><br>{html.escape(_words(item))}"
    return f"<figure class='{kind}'{style}>{picture}<figcaption>{words}</figcaption></figure>"


def _words(item: Item) -> str:
    return item.text.replace(PLACEHOLDER, "").strip()


def _thumbnail(path: str) -> str:
    image = open_image(path)
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _sheet(cases: list[dict], path: Path, columns: int = 8):
    """The first rows as a picture: query, positive, then candidates framed in the colour of what became of them."""
    plt = _pyplot()
    figure, axes = plt.subplots(
        len(cases), columns, figsize=(1.9 * columns, 2.5 * len(cases)), squeeze=False, layout="constrained"
    )
    for line, case in zip(axes, cases):
        kept = [entry for entry in case["candidates"] if entry["fate"] == KEPT][: columns - 4]
        refused = [entry for entry in case["candidates"] if entry["fate"] == REFUSED][: columns - 2 - len(kept)]
        spare = [entry for entry in case["candidates"] if entry not in (*kept, *refused)]
        cells = [(case["query"], f"{case['dataset']}\nquery", "black")]
        cells.append((case["positive"], f"positive\njudge {case['positive_score']:.3f}", "#2f855a"))
        for entry in (*kept, *refused, *spare)[: columns - 2]:
            title = f"{entry['fate'].split(':')[0].split(',')[0]}\njudge {entry['score']:.3f}"
            cells.append((entry["item"], title, COLOURS[entry["fate"]]))
        for axis, cell in zip(line, cells):
            _cell(axis, *cell)
        for axis in line[len(cells) :]:
            axis.axis("off")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _cell(axis, item: Item, title: str, colour: str):
    import textwrap

    axis.set_title(title, fontsize=8, color=colour, parse_math=False)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=2)
    words = "\n".join(textwrap.wrap(_words(item), 24)[:5])
    if item.image:
        axis.imshow(open_image(item.image))
        axis.set_xlabel(words, fontsize=6, parse_math=False)
    else:
        axis.text(
            0.5,
            0.5,
            "\n".join(textwrap.wrap(_words(item), 18)[:8]),
            ha="center",
            va="center",
            fontsize=7,
            parse_math=False,
        )


def _histograms(judged: list[dict], fates: Counter, margin, path: Path):
    """Judge scores of positives and candidates, and similarity against judge score."""
    plt = _pyplot()
    positives = np.array([row["positive_score"] for row in judged])
    scores = np.concatenate([row["scores"] for row in judged])
    similar = np.concatenate([row["similarities"] for row in judged])
    free = np.concatenate([allowed(row["positive_score"], row["scores"], margin) for row in judged])
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    bins = np.linspace(0, 1, 41)
    for values, label, colour in (
        (positives, f"positives ({len(positives):,})", "#2f855a"),
        (scores[free], f"candidates allowed ({free.sum():,})", COLOURS[KEPT]),
        (scores[~free], f"candidates left out ({(~free).sum():,})", COLOURS[REFUSED]),
    ):
        weights = np.full(len(values), 1 / max(len(values), 1))
        left.hist(values, bins, weights=weights, histtype="step", linewidth=2, label=label, color=colour)
    left.set(xlabel="judge score", ylabel="share", title="Judge scores")
    left.legend()
    mesh = right.hexbin(similar, scores, gridsize=40, bins="log", cmap="viridis", mincnt=1)
    own = [row["positive_similarity"] for row in judged]
    right.scatter(own, positives, s=4, color="#e53e3e", alpha=0.5, label="positives")
    right.set(xlabel="similarity to the query", ylabel="judge score", title="Similarity against judge score")
    right.legend(loc="lower left")
    figure.colorbar(mesh, ax=right, label="candidates")
    figure.savefig(path, dpi=100)
    plt.close(figure)
