"""The command `unime eval`: benchmarks, reranking, reports and figures."""

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ..data.item_sources import SOURCES
from ..eval.catalogue import BENCHMARKS, read
from ..eval.means import notes_of, print_metrics, print_table
from ..eval.rehearsal import rehearse, rehearse_rerank
from ..eval.rerank import run_rerank, saved_result
from ..eval.runner import read_result, run_benchmark
from ..files.identity import verify_files
from ..files.writing import read_json
from ..jobs.checks import check_settings
from ..jobs.embedding import Embedder
from ..jobs.engines import EngineSettings, open_engine
from ..jobs.rehearsal import Rehearsal
from ..jobs.reranking import Reranker
from ..jobs.settings import given_settings, parse_settings
from ..jobs.shards import processes
from .errors import one_line_errors
from .options import json_object, setting

# commands of their own, named here for the help
PAGES = {
    "report": "results beside the published numbers (options of its own: unime eval report --help)",
    "figures": "pictures of models, results and trainings (options of its own: unime eval figures --help)",
}

STEPS = BENCHMARKS | {"rerank": "the best candidates of a saved result, by a reranker"}


@dataclass
class _DataSettings(EngineSettings):
    """What a benchmark and a reranker over its result both need."""

    dtype: str = field(**setting("dtype"))
    trust_remote_code: bool = field(**setting("trust-remote-code"))
    data: str | None = field(default=None, metadata={"help": "folder of the benchmark (`unime data fetch`)"})
    image_root: str | None = field(**setting("image-root"))
    cache: str | None = field(
        default=None, metadata={"help": "folder for pictures kept in Parquet files (default: below the data)"}
    )
    verify: bool = field(**setting("verify"))
    json: bool = field(**setting("json"))
    rehearse: bool = field(**setting("rehearse"))
    rehearse_json: str | None = field(**setting("rehearse-json"))

    @property
    def rehearses(self) -> bool:
        """Whether nothing is to be computed, but shown what would be."""
        return self.rehearse or bool(self.rehearse_json)

    def __post_init__(self):
        # a recipe has them as objects, a command line as texts
        for name in ("options", "rank_options"):
            value = getattr(self, name, None)
            if isinstance(value, str):
                setattr(self, name, _parsed(name, value))

        if getattr(self, "top", None) is not None:
            print("unime eval: `top` is now called `candidates`; the old name will go.", file=sys.stderr)
            self.candidates = self.top
        check_settings(self)


@dataclass
class RerankConfig(_DataSettings):
    """Measures a reranker over the best candidates of a saved result: `unime eval rerank`."""

    results: str | None = field(default=None, metadata={"help": "results.json of the embedder, or a folder with one"})
    reranker: str | None = field(**setting("reranker"))
    strategy: str = field(**setting("strategy"))
    candidates: int = field(**setting("candidates"))
    rank_options: dict | str | None = field(
        default_factory=dict,
        metadata={
            "metavar": "JSON",
            "help": "for the reranker's rank: rounds, weight, answer_format, resolution, ...",
        },
    )
    limit: int | None = field(
        default=None, metadata={"help": "rerank only that many queries of each data set", "least": 1}
    )
    rerank_shard: int = field(default=16, metadata={"help": "queries of one shard", "least": 1})
    top: int | None = field(default=None, metadata={"help": argparse.SUPPRESS})  # former name of `candidates`


@dataclass
class BenchmarkConfig(_DataSettings):
    """Measures an embedder on a benchmark: `unime eval BENCHMARK`."""

    model: str | None = field(**setting("model"))
    library: str = field(**setting("library"))
    preset: str | None = field(**setting("preset"))
    options: dict | str | None = field(**setting("options"))
    tasks: list[str] | None = field(default=None, metadata={"help": "data sets to take; all by default"})
    partial: bool = field(default=False, metadata={"help": "take the data sets that are present"})
    corpus: str | None = field(
        default=None,
        metadata={"help": f"pairs: the candidates, instead of the rows' positives: {SOURCES}"},
    )
    both_ways: bool = field(default=False, metadata={"help": "pairs: also look for the queries, given the answers"})
    out: str = field(default="outputs/eval", metadata={"help": "folder of all results"})
    shard: int = field(
        default=1024, metadata={"help": "items of one shard: what is lost at most, if interrupted", "least": 1}
    )


@dataclass
class EvalConfig(BenchmarkConfig, RerankConfig):
    """Measures an embedder on a benchmark, or a reranker over the best candidates of a saved result: `unime eval`."""


def _parsed(name: str, text: str) -> dict:
    """A setting that is a JSON object."""
    try:
        return json_object(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"`{name}`: {error}.") from error


