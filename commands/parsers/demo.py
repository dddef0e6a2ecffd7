"""A page in the browser that searches a folder of images: the command `unime demo`.

unime demo --model outputs/quickstart/model --images photos/ --reranker outputs/backbone

The images are embedded when it starts, and the embeddings kept; whatever is added to the folder, changed in it or
removed from it while the page is open is noticed at the next search.
"""

from ...jobs.settings import CommandParser
from ..options import add, add_embedder, add_reranker


def read(arguments=None):
    """The options of `unime demo`.

    Args:
        arguments (`list[str]`, *optional*): the command line, by default that of the process.

    Raises:
        SystemExit: help was asked for, or the line cannot be understood (status 2).
    """
    parser = CommandParser(prog="unime demo", description=__doc__)
    parser.add_argument("--images", required=True, help="folder of images")
    add_embedder(parser)
    add_reranker(parser)
    add(parser, "trust-remote-code")
    add(parser, "instruction")

    # where it is kept, and who may see it
    parser.add_argument("--cache", help="folder for the embeddings (default: unime, below HF_HOME)")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 shows the page to the network")
    parser.add_argument("--port", type=int, help="7860 or the next free one by default")
    parser.add_argument("--no-browser", action="store_true", help="only say where the page is")
    add(parser, "verify")
    add(parser, "quiet")
    return parser.parse_args(arguments)
