"""Whether a server's answers are those of the model here, and if not, why: the command `unime serve-check`.

unime serve-check http://localhost:8000 --model me/my-embedder

The server (vLLM, SGLang, or another with OpenAI's interface) holds what `unime export` made of the model. A few texts
and images go to both; an embedder is asked through /v1/embeddings, a reranker through /rerank.
"""

import argparse
import json
import os
from collections.abc import Callable

import numpy as np
import requests
import torch
from PIL import Image, ImageDraw

from ..checkpoints.opening import open_checkpoint
from ..data.images import sent_image
from ..modeling_unime import UniMEModel
from .inputs import read_items
from .server_readings import Readings

_JUDGE = "start it with --chat-template and templates/judge.jinja of the exported folder"


class Server:
    """A server with OpenAI's interface.

    Args:
        url (`str`): with or without `/v1` at its end.
        model (`str`, *optional*): the name it knows the model under; by default its only one.
        key_variable (`str`): the environment variable that holds the key, if it wants one.
        timeout (`float`): seconds for one request.
    """

    def __init__(
        self, url: str, model: str | None = None, key_variable: str = "OPENAI_API_KEY", timeout: float = 120.0
    ):
        self.url, self.client, self.timeout = url.rstrip("/").removesuffix("/v1"), requests.Session(), timeout
        if key := os.environ.get(key_variable):
            self.client.headers["Authorization"] = f"Bearer {key}"
        self.model = model or self._only_model()

    def embed(self, parts: list[dict]) -> np.ndarray:
        """The embedding `[D]` of a user's turn."""
        body = {"model": self.model, "messages": [{"role": "user", "content": parts}], "encoding_format": "float"}
        return self._embedding(body)

    def embed_prompt(self, prompt: str) -> np.ndarray:
        """The embedding `[D]` of a text as it is."""
        body = {"model": self.model, "input": prompt, "encoding_format": "float"}
        return self._embedding(body)

    def _embedding(self, body: dict) -> np.ndarray:
        vector = self._ask("/v1/embeddings", body, lambda answer: np.array(answer["data"][0]["embedding"], np.float64))
        if vector.ndim != 1 or not np.isfinite(vector).all() or not vector.any():
            raise ValueError(f"{self.url}/v1/embeddings gives no vector, or one of zeros or of no finite numbers.")
        return vector

    def rerank(self, query, documents: list) -> list[float]:
        """One score per document, in their order."""

        def read(answer):
            scores = {entry["index"]: float(entry["relevance_score"]) for entry in answer["results"]}
            return [scores[i] for i in range(len(documents))]

        return self._ask("/rerank", {"model": self.model, "query": query, "documents": documents}, read)

    def _only_model(self) -> str:
        names = self._ask("/v1/models", None, lambda answer: [entry["id"] for entry in answer["data"]])
        if len(names) != 1:
            raise ValueError(f"{self.url} serves {', '.join(names) or 'nothing'}; choose one with --served-model.")
        return names[0]

    def _ask(self, path: str, body: dict | None, read: Callable):
        """What `read` makes of an answer."""
        try:
            method = "GET" if body is None else "POST"
            response = self.client.request(method, self.url + path, json=body, timeout=self.timeout)
            if not response.ok:
                raise ValueError(f"{self.url}{path} refused: status {response.status_code}: {response.text[:300]}")
        except requests.RequestException as error:
            name = type(error).__name__
            raise ValueError(f"{self.url}{path} does not answer ({name}); is the server running?") from error
        try:
            return read(response.json())
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{self.url}{path} gives another answer than expected: {response.text[:300]}") from error


def probes() -> list[dict]:
    """A text, a longer one, images of two shapes, and an image with a text."""
    items = [
        {"text": "a red circle left of a blue star"},
        {"text": "What is it?\n" + "It is round, and it is red. " * 12},
    ]
    for size in ((224, 224), (336, 168)):
        image = Image.new("RGB", size, "navy")
        ImageDraw.Draw(image).ellipse((20, 30, 140, 150), fill="red", outline="white", width=6)
        items.append({"image": image})
    return [*items, {"image": items[2]["image"], "text": "the same, at night"}]


def check_embedder(
    server: Server, model: UniMEModel, items: list[dict], role: str, tolerance: float, prompts: bool = False
) -> dict:
    """Compares a server's embeddings with the model's.

    Args:
        items (`list[dict]`): with `text`, `image`, or both.
        role (`str`): as what the server reads items.
        tolerance (`float`): largest `1 - cosine` that passes.
        prompts (`bool`): send finished prompts as `input` instead of messages: texts only, for servers without
            templates.

    Returns:
        `{"same", "items": [{"item", "cosine", "norm"}], "reasons"}`.
    """
    rows, readings, reasons = [], Readings(model, role), []
    for item in items:
        if prompts and "image" in item:
            continue
        if prompts:
            theirs = server.embed_prompt(model.processor.prepare([item], role=role)[0].prompt)
        else:
            theirs = server.embed(_sent(model.processor, item))
        ours = model.encode(item, role=role, fusion="joint").numpy().astype(np.float64)
        row = {"item": _words(item), "norm": float(np.linalg.norm(theirs))}
        if theirs.shape != ours.shape:
            reasons.append(
                f"its vectors have {len(theirs)} dimensions, the model's {len(ours)}: it serves another model"
            )
            rows.append({**row, "cosine": None})
            continue
        row["cosine"] = float(theirs @ ours / (np.linalg.norm(theirs) * np.linalg.norm(ours)))
        rows.append(row)
        if not 1 - row["cosine"] <= tolerance:
            reasons += _explain(readings, item, theirs, tolerance)
        if model.config.normalize and abs(row["norm"] - 1) > 0.01:
            reasons.append("its vectors are not normalised, which changes dot products, but no cosines")
    same = bool(rows) and all(row["cosine"] is not None and 1 - row["cosine"] <= tolerance for row in rows)
    return {"same": same, "items": rows, "reasons": list(dict.fromkeys(reasons))}


