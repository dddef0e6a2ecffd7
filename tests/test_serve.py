"""`unime serve`: the answers of `encode` and `score` over HTTP, to the clients that people have, within limits."""

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import requests
import torch
from conftest import picture
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from unime import UniMEModel, UniMERerankerForCausalLM
from unime.commands.serve import main as serve
from unime.commands.serve_check import main as serve_check
from unime.serving.app import Limits, Served, Server
from unime.serving.engines import EmbeddingEngine, RerankingEngine
from unime.serving.errors import Refusal
from unime.serving.pictures import Fetcher, is_public
from unime.serving.queue import QueueFull, TokenQueue


@contextmanager
def running(server: Server):
    """The address of a server that runs in a thread."""
    import uvicorn

    uvicorn_server = uvicorn.Server(uvicorn.Config(server.app, port=0, log_level="critical"))
    started = threading.Event()
    startup = uvicorn_server.startup

    async def announced(*arguments, **options):
        await startup(*arguments, **options)
        started.set()

    uvicorn_server.startup = announced
    thread = threading.Thread(target=uvicorn_server.run)
    thread.start()
    assert started.wait(30)
    try:
        yield f"http://127.0.0.1:{uvicorn_server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        uvicorn_server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def models(backbone):
    return UniMEModel.from_backbone(backbone), UniMERerankerForCausalLM.from_backbone(backbone)


@pytest.fixture(scope="module")
def url(models):
    embedder, reranker = models
    served = Served("mine", EmbeddingEngine(embedder, 8192)), Served("judge", RerankingEngine(reranker, 8192))
    limits = Limits(items=40, body_bytes=2**20, pixels=200_000, waiting_tokens=20_000)
    with running(Server(*served, limits)) as address:
        yield address


