"""Readers, samplers and the collator."""

import json
import shutil
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data._utils.pin_memory import pin_memory

from unime.data import json_lists
from unime.data.collators import EmbeddingCollator
from unime.data.images import resolve_image
from unime.data.readers import read_clusters, read_judged, read_mmeb_train
from unime.data.samplers import HomogeneousSampler
from unime.data.schema import FEATURES, Example, Item, items_of, to_dataset, to_example, to_item
from unime.eval.tasks import read_mmeb_eval, read_sugarcrepe, read_world_tasks
from unime.trainers.gathered_table import GatheredTable
from unime.trainers.losses import HardNegativeInfoNCE, JudgeAlignment


def test_rows_survive_storage():
    examples = [
        Example(Item("q"), Item("p", "p.png"), [Item("n"), Item(image="n.png")], 0.5, [0.25, 0.0], "A"),
        Example(Item(image="q.png"), Item("p")),
    ]
    rows = to_dataset(examples)
    assert rows.features == FEATURES
    assert [to_example(row) for row in rows] == examples
    with pytest.raises(ValueError, match="needs a text"):
        Item(" ")


_words = st.text("ab", max_size=2)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.builds(Item, st.text("ab", min_size=1, max_size=3), st.sampled_from(["", "a.png"]), instruction=_words),
            st.builds(Item, _words, st.just("a.png"), st.lists(st.just("b.png"), max_size=2).map(tuple)),
        ),
        min_size=1,
        max_size=6,
    ),
    st.data(),
)
def test_items_read_field_by_field_are_those_read_row_by_row(items, data):
    rows = to_dataset([Example(item, Item("an answer")) for item in items])
    column = rows.data.column("query")
    assert items_of(column) == [to_item(value) for value in column.to_pylist()] == items
    assert items_of(pa.concat_arrays(column.chunks)) == items

    # some of them, in any order and more than once
    numbers = data.draw(st.lists(st.integers(0, len(items) - 1), max_size=8))
    assert items_of(column, numbers) == [items[number] for number in numbers]


def test_content_hashes_tell_text_and_image_apart():
    items = [Item("a"), Item("b"), Item("a", "b"), Item("ab"), Item(image="a")]
    assert len({item.content_hash for item in items}) == len(items)
    assert Item("a").content_hash == Item("a").content_hash
    assert all(-(2**63) <= item.content_hash < 2**63 for item in items)


def test_image_paths_stay_inside_their_root(tmp_path):
    (tmp_path / "root" / "images").mkdir(parents=True)
    picture(0).save(tmp_path / "root" / "images" / "a.png")
    picture(0).save(tmp_path / "secret.png")
    (tmp_path / "root" / "link.png").symlink_to(tmp_path / "secret.png")
    assert resolve_image(tmp_path / "root", "images/a.png").endswith("root/images/a.png")
    assert resolve_image(tmp_path / "root", "") == ""
    for name, message in (("../secret.png", "leaves"), ("link.png", "leaves"), ("b.png", "does not exist")):
        with pytest.raises(ValueError, match=message):
            resolve_image(tmp_path / "root", name)


def write_subset(root, name="A", rows=None, **columns):
    (root / name).mkdir(parents=True, exist_ok=True)
    table = {
        "qry": ["q0", "<|image_1|>\nq1"],
        "qry_image_path": ["", None],
        "pos_text": ["p0", "p1"],
        "pos_image_path": ["", ""],
    }
    pq.write_table(pa.table({**table, **columns}), root / name / "original-00000-of-00001.parquet")


def test_train_reader_yields_the_one_row(world, tmp_path):
    rows = read_mmeb_train(world / "train", ["Shapes_t2i", "Shapes_vqa"], image_root=world, limit=5)
    assert len(rows) == 10 and rows.features == FEATURES
    assert Counter(rows["dataset"]) == {"Shapes_t2i": 5, "Shapes_vqa": 5}
    assert rows[0]["query"]["image"] == "" and rows[0]["positive"]["image"].endswith(".png")
    write_subset(tmp_path)
    assert [row["text"] for row in read_mmeb_train(tmp_path)["query"]] == ["q0", "q1"], (
        "a stray placeholder is dropped"
    )


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"qry": ["q0", ""]}, r"original-00000-of-00001.parquet, row 1: an item needs a text"),
        ({"pos_image_path": ["x.png", ""]}, r"row 0: image 'x.png' does not exist"),
        ({"pos_image_path": ["../x.png", ""]}, r"row 0: image path '../x.png' leaves"),
    ],
)
def test_train_reader_names_file_and_row(tmp_path, columns, message):
    write_subset(tmp_path, **columns)
    with pytest.raises(ValueError, match=message):
        read_mmeb_train(tmp_path)


