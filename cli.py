"""The command `unime`: each of its commands is a module's own `main`."""

import importlib
import sys

COMMANDS = {
    "convert": ("checkpoints", "stock VLM -> UniME repository"),
    "export": ("checkpoints", "UniME repository -> stock VLM checkpoint and SentenceTransformer"),
    "merge": ("checkpoints", "LoRA or DoRA adapter -> whole UniME repository"),
    "data": ("data.check", "report on a data file before a week of training"),
    "mine": ("data.pipeline", "raw pairs -> judged hard negatives, or SaHa's clusters"),
    "eval": ("eval.command", "benchmarks, reranking, reports and figures"),
}


def main(arguments=None):
    """Hands the command line to the command it names."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] not in COMMANDS:
        lines = [f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items()]
        usage = "\n".join(["usage: unime COMMAND ...", "", *lines, "", "`unime COMMAND --help` says more."])
        if arguments and arguments[0] in ("-h", "--help"):
            print(usage)
            return
        raise SystemExit(usage)
    module = importlib.import_module(f".{COMMANDS[arguments[0]][0]}", __package__)
    keep_name = COMMANDS[arguments[0]][0] == "checkpoints"
    module.main(arguments if keep_name else arguments[1:])


if __name__ == "__main__":
    main()
