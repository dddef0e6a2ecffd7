"""Queries for a corpus that has none, written by an MLLM: `unime mine queries`.

Each item gets k queries of every kind that fits it. What comes out is deduplicated and judged, and rows above a
threshold are written as pairs that every stage reads; what was left out is listed with the reason.
"""

import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..checkpoints.opening import open_checkpoint, require_kind
from ..data.item_sources import read_items
from ..data.schema import Item
from ..files.addresses import make_folder
from ..files.writing import write_json_lines
from ..jobs.embedding import checkpoint_fingerprint, image_name, item_name
from ..jobs.notices import notice
from ..jobs.shards import fingerprint, processes, read_errors, read_job, run_job
from ..modeling_unime import UniMERerankerForCausalLM
from ..prompts_unime import instruct
from .judging import ChatServer, Judge, LocalJudge, ServerJudge, probabilities
from .settings import QueriesConfig

WIDTH = 4096  # bytes of an answer that are kept
LONGEST = 300  # characters of a query; longer ones are no queries
NUMBERED = re.compile(r"^\s*(?:[-*\u2022]|\(?\d{1,2}[.):])\s*")  # how models begin the lines of a list


class TaskKind(NamedTuple):
    """A kind of query.

    Args:
        name (`str`): of the data set of its rows.
        of (`str`): what it is asked of: `"image"`, or `"text"`.
        instruction (`str`): of the queries, which is put before each.
        request (`str`): what the model is told; `{count}` stands for the number of queries.
        document (`str`, *optional*): put before the text of the item, or beside its picture, in the rows and for the
            judge: what a model was trained to read there.
    """

    name: str
    of: str
    instruction: str
    request: str
    document: str = ""

    def answer(self, item: Item) -> Item:
        """The item as an answer."""
        return replace(item, text=instruct(self.document, item.text)) if self.document else item


_ONE_A_LINE = "Write one a line and nothing else."
KINDS = (
    TaskKind(
        "caption",
        "image",
        "Find an image that matches the given caption.",
        "Write {count} short captions of this picture, each about something else that can be seen in it, in the words "
        f"of somebody who looks for it. {_ONE_A_LINE}",
    ),
    TaskKind(
        "question",
        "image",
        "Find an image that answers the given question.",
        "Write {count} questions that this picture answers and hardly another one does. Do not say 'this picture'. "
        f"{_ONE_A_LINE}",
    ),
    TaskKind(
        "passage",
        "text",
        "Given a question, find a passage that answers it.",
        "Write {count} questions that the text above answers, in words of your own. Do not say 'the text'. "
        f"{_ONE_A_LINE}",
    ),
    TaskKind(
        "keywords",
        "text",
        "Find a text about the given keywords.",
        "Write {count} searches of two to five keywords for which the text above is the right result. "
        f"{_ONE_A_LINE}",
    ),
)


class Asked(NamedTuple):
    """An item, and the kind of queries that are to be written for it."""

    item: Item
    kind: TaskKind

    def messages(self, count: int) -> list[dict]:
        """The chat that asks for them."""
        request = self.kind.request.replace("{count}", str(count))
        content = []
        if self.item.image:
            content.append({"type": "image", "image": self.item.image})
        if self.item.text.strip():
            request = f"{self.item.text.strip()}\n\n{request}"
        content.append({"type": "text", "text": request})
        return [{"role": "user", "content": content}]


class Written(NamedTuple):
    """A query, the item it was written for, and its kind."""

    query: str
    asked: Asked

    @property
    def item(self) -> Item:
        """The query with its instruction, as the rows have it."""
        return Item(instruct(self.asked.kind.instruction, self.query))

    @property
    def answer(self) -> Item:
        """The item that it was written for, as the rows have it."""
        return self.asked.kind.answer(self.asked.item)


