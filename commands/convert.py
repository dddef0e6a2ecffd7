"""The commands `unime convert`, `unime export` and `unime merge`."""

import argparse

from ..checkpoints.conversion import (
    convert,
    export,
    merge,
)
from ..prompts_unime import PRESETS


def main(arguments=None):
    """The command `unime`."""
    parser = argparse.ArgumentParser(prog="unime", description="Convert, export and merge checkpoints.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("convert", "stock VLM -> UniME repository"),
        ("export", "UniME repository -> stock VLM checkpoint and SentenceTransformer"),
        ("merge", "LoRA or DoRA adapter -> whole UniME repository"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("source", help="folder or Hub repository")
        command.add_argument("out", help="folder to write")
        if name == "export":
            command.add_argument("--head", help="stock checkpoint to take the output head from")
            continue
        command.add_argument("--preset", choices=sorted(PRESETS), help="prompts, for a stock VLM")
        command.add_argument("--reranker", action="store_true", help="make a reranker, not an embedder")
        if name == "merge":
            command.add_argument("--base", help="what the adapter was trained on (default: what its file says)")
        else:
            command.add_argument("--revision", help="branch, tag or commit of the repository")
    options = vars(parser.parse_args(arguments))
    run = {"convert": convert, "export": export, "merge": merge}[options.pop("command")]
    try:
        run(**options)
    except ValueError as error:
        raise SystemExit(f"unime: {error}") from error
    print(f"written to {options['out']}")


if __name__ == "__main__":
    main()
