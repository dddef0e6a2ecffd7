"""The command `unime eval`: benchmarks, reranking, reports and figures."""

import json
from pathlib import Path

from ..eval.catalogue import PAIRS
from ..eval.catalogue import read as read_benchmark
from ..eval.means import notes_of, print_metrics, print_table
from ..eval.rehearsal import rehearse, rehearse_rerank
from ..eval.rerank import run_rerank, saved_result
from ..eval.runner import read_result, run_benchmark
from ..files.addresses import fetched
from ..files.identity import verify_files
from ..files.writing import read_json
from ..jobs.embedding import Embedder
from ..jobs.engines import open_engine
from ..jobs.rehearsal import Rehearsal
from ..jobs.reranking import Reranker
from ..jobs.shards import processes
from .errors import one_line_errors
from .inputs import moved_source
from .options import StepCall
from .parsers.evaluate import BenchmarkConfig, DataSettings, EvalConfig, RerankConfig, read


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

    # what a result is measured on is kept with it
    source = {
        "data": config.data,
        "image_root": config.image_root,
        "tasks": config.tasks,
        "partial": config.partial,
        "cache": config.cache,
    }

    # only pairs have floors, and settings of their own
    floors = None
    if step == "pairs":
        from ..eval.floors import floors_of as floors  # with a library that other benchmarks do not need

        source |= {name: getattr(config, name) for name in PAIRS}
    else:
        given = [name for name in PAIRS if getattr(config, name)]
        if given:
            raise ValueError(f"`{'` and `'.join(given)}` are settings of `unime eval pairs`.")

    with embedder.state.main_process_first():  # which unpacks what has to be unpacked
        tasks, root = read_benchmark(step, _fetched(source))

    if config.rehearses:
        return rehearse(step, tasks, embedder, given or {})
    with open_engine(config) as engine:
        return run_benchmark(step, tasks, embedder, config.out, root, source, config.shard, floors, engine)


def _fetched(source: dict) -> dict:
    """How tasks are read, with copies of what lies at addresses."""
    result = dict(source)
    for name in ("data", "image_root"):
        if source.get(name):
            result[name] = str(fetched(source[name]))
    return result


def _run_rerank(config: RerankConfig, given: dict[str, str]) -> Path | Rehearsal:
    """Reranks the best candidates of a saved result."""
    _require(config, "results", "reranker")
    path = saved_result(config.results)
    before = read_result(path)

    # the data is read as it was for the embedder, unless it has moved
    source = moved_source(before["source"], config, ("data", "image_root", "cache"))

    # somebody else's result may name any folder: pictures are only unpacked where they were before
    if not config.cache and source.get("cache") and not Path(source["cache"]).is_dir():
        source["cache"] = None

    with processes().main_process_first():
        tasks, root = read_benchmark(before["benchmark"], _fetched(source))

    reranker = Reranker(
        config.reranker,
        config.strategy,
        config.dtype,
        config.trust_remote_code,
        config.reranker_preset,
        **config.rank_options or {},
    )
    if config.rehearses:
        return rehearse_rerank(path, tasks, reranker, config.candidates, config.limit, given)
    with open_engine(config) as engine:
        return run_rerank(path, tasks, reranker, config.candidates, root, config.limit, config.rerank_shard, engine)


def _require(config: DataSettings, *names: str):
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


def execute(call: StepCall):
    """Does what a command line of `unime eval` asks for."""
    # these have options of their own
    if call.step == "report":
        from .report import execute as report

        return report(call.config)
    if call.step == "errors":
        from .mistakes import execute as show_mistakes

        return show_mistakes(call.config)
    if call.step == "figures":
        from .figures import execute as draw

        return draw(call.config)

    config = call.config
    with one_line_errors("unime eval"):
        result = run(call.step, config, call.given)
    if config.rehearses:
        return result.finish(config.rehearse_json, config.json)

    # all processes of a launch have the same result
    if processes().is_main_process:
        _print_results(result, config.json)


def main(arguments=None):
    """The command `unime eval`."""
    execute(read(arguments))


if __name__ == "__main__":
    main()
