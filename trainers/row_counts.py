"""What the data sets of some rows hold: counted in Arrow, so that it is quick for a million rows."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset


@dataclass(frozen=True)
class RowCounts:
    """Counts of each data set.

    Args:
        data_sets (`list[dict]`): in the order of the rows, each with `data set`, `rows`, `candidates` (distinct
            positives), `commonest` (rows with the commonest positive), and of a row `least negatives` and `most
            negatives`.

    Example:

    ```python
    RowCounts.of(rows).with_fewer_negatives(8, "num_negatives")
    ```
    """

    data_sets: list[dict]

    @classmethod
    def of(cls, rows: Dataset) -> "RowCounts":
        """The counts of rows with the columns of [`~unime.data.schema.Example`]."""
        table = rows.with_format("arrow")[:]

        # text and image as one string, which Arrow can count, joined by a character that no path holds
        positive = table["positive"].combine_chunks()
        candidate = pc.binary_join_element_wise(positive.field("text"), positive.field("image"), "\x00")

        columns = {
            "dataset": table["dataset"],
            "candidate": candidate,
            "negatives": pc.list_value_length(table["negatives"]),
        }
        groups = pa.table(columns).group_by("dataset", use_threads=False)  # threads would lose the order
        counted = groups.aggregate(
            [
                ("negatives", "count", pc.CountOptions(mode="all")),
                ("candidate", "count_distinct"),
                ("negatives", "min"),
                ("negatives", "max"),
            ]
        )

        # rows of each positive, and of them the most
        by_candidate = pa.table({"dataset": table["dataset"], "candidate": candidate})
        copies = by_candidate.group_by(["dataset", "candidate"]).aggregate([("candidate", "count")])
        most = copies.group_by("dataset").aggregate([("candidate_count", "max")])
        commonest = dict(zip(most["dataset"].to_pylist(), most["candidate_count_max"].to_pylist()))

        # under names that people read
        data_sets = []
        for row in counted.to_pylist():
            counts = {
                "data set": row["dataset"] or "(no name)",
                "rows": row["negatives_count"],
                "candidates": row["candidate_count_distinct"],
                "commonest": commonest[row["dataset"]],
                "least negatives": row["negatives_min"],
                "most negatives": row["negatives_max"],
            }
            data_sets.append(counts)
        return cls(data_sets)

    @property
    def rows(self) -> int:
        """All rows."""
        return sum(row["rows"] for row in self.data_sets)

    def with_fewer_negatives(self, count: int, setting: str) -> list[str]:
        """A message for each data set none of whose rows has so many negatives as a setting asks for."""
        messages = []
        for row in self.data_sets:
            most = row["most negatives"]
            if most < count:
                messages.append(f"{row['data set']}: its rows have {most} negatives at most, {setting} is {count}.")
        return messages

    def with_fewer_candidates(self, count: int, setting: str) -> list[str]:
        """A message for each data set that has not so many candidates beside a positive as a setting asks for."""
        messages = []
        for row in self.data_sets:
            # at best: the positives of all other rows, and its own negatives
            others = row["candidates"] - 1 + row["most negatives"]
            if others < count:
                messages.append(
                    f"{row['data set']}: a query has {others} candidates beside its positive, {setting} is {count}; "
                    "mix data sets (homogeneous_batches: false), or lower it."
                )
        return messages