def content(image, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def uri(image, kind="PNG", **options) -> str:
    return f"data:image/{kind.lower()};base64," + base64.b64encode(content(image, kind, **options)).decode()


def vectors(response) -> torch.Tensor:
    assert response.status_code == 200, response.text
    entries = response.json()["data"]
    assert [entry["index"] for entry in entries] == list(range(len(entries)))
    return torch.tensor([entry["embedding"] for entry in entries])


def embed(url, **body):
    return requests.post(f"{url}/v1/embeddings", json=body, timeout=60)


# answers
def test_requests_at_the_same_time_get_the_answers_of_encode(models, url):
    embedder, _ = models
    texts = [f"a red circle {'and a blue star ' * (i % 5)}{i}" for i in range(12)]
    items = [*texts, *({"image": picture(i, (40 + 9 * i, 60))} for i in range(6))]
    items += [{"text": "at night", "image": picture(i, (333, 217))} for i in range(2)]
    expected = embedder.encode(items)

    def sent(item):
        return item if isinstance(item, str) else {**item, "image": uri(item["image"])}

    sizes = [1, 2, 3, 1, 5, 4, 4]
    bodies, start = [], 0
    for size in sizes:
        bodies.append([sent(item) for item in items[start : start + size]])
        start += size
    assert start == len(items)
    with ThreadPoolExecutor(len(bodies)) as pool:
        answers = list(pool.map(lambda body: vectors(embed(url, model="mine", input=body)), bodies))
    assert (torch.cat(answers) - expected).abs().max() < 1e-5


def test_every_way_of_saying_it(models, url):
    embedder, _ = models
    image = picture(3, (80, 60))
    both = {"text": "at night", "image": image}
    (plain,) = vectors(embed(url, input="a ring"))
    assert (plain - embedder.encode("a ring")).abs().max() < 1e-5

    short = vectors(embed(url, input=["a ring"], dimensions=8))
    assert (short - embedder.encode(["a ring"], truncate_dim=8)).abs().max() < 1e-5
    told = vectors(embed(url, input="a ring", instruction="Find it.", input_type="search_document"))
    expected = embedder.encode(["a ring"], instruction="Find it.", role="document")
    assert (told - expected).abs().max() < 1e-5 and (told - plain).abs().max() > 1e-3

    coded = embed(url, input="a ring", encoding_format="base64").json()["data"][0]["embedding"]
    assert np.array_equal(np.frombuffer(base64.b64decode(coded), "<f4"), plain.numpy())

    parts = [{"type": "image_url", "image_url": {"url": uri(image)}}, {"type": "text", "text": "at night"}]
    (chat,) = vectors(embed(url, messages=[{"role": "user", "content": parts}]))
    assert (chat - embedder.encode(both)).abs().max() < 1e-5
    several = vectors(embed(url, input={"image": [uri(image), uri(picture(4))]}))
    assert (several[0] - embedder.encode({"image": [image, picture(4)]})).abs().max() < 1e-5

    usage = embed(url, input=["a ring", "a ring"]).json()["usage"]
    (entry,) = embedder.processor.prepare(["a ring"])
    assert usage == {"prompt_tokens": 2 * entry.length, "total_tokens": 2 * entry.length}


def test_pictures_stand_upright(models, url):
    turned = picture(5, (80, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    sent = vectors(embed(url, input=[{"image": uri(turned, "PNG", exif=exif)}]))
    assert (sent - models[0].encode([turned.rotate(-90, expand=True)])).abs().max() < 1e-5
    assert (sent - models[0].encode([turned])).abs().max() > 1e-4


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_scores_are_those_of_score(models, url, path):
    image = picture(7)
    documents = ["a ring", {"image": image}, {"text": "a star", "image": image}, "a blue star"]
    parts = [{"type": "image_url", "image_url": {"url": uri(image)}}]
    sent = ["a ring", {"content": parts}, {"text": "a star", "image": uri(image)}, {"text": "a blue star"}]
    body = {"query": "a red circle", "documents": sent, "instruction": "Find it."}
    answer = requests.post(url + path, json=body, timeout=60).json()

    expected = models[1].score("a red circle", documents, instruction="Find it.")
    scores = {entry["index"]: entry["relevance_score"] for entry in answer["results"]}
    assert [scores[number] for number in range(4)] == pytest.approx(expected.tolist(), abs=1e-5)
    assert list(scores.values()) == sorted(scores.values(), reverse=True)

    shorter = requests.post(url + path, json={**body, "top_n": 2, "return_documents": True}, timeout=60).json()
    best = [entry["index"] for entry in answer["results"][:2]]
    assert [entry["index"] for entry in shorter["results"]] == best
    shown = [{"text": "a ring"}, *sent[1:]]
    assert [entry["document"] for entry in shorter["results"]] == [shown[index] for index in best]


def test_official_clients(models, url):
    from langchain_openai import OpenAIEmbeddings
    from llama_index.embeddings.openai import OpenAIEmbedding
    from openai import NotFoundError, OpenAI

    texts = ["a red circle", "a blue star"]
    expected = models[0].encode(texts)
    client = OpenAI(base_url=f"{url}/v1", api_key="any")
    answer = client.embeddings.create(model="mine", input=texts, dimensions=8)
    short = torch.tensor([entry.embedding for entry in answer.data])
    assert (short - models[0].encode(texts, truncate_dim=8)).abs().max() < 1e-5
    assert [model.id for model in client.models.list()] == ["mine", "judge"]
    with pytest.raises(NotFoundError, match="the model 'other' is not served here"):
        client.embeddings.create(model="other", input=texts)

    chain = OpenAIEmbeddings(model="mine", base_url=f"{url}/v1", api_key="any", check_embedding_ctx_length=False)
    assert (torch.tensor(chain.embed_documents(texts)) - expected).abs().max() < 1e-5
    assert (torch.tensor(chain.embed_query(texts[1])) - expected[1]).abs().max() < 1e-5
    index = OpenAIEmbedding(model_name="mine", api_base=f"{url}/v1", api_key="any")
    assert (torch.tensor(index.get_text_embedding_batch(texts)) - expected).abs().max() < 1e-5
    assert (torch.tensor(index.get_query_embedding(texts[0])) - expected[0]).abs().max() < 1e-5


# refusals
BOMB = uri(picture(0, (8, 8)).resize((500, 500)))
THIRD = uri(picture(0, (8, 8)).resize((300, 300)))


@pytest.mark.parametrize(
    "body, status, message",
    [
        ({}, 400, "send either `input` or `messages`"),
        ({"input": []}, 400, "`input` is empty"),
        ({"input": "  "}, 400, "input 0 is empty"),
        ({"input": ["a", {"text": " "}]}, 400, "input 1 has neither text nor image"),
        ({"input": ["a", 3]}, 400, "input 1 is a int"),
        ({"input": {"texts": "a"}}, 400, "unknown keys"),
        ({"input": [[1, 2]]}, 400, "check_embedding_ctx_length=False"),
        ({"input": ["a"] * 41}, 413, "send at most 40"),
        ({"input": "a", "dimensions": 97}, 400, "`dimensions` must be between 1 and 96"),
        ({"input": "a", "encoding_format": "hex"}, 400, "`encoding_format`"),
        ({"input": "a", "normalized": False}, 400, "`normalized` is not known here"),
        ({"input": {"image": "/etc/hostname"}}, 400, "'/etc/hostname' is not fetched"),
        ({"input": {"image": "file:///etc/hostname"}}, 400, "is not fetched"),
        ({"input": {"image": "http://127.0.0.1/a.png"}}, 400, "is not fetched"),
        ({"input": {"image": "data:image/png;base64,%%"}}, 400, "is not in base64"),
        ({"input": {"image": "data:image/png;base64,AAAA"}}, 400, "cannot be read"),
        ({"input": {"image": uri(picture(1))[:-400]}}, 400, "cannot be read"),
        ({"input": {"image": BOMB}}, 413, "more than 200,000 pixels"),
        ({"input": [{"image": THIRD}, {"image": THIRD}, {"image": THIRD}]}, 413, "input 2: the images of"),
        ({"messages": [{"role": "system", "content": "a"}]}, 400, "one message of the role `user`"),
        ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, 400, "a part must be"),
        ({"input": "a" * 2**20}, 413, "more than 1,048,576 bytes"),
    ],
)
def test_what_is_refused(url, body, status, message):
    answer = embed(url, **body)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["error"]["message"]


def test_what_is_no_request(url):
    answer = requests.post(f"{url}/v1/embeddings", data=b"{", timeout=60)
    assert answer.status_code == 400 and "the body: Invalid JSON" in answer.json()["error"]["message"]
    for body, message in (({"query": "a"}, "`documents`"), ({"query": "a", "documents": []}, "`documents` is empty")):
        answer = requests.post(f"{url}/rerank", json=body, timeout=60)
        assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_keys(models):
    server = Server(Served("mine", EmbeddingEngine(models[0], 8192)), keys=["first", "second"])
    with running(server) as url:
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "Basic second"}):
            for path in ("/v1/models", "/metrics"):
                assert requests.get(url + path, headers=headers, timeout=60).status_code == 401
            answer = requests.post(f"{url}/v1/embeddings", json={"input": "a"}, headers=headers, timeout=60)
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"

        key = {"Authorization": "Bearer second"}
        assert requests.get(f"{url}/v1/models", headers=key, timeout=60).status_code == 200
        assert requests.post(f"{url}/v1/embeddings", json={"input": "a"}, headers=key, timeout=60).status_code == 200
        assert requests.get(f"{url}/health", timeout=60).json() == {"status": "ok"}
        assert requests.post(f"{url}/rerank", json={}, timeout=60).status_code == 404


