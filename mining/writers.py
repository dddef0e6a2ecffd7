"""Writers of public layouts, the counterparts of `data/readers.py`."""

import json
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from ..data.schema import Example, Item
from ..files.addresses import local_copy
from ..files.writing import write_whole
from ..jobs.embedding import path_name

BLOCK = 4096  # rows that are Python objects at a time
JUDGED_SCHEMA = pa.schema(
    {
        "query_text": pa.string(),
        "query_image": pa.string(),
        "pos_text": pa.string(),
        "pos_image": pa.string(),
        "query_pos_scores": pa.float64(),
        "hard_negatives": pa.list_(pa.list_(pa.string())),
        "hard_negatives_scores": pa.list_(pa.float64()),
        "dataset": pa.string(),
        # keys of our own, of few rows
        "query_instruction": pa.string(),
        "query_more_images": pa.list_(pa.string()),
        "pos_more_images": pa.list_(pa.string()),
        "other_positives": pa.list_(pa.list_(pa.string())),
        "weight": pa.float64(),
    }
)


def write_judged(path, examples: Iterable[Example], image_root) -> int:
    """Writes rows in the layout of UniME-V2's released file, one a line, with the key `dataset` added to each.

    The file appears when it is complete; [`~unime.data.readers.read_judged`] reads it.

    Args:
        path (`str` or `Path`): the file.
        examples (`Iterable[Example]`): judged rows, which are taken one at a time.
        image_root (`str` or `Path`): images are named by their paths below it.

    Returns:
        how many rows were written.

    Example:

    ```python
    example = Example(Item("a dog"), Item("a puppy"), [Item("a car")], 0.9, [0.1], "Animals")
    write_judged("judged.json", [example], image_root="images")
    ```
    """
    count = 0

    def write(draft: Path):
        nonlocal count
        with open(draft, "w", encoding="utf-8") as file:
            for example in examples:
                file.write(",\n" if count else "[\n")
                file.write(json.dumps(_judged_row(example, image_root), ensure_ascii=False))
                count += 1

            file.write("\n]\n" if count else "[\n]\n")

    write_whole(path, write)
    return count


def write_judged_shards(
    folder: Path, rows: int, shard_size: int, examples_of: Callable[[range], Iterable[Example]], image_root
) -> int:
    """Writes rows in the same layout as a folder of Parquet files, one for each shard.

    A file that is there was written whole by an earlier run, and is left as it is;
    [`~unime.data.readers.read_judged`] reads the folder.

    Args:
        folder (`Path`): of the files `rows-<number of the first row>.parquet`.
        rows (`int`): how many judged rows there are.
        shard_size (`int`): of so many judged rows the selected ones share a file.
        examples_of: maps numbers of judged rows to the selected ones.
        image_root (`str` or `Path`): images are named by their paths below it.

    Returns:
        how many rows are written.
    """
    count = 0
    for first in tqdm(range(0, rows, shard_size), desc="Selecting", unit="file"):
        path = folder / f"rows-{first:09d}.parquet"

        # a file that is present was moved into its place when it was whole
        if not path.exists():
            examples = examples_of(range(first, min(first + shard_size, rows)))
            write_whole(path, partial(_write_parquet, examples=examples, image_root=image_root))
        count += pq.read_metadata(local_copy(path)).num_rows
    return count


def _write_parquet(draft: Path, examples: Iterable[Example], image_root):
    """Writes rows to a Parquet file, a block of them at a time."""
    with pq.ParquetWriter(draft, JUDGED_SCHEMA) as writer:
        examples = iter(examples)
        while block := list(islice(examples, BLOCK)):
            rows = [_judged_row(example, image_root) for example in block]
            writer.write_table(pa.Table.from_pylist(rows, JUDGED_SCHEMA))


def _judged_row(example: Example, image_root) -> dict:
    """A row under the released file's names."""
    query = _names(example.query, image_root)
    positive = _names(example.positive, image_root)
    row = {
        "query_text": query[0],
        "query_image": query[1],
        "pos_text": positive[0],
        "pos_image": positive[1],
        "query_pos_scores": example.positive_score,
        "hard_negatives": [_names(item, image_root) for item in example.negatives],
        "hard_negatives_scores": example.negative_scores,
        "dataset": example.dataset,
    }

    # keys of our own, only where they say something
    if example.query.instruction:
        row["query_instruction"] = example.query.instruction
    if len(query) > 2:
        row["query_more_images"] = query[2:]
    if len(positive) > 2:
        row["pos_more_images"] = positive[2:]
    if example.other_positives:
        row["other_positives"] = [_names(item, image_root) for item in example.other_positives]
    if example.weight != 1:
        row["weight"] = example.weight
    return row


def _names(item: Item, image_root) -> list[str]:
    """An item as the released file has it: its text and its image's path, and the paths of further images."""
    images = [path_name(path, image_root) for path in item.images]
    return [item.text, *(images or [""])]
