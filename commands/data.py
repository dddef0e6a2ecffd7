"""The command `unime data`: look at data, and get it."""

import argparse
import json
from pathlib import Path

from ..data.check import SHOWN, check
from ..eval import fetch as fetching


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
