"""`unime serve-check` against servers in this process that read a checkpoint rightly, or wrongly in a known way."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from conftest import picture
from PIL import Image, ImageOps
from transformers import AutoModel, AutoModelForImageTextToText, AutoTokenizer, LlavaNextProcessor

from unime import UniMEModel, UniMERerankerForCausalLM
from unime.checkpoints.conversion import export
from unime.commands.serve_check import main
from unime.commands.server_readings import Readings


class FakeServer(ThreadingHTTPServer):
    """`with FakeServer(answers) as url:`; `answers[path]` maps a request's body to the answer's."""

    daemon_threads = True

    def __init__(self, answers):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = {"/v1/models": lambda _: {"data": [{"id": "served"}]}, **answers}

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server_port}"

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        """Keeps the test output clean."""

    def do_GET(self):
        self.answer({})

    def do_POST(self):
        self.answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def answer(self, body):
        known = self.server.answers.get(self.path)
        content = json.dumps(known(body) if known else {"error": "no such path"}).encode()
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(content)


def opened(parts, prepare=ImageOps.exif_transpose):
    """Messages as transformers takes them, and their images."""
    images, turn = [], []
    for part in parts:
        if part["type"] == "image_url":
            data = part["image_url"]["url"].partition("base64,")[2]
            image = Image.open(io.BytesIO(base64.b64decode(data)))
            images.append(prepare(image).convert("RGB"))
        turn.append({"type": "image"} if part["type"] == "image_url" else part)
    return turn, images


class Stock:
    """An exported LLaVA-NeXT in transformers' own classes, read with a template, a pooling and special tokens."""

    def __init__(
        self,
        folder,
        template="query.jinja",
        pooling="last",
        special=False,
        scale=1.0,
        generate=True,
        prepare=ImageOps.exif_transpose,
    ):
        self.processor = LlavaNextProcessor.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval()
        self.pooling, self.special, self.scale, self.generate = pooling, special, scale, generate
        self.prepare = prepare
        self.template = (folder / "templates" / template).read_text() if template else self.processor.chat_template

    def embeddings(self, body):
        if "input" in body:
            prompt, images, special = body["input"], [], True
        else:
            turn, images = opened(body["messages"][0]["content"], self.prepare)
            prompt = self.processor.tokenizer.apply_chat_template(
                [{"role": "user", "content": turn}],
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=self.generate,
            )
            special = self.special
        batch = self.processor(images=images or None, text=[prompt], return_tensors="pt", add_special_tokens=special)
        with torch.inference_mode():
            hidden = self.model(**batch).last_hidden_state[0]
        vector = {"last": hidden[-1], "mean": hidden.mean(0), "first": hidden[0]}[self.pooling]
        vector = self.scale * torch.nn.functional.normalize(vector, dim=0)
        return {"data": [{"embedding": vector.tolist()}]}


@pytest.fixture(scope="module")
def llava(tiny, tmp_path_factory):
    """A UniME model whose tokenizer begins texts with a token, and its export."""
    path, folder = tiny("llava_next")[0], tmp_path_factory.mktemp("served")
    UniMEModel.from_backbone(path).save_pretrained(folder / "unime")
    export(folder / "unime", folder / "stock", head=path)
    return folder


def check(capsys, answers, model, *options) -> tuple[dict, int]:
    with FakeServer(answers) as url:
        code = 0
        try:
            main([url, "--model", str(model), "--json", *options])
        except SystemExit as error:
            code = error.code
    return json.loads(capsys.readouterr().out), code


def test_a_server_that_reads_rightly_passes(llava, capsys):
    server = Stock(llava / "stock")
    found, code = check(capsys, {"/v1/embeddings": server.embeddings}, llava / "unime")
    assert code == 0 and found["same"] and found["reasons"] == [] and len(found["items"]) == 8
    assert all(abs(row["cosine"] - 1) < 1e-5 for row in found["items"])
    found, code = check(capsys, {"/v1/embeddings": server.embeddings}, llava / "unime", "--input")
    assert code == 0 and len(found["items"]) == 2


