"""What `unime mine` takes: a step, and its settings in a recipe or on the command line."""

import sys

from ...jobs.settings import given_settings, parse_settings
from ...mining.settings import MiningConfig, QueriesConfig
from ..options import StepCall

STEPS = {
    "run": "embed, retrieve, judge and select",
    "embed": "queries and candidates",
    "retrieve": "potential hard negatives",
    "judge": "scores of them",
    "select": "rows with hard negatives",
    "saha": "clusters, from the embeddings alone",
    "inspect": "a page of the result",
    "queries": "pairs for a corpus that has no queries (options of its own: unime mine queries --help)",
}


def read(arguments=None) -> StepCall:
    """The step and the settings of `unime mine`.

    Args:
        arguments (`list[str]`, *optional*): the command line, by default that of the process.

    Raises:
        SystemExit: help was asked for, or the line cannot be understood (status 2).
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)

    # queries need no embedder, and nothing is retrieved
    config_class = QueriesConfig if "queries" in arguments else MiningConfig
    step, config = parse_settings("unime mine", config_class, STEPS, arguments)
    if (step == "queries") != (config_class is QueriesConfig):
        raise SystemExit("unime mine: the step comes first, before its options.")
    return StepCall(step, config, given_settings(arguments))
