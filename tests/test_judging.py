"""The local judge, and the judge behind a server that also fails, stalls and talks rubbish."""

import base64
import io
import json
import math
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from unime.data.schema import Item
from unime.jobs.shards import read_errors, read_job, run_job
from unime.mining.judging import Judge, LocalJudge, ServerJudge, judge_requests
from unime.mining.selection import probabilities, select

CANDIDATES = [Item("a red circle"), Item("a blue star"), Item("a green ring")]


def completion(logprobs: dict) -> dict:
    listed = [{"token": token, "logprob": value} for token, value in logprobs.items()]
    return {"choices": [{"logprobs": {"content": [{"token": "x", "logprob": 0.0, "top_logprobs": listed}]}}]}


class Server:
    """Answers each candidate with the behaviours listed for it, one a request, the last for ever after."""

    def __init__(self, behaviours: dict[str, list]):
        self.behaviours, self.seen, self.headers = behaviours, Counter(), []
        self.bodies, self.release, self.lock = [], threading.Event(), threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                name = body["messages"][0]["content"][-1].get("text", "image")
                with outer.lock:
                    todo = outer.behaviours[name]
                    act = todo[min(outer.seen[name], len(todo) - 1)]
                    outer.seen[name] += 1
                    outer.bodies.append(body)
                    outer.headers.append(dict(self.headers))
                if act == "stall":
                    outer.release.wait(30)
                    return
                status, text = act if isinstance(act, tuple) else (200, act)
                payload = (text if isinstance(text, str) else json.dumps(text)).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(payload)))
                if status == 429:
                    self.send_header("Retry-After", "0.001")
                self.end_headers()
                self.wfile.write(payload)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.release.set()
        self.http.shutdown()
        self.http.server_close()


def judge(server, **options):
    return ServerJudge(server.url, "judge", **{"timeout": 0.5, "attempts": 4, "pause": 0.001, **options})


def sigmoid(gap: float) -> float:
    return 1 / (1 + math.exp(-gap))


def test_scores_are_the_softmax_of_the_two_answers(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    answers = {
        "a red circle": [completion({"Yes": -0.1, " No": -2.5, "yes": -7})],
        "a blue star": [completion({"No": -0.01, "the": -9.0})],
        "a green ring": [completion({"Yes": -0.01, "No": -4.0, " Yes": -0.5})],
    }
    with Server(answers) as server:
        (found,) = judge(server, key_variable="JUDGE_KEY").score([(Item("find it"), CANDIDATES)])
    assert found.dtype == np.float32
    expected = [sigmoid(2.4), sigmoid(-9.0 + 0.01), sigmoid(3.99)]
    assert np.allclose(found, expected, atol=1e-6), "the likelier spelling counts; a missing answer, at most the least"
    assert all(headers["Authorization"] == "Bearer secret" for headers in server.headers)
    body = server.bodies[0]
    assert body["max_tokens"] == 1 and body["logprobs"] is True and body["top_logprobs"] == 20
    texts = [part["text"] for part in body["messages"][0]["content"]]
    assert texts[1:4] == ["Query:", "find it", "Candidate:"] and "respond with 'Yes'" in texts[0]


def test_a_missing_answer_has_at_most_what_the_others_leave():
    with Server({"a red circle": [completion({"Yes": -0.0001})]}) as server:
        (found,) = judge(server).score([(Item("q"), CANDIDATES[:1])])
    assert found[0] > 0.999


def test_images_are_sent_at_the_resolution_asked_for(tmp_path):
    picture(0, (400, 300)).convert("P").save(tmp_path / "q.png")
    with Server({"a red circle": [completion({"A": -1, "B": -1})]}) as server:
        options = {"answer_format": "multiple_choice", "resolution": "pixels:50000"}
        (found,) = judge(server, **options).score([(Item("see", str(tmp_path / "q.png")), CANDIDATES[:1])])
    assert found.tolist() == [0.5]
    part = server.bodies[0]["messages"][0]["content"][2]
    image = Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].removeprefix("data:image/png;base64,"))))
    assert image.mode == "RGB" and image.width * image.height <= 50_000 and image.width > image.height


