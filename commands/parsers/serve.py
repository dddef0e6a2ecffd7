"""Embeddings and scores over HTTP, as the clients of OpenAI, Jina and Cohere ask for them: the command `unime serve`.

unime serve outputs/quickstart/model --reranker outputs/backbone --port 8000

Keys that requests must send are read from the environment variable UNIME_API_KEYS (several are separated by commas).
"""

from ...jobs.settings import CommandParser
from ..options import add, positive

# what a server takes on: option, default, help
LIMITS = (
    ("batch-tokens", 8192, "most padded tokens of one forward pass"),
    ("max-waiting-tokens", 131_072, "most tokens that wait for the model; what is above is told to come back"),
    ("max-open-requests", 256, "most requests at one time"),
    ("max-items", 2048, "most items, or documents, of a request"),
    ("max-bytes", 32 * 2**20, "most bytes of a request, and of a picture that is fetched"),
    ("max-pixels", 50_000_000, "most pixels of all pictures of a request"),
    ("timeout", 60, "seconds after which a request is given up"),
)


def read(arguments=None):
    """The options of `unime serve`.

    Args:
        arguments (`list[str]`, *optional*): the command line, by default that of the process.

    Raises:
        SystemExit: help was asked for, or the line cannot be understood (status 2).
    """
    parser = CommandParser(prog="unime serve", description=__doc__)
    parser.add_argument("model", help="an embedder, or a reranker alone: a folder, or a repository of the Hub")
    add(parser, "reranker", help="for /rerank beside it: a reranker, or a stock VLM that is to judge")
    add(parser, "reranker-preset")
    for name in ("preset", "dtype", "trust-remote-code"):
        add(parser, name)
    parser.add_argument("--served-name", help="by which requests ask for the model (default: its folder's name)")
    parser.add_argument("--reranker-name", help="the same for the reranker")

    # where it is reached
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 shows it to the network (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="(default: %(default)s)")

    for option, default, text in LIMITS:
        described = f"{text} (default: %(default)s)"
        parser.add_argument(f"--{option}", type=positive, default=default, metavar="N", help=described)
    parser.add_argument(
        "--image-host",
        action="append",
        default=[],
        metavar="HOST",
        help="fetch pictures from this host, too, unless its address is a private one; by default none are fetched",
    )
    add(parser, "quiet")
    return parser.parse_args(arguments)
