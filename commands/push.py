"""Puts a saved model on the Hub: the command `unime push`.

    unime push outputs/quickstart/model me/my-embedder --results outputs/eval --licence apache-2.0

The model card is written anew, with the repository's name in its examples, the training section of the card that lay
there, and the results that are given.
"""

import argparse
from pathlib import Path

import yaml
from huggingface_hub import HfApi

from ..checkpoints.cards import read_card
from ..checkpoints.opening import HUB_ERRORS
from ..eval.report import load, to_eval_results
from ..jobs.shards import write_text

_LEFT_OUT = ["checkpoint-*", "checkpoint-*/**", "*.part", "optimizer.*", "scheduler.*", "rng_state*", "runs/**"]


def push(folder, repo: str, results: list[str] = (), licence: str | None = None, private: bool = False) -> str:
    """Uploads a folder with a saved model or adapter.

    Args:
        folder: what `save_pretrained` or a trainer wrote.
        repo (`str`): `owner/name`.
        results (`list[str]`): results of `unime eval`, or folders of them, for the card and `.eval_results`.
        licence (`str`, *optional*): as the Hub knows it.
        private (`bool`): of a new repository.

    Returns:
        the address of the repository.

    Raises:
        ValueError: there is no such model, a result is none, or the Hub refuses.
    """
    folder = Path(folder)
    card = read_card(folder)
    card.name, card.licence = repo.rpartition("/")[2], licence
    measured = load(list(results)) if results else []
    if measured:
        card.evaluation = "\n\n".join(map(_table, measured))
    for result in measured:
        if entries := to_eval_results(result):
            (folder / ".eval_results").mkdir(exist_ok=True)
            path = folder / ".eval_results" / f"{result.content['benchmark']}.yaml"
            write_text(path, yaml.safe_dump(entries, sort_keys=False))
    write_text(folder / "README.md", card.render(repo))
    try:
        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, ignore_patterns=_LEFT_OUT)
    except HUB_ERRORS as error:
        raise ValueError(f"{repo} was not uploaded: {error}") from error
    return f"{api.endpoint}/{repo}"


def _table(result) -> str:
    content = result.content
    means = {f"mean: {name}": value for name, value in content["means"].items() if value is not None}
    rows = means | {name: own["score"] for name, own in content["tasks"].items()}
    lines = [f"| {name} | {100 * value:.1f} |" for name, value in rows.items()]
    metrics = " and ".join(sorted({own["metric"] for own in content["tasks"].values()}))
    said = f"`unime eval {content['benchmark']}`, {metrics} in percent, ties counted as wrong, data {content['data']}:"
    return "\n".join([said, "", "| | |", "|---|---:|", *lines])


def main(arguments=None):
    """The command `unime push`."""
    parser = argparse.ArgumentParser(
        prog="unime push", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="what save_pretrained or a trainer wrote")
    parser.add_argument("repo", help="owner/name on the Hub")
    parser.add_argument("--results", nargs="+", default=[], help="results of `unime eval` for the card")
    parser.add_argument("--licence", help="as the Hub knows it: apache-2.0, mit, ...")
    parser.add_argument("--private", action="store_true", help="if the repository is new")
    parser.add_argument("--card-only", action="store_true", help="write the card into the folder and upload nothing")
    options = vars(parser.parse_args(arguments))
    try:
        if options.pop("card_only"):
            card = read_card(options["folder"])
            card.licence = options["licence"]
            write_text(Path(options["folder"]) / "README.md", card.render(options["repo"]))
            print(Path(options["folder"]) / "README.md")
        else:
            print(push(**options))
    except ValueError as error:
        raise SystemExit(f"unime push: {error}") from error


if __name__ == "__main__":
    main()
