"""What the two stages of UniME are worth: claims F1, F2 and F3."""

from itertools import pairwise

from .findings import Comparison, Finding, Hits, compare, percent
from .laboratory import Laboratory


def _groups(laboratory: Laboratory) -> dict[str, list[str]]:
    """The groups of tasks that UniME's ablation of stages has."""
    return {
        "MMEB": laboratory.mmeb,
        "short retrieval": laboratory.short_retrieval,
        "long retrieval": laboratory.long_retrieval,
        "compositional": laboratory.compositional,
    }


# UniME, table of the ablation of stages (Phi-3.5-V): MMEB, short and long retrieval, compositional
PAPER = {
    "raw": ("25.3", "44.2", "62.9", "63.1"),
    "stage 1": ("40.3", "63.7", "87.8", "83.0"),
    "stage 2": ("63.8", "61.5", "84.2", "77.1"),
    "stages 1 + 2": ("64.2", "70.4", "94.1", "84.8"),
}


def _table(groups: dict[str, list[str]], models: dict[str, Hits]) -> dict[str, dict[str, str]]:
    """Ours beside the paper's, by model and group."""
    table = {}
    for model, hits in models.items():
        row = {}
        for (group, tasks), paper in zip(groups.items(), PAPER[model]):
            row[group] = percent(hits, tasks)
            row[f"{group}, paper"] = paper
        table[model] = row
    return table


def stage_1_lifts(laboratory: Laboratory) -> Finding:
    """F1: stage 1 lifts the raw MLLM on every group of tasks."""
    groups = _groups(laboratory)
    raw = laboratory.raw_hits()
    first = laboratory.hits(laboratory.stage_1)

    papers = ("+15.0", "+19.5", "+24.9", "+19.9")
    comparisons = []
    for (group, tasks), paper in zip(groups.items(), papers):
        comparisons.append(compare(f"{group}: stage 1 over raw", first, raw, tasks, paper))
    return Finding(
        "Mean precision@1 of the raw backbone as an embedder with the summary prompt, before and after it was "
        "taught a text embedder's similarities between texts. No picture was seen in that training.",
        comparisons,
        _table(groups, {"raw": raw, "stage 1": first}),
    )


def distilling_beats_contrast(laboratory: Laboratory) -> Finding:
    """F2: distilling similarities beats contrastive training on the same texts."""
    models = {
        "distillation": laboratory.hits(laboratory.stage_1),
        "contrast": laboratory.hits(laboratory.texts_by_contrast),
        "contrast with false texts": laboratory.hits(laboratory.triplets_by_contrast),
    }

    tasks = laboratory.mmeb + laboratory.compositional
    name = "all tasks: distillation over contrast"
    table = {}
    for model, hits in models.items():
        table[model] = {group: percent(hits, names) for group, names in _groups(laboratory).items()}
        table[model]["all tasks"] = percent(hits, tasks)
    return Finding(
        "Both trainings start from the same backbone and see the same pairs of texts in batches of the same size, for "
        "as many steps.",
        [compare(name, models["distillation"], models["contrast"], tasks)],
        table,
        notes=[
            "The third row sees half as many texts more: with each pair one that is false, which distillation does "
            "not look at, though its teacher was trained with them. "
            "These false texts are of the very kinds that the compositional tasks ask for."
        ],
    )


def stages_in_order(laboratory: Laboratory) -> Finding:
    """F3: on MMEB 1+2 > 2 > 1 > raw; on retrieval and compositional tasks 1+2 > 1 > 2 > raw."""
    groups = _groups(laboratory)
    models = {
        "raw": laboratory.raw_hits(),
        "stage 1": laboratory.hits(laboratory.stage_1),
        "stage 2": laboratory.hits(laboratory.stage_2),
        "stages 1 + 2": laboratory.hits(laboratory.stages_1_2),
    }

    comparisons = []
    for column, (group, tasks) in enumerate(groups.items()):
        order = ("stages 1 + 2", "stage 2", "stage 1", "raw")
        if group != "MMEB":
            order = ("stages 1 + 2", "stage 1", "stage 2", "raw")
        comparisons += _steps(group, tasks, column, order, models)
    return Finding(
        "Precision@1 of the raw backbone and after each stage; stage 2 is contrastive training on the training "
        "rows of the world with the negatives of each batch.",
        comparisons,
        _table(groups, models),
    )


def _steps(group: str, tasks: list[str], column: int, order: tuple, models: dict[str, Hits]) -> list[Comparison]:
    """Each model of an order against the next."""
    comparisons = []
    for better, worse in pairwise(order):
        paper = float(PAPER[better][column]) - float(PAPER[worse][column])
        name = f"{group}: {better} over {worse}"
        comparisons.append(compare(name, models[better], models[worse], tasks, f"{paper:+.1f}"))
    return comparisons