# pictures at addresses
@pytest.mark.parametrize(
    "address, expected",
    [("8.8.8.8", True), ("2606:4700::1111", True)]
    + [(address, False) for address in ("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254")]
    + [(address, False) for address in ("100.64.0.1", "0.0.0.0", "224.0.0.1", "::1", "fd00::1", "fe80::1")]
    + [(address, False) for address in ("::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "ff02::1")],
)
def test_private_addresses_are_told_apart(address, expected):
    assert is_public(address) == expected


class _Pictures(BaseHTTPRequestHandler):
    def log_message(self, *args):
        """Keeps the test output clean."""

    def do_GET(self):
        redirects = self.path.startswith("/moved")
        self.send_response(302 if redirects else 200)
        self.send_header("Location", "/a.png")
        self.end_headers()
        self.wfile.write(content(picture(2)))


def test_pictures_are_fetched_from_allowed_hosts_only(models):
    with ThreadingHTTPServer(("127.0.0.1", 0), _Pictures) as host:
        threading.Thread(target=host.serve_forever, daemon=True).start()
        name = f"localhost:{host.server_port}"
        fetch = Fetcher([name], most_bytes=20_000, may_connect=lambda address: address in ("127.0.0.1", "::1"))
        with running(Server(Served("mine", EmbeddingEngine(models[0], 8192)), fetch=fetch)) as url:
            sent = vectors(embed(url, input=[{"image": f"http://{name}/a.png?size=1"}]))
        assert (sent - models[0].encode([picture(2)])).abs().max() < 1e-5

        for address, message in (
            (f"http://{name}/moved", "the server answers 302"),
            (f"http://127.0.0.1:{host.server_port}/a.png", "only fetches from localhost"),
            (f"http://{name}@example.com/a.png", "only fetches from localhost"),
            (f"ftp://{name}/a.png", "only fetches from localhost"),
            (f"https://{name}/a.png", "cannot be fetched"),
            ("http://[::1", "is not an address"),
        ):
            with pytest.raises(Refusal, match=re.escape(message)):
                fetch(address)
        with pytest.raises(Refusal, match="more than 99 bytes"):
            Fetcher([name], most_bytes=99, may_connect=lambda address: True)(f"http://{name}/a.png")
        with pytest.raises(Refusal, match="its address is not public"):
            Fetcher([name])(f"http://{name}/a.png")
        host.shutdown()


# the queue
class Steps:
    """An engine whose batches wait until they are let through, one permission each."""

    def __init__(self, batch_tokens=10):
        self.batch_tokens = batch_tokens
        self.batches = []
        self.arrived = threading.Semaphore(0)
        self.permissions = threading.Semaphore(0)

    def run(self, pieces):
        self.batches.append(list(pieces))
        self.arrived.release()
        assert self.permissions.acquire(timeout=30)
        if "broken" in pieces:
            raise ValueError("broken")
        return [f"did {piece}" for piece in pieces]


@pytest.fixture
def steps():
    """A queue of 30 tokens whose engine is busy with a first piece."""
    engine, queue = Steps(), TokenQueue(waiting_tokens=30)
    first = queue.submit(engine, ["first"], [1])
    assert engine.arrived.acquire(timeout=30)
    yield engine, queue
    engine.permissions.release(100)
    assert first.result(30) == ["did first"]
    queue.close()
    assert not queue.is_alive


def test_batches_hold_so_many_tokens_and_a_piece_of_each_request_in_turn(steps):
    engine, queue = steps
    large = queue.submit(engine, list("abcde"), [4, 4, 4, 4, 12])
    small = queue.submit(engine, ["x"], [2])
    assert queue.waiting_tokens == 30
    engine.permissions.release(10)
    assert small.result(30) == ["did x"]
    assert large.result(30) == [f"did {piece}" for piece in "abcde"]
    assert engine.batches == [["first"], ["a", "b", "x"], ["c", "d"], ["e"]]


def test_a_full_queue_refuses_and_a_cancelled_request_makes_room(steps):
    engine, queue = steps
    waiting = queue.submit(engine, ["a"], [25])
    with pytest.raises(QueueFull) as error:
        queue.submit(engine, ["b"], [6])
    assert error.value.seconds >= 1
    assert waiting.cancel() and queue.waiting_tokens == 0
    other = queue.submit(engine, ["c"], [40])  # larger than the queue, but nothing waits
    engine.permissions.release(10)
    assert other.result(30) == ["did c"]
    assert engine.batches == [["first"], ["c"]]
    with pytest.raises(CancelledError):
        waiting.result()


def test_one_request_that_fails_spoils_no_other(steps):
    engine, queue = steps
    futures = [queue.submit(engine, [piece], [1]) for piece in ("a", "broken", "b")]
    engine.permissions.release(10)
    assert futures[0].result(30) == ["did a"] and futures[2].result(30) == ["did b"]
    with pytest.raises(ValueError, match="broken"):
        futures[1].result(30)
    assert engine.batches[1:] == [["a", "broken", "b"], ["a"], ["broken"], ["b"]]


def test_engines_take_turns_and_closing_ends_what_waits():
    first, second, queue = Steps(1), Steps(1), TokenQueue(waiting_tokens=100)
    a = queue.submit(first, list("abc"), [1, 1, 1])
    assert first.arrived.acquire(timeout=30)
    b = queue.submit(second, list("xy"), [1, 1])
    first.permissions.release(2)
    assert second.arrived.acquire(timeout=30)  # before "c"
    assert first.batches == [["a"], ["b"]] and second.batches == [["x"]]
    second.permissions.release()
    assert first.arrived.acquire(timeout=30) and first.arrived.acquire(timeout=30)  # "c", before "y"
    assert first.batches[2:] == [["c"]] and second.batches == [["x"]]

    closing = threading.Thread(target=queue.close)
    closing.start()
    first.permissions.release(10)
    second.permissions.release(10)
    closing.join(30)
    assert not queue.is_alive and a.done() and b.done()
    for future in (a, b):
        error = future.exception()
        assert error is None or "stopping" in str(error)


class Stopped(EmbeddingEngine):
    """An embedder that stands still."""

    def __init__(self, model):
        super().__init__(model, 8192)
        self.arrived = threading.Event()
        self.go = threading.Event()

    def run(self, pieces):
        self.arrived.set()
        assert self.go.wait(60)
        return super().run(pieces)


def test_more_than_the_queue_holds_is_told_to_come_back(models):
    engine = Stopped(models[0])
    server = Server(Served("mine", engine), limits=Limits(waiting_tokens=60, seconds=30))
    (entry,) = engine.model.processor.prepare(["a ring"])
    assert 15 < entry.length < 30, "two of them wait, a third does not"
    with running(server) as url, ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: _released(url, engine, server), range(12)))
        refused = [answer for answer in answers if answer.status_code == 429]
        assert refused and len(refused) < 12
        for answer in refused:
            assert int(answer.headers["Retry-After"]) >= 1
            assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        expected = models[0].encode(["a ring"])
        for answer in answers:
            if answer.status_code != 429:
                assert (vectors(answer) - expected).abs().max() < 1e-5
        too_long = embed(url, input=["a ring"] * 3)
        assert too_long.status_code == 413 and "send at most 60 at a time" in too_long.text


