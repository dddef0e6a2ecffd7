"""Embeddings and scores over HTTP: the command `unime serve`.

unime serve outputs/quickstart/model --reranker outputs/backbone --port 8000
"""

import os
import sys
from pathlib import Path

import uvicorn

from ..checkpoints.opening import open_checkpoint, require_kind
from ..jobs.shards import processes
from ..modeling_unime import UniMERerankerForCausalLM
from ..serving.app import Limits, Served, Server
from ..serving.engines import EmbeddingEngine, RerankingEngine
from ..serving.pictures import Fetcher
from .errors import one_line_errors
from .parsers.serve import read

KEYS = "UNIME_API_KEYS"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def execute(options):
    """Does what the options of `unime serve` say: serves until it is interrupted; open requests are answered first."""
    keys = [key.strip() for key in os.environ.get(KEYS, "").split(",") if key.strip()]

    # a server that others can reach should not be open by accident
    if not keys and options.host not in LOOPBACK:
        print(f"unime serve: whoever reaches {options.host} may use it; set {KEYS} to ask for keys.", file=sys.stderr)

    with one_line_errors("unime serve"):
        server = server_of(options, keys)

    # requests that are open have their time to end
    uvicorn.run(
        server.app,
        host=options.host,
        port=options.port,
        log_level="warning" if options.quiet else "info",
        timeout_graceful_shutdown=options.timeout,
        server_header=False,
    )


def server_of(options, keys: list[str]) -> Server:
    """The server that a command line asks for, its models loaded.

    Args:
        options: of `unime serve`.
        keys (`list[str]`): that requests must have one of.
    """
    limits = Limits(
        items=options.max_items,
        body_bytes=options.max_bytes,
        pixels=options.max_pixels,
        open_requests=options.max_open_requests,
        waiting_tokens=options.max_waiting_tokens,
        seconds=options.timeout,
    )

    # loading takes longest, and bad limits are refused before
    embedder, reranker = _served(options)
    return Server(embedder, reranker, limits, keys, Fetcher(options.image_host, options.max_bytes))


def _served(options) -> tuple[Served | None, Served | None]:
    """The embedder and the reranker, of which one may be missing."""
    settings = {"dtype": options.dtype, "trust_remote_code": options.trust_remote_code}
    device = processes().device
    model = open_checkpoint(options.model, options.preset, **settings).to(device).eval()
    name = options.served_name or _name_of(options.model)

    # a UniME checkpoint says itself which of the two it is
    if isinstance(model, UniMERerankerForCausalLM) and options.reranker is None:
        return None, Served(name, RerankingEngine(model, options.batch_tokens))
    require_kind(model, options.model, reranker=False)
    embedder = Served(name, EmbeddingEngine(model, options.batch_tokens))
    if options.reranker is None:
        return embedder, None

    model = open_checkpoint(options.reranker, options.reranker_preset, reranker=True, **settings).to(device).eval()
    require_kind(model, options.reranker, reranker=True)
    name = options.reranker_name or _name_of(options.reranker)
    return embedder, Served(name, RerankingEngine(model, options.batch_tokens))


def _name_of(source: str) -> str:
    """A repository as the Hub calls it; of a folder only its own name, since clients need not learn where it lies."""
    folder = Path(source)
    return folder.resolve().name if folder.is_dir() else source


def main(arguments=None):
    """The command `unime serve`."""
    execute(read(arguments))


if __name__ == "__main__":
    main()
