"""Judges: how well does a candidate meet a query? A local reranker, or an OpenAI-compatible server."""

import math
import os
import random
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import requests
from requests.adapters import HTTPAdapter

from ..checkpoints.opening import open_checkpoint, require_kind
from ..data.images import sent_image
from ..data.schema import Item
from ..images_unime import Resolution, open_image
from ..items_unime import judge_messages
from ..jobs.shards import processes
from ..modeling_unime import UniMERerankerForCausalLM
from ..prompts_unime import POINTWISE, one_of
from .selection import probabilities

Request = tuple[Item, Sequence[Item]]
RETRIED = (408, 409, 425, 429)  # statuses below 500 after which the same request may succeed later
# Control tokens of the families that servers run: ChatML, Llama, Mistral, Gemma, and placeholders of images
MARKS = re.compile(
    r"<\|[^<>\s]{1,40}\|>|</?s>|\[/?[A-Z_]{3,24}\]|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk|image|video)>"
)
TOKEN_SIDE = 28  # pixels of a side of Qwen2-VL's image tokens, of which images sent have whole numbers


def without_marks(text: str) -> str:
    """A text whose control tokens are broken by a space, because a server reads texts and its template as one string.

    The server's tokenizer is not known here: tokens of other families than those of `MARKS` stay as they are.

    Args:
        text (`str`): of a query or a candidate.
    """
    return MARKS.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)


class Judge:
    """Whoever can tell the log-odds that candidates meet a query; probabilities follow from these."""

    def log_odds(self, batch: Sequence[Request]) -> list[np.ndarray]:
        """The log-odds of Yes against No for each request's candidates, float32 `[n]`."""
        raise NotImplementedError

    def score(self, batch: Sequence[Request]) -> list[np.ndarray]:
        """Scores in [0, 1] of each request's candidates, float32 `[n]`.

        Args:
            batch (`Sequence[Request]`): queries, each with its candidates.

        Raises:
            ValueError: a candidate could not be judged; the message says which and why.
        """
        return [probabilities(log_odds).astype(np.float32) for log_odds in self.log_odds(batch)]


class LocalJudge(Judge):
    """A reranker on this machine; what the candidates of a query share is run once.

    Args:
        model (`UniMERerankerForCausalLM`): any VLM may be one: the judge is a reranker that was not trained.
        options: for [`~unime.modeling_unime.UniMERerankerForCausalLM.score`].

    Raises:
        ValueError: the model's preset only puts lists in order.

    Example:

    ```python
    judge = LocalJudge(UniMERerankerForCausalLM.from_backbone("Qwen/Qwen2.5-VL-7B-Instruct"))
    (scores,) = judge.score([(Item("a dog"), [Item("a puppy"), Item("a car")])])  # float32 [2]
    ```
    """

    def __init__(self, model: UniMERerankerForCausalLM, **options):
        if model.gives_places:
            raise ValueError(
                f"the preset {model.processor.preset!r} puts lists in order and scores no candidate, which is what a "
                "judge does; take a reranker that scores pairs."
            )
        self.model = model
        self.options = options

    def log_odds(self, batch: Sequence[Request]) -> list[np.ndarray]:
        """The log-odds of Yes against No for each request's candidates, float32 `[n]`.

        The cache of images is emptied first, so that scores do not depend on what was judged before.

        Args:
            batch (`Sequence[Request]`): queries, each with its candidates.
        """
        self.model.vision_cache.entries.clear()

        options = {**self.options, "output": "logit"}
        results = []
        for query, candidates in batch:
            inputs = [candidate.as_input() for candidate in candidates]
            log_odds = self.model.score(query.as_input(), inputs, show_progress=False, **options)  # [n]
            results.append(log_odds.numpy())
        return results