def _released(url, engine, server):
    """An answer; the first refusal lets the engine go on, so that the others are answered."""
    answer = embed(url, input="a ring")
    if answer.status_code == 429:
        engine.go.set()
    return answer


def test_time_is_limited(models):
    engine = Stopped(models[0])
    with running(Server(Served("mine", engine), limits=Limits(seconds=0.5))) as url:
        late = embed(url, input="a ring")
        assert late.status_code == 504 and "longer than 0.5 seconds" in late.text
        engine.go.set()
        assert embed(url, input="a ring").status_code == 200


def test_the_number_of_requests_is_limited(models):
    engine = Stopped(models[0])
    server = Server(Served("mine", engine), limits=Limits(open_requests=1))
    with running(server) as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(embed, url, input="a ring")
        assert engine.arrived.wait(30)
        refused = embed(url, input="a ring")
        assert refused.status_code == 429 and refused.headers["Retry-After"] == "1"
        engine.go.set()
        assert first.result(30).status_code == 200 and embed(url, input="a ring").status_code == 200


class Broken(EmbeddingEngine):
    def run(self, pieces):
        raise RuntimeError("secret path /home")


def test_a_failure_of_the_model_is_an_answer_that_tells_nothing(models, caplog):
    with running(Server(Served("mine", Broken(models[0], 8192)))) as url:
        answer = embed(url, input="a ring")
        assert answer.status_code == 500 and "secret" not in answer.text
        assert answer.json()["error"]["type"] == "server_error"
        assert requests.get(f"{url}/health", timeout=60).status_code == 200


