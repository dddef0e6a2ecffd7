"""The web application: `/v1/embeddings` as OpenAI has it, `/rerank` as Jina, Cohere and vLLM have it."""

import asyncio
import base64
import hmac
import logging
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

import torch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..processing_unime import Reading
from .bodies import EmbeddingBody, RerankBody, read_body, read_item
from .engines import EmbeddingEngine, Judgement, RerankingEngine
from .errors import Refusal
from .metrics import Metrics
from .pictures import Fetcher, PictureReader
from .queue import QueueFull, TokenQueue

READING_THREADS = 4  # that decode and tokenise; the model has a thread of its own
log = logging.getLogger("uvicorn.error")  # what uvicorn shows


@dataclass(frozen=True)
class Limits:
    """What a server takes on.

    Args:
        items (`int`): most items, or documents, of a request; OpenAI has as many.
        body_bytes (`int`): most bytes of a request.
        pixels (`int`): most pixels of all pictures of a request.
        open_requests (`int`): most requests that are read, wait or run at one time.
        waiting_tokens (`int`): most tokens that wait for the model.
        seconds (`float`): after which a request is given up.
    """

    items: int = 2048
    body_bytes: int = 32 * 2**20
    pixels: int = 50_000_000
    open_requests: int = 256
    waiting_tokens: int = 131_072
    seconds: float = 60.0


@dataclass(frozen=True)
class Served:
    """A model as the server shows it.

    Args:
        name (`str`): by which requests ask for it.
        engine ([`EmbeddingEngine`] or [`RerankingEngine`]): what runs it.
    """

    name: str
    engine: EmbeddingEngine | RerankingEngine

    def described(self, created: int) -> dict:
        """Its entry in the list of models."""
        entry = {"id": self.name, "object": "model", "created": created, "owned_by": "unime"}
        if isinstance(self.engine, EmbeddingEngine):
            processor = self.engine.model.processor
            entry |= {"fusion": processor.fusion, "dimensions": self.engine.model.config.hidden_size}
        return entry


