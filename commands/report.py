"""The command `unime eval report`: results beside the published numbers.

    unime eval report outputs/eval --out report

writes `report.md`, `report.html`, and for benchmarks of the Hub `<model>/.eval_results/<benchmark>.yaml`.
"""

from pathlib import Path

import yaml

from ..eval.pages import to_html, to_markdown
from ..eval.report import Result, build, load, to_eval_results
from ..files.names import file_name
from ..files.writing import write_text
from .errors import one_line_errors
from .parsers.report import read


def execute(options):
    """Does what the options of `unime eval report` say."""
    with one_line_errors("unime eval report"):
        results = load(options.results, options.names)
        paths = _write_pages(results, options.out)
        for result in results:
            paths += _write_entries(result, options.out.parent)
    for path in paths:
        print(path)


def _write_pages(results: list[Result], out: Path) -> list[Path]:
    """Writes the report as Markdown and as HTML."""
    tables = build(results)

    # not with_suffix, which would take "2.5-VL" for a suffix
    markdown = out.with_name(f"{out.name}.md")
    html = out.with_name(f"{out.name}.html")
    write_text(markdown, to_markdown(tables))
    write_text(html, to_html(tables))
    return [markdown, html]


def _write_entries(result: Result, folder: Path) -> list[Path]:
    """Writes a result in the form that the Hub shows beside a model, if its benchmark is on the Hub."""
    entries = to_eval_results(result)
    if not entries:
        return []

    # what is measured and what it is called stand in the file of results, which anybody may have written
    folder = folder / file_name(result.name) / ".eval_results"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{file_name(result.benchmark)}.yaml"
    write_text(path, yaml.safe_dump(entries, sort_keys=False))
    return [path]


def main(arguments=None):
    """The command `unime eval report`."""
    execute(read(arguments))


if __name__ == "__main__":
    main()
