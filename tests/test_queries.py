"""`unime mine queries`: an MLLM writes queries for a corpus, here or on a server, and a judge keeps the good ones."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from conftest import picture
from safetensors.torch import load_file

from unime import UniMERerankerForCausalLM
from unime.commands.mine import main
from unime.data.readers import read_rows
from unime.data.schema import Item
from unime.examples import queries
from unime.images_unime import open_image
from unime.mining.queries import KINDS, Asked, LocalWriter, queries_in, sort_out
from unime.mining.settings import QUERY_KINDS, QueriesConfig


class Server:
    """Writes and judges: answers depend on the text of the corpus alone, so that they can be told beforehand."""

    def __init__(self):
        self.requests = []
        self.fails_after = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append(body)
                down = outer.fails_after is not None and len(outer.requests) > outer.fails_after
                payload = json.dumps(outer.answer(body)).encode()
                self.send_response(400 if down else 200)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def answer(self, body: dict) -> dict:
        if "logprobs" not in body:
            name = body["messages"][0]["content"][-1]["text"].split()[0]
            return {"choices": [{"message": {"content": f'1. "About {name}"\n2. about {name}!\n- the same\n4. more'}}]}

        # whatever mentions a wrong one is judged so
        every = json.dumps(body["messages"])
        yes = -3.0 if "About wrong" in every else -0.1
        top = [{"token": "Yes", "logprob": yes}, {"token": "No", "logprob": -0.2 if yes < -1 else -2.5}]
        return {"choices": [{"logprobs": {"content": [{"token": "Yes", "logprob": yes, "top_logprobs": top}]}}]}

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.http.shutdown()
        self.http.server_close()


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_server_writes_and_judges_and_a_failed_run_goes_on(tmp_path, capsys):
    (tmp_path / "corpus.txt").write_text("rings are round\nwrong texts are wrong\nstars are not round\n")
    out = tmp_path / "out"
    options = ["--data", str(tmp_path / "corpus.txt"), "--out", str(out), "--model", "vlm", "--kinds", "passage"]
    with Server() as server:
        options += ["--server", server.url, "--shard", "1"]
        options += ["--server_options", '{"attempts": 1, "pause": 0.001, "concurrency": 1}']

        # the server refuses from the second request on
        server.fails_after = 1
        with pytest.raises(SystemExit, match="refused"):
            main(["queries", *options])
        server.fails_after = None
        main(["queries", *options, "--retry_failed"])
        written = [body for body in server.requests if "logprobs" not in body]
        asked = [body["messages"][0]["content"][-1]["text"].split()[0] for body in written]
        assert asked.count("rings") == 1, "what was answered is not asked again"
        count = len(server.requests)
        main(["queries", *options])
        assert len(server.requests) == count

    rows = read_rows(out / "queries.jsonl", tmp_path)
    passage = next(kind for kind in KINDS if kind.name == "passage")
    assert [row["query"]["text"] for row in rows] == [
        f"{passage.instruction}\nAbout rings",
        f"{passage.instruction}\nAbout stars",
    ]
    assert [row["positive"]["text"] for row in rows] == ["rings are round", "stars are not round"]
    assert all(row["positive_score"] > 0.5 and row["dataset"] == "passage" for row in rows)
    reasons = {(entry["query"], entry["reason"].split(",")[0]) for entry in lines(out / "dropped.jsonl")}
    assert ("About wrong", "judged 0.057") in reasons and ("about rings!", "written before") in reasons
    assert ("the same", "written for 3 items") in reasons
    assert "2 rows (2 passage)" in capsys.readouterr().out


def test_pictures_are_sent_and_named_below_their_folder(tmp_path):
    (tmp_path / "photos" / "more").mkdir(parents=True)
    picture(0).save(tmp_path / "photos" / "more" / "a.png")
    with Server() as server:
        options = ["--data", str(tmp_path / "photos"), "--out", str(tmp_path / "out"), "--model", "vlm"]
        options += ["--server_options", '{"attempts": 1}']
        main(["queries", *options, "--server", server.url, "--count", "1", "--threshold", "0"])
        (caption, question) = (body for body in server.requests if "logprobs" not in body)
    for body in (caption, question):
        assert [piece["type"] for piece in body["messages"][0]["content"]] == ["image_url", "text"]
    rows = lines(tmp_path / "out" / "queries.jsonl")
    assert rows and all(row["positive"] == {"image": "more/a.png"} for row in rows)
    assert {row["dataset"] for row in rows} <= {"caption", "question"}


def test_a_vlm_here_writes_what_it_generates(backbone):
    model = UniMERerankerForCausalLM.from_backbone(backbone).eval()
    asked = [Asked(Item(image=picture(1)), KINDS[0]), Asked(Item("a text"), KINDS[2])]
    chats = [one.messages(2) for one in asked]
    assert "Write 2 " in chats[0][0]["content"][1]["text"] and chats[1][0]["content"][0]["text"].startswith("a text\n")
    answers = LocalWriter(model, new_tokens=4).answers(chats)

    inputs = model.processor.apply_chat_template(
        chats[0], tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    with torch.inference_mode():
        expected = model.vlm.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert answers[0] == model.processor.tokenizer.decode(expected, skip_special_tokens=True)
    assert len(answers) == 2


def test_answers_are_sorted_out():
    assert queries_in('1. "a red ring"\n\n (2) a blue star\n\u2022 \u201cthree\u201d\n4) 5 rings') == [
        "a red ring",
        "a blue star",
        "three",
        "5 rings",
    ]
    a, b = Asked(Item("a"), KINDS[2]), Asked(Item("b"), KINDS[2])
    other = Asked(Item("a"), KINDS[3])
    kept, dropped = sort_out([a, b, other], ["one\nTwo?\nthree\nfour", "", "two\n" + "x" * 400], count=3)
    assert [(written.query, written.asked) for written in kept] == [
        ("one", a),
        ("Two?", a),
        ("three", a),
        ("two", other),  # of another kind it is another query
    ]
    assert [entry["reason"] for entry in dropped] == ["the answer holds no query", "longer than 300 characters"]
    kept, dropped = sort_out([a, b], ["same", "Same."], count=3)
    assert kept == [] and all("written for 2 items" in entry["reason"] for entry in dropped) and len(dropped) == 2


def test_mistakes_are_one_line(tmp_path, capsys):
    assert tuple(kind.name for kind in KINDS) == QUERY_KINDS
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(SystemExit, match="`model` is missing"):
        main(["queries", "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="holds no picture or text"):
        main(["queries", "--data", str(tmp_path / "empty.txt"), "--out", str(tmp_path / "out"), "--model", "m"])
    with pytest.raises(SystemExit) as end:
        main(["queries", "--kinds", "poem"])
    assert end.value.code == 2 and "`kinds` has poem; there are caption, question" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, kind, message",
    [
        (
            "caption",
            {"of": "image", "instruction": "Find it.", "request": "Name it."},
            "caption is the name of one that",
        ),
        ("own", {"of": "image", "request": "Name it."}, "own must have `of`, `instruction` and `request`"),
        ("own", {"of": "video", "instruction": "Find it.", "request": "Name it."}, "own is of 'video'; it must be"),
        ("own", {"of": "text", "instruction": "Find it.", "request": " "}, "own has no text as its `request`"),
        ("own", "Name it.", "own must have"),
    ],
)
def test_kinds_of_ones_own_are_checked(name, kind, message):
    with pytest.raises(ValueError, match=f"`own_kinds`: {message}"):
        QueriesConfig(own_kinds=json.dumps({name: kind}))


class Teller(Server):
    """Writes the true caption of every picture but the first, of which it says something else that it judges false."""

    def __init__(self, captions: dict[bytes, str]):
        super().__init__()
        self.captions = captions
        self.first = next(iter(captions))

    def answer(self, body: dict) -> dict:
        if "logprobs" in body:
            return super().answer(body)
        uri, request = body["messages"][0]["content"]
        assert request["text"] == queries.DESCRIBE
        pixels = open_image(uri["image_url"]["url"]).tobytes()
        text = "About wrong" if pixels == self.first else self.captions[pixels]
        return {"choices": [{"message": {"content": text}}]}


def test_queries_that_are_true_train_what_true_ones_do(tmp_path, world, backbone):
    truth = queries.true_rows(world, 12)
    captions = {}
    for row in truth:
        pixels = open_image(world / row["positive"]["image"]).tobytes()
        captions[pixels] = row["query"].removeprefix(queries.FIND_IMAGE).strip()

    small = {"max_steps": 2, "warmup_steps": 0, "per_device_train_batch_size": 4, "save_steps": 2}
    with Teller(captions) as server:
        options = {"server": server.url, "server_options": {"attempts": 1}}
        table = queries.compare(world, backbone, backbone, tmp_path, 12, 1, small, **options)
        written = lines(tmp_path / "written" / "queries.jsonl")
        assert [row["positive"] for row in written] == [row["positive"] for row in truth[1:]]
        assert queries.share_of_true(written, truth) == 1.0
        assert table.keys() == {"nothing", "true queries", "written queries"}

        # the same rows train the same
        server.first = None
        same = queries.compare(world, backbone, backbone, tmp_path / "same", 12, 1, small, **options)
    states = [load_file(tmp_path / "same" / name / "model.safetensors") for name in ("true-0", "written-0")]
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())
    assert same["written queries"] == same["true queries"] == table["true queries"]
