"""`unime encode`, `unime search`, `unime rerank` and `unime train` as a shell sees them."""

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import fresh_process, picture, save_backbone

from unime import UniMEModel, UniMERerankerForCausalLM
from unime.cli import COMMANDS, main
from unime.commands.index import read_index
from unime.commands.search import show
from unime.data.items import Item


@pytest.fixture(scope="module")
def saved(backbone, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "mine"
    UniMEModel.from_backbone(backbone).save_pretrained(path)
    return path


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.jpg", "more/c.png")):
        picture(number).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.md").write_text("no picture")
    rows = ["a red circle", {"id": "both", "text": "this one", "image": "photos/a.png"}, {"text": "a blue star"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "words.txt").write_text("one ring\n\ntwo rings\n")
    return tmp_path


def printed(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("kind", ["parquet", "npz"])
def test_encode_and_search(kind, saved, photos, capsys):
    out = photos / f"index.{kind}"
    sources = [str(photos / name) for name in ("photos", "rows.jsonl", "words.txt")]
    main(["encode", *sources, "--model", str(saved), "--out", str(out), "--json"])
    (said,) = printed(capsys)
    assert said == {"out": str(out), "items": 8, "new": 8, "width": 96, "failed": []}
    names, items, _, embeddings, about = read_index(out)
    assert names == ["a.png", "b.jpg", "more/c.png", "1", "both", "3", "words.txt:1", "words.txt:3"]
    model = UniMEModel.from_pretrained(saved)
    assert np.abs(embeddings - model.encode_document([item.as_input() for item in items]).numpy()).max() < 1e-6
    assert about["role"] == "document" and not (photos / f"index.{kind}.parts").exists()
    main(["search", str(out), "a blue star", "--top", "3", "--json"])
    found = printed(capsys)
    expected = embeddings @ model.encode_query("a blue star").numpy()
    assert [row["id"] for row in found] == [names[i] for i in np.argsort(-expected)[:3]]
    assert found[0]["id"] == "3" and found[0]["similarity"] == pytest.approx(expected.max(), abs=1e-5)
    main(["search", str(out), "--image", str(photos / "photos" / "b.jpg"), "--top", "1"])
    assert "b.jpg" in capsys.readouterr().out


SEARCH = """
import json, sys
from unime.cli import main
main(["search", sys.argv[1], "a star", "--quiet"])
print(json.dumps("datasets" in sys.modules))
"""


def test_a_search_does_without_datasets(saved, photos):
    out = str(photos / "index.parquet")
    main(["encode", str(photos / "words.txt"), "--model", str(saved), "--out", out, "--quiet"])
    assert fresh_process(SEARCH, out) is False


def test_a_reranker_puts_answers_in_its_own_order(saved, backbone, photos, capsys):
    out = str(photos / "index.parquet")
    main(["encode", str(photos / "rows.jsonl"), "--model", str(saved), "--out", out, "--quiet"])
    assert capsys.readouterr().out == f"{out}: 3 items of width 96, 3 of them new\n"
    main(["search", out, "a star", "--top", "3", "--reranker", str(backbone), "--json"])
    found = printed(capsys)
    model = UniMERerankerForCausalLM.from_backbone(backbone)
    items = ["a red circle", {"text": "this one", "image": str(photos / "photos" / "a.png")}, "a blue star"]
    scores = dict(zip(("1", "both", "3"), model.score("a star", items).tolist()))
    assert [row["id"] for row in found] == sorted(scores, key=lambda name: -scores[name])
    assert {row["id"]: row["score"] for row in found} == pytest.approx(scores, abs=1e-5)
    main(
        [
            "rerank",
            str(photos / "rows.jsonl"),
            "--query",
            "a star",
            "--reranker",
            str(backbone),
            "--top",
            "2",
            "--json",
        ]
    )
    assert [row["id"] for row in printed(capsys)] == [row["id"] for row in found[:2]]


def test_the_standard_input_is_read_and_a_killed_run_goes_on(saved, tmp_path):
    command = [
        sys.executable,
        "-m",
        "unime.cli",
        "encode",
        "-",
        "--model",
        str(saved),
        "--out",
        str(tmp_path / "x.npz"),
    ]
    text = "".join(json.dumps(f"text {i}") + "\n" for i in range(700))
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=-3, stderr=-3, text=True, env=os.environ)
    process.stdin.write(text)
    process.stdin.close()
    while process.poll() is None and not list(tmp_path.glob("x.npz.parts/*/rows-*")):
        pass
    process.kill()
    process.wait()
    done = subprocess.run([*command, "--quiet"], input=text, text=True, capture_output=True, check=True)
    assert done.stderr == ""
    assert f"{tmp_path / 'x.npz'}: 700 items of width 96" in done.stdout
    names, _, _, embeddings, _ = read_index(tmp_path / "x.npz")
    assert names[0] == "1" and len(embeddings) == 700 and np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)


def test_what_cannot_be_embedded_is_left_out_and_named(saved, photos, capsys):
    (photos / "photos" / "b.jpg").write_bytes(b"no picture")
    out = photos / "index.parquet"
    with pytest.raises(SystemExit, match=r"1 items failed, see .*index.parquet.errors.json; the first: b.jpg: "):
        main(["encode", str(photos / "photos"), "--model", str(saved), "--out", str(out)])
    assert "2 items of width 96" in capsys.readouterr().out
    (error,) = json.loads((photos / "index.parquet.errors.json").read_text())
    assert (error["id"] == "b.jpg" and "cannot be opened" in error["reason"]) or "b.jpg" in error["reason"]
    with pytest.raises(SystemExit, match="none of the 1 items could be embedded; b.jpg: "):
        main(["encode", str(photos / "photos" / "b.jpg"), "--model", str(saved), "--out", str(photos / "one.npz")])
    picture(1).save(photos / "photos" / "b.jpg")
    out.unlink()
    main(["encode", str(photos / "photos"), "--model", str(saved), "--out", str(out)])
    assert len(pq.read_table(out)) == 3 and not (photos / "index.parquet.errors.json").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["encode", "{}/nowhere", "--model", "{}", "--out", "x.npz"], "nowhere does not exist"),
        (["encode", "{}/rows.jsonl", "--model", "{}", "--out", "x.csv"], "x.csv is neither .parquet nor .npz"),
        (["encode", "{}/bad.jsonl", "--model", "m", "--out", "x.npz"], "bad.jsonl, line 2: an item is a text or has"),
        (["search", "{}/nothing.npz", "a"], "nothing.npz does not exist; `unime encode` makes it"),
        (["search", "{}/foreign.parquet", "a"], "does not say how it was made"),
        (["search", "{}/foreign.parquet"], "an item needs a text, an image, or both"),
        (["rerank", "{}/empty", "--query", "a", "--reranker", "m"], "there is nothing to rank"),
        (["train", "contrastive", "--config", "{}/none.yaml"], "unime train: .*none.yaml"),
        (
            ["train", "contrastive", "--data", "{}/none.jsonl", "--output_dir", "{}", "--model_name_or_path", "m"],
            "unime train: .*none.jsonl does not",
        ),
        (
            ["train", "alignment", "--data", "{}/pairs.jsonl", "--output_dir", "{}", "--model_name_or_path", "m"],
            "no row of .*has negatives with judge",
        ),
        (["mine", "run"], "unime mine: `data` is missing"),
        (["convert", "owner/none", "{}/out"], "owner/none is not a folder here, and is not available from the Hub"),
        (["eval", "world", "--model", "owner/none", "--data", "{}"], "owner/none is not a folder here"),
        (["demo", "--model", "owner/none", "--images", "{}/photos"], "owner/none is not a folder here"),
    ],
)
def test_mistakes_end_with_a_message_and_no_traceback(arguments, message, photos, saved):
    (photos / "bad.jsonl").write_text('"fine"\n[1]\n')
    (photos / "pairs.jsonl").write_text('{"query": "a", "positive": "b"}\n')
    (photos / "empty").mkdir()

    pq.write_table(pa.table({"id": ["1"]}), photos / "foreign.parquet")
    with pytest.raises(SystemExit, match=message) as error:
        main([argument.replace("{}", str(photos)) for argument in arguments])
    assert isinstance(error.value.code, str), "which a shell prints, and exits with 1"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "usage: unime COMMAND"),
        (["fly"], "unime: there is no command 'fly'; there are encode, search, "),
        (["serch", "x.parquet", "a"], "unime: there is no command 'serch'; did you mean 'search'?"),
        (["train"], "usage: unime train {distillation,"),
        (["train", "everything"], "unime train: there is no stage 'everything'; there are distillation, "),
        (["train", "contrastiv"], "unime train: there is no stage 'contrastiv'; did you mean 'contrastive'?"),
        (["search"], "unime search: the following arguments are required: index"),
        (["search", "x.npz", "a", "--strategy", "best"], "unime search: argument --strategy: invalid choice: 'best'"),
        (["encode", "a", "--model", "m", "--out", "x.npz", "--dtype", "half"], "unime encode: argument --dtype: "),
        (
            ["encode", "a", "--model", "m", "--out", "x.npz", "--options", "{"],
            "unime encode: argument --options: '{' is",
        ),
        (["rerank", "a", "--reranker", "m", "--strategy", "fused"], "unime rerank: argument --strategy: invalid"),
        (["demo", "--model", "m"], "unime demo: the following arguments are required: --images"),
        (["data", "check"], "unime data check: the following arguments are required: path"),
        (["convert", "a"], "unime convert: the following arguments are required: out"),
        (["merge", "a", "b", "--preset", "none"], "unime merge: argument --preset: unknown preset 'none'"),
        (["push", "a", "b", "--secret"], "unime push: unrecognized arguments: --secret"),
        (["eval", "world", "--library", "other"], "unime eval: argument --library: invalid choice: 'other'"),
        (["eval", "world", "--options", "[]"], "unime eval: `options`: '[]' is not a JSON object"),
        (["eval", "figures", "map", "--out", "a.png"], "unime eval figures: map needs --models and --data"),
    ],
)
def test_what_cannot_be_understood_ends_with_one_line_and_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith(message) and (text.startswith("usage") or text.count("\n") == 1)


