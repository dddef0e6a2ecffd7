"""Whether a server's answers are those of the model here, and if not, why: the command `unime serve-check`.

unime serve-check http://localhost:8000 --model me/my-embedder

The server holds the model (`unime serve`), or what `unime export` made of it (vLLM, SGLang, or another with OpenAI's
interface). A few texts and images go to both; an embedder is asked through /v1/embeddings, a reranker through /rerank.
"""

import io
import json
import os
from collections.abc import Callable, Sequence

import numpy as np
import requests
import torch
from PIL import Image, ImageDraw

from ..checkpoints.opening import open_checkpoint
from ..data.images import sent_file, sent_image
from ..data.item_sources import read_items
from ..images_unime import open_image
from ..modeling_unime import UniMEModel
from .errors import one_line_errors
from .parsers.serve_check import read
from .server_readings import Readings

SHOWN = 300  # characters of an answer that a message quotes
QUERY = "a red circle"  # what a reranker is asked for
ORIENTATION = (
    "orientation: it ignores how the EXIF data of a picture say it is turned; turn pictures before sending them"
)
RESIZE = (
    "resize: it resizes pictures otherwise than the model; set its limits of pixels to the model's (vLLM: "
    "--mm-processor-kwargs), or send pictures at the size that the model sees (`model.processor.read_image`)"
)
_TURN = 6  # of the EXIF orientations, the most usual: a telephone that was held upright
_JUDGE = "start it with --chat-template and templates/judge.jinja of the exported folder"


class Server:
    """A server with OpenAI's interface.

    Args:
        url (`str`): with or without `/v1` at its end.
        model (`str`, *optional*): the name it knows the model under; by default its only one.
        key_variable (`str`): the environment variable that holds the key, if it needs one.
        timeout (`float`, defaults to 120): seconds for one request.

    Raises:
        ValueError: it does not answer, or serves several models and none is named. Every method raises this, too,
            where the answer is an error or not what was expected.

    Example:

    ```python
    vector = Server("http://localhost:8000").embed([{"type": "text", "text": "a red circle"}])
    ```
    """

    def __init__(
        self, url: str, model: str | None = None, key_variable: str = "OPENAI_API_KEY", timeout: float = 120.0
    ):
        self.url = url.rstrip("/").removesuffix("/v1")
        self.client = requests.Session()
        self.timeout = timeout

        # from the environment, since a command line can be read by others on the machine
        key = os.environ.get(key_variable)
        if key:
            self.client.headers["Authorization"] = f"Bearer {key}"

        entries = self._ask("/v1/models", None, lambda answer: {entry["id"]: entry for entry in answer["data"]})
        if model is None and len(entries) != 1:
            raise ValueError(f"{self.url} serves {', '.join(entries) or 'nothing'}; choose one with --served-model.")
        self.model = model or next(iter(entries))

        # other servers than ours cannot add up the embeddings of image and text
        self.fusion = entries.get(self.model, {}).get("fusion", "joint")

    def embed(self, parts: list[dict]) -> np.ndarray:
        """The embedding `[D]`, float64, of a user's turn.

        Args:
            parts (`list[dict]`): of the message, as in OpenAI's chats.
        """
        return self._embedding({"messages": [{"role": "user", "content": parts}]})

    def embed_prompt(self, prompt: str) -> np.ndarray:
        """The embedding `[D]`, float64, of a text as it is, without a template."""
        return self._embedding({"input": prompt})

    def _embedding(self, body: dict) -> np.ndarray:
        """The embedding `[D]` of a request, which must be a finite vector that is not zero."""

        def read(answer):
            return np.array(answer["data"][0]["embedding"], np.float64)

        # as numbers, since the interface's default form differs between servers
        vector = self._ask("/v1/embeddings", {"model": self.model, "encoding_format": "float", **body}, read)
        if vector.ndim != 1 or not np.isfinite(vector).all() or not vector.any():
            raise ValueError(f"{self.url}/v1/embeddings gives no vector, or one of zeros or of no finite numbers.")
        return vector

    def rerank(self, query, documents: list) -> list[float]:
        """One score per document, in their order.

        Args:
            query (`str`): what they are judged for.
            documents (`list`): texts, or `{"content": parts of a message}`.
        """

        def read(answer):
            scores = {entry["index"]: float(entry["relevance_score"]) for entry in answer["results"]}
            return [scores[number] for number in range(len(documents))]

        return self._ask("/rerank", {"model": self.model, "query": query, "documents": documents}, read)

    def _ask(self, path: str, body: dict | None, read: Callable):
        """What `read` makes of an answer."""
        address = f"{self.url}{path}"
        try:
            method = "GET" if body is None else "POST"
            response = self.client.request(method, address, json=body, timeout=self.timeout)
        except requests.RequestException as error:
            name = type(error).__name__
            raise ValueError(f"{address} does not answer ({name}); is the server running?") from error

        # what the server says of it is most of what there is to know
        if not response.ok:
            raise ValueError(f"{address} refused: status {response.status_code}: {response.text[:SHOWN]}")
        try:
            return read(response.json())
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{address} gives another answer than expected: {response.text[:SHOWN]}") from error


