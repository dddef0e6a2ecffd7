"""Figures people can read, drawn without a display. Each is a PNG, with what it shows in a CSV file beside it."""

import csv
import textwrap
from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np
import torch

from ..data.schema import Item
from ..images_unime import open_image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RIGHT, WRONG, PLAIN = "#1a7f37", "#cf222e", "#57606a"
COLOURS = ("#0969da", "#bf8700", "#cf222e", "#1a7f37", "#8250df", "#57606a")


def _save(figure, path, head: list[str], rows) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
    with open(path.with_suffix(".csv"), "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])
    return path


def similarity_matrix(
    panels: dict[str, tuple[torch.Tensor, torch.Tensor]], path, row_name: str, column_name: str
) -> Path:
    """Draws the cosine matrices of matched pairs side by side on one colour scale; matches stand on the diagonal.

    Args:
        panels: `{title: (rows [N, D], columns [N, D])}`, unit-norm embeddings.
        path (`str` or `Path`): PNG to write.
        row_name, column_name (`str`): what rows and columns are.

    Returns:
        `Path`: the file.
    """
    matrices = {title: (rows @ columns.T).float().numpy() for title, (rows, columns) in panels.items()}
    low, high = min(m.min() for m in matrices.values()), max(m.max() for m in matrices.values())
    figure, axes = plt.subplots(
        1, len(matrices), figsize=(5.2 * len(matrices) + 0.8, 5), constrained_layout=True, squeeze=False
    )
    for axis, (title, matrix) in zip(axes[0], matrices.items()):
        picture = axis.imshow(matrix, cmap="viridis", vmin=low, vmax=high)
        wrong = np.where(np.eye(len(matrix), dtype=bool), -np.inf, matrix).max(axis=1)
        best = (np.diag(matrix) > wrong).mean()
        axis.set_title(f"{title}\nmatch is the best of {len(matrix)} for {best:.0%} of rows")
        axis.set_xlabel(column_name)
        axis.set_ylabel(row_name)
    figure.colorbar(picture, ax=axes[0], label="cosine similarity", shrink=0.85)
    rows = (
        [title, i, j, f"{value:.5f}"] for title, matrix in matrices.items() for (i, j), value in np.ndenumerate(matrix)
    )
    return _save(figure, path, ["panel", row_name, column_name, "cosine"], rows)


def next_tokens(panels: dict[str, list[tuple[Item, list[tuple[str, float]]]]], path) -> Path:
    """Draws the most probable next words after the prompt of each item, one column a model.

    Args:
        panels: `{model: [(item, [(word, probability), ...]), ...]}` with the same items for every model.
    """
    count = len(next(iter(panels.values())))
    figure, axes = plt.subplots(
        count,
        1 + len(panels),
        figsize=(2.6 + 3.6 * len(panels), 0.4 + 2.5 * count),
        constrained_layout=True,
        squeeze=False,
        width_ratios=[2.2, *[3.6] * len(panels)],
    )
    rows = []
    for column, (title, found) in enumerate(panels.items(), 1):
        for number, (item, words) in enumerate(found):
            axis = axes[number][column]
            shown = [word.strip() or repr(word) for word, _ in words]
            axis.barh(range(len(words)), [p for _, p in words], color=COLOURS[(column - 1) % len(COLOURS)])
            axis.set_yticks(range(len(words)), [_plain(word) for word in shown], fontsize=8)
            axis.invert_yaxis()
            axis.set_xlim(0, max(p for _, p in words) * 1.1)
            axis.tick_params(axis="x", labelsize=7)
            if number == 0:
                axis.set_title(f"{title}: next word", fontsize=10)
            rows += [[title, number, _words(item), word, f"{p:.6f}"] for word, p in words]
            if column == 1:
                _draw_item(axes[number][0], item, PLAIN)
    return _save(figure, path, ["model", "item", "text", "word", "probability"], rows)


def training_curves(runs: dict[str, list[dict]], path) -> Path:
    """Draws loss and gradient norm before clipping over the steps of several trainings, faintly as they are and
    clearly as a running mean over an eighth of them.

    Args:
        runs: `{name: log_history}`: entries of a `Trainer` with `step`, `loss` and `grad_norm`.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    rows = []
    for (name, history), colour in zip(runs.items(), cycle(COLOURS)):
        logged = [entry for entry in history if "loss" in entry and "grad_norm" in entry]
        if not logged:
            raise ValueError(f"the log of {name!r} has no entry with loss and grad_norm.")
        steps = [entry["step"] for entry in logged]
        for axis, key in zip(axes, ("loss", "grad_norm")):
            values = np.array([float(entry[key]) for entry in logged])
            width = max(1, len(values) // 8)
            mean = np.convolve(values, np.ones(width) / width, "valid")
            axis.plot(steps, values, color=colour, alpha=0.2)
            axis.plot(steps[width - 1 :], mean, color=colour, label=name)
        rows += [[name, entry["step"], entry["loss"], entry["grad_norm"]] for entry in logged]
    for axis, title in zip(axes, ("loss", "gradient norm before clipping")):
        axis.set(xlabel="step", title=title)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].legend()
    return _save(figure, path, ["run", "step", "loss", "grad_norm"], rows)


def modality_gap(first: torch.Tensor, second: torch.Tensor) -> float:
    """Distance of the centres of two sets of unit-norm embeddings `[N, D]`, `[M, D]` (Liang et al., 2203.02053)."""
    return float((first.mean(0) - second.mean(0)).norm())


def embedding_map(panels: dict[str, dict[str, torch.Tensor]], path) -> Path:
    """Draws embeddings of two modalities on their first two principal axes, one panel a model, with the modality gap.

    Args:
        panels: `{model: {modality: unit-norm embeddings [N, D]}}`; the two modalities are matched row by row.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(5.4 * len(panels), 5), constrained_layout=True, squeeze=False)
    rows = []
    for axis, (title, groups) in zip(axes[0], panels.items()):
        everything = torch.cat([*groups.values()]).double()
        centred = everything - everything.mean(0)
        values, axes_of = torch.linalg.eigh(centred.T @ centred)
        flat = (centred @ axes_of[:, -2:].flip(1)).numpy()  # [sum N, 2]
        share = float(values[-2:].sum() / values.sum())
        start = 0
        ends = []
        for (name, embeddings), colour, marker in zip(groups.items(), COLOURS, "os^D"):
            own = flat[start : start + len(embeddings)]
            axis.scatter(*own.T, s=14, c=colour, marker=marker, alpha=0.7, label=name, linewidths=0)
            ends.append(own)
            rows += [[title, name, i, f"{x:.5f}", f"{y:.5f}"] for i, (x, y) in enumerate(own)]
            start += len(embeddings)
        for one, other in zip(*ends[:2]):
            axis.plot(*zip(one, other), color=PLAIN, alpha=0.15, linewidth=0.6, zorder=0)
        first, second = list(groups.values())[:2]
        axis.set_title(f"{title}\nmodality gap {modality_gap(first, second):.3f}; two axes hold {share:.0%}")
        axis.set(xticks=[], yticks=[])
    axes[0][0].legend(loc="best", fontsize=9)
    return _save(figure, path, ["model", "modality", "pair", "x", "y"], rows)


