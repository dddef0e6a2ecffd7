"""What the reranker is worth: claim F10."""

from pathlib import Path

from .findings import Comparison, Finding, Hits, compare, percent
from .judging import by_alignment
from .laboratory import Laboratory, stacked

OBJECTIVES = ("pairwise", "listwise", "both")
# how each objective ranks: the log-odds of single candidates are added to the embedder's similarities
STRATEGIES = {"pairwise": "fused", "listwise": "listwise", "both": "fused"}
LIFT = 3.0  # points over all tasks that are asked for
COMPOSITIONAL_LIFT = 10.0
TOLERANCE = -1.0  # points by which both objectives may be below one of them


def reranker_lifts(laboratory: Laboratory) -> Finding:
    """F10: the reranker lifts the best candidates; pairwise and listwise training together is no worse than either."""
    tasks = [task.name for task in laboratory.tasks]
    groups = {"all tasks": tasks, "compositional": laboratory.compositional}
    comparisons = []
    table = {}
    for top in laboratory.settings["rerank_tops"]:
        before, after = _before_and_after(laboratory, "both", top)
        table[f"embedder, best {top}"] = _row(before, groups)
        table[f"reranked, best {top}"] = _row(after, groups)
        comparisons += _lifts(before, after, groups, top)

    # one depth is enough to compare what they were trained for
    top = laboratory.settings["rerank_tops"][0]
    _, together = _before_and_after(laboratory, "both", top)
    for objective in OBJECTIVES[:2]:
        _, alone = _before_and_after(laboratory, objective, top)
        table[f"{objective} alone, best {top}"] = _row(alone, groups)
        name = f"best {top}: both objectives over {objective} alone"
        comparisons.append(compare(name, together, alone, tasks, least=TOLERANCE))
    return Finding(
        "The best candidates of the aligned embedder in the order of rerankers that were trained from the judge on "
        "the mined rows: by similarity plus log-odds times the temperature that the embedder was trained with, or, "
        f"where lists alone were trained, by the listwise answer; the first {laboratory.settings['rerank_queries']} "
        "queries of each task.",
        comparisons,
        table,
        notes=[f'"No worse" means by less than {-TOLERANCE:.0f} point.'],
    )


def _lifts(before: Hits, after: Hits, groups: dict[str, list[str]], top: int) -> list[Comparison]:
    """What reranking adds on each group."""
    comparisons = []
    for (group, tasks), aim in zip(groups.items(), (LIFT, COMPOSITIONAL_LIFT)):
        paper = "+4.0 (2B), +1.6 (7B)" if group == "all tasks" and top == 5 else ""
        comparisons.append(
            compare(f"best {top}, {group}: reranked over embedder", after, before, tasks, paper, aim=aim)
        )
    return comparisons


def _before_and_after(laboratory: Laboratory, objective: str, top: int) -> tuple[Hits, Hits]:
    """What the embedders and rerankers of all seeds answer rightly."""
    strategy = STRATEGIES[objective]
    options = {}
    if strategy == "fused":
        # a similarity over its temperature is a log-odds, too: in these units what both say can be added up
        options = {"output": "logit", "weight": laboratory.recipe("alignment")["temperature"]}

    before = []
    after = []
    for seed in laboratory.seeds:
        embedder = by_alignment(laboratory, seed)
        ranks = laboratory.reranked(embedder, train(laboratory, objective, seed), strategy, top, **options)
        before.append(ranks["before"])
        after.append(ranks["after"])
    return stacked(before), stacked(after)


def train(laboratory: Laboratory, objective: str, seed: int) -> Path:
    """A reranker trained from the judge with one of the paper's objectives, or both."""
    judge = laboratory.judge()
    return laboratory.on_mined(f"reranker-{objective}", "reranker", "reranker", judge, seed, objective=objective)


def _row(hits: Hits, groups: dict[str, list[str]]) -> dict[str, str]:
    """Means of groups of tasks, in percent."""
    return {group: percent(hits, tasks) for group, tasks in groups.items()}
