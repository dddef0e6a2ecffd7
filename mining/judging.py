"""Judges: how well does a candidate meet a query? A local reranker, or an OpenAI-compatible server."""

import math
import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import requests
from requests.adapters import HTTPAdapter

from ..data.images import sent_image
from ..data.schema import Item
from ..images_unime import Resolution, open_image
from ..items_unime import judge_messages
from ..modeling_unime import UniMERerankerForCausalLM
from ..prompts_unime import POINTWISE, one_of

Request = tuple[Item, Sequence[Item]]


class LocalJudge:
    """A reranker on this machine; what the candidates of a query share is run once.

    Args:
        model (`UniMERerankerForCausalLM`): any VLM may be one: the judge is a reranker that was not trained.
        options: for [`~unime.modeling_unime.UniMERerankerForCausalLM.score`].
    """

    def __init__(self, model: UniMERerankerForCausalLM, **options):
        self.model, self.options = model, options

    def score(self, asked: Sequence[Request]) -> list[np.ndarray]:
        """Scores in [0, 1] of each request's candidates, float32 `[n]`.

        The cache of images seen is emptied first, so that scores do not depend on what was judged before.
        """
        self.model.vision_cache.entries.clear()
        return [
            self.model.score(
                query.as_input(), [item.as_input() for item in candidates], show_progress=False, **self.options
            ).numpy()
            for query, candidates in asked
        ]


class ServerJudge:
    """A judge behind an OpenAI-compatible server (vLLM, SGLang, ...), which must return log-probabilities.

    Each pair is one chat completion of one token; the score is the softmax over the two answers' log-probabilities.
    An answer that is not among the `top_logprobs` counts with the least of them or with the probability that they
    leave over, whichever is less: both bound it from above.

    Args:
        url (`str`): up to and with `/v1`.
        model (`str`): the name under which the server knows the model.
        answer_format (`str`): `"yes_no"` or `"multiple_choice"`.
        key_variable (`str`): the environment variable that holds the key, if the server wants one.
        concurrency (`int`, defaults to 32): requests in flight.
        timeout (`float`, defaults to 120): seconds for one request.
        attempts (`int`, defaults to 6): tries of one request, with 1, 2, 4, ... seconds between them, or what the
            server asks for.
        top_logprobs (`int`, defaults to 20): how many the server returns.
        resolution: policy for the images sent; see [`~unime.images_unime.Resolution`].
        pause (`float`, defaults to 1): seconds before the second try.
    """

    def __init__(
        self,
        url: str,
        model: str,
        answer_format: str = "yes_no",
        key_variable: str = "OPENAI_API_KEY",
        concurrency: int = 32,
        timeout: float = 120.0,
        attempts: int = 6,
        top_logprobs: int = 20,
        resolution="native",
        pause: float = 1.0,
    ):
        self.url, self.model = url.rstrip("/") + "/chat/completions", model
        self.answer_format = one_of("answer_format", answer_format, *POINTWISE)
        self.concurrency, self.attempts, self.top_logprobs, self.pause = concurrency, attempts, top_logprobs, pause
        self.resolution = Resolution.parse(resolution)
        key = os.environ.get(key_variable)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.client, self.timeout = requests.Session(), timeout
        self.client.headers.update(headers)
        for scheme in ("http://", "https://"):
            self.client.mount(scheme, HTTPAdapter(pool_maxsize=concurrency))
        self.known: dict[tuple[Item, Item], float] = {}
        self.wanted: set[tuple[Item, Item]] = set()

    def score(self, asked: Sequence[Request]) -> list[np.ndarray]:
        """Scores in [0, 1] of each request's candidates, float32 `[n]`.

        Raises:
            ValueError: the server refused a pair, or did not give a usable answer within `attempts`; pairs that were
                answered are kept for the next call.
        """
        wanted = {(query, candidate) for query, candidates in asked for candidate in candidates}
        if not wanted <= self.wanted:  # not a part of the last call, tried again: new pairs
            self.known = {pair: score for pair, score in self.known.items() if pair in wanted}
            self.wanted = wanted
        failures = []

        def ask(pair):
            try:
                self.known[pair] = self._ask(*pair)
            except ValueError as error:
                failures.append(error)

        with ThreadPoolExecutor(self.concurrency) as workers:
            list(workers.map(ask, [pair for pair in wanted if pair not in self.known]))
        if failures:
            raise failures[0]
        return [
            np.array([self.known[query, candidate] for candidate in candidates], np.float32)
            for query, candidates in asked
        ]

    def _ask(self, query: Item, candidate: Item) -> float:
        body = {
            "model": self.model,
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": self.top_logprobs,
            "messages": self._messages(query, candidate),
        }
        for attempt in range(self.attempts):
            wait = self.pause * 2**attempt * random.uniform(0.8, 1.2)
            try:
                response = self.client.post(self.url, json=body, timeout=self.timeout)
                if response.ok:
                    return self._read(response.json())
                reason = f"status {response.status_code}: {response.text[:200]}"
                if response.status_code not in (408, 409, 425, 429) and response.status_code < 500:
                    raise RefusedError(f"{self.url} refused: {reason}")
                told = response.headers.get("retry-after", "")
                wait = float(told) if told.replace(".", "", 1).isdigit() else wait
            except RefusedError:
                raise
            except (requests.RequestException, ValueError, LookupError, TypeError, AttributeError) as error:
                reason = f"{type(error).__name__}: {error}"  # no connection, no answer in time, or no sense in it
            if attempt + 1 < self.attempts:
                time.sleep(wait)
        raise ValueError(f"{self.url} gave no usable answer in {self.attempts} attempts; the last: {reason}")

    def _messages(self, query: Item, candidate: Item) -> list[dict]:
        """The judge's prompt as messages of the chat completions API."""
        messages = judge_messages(query.as_input(), [candidate.as_input()], answer_format=self.answer_format)
        return [{**message, "content": list(map(self._sent, message["content"]))} for message in messages]

    def _sent(self, part: dict) -> dict:
        if part["type"] == "text":
            return part
        image = open_image(part["image"])
        if (size := self.resolution.fit(*image.size, None, 28, 28 * 28)) != image.size:
            image = image.resize(size)
        return sent_image(image)

    def _read(self, answer: dict) -> float:
        listed = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        found = {entry["token"].strip(): float(entry["logprob"]) for entry in reversed(listed)}  # the likeliest wins
        yes, no = (found.get(word) for word in POINTWISE[self.answer_format][1:])
        if yes is None and no is None:
            raise ValueError(f"neither answer is among the likeliest tokens {[entry['token'] for entry in listed]}")
        left = 1 - sum(math.exp(float(entry["logprob"])) for entry in listed)
        least = min(*(float(entry["logprob"]) for entry in listed), math.log(max(left, 1e-9)))
        gap = (least if no is None else no) - (least if yes is None else yes)
        if not math.isfinite(gap):
            raise ValueError(f"log-probabilities are not finite: {found}")
        return 1 / (1 + math.exp(min(gap, 700)))


class RefusedError(ValueError):
    """The server will not answer this request, however often it is asked."""