class Server:
    """The application and what it holds. `app` is what uvicorn, or any other ASGI server, runs.

    Args:
        embedder ([`Served`], *optional*), reranker ([`Served`], *optional*): one of them at least.
        limits ([`Limits`], *optional*): what it takes on.
        keys: that requests must have one of (`Authorization: Bearer KEY`); none are asked for by default.
        fetch ([`Fetcher`], *optional*): gets pictures that are named by an address; by default none are.

    Example:

    ```python
    server = Server(Served("mine", EmbeddingEngine(model, batch_tokens=8192)))
    uvicorn.run(server.app, port=8000)
    ```
    """

    def __init__(
        self,
        embedder: Served | None = None,
        reranker: Served | None = None,
        limits: Limits | None = None,
        keys=(),
        fetch: Fetcher | None = None,
    ):
        self.embedder = embedder
        self.reranker = reranker
        self.limits = limits or Limits()
        self.keys = [key.encode() for key in keys]
        self.fetch = fetch or Fetcher()

        self.created = int(time.time())
        self.open_requests = 0

        # what waits is known to the queue alone, and asked for when it is shown
        self.metrics = Metrics()
        self.queue = TokenQueue(self.limits.waiting_tokens, self.metrics.batch)
        self.metrics.follow(lambda: self.queue.waiting_tokens)

        # pictures are decoded beside the loop that answers
        self.readers = ThreadPoolExecutor(READING_THREADS, thread_name_prefix="reading")
        self.app = Starlette(routes=self._routes(), lifespan=self._lifespan)

    def _routes(self) -> list[Route]:
        """What there is for the models that are here."""
        routes = [
            Route("/health", self.health),
            Route("/metrics", self._guarded(self.show_metrics)),
            Route("/v1/models", self._guarded(self.models)),
        ]

        # a server may have one of both models only
        if self.embedder is not None:
            routes.append(Route("/v1/embeddings", self._working(self.embeddings), methods=["POST"]))
        if self.reranker is not None:
            # where Jina, Cohere and vLLM have it
            for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
                routes.append(Route(path, self._working(self.rerank), methods=["POST"]))
        return routes

    @asynccontextmanager
    async def _lifespan(self, app):
        """Ends the threads with the application, once the open requests are answered."""
        yield
        await asyncio.to_thread(self.queue.close)
        self.readers.shutdown()

    # what is asked for
    async def health(self, request: Request) -> Response:
        """Whether requests are worked on."""
        alive = self.queue.is_alive
        return JSONResponse({"status": "ok" if alive else "the model's thread has ended"}, 200 if alive else 503)

    async def show_metrics(self, request: Request) -> Response:
        """For Prometheus."""
        return Response(self.metrics.text(), media_type=self.metrics.content_type)

    async def models(self, request: Request) -> Response:
        """The models by name."""
        entries = [served.described(self.created) for served in (self.embedder, self.reranker) if served is not None]
        return JSONResponse({"object": "list", "data": entries})

    async def embeddings(self, content: bytes) -> Response:
        """The embeddings of items."""
        body = read_body(EmbeddingBody, content)
        served = self._asked_for(body.model, self.embedder)
        engine = served.engine

        # the width before anything is run
        width = engine.model.config.hidden_size
        if body.dimensions is not None and not 0 < body.dimensions <= width:
            raise Refusal(f"`dimensions` must be between 1 and {width}, got {body.dimensions}.")

        parts = await self._in_thread(self._read_items, body)
        results = await self._run(engine, parts.prepared, parts.tokens)
        embeddings = engine.embeddings(parts, results, body.dimensions)  # [N, D]
        usage = {"prompt_tokens": sum(parts.tokens), "total_tokens": sum(parts.tokens)}

        def answer() -> JSONResponse:
            data = []
            for number, embedding in enumerate(embeddings):
                vector = embedding.tolist()
                if body.encoding_format == "base64":
                    vector = base64.b64encode(embedding.numpy().astype("<f4").tobytes()).decode()
                data.append({"object": "embedding", "index": number, "embedding": vector})
            return JSONResponse({"object": "list", "model": served.name, "data": data, "usage": usage})

        # millions of numbers take a second to write, in which other requests would not be heard
        return await self._in_thread(answer)

    async def rerank(self, content: bytes) -> Response:
        """The documents with their scores, best first."""
        body = read_body(RerankBody, content)
        served = self._asked_for(body.model, self.reranker)
        if body.top_n is not None and body.top_n < 1:
            raise Refusal(f"`top_n` must be at least 1, got {body.top_n}.")

        judgement, tokens = await self._in_thread(self._read_judgement, body)
        (scores,) = await self._run(served.engine, [judgement], [tokens])  # [N]

        results = []
        order = torch.argsort(scores, descending=True, stable=True)
        for number in order[: body.top_n].tolist():
            entry = {"index": number, "relevance_score": float(scores[number])}
            if body.return_documents:
                document = body.documents[number]
                entry["document"] = {"text": document} if isinstance(document, str) else document
            results.append(entry)
        identity = f"rerank-{uuid.uuid4().hex}"
        usage = {"total_tokens": tokens}
        return JSONResponse({"id": identity, "model": served.name, "results": results, "usage": usage})

    def _asked_for(self, name: str | None, served: Served) -> Served:
        """The model of a request, which may leave its name out."""
        if name is not None and name != served.name:
            raise Refusal(f"the model {name!r} is not served here, but {served.name!r}.", 404, code="model_not_found")
        return served

    # in one of the threads that read
    def _read_items(self, body: EmbeddingBody):
        """The items of a request, ready to be embedded."""
        values = body.items()
        self._check_count(values, "input")
        pictures = PictureReader(self.fetch, self.limits.pixels)
        names = [f"input {number}" for number in range(len(values))]
        items = [read_item(value, name, pictures) for value, name in zip(values, names)]
        self.metrics.items("embedding", len(items), pictures.count)
        return self.embedder.engine.prepare(items, Reading(body.instruction, body.role), names)

    def _read_judgement(self, body: RerankBody) -> tuple[Judgement, int]:
        """The query and the documents of a request, and what they cost."""
        self._check_count(body.documents, "documents")
        pictures = PictureReader(self.fetch, self.limits.pixels)

        # a limit of pixels holds for all pictures of a request together
        query = read_item(body.query, "query", pictures)
        documents = []
        for number, document in enumerate(body.documents):
            documents.append(read_item(document, f"document {number}", pictures))
        self.metrics.items("rerank", len(documents), pictures.count)

        judgement = Judgement(query, documents, body.instruction)
        return judgement, self.reranker.engine.tokens(judgement)

    def _check_count(self, values: list, name: str):
        """Refuses a request of no items, or of too many."""
        if not values:
            raise Refusal(f"`{name}` is empty.")
        if len(values) > self.limits.items:
            raise Refusal(f"`{name}` has {len(values)} items; send at most {self.limits.items}.", status=413)

    async def _in_thread(self, work: Callable, *arguments):
        """What `work` returns, in one of the threads that read and write."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self.readers, work, *arguments)
        except ValueError as error:  # what our own checks of items raise
            raise Refusal(str(error)) from error

    async def _run(self, engine, pieces: list, tokens: list[int]) -> list:
        """What the model makes of pieces; one request may not be longer than the queue."""
        if sum(tokens) > self.limits.waiting_tokens:
            raise Refusal(
                f"the request has {sum(tokens):,} tokens; send at most {self.limits.waiting_tokens:,} at a time.", 413
            )
        try:
            future = self.queue.submit(engine, pieces, tokens)
        except QueueFull as error:
            raise _busy(str(error), error.seconds) from error

        # cancelled where nobody waits for it any longer
        return await asyncio.wrap_future(future)

    # around every request
    def _guarded(self, answer: Callable) -> Callable:
        """A route that needs a key, if there are keys."""

        async def route(request: Request) -> Response:
            try:
                self._check_key(request)
            except Refusal as refusal:
                return _error(refusal)
            return await answer(request)

        return route

    def _check_key(self, request: Request):
        """Refuses a request without one of the keys."""
        if not self.keys:
            return
        kind, _, key = request.headers.get("authorization", "").partition(" ")

        # all are compared, each in constant time, so that nothing is learnt from how long it takes
        matches = [hmac.compare_digest(key.strip().encode(), known) for known in self.keys]
        if kind.lower() != "bearer" or not any(matches):
            raise Refusal("send a key of this server: Authorization: Bearer KEY.", 401, code="invalid_api_key")

    def _working(self, answer: Callable) -> Callable:
        """A route whose requests take their turn: within the limits, within its time, counted and timed."""

        async def route(request: Request) -> Response:
            start = time.monotonic()
            response = await self._answered(request, answer)
            self.metrics.request(request.url.path, response.status_code, time.monotonic() - start)
            return response

        return route

    async def _answered(self, request: Request, answer: Callable) -> Response:
        """The answer to a request, or why there is none."""
        if self.open_requests >= self.limits.open_requests:
            return _error(_busy(f"{self.open_requests} requests are open; try again in 1 s.", 1))

        # whatever happens, a request is counted as closed again
        self.open_requests += 1
        try:
            self._check_key(request)
            async with asyncio.timeout(self.limits.seconds):
                content = await self._content(request)
                return await answer(content)
        except Refusal as refusal:
            return _error(refusal)
        except TimeoutError:
            return _error(Refusal(f"the request took longer than {self.limits.seconds:g} seconds.", 504))
        except Exception:
            # the reason may show what is not the sender's business
            log.exception("a request to %s failed", request.url.path)
            return _error(Refusal("the model failed; the server's log has the reason.", 500))
        finally:
            self.open_requests -= 1

    async def _content(self, request: Request) -> bytes:
        """The body of a request, of which no more is read than is allowed."""
        content = bytearray()
        async for piece in request.stream():
            content += piece
            if len(content) > self.limits.body_bytes:
                raise Refusal(f"the request has more than {self.limits.body_bytes:,} bytes.", 413)
        return bytes(content)


def _busy(message: str, seconds: int) -> Refusal:
    """That there is no room now."""
    return Refusal(message, 429, {"Retry-After": str(seconds)}, "rate_limit_exceeded")


def _error(refusal: Refusal) -> JSONResponse:
    """A refusal as OpenAI's clients read it."""
    kind = "server_error" if refusal.status >= 500 else "invalid_request_error"
    content = {"error": {"message": str(refusal), "type": kind, "param": None, "code": refusal.code}}
    return JSONResponse(content, refusal.status, refusal.headers)