@pytest.mark.parametrize(
    "fault, reasons",
    [
        ({"template": None}, ["the checkpoint's own chat template, not the preset's", "begins every text is missing"]),
        ({"pooling": "mean"}, ["it averages over all tokens"]),
        ({"pooling": "first"}, ["it takes the first token"]),
        ({"special": True}, ["stands there twice"]),
        ({"scale": 3.0}, ["its vectors are not normalised"]),
        (
            {"template": None, "pooling": "mean"},
            ["own chat template, not", "begins every text is missing", "it averages over all tokens"],
        ),
    ],
    ids=["template", "mean", "first", "twice", "norm", "template and mean"],
)
def test_a_mismatch_is_explained(llava, capsys, fault, reasons):
    found, code = check(capsys, {"/v1/embeddings": Stock(llava / "stock", **fault).embeddings}, llava / "unime")
    assert code == (0 if "scale" in fault else 1) and found["same"] == (code == 0)
    assert len(found["reasons"]) == len(reasons), found["reasons"]
    assert all(reason in said for reason, said in zip(reasons, found["reasons"]))


def shrunk(image):
    """As a server with a limit of its own on pixels sees an image."""
    image = ImageOps.exif_transpose(image)
    image.thumbnail((260, 260))
    return image


@pytest.mark.parametrize(
    "prepare, wrong, reason",
    [(lambda image: image, [5], "orientation: "), (shrunk, [6], "resize: ")],
    ids=["orientation", "resize"],
)
def test_what_a_server_makes_of_the_pictures_themselves_is_named(llava, capsys, prepare, wrong, reason):
    server = Stock(llava / "stock", prepare=prepare)
    found, code = check(capsys, {"/v1/embeddings": server.embeddings}, llava / "unime", "--tolerance", "1e-4")
    assert code == 1 and not found["same"]
    assert [number for number, row in enumerate(found["items"]) if row["cosine"] < 1 - 1e-4] == wrong
    assert len(found["reasons"]) == 1 and found["reasons"][0].startswith(reason)


def test_templates_of_the_other_role_positions_and_sizes_are_told_apart(tiny, tmp_path, capsys):
    path = tiny("qwen2_vl")[0]
    ours = {"hierarchical": {"resolution": "pixels:50176"}, "unime-v2-qwen2-vl": {"resolution": 56}}
    for preset, settings in ours.items():
        UniMEModel.from_backbone(path, preset, **settings).save_pretrained(tmp_path / preset)

    def served(preset, **fault):
        model = UniMEModel.from_pretrained(tmp_path / preset)
        if positions := fault.pop("positions", None):
            model.config.positions = positions

        def embeddings(body):
            turn, images = opened(body["messages"][0]["content"])
            item = {"image": images[0]} if images else {}
            item |= {part["type"]: part["text"] for part in turn if part["type"] == "text"}
            return {"data": [{"embedding": model.encode(item, **fault).tolist()}]}

        return {"/v1/embeddings": embeddings}

    assert check(capsys, served("hierarchical"), tmp_path / "hierarchical")[0]["same"]
    found, code = check(capsys, served("hierarchical", role="document"), tmp_path / "hierarchical")
    assert code == 1 and found["reasons"] == [
        "its template is that of the other role: queries and documents have templates of their own with this preset"
    ]
    released = tmp_path / "unime-v2-qwen2-vl"
    assert check(capsys, served(released.name), released)[0]["same"]
    found, code = check(capsys, served(released.name, positions="native"), released)
    (reason,) = found["reasons"]
    assert code == 1 and "it numbers image tokens in two dimensions" in reason
    picture(3, (112, 84)).save(tmp_path / "large.png")
    found, code = check(capsys, served("hierarchical"), released, "--items", str(tmp_path / "large.png"))
    assert code == 1 and "no known way of reading the item gives its vector" in found["reasons"][0]