def test_former_names_still_work_with_a_notice(backbone, saved, photos, capsys):
    main(["rerank", str(photos / "words.txt"), "--query", "a star", "--model", str(backbone), "--json"])
    printed_before = capsys.readouterr()
    assert "unime rerank: --model is now called --reranker" in printed_before.err
    main(["rerank", str(photos / "words.txt"), "--query", "a star", "--reranker", str(backbone), "--json"])
    assert capsys.readouterr().out == printed_before.out
    main(["push", str(saved), "me/it", "--licence=mit", "--card_only"])
    assert "unime push: --licence is now called --license" in capsys.readouterr().err
    assert "license: mit" in (saved / "README.md").read_text()
    with pytest.raises(SystemExit):
        main(["push", "--help"])
    assert "licence" not in capsys.readouterr().out


def test_an_index_of_another_model_is_refused(saved, photos, tmp_path):
    out = str(photos / "index.npz")
    main(["encode", str(photos / "words.txt"), "--model", str(saved), "--out", out, "--quiet"])
    other = tmp_path / "other"
    UniMEModel.from_backbone(save_backbone(tmp_path / "vlm", seed=5)).save_pretrained(other)
    with pytest.raises(SystemExit, match="was made by mine@.*, not by other@"):
        main(["search", out, "a", "--model", str(other)])


