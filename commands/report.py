"""The command `unime eval report`: results beside the published numbers.

    unime eval report outputs/eval --out report

writes `report.md`, `report.html`, and for benchmarks of the Hub `<model>/.eval_results/<benchmark>.yaml`.
"""

import argparse
import re
from pathlib import Path

import yaml

from ..eval.pages import to_html, to_markdown
from ..eval.report import (
    build,
    load,
    to_eval_results,
)
from ..jobs.shards import write_text


def main(arguments=None):
    """The command `unime eval report`."""
    parser = argparse.ArgumentParser(
        prog="unime eval report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", help="results.json files, or folders of them; the first is the baseline")
    parser.add_argument("--names", nargs="+", help="what to call them")
    parser.add_argument("--out", type=Path, default=Path("report"), help="where to write, without .md or .html")
    options = parser.parse_args(arguments)
    results = load(options.results, options.names)
    tables = build(results)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.out.with_name(f"{options.out.name}.md"), to_markdown(tables))
    write_text(options.out.with_name(f"{options.out.name}.html"), to_html(tables))
    print(f"{options.out}.md\n{options.out}.html")
    for result in results:
        if entries := to_eval_results(result):
            folder = options.out.parent / re.sub(r"[^\w.-]+", "-", result.name) / ".eval_results"
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{result.content['benchmark']}.yaml"
            write_text(path, yaml.safe_dump(entries, sort_keys=False))
            print(path)


if __name__ == "__main__":
    main()