@pytest.mark.parametrize(
    "fault, reason",
    [
        (lambda scores: scores, None),
        (lambda scores: [torch.logit(torch.tensor(score)).item() for score in scores], "it gives log-odds"),
        (lambda scores: [1 - score for score in scores], "it gives the probability of No"),
        (lambda scores: [0.5 for _ in scores], "all its scores are alike"),
        (lambda scores: [score * 0.4 + 0.5 for score in scores], "its scores follow another prompt"),
    ],
    ids=["right", "odds", "no", "alike", "other"],
)
def test_a_served_reranker(tiny, tmp_path, capsys, fault, reason):
    UniMERerankerForCausalLM.from_backbone(tiny("qwen2_vl")[0]).save_pretrained(tmp_path / "unime")
    export(tmp_path / "unime", tmp_path / "stock")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "stock").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "stock")
    settings = json.loads((tmp_path / "stock" / "1_LogitScore" / "config.json").read_text())
    template = (tmp_path / "stock" / "templates" / "judge.jinja").read_text()
    (tmp_path / "texts.txt").write_text("a red circle\na blue star\na white ring\n")

    def rerank(body):
        scores = []
        for document in body["documents"]:
            messages = [{"role": "query", "content": body["query"]}, {"role": "document", "content": document}]
            prompt = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
            ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
            with torch.inference_mode():
                logits = model(**ids).logits[0, -1]
            scores.append(torch.sigmoid(logits[settings["true_token_id"]] - logits[settings["false_token_id"]]).item())
        found = [{"index": i, "relevance_score": score} for i, score in enumerate(fault(scores))]
        return {"results": sorted(found, key=lambda entry: -entry["relevance_score"])}

    options = ["--items", str(tmp_path / "texts.txt"), "--tolerance", "1e-4"]
    found, code = check(capsys, {"/rerank": rerank}, tmp_path / "unime", *options)
    assert found["same"] == (reason is None) == (code == 0)
    assert found["reasons"] == [] if reason is None else found["reasons"][0].startswith(reason)


def test_what_does_not_answer_is_an_error(llava, capsys):
    with pytest.raises(SystemExit, match="unime serve-check: http://127.0.0.1:9/v1/models does not answer"):
        main(["http://127.0.0.1:9/v1", "--model", str(llava / "unime")])
    with pytest.raises(SystemExit, match="/v1/embeddings refused: status 404"), FakeServer({}) as url:
        main([url, "--model", str(llava / "unime")])
    several = {"/v1/models": lambda _: {"data": [{"id": "a"}, {"id": "b"}]}}
    with pytest.raises(SystemExit, match="serves a, b; choose one with --served-model"), FakeServer(several) as url:
        main([url, "--model", str(llava / "unime")])
    short = {"/v1/embeddings": lambda _: {"data": [{"embedding": [1.0, 0.0]}]}}
    with pytest.raises(SystemExit), FakeServer(short) as url:
        main([url, "--model", str(llava / "unime")])
    assert "its vectors have 2 dimensions, the model's" in capsys.readouterr().out
    for odd, message in (
        ([float("nan")] * 96, "gives no vector"),
        ([0.0] * 96, "gives no vector"),
        ("abc", "gives another answer"),
    ):
        answers = {"/v1/embeddings": lambda _, odd=odd: {"data": [{"embedding": odd}]}}
        with pytest.raises(SystemExit, match=message), FakeServer(answers) as url:
            main([url, "--model", str(llava / "unime")])
    with (
        pytest.raises(SystemExit, match="gives another answer than expected"),
        FakeServer({"/v1/models": lambda _: ["served"]}) as url,
    ):
        main([url, "--model", str(llava / "unime")])


def test_a_chat_without_the_beginning_of_an_answer_is_told_apart(tiny):
    model = UniMEModel.from_backbone(tiny("qwen2_vl")[0])
    chat = [{"role": "user", "content": [{"type": "text", "text": "a ring"}]}]
    tokenizer = model.processor.tokenizer
    prompt = tokenizer.apply_chat_template(chat, chat_template=model.processor.chat_template, tokenize=False)
    with torch.inference_mode():
        hidden = model.vlm(**tokenizer(prompt, return_tensors="pt")).last_hidden_state[0, -1]
    found = {
        reading.deviations[0]: vector
        for reading, vector in Readings(model, "query").of({"text": "a ring"})
        if len(reading.deviations) == 1
    }
    expected = torch.nn.functional.normalize(hidden, dim=0)
    assert (found["prompt", "own template, unanswered"] - expected).abs().max() < 1e-5
    assert (found["prompt", "own template"] - expected).abs().max() > 1e-3