def test_missing_columns_and_files_are_named(tmp_path):
    (tmp_path / "A").mkdir()
    pq.write_table(pa.table({"query": ["q"]}), tmp_path / "A" / "original-0.parquet")
    with pytest.raises(
        ValueError, match=r"lacks the columns \['qry', 'qry_image_path', 'pos_text', 'pos_image_path'\]"
    ):
        read_mmeb_train(tmp_path)
    with pytest.raises(ValueError, match="right folder and split"):
        read_mmeb_train(tmp_path, split="diverse_instruction")
    with pytest.raises(ValueError, match="holds no test-"):
        read_mmeb_eval(tmp_path, "A", "VQA")


def test_eval_reader_keeps_the_target_first_and_drops_copies_of_it(tmp_path):
    (tmp_path / "A").mkdir()
    columns = {
        "qry_text": ["q0", "q1"],
        "qry_img_path": ["", ""],
        "tgt_text": [["t", "u", "t"], ["u", "v", "w"]],
        "tgt_img_path": [["", "", ""]] * 2,
    }
    pq.write_table(pa.table(columns), tmp_path / "A" / "test-0.parquet")
    task = read_mmeb_eval(tmp_path, "A", "VQA")
    assert [[task.corpus[i].text for i in row] for row in task.candidates] == [["t", "u"], ["u", "v", "w"]]
    assert task.relevant == [[0], [0]] and len(task.corpus) == 4
    columns["tgt_img_path"] = [["", ""], ["", "", ""]]
    pq.write_table(pa.table(columns), tmp_path / "A" / "test-0.parquet")
    with pytest.raises(ValueError, match="row 0: 3 target texts for 2 target images"):
        read_mmeb_eval(tmp_path, "A", "VQA")


def test_world_and_sugarcrepe_readers(world, tmp_path):
    tasks = {task.name: task for task in read_world_tasks(world)}
    assert len(tasks) == 18 and all(len(task.queries) == 12 for task in tasks.values())
    assert all(len(row) == 2 for row in tasks["swap_obj"].candidates)
    (tmp_path / "add_att.json").write_text(json.dumps({"7": {"filename": "a.png", "caption": "c"}}))
    with pytest.raises(ValueError, match=r"add_att.json, row 7: lacks \['negative_caption'\]"):
        read_sugarcrepe(tmp_path, world / "images")