def test_help_names_every_command(capsys):
    main(["--help"])
    text = capsys.readouterr().out
    assert all(f"  {name:<12}{said}" in text for name, (_, said) in COMMANDS.items())
    assert len(text.splitlines()) <= 23 and max(map(len, text.splitlines())) <= 80, "a screen, with its prompt"
    assert [line for line in text.splitlines() if line.isalpha()] == ["Use", "Train", "Measure", "Share"]
    for command in COMMANDS:
        try:
            main([command, "--help"])
        except SystemExit as done:
            assert done.code == 0
        assert "usage: unime" in capsys.readouterr().out, command


def test_help_and_version_import_nothing_heavy():
    code = (
        "import json, sys\nfrom unime import __version__\nfrom unime.cli import main\n"
        "main(['--help'])\nmain(['--version'])\n"
        "heavy = [name for name in ('torch', 'transformers', 'numpy', 'yaml') if name in sys.modules]\n"
        "print(json.dumps(heavy))"
    )
    assert fresh_process(code) == []


def test_help_and_mistakes_of_every_command_import_nothing_heavy():
    commands = [[command] for command in COMMANDS if command != "train"]
    commands += [["train"], ["eval", "report"], ["eval", "figures"], ["eval", "pairs"], ["mine", "run"]]
    code = (
        "import contextlib, io, json, sys\nfrom unime.cli import main\nprinted = []\n"
        f"for words in {commands}:\n"
        "    for last, expected in (('--help', 0), ('--no-such-option', 2)):\n"
        "        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        "            try:\n"
        "                main([*words, last])\n"
        "            except SystemExit as end:\n"
        "                printed.append(end.code == expected)\n"
        "heavy = [name for name in ('torch', 'transformers', 'datasets', 'numpy', 'PIL') if name in sys.modules]\n"
        "print(json.dumps([heavy, len(printed), all(printed)]))"
    )
    assert fresh_process(code) == [[], 2 * len(commands), True]


