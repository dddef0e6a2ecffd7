"""What makes examples of rows, each of which says by its columns in which layout it is."""

from .findings import Findings, Located
from .images import ImageFiles
from .layouts import PICTURES, Layout, layout_of, mapped_layout, with_single_negatives
from .own_rows import parse_own
from .paper_layouts import (
    JUDGED_TAKES,
    MMEB_TRAIN,
    SENTENCE_TAKES,
    is_judged,
    mmeb_takes,
    parse_judged,
    parse_mmeb,
    parse_text_pair,
    with_mmeb_names,
)
from .schema import Example
from .texts import shown

OWN = (
    "query",
    "positive",
    "positives",
    "positive_score",
    "positive_scores",
    "other_positives",
    "dataset",
    "weight",
)


class RowParser:
    """Makes examples of rows of any layout, which each row says by its columns.

    Args:
        mapping (`dict[str, str]`, *optional*): the columns that a user names, from
            [`~unime.data.layouts.read_mapping`].
    """

    def __init__(self, mapping: dict[str, str] | None = None):
        self.given = mapped_layout(mapping) if mapping else None
        self.layouts = {}  # by columns, as rows of a table have the same

    def __call__(self, located: Located, files: ImageFiles, findings: Findings) -> list[Example]:
        row = located.row
        if self.given is not None:
            return self._translated(self.given, located, files, findings)

        # ours first, then those whose columns nobody else has
        if "query" in row and not {"positive", "positives"}.isdisjoint(row):
            _refuse_loose_pictures(row)
            findings.note_layout("our own", _own_takes(row), row)
            return parse_own(located._replace(row=with_single_negatives(row)), files, findings)
        if is_judged(row):
            findings.note_layout("judged rows (UniME-V2)", JUDGED_TAKES, row)
            return [parse_judged(located, files, findings)]
        if "sent0" in row:
            findings.note_layout("sentence pairs (SimCSE)", SENTENCE_TAKES, row)
            return [parse_text_pair(located, files, findings)]

        renamed = with_mmeb_names(row)
        if not renamed.keys().isdisjoint(MMEB_TRAIN):
            findings.note_layout("MMEB-train", mmeb_takes(row), row)
            return [parse_mmeb(located._replace(row=renamed), files, findings)]

        layout = self._recognised(row)
        if layout is None:
            hint = "--columns query=... positive=... says which columns they are."
            if len(row) == 1 and ";" in next(iter(row)):
                hint = "It seems to be separated by semicolons; save it with commas, or as .tsv."
            raise ValueError(
                f"lacks 'query' and 'positive', or the columns of another layout; it has {shown(list(row))}. {hint}"
            )
        return self._translated(layout, located, files, findings)

    def _recognised(self, row: dict) -> Layout | None:
        columns = tuple(row)
        if columns not in self.layouts:
            self.layouts[columns] = layout_of(columns)
        return self.layouts[columns]

    def _translated(self, layout: Layout, located: Located, files: ImageFiles, findings: Findings) -> list[Example]:
        findings.note_layout(layout.name, layout.takes, located.row)
        rows = layout.translate(located.row)
        if not rows:
            findings.notes["rows whose label says that they are not pairs, which are left out"] += 1

        examples = []
        for row in rows:
            dataset = row.get("dataset") or located.dataset
            examples += parse_own(Located(located.where, dataset, row), files, findings)
        return examples


def _refuse_loose_pictures(row: dict):
    """Refuses a picture beside query and positive: it may be either's."""
    for column in PICTURES:
        if row.get(column) not in (None, "", []):
            raise ValueError(
                f"has {column!r} beside 'query' and 'positive', and nothing says whose it is: --columns "
                f"query.image={column} query.text=query positive=positive, or positive.image={column} ..., does."
            )


def _own_takes(row: dict) -> dict[str, str]:
    """What columns of a row of our own are taken for: what they are called."""
    return {name: name.replace("_", " ") for name in row if name in OWN or name.startswith("negative")}
