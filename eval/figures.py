"""Figures people can read, drawn without a display. Each is a PNG, with what it shows in a CSV file beside it."""

import csv
import io
import textwrap
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np
import torch

from ..data.schema import PLACEHOLDER, Item
from ..files.addresses import make_folder
from ..files.writing import write_text, write_whole
from ..images_unime import open_image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# colours
RIGHT = "#1a7f37"
WRONG = "#cf222e"
PLAIN = "#57606a"
COLOURS = ("#0969da", "#bf8700", "#cf222e", "#1a7f37", "#8250df", "#57606a")


def _save(figure, path, head: list[str], rows: Iterable[list]) -> Path:
    """Writes a figure, and the numbers that it shows as CSV beside it."""
    path = Path(path)
    make_folder(path.parent)

    # the name of a draft does not end in the kind of picture, which matplotlib would go by
    kind = path.suffix.removeprefix(".").lower() or "png"
    write_whole(path, lambda draft: figure.savefig(draft, dpi=110, bbox_inches="tight", format=kind))
    plt.close(figure)

    table = io.StringIO(newline="")
    csv.writer(table).writerows([head, *rows])
    write_text(path.with_suffix(".csv"), table.getvalue())
    return path


# similarities
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

    Example:

    ```python
    queries = model.encode_query(["a ring", "a star"])
    similarity_matrix({"mine": (queries, model.encode_document(photos))}, "pairs.png", "text", "photo")
    ```
    """
    matrices = {}
    low = np.inf
    high = -np.inf
    for title, (rows, columns) in panels.items():
        matrix = (rows @ columns.T).float().numpy()  # [N, N]
        matrices[title] = matrix
        low = min(low, matrix.min())
        high = max(high, matrix.max())

    # one scale for all, so that colours can be compared
    figure, axes = plt.subplots(
        1, len(matrices), figsize=(5.2 * len(matrices) + 0.8, 5), constrained_layout=True, squeeze=False
    )
    for axis, (title, matrix) in zip(axes[0], matrices.items()):
        picture = axis.imshow(matrix, cmap="viridis", vmin=low, vmax=high)
        axis.set_title(f"{title}\nmatch is the best of {len(matrix)} for {_matched_share(matrix):.0%} of rows")
        axis.set_xlabel(column_name)
        axis.set_ylabel(row_name)
    figure.colorbar(picture, ax=axes[0], label="cosine similarity", shrink=0.85)

    # the numbers behind the colours
    cells = []
    for title, matrix in matrices.items():
        for (row, column), value in np.ndenumerate(matrix):
            cells.append([title, row, column, f"{value:.5f}"])
    return _save(figure, path, ["panel", row_name, column_name, "cosine"], cells)


def _matched_share(matrix: np.ndarray) -> float:
    """The share of rows whose match, on the diagonal, is above all others."""
    diagonal = np.eye(len(matrix), dtype=bool)
    best_wrong = np.where(diagonal, -np.inf, matrix).max(axis=1)  # [N]
    return (np.diag(matrix) > best_wrong).mean()


# next words
def next_tokens(panels: dict[str, list[tuple[Item, list[tuple[str, float]]]]], path) -> Path:
    """Draws the most probable next words after the prompt of each item, one column a model.

    Args:
        panels: `{model: [(item, [(word, probability), ...]), ...]}` with the same items for every model.
        path (`str` or `Path`): PNG to write.

    Returns:
        `Path`: the file.
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
    for column, (title, predictions) in enumerate(panels.items(), 1):
        colour = COLOURS[(column - 1) % len(COLOURS)]
        for number, (item, words) in enumerate(predictions):
            axis = axes[number][column]
            _draw_words(axis, words, colour)

            # titles stand above the first row only, and items left of the first column
            if number == 0:
                axis.set_title(f"{title}: next word", fontsize=10)
            if column == 1:
                _draw_item(axes[number][0], item, PLAIN)
            for word, probability in words:
                rows.append([title, number, _words(item), word, f"{probability:.6f}"])

    return _save(figure, path, ["model", "item", "text", "word", "probability"], rows)


def _draw_words(axis, words: list[tuple[str, float]], colour: str):
    """A bar for the probability of each word, the most probable on top."""
    labels = []
    probabilities = []
    for word, probability in words:
        labels.append(_plain(word.strip() or repr(word)))  # a space or line break alone is quoted
        probabilities.append(probability)

    axis.barh(range(len(words)), probabilities, color=colour)
    axis.set_yticks(range(len(words)), labels, fontsize=8)
    axis.invert_yaxis()

    # the longest bar and a little more
    axis.set_xlim(0, max(probabilities) * 1.1)
    axis.tick_params(axis="x", labelsize=7)


