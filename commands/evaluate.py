"""The command `unime eval`: benchmarks, reranking, reports and figures."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ..eval.catalogue import BENCHMARKS, read
from ..eval.means import notes_of, print_table
from ..eval.rerank import run_rerank, saved_result
from ..eval.runner import run_benchmark
from ..jobs.embedding import Embedder
from ..jobs.reranking import Reranker
from ..jobs.settings import parse_settings
from ..jobs.shards import processes

STEPS = BENCHMARKS | {"rerank": "the best candidates of a saved result, by a reranker"}


@dataclass
class EvalConfig:
    """Settings of `unime eval`. Beside the benchmarks there are `unime eval report` and `unime eval figures`."""

    model: str | None = field(default=None, metadata={"help": "Folder or repository of the embedder."})
    library: str = field(default="unime", metadata={"help": "unime or sentence-transformers."})
    preset: str | None = field(default=None, metadata={"help": "Prompts, for a stock VLM."})
    dtype: str = field(default="auto", metadata={"help": "auto is the checkpoint's own."})
    options: dict | str | None = field(
        default_factory=dict, metadata={"help": "For encode: resolution, batch_tokens, max_length, ..."}
    )
    data: str | None = field(default=None, metadata={"help": "Folder of the benchmark (`unime data fetch`)."})
    image_root: str | None = field(default=None, metadata={"help": "Where image paths start; the data's folder else."})
    tasks: list[str] | None = field(default=None, metadata={"help": "Data sets to take; all by default."})
    cache: str | None = field(
        default=None, metadata={"help": "Where pictures kept in Parquet files are unpacked; below the data else."}
    )
    partial: bool = field(default=False, metadata={"help": "Take the data sets that are there."})
    out: str = field(default="outputs/eval", metadata={"help": "Folder of all results."})
    shard: int = field(default=1024, metadata={"help": "Items of one shard: what is lost at most, if interrupted."})
    # rerank
    results: str | None = field(default=None, metadata={"help": "results.json of the embedder, or a folder with one."})
    reranker: str | None = field(default=None, metadata={"help": "Folder or repository of the reranker."})
    strategy: str = field(default="pointwise", metadata={"help": "pointwise, listwise or fused."})
    top: int = field(default=10, metadata={"help": "How many candidates are reranked."})
    rank_options: dict | str | None = field(
        default_factory=dict, metadata={"help": "For rank: rounds, weight, answer_format, resolution, ..."}
    )
    limit: int | None = field(default=None, metadata={"help": "Rerank only that many queries of each data set."})
    rerank_shard: int = field(default=16, metadata={"help": "Queries of one shard."})
    json: bool = field(default=False, metadata={"help": "Print one JSON object instead of a table."})

    def __post_init__(self):
        for name in ("options", "rank_options"):
            if isinstance(value := getattr(self, name), str):
                setattr(self, name, json.loads(value))


def run(step: str, config: EvalConfig) -> Path:
    """Does a step of the command and returns the path of its results."""
    if step == "rerank":
        return _rerank(config)
    for name in ("model", "data"):
        if getattr(config, name) is None:
            raise ValueError(f"`{name}` is missing.")
    embedder = Embedder(config.model, config.library, config.preset, config.dtype, **config.options or {})
    embedder.settings()  # a mistyped model should not cost the reading of a benchmark
    source = {key: getattr(config, key) for key in ("data", "image_root", "tasks", "partial", "cache")}
    with embedder.state.main_process_first():  # which unpacks what has to be unpacked
        tasks, root = read(step, source)
    return run_benchmark(step, tasks, embedder, config.out, root, source, config.shard)


def _rerank(config: EvalConfig) -> Path:
    for name in ("results", "reranker"):
        if getattr(config, name) is None:
            raise ValueError(f"`{name}` is missing.")
    path = saved_result(config.results)
    before = json.loads(path.read_text(encoding="utf-8"))
    source = dict(before["source"])
    source |= {key: getattr(config, key) for key in ("data", "image_root", "cache") if getattr(config, key)}
    with processes().main_process_first():
        tasks, root = read(before["benchmark"], source)
    reranker = Reranker(config.reranker, config.strategy, config.dtype, **config.rank_options or {})
    return run_rerank(path, tasks, reranker, config.top, root, config.limit, config.rerank_shard)


def main(arguments=None):
    """The command `unime eval`."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if arguments[:1] == ["report"]:
            from .report import main as report

            return report(arguments[1:])
        if arguments[:1] == ["figures"]:
            from .figures import main as figures

            return figures(arguments[1:])
        step, config = parse_settings("unime eval", EvalConfig, STEPS, arguments)
        path = run(step, config)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"unime eval: {error}") from error
    if processes().is_main_process:
        results = json.loads(path.read_text(encoding="utf-8"))
        if config.json:
            return print(
                json.dumps(
                    {"results": str(path), "means": results["means"]}
                    | {"tasks": {name: result["score"] for name, result in results["tasks"].items()}}
                )
            )
        print_table({"score": results["tasks"]}, results["benchmark"])
        for note, names in notes_of(results["tasks"]).items():
            print(f"  {names}: {note}")
        print(f"\n{path}")


if __name__ == "__main__":
    main()