@given(st.lists(st.integers(0, 4), max_size=120), st.integers(1, 16), st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_sampler_permutes_and_fills_blocks_from_one_data_set(names, block, epoch):
    names = [f"set{n}" for n in names]
    sampler = HomogeneousSampler(names, block, seed=1)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(names))) and len(sampler) == len(names)
    full = sum(count // block for count in Counter(names).values())
    for start in range(0, full * block, block):
        assert len({names[i] for i in order[start : start + block]}) == 1
    again = HomogeneousSampler(names, block, seed=1)
    again.set_epoch(epoch)
    assert list(again) == order


def test_sampler_reshuffles_every_epoch():
    sampler = HomogeneousSampler(["a"] * 50, 5)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first


def test_collator_lists_every_distinct_item_once(embedder, tmp_path):
    picture(0).save(tmp_path / "a.png")
    image = str(tmp_path / "a.png")
    examples = [
        Example(Item("q0", image), Item("yes"), [Item("no"), Item("maybe")], 0.75, [0.25, 0.5], "A"),
        Example(Item("q1"), Item("yes"), [Item("no")], None, [], "A"),
        Example(Item("q0", image), Item("no"), [], None, [], "A"),
    ]
    collator = EmbeddingCollator(embedder.processor, batch_tokens=64)
    batch = collator(list(to_dataset(examples)))["batch"]
    assert len(batch.hashes) == 5, "two queries and three answers"
    assert batch.query[0] == batch.query[2] != batch.query[1]
    assert (
        batch.positive[0] == batch.positive[1] and batch.positive[2] == batch.negatives[0, 0] == batch.negatives[1, 0]
    )
    assert batch.negatives[1, 1] == batch.negatives[2, 0] == batch.negatives[2, 1] == -1
    assert sorted(batch.order.tolist()) == list(range(5))
    assert sum(len(chunk["input_ids"]) for chunk in batch.chunks) == 5
    assert batch.positive_score[0] == 0.75 and batch.positive_score[1:].isnan().all()
    assert batch.negative_scores[0].tolist() == [0.25, 0.5] and batch.negative_scores[1:].isnan().all()
    with torch.no_grad():
        encoded = torch.cat([embedder(**chunk).embeddings for chunk in batch.chunks])
    table = torch.empty_like(encoded).index_copy(0, batch.order, encoded)
    assert torch.allclose(
        table[batch.query[0]], embedder.encode({"text": "q0", "image": image}, fusion="joint"), atol=1e-5
    )
    assert torch.allclose(table[batch.positive[0]], embedder.encode("yes"), atol=1e-5)


def test_copies_of_a_picture_are_one_item_for_the_losses(embedder, tmp_path):
    picture(0).save(tmp_path / "right.png")
    picture(0).save(tmp_path / "again.bmp")
    picture(1).save(tmp_path / "other.png")
    shutil.copy(tmp_path / "right.png", tmp_path / "copy.png")
    right, copy, again, other = [
        Item(image=str(tmp_path / name)) for name in ("right.png", "copy.png", "again.bmp", "other.png")
    ]

    # the same rows under one name and under three
    named = [
        Example(Item("q0"), right, [right, other], 0.9, [0.5, 0.25]),
        Example(Item("q1"), right, [right], 0.8, [0.25]),
    ]
    renamed = [
        Example(Item("q0"), right, [copy, other], 0.9, [0.5, 0.25]),
        Example(Item("q1"), again, [copy], 0.8, [0.25]),
    ]
    embeddings = torch.nn.functional.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    losses = []
    for examples in (named, renamed):
        batch = EmbeddingCollator(embedder.processor)(list(to_dataset(examples)))["batch"]
        table = GatheredTable(batch, torch.device("cpu"))
        assert table.positive[0] == table.positive[1] == table.negatives[0, 0] == table.negatives[1, 0]
        assert table.negatives[0, 1] != table.positive[0]

        # q0, q1, the picture and the other one, wherever they stand in the table
        items = torch.zeros(len(batch.hashes), dtype=torch.long)
        items[table.query] = torch.tensor([0, 1])
        items[table.positive] = 2
        items[table.negatives[0, 1]] = 3
        indices = (embeddings[items], table.query, table.positive, table.negatives)
        scores = (table.positive_score, table.negative_scores)
        losses.append([HardNegativeInfoNCE()(*indices).loss, JudgeAlignment()(*indices, *scores).loss])
    assert torch.equal(torch.tensor(losses[0]), torch.tensor(losses[1]))


def write_clusters(folder, *clusters):
    names = ("qry", "qry_image_path", "pos_text", "pos_image_path")
    rows = [
        {**dict(zip(names, first)), "neg_samples": [dict(zip(names, other)) for other in others]}
        for first, *others in clusters
    ]
    (folder / "A_hard_negatives.json").write_text(json.dumps(rows))


def test_every_member_of_a_cluster_is_an_anchor(embedder, tmp_path):
    picture(0).save(tmp_path / "a.png")
    three = [("<|image_1|>\nq0", "a.png", "p0", ""), ("q1", "", "p1", ""), ("q2", "", "p0", "")]
    write_clusters(tmp_path, three, [("q3", "", "p3", "")])
    rows = read_clusters(tmp_path)
    batch = EmbeddingCollator(embedder.processor)(list(rows))["batch"]
    assert batch.query.tolist() == [0, 1, 2, 3], "four anchors in two rows of unequal size"
    assert batch.positive[0] == batch.positive[2] and len(set(batch.positive.tolist())) == 3
    assert batch.negatives.shape == (4, 0) and batch.dataset == ["A"] * 4
    shorter = EmbeddingCollator(embedder.processor, max_negatives=1)(list(rows))["batch"]
    assert len(shorter.query) == 3


def test_data_loaders_pin_the_chunks_of_a_batch(embedder, monkeypatch, tmp_path):
    """Only pinned memory is copied to a GPU while this computes."""
    picture(0).save(tmp_path / "a.png")
    rows = list(to_dataset([Example(Item("q"), Item("", str(tmp_path / "a.png")), [])]))
    batch = EmbeddingCollator(embedder.processor)(rows)
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *device: pinned.append(tensor) or tensor)
    same = pin_memory(batch)["batch"]
    tensors = [tensor for chunk in batch["batch"].chunks for tensor in chunk.values()]
    assert {id(tensor) for tensor in pinned} == {id(tensor) for tensor in tensors}
    assert same.tokens == batch["batch"].tokens and same.order is batch["batch"].order


