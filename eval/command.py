"""The command `unime eval`: benchmarks, reranking, reports and figures."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ..data.embedding import Embedder
from ..data.mmeb_v2 import read_video, read_visdoc
from ..data.retrieval_sets import read_retrieval
from ..data.settings import parse_settings
from ..data.stages import processes
from ..data.tasks import Task, read_mmeb, read_sugarcrepe, read_world_tasks
from .rerank import Reranker, run_rerank, saved_result
from .runner import notes_of, print_table, run_benchmark

STEPS = {
    "mmeb": "the 36 data sets of MMEB",
    "mmeb-v2-image": "the same with the texts of MMEB-V2",
    "visdoc": "MMEB-V2's visual documents",
    "video": "MMEB-V2's videos",
    "retrieval": "Flickr30K, COCO, ShareGPT4V-1k and Urban1K, both ways",
    "sugarcrepe": "SugarCrepe's seven subsets",
    "world": "the miniature world",
    "rerank": "the best candidates of a saved result, by a reranker",
}


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


def read(benchmark: str, source: dict) -> tuple[list[Task], object]:
    """Reads a benchmark as a results file says it was read: tasks, and the folders that image paths start from.

    Args:
        benchmark (`str`): one of `STEPS`.
        source (`dict`): `data`, `image_root`, `tasks`, `partial` and `cache`.
    """
    if missing := {"data", "image_root", "tasks", "partial", "cache"} - source.keys():
        raise ValueError(f"it is not known how {benchmark} was read: {sorted(missing)} are missing.")
    data, images, tasks = source["data"], source["image_root"], source["tasks"]
    cache = source["cache"] or Path(data) / "images"
    if benchmark in ("mmeb", "mmeb-v2-image"):
        return read_mmeb(data, tasks, images, source["partial"]), images or data
    if benchmark == "visdoc":
        return read_visdoc(data, tasks, cache, source["partial"]), cache
    if benchmark == "video":
        return read_video(data, tasks, source["partial"]), data
    if benchmark == "retrieval":
        return read_retrieval(data, tasks, cache, images), (data, cache, *([images] if images else []))
    if benchmark == "sugarcrepe":
        found = read_sugarcrepe(data, images or Path(data) / "images" / "val2017")
    else:
        found = read_world_tasks(data)
    if unknown := sorted(set(tasks or ()) - {task.name for task in found}):
        raise ValueError(f"{data} has no data sets {unknown}; it has {', '.join(task.name for task in found)}.")
    return [task for task in found if not tasks or task.name in tasks], images or data


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
            from .figures_command import main as figures

            return figures(arguments[1:])
        step, config = parse_settings("unime eval", EvalConfig, STEPS, arguments)
        path = run(step, config)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"unime eval: {error}") from error
    if processes().is_main_process:
        results = json.loads(path.read_text(encoding="utf-8"))
        if config.json:
            return print(json.dumps({"results": str(path), "means": results["means"]} | {
                "tasks": {name: result["score"] for name, result in results["tasks"].items()}}))  # fmt: skip
        print_table({"score": results["tasks"]}, results["benchmark"])
        for note, names in notes_of(results["tasks"]).items():
            print(f"  {names}: {note}")
        print(f"\n{path}")


if __name__ == "__main__":
    main()