class LocalWriter:
    """A VLM on this machine that writes.

    Args:
        model ([`UniMERerankerForCausalLM`]): any VLM, opened as a reranker.
        new_tokens (`int`): the longest answer.
    """

    def __init__(self, model: UniMERerankerForCausalLM, new_tokens: int):
        self.model = model
        self.new_tokens = new_tokens

    def answers(self, chats: Sequence[list[dict]]) -> list[str]:
        """The likeliest answer to each chat."""
        return list(map(self._answer, chats))

    def _answer(self, messages: list[dict]) -> str:
        processor = self.model.processor
        inputs = processor.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        ).to(self.model.device)
        with torch.inference_mode():
            token_ids = self.model.generate(**inputs, max_new_tokens=self.new_tokens, do_sample=False)
        return processor.tokenizer.decode(token_ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


class ServerWriter(ChatServer):
    """A VLM behind an OpenAI-compatible server that writes.

    Args:
        new_tokens (`int`): the longest answer.
        arguments, options: of [`~unime.mining.judging.ChatServer`].
    """

    def __init__(self, *arguments, new_tokens: int, **options):
        super().__init__(*arguments, **options)
        self.new_tokens = new_tokens

    def answers(self, chats: Sequence[list[dict]]) -> list[str]:
        """The likeliest answer to each chat."""
        with ThreadPoolExecutor(self.concurrency) as workers:
            return list(workers.map(self._answer, chats))

    def _answer(self, messages: list[dict]) -> str:
        def text_of(completion: dict) -> str:
            text = completion["choices"][0]["message"]["content"]
            if not isinstance(text, str):
                raise ValueError(f"the answer is {text!r}, not a text")
            return text

        return self.complete(messages, text_of, max_tokens=self.new_tokens, temperature=0)


def queries_in(answer: str) -> list[str]:
    """The queries of an answer: its lines, without numbers and quotation marks.

    Args:
        answer (`str`): of the model.

    Example:

    ```python
    queries_in('1. "a red ring"\\n2. a blue star')  # ["a red ring", "a blue star"]
    ```
    """
    queries = []
    for line in answer.splitlines():
        query = NUMBERED.sub("", line).strip().strip("\"'\u201c\u201d").strip()
        if query:
            queries.append(query)
    return queries


def sort_out(asked: Sequence[Asked], answers: Sequence[str], count: int) -> tuple[list[Written], list[dict]]:
    """What is left of the answers, and the rest with the reasons.

    Args:
        asked (`Sequence[Asked]`), answers (`Sequence[str]`): what was asked, and what was answered.
        count (`int`): how many queries of an answer are taken, the first ones.

    Returns:
        `(list[Written], list[dict])`: queries that are distinct, and `{"query", "kind", "item", "reason"}`.
    """
    candidates = []
    dropped = []
    for one, answer in zip(asked, answers):
        queries = queries_in(answer)
        if not queries:
            dropped.append(_dropped("", one, "the answer holds no query"))
        for query in queries[:count]:
            if len(query) > LONGEST:
                dropped.append(_dropped(query[:LONGEST], one, f"longer than {LONGEST} characters"))
            else:
                candidates.append(Written(query, one))

    # a query that was written for several items finds none of them
    items_of: dict[str, set[Item]] = {}
    for written in candidates:
        items_of.setdefault(_key(written.query), set()).add(written.asked.item)

    kept = []
    seen = set()
    for written in candidates:
        items = items_of[_key(written.query)]
        if len(items) > 1:
            reason = f"written for {len(items)} items, of which it can tell none"
            dropped.append(_dropped(written.query, written.asked, reason))
        elif (_key(written.query), written.asked.kind) in seen:
            dropped.append(_dropped(written.query, written.asked, "written before"))
        else:
            seen.add((_key(written.query), written.asked.kind))
            kept.append(written)
    return kept, dropped


def _key(query: str) -> str:
    """What makes two queries one: their words, whatever case and punctuation."""
    return " ".join(re.findall(r"\w+", query.casefold())) or query


def _dropped(query: str, asked: Asked, reason: str) -> dict:
    """A line of the list of what was left out."""
    return {"query": query, "kind": asked.kind.name, "item": asked.item.image or asked.item.text, "reason": reason}


def write_queries(config: QueriesConfig) -> Path:
    """Writes, judges and keeps queries for a corpus, going on where it was interrupted.

    Args:
        config ([`~unime.mining.settings.QueriesConfig`]): the settings.

    Returns:
        `Path`: of the rows; beside it lie `dropped.jsonl`, and the folders `written/` and `judged-.../` of the jobs.

    Raises:
        ValueError: there is no item, a setting is missing, or no query is kept.

    Example:

    ```python
    write_queries(QueriesConfig(data="photos", out="outputs/queries", model="Qwen/Qwen2.5-VL-7B-Instruct"))
    ```
    """
    for name in ("data", "out", "model"):
        if getattr(config, name) is None:
            raise ValueError(f"`{name}` is missing; set it in the recipe or on the command line.")
    make_folder(Path(config.out))

    queries, dropped = _ask_for_queries(config)
    rows, too_low = _keep_good_ones(config, queries)
    dropped += too_low

    path = Path(config.out) / "queries.jsonl"
    state = processes()
    if state.is_main_process:
        write_json_lines(path, rows)
        write_json_lines(path.with_name("dropped.jsonl"), dropped)
        _say(path, rows, dropped)
    state.wait_for_everyone()
    if not rows:
        raise ValueError(f"no query is judged {config.threshold:g} or more: see {path.with_name('dropped.jsonl')}.")
    return path


def _ask_for_queries(config: QueriesConfig) -> tuple[list[Written], list[dict]]:
    """The first job: distinct queries, and what was left out."""
    asked = _what_to_ask(config)
    settings = {**_model_settings(config.model, config), "count": config.count, "new_tokens": config.new_tokens}
    if config.own_kinds:
        settings["own_kinds"] = config.own_kinds

    write = partial(_write, count=config.count)
    done, failed = _job(config, "written", asked, write, settings, partial(_writer, config))

    answers = []
    for row in done["answer"]:
        answers.append(bytes(row).rstrip(b"\x00").decode("utf-8", "ignore"))
    queries, dropped = sort_out([asked[row] for row in done["row"]], answers, config.count)
    if not queries:
        raise ValueError(f"{config.model} wrote no usable query; its first answer is {answers[0][:200]!r}.")
    return queries, dropped + failed


def _keep_good_ones(config: QueriesConfig, queries: list[Written]) -> tuple[list[dict], list[dict]]:
    """The second job: rows of the queries that the judge scores high enough, and the others."""
    settings = {**_model_settings(config.judge or config.model, config), "options": config.judge_options}

    # after a retry of the first job there are other queries to judge
    name = f"judged-{fingerprint(_keys(config, queries))[:8]}"
    judged, failed = _job(config, name, queries, _judge_rows, settings, partial(_judge, config))

    rows = []
    too_low = []
    for row, log_odds in zip(judged["row"].tolist(), judged["log_odds"].tolist()):
        query = queries[row]
        score = float(probabilities(log_odds))
        if score >= config.threshold:
            rows.append(_row(query, score, config))
        else:
            too_low.append(_dropped(query.query, query.asked, f"judged {score:.3f}, below {config.threshold:g}"))
    return rows, too_low + failed


def _what_to_ask(config: QueriesConfig) -> list[Asked]:
    """Each item with each kind of query that fits it."""
    own = [TaskKind(name, **kind) for name, kind in config.own_kinds.items()]
    kinds = [kind for kind in (*KINDS, *own) if config.kinds is None or kind.name in config.kinds]

    asked = []
    for _, item in read_items([config.data]):
        of = "image" if item.image else "text"
        if not item.is_video:
            asked += [Asked(item, kind) for kind in kinds if kind.of == of]
    if not asked:
        raise ValueError(f"{config.data} holds no picture or text for which queries can be written.")
    return asked


def _job(
    config: QueriesConfig, name: str, rows: Sequence, work, settings: dict, prepare
) -> tuple[dict[str, np.ndarray], list[dict]]:
    """Does one of the two jobs, split over the processes of a launch.

    Returns:
        `(dict, list[dict])`: its results, and the rows that failed as lines of what is left out.

    Raises:
        ValueError: all of them failed.
    """
    state = processes()
    folder = Path(config.out) / name
    run_job(
        folder,
        rows,
        work,
        settings,
        keys=partial(_key_of, root=_root(config)),
        shard_size=config.shard,
        rank=state.process_index,
        world_size=state.num_processes,
        description="Writing" if name == "written" else "Judging",
        prepare=prepare,
        retry_failed=config.retry_failed,
    )
    state.wait_for_everyone()

    results = read_job(folder)
    errors = read_errors(folder)
    if not len(results["row"]):
        raise ValueError(f"{folder}: every row failed; {errors[0]['reason']}")
    failed = [{"query": "", "kind": "", "item": error["key"], "reason": error["reason"]} for error in errors]
    return results, failed


def _key_of(row: Asked | Written, root: Path) -> str:
    """What identifies a row of a job."""
    asked = row if isinstance(row, Asked) else row.asked
    words = [asked.kind.name, item_name(asked.item, root)]
    return "\x01".join(words if row is asked else [*words, row.query])


def _keys(config: QueriesConfig, rows: Sequence) -> list[str]:
    """What identifies the rows of a job."""
    return [_key_of(row, _root(config)) for row in rows]


def _write(asked: Sequence[Asked], writer: LocalWriter | ServerWriter, count: int) -> dict[str, np.ndarray]:
    """The work of the first job: answers as bytes `[B, WIDTH]`, filled up with zeros."""
    answers = np.zeros((len(asked), WIDTH), np.uint8)
    for row, answer in enumerate(writer.answers([one.messages(count) for one in asked])):
        encoded = np.frombuffer(answer.encode("utf-8", "ignore")[:WIDTH], np.uint8)
        answers[row, : len(encoded)] = encoded
    return {"answer": answers}


def _judge_rows(rows: Sequence[Written], judge: Judge) -> dict[str, np.ndarray]:
    """The work of the second job: log-odds `[B]` that each item meets its query."""
    scores = judge.log_odds([(written.item, [written.answer]) for written in rows])
    return {"log_odds": np.concatenate(scores).astype(np.float32)}


def _writer(config: QueriesConfig) -> LocalWriter | ServerWriter:
    if config.server:
        return ServerWriter(config.server, config.model, new_tokens=config.new_tokens, **config.server_options)
    return LocalWriter(_open(config.model, config), config.new_tokens)


def _judge(config: QueriesConfig) -> LocalJudge | ServerJudge:
    name = config.judge or config.model
    if config.server:
        return ServerJudge(config.server, name, **config.judge_options, **config.server_options)
    return LocalJudge(_open(name, config), **config.judge_options)


def _open(name: str, config: QueriesConfig) -> UniMERerankerForCausalLM:
    """A VLM, or a reranker, on this process's device."""
    model = open_checkpoint(name, reranker=True, dtype=config.dtype, trust_remote_code=config.trust_remote_code)
    require_kind(model, name, reranker=True)
    return model.to(processes().device).eval()


def _model_settings(name: str, config: QueriesConfig) -> dict:
    """What identifies a model, as a manifest has it; a server's weights cannot be read."""
    if config.server:
        return {"model": name, "resolution": config.server_options.get("resolution")}
    return {"model": checkpoint_fingerprint(name), "dtype": config.dtype}


def _root(config: QueriesConfig) -> Path:
    """Where the paths of pictures start."""
    path = Path(config.data)
    return path if path.is_dir() else path.parent


def _row(written: Written, score: float, config: QueriesConfig) -> dict:
    """A kept query as a row of pairs."""
    item = written.answer
    positive = {"text": item.text} if item.text else {}
    if item.image:
        positive["image"] = image_name(item, _root(config))
    return {
        "query": written.item.text,
        "positive": positive,
        "positive_score": round(score, 6),
        "dataset": written.asked.kind.name,
    }


def _say(path: Path, rows: list[dict], dropped: list[dict]):
    """Prints what was kept, and of the rest the commonest reasons."""
    counts = Counter(row["dataset"] for row in rows)
    kinds = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(
        f"{path}: {len(rows)} rows ({kinds or 'none'}); {len(dropped)} left out, see {path.parent / 'dropped.jsonl'}"
    )

    # numbers differ from row to row
    reasons = Counter(re.sub(r"[\d.]+", "...", row["reason"]) for row in dropped)
    for reason, count in reasons.most_common(5):
        notice(f"  {count} {reason}")
