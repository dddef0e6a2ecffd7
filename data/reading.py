"""What all readers of rows do: valid names, subsets and limits, and errors that name file and row."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from datasets import Dataset

from .findings import Findings, Located, Problem, refuse
from .images import ImageFiles
from .schema import Example, to_dataset
from .texts import require_text, shown

SHOWN = 5  # bad rows that are listed where there is no good one


def read_examples(
    source,
    rows: Iterable[Located],
    parse: Callable[[Located, ImageFiles, Findings], Example | list[Example]],
    root,
    subsets: list[str] | None,
    limit: int | None,
    findings: Findings | None,
) -> Dataset:
    """The examples of raw rows, of which there must be one."""
    files = root
    if not isinstance(root, ImageFiles):
        files = ImageFiles(Path(root), must_exist=findings is None or findings.images_must_exist)

    rows = _limited(_of_subsets(source, with_valid_names(rows, findings), subsets), limit)
    examples = to_dataset(example for _, example in located_examples(rows, parse, files, findings))
    if len(examples):
        return examples

    # why there is none
    message = f"{source} holds no row that can be used"
    problems = findings.problems if findings else []
    if not problems:
        raise ValueError(f"{message}.")

    raise ValueError("\n".join([f"{message}; of its {len(problems)} bad rows the first are", *_reasons(problems)]))


def _reasons(problems: list[Problem]) -> list[str]:
    """The first reasons why rows are bad, each once, with the first row that it is said of."""
    places = {}
    for problem in problems:
        places.setdefault(problem.reason, []).append(problem.where)

    lines = []
    for reason, rows in list(places.items())[:SHOWN]:
        others = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
        lines.append(f"{rows[0]}{others}: {reason}")
    return lines


def with_valid_names(rows: Iterable[Located], findings: Findings | None) -> Iterator[Located]:
    """The rows whose data set has a name that is a text."""
    for located in rows:
        # the name may come from the row, and so be anything that JSON can say
        try:
            if not isinstance(located.dataset, str):
                raise ValueError(f"the data set's name must be a string, not {shown(located.dataset)}.")
            require_text(located.dataset)
        except ValueError as error:
            refuse(located.where, error, findings)
        else:
            yield located


def _of_subsets(source: Path, rows: Iterable[Located], subsets: list[str] | None) -> Iterator[Located]:
    """The rows of some data sets, or all rows; an error at the end if there is no row of one of them."""
    present = set()
    for located in rows:
        present.add(located.dataset)
        if not subsets or located.dataset in subsets:
            yield located
    require_subsets(source, subsets, sorted(present))


def require_subsets(source: Path, subsets: list[str] | None, present: list[str]):
    """Refuses data sets that are asked for and not among those present."""
    missing = sorted(set(subsets or ()) - set(present))
    if missing:
        raise ValueError(f"{source} has no data set {', '.join(missing)}; it has {', '.join(present) or 'none'}.")


def _limited(rows: Iterable[Located], limit: int | None) -> Iterator[Located]:
    """At most `limit` rows of each data set."""
    counts = Counter()
    for located in rows:
        counts[located.dataset] += 1
        if limit is None or counts[located.dataset] <= limit:
            yield located


def located_examples(
    rows: Iterable[Located],
    parse: Callable[[Located, ImageFiles, Findings], Example | list[Example]],
    files: ImageFiles,
    findings: Findings | None,
) -> Iterator[tuple[str, Example]]:
    """The examples of raw rows, each with the place of its row."""
    notes = findings or Findings()  # a parser notes what it mends, whether anybody reads it or not
    for located in rows:
        try:
            examples = parse(located, files, notes)
        except ValueError as error:
            refuse(located.where, error, findings)
            continue

        for example in examples if isinstance(examples, list) else [examples]:
            yield located.where, example


def require_keys(row: dict, names: Iterable[str]):
    """Refuses a row that lacks a key."""
    missing = missing_keys(row, names)
    if missing:
        raise ValueError(f"lacks {missing}; it has {shown(list(row))}.")


def missing_keys(row: dict, names: Iterable[str]) -> list[str]:
    """Which of some keys a row lacks."""
    return [name for name in names if name not in row]


def patterns_of(subsets: list[str] | None, *endings: str) -> list[str]:
    """Which files of a data set on the Hub are downloaded."""
    patterns = []
    for subset in subsets or ["*"]:
        for ending in endings:
            patterns.append(f"{subset}{ending}")
    return patterns