# trainings
def training_curves(runs: dict[str, list[dict]], path) -> Path:
    """Draws loss and gradient norm before clipping over the steps of several trainings.

    They are drawn faintly as they are, and clearly as a running mean over an eighth of the steps.

    Args:
        runs: `{name: log_history}`: entries of a `Trainer` with `step`, `loss` and `grad_norm`.
        path (`str` or `Path`): PNG to write.

    Returns:
        `Path`: the file.

    Raises:
        ValueError: a log has no such entry; the message names the run.

    Example:

    ```python
    training_curves({"mine": trainer.state.log_history}, "curves.png")
    ```
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    rows = []
    for (name, history), colour in zip(runs.items(), cycle(COLOURS)):
        entries = [entry for entry in history if "loss" in entry and "grad_norm" in entry]
        if not entries:
            raise ValueError(f"the log of {name!r} has no entry with loss and grad_norm.")

        _draw_curve(axes[0], entries, "loss", name, colour)
        _draw_curve(axes[1], entries, "grad_norm", name, colour)
        for entry in entries:
            rows.append([name, entry["step"], entry["loss"], entry["grad_norm"]])

    # from zero, so that curves of several trainings can be compared
    for axis, title in zip(axes, ("loss", "gradient norm before clipping")):
        axis.set(xlabel="step", title=title)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].legend()
    return _save(figure, path, ["run", "step", "loss", "grad_norm"], rows)


def _draw_curve(axis, entries: list[dict], key: str, name: str, colour: str):
    """The logged values of one metric over the steps, and their running mean."""
    steps = []
    values = []
    for entry in entries:
        steps.append(entry["step"])
        values.append(float(entry[key]))

    width = max(1, len(values) // 8)
    mean = np.convolve(values, np.ones(width) / width, "valid")  # [S - width + 1]
    axis.plot(steps, values, color=colour, alpha=0.2)
    axis.plot(steps[width - 1 :], mean, color=colour, label=name)  # a mean stands at the last of its steps


# maps
def modality_gap(first: torch.Tensor, second: torch.Tensor) -> float:
    """Distance of the centres of two sets of embeddings (Liang et al., 2203.02053).

    Args:
        first (`Tensor` `[N, D]`), second (`Tensor` `[M, D]`): unit-norm embeddings of two modalities.
    """
    return float((first.mean(0) - second.mean(0)).norm())


def embedding_map(panels: dict[str, dict[str, torch.Tensor]], path) -> Path:
    """Draws embeddings of two modalities on their first two principal axes, one panel a model, with the modality gap.

    Args:
        panels: `{model: {modality: unit-norm embeddings [N, D]}}`; the two modalities are matched row by row.
        path (`str` or `Path`): PNG to write.

    Returns:
        `Path`: the file.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(5.4 * len(panels), 5), constrained_layout=True, squeeze=False)
    rows = []
    for axis, (title, modalities) in zip(axes[0], panels.items()):
        clouds, share = _on_principal_axes(modalities)
        for (name, points), colour, marker in zip(clouds.items(), COLOURS, "os^D"):
            axis.scatter(*points.T, s=14, c=colour, marker=marker, alpha=0.7, label=name, linewidths=0)
            for pair, (x, y) in enumerate(points):
                rows.append([title, name, pair, f"{x:.5f}", f"{y:.5f}"])

        # a faint line from each point to its match
        first_points, second_points = list(clouds.values())[:2]
        for one, other in zip(first_points, second_points):
            axis.plot(*zip(one, other), color=PLAIN, alpha=0.15, linewidth=0.6, zorder=0)

        first, second = list(modalities.values())[:2]
        axis.set_title(f"{title}\nmodality gap {modality_gap(first, second):.3f}; two axes hold {share:.0%}")
        axis.set(xticks=[], yticks=[])
    axes[0][0].legend(loc="best", fontsize=9)
    return _save(figure, path, ["model", "modality", "pair", "x", "y"], rows)


def _on_principal_axes(modalities: dict[str, torch.Tensor]) -> tuple[dict[str, np.ndarray], float]:
    """Points `[N, 2]` of each modality on the first two axes of all, and the share of the variance that these hold."""
    everything = torch.cat([*modalities.values()]).double()  # [sum N, D]
    centred = everything - everything.mean(0)
    variances, directions = torch.linalg.eigh(centred.T @ centred)  # ascending

    # the last two are the greatest
    points = (centred @ directions[:, -2:].flip(1)).numpy()  # [sum N, 2]

    clouds = {}
    start = 0
    for name, embeddings in modalities.items():
        clouds[name] = points[start : start + len(embeddings)]
        start += len(embeddings)
    return clouds, float(variances[-2:].sum() / variances.sum())


