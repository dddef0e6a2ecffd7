"""Puts a saved model on the Hub: the command `unime push`.

    unime push outputs/quickstart/model me/my-embedder --results outputs/eval --license apache-2.0

The model card is written anew, with the repository's name in its examples, the training section of the card that lay
there, and the results that are given.
"""

from pathlib import Path

import yaml
from huggingface_hub import HfApi

from ..checkpoints.cards import read_card
from ..checkpoints.opening import HUB_ERRORS
from ..eval.report import Result, load, to_eval_results
from ..files.names import file_name
from ..files.writing import write_text
from .errors import one_line_errors
from .parsers.push import read

# of the files that a training leaves in its folder
_LEFT_OUT = ["checkpoint-*", "checkpoint-*/**", "*.part", "optimizer.*", "scheduler.*", "rng_state*", "runs/**"]


def push(folder, repo: str, results: list[str] = (), license: str | None = None, private: bool = False) -> str:
    """Uploads a folder with a saved model or adapter.

    Args:
        folder: what `save_pretrained` or a trainer wrote.
        repo (`str`): `owner/name`.
        results (`list[str]`): results of `unime eval`, or folders of them, for the card and `.eval_results`.
        license (`str`, *optional*): its identifier, as the Hub knows it; by default that of the published checkpoint
            that the model was made from.
        private (`bool`, defaults to `False`): whether a new repository is private.

    Returns:
        the address of the repository.

    Raises:
        ValueError: there is no such model, a result is not a results file, or the Hub refuses.

    Example:

    ```python
    push("outputs/mine", "me/my-embedder", license="apache-2.0")
    ```
    """
    folder = Path(folder)
    write_card(folder, repo, results, license)

    try:
        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, ignore_patterns=_LEFT_OUT)
    except HUB_ERRORS as error:
        raise ValueError(f"{repo} was not uploaded: {error}") from error
    return f"{api.endpoint}/{repo}"


def write_card(folder, repo: str, results: list[str] = (), license: str | None = None) -> Path:
    """Writes the card into the folder of a model, and beside it the results as the Hub shows them.

    Args:
        folder, repo, results, license: as in [`push`].

    Returns:
        `Path`: of the card.

    Raises:
        ValueError: there is no such model, or a result is not a results file.
    """
    folder = Path(folder)
    measured = load(list(results)) if results else []

    # the card keeps what is said of the training
    card = read_card(folder)
    card.name = repo.rpartition("/")[2]
    card.license = license or card.license
    if measured:
        card.evaluation = "\n\n".join(map(_table, measured))

    for result in measured:
        _write_entries(result, folder / ".eval_results")

    path = folder / "README.md"
    write_text(path, card.render(repo))
    return path


def _write_entries(result: Result, folder: Path):
    """Writes a result in the form that the Hub shows beside a model, if its benchmark is on the Hub."""
    entries = to_eval_results(result)
    if entries:
        folder.mkdir(exist_ok=True)
        write_text(folder / f"{file_name(result.benchmark)}.yaml", yaml.safe_dump(entries, sort_keys=False))


def _table(result: Result) -> str:
    """A result as a table of the card: means, then tasks."""
    content = result.content
    rows = []
    for name, value in content["means"].items():
        if value is not None:  # a task of the group is missing
            rows.append(f"| mean: {name} | {100 * value:.1f} |")
    for name, task in content["tasks"].items():
        rows.append(f"| {name} | {100 * task['score']:.1f} |")

    metrics = sorted({task["metric"] for task in content["tasks"].values()})
    title = (
        f"`unime eval {content['benchmark']}`, {' and '.join(metrics)} in percent, ties counted as wrong, data "
        f"{content['data']}:"
    )
    return "\n".join([title, "", "| | |", "|---|---:|", *rows])


def execute(options):
    """Does what the options of `unime push` say."""
    with one_line_errors("unime push"):
        if options.card_only:
            print(write_card(options.folder, options.repo, options.results, options.license))
        else:
            print(push(options.folder, options.repo, options.results, options.license, options.private))


def main(arguments=None):
    """The command `unime push`."""
    execute(read(arguments))


if __name__ == "__main__":
    main()