def run(
    step: str, config: EvalConfig | BenchmarkConfig | RerankConfig, given: dict[str, str] | None = None
) -> Path | Rehearsal:
    """Does a step of the command.

    Args:
        step (`str`): a benchmark, or `"rerank"`; one of `STEPS`.
        config ([`EvalConfig`]): its settings; those of the step alone are enough.
        given (`dict[str, str]`, *optional*): where each was given, for a rehearsal.

    Returns:
        `Path`: of the results; or, where `config` asks for one, a [`~unime.jobs.rehearsal.Rehearsal`].

    Raises:
        ValueError: a setting that the step needs is missing, or the data or a model cannot be read.

    Example:

    ```python
    run("world", EvalConfig(model="outputs/quickstart/model", data="outputs/world"))
    ```
    """
    if config.verify:
        verify_files()

    if step == "rerank":
        return _run_rerank(config, given or {})

    _require(config, "model", "data")
    embedder = Embedder.of(config)
    if not config.rehearses:
        embedder.settings()  # a mistyped model should not cost the reading of a benchmark

    source = {
        "data": config.data,
        "image_root": config.image_root,
        "tasks": config.tasks,
        "partial": config.partial,
        "cache": config.cache,
    }
    floors = None
    if step == "pairs":
        from ..eval.floors import floors_of as floors  # with a library that other benchmarks do not need

        source |= {"corpus": config.corpus, "both_ways": config.both_ways}
    elif config.corpus or config.both_ways:
        raise ValueError("`corpus` and `both_ways` are settings of `unime eval pairs`.")

    with embedder.state.main_process_first():  # which unpacks what has to be unpacked
        tasks, root = read(step, source)

    if config.rehearses:
        return rehearse(step, tasks, embedder, given or {})
    with open_engine(config) as engine:
        return run_benchmark(step, tasks, embedder, config.out, root, source, config.shard, floors, engine)


def _run_rerank(config: RerankConfig, given: dict[str, str]) -> Path | Rehearsal:
    """Reranks the best candidates of a saved result."""
    _require(config, "results", "reranker")
    path = saved_result(config.results)
    before = read_result(path)

    # the data is read as it was for the embedder, unless it has moved
    source = dict(before["source"])
    for name in ("data", "image_root", "cache"):
        if getattr(config, name):
            source[name] = getattr(config, name)

    # somebody else's result may name any folder: pictures are only unpacked where they were before
    if not config.cache and source.get("cache") and not Path(source["cache"]).is_dir():
        source["cache"] = None

    with processes().main_process_first():
        tasks, root = read(before["benchmark"], source)

    reranker = Reranker(
        config.reranker, config.strategy, config.dtype, config.trust_remote_code, **config.rank_options or {}
    )
    if config.rehearses:
        return rehearse_rerank(path, tasks, reranker, config.candidates, config.limit, given)
    with open_engine(config) as engine:
        return run_rerank(path, tasks, reranker, config.candidates, root, config.limit, config.rerank_shard, engine)


def _require(config: _DataSettings, *names: str):
    """Refuses settings without those that a step needs."""
    for name in names:
        if getattr(config, name) is None:
            raise ValueError(f"`{name}` is missing.")


def _print_results(path: Path, as_json: bool):
    """Prints the score of every task, as a table or as one JSON object."""
    results = read_json(path)
    tasks = results["tasks"]
    if as_json:
        scores = {name: task["score"] for name, task in tasks.items()}
        print(json.dumps({"results": str(path), "means": results["means"], "tasks": scores}))
        return

    if results["benchmark"] == "pairs":
        print_metrics(tasks)
        _compare_with_floors(tasks)
    else:
        print_table({"score": tasks}, results["benchmark"])
    for note, names in notes_of(tasks).items():
        print(f"  {names}: {note}")
    print(f"\n{path}")


def _compare_with_floors(tasks: dict[str, dict]):
    """Says what is reached without a model, and where the model is not above it."""
    for name, task in tasks.items():
        if "floors" not in task:  # a reranker's result has none of its own
            continue
        reached = ", ".join(f"{method} {value:.3f}" for method, value in task["floors"].items())
        print(f"  {name}: without a model, precision@1 is {reached}")

        best = max(task["floors"], key=task["floors"].get)
        if task["floors"][best] >= task["precision@1"]:
            print(
                f"  {name}: {best} alone is as good as this model, which is of no use for this data yet. "
                "Look at the pairs (unime data check), then train longer, or start from a better model."
            )


def main(arguments=None):
    """The command `unime eval`."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)

    # these two have options of their own
    if arguments[:1] == ["report"]:
        from .report import main as report

        return report(arguments[1:])
    if arguments[:1] == ["figures"]:
        from .figures import main as figures

        return figures(arguments[1:])

    with one_line_errors("unime eval"):
        # reranking and measuring have settings of their own
        config_class = EvalConfig
        if "rerank" in arguments:
            config_class = RerankConfig
        elif any(name in arguments for name in BENCHMARKS):
            config_class = BenchmarkConfig

        step, config = parse_settings("unime eval", config_class, STEPS | PAGES, arguments)
        if step in PAGES:
            raise ValueError(f"{step} has options of its own, which come after it: unime eval {step} --help.")
        result = run(step, config, given_settings(arguments))

    if config.rehearses:
        return result.finish(config.rehearse_json, config.json)

    # all processes of a launch have the same result
    if processes().is_main_process:
        _print_results(result, config.json)


if __name__ == "__main__":
    main()
