"""What `unime eval` takes: settings of a benchmark or of a reranker, in a recipe or on the command line."""

import argparse
import sys
from dataclasses import dataclass, field

from ...data.choices import SOURCES
from ...eval.benchmarks import BENCHMARKS
from ...jobs.checks import check_settings
from ...jobs.choices import MEASURED_STRATEGIES, EngineSettings
from ...jobs.settings import given_settings, parse_settings
from ..options import StepCall, json_object, setting

# commands of their own, named here for the help
PAGES = {
    "report": "results beside the published numbers (options of its own: unime eval report --help)",
    "errors": "a page of the worst mistakes (options of its own: unime eval errors --help)",
    "figures": "pictures of models, results and trainings (options of its own: unime eval figures --help)",
}

STEPS = BENCHMARKS | {"rerank": "the best candidates of a saved result, by a reranker"}


@dataclass
class DataSettings(EngineSettings):
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

        # recipes of earlier versions have the old name
        if getattr(self, "top", None) is not None:
            print("unime eval: `top` is now called `candidates`; the old name will go.", file=sys.stderr)
            self.candidates = self.top
        check_settings(self)


@dataclass
class RerankConfig(DataSettings):
    """Measures a reranker over the best candidates of a saved result: `unime eval rerank`."""

    results: str | None = field(default=None, metadata={"help": "results.json of the embedder, or a folder with one"})
    reranker: str | None = field(**setting("reranker"))
    reranker_preset: str | None = field(**setting("reranker-preset"))
    strategy: str = field(**setting("strategy", choices=MEASURED_STRATEGIES))
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
class BenchmarkConfig(DataSettings):
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
    columns: list[str] | None = field(
        default=None, metadata={"help": "pairs: which columns to take for what (query=caption positive=image)"}
    )
    allow_urls: bool = field(
        default=False, metadata={"help": "pairs: fetch images that rows name by https:// addresses"}
    )
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


def read(arguments=None) -> StepCall:
    """The step and the settings of `unime eval`.

    Args:
        arguments (`list[str]`, *optional*): the command line, by default that of the process.

    Raises:
        SystemExit: help was asked for, or the line cannot be understood (status 2).
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)

    # these have options of their own
    if arguments[:1] == ["report"]:
        from .report import read as read_report

        return StepCall("report", read_report(arguments[1:]), {})
    if arguments[:1] == ["errors"]:
        from .mistakes import read as read_mistakes

        return StepCall("errors", read_mistakes(arguments[1:]), {})
    if arguments[:1] == ["figures"]:
        from .figures import read as read_figures

        return StepCall("figures", read_figures(arguments[1:]), {})

    # reranking and measuring have settings of their own
    config_class = EvalConfig
    if "rerank" in arguments:
        config_class = RerankConfig
    elif any(name in arguments for name in BENCHMARKS):
        config_class = BenchmarkConfig

    step, config = parse_settings("unime eval", config_class, STEPS | PAGES, arguments)
    if step in PAGES:
        raise SystemExit(f"unime eval: {step} has options of its own, which come after it: unime eval {step} --help.")
    return StepCall(step, config, given_settings(arguments))
