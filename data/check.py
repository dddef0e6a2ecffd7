"""`unime data check FILE`: what a person should know about a data file before training on it for a week."""

import statistics
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from ..images_unime import FORMATS, open_image
from .readers import Findings, read_rows
from .schema import Example, Item, to_example

SHOWN = 20  # bad rows, and bad images, that are printed; the JSON report has all


def check(path, image_root=None, split: str = "original", images: bool = True) -> dict:
    """Examines a data file of any layout that [`~unime.data.readers.read_rows`] reads.

    Args:
        path: file, folder, or `hf://datasets/...`.
        image_root (*optional*): where image paths start; the file's folder by default.
        split (`str`): for a folder of MMEB-train.
        images (`bool`): open every image, rather than only look whether it is there.

    Returns:
        the report, of plain values: `rows`, `bad_rows`, `datasets`, `modalities`, `mended`, `duplicates`, `scores`,
        `images`.
    """
    found = Findings(images_must_exist=False)
    rows = read_rows(path, image_root, split=split, found=found)
    tally = _Tally()
    for row in tqdm(rows, desc="Rows", unit="row", delay=1):
        tally.add(to_example(row))
    return {
        "file": str(path),
        "rows": len(rows),
        "bad_rows": [{"where": problem.where, "reason": problem.reason} for problem in found.problems],
        "datasets": tally.datasets(),
        "modalities": dict(tally.modalities.most_common()),
        "mended": dict(found.notes),
        "duplicates": tally.duplicates(),
        "scores": tally.scores(),
        "images": check_images(tally.images, images),
    }


class _Tally:
    """Counts over rows."""

    def __init__(self):
        self.rows, self.modalities, self.odd, self.images = Counter(), Counter(), Counter(), {}
        self.queries, self.positives, self.pairs = {}, {}, Counter()
        self.positive_scores, self.negative_scores, self.gaps, self.lengths = [], [], [], {}

    def add(self, row: Example):
        self.rows[row.dataset] += 1
        self.modalities[f"{_modality(row.query)} -> {_modality(row.positive)}"] += 1
        self.queries.setdefault(row.dataset, set()).add(row.query)
        self.positives.setdefault(row.dataset, set()).add(row.positive.identity)
        self.pairs[row.dataset, row.query, row.positive] += 1
        self.lengths.setdefault(row.dataset, []).append(len(row.query.text) + len(row.positive.text))
        for item in (row.query, row.positive, *row.negatives, *row.negative_queries):
            if item.image:
                self.images.setdefault(item.image)
        distinct = set(row.negatives)
        self.odd["rows that repeat a negative"] += len(distinct) < len(row.negatives)
        self.odd["rows with negatives equal but for case or spacing"] += len(
            {negative.identity for negative in distinct}
        ) < len(distinct)
        self.odd["rows whose positive is among their negatives"] += row.positive.identity in {
            negative.identity for negative in distinct
        }
        if row.positive_score is not None:
            self.positive_scores.append(row.positive_score)
            self.negative_scores += row.negative_scores
            if row.negative_scores:
                self.gaps.append(row.positive_score - max(row.negative_scores))

    def datasets(self) -> dict:
        return {
            name or "(unnamed)": {
                "rows": count,
                "distinct queries": len(self.queries[name]),
                "distinct positives": len(self.positives[name]),
                "characters": round(statistics.mean(self.lengths[name]), 1),
            }
            for name, count in self.rows.most_common()
        }

    def duplicates(self) -> dict:
        owners = Counter((dataset, query) for dataset, query, _ in self.pairs)
        return {
            "repeated rows": sum(count - 1 for count in self.pairs.values()),
            "queries with several positives": sum(count > 1 for count in owners.values()),
            **self.odd,
        }

    def scores(self) -> dict:
        if not self.positive_scores:
            return {}
        return {
            "positive": _spread(self.positive_scores),
            "negative": _spread(self.negative_scores),
            "positive minus highest negative": _spread(self.gaps),
            "positives below 0.5": sum(score < 0.5 for score in self.positive_scores),
            "rows with a negative at or above their positive": sum(gap <= 0 for gap in self.gaps),
        }


def _modality(item: Item) -> str:
    return " + ".join(["image"] * bool(item.image) + ["text"] * bool(item.text.strip()))


def _spread(values) -> dict:
    """Least, quartiles and greatest."""
    if len(values) < 2:
        return {"values": len(values)}
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    found = {"least": min(values), "quarter": low, "median": middle, "three quarters": high, "greatest": max(values)}
    return {name: round(value, 4) for name, value in found.items()}


def check_images(paths, thoroughly: bool = True) -> dict:
    """Opens images the way training will, and counts what is odd about them.

    Returns:
        `{"distinct", "missing", "unreadable": [{"image", "reason"}], "kinds", "pixels"}`
    """
    there = [path for path in paths if Path(path).is_file()]
    known = set(there)
    missing = [path for path in paths if path not in known]
    found = {"distinct": len(paths), "missing": len(missing), "first missing": missing[:SHOWN], "unreadable": []}
    if not thoroughly:
        return found
    kinds, pixels = Counter(), []
    with ThreadPoolExecutor() as workers:
        looked = workers.map(_look, there)
        for path, (reason, odd, size) in zip(
            there, tqdm(looked, total=len(there), desc="Images", unit="image", delay=1)
        ):
            kinds.update(odd)
            if reason:
                found["unreadable"].append({"image": path, "reason": reason})
            else:
                pixels.append(size[0] * size[1])
    return {**found, "kinds": dict(kinds.most_common()), "pixels": _spread(pixels) if pixels else {}}


def _look(path: str) -> tuple[str, list[str], tuple[int, int]]:
    """Why an image cannot be read, what is odd about it, and its size."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as file:
                odd = [f"mode {file.mode}"]
                odd += ["animated: the first frame counts"] * (getattr(file, "n_frames", 1) > 1)
                alpha = "A" in file.getbands() or "transparency" in file.info
                odd += ["transparent: put on white"] * alpha
        return "", odd, open_image(path).size
    except Exception as error:  # a damaged file makes its decoder raise anything
        return str(error) or type(error).__name__, [], (0, 0)