@pytest.mark.parametrize("command", ["search", "rerank", "encode", "demo", "eval"])
def test_shared_options_have_the_same_default_and_help(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "--json" not in words or "print JSON, not text" in words
    assert "how the reranker orders the candidates (default: pointwise)" in words or command == "encode"
    assert "precision of the weights; auto is the checkpoint's own (default: auto)" in words or command == "search"
    assert "how many answers are shown (default: 10)" in words or command in ("encode", "demo", "eval")


def test_an_update_embeds_only_what_is_new_or_changed(saved, photos, capsys):
    out, folder = photos / "index.parquet", photos / "photos"
    arguments = ["encode", str(folder), "--model", str(saved), "--out", str(out), "--update", "--json"]
    main(arguments)
    picture(7).save(folder / "d.png")
    stat = (folder / "a.png").stat()
    picture(8).save(folder / "a.png")
    os.utime(folder / "a.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    (folder / "b.jpg").unlink()
    main(arguments)
    written = out.stat().st_mtime_ns
    main(arguments)
    assert out.stat().st_mtime_ns == written, "nothing to write"
    assert [(row["items"], row["new"]) for row in printed(capsys)] == [(3, 3), (3, 2), (3, 0)]
    updated = read_index(out)
    assert updated.names == ["a.png", "d.png", "more/c.png"]
    whole = photos / "whole.parquet"
    main(["encode", str(folder), "--model", str(saved), "--out", str(whole), "--quiet"])
    assert np.abs(read_index(whole).embeddings - updated.embeddings).max() < 1e-6
    with pytest.raises(SystemExit, match="cannot be updated: its role is document, not query"):
        main([*arguments, "--role", "query"])


def test_an_update_goes_on_although_many_files_stay_broken(saved, photos, capsys):
    for number in range(17):
        (photos / "photos" / f"broken{number}.png").write_bytes(b"no picture")
    (photos / "photos" / "._a.png").write_bytes(b"of another system")
    arguments = ["encode", str(photos / "photos"), "--model", str(saved), "--out", str(photos / "x.npz"), "--update"]
    for new in (3, 0):
        with pytest.raises(SystemExit, match="17 items failed"):
            main(arguments)
        assert f"3 items of width 96, {new} of them new" in capsys.readouterr().out
    whole = (photos / "x.npz").read_bytes()
    (photos / "x.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SystemExit, match="x.npz is damaged"):
        main(["search", str(photos / "x.npz"), "a"])
    with pytest.raises(SystemExit):
        main(["search", str(photos / "x.npz"), "a", "--top", "0"])
    assert "argument --top: invalid positive value: '0'" in capsys.readouterr().err


# files of somebody else
def write_npz(path, **changes):
    """An index of one item that says nothing of its model, with some of its arrays changed."""
    arrays = {name: np.array(["a"]) for name in ("id", "text", "image", "stamp")}
    with open(path, "wb") as file:
        np.savez(file, **{**arrays, "embedding": np.ones((1, 2)), "about": np.array("{}"), **changes})


def about_of(source, /, **settings):
    from unime.jobs.embedding import checkpoint_fingerprint

    maker = {"model": checkpoint_fingerprint(source), "library": "unime", "preset": None, "dtype": "auto"}
    return {"source": str(source), "role": "document", "settings": {**maker, **settings}}


FOREIGN = {
    "empty.npz": lambda path: path.write_bytes(b""),
    "zeros.npz": lambda path: path.write_bytes(bytes(900)),
    "text.npz": lambda path: path.write_text("no zip"),
    "no-arrays.npz": lambda path: np.savez(path, other=np.ones(3)),
    "pickle.npz": lambda path: write_npz(path, text=np.array([None])),
    "no-json.npz": lambda path: write_npz(path, about=np.array("{")),
    "no-object.npz": lambda path: write_npz(path, about=np.array("[]")),
    "no-settings.npz": lambda path: write_npz(path),
    "short.npz": lambda path: write_npz(path, embedding=np.ones((2, 2))),
    "words.npz": lambda path: write_npz(path, embedding=np.array([["b"]])),
    "infinite.npz": lambda path: write_npz(path, embedding=np.full((1, 2), np.inf)),
    "empty.parquet": lambda path: path.write_bytes(b""),
    "text.parquet": lambda path: path.write_text("no parquet"),
    "any.parquet": lambda path: pq.write_table(pa.table({"id": ["1"], "text": [None]}), path),
    "notes.txt": lambda path: path.write_text("one ring\n"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_as_an_index_is_one_line(name, tmp_path):
    FOREIGN[name](tmp_path / name)
    with pytest.raises(SystemExit, match=rf"unime search: \S+{name} is damaged, or not a file of embeddings") as ended:
        main(["search", str(tmp_path / name), "a ring"])
    assert "\n" not in ended.value.code


@pytest.mark.parametrize("name", ["any.parquet", "text.npz", "no-arrays.npz"])
def test_a_foreign_file_is_not_written_over(name, saved, photos):
    path = photos / name
    FOREIGN[name](path)
    before = path.read_bytes()
    with pytest.raises(
        SystemExit, match=rf"unime encode: \S+{name} is not a file of embeddings that `unime encode` made"
    ):
        main(["encode", str(photos / "words.txt"), "--model", str(saved), "--out", str(path)])
    assert path.read_bytes() == before


def write_foreign(path, about):
    from unime.commands.index import Index, write_index
    from unime.data.schema import Item

    vectors = np.ones((1, 96), np.float32) / 96**0.5
    write_index(path, Index(["a\x1b[31m"], [Item("a ring")], [""], vectors, about))
    return str(path)


def test_an_index_names_its_model_as_data(saved, tmp_path, capsys, monkeypatch):
    own = write_foreign(tmp_path / "own.parquet", about_of(saved))
    main(["search", own, "a ring"])
    printed_text = capsys.readouterr()
    assert f"own.parquet was made by {saved}, which is loaded" in printed_text.err and "\x1b" not in printed_text.out
    main(["--quiet", "search", own, "a ring", "--json"])
    assert "was made by" not in capsys.readouterr().err

    # what is not here is not fetched, unless the user names it
    absent = write_foreign(tmp_path / "absent.parquet", {**about_of(saved), "source": "owner/theirs"})
    with pytest.raises(SystemExit, match="names the model owner/theirs, which is not on this machine; give --model"):
        main(["search", absent, "a ring"])
    main(["search", absent, "a ring", "--model", str(saved)])

    # at a terminal the question is asked
    class Terminal:
        answers = ["n\n", "y\n", ""]

        def isatty(self):
            return True

        def readline(self):
            return self.answers.pop(0)

    monkeypatch.setattr(sys, "stdin", Terminal())
    with pytest.raises(SystemExit, match="nothing was loaded; name the model with --model"):
        main(["search", own, "a ring"])
    main(["search", own, "a ring"])
    with pytest.raises(SystemExit, match="nothing was loaded"):
        main(["search", own, "a ring"])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"trust_remote_code": True}, "names 'trust_remote_code' as an option of `encode`, which it is not"),
        ({"source": "x"}, "names 'source' as an option"),
        ({"library": "os"}, "was made in a way that is not known here: os"),
        ({"resolutoin": 3}, "has no 'resolutoin'"),
    ],
)
def test_settings_of_an_index_are_data(settings, message, saved, tmp_path):
    path = write_foreign(tmp_path / "x.parquet", about_of(saved, **settings))
    with pytest.raises(SystemExit, match=message):
        main(["search", path, "a ring", "--model", str(saved)])


# mistakes
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train", "contrastive", "--bath_tokens", "3"], "unime train contrastive: "),
        (
            ["train", "contrastive", "--data", "x", "--bath_tokens", "3"],
            "unime train contrastive: unrecognized arguments: --bath_tokens 3",
        ),
        (["eval", "world", "--shard", "0"], "unime eval: `shard` is 0; it must be at least 1"),
        (["eval", "rerank", "--candidates", "0"], "unime eval: `candidates` is 0; it must be at least 1"),
        (["eval", "rerank", "--model", "m"], "unime eval: unrecognized arguments: --model m"),
        (["eval", "world", "--reranker", "m"], "unime eval: unrecognized arguments: --reranker m"),
        (["mine", "run", "--judge_options", "{"], "unime mine: `judge_options` is not JSON"),
        (["mine", "run", "--judge_options", '{"answer": 1}'], "unime mine: `judge_options` has no 'answer'"),
        (["mine", "run", "--name", "a/b"], "unime mine: `name` is 'a/b'; it is the name of a file"),
    ],
)
def test_mistyped_settings_end_with_one_line_and_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    text = capsys.readouterr().err
    assert ended.value.code == 2 and text.startswith(message) and text.count("\n") == 1