def test_failures_are_retried_and_refusals_are_not():
    good = completion({"Yes": -1.0, "No": -1.0})
    answers = {
        "a red circle": [(503, "busy"), "no json", "stall", good],
        "a blue star": [(429, "slow down"), completion({"maybe": -1}), {"choices": []}, good],
        "a green ring": [(400, "bad image"), good],
    }
    with Server(answers) as server:
        mine = judge(server)
        with pytest.raises(ValueError, match="refused: status 400: bad image"):
            mine.score([(Item("q"), CANDIDATES)])
        assert server.seen == {"a red circle": 4, "a blue star": 4, "a green ring": 1}
        (found,) = mine.score([(Item("q"), CANDIDATES)])
        assert found.tolist() == [0.5] * 3
        assert server.seen == {"a red circle": 4, "a blue star": 4, "a green ring": 2}, "what is known is not asked"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("rubbish", "JSONDecodeError"),
        (completion({"x": -1}), "neither answer"),
        ((500, "down"), "status 500: down"),
        (completion({"Yes": float("nan"), "No": -1}), "not finite"),
        ([], "TypeError"),
    ],
)
def test_a_server_without_sense_is_given_up_with_the_reason(answer, reason):
    with Server({"a red circle": [answer]}) as server:
        with pytest.raises(ValueError, match=rf"no usable answer in 2 attempts; the last: .*{reason}"):
            judge(server, attempts=2).score([(Item("q"), CANDIDATES[:1])])
        assert server.seen["a red circle"] == 2


def test_a_server_that_is_not_there_is_an_error():
    mine = ServerJudge("http://127.0.0.1:9", "judge", attempts=2, pause=0.001)
    with pytest.raises(ValueError, match="ConnectionError"):
        mine.score([(Item("q"), CANDIDATES[:1])])


def test_a_row_that_the_server_refuses_is_recorded_and_the_others_are_kept(tmp_path):
    good = completion({"Yes": -1.0, "No": -1.0})
    with Server({"a red circle": [good], "a blue star": [(422, "no")], "a green ring": [good]}) as server:
        mine = judge(server)

        def work(part):
            return {"scores": np.stack(mine.score([(Item("q"), [item]) for item in part]))}

        run_job(tmp_path, CANDIDATES, work, {}, keys=lambda item: item.text, shard_size=3)
    found = read_job(tmp_path)
    assert found["row"].tolist() == [0, 2] and found["scores"].tolist() == [[0.5], [0.5]]
    (error,) = read_errors(tmp_path)
    assert error["row"] == 1 and error["key"] == "a blue star" and "status 422" in error["reason"]
    assert server.seen["a blue star"] <= 4, "found by halving, then tried once more"
    assert server.seen["a red circle"] == server.seen["a green ring"] == 1, "what was answered is not asked again"


class Sure(Judge):
    """Likes whatever it sees, some more than others."""

    def log_odds(self, batch):
        return [np.array([20, 25, 18, 23], np.float32)[: len(candidates)] for _, candidates in batch]


def test_scores_of_one_are_told_apart_by_log_odds():
    results = judge_requests([(Item("q"), [Item("positive"), *CANDIDATES])], Sure(), width=4)
    assert results["positive_score"].tolist() == [1.0] and results["scores"][0, :3].tolist() == [1.0, 1.0, 1.0]
    assert results["positive_logit"].tolist() == [20.0] and results["logits"][0, :3].tolist() == [25.0, 18.0, 23.0]
    assert probabilities(np.array([-900.0, 900.0])).tolist() == [0.0, 1.0]
    assert np.isnan(results["scores"][0, 3]) and np.isnan(results["logits"][0, 3])

    # what `unime mine select` makes of them
    positive, *scores = probabilities(np.array([20, 25, 18, 23]))
    assert [positive, *scores] == [sigmoid(logit) for logit in (20, 25, 18, 23)]
    places, values = select(positive, scores, num_negatives=1, margin=0)
    assert places == [1] and values == [sigmoid(18)], "the judge prefers the others to the positive"
    places, _ = select(positive, [scores[0], scores[2]], num_negatives=2, margin=0, fallback="judge_lowest")
    assert places == [1, 0]


def test_the_local_judge_gives_the_rerankers_scores_in_any_order(reranker, tmp_path):
    picture(1).save(tmp_path / "a.png")
    picture(2).save(tmp_path / "b.png")
    one = (Item("which?", str(tmp_path / "a.png")), [Item("red"), Item("", str(tmp_path / "b.png")), Item("blue")])
    two = (Item("q"), [Item("", str(tmp_path / "a.png")), Item("", str(tmp_path / "b.png"))])
    mine = LocalJudge(reranker, batch_tokens=512)
    first, second = mine.score([one, two])
    whole = reranker.score(one[0].as_input(), [item.as_input() for item in one[1]], show_progress=False)
    assert np.allclose(first, whole.numpy(), atol=1e-5) and first.dtype == np.float32 and len(second) == 2
    mine.score([two])
    again = mine.score([one, two])
    assert (again[0] == first).all() and (again[1] == second).all(), "bytes do not depend on what was judged before"

    # an instruction of one's own is the judge's as it is the reranker's
    instruction = "Find the colour that is named."
    (instructed,) = LocalJudge(reranker, instruction=instruction).log_odds([one])
    candidates = [item.as_input() for item in one[1]]
    expected = reranker.score(one[0].as_input(), candidates, output="logit", instruction=instruction)
    assert np.allclose(instructed, expected.numpy(), atol=1e-5) and not np.allclose(
        instructed, mine.log_odds([one])[0]
    )