class ChatServer:
    """A client of an OpenAI-compatible server's chat completions, which asks again where that may help.

    Args:
        url (`str`): up to and with `/v1`.
        model (`str`): the name under which the server knows the model.
        key_variable (`str`, defaults to `"OPENAI_API_KEY"`): the environment variable that holds the key, if the
            server requires one.
        concurrency (`int`, defaults to 32): requests in flight.
        timeout (`float`, defaults to 120): seconds for one request.
        attempts (`int`, defaults to 6): tries of one request, with 1, 2, 4, ... seconds between them, or what the
            server asks for.
        resolution (defaults to `"native"`): policy for the images sent; see [`~unime.images_unime.Resolution`].
        pause (`float`, defaults to 1): seconds before the second try.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key_variable: str = "OPENAI_API_KEY",
        concurrency: int = 32,
        timeout: float = 120.0,
        attempts: int = 6,
        resolution="native",
        pause: float = 1.0,
    ):
        self.url = url.rstrip("/") + "/chat/completions"
        self.model = model
        self.concurrency = concurrency
        self.timeout = timeout
        self.attempts = attempts
        self.pause = pause
        self.resolution = Resolution.parse(resolution)

        # one session for all requests keeps its connections open
        self.client = requests.Session()
        key = os.environ.get(key_variable)
        if key:
            self.client.headers["Authorization"] = f"Bearer {key}"
        for scheme in ("http://", "https://"):
            self.client.mount(scheme, HTTPAdapter(pool_maxsize=concurrency))

    def complete(self, messages: list[dict], read: Callable, **body):
        """What `read` makes of a completion, asked for until it can be read or no attempt remains.

        Args:
            messages (`list[dict]`): of the chat, whose content is a list of text and image parts.
            read: maps the answer's JSON to the result; raises `ValueError`, `LookupError` or `TypeError` where it is
                not usable.
            body: further fields of the request, such as `max_tokens`.

        Raises:
            ValueError: the server refused, or did not give a usable answer within `attempts`.
        """
        sent = []
        for message in messages:
            sent.append({**message, "content": [self._sent(piece) for piece in message["content"]]})
        body = {"model": self.model, **body, "messages": sent}

        for attempt in range(self.attempts):
            # spread a little, so that requests that failed together do not return together
            wait = self.pause * 2**attempt * random.uniform(0.8, 1.2)
            try:
                response = self.client.post(self.url, json=body, timeout=self.timeout)
                if response.ok:
                    return read(response.json())

                # a request that is itself at fault fails every time
                reason = f"status {response.status_code}: {response.text[:200]}"
                if response.status_code not in RETRIED and response.status_code < 500:
                    raise RefusedError(f"{self.url} refused: {reason}")

                # a busy server may say how long it will be
                retry_after = response.headers.get("retry-after", "")
                if retry_after.replace(".", "", 1).isdigit():
                    wait = float(retry_after)
            except RefusedError:
                raise
            except (requests.RequestException, ValueError, LookupError, TypeError, AttributeError) as error:
                # no connection, no answer in time, or an answer that is not a completion
                reason = f"{type(error).__name__}: {error}"

            if attempt + 1 < self.attempts:
                time.sleep(wait)
        raise ValueError(f"{self.url} gave no usable answer in {self.attempts} attempts; the last: {reason}")

    def _sent(self, piece: dict) -> dict:
        """A piece of a message as it is sent: a text without marks, an image in the resolution asked for."""
        if piece["type"] == "text":
            return {"type": "text", "text": without_marks(piece["text"])}

        # resized here, as a server does not know our policies
        image = open_image(piece["image"])
        size = self.resolution.fit(*image.size, None, TOKEN_SIDE, TOKEN_SIDE**2)
        if size != image.size:
            image = image.resize(size)
        return sent_image(image)


class ServerJudge(ChatServer, Judge):
    """A judge behind an OpenAI-compatible server (vLLM, SGLang, ...), which must return log-probabilities.

    Each pair is one chat completion of one token; the score is the softmax over the two answers' log-probabilities.
    An answer that is not among the `top_logprobs` counts with the least of them or with the probability that they
    leave over, whichever is less: both bound it from above.

    Args:
        url (`str`): up to and with `/v1`.
        model (`str`): the name under which the server knows the model.
        answer_format (`str`, defaults to `"yes_no"`): `"yes_no"` or `"multiple_choice"`.
        top_logprobs (`int`, defaults to 20): how many the server returns.
        client: further arguments of [`ChatServer`].

    Example:

    ```python
    judge = ServerJudge("http://localhost:8000/v1", "Qwen/Qwen2.5-VL-7B-Instruct")
    (scores,) = judge.score([(Item("a dog"), [Item("a puppy"), Item("a car")])])  # float32 [2]
    ```
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
        super().__init__(url, model, key_variable, concurrency, timeout, attempts, resolution, pause)
        self.answer_format = one_of("answer_format", answer_format, *POINTWISE)
        self.top_logprobs = top_logprobs

        # the pairs of the last call, and the log-odds of those that were answered
        self.pairs: set[tuple[Item, Item]] = set()
        self.answers: dict[tuple[Item, Item], float] = {}

    def log_odds(self, batch: Sequence[Request]) -> list[np.ndarray]:
        """The log-odds of Yes against No for each request's candidates, float32 `[n]`.

        Args:
            batch (`Sequence[Request]`): queries, each with its candidates.

        Raises:
            ValueError: the server refused a pair, or did not give a usable answer within `attempts`; pairs that were
                answered are kept for the next call.
        """
        pairs = set()
        for query, candidates in batch:
            for candidate in candidates:
                pairs.add((query, candidate))

        # a job tries parts of a failed batch again: their answers are still valid; other pairs begin a new batch
        if not pairs <= self.pairs:
            self.answers = {pair: log_odds for pair, log_odds in self.answers.items() if pair in pairs}
            self.pairs = pairs

        # all are asked before an error is raised, so that only what failed is asked again
        unanswered = [pair for pair in pairs if pair not in self.answers]
        with ThreadPoolExecutor(self.concurrency) as workers:
            errors = list(workers.map(self._answer, unanswered))
        for error in errors:
            if error is not None:
                raise error

        results = []
        for query, candidates in batch:
            log_odds = [self.answers[query, candidate] for candidate in candidates]
            results.append(np.array(log_odds, np.float32))
        return results

    def _answer(self, pair: tuple[Item, Item]) -> ValueError | None:
        """Asks for the log-odds of a pair and keeps them, or returns why there are none."""
        try:
            self.answers[pair] = self._ask(*pair)
        except ValueError as error:
            return error
        return None

    def _ask(self, query: Item, candidate: Item) -> float:
        """The log-odds of a pair."""
        return self.complete(
            judge_messages(query.as_input(), [candidate.as_input()], answer_format=self.answer_format),
            self._log_odds_in,
            max_tokens=1,
            temperature=0,
            logprobs=True,
            top_logprobs=self.top_logprobs,
        )

    def _log_odds_in(self, completion: dict) -> float:
        """The log-odds of the answer yes against the answer no."""
        entries = completion["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        logprobs = [float(entry["logprob"]) for entry in entries]

        # spellings that differ in spaces are one answer; the likeliest is listed first and written last, so it counts
        logprob_of = {}
        for entry, logprob in zip(reversed(entries), reversed(logprobs)):
            logprob_of[entry["token"].strip()] = logprob

        judgement = POINTWISE[self.answer_format]
        yes = logprob_of.get(judgement.yes)
        no = logprob_of.get(judgement.no)
        if yes is None and no is None:
            tokens = [entry["token"] for entry in entries]
            raise ValueError(f"neither answer is among the likeliest tokens {tokens}")

        # an answer that is not listed is at most as likely as the least likely one, and as what the list leaves over
        remainder = 1 - sum(map(math.exp, logprobs))
        least = min(*logprobs, math.log(max(remainder, 1e-9)))
        if yes is None:
            yes = least
        if no is None:
            no = least

        if not math.isfinite(yes - no):
            raise ValueError(f"log-probabilities are not finite: {logprob_of}")
        return yes - no


class RefusedError(ValueError):
    """The server will not answer this request, however often it is asked."""


def judge_requests(requests: Sequence[Request], judge: Judge, width: int) -> dict[str, np.ndarray]:
    """The work of `unime mine judge`: scores of positives and of what was retrieved for them.

    Args:
        requests (`Sequence[Request]`): queries, each with the positive before its candidates, nearest first.
        judge ([`Judge`]): who scores them.
        width (`int`): how many candidates were retrieved at most.

    Returns:
        `positive_score` `[B]`, and `scores` `[B, width]` of the candidates, NaN where there are fewer; beside them
        their log-odds, `positive_logit` `[B]` and `logits` `[B, width]`, which differ where scores are all 1.0.
    """
    positive_logits = np.empty(len(requests), np.float32)
    logits = np.full((len(requests), width), np.nan, np.float32)
    for row, log_odds in enumerate(judge.log_odds(requests)):
        positive_logits[row] = log_odds[0]
        logits[row, : len(log_odds) - 1] = log_odds[1:]

    return {
        "positive_score": probabilities(positive_logits).astype(np.float32),
        "scores": probabilities(logits).astype(np.float32),
        "positive_logit": positive_logits,
        "logits": logits,
    }


def open_judge(config) -> Judge:
    """The judge of [`~unime.mining.settings.MiningConfig`], on this process's device or on a server."""
    if config.server:
        return ServerJudge(config.server, config.judge, **config.judge_options, **config.server_options)

    model = open_checkpoint(
        config.judge,
        config.judge_preset,
        reranker=True,
        dtype=config.judge_dtype,
        trust_remote_code=config.trust_remote_code,
    )
    require_kind(model, config.judge, reranker=True)
    return LocalJudge(model.to(processes().device).eval(), **config.judge_options)
