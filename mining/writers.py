"""Writers of public layouts, the counterparts of `data/readers.py`."""

import json
from collections.abc import Iterable
from pathlib import Path

from ..data.schema import Example
from ..files.writing import write_whole
from ..jobs.embedding import image_name


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

    write_whole(Path(path), write)
    return count


def _judged_row(example: Example, image_root) -> dict:
    """A row under the released file's names."""
    negatives = [[item.text, image_name(item, image_root)] for item in example.negatives]
    return {
        "query_text": example.query.text,
        "query_image": image_name(example.query, image_root),
        "pos_text": example.positive.text,
        "pos_image": image_name(example.positive, image_root),
        "query_pos_scores": example.positive_score,
        "hard_negatives": negatives,
        "hard_negatives_scores": example.negative_scores,
        "dataset": example.dataset,
    }
