"""`unime data check FILE`: what a person should know about a data file before training on it for a week."""

import argparse
import json
import statistics
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from ..images_unime import FORMATS, open_image
from . import fetch as fetching
from .mining import identity
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
        self.positives.setdefault(row.dataset, set()).add(identity(row.positive))
        self.pairs[row.dataset, row.query, row.positive] += 1
        self.lengths.setdefault(row.dataset, []).append(len(row.query.text) + len(row.positive.text))
        for item in (row.query, row.positive, *row.negatives, *row.negative_queries):
            if item.image:
                self.images.setdefault(item.image)
        distinct = set(row.negatives)
        self.odd["rows that repeat a negative"] += len(distinct) < len(row.negatives)
        self.odd["rows with negatives equal but for case or spacing"] += len(set(map(identity, distinct))) < len(
            distinct
        )
        self.odd["rows whose positive is among their negatives"] += identity(row.positive) in map(identity, distinct)
        if row.positive_score is not None:
            self.positive_scores.append(row.positive_score)
            self.negative_scores += row.negative_scores
            if row.negative_scores:
                self.gaps.append(row.positive_score - max(row.negative_scores))

    def datasets(self) -> dict:
        return {
            name or "(unnamed)": {
                "rows": count, "distinct queries": len(self.queries[name]),
                "distinct positives": len(self.positives[name]),
                "characters": round(statistics.mean(self.lengths[name]), 1),
            }
            for name, count in self.rows.most_common()
        }  # fmt: skip

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


def describe(report: dict) -> str:
    """The report in words."""
    bad, images = report["bad_rows"], report["images"]
    left = f", and {len(bad):,} bad ones that are left out" if bad else ", none of them bad"
    lines = [f"{report['file']}: {report['rows']:,} rows{left}", ""]
    width = max([len(name) for name in report["datasets"]] + [8])
    columns = ("rows", "distinct queries", "distinct positives", "characters")
    lines.append(f"{'data set':<{width}}" + "".join(f"{column:>20}" for column in columns) + " (mean)")
    for name, own in report["datasets"].items():
        lines.append(f"{name:<{width}}" + "".join(f"{own[column]:>20,}" for column in columns))
    for title in ("modalities", "mended", "duplicates"):
        known = {name: count for name, count in report[title].items() if count}
        lines += ["", f"{title}: " + ("" if known else "none")] + [
            f"  {count:>9,}  {name}" for name, count in known.items()
        ]
    if report["scores"]:
        lines += ["", "judge scores"]
        for name, value in report["scores"].items():
            shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else f"{value:,}"
            lines.append(f"  {name}: {shown}")
    lines += ["", f"images: {images['distinct']:,} distinct, {images['missing']:,} missing, "
              f"{len(images['unreadable']):,} unreadable"]  # fmt: skip
    if images["missing"]:
        lines.append(f"  the first that is missing: {images['first missing'][0]} (is --image-root right?)")
    lines += [f"  {entry['image']}: {entry['reason']}" for entry in images["unreadable"][:SHOWN]]
    lines += [f"  {count:>9,}  {name}" for name, count in images.get("kinds", {}).items()]
    if images.get("pixels"):
        lines.append("  pixels: " + ", ".join(f"{name} {value:,.0f}" for name, value in images["pixels"].items()))
    if bad:
        lines += ["", "bad rows"] + [f"  {problem['where']}: {problem['reason']}" for problem in bad[:SHOWN]]
        lines += [f"  ... and {len(bad) - SHOWN} more (--json FILE has all)"] * (len(bad) > SHOWN)
    return "\n".join(lines)


def _fetch(options):
    names = [options.name] if options.name else list(fetching.SOURCES)
    if unknown := [name for name in names if name not in fetching.SOURCES]:
        raise SystemExit(f"unime data: there is no benchmark {unknown[0]!r}; there are {', '.join(fetching.SOURCES)}.")
    print("\n\n".join(map(fetching.describe, names)))
    if options.name and not options.dry_run:
        try:
            print(f"\n{options.name} is in {fetching.fetch(options.name, options.out)}")
        except ValueError as error:
            raise SystemExit(f"unime data: {error}") from error


def main(arguments=None):
    """The command `unime data`."""
    parser = argparse.ArgumentParser(prog="unime data", description="Look at data, and get it.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("check", help="report on a data file", description=__doc__)
    command.add_argument("path", help="file or folder of any layout, or hf://datasets/<owner>/<name>[/<file>]")
    command.add_argument("--image-root", help="where image paths start (default: the file's folder)")
    command.add_argument("--split", default="original", help="MMEB-train: original or diverse_instruction")
    command.add_argument("--no-images", action="store_true", help="only look whether images are there")
    command.add_argument("--json", type=Path, help="write the whole report to this file")
    command = commands.add_parser("fetch", help="download a benchmark", description=fetching.__doc__)
    command.add_argument("name", nargs="?", help="which; without it, all are listed with their sizes")
    command.add_argument("--out", default="benchmarks-data", help="folder of the benchmarks")
    command.add_argument("--dry-run", action="store_true", help="only say where it comes from and how large it is")
    options = parser.parse_args(arguments)
    if options.command == "fetch":
        return _fetch(options)
    try:
        report = check(options.path, options.image_root, options.split, not options.no_images)
    except ValueError as error:
        raise SystemExit(f"unime data: {error}") from error
    if options.json:
        options.json.write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
    print(describe(report))
    if report["bad_rows"] or report["images"]["unreadable"] or report["images"]["missing"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