# stages
def stage_bars(stages: dict[str, dict[str, float]], path, title: str = "") -> Path:
    """Draws what each stage of a training is worth: bars of every group's mean, one colour a stage.

    Args:
        stages: `{stage: {group: mean in [0, 1], or None}}`, in order.
        path (`str` or `Path`): PNG to write.
        title (`str`, *optional*): of the figure.

    Returns:
        `Path`: the file.

    Raises:
        ValueError: no stage has a mean.

    Example:

    ```python
    stage_bars({"stage 1": {"VQA": 0.18}, "stage 2": {"VQA": 0.56}}, "stages.png")
    ```
    """
    groups = _groups_with_means(stages)
    if not groups:
        raise ValueError("no stage has a mean.")
    figure, axis = plt.subplots(figsize=(max(7.0, 0.5 * len(groups) * len(stages) + 2), 4.2), constrained_layout=True)

    # a group's bars fill most of its place
    width = 0.82 / len(stages)
    colours = plt.cm.viridis(np.linspace(0.1, 0.9, len(stages)))
    rows = []
    for number, (stage, means) in enumerate(stages.items()):
        values = []
        labels = []
        for group in groups:
            mean = means.get(group)
            rows.append([stage, group, mean])
            if mean is None or np.isnan(mean):  # no bar
                values.append(np.nan)
                labels.append("")
            else:
                values.append(100 * mean)
                labels.append(f"{100 * mean:.0f}")

        places = np.arange(len(groups)) + (number - (len(stages) - 1) / 2) * width  # centred on each group's tick
        bars = axis.bar(places, values, width * 0.94, color=colours[number], label=stage)
        axis.bar_label(bars, labels, fontsize=7, padding=1)

    # the legend stands below, where no bar is
    axis.set_xticks(range(len(groups)), groups)
    axis.set_ylabel("percent")
    axis.set_title(title)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, ncols=min(3, len(stages)), loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False)
    return _save(figure, path, ["stage", "group", "mean"], rows)


def _groups_with_means(stages: dict[str, dict[str, float]]) -> list[str]:
    """The groups of which any stage has a mean, in order."""
    groups: dict[str, None] = {}
    for means in stages.values():
        for group, mean in means.items():
            if mean is not None:
                groups[group] = None
    return list(groups)


# candidates
def contact_sheet(rows: list[tuple[Item, list[tuple[Item, float, bool]]]], path, title: str = "") -> Path:
    """Draws queries, each with its best candidates, right ones framed green and wrong ones red.

    Args:
        rows: `[(query, [(candidate, similarity, right), ...]), ...]`.
        path (`str` or `Path`): PNG to write.
        title (`str`, *optional*): of the figure.

    Returns:
        `Path`: the file.

    Raises:
        ValueError: there is no query.
    """
    if not rows:
        raise ValueError("there is no query to draw.")
    columns = 1 + max(len(candidates) for _, candidates in rows)
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(1.75 * columns, 2.15 * len(rows) + 0.4), constrained_layout=True, squeeze=False
    )

    cells = []
    for number, (line, (query, candidates)) in enumerate(zip(axes, rows)):
        # lines with fewer candidates end early
        for axis in line[1 + len(candidates) :]:
            axis.axis("off")
        _draw_item(line[0], query, PLAIN, "query")

        for place, (candidate, score, right) in enumerate(candidates, 1):
            _draw_item(line[place], candidate, RIGHT if right else WRONG, f"{place}: {score:.2f}")
            image = Path(candidate.image).name
            cells.append([number, _words(query), place, f"{score:.5f}", int(right), _words(candidate), image])

    figure.suptitle(title, fontsize=11)
    figure.get_layout_engine().set(h_pad=0.12)
    return _save(figure, path, ["row", "query", "place", "similarity", "right", "text", "image"], cells)


# items
def _draw_item(axis, item: Item, colour: str, title: str = ""):
    """An item's picture, with its words below; or its words alone."""
    axis.set(xticks=[], yticks=[])
    for side in axis.spines.values():
        side.set(color=colour, linewidth=2.5)
    axis.set_title(title, fontsize=8, color=colour)

    # below a picture there is room for fewer and longer lines
    width = 24
    lines = 9
    if item.image:
        width = 34
        lines = 6
    words = _plain(_wrap(_words(item), width, lines))

    # a video is not opened: its words, or that it is one, stand for it
    if item.image and not item.is_video:
        axis.imshow(open_image(item.image))
        axis.set_xlabel(words, fontsize=5.5)
    else:
        axis.text(0.5, 0.5, words or "video", ha="center", va="center", fontsize=7, transform=axis.transAxes)
        axis.set_aspect("equal")


def _words(item: Item) -> str:
    """An item's text on one line, without the placeholder of its image."""
    return " ".join(item.text.replace(PLACEHOLDER, "").split())


def _wrap(text: str, width: int, lines: int) -> str:
    """A text in lines of at most `width` characters; what does not fit ends in dots."""
    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder=" ..."))


def _plain(text: str) -> str:
    """Without what matplotlib would take for mathematics, or has no picture for."""
    printable = "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)
    return printable.replace("$", r"\$")
