"""The command `unime`: each of its commands is a module's own `main`."""

import importlib
import os
import sys

from .jobs.notices import silence_alarms

COMMANDS = {  # each is commands/<name>.py, with "_" for "-", but for those named beside it
    "encode": "texts and images -> a file of embeddings",
    "search": "answers from such a file",
    "rerank": "texts and images in a reranker's order",
    "demo": "a page in the browser that searches a folder of images",
    "data": "check a data file, or fetch a benchmark",
    "mine": "raw pairs -> judged hard negatives, or SaHa's clusters",
    "train": "distillation, contrastive, alignment or reranker",
    "eval": "benchmarks, reranking, reports and figures",
    "convert": "stock VLM -> UniME repository",
    "merge": "LoRA or DoRA adapter -> whole UniME repository",
    "export": "UniME repository -> stock VLM checkpoint and SentenceTransformer",
    "serve-check": "whether a server gives the model's answers, and if not, why",
    "push": "a saved model -> the Hub, with its card",
}
_MODULES = {"eval": "evaluate", "merge": "convert", "export": "convert"}
_QUIET = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
STAGES = ("distillation", "contrastive", "alignment", "reranker")


def _usage() -> str:
    lines = [f"  {name:<12}{text}" for name, text in COMMANDS.items()]
    more = "`unime COMMAND --help` says more. --quiet, after any command, leaves out progress and notices."
    return "\n".join(["usage: unime COMMAND ...", "", *lines, "", more])


def main(arguments=None):
    """Hands the command line to the command it names."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] in (["-h"], ["--help"]):
        print(_usage())
        return
    if not arguments or arguments[0] not in COMMANDS:
        raise SystemExit(_usage())
    command, *rest = arguments
    if "--quiet" in rest:
        rest.remove("--quiet")
        os.environ.update(_QUIET)
    name = "commands." + _MODULES.get(command, command.replace("-", "_"))
    if command == "train":
        if not rest or rest[0] not in STAGES:
            text = f"usage: unime train {{{','.join(STAGES)}}} --config RECIPE.yaml [--setting value ...]"
            if rest[:1] in (["-h"], ["--help"]):
                print(f"{text}\n\n`accelerate launch -m unime.trainers.STAGE` takes the same, on several processes.")
                return
            raise SystemExit(text)
        name, *rest = f"trainers.{rest[0]}", *rest[1:]
    silence_alarms()
    module = importlib.import_module(f".{name}", __package__)
    try:
        module.main([command, *rest] if name == "commands.convert" else rest)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