def probes() -> list[dict]:
    """Items that differ in what servers get wrong: two texts, images of two shapes, and an image with a text."""
    square = _drawing((224, 224))
    wide = _drawing((336, 168))
    return [
        {"text": "a red circle left of a blue star"},
        {"text": "What is it?\n" + "It is round, and it is red. " * 12},
        {"image": square},
        {"image": wide},
        {"image": square, "text": "the same, at night"},
    ]


def _drawing(size: tuple[int, int]) -> Image.Image:
    """A red ellipse on blue, left of fine lines: another image when it is turned, and when it is made smaller."""
    width, height = size
    image = Image.new("RGB", size, "navy")
    draw = ImageDraw.Draw(image)
    draw.ellipse((width // 12, height // 8, width // 2, height // 2), fill="red", outline="white", width=6)
    for x in range(width // 2, width, 9):
        draw.line((x, 0, x + width // 8, height), fill="white", width=2)
    return image


def pictures() -> list[bytes]:
    """Files that a server must read for itself: a photo that its EXIF data say is turned, and two of odd sizes.

    All other images are sent at the size that the model sees, of which nothing can be made wrong.
    """
    photo = _drawing((224, 168))
    photo.getexif()[0x0112] = _TURN
    return [_file(photo, "JPEG"), _file(_drawing((333, 517)), "PNG"), _file(_drawing((4000, 3000)), "PNG")]


def _file(image: Image.Image, kind: str) -> bytes:
    """An image as a file, with its EXIF data."""
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=image.getexif())
    return buffer.getvalue()


def check_embedder(
    server: Server,
    model: UniMEModel,
    items: list[dict],
    role: str,
    tolerance: float,
    prompts: bool = False,
    files: Sequence[bytes] = (),
) -> dict:
    """Compares a server's embeddings with the model's.

    Args:
        server ([`Server`]): what is checked.
        model (`UniMEModel`): what it claims to serve.
        items (`list[dict]`): with `text`, `image`, or both.
        role (`str`): as what the server reads items: `"query"` or `"document"`.
        tolerance (`float`): largest `1 - cosine` that passes.
        prompts (`bool`, defaults to `False`): send finished prompts as `input` instead of messages: texts only, for
            servers without templates.
        files (`Sequence[bytes]`): images that are sent as they are, see [`pictures`].

    Returns:
        `dict`: `{"same", "items": [{"item", "cosine", "norm"}], "reasons"}`.
    """
    readings = Readings(model, role)
    rows = []
    reasons = []
    for item in items:
        if prompts and "image" in item:
            continue  # an image cannot be sent within a prompt

        theirs = _served_embedding(server, model.processor, item, role, prompts)  # [D]
        ours = model.encode(item, role=role, fusion=server.fusion).numpy().astype(np.float64)  # [D]
        row = {"item": _words(item), "norm": float(np.linalg.norm(theirs)), "cosine": None}
        rows.append(row)

        # no reading of the item can explain that
        if theirs.shape != ours.shape:
            reasons.append(
                f"its vectors have {len(theirs)} dimensions, the model's {len(ours)}: it serves another model"
            )
            continue

        # the norms may differ without harm, so they are compared apart
        row["cosine"] = float(theirs @ ours / (np.linalg.norm(theirs) * np.linalg.norm(ours)))
        if not _passes(row["cosine"], tolerance):
            reasons += _explain(readings, item, theirs, tolerance)
        if model.config.normalize and abs(row["norm"] - 1) > 0.01:
            reasons.append("its vectors are not normalised, which changes dot products, but no cosines")

    # what else is wrong shows in these too, and is known by now
    same = bool(rows) and all(_passes(row["cosine"], tolerance) for row in rows)
    for content in files if same else ():
        row, reason = _check_file(server, model, content, role, tolerance)
        rows.append(row)
        if reason is not None:
            reasons.append(reason)

    same = bool(rows) and all(_passes(row["cosine"], tolerance) for row in rows)
    return {"same": same, "items": rows, "reasons": list(dict.fromkeys(reasons))}


def _check_file(server: Server, model: UniMEModel, content: bytes, role: str, tolerance: float) -> tuple:
    """The row of an image that is sent as it is, and what is wrong with it, or None."""
    image = Image.open(io.BytesIO(content))
    ours = model.encode(image, role=role).numpy().astype(np.float64)  # [D]

    def cosine(parts: list[dict]) -> float:
        theirs = server.embed(parts)
        return float(theirs @ ours / (np.linalg.norm(theirs) * np.linalg.norm(ours)))

    theirs = server.embed([sent_file(content, image.format.lower())])
    row = {"item": _file_words(image), "norm": float(np.linalg.norm(theirs)), "cosine": None}
    row["cosine"] = float(theirs @ ours / (row["norm"] * np.linalg.norm(ours)))
    if _passes(row["cosine"], tolerance):
        return row, None
    return row, _file_fault(image, lambda parts: _passes(cosine(parts), tolerance))


def _file_words(image: Image.Image) -> str:
    """An image file in a few words."""
    turned = ", turned by its EXIF data" if image.getexif() else ""
    return f"file of {image.width} x {image.height}{turned}"


def _file_fault(image: Image.Image, agrees: Callable[[list[dict]], bool]) -> str:
    """What is wrong with the reading of an image file, where the server reads other images rightly.

    `agrees` sends parts of a message in its place, and tells whether the answer is then the model's.
    """
    if not image.getexif():
        return RESIZE  # upright and without loss, so that only its size is left to be read otherwise
    if agrees([sent_image(open_image(image))]):
        return ORIENTATION
    return f"no known way of reading the {_file_words(image)} gives its answer; it may decode JPEG in its own way"


def _served_embedding(server: Server, processor, item: dict, role: str, prompts: bool) -> np.ndarray:
    """The server's embedding `[D]` of an item, sent as a finished prompt or as a message."""
    if prompts:
        (entry,) = processor.prepare([item], role=role)
        return server.embed_prompt(entry.prompt)
    return server.embed(_message_parts(processor, item))


def _passes(cosine: float | None, tolerance: float) -> bool:
    """Whether a cosine is close enough to 1; one that is NaN or missing is not."""
    return cosine is not None and 1 - cosine <= tolerance


def _explain(readings: Readings, item: dict, theirs: np.ndarray, tolerance: float) -> list[str]:
    """What is wrong with the first reading of the item that gives the server's embedding `[D]`."""
    served = torch.from_numpy(theirs / np.linalg.norm(theirs)).float()  # [D]
    best_cosine = -1.0
    best_reading = None

    # the likelier ones come first, so the first that fits is the one to name
    for reading, vector in readings.of(item):
        cosine = float(vector @ served)
        if reading.deviations and _passes(cosine, tolerance):
            return reading.explain()

        # else the nearest is a hint
        if cosine > best_cosine:
            best_cosine = cosine
            best_reading = reading

    nearest = "; ".join(best_reading.explain()) or "the right one"
    return [
        f"no known way of reading the item gives its vector (the nearest, with cosine {best_cosine:.4f}: {nearest}). "
        "Look at its precision (bfloat16 costs some 0.0005, 4 bits far more), at limits of its own on image sizes "
        "(--mm-processor-kwargs), and at which checkpoint it has loaded"
    ]


def check_reranker(
    server: Server, model, tolerance: float, query: str, documents: list[dict], files: Sequence[bytes] = ()
) -> dict:
    """Compares a server's scores with the model's.

    Args:
        server ([`Server`]): what is checked.
        model (`UniMERerankerForCausalLM`): what it claims to serve.
        tolerance (`float`): largest difference of two scores that passes.
        query (`str`): what the documents are judged for.
        documents (`list[dict]`): with `text`, `image`, or both.
        files (`Sequence[bytes]`): images that are sent as they are, see [`pictures`].

    Returns:
        `dict`: `{"same", "items": [{"item", "score", "server"}], "reasons"}`.
    """
    contents = []
    for document in documents:
        if "image" in document:
            contents.append({"content": _message_parts(model.processor, document)})
        else:
            contents.append(document["text"])
    theirs = np.array(server.rerank(query, contents))  # [N]
    ours = model.score(query, documents).double().numpy()  # [N]

    rows = []
    for document, score, served in zip(documents, ours.tolist(), theirs.tolist()):
        rows.append({"item": _words(document), "score": score, "server": served})
    if np.abs(theirs - ours).max() > tolerance:
        return {"same": False, "items": rows, "reasons": [_score_fault(theirs, ours, tolerance)]}

    reasons = []
    for content in files:
        row, reason = _judge_file(server, model, content, query, tolerance)
        rows.append(row)
        if reason is not None:
            reasons.append(reason)
    return {"same": not reasons, "items": rows, "reasons": list(dict.fromkeys(reasons))}


def _judge_file(server: Server, model, content: bytes, query: str, tolerance: float) -> tuple:
    """The row of an image that is sent as it is, and what is wrong with its score, or None."""
    image = Image.open(io.BytesIO(content))
    score = float(model.score(query, [image])[0])

    def served(parts: list[dict]) -> float:
        return server.rerank(query, [{"content": parts}])[0]

    row = {"item": _file_words(image), "score": score, "server": served([sent_file(content, image.format.lower())])}
    if abs(row["server"] - score) <= tolerance:
        return row, None
    return row, _file_fault(image, lambda parts: abs(served(parts) - score) <= tolerance)


def _score_fault(theirs: np.ndarray, ours: np.ndarray, tolerance: float) -> str:
    """What is wrong with a server's scores `[N]`, judged by what makes them the model's `[N]`."""
    if np.abs(1 / (1 + np.exp(-theirs)) - ours).max() <= tolerance:
        return "it gives log-odds, not probabilities: put its scores through a sigmoid"
    if np.abs(theirs - (1 - ours)).max() <= tolerance:
        return "it gives the probability of No: its two answers are exchanged (vLLM: classifier_from_token)"
    if np.ptp(theirs) <= tolerance:
        return f"all its scores are alike: it does not show the candidates to the model; {_JUDGE}"
    return f"its scores follow another prompt: {_JUDGE}, and compare its precision"


def _message_parts(processor, item: dict) -> list[dict]:
    """An item as the parts of a message, its image at the size at which the model sees it."""
    (entry,) = processor.prepare([item])
    parts = []
    for number in range(len(entry.images)):
        parts.append(sent_image(processor.read_image(entry, number)))
    if item.get("text"):
        parts.append({"type": "text", "text": item["text"]})
    return parts


def _words(item: dict) -> str:
    """An item in a few words."""
    image = item.get("image")
    if isinstance(image, Image.Image):
        image = f"image {image.width} x {image.height}"

    words = []
    for text in (image, item.get("text")):
        if text:
            words.append(" ".join(text.split())[:40])
    return ", ".join(words)


def _show(report: dict):
    """Prints what was compared, and the verdict."""
    for row in report["items"]:
        numbers = "  ".join(f"{name} {value:.5f}" for name, value in row.items() if isinstance(value, float))
        print(f"{numbers}  {row['item']}")

    verdict = "The server's answers are not the model's:"
    if report["same"]:
        verdict = "The server gives the model's answers."
    print(verdict)

    for reason in report["reasons"]:
        print(f"- {reason}.")


def execute(options):
    """Does what the options of `unime serve-check` say."""
    with one_line_errors("unime serve-check"):
        server = Server(options.url, options.served_model)
        model = open_checkpoint(
            options.model,
            options.preset,
            reranker=options.reranker,
            dtype=options.dtype,
            trust_remote_code=options.trust_remote_code,
        ).eval()

        items = probes()
        files = pictures()
        if options.items:
            files = []
            items = [item.as_input() for _, item in read_items(options.items)]

        # a UniME checkpoint says itself which of the two it is
        if isinstance(model, UniMEModel):
            files = [] if options.input else files
            report = check_embedder(server, model, items, options.role, options.tolerance, options.input, files)
        else:
            report = check_reranker(server, model, options.tolerance, QUERY, items, files)

    if options.json:
        print(json.dumps(report))
    else:
        _show(report)
    if not report["same"]:
        raise SystemExit(1)


def main(arguments=None):
    """The command `unime serve-check`: status 1 where the answers differ."""
    execute(read(arguments))


if __name__ == "__main__":
    main()
