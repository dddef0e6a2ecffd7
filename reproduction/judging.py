"""What judged negatives and a better judge are worth: claims F9 and F11."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from ..files.writing import has_json, read_json, write_json
from .findings import Finding, Hits, compare, percent
from .judges import auc_of
from .laboratory import Laboratory


def judged_rows_help(laboratory: Laboratory) -> Finding:
    """F9: judged negatives beat in-batch ones, and soft labels beat hard ones on the same rows."""
    models = {
        "in-batch": laboratory.hits(lambda seed: in_batch(laboratory, seed)),
        "judged negatives": laboratory.hits(lambda seed: by_contrast(laboratory, seed)),
        "soft labels": laboratory.hits(lambda seed: by_alignment(laboratory, seed)),
    }
    tasks = laboratory.mmeb
    comparisons = [
        compare("judged negatives over in-batch", models["judged negatives"], models["in-batch"], tasks, "+1.5"),
        compare("soft labels over judged negatives", models["soft labels"], models["judged negatives"], tasks, "+2.0"),
    ]
    return Finding(
        "Three trainings from the embedder of both stages, on the same mined rows with the same positives: without "
        "their negatives, with them in InfoNCE, and with them aligned to the judge's scores, beside InfoNCE against "
        "the candidates of the other rows.",
        comparisons,
        _table(laboratory, models, ("60.1", "61.6", "63.6")),
    )


def better_judge_helps(laboratory: Laboratory) -> Finding:
    """F11: a better judge gives a better embedder."""
    levels = list(laboratory.settings["judges"])
    models = {}
    table = {}
    for level in levels:
        models[level] = laboratory.hits(_aligned_to(laboratory, level))
        table[f"{level} judge"] = {
            "AUC of the judge": f"{_quality(laboratory, level):.3f}",
            "MMEB's kinds": percent(models[level], laboratory.mmeb),
        }

    comparisons = []
    for worse, better in pairwise(levels):
        name = f"aligned to the {better} over the {worse} judge"
        comparisons.append(compare(name, models[better], models[worse], laboratory.mmeb))
    return Finding(
        "Judges of one series, taught for fewer or more steps; each scores what the same embedder retrieved, and the "
        "embedder is aligned to its scores. The AUC is that of its log-odds on new lessons with near misses.",
        comparisons,
        table,
        notes=["The paper's three judges (Qwen2.5-VL-7B, InternVL3-14B, InternVL3-8B) give 63.6, 63.2 and 58.5."],
    )


def _aligned_to(laboratory: Laboratory, level: str) -> Callable[[int], Path]:
    """What gives the embedder of a seed that is aligned to a judge."""
    return lambda seed: by_alignment(laboratory, seed, level)


def in_batch(laboratory: Laboratory, seed: int) -> Path:
    """Contrastive training on the mined rows without their negatives."""
    rows = laboratory.mined().with_name("positives.json")
    if not has_json(rows, list):
        without = []
        for row in read_json(laboratory.mined()):
            without.append({**row, "hard_negatives": [], "hard_negatives_scores": []})
        write_json(rows, without)
    start = laboratory.stages_1_2(seed)
    return laboratory.on_mined("in-batch", "contrastive", "contrastive-mined", start, seed, data=rows)


def by_contrast(laboratory: Laboratory, seed: int) -> Path:
    """Contrastive training on the mined rows."""
    start = laboratory.stages_1_2(seed)
    return laboratory.on_mined("judged", "contrastive", "contrastive-mined", start, seed)


def by_alignment(laboratory: Laboratory, seed: int, level: str = "best") -> Path:
    """Alignment to a judge's scores of the mined rows."""
    start = laboratory.stages_1_2(seed)
    return laboratory.on_mined(f"aligned-{level}", "alignment", "alignment", start, seed, level)


def _quality(laboratory: Laboratory, level: str) -> float:
    """The AUC of a judge on new lessons, from a file where it was measured before."""
    # beside the judge's folder: mining takes a file more in it for another judge
    judge = laboratory.judge(level)
    file = judge.with_name(f"{level}-auc.json")
    if not has_json(file, float):
        write_json(file, auc_of(judge, laboratory.settings["judge_lessons"]))
    return read_json(file)


def _table(laboratory: Laboratory, models: dict[str, Hits], papers: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Ours beside the paper's, by model."""
    table = {}
    for (name, hits), paper in zip(models.items(), papers):
        table[name] = {
            "MMEB's kinds": percent(hits, laboratory.mmeb),
            "paper": paper,
            "compositional": percent(hits, laboratory.compositional),
        }
    return table
