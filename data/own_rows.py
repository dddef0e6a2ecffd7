"""Rows of our own layout, into which all others are translated: a query with its right and wrong answers."""

from collections.abc import Mapping

from .findings import Findings, Located
from .images import ImageFiles
from .row_items import check_scores, item_from
from .schema import Example, Item
from .texts import shown

SCORE = "score"  # of an entry of `positives` or `negatives`


def parse_own(located: Located, files: ImageFiles, findings: Findings) -> list[Example]:
    """The examples of a row with `query`, and `positive` or `positives`, as our documentation describes it.

    Args:
        located ([`~unime.data.findings.Located`]): the row.
        files ([`~unime.data.images.ImageFiles`]): where its images are.
        findings ([`~unime.data.findings.Findings`]): takes notes of what was mended.

    Returns:
        `list[Example]`: one for each positive, which knows of the others.

    Raises:
        ValueError: something is missing, or not what it should be.
    """
    row = located.row
    if row.get("query") is None:
        raise ValueError(f"lacks ['query']; it has {shown(list(row))}.")

    query = item_from(row["query"], files, findings)
    positives, positive_scores = _positives(row, files, findings)
    negatives, negative_scores = _scored(list_of(row, "negatives"), files, findings)
    negative_scores = list_of(row, "negative_scores") or negative_scores
    negative_queries = [item_from(value, files, findings) for value in list_of(row, "negative_queries")]

    # negatives without scores are fine, some scores for other negatives are not
    if negative_scores and len(negatives) != len(negative_scores):
        raise ValueError(f"{len(negatives)} negatives for {len(negative_scores)} scores.")
    if negative_queries and len(negatives) != len(negative_queries):
        raise ValueError(f"{len(negatives)} negatives for {len(negative_queries)} queries of negatives.")
    check_scores(negative_scores)
    others = [item_from(value, files, findings) for value in list_of(row, "other_positives")]

    examples = []
    for place, (positive, score) in enumerate(zip(positives, positive_scores)):
        examples.append(
            Example(
                query=query,
                positive=positive,
                negatives=negatives,
                positive_score=score,
                negative_scores=negative_scores,
                dataset=located.dataset,
                negative_queries=negative_queries,
                other_positives=[*positives[:place], *positives[place + 1 :], *others],
                weight=weight_of(row),
            )
        )
    return examples


def _positives(row: dict, files: ImageFiles, findings: Findings) -> tuple[list[Item], list[float | None]]:
    """The right answers of a row, and their scores, `None` where there is none."""
    one = row.get("positive")
    several = list_of(row, "positives")
    if (one is None) == (not several):
        missing = "has both 'positive' and 'positives'" if several else "lacks ['positive']"
        raise ValueError(f"{missing}; it has {shown(list(row))}.")

    if one is not None:
        score = row.get("positive_score")
        if score is not None:
            check_scores([score])
        return [item_from(one, files, findings)], [score]

    positives, scores = _scored(several, files, findings)
    scores = list_of(row, "positive_scores") or scores
    if scores and len(scores) != len(positives):
        raise ValueError(f"{len(positives)} positives for {len(scores)} scores.")
    check_scores(scores)
    return positives, scores or [None] * len(positives)


def _scored(values: list, files: ImageFiles, findings: Findings) -> tuple[list[Item], list[float]]:
    """Items, and their scores where each has one: `{"text": ..., "score": 0.8}`."""
    items = []
    scores = []
    for value in values:
        if isinstance(value, Mapping) and SCORE in value:
            if value[SCORE] is not None:
                scores.append(value[SCORE])
            value = {key: part for key, part in value.items() if key != SCORE}
        items.append(item_from(value, files, findings))

    if scores and len(scores) != len(items):
        raise ValueError(f"{len(scores)} of {len(items)} items have a score; either each has one, or none.")
    return items, scores


def weight_of(row: dict) -> float:
    """How much the row counts beside others."""
    weight = row.get("weight")
    if weight is None:
        return 1.0
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
        raise ValueError(f"the weight {shown(weight)} is not a number from 0.")
    return float(weight)


def list_of(row: dict, name: str) -> list:
    """A list of a row, empty where there is none.

    Raises:
        ValueError: it is something else.
    """
    values = row.get(name)
    if values is None:
        return []
    if not isinstance(values, list):
        raise ValueError(f"{name!r} must be a list, got {shown(values)}.")
    return values