def stage_bars(stages: dict[str, dict[str, float]], path, title: str = "") -> Path:
    """Draws what each stage of a training is worth: bars of every group's mean, one colour a stage.

    Args:
        stages: `{stage: {group: mean in [0, 1]}}`, in order.
    """
    groups = list(
        dict.fromkeys(group for means in stages.values() for group, value in means.items() if value is not None)
    )
    if not groups:
        raise ValueError("no stage has a mean.")
    width = 0.82 / len(stages)
    figure, axis = plt.subplots(figsize=(max(7.0, 0.5 * len(groups) * len(stages) + 2), 4.2), constrained_layout=True)
    for number, ((stage, means), colour) in enumerate(
        zip(stages.items(), plt.cm.viridis(np.linspace(0.1, 0.9, len(stages))))
    ):
        values = [100 * (np.nan if means.get(group) is None else means[group]) for group in groups]
        places = np.arange(len(groups)) + (number - (len(stages) - 1) / 2) * width
        bars = axis.bar(places, values, width * 0.94, color=colour, label=stage)
        axis.bar_label(bars, ["" if np.isnan(value) else f"{value:.0f}" for value in values], fontsize=7, padding=1)
    axis.set_xticks(range(len(groups)), groups)
    axis.set_ylabel("percent")
    axis.set_title(title)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, ncols=min(3, len(stages)), loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False)
    rows = [[stage, group, means.get(group)] for stage, means in stages.items() for group in groups]
    return _save(figure, path, ["stage", "group", "mean"], rows)


def contact_sheet(rows: list[tuple[Item, list[tuple[Item, float, bool]]]], path, title: str = "") -> Path:
    """Draws queries, each with its best candidates, right ones framed green and wrong ones red.

    Args:
        rows: `[(query, [(candidate, similarity, right), ...]), ...]`.
    """
    if not rows:
        raise ValueError("there is no query to draw.")
    columns = 1 + max(len(found) for _, found in rows)
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(1.75 * columns, 2.15 * len(rows) + 0.4), constrained_layout=True, squeeze=False
    )
    table = []
    for number, (line, (query, found)) in enumerate(zip(axes, rows)):
        for axis in line[1 + len(found) :]:
            axis.axis("off")
        _draw_item(line[0], query, PLAIN, "query")
        for place, (axis, (item, score, right)) in enumerate(zip(line[1:], found), 1):
            _draw_item(axis, item, RIGHT if right else WRONG, f"{place}: {score:.2f}")
            table.append(
                [number, _words(query), place, f"{score:.5f}", int(right), _words(item), Path(item.image).name]
            )
    figure.suptitle(title, fontsize=11)
    figure.get_layout_engine().set(h_pad=0.12)
    return _save(figure, path, ["row", "query", "place", "similarity", "right", "text", "image"], table)


def _draw_item(axis, item: Item, colour: str, title: str = ""):
    """An item's picture, with its words below; or its words alone."""
    axis.set(xticks=[], yticks=[])
    for side in axis.spines.values():
        side.set(color=colour, linewidth=2.5)
    axis.set_title(title, fontsize=8, color=colour)
    words = _plain(_wrap(_words(item), 34 if item.image else 24, 6 if item.image else 9))
    if item.image and not item.is_video:
        axis.imshow(open_image(item.image))
        axis.set_xlabel(words, fontsize=5.5)
    else:
        axis.text(0.5, 0.5, words or "video", ha="center", va="center", fontsize=7, transform=axis.transAxes)
        axis.set_aspect("equal")


def _words(item: Item) -> str:
    return " ".join(item.text.replace("<|image_1|>", "").split())


def _wrap(text: str, width: int, lines: int) -> str:
    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder=" ..."))


def _plain(text: str) -> str:
    """Without what matplotlib would take for mathematics, or has no picture for."""
    printable = "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)
    return printable.replace("$", r"\$")