def test_metrics_count_what_was_done(models):
    with running(Server(Served("mine", EmbeddingEngine(models[0], 8192)))) as url:
        embed(url, input=["a ring", {"image": uri(picture(1))}])
        embed(url, input=[])
        text = requests.get(f"{url}/metrics", timeout=60).text
    figures = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            figures[(sample.name, *sample.labels.values())] = sample.value
    assert figures["unime_requests_total", "/v1/embeddings", "200"] == 1
    assert figures["unime_requests_total", "/v1/embeddings", "400"] == 1
    assert figures["unime_items_total", "embedding"] == 2 and figures["unime_images_total", "embedding"] == 1
    assert figures["unime_batch_tokens_count",] >= 1 and figures["unime_model_seconds_total",] > 0
    assert figures["unime_waiting_tokens",] == 0


# the command
def test_the_command_serves_until_it_is_told_to_stop(models, tmp_path, capsys):
    for model, name in zip(models, ("mine", "judge")):
        model.save_pretrained(tmp_path / name)
    command = [sys.executable, "-m", "unime.cli", "serve", str(tmp_path / "mine"), "--port", "0"]
    command += ["--reranker", str(tmp_path / "judge")]
    environment = {**os.environ, "UNIME_API_KEYS": "one, two"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd="/", env=environment)
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"running on (http://\S+)", line):
                break
        else:
            raise AssertionError("".join(lines))

        os.environ["OPENAI_API_KEY"] = "two"
        for name in ("mine", "judge"):
            options = ["--model", str(tmp_path / name), "--served-model", name, "--json", "--tolerance", "1e-5"]
            serve_check([found[1], *options])
            assert json.loads(capsys.readouterr().out)["same"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.stderr.close()
        process.wait()


def test_the_command_refuses_what_it_cannot_serve(models, tmp_path):
    models[1].save_pretrained(tmp_path / "judge")
    with pytest.raises(SystemExit, match="is a reranker; an embedder"):
        serve([str(tmp_path / "judge"), "--reranker", str(tmp_path / "judge")])
    with pytest.raises(SystemExit, match="unime serve: "):
        serve([str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as error:
        serve([str(tmp_path / "judge"), "--max-items", "0"])
    assert error.value.code == 2
