"""Figures from models and results.

unime eval figures similarity --models MODEL MODEL --names before after --data outputs/world --out similarity.png
unime eval figures next-token --models BACKBONE MODEL --data outputs/world --out words.png
unime eval figures map --models openai/clip-vit-base-patch32 MODEL --data outputs/world --out map.png
unime eval figures stages RESULTS.json RESULTS.json --names "stage 1" "stage 2" --out stages.png
unime eval figures contact RESULTS.json --task Shapes_t2i --out contact.png
unime eval figures curves RUN RUN --names easy hard --out curves.png
"""

from pathlib import Path

from ...eval.benchmarks import BENCHMARKS
from ...jobs.settings import CommandParser
from ..options import add

KINDS = {
    "similarity": "cosine matrices of matched pairs, one panel a model",
    "next-token": "the most probable words after the prompt, one column a model",
    "map": "both sides of matched pairs on two axes, with the modality gap",
    "stages": "bars of the means of several results",
    "contact": "queries with their best candidates, right and wrong marked",
    "curves": "loss and gradient norm of trainings (folders with trainer_state.json)",
}
_OF_FILES = ("stages", "contact", "curves")  # the others are drawn from models
_COUNTS = {"similarity": 50, "map": 150, "next-token": 3}  # where --count does not say otherwise; else 6
_TOPS = {"next-token": 10}  # where --top does not say otherwise; else 5


def read(arguments=None):
    """The options of `unime eval figures`.

    Args:
        arguments (`list[str]`, *optional*): the command line, by default that of the process.

    Raises:
        SystemExit: help was asked for, or the line cannot be understood (status 2).
    """
    parser = CommandParser(prog="unime eval figures", description=__doc__)
    kinds = "; ".join(f"{kind}: {text}" for kind, text in KINDS.items())
    parser.add_argument("kind", choices=KINDS, help=kinds)
    parser.add_argument("inputs", nargs="*", help="for stages and contact results.json; for curves folders of runs")

    # of which models, or what to call results and runs
    parser.add_argument(
        "--models",
        nargs="+",
        default=[],
        help="embedders, stock VLMs too; for map and similarity also CLIP, SigLIP, ...",
    )
    parser.add_argument("--names", nargs="+", help="what to call models, results or runs")
    add(parser, "preset", help="prompts of all models (default: each one's own; next-token: summary)")
    add(parser, "trust-remote-code")
    parser.add_argument("--head", help="next-token: checkpoint with the language head (default: the first model)")

    # of what data
    parser.add_argument(
        "--benchmark", default="world", choices=list(BENCHMARKS), help="whose pairs (default: %(default)s)"
    )
    parser.add_argument("--data", help="folder of the benchmark")
    add(parser, "image-root")
    parser.add_argument("--task", help="data set of the benchmark")

    # how much of it, and where to
    parser.add_argument("--count", type=int, help="pairs, items or rows")
    parser.add_argument("--top", type=int, help="words or candidates of each (default: 10 words, 5 candidates)")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write; the data goes beside it as CSV")
    add(parser, "quiet")
    options = parser.parse_args(arguments)

    # which of the two a kind needs, argparse cannot know
    if options.kind in _OF_FILES and not options.inputs:
        parser.error(f"{options.kind} needs results or runs.")
    if options.kind not in _OF_FILES and not (options.models and options.data):
        parser.error(f"{options.kind} needs --models and --data.")
    options.count = options.count or _COUNTS.get(options.kind, 6)
    options.top = options.top or _TOPS.get(options.kind, 5)
    return options
