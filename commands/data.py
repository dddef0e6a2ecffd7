"""The command `unime data`: look at data, and get it."""

import json

from ..checkpoints.opening import open_processor
from ..data.check import SHOWN, check
from ..data.collators import EmbeddingCollator
from ..data.layouts import is_of_media
from ..data.texts import printable
from ..eval import fetch as fetching
from ..files.writing import write_text
from .errors import one_line_errors
from .parsers.data import read


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
        verdict = f"and {_counted(len(bad_rows), 'bad one')}, at the first of which a training stops"
    missing = report["images"]["missing"]
    if missing:
        verdict += f"; {_counted(missing, 'image')} not there, which stops a training too"
    lines = [f"{report['file']}: {_counted(report['rows'], 'row')}, {verdict}"]

    # how the rows were understood
    if report["source"]:
        lines.append(f"read as: {report['source']}")
    for layout, columns in report["columns"].items():
        lines += ["", f"columns: {layout}", *_column_lines(columns)]
    lines += _unused_lines(report["unused"])
    lines += ["", "the first rows, as they are read", *_sample_lines(report["samples"]), ""]

    lines += _dataset_lines(report["datasets"])

    # what is in them
    for title in ("modalities", "mended", "duplicates"):
        lines += ["", *_count_lines(title, report[title])]
    if report["scores"]:
        lines += ["", "judge scores", *_score_lines(report["scores"])]
    lines += ["", *_image_lines(report["images"])]
    if bad_rows:
        lines += ["", "bad rows", *_bad_row_lines(bad_rows)]
    if "bad_items" in report:
        lines += ["", *_bad_item_lines(report["bad_items"])]
    return "\n".join(lines)


def _column_lines(columns: dict[str, str]) -> list[str]:
    """What each column is taken for."""
    width = max(map(len, columns), default=0)
    return [f"  {name:<{width}}  -> {what}" for name, what in columns.items()]


def _unused_lines(columns: list[str]) -> list[str]:
    """The columns that are not read, which is said aloud of pictures."""
    if not columns:
        return []
    lines = [f"  not read: {', '.join(map(printable, columns))}"]
    for column in columns:
        if is_of_media(column):
            lines.append(
                f"  {printable(column)} seems to name pictures: --columns query.image={column}, or positive.image"
            )
    return lines


def _counted(count: int, noun: str) -> str:
    """A number with its noun."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _sample_lines(samples: list[dict]) -> list[str]:
    """A few rows, a line for each of their parts."""
    lines = []
    for number, sample in enumerate(samples):
        for name, value in sample.items():
            start = f"  {number}." if name == "query" else "    "
            lines.append(f"{start} {name}: {value}")
    return lines


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
    if images.get("copies"):
        lines.append(f"  {images['copies']:>9,}  copies of others under other names, which count as one candidate")
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


def _bad_item_lines(bad_items: list[dict]) -> list[str]:
    """What the model cannot read."""
    if not bad_items:
        return ["items that the model cannot read: none"]

    lines = [f"items that the model cannot read: {len(bad_items):,}"]
    for entry in bad_items[:SHOWN]:
        lines.append(f"  {entry['item']}: {entry['reason']}")
    if len(bad_items) > SHOWN:
        lines.append(f"  ... and {len(bad_items) - SHOWN} more (--report FILE has all)")
    return lines


def open_reader(
    source,
    preset: str | None = None,
    reranker: bool = False,
    max_length: int | None = None,
    resolution: str | None = None,
    trust_remote_code: bool = False,
):
    """What reads rows as a training of a model does; none of its weights are loaded.

    Args:
        source (`str` or `Path`): folder or repository.
        preset (`str`, *optional*): how items are read; by default as saved, or by a stock VLM's name.
        reranker (`bool`, defaults to `False`): a stock VLM is to become a reranker; a saved one is known.
        max_length (`int`, *optional*), resolution (`str`, *optional*): as in the training.
        trust_remote_code (`bool`, defaults to `False`): run the code of the repository.

    Example:

    ```python
    report = check("pairs.jsonl", reader=open_reader("outputs/quickstart/model", max_length=512))
    ```
    """
    processor, is_reranker = open_processor(source, preset, trust_remote_code=trust_remote_code)
    processor.fusion = "joint"  # training reads one prompt

    # a stock VLM can become either
    if not (reranker or is_reranker):
        return EmbeddingCollator(processor, max_length=max_length, resolution=resolution)

    from ..trainers.reranker import RerankerCollator, RerankerConfig

    config = RerankerConfig(output_dir="unused", max_length=max_length, resolution=resolution)
    return RerankerCollator(processor, config)


def _check(options):
    """`unime data check`: status 1 where something is wrong with the data."""
    with one_line_errors("unime data check"):
        reader = None
        if options.model:
            reader = open_reader(
                options.model,
                options.preset,
                options.as_reranker,
                options.max_length,
                options.resolution,
                options.trust_remote_code,
            )

        report = check(
            options.path,
            options.image_root,
            options.split,
            not options.no_images,
            reader,
            options.columns,
            options.allow_urls,
        )

        text = json.dumps(report, indent=1, ensure_ascii=False)
        if options.report:
            write_text(options.report, text)
    print(text if options.json else describe(report))

    # so that a script stops before it trains on such data
    images = report["images"]
    if report["bad_rows"] or images["unreadable"] or images["missing"] or report.get("bad_items"):
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


def execute(options):
    """Does what the options of `unime data` say."""
    if options.command == "check":
        _check(options)
    else:
        _fetch(options)


def main(arguments=None):
    """The command `unime data`."""
    execute(read(arguments))


if __name__ == "__main__":
    main()
