"""Figures people can read, drawn without a display."""

from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt


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
        best = (matrix.argmax(axis=1) == range(len(matrix))).mean()
        axis.set_title(f"{title}\nmatch is the best of {len(matrix)} for {best:.0%} of rows")
        axis.set_xlabel(column_name)
        axis.set_ylabel(row_name)
    figure.colorbar(picture, ax=axes[0], label="cosine similarity", shrink=0.85)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
    return Path(path)
