"""What a server counts, as Prometheus reads it."""

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_TOKENS = (16, 64, 256, 1024, 2048, 4096, 8192, 16384, 32768)


class Metrics:
    """The figures of one server, which has a registry of its own.

    Example:

    ```python
    metrics = Metrics()
    metrics.request("/v1/embeddings", 200, seconds=0.1)
    print(metrics.text().decode())
    ```
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self):
        self.registry = CollectorRegistry()
        options = {"registry": self.registry}
        self._requests = Counter("unime_requests", "Requests answered", ["path", "status"], **options)
        self._seconds = Histogram("unime_request_seconds", "From arrival to answer", ["path"], **options)
        self._items = Counter("unime_items", "Items and documents that were read", ["task"], **options)
        self._images = Counter("unime_images", "Images that were read", ["task"], **options)
        self._batches = Histogram("unime_batch_tokens", "Tokens of a batch", buckets=_TOKENS, **options)
        self._model_seconds = Counter("unime_model_seconds", "Time in the model", **options)
        self._waiting = Gauge("unime_waiting_tokens", "Tokens that wait for the model", **options)

    def follow(self, waiting_tokens: Callable[[], int]):
        """Asks `waiting_tokens` for the length of the queue whenever the figures are read."""
        self._waiting.set_function(waiting_tokens)

    def request(self, path: str, status: int, seconds: float):
        """Counts a request that was answered."""
        self._requests.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def items(self, task: str, items: int, images: int):
        """Counts what a request consists of; `task` is `"embedding"` or `"rerank"`."""
        self._items.labels(task).inc(items)
        self._images.labels(task).inc(images)

    def batch(self, tokens: int, seconds: float):
        """Counts a batch that was run."""
        self._batches.observe(tokens)
        self._model_seconds.inc(seconds)

    def text(self) -> bytes:
        """All figures in Prometheus' format."""
        return generate_latest(self.registry)
