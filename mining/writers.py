"""Writers of public layouts, the counterparts of `readers.py`."""

import json
from pathlib import Path

from ..jobs.embedding import image_name
from ..jobs.shards import write_whole


def write_judged(path, examples, image_root):
    """Writes rows in the layout of UniME-V2's released file, one a line, with the key `dataset` added to each."""

    def write(draft):
        with open(draft, "w", encoding="utf-8") as file:
            start = "[\n"
            for example in examples:
                row = {
                    "query_text": example.query.text,
                    "query_image": image_name(example.query, image_root),
                    "pos_text": example.positive.text,
                    "pos_image": image_name(example.positive, image_root),
                    "query_pos_scores": example.positive_score,
                    "hard_negatives": [[item.text, image_name(item, image_root)] for item in example.negatives],
                    "hard_negatives_scores": example.negative_scores,
                    "dataset": example.dataset,
                }
                file.write(start + json.dumps(row, ensure_ascii=False))
                start = ",\n"
            file.write("[\n]\n" if start == "[\n" else "\n]\n")

    write_whole(Path(path), write)