def _explain(readings: Readings, item: dict, theirs: np.ndarray, tolerance: float) -> list[str]:
    """The first reading of the item that gives the server's embedding."""
    theirs, best = torch.from_numpy(theirs / np.linalg.norm(theirs)).float(), (-1.0, None)
    for reading, vector in readings.of(item):
        cosine = float(vector @ theirs)
        if reading.deviations and 1 - cosine <= tolerance:
            return reading.explain()
        best = max(best, (cosine, reading), key=lambda pair: pair[0])
    nearest = "; ".join(best[1].explain()) or "the right one"
    return [
        f"no known way of reading the item gives its vector (the nearest, with cosine {best[0]:.4f}: {nearest}). "
        "Look at its precision (bfloat16 costs some 0.0005, 4 bits far more), at limits of its own on image sizes "
        "(--mm-processor-kwargs), and at which checkpoint it has loaded"
    ]


def check_reranker(server: Server, model, tolerance: float, query: str, documents: list[dict]) -> dict:
    """Compares a server's scores with the model's: `{"same", "items": [{"item", "score", "server"}], "reasons"}`."""
    sent = [{"content": _sent(model.processor, own)} if "image" in own else own["text"] for own in documents]
    theirs, ours = np.array(server.rerank(query, sent)), model.score(query, documents).double().numpy()
    rows = [
        {"item": _words(own), "score": a, "server": b} for own, a, b in zip(documents, ours.tolist(), theirs.tolist())
    ]
    same, reasons = bool(np.abs(theirs - ours).max() <= tolerance), []
    if not same:
        if np.abs(1 / (1 + np.exp(-theirs)) - ours).max() <= tolerance:
            reasons = ["it gives log-odds, not probabilities: put its scores through a sigmoid"]
        elif np.abs(theirs - (1 - ours)).max() <= tolerance:
            reasons = ["it gives the probability of No: its two answers are exchanged (vLLM: classifier_from_token)"]
        elif np.ptp(theirs) <= tolerance:
            reasons = [f"all its scores are alike: it does not show the candidates to the model; {_JUDGE}"]
        else:
            reasons = [f"its scores follow another prompt: {_JUDGE}, and compare its precision"]
    return {"same": same, "items": rows, "reasons": reasons}


def _sent(processor, item: dict) -> list[dict]:
    """An item as the parts of a message, its image at the size at which the model sees it."""
    (entry,) = processor.prepare([item])
    images = [sent_image(processor.read_image(entry, i)) for i in range(len(entry.images))]
    return images + ([{"type": "text", "text": item["text"]}] if item.get("text") else [])


def _words(item: dict) -> str:
    image = item.get("image")
    shown = [f"image {image.width} x {image.height}" if isinstance(image, Image.Image) else image, item.get("text")]
    return ", ".join(" ".join(part.split())[:40] for part in shown if part)


def main(arguments=None):
    """The command `unime serve-check`."""
    parser = argparse.ArgumentParser(
        prog="unime serve-check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", help="of the server, for example http://localhost:8000")
    parser.add_argument("--model", required=True, help="folder or repository of the same model in UniME's form")
    parser.add_argument("--preset", help="prompts, for a stock VLM")
    parser.add_argument("--dtype", default="auto", help="bfloat16, ...; auto is the checkpoint's own")
    parser.add_argument("--served-model", help="the name that the server knows, if it serves several")
    parser.add_argument("--role", default="query", choices=("query", "document"), help="of the server's template")
    parser.add_argument("--reranker", action="store_true", help="for a stock VLM that is served as a reranker")
    parser.add_argument("--items", nargs="+", help="files or folders to compare with, instead of a few drawn items")
    parser.add_argument("--input", action="store_true", help="send finished prompts: texts only, no template needed")
    parser.add_argument("--tolerance", type=float, default=2e-3, help="of 1 - cosine, or of a score")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args(arguments)
    try:
        server = Server(options.url, options.served_model)
        model = open_checkpoint(options.model, options.preset, reranker=options.reranker, dtype=options.dtype).eval()
        items = [own.as_input() for _, own in read_items(options.items)] if options.items else probes()
        if isinstance(model, UniMEModel):
            found = check_embedder(server, model, items, options.role, options.tolerance, options.input)
        else:
            found = check_reranker(server, model, options.tolerance, "a red circle", items)
    except (ValueError, OSError) as error:
        raise SystemExit(f"unime serve-check: {error}") from error
    if options.json:
        print(json.dumps(found))
    else:
        for row in found["items"]:
            numbers = "  ".join(f"{key} {value:.5f}" for key, value in row.items() if isinstance(value, float))
            print(f"{numbers}  {row['item']}")
        print(
            "The server gives the model's answers." if found["same"] else "The server's answers are not the model's:"
        )
        for reason in found["reasons"]:
            print(f"- {reason}.")
    if not found["same"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