def test_bad_clusters_are_named(tmp_path):
    write_clusters(tmp_path, [("q0", "", "p0", "")], [("q1", "", "p1", ""), ("q2", "", "p2")])
    with pytest.raises(ValueError, match=r"A_hard_negatives.json, row 1 \(line 1\): lacks \['pos_image_path'\]"):
        read_clusters(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no <subset>_hard_negatives.json"):
        read_clusters(tmp_path / "empty")
    with pytest.raises(ValueError, match="a cluster has 1 queries for 2 negatives"):
        Example(Item("q"), Item("p"), [Item("a"), Item("b")], negative_queries=[Item("c")]).members()


def test_collator_names_the_item_it_cannot_read(embedder, tmp_path):
    (tmp_path / "bad.png").write_text("no")
    example = Example(Item("q"), Item(image=str(tmp_path / "bad.png")))
    batch = EmbeddingCollator(embedder.processor)(list(to_dataset([example])))["batch"]
    ((item, reason),) = batch.bad_items
    assert "bad.png" in item and "bad.png' cannot be read" in reason
    assert batch.chunks == [] and batch.query.shape == (0,) and batch.negatives.shape == (0, 0)


JUDGED = {
    "query_text": "<|image_1|>\nWhat is it?\n",
    "query_image": "images/A/Train/q.png",
    "pos_text": "a cat",
    "pos_image": "",
    "query_pos_scores": 0.7,
    "hard_negatives": [["a dog", ""], ["<|image_1|>\nIt.\n", "images/B/Train/n.png"]],
    "hard_negatives_scores": [0.2, 0.1],
}


def judged_file(folder, *rows):
    for name in ("A/Train/q.png", "B/Train/n.png"):
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / "images" / name)
    (folder / "rows.json").write_text(json.dumps(list(rows)))
    return folder / "rows.json"


def test_judged_rows_keep_scores_and_name_their_data_set(tmp_path):
    text_first = {**JUDGED, "query_text": "<|image_1|>\nno image here", "query_image": ""}
    path = judged_file(tmp_path, JUDGED, text_first, JUDGED)
    rows = [to_example(row) for row in read_judged(path)]
    assert [row.dataset for row in rows] == ["A", "B", "A"]
    assert rows[0].query == Item("<|image_1|>\nWhat is it?\n", str(tmp_path / "images/A/Train/q.png"))
    assert rows[1].query == Item("no image here"), "a placeholder without an image is dropped"
    assert rows[0].positive_score == 0.7 and rows[0].negative_scores == [0.2, 0.1] and len(rows[0].negatives) == 2
    assert len(read_judged(path, limit=1)) == 2 and len(read_judged(path, subsets=["B"])) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hard_negatives_scores": [0.2]}, r"row 1 \(line 1\): 2 negatives for 1 scores"),
        ({"query_pos_scores": 1.2}, r"row 1 \(line 1\): the judge score 1.2 is not a number in \[0, 1\]"),
        ({"query_pos_scores": None}, r"row 1 \(line 1\): the judge score None"),
        ({"pos_text": ""}, r"row 1 \(line 1\): an item needs a text"),
        ({"query_image": "images/none.png"}, r"row 1 \(line 1\): image 'images/none.png' does not exist"),
        ({"query_image": "../out.png"}, r"row 1 \(line 1\): image path '../out.png' leaves the image root"),
    ],
)
def test_bad_judged_rows_are_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=rf"rows.json, {message}"):
        read_judged(judged_file(tmp_path, JUDGED, {**JUDGED, **change}))
    lacking = {key: value for key, value in JUDGED.items() if key != "pos_text"}
    with pytest.raises(ValueError, match=r"rows.json, row 0 \(line 1\): lacks \['pos_text'\]"):
        read_judged(judged_file(tmp_path, lacking))


def test_released_rows_are_read(tmp_path):
    sample = ROOT.parent / "shared" / "data" / "unime_v2_rows.json"
    if not sample.exists():
        pytest.skip("the sample of the released file is not here")
    released = json.loads(sample.read_text())
    for row in released:
        for image in (row["query_image"], row["pos_image"], *(image for _, image in row["hard_negatives"])):
            if image:
                (tmp_path / image).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / image).touch()
    rows = read_judged(sample, tmp_path)
    assert len(rows) == 50 and all(len(row["negative_scores"]) == len(row["negatives"]) == 10 for row in rows)
    assert rows["dataset"].count("MSCOCO_i2t") == 7


@pytest.mark.parametrize("size", [1, 3, 7, 64])
def test_a_list_is_read_in_pieces_of_any_size(tmp_path, size, monkeypatch):
    rows = [{"text": 'a "quoted" ] }, {', "n": [1, 2]}, {}, {"long": "x" * 50}]
    text = " [\n" + ",\n ".join(json.dumps(row) for row in rows) + "\n]\n"
    (tmp_path / "rows.json").write_text(text)
    monkeypatch.setattr(json_lists._Pieces.__init__, "__defaults__", (size,))
    found = list(json_lists.json_list(tmp_path / "rows.json"))
    assert [row for _, row in found] == rows
    assert [where.rsplit("(", 1)[1] for where, _ in found] == ["line 2)", "line 3)", "line 4)"]
    (tmp_path / "rows.json").write_text(text[:-20])
    with pytest.raises(ValueError, match="row 2 .line 4.: the file is broken off"):
        list(json_lists.json_list(tmp_path / "rows.json"))