@pytest.mark.parametrize(
    "command, recipe, message",
    [
        (["eval", "world"], "model: [emb]", "unime eval: {}: `model` is ['emb']; it takes a text"),
        (["eval", "world"], "shard: 0", "unime eval: {}: `shard` is 0; it must be at least 1"),
        (["eval", "world"], "tasks: VQA", "unime eval: {}: `tasks` is 'VQA'; it takes a list, each entry a text"),
        (["eval", "world"], "partial: 2", "unime eval: {}: `partial` is 2; it takes true or false"),
        (["eval", "world"], "shard: 2.5", "unime eval: {}: `shard` is 2.5; it takes a whole number"),
        (["mine", "run"], "embedder: {a: b}", "unime mine: {}: `embedder` is {'a': 'b'}; it takes a text"),
        (["train", "alignment"], "data: [a]", "unime train alignment: the recipe: `data` is ['a']; it takes a text"),
        (["train", "alignment"], "dataa: a", "unime train alignment: "),
    ],
)
def test_values_of_recipes_are_checked(command, recipe, message, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    with pytest.raises(SystemExit) as ended:
        main([*command, "--config", str(path)])
    text = capsys.readouterr().err
    assert ended.value.code == 2 and text.startswith(message.replace("{}", str(path))) and text.count("\n") == 1


def test_mistyped_options_are_one_line(saved, photos):
    out = photos / "x.npz"
    command = ["encode", str(photos / "words.txt"), "--model", str(saved), "--out", str(out)]
    with pytest.raises(SystemExit, match="unime encode: .*has no 'resolutoin'; did you mean 'resolution'"):
        main([*command, "--options", '{"resolutoin": 3}'])
    assert not list(photos.glob("x.npz*")), "nothing stands in the way of the corrected run"
    with pytest.raises(SystemExit, match="none of the 2 items could be embedded"):
        main([*command, "--options", '{"max_length": 1}'])
    main(command)
    assert len(read_index(out).names) == 2


def test_full_folders_are_not_written_over(backbone, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match="full is not empty; name another folder, or write over it with --overwrite"):
        main(["convert", str(backbone), str(tmp_path / "full")])
    with pytest.raises(SystemExit, match="is what is read; name another folder"):
        main(["export", str(tmp_path / "full"), str(tmp_path / "full"), "--overwrite"])
    with pytest.raises(SystemExit, match=r"mine.txt is a file; name a folder"):
        main(["convert", str(backbone), str(tmp_path / "full" / "mine.txt")])
    main(["convert", str(backbone), str(tmp_path / "full"), "--overwrite"])
    assert (tmp_path / "full" / "config.json").exists() and (tmp_path / "full" / "mine.txt").exists()


def test_results_that_are_not_there_are_refused_with_the_card_alone_too(saved):
    for more in ([], ["--card-only"]):
        with pytest.raises(SystemExit, match="unime push: nowhere cannot be read"):
            main(["push", str(saved), "me/it", "--results", "nowhere", *more])


def test_help_of_a_step_lists_what_it_takes(capsys):
    texts = {}
    for step in ("rerank", "world"):
        with pytest.raises(SystemExit):
            main(["eval", step, "--help"])
        texts[step] = capsys.readouterr().out
    assert "--candidates" in texts["rerank"] and "--library" not in texts["rerank"]
    assert "--library" in texts["world"] and "--candidates" not in texts["world"]


def test_quiet_may_stand_anywhere_and_behind_a_module(tmp_path):
    lines = (
        "from unime.cli import main",
        "from unime.trainers import contrastive",
        "import json, os, sys",
        "command = lambda: main(['--quiet', 'search', 'none.npz', 'a'])",
        "module = lambda: contrastive.main(['--quiet', '--data', 'x'])",
        "for run in (command, module):",
        "    os.environ.pop('TQDM_DISABLE', None)",
        "    try: run()",
        "    except SystemExit as error: print(os.environ.get('TQDM_DISABLE'), error)",
        "print(json.dumps(1))",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()[:2]
    assert first.startswith("1 unime search: none.npz does not exist") and second.startswith("1 ")
    assert "--quiet" not in done.stderr


def test_a_picture_is_shown_by_its_path_where_its_name_is_a_number(capsys):
    items = [Item(image="/photos/a.png"), Item("a red ring"), Item(image="/photos/b.png", text="two")]
    rows = [{"index": index, "similarity": 0.5} for index in range(3)]
    show(rows, ["0", "1", "b.png"], items, as_json=False)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [
        ["1", "0.5000", "0", "/photos/a.png"],
        ["2", "0.5000", "1", "a", "red", "ring"],
        ["3", "0.5000", "b.png", "two"],
    ]
