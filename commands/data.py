"""The command `unime data`: look at data, and get it."""

import json
from pathlib import Path

from ..data.check import SHOWN, check
from ..eval import fetch as fetching
from ..files.writing import write_text
from ..jobs.settings import CommandParser
from .errors import one_line_errors
from .options import add, add_output


def describe(report: dict) -> str:
    """The report of [`~unime.data.check.check`] in words.

    Args:
        report (`dict`): as `check` returns it.

    Returns:
        `str`: several lines; of bad rows and images the first 20.

    Example:

    ```python
    print(describe(check("pairs.jsonl")))
    ```
    """
    bad_rows = report["bad_rows"]  # with place and reason; the other figures leave them out
    verdict = "none of them bad"
    if bad_rows:
        verdict = f"and {len(bad_rows):,} bad ones that are left out"
    lines = [f"{report['file']}: {report['rows']:,} rows, {verdict}", ""]

    lines += _dataset_lines(report["datasets"])
    for title in ("modalities", "mended", "duplicates"):
        lines += ["", *_count_lines(title, report[title])]
    if report["scores"]:
        lines += ["", "judge scores", *_score_lines(report["scores"])]
    lines += ["", *_image_lines(report["images"])]
    if bad_rows:
        lines += ["", "bad rows", *_bad_row_lines(bad_rows)]
    return "\n".join(lines)


def _dataset_lines(datasets: dict[str, dict]) -> list[str]:
    """A table with a line for each data set."""
    columns = ("rows", "distinct queries", "distinct positives", "characters")
    width = max(map(len, ["data set", *datasets]))

    head = f"{'data set':<{width}}"
    for column in columns:
        head += f"{column:>20}"
    lines = [f"{head} (mean)"]  # of the last column, the characters

    for name, counts in datasets.items():
        line = f"{name:<{width}}"
        for column in columns:
            line += f"{counts[column]:>20,}"
        lines.append(line)
    return lines


def _count_lines(title: str, counts: dict[str, int]) -> list[str]:
    """A title, and the counts that are not zero."""
    lines = []
    for name, count in counts.items():
        if count:
            lines.append(f"  {count:>9,}  {name}")
    if not lines:
        return [f"{title}: none"]
    return [f"{title}:", *lines]


def _score_lines(scores: dict) -> list[str]:
    """A line for each figure, which is a count or a spread."""
    lines = []
    for name, value in scores.items():
        text = _spread(value) if isinstance(value, dict) else f"{value:,}"
        lines.append(f"  {name}: {text}")
    return lines


def _spread(values: dict[str, float], style: str = "") -> str:
    """Least, quartiles and greatest, in one line; `style` is that of the numbers."""
    return ", ".join(f"{name} {value:{style}}" for name, value in values.items())


def _image_lines(images: dict) -> list[str]:
    """What opening the images showed."""
    unreadable = images["unreadable"]
    counts = f"{images['distinct']:,} distinct, {images['missing']:,} missing, {len(unreadable):,} unreadable"
    lines = [f"images: {counts}"]
    if images["missing"]:
        lines.append(f"  the first that is missing: {images['first missing'][0]} (is --image-root right?)")
    for entry in unreadable[:SHOWN]:
        lines.append(f"  {entry['image']}: {entry['reason']}")

    # only where the images were opened
    for kind, count in images.get("kinds", {}).items():
        lines.append(f"  {count:>9,}  {kind}")
    if images.get("pixels"):
        lines.append(f"  pixels: {_spread(images['pixels'], ',.0f')}")
    return lines


def _bad_row_lines(problems: list[dict]) -> list[str]:
    """The first bad rows with their places."""
    lines = []
    for problem in problems[:SHOWN]:
        lines.append(f"  {problem['where']}: {problem['reason']}")
    if len(problems) > SHOWN:
        lines.append(f"  ... and {len(problems) - SHOWN} more (--report FILE has all)")
    return lines


def _check(options):
    """`unime data check`: status 1 where something is wrong with the data."""
    with one_line_errors("unime data check"):
        report = check(options.path, options.image_root, options.split, not options.no_images)

        text = json.dumps(report, indent=1, ensure_ascii=False)
        if options.report:
            write_text(options.report, text)
    print(text if options.json else describe(report))

    # so that a script stops before it trains on such data
    images = report["images"]
    if report["bad_rows"] or images["unreadable"] or images["missing"]:
        raise SystemExit(1)


def _fetch(options):
    """`unime data fetch`: lists the benchmarks, or downloads one."""
    names = [options.name] if options.name else list(fetching.SOURCES)
    with one_line_errors("unime data fetch"):
        if options.name and options.name not in fetching.SOURCES:
            raise ValueError(f"there is no benchmark {options.name!r}; there are {', '.join(fetching.SOURCES)}.")
        print("\n\n".join(map(fetching.describe, names)))

        # all of them together are hundreds of gigabytes: one is downloaded only where it is named
        if options.name and not options.dry_run:
            folder = fetching.fetch(options.name, options.out)
            print(f"\n{options.name} is in {folder}")


def main(arguments=None):
    """The command `unime data`."""
    parser = CommandParser(prog="unime data", description="Look at data, and get it.")
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("check", help="report on a data file", description="Report on a data file.")
    command.add_argument("path", help="file or folder of any layout, or hf://datasets/<owner>/<name>[/<file>]")
    add(command, "image-root")
    add(command, "split")
    command.add_argument("--no-images", action="store_true", help="only look whether images are there")
    command.add_argument("--report", type=Path, metavar="FILE", help="write the whole report to this file, as JSON")
    add_output(command)
    command.set_defaults(run=_check)

    command = commands.add_parser("fetch", help="download a benchmark", description=fetching.__doc__)
    command.add_argument("name", nargs="?", help="which; without it, all are listed with their sizes")
    command.add_argument("--out", default="benchmarks-data", help="folder of the benchmarks (default: %(default)s)")
    command.add_argument("--dry-run", action="store_true", help="only say where it comes from and how large it is")
    add(command, "quiet")
    command.set_defaults(run=_fetch)

    options = parser.parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
