"""Whether a server's answers are those of the model here, and if not, why: the command `unime serve-check`.

unime serve-check http://localhost:8000 --model me/my-embedder

The server holds the model (`unime serve`), or what `unime export` made of it (vLLM, SGLang, or another with OpenAI's
interface). A few texts and images go to both; an embedder is asked through /v1/embeddings, a reranker through /rerank.
"""

from ...jobs.settings import CommandParser
from ..options import add, add_output


def read(arguments=None):
    """The options of `unime serve-check`.

    Args:
        arguments (`list[str]`, *optional*): the command line, by default that of the process.

    Raises:
        SystemExit: help was asked for, or the line cannot be understood (status 2).
    """
    parser = CommandParser(prog="unime serve-check", description=__doc__)
    parser.add_argument("url", help="of the server, for example http://localhost:8000")
    add(parser, "model", required=True, help="the same model in UniME's form: a folder, or a repository of the Hub")
    add(parser, "preset")
    add(parser, "dtype")
    add(parser, "trust-remote-code")
    parser.add_argument("--served-model", help="the name that the server knows, if it serves several")
    add(parser, "role", default="query")
    parser.add_argument("--reranker", action="store_true", help="for a stock VLM that is served as a reranker")
    parser.add_argument("--items", nargs="+", help="files or folders to compare with, instead of a few drawn items")
    parser.add_argument("--input", action="store_true", help="send finished prompts: texts only, no template needed")
    parser.add_argument(
        "--tolerance", type=float, default=2e-3, help="of 1 - cosine, or of a score (default: %(default)s)"
    )
    add_output(parser)
    return parser.parse_args(arguments)
