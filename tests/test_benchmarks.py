"""Readers of benchmarks on small copies in the public layouts, whole and broken."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT
from layouts import (
    write_captioned,
    write_mmeb,
    write_parquet,
    write_sharegpt4v,
    write_sugarcrepe,
    write_urban1k,
    write_video,
    write_visdoc,
)

from unime.data.schema import Item
from unime.eval.means import group_means
from unime.eval.mmeb_v2 import read_video, read_visdoc
from unime.eval.published import contradictions, per_data_set, published
from unime.eval.retrieval_sets import both_ways, read_captioned, read_retrieval, read_sharegpt4v, read_urban1k
from unime.eval.runner import score_task
from unime.eval.suites import GROUPS, MMEB, SUGARCREPE, VIDEO, VISDOC
from unime.eval.tasks import read_mmeb, read_sugarcrepe
from unime.jobs.embedding import item_name


# tables
def test_tables_have_the_published_shape():
    assert {group: len(names) for group, names in GROUPS["mmeb"].items()} == {
        "Classification": 10,
        "VQA": 10,
        "Retrieval": 12,
        "Grounding": 4,
        "IND": 20,
        "OOD": 16,
        "overall": 36,
    }
    assert {group: len(names) for group, names in GROUPS["visdoc"].items()} == {
        "ViDoRe v1": 10,
        "ViDoRe v2": 4,
        "VisRAG": 6,
        "OOD": 4,
        "overall": 24,
    }
    assert len(GROUPS["video"]["overall"]) == 18 and sum(SUGARCREPE.values()) == 7511


def test_a_mean_over_too_few_tasks_is_none():
    scores = dict.fromkeys(MMEB, 0.5)
    assert set(group_means("mmeb", scores).values()) == {0.5}
    del scores["GQA"]
    means = group_means("mmeb", scores)
    assert [group for group, value in means.items() if value is None] == ["VQA", "OOD", "overall", "four kinds"]


def test_published_means_follow_from_published_data_sets_where_the_papers_are_consistent():
    printed = published()["mmeb_means"]["rows"]
    for model in ("VLM2Vec LLaVA-1.6 7B", "UniME LLaVA-1.6 7B"):
        found = group_means("mmeb", per_data_set()[model])
        for group, value in zip(published()["mmeb_means"]["columns"][:4], printed[model]):
            assert found[group] == pytest.approx(value, abs=0.1), (model, group)
        assert found["four kinds"] == pytest.approx(printed[model][6], abs=0.1), "what 2504.17432 calls the average"
        assert printed[model][6] - found["overall"] > 2.9, "and not the mean of the 36 data sets"
    said = contradictions()
    assert any("Classification is printed as 64.0, its data sets give 62.8" in t for t in said["UniME-V2 Qwen2-VL 7B"])
    assert any(
        "39.2, is the mean of the four kinds; that of the 36 data sets is 37.8" in t for t in said["CLIP ViT-L/14"]
    )
    consistent = {"UniME LLaVA-OV 7B", "UniME-V2 Qwen2-VL 2B", "UniME Qwen2-VL 7B", "SaHa Qwen2-VL 2B"}
    assert not consistent & said.keys()
    table = published()["retrieval"]
    row = dict(zip(table["columns"], table["rows"]["UniME-V2 Qwen2-VL 2B"]))
    assert np.mean([row[name] for name in GROUPS["retrieval"]["Short"]]) == pytest.approx(72.1, abs=0.051)
    assert np.mean([row[name] for name in GROUPS["retrieval"]["Long"]]) == pytest.approx(93.4, abs=0.051)


# MMEB
def test_mmeb_is_read_whole_under_any_spelling(tmp_path):
    tasks = read_mmeb(write_mmeb(tmp_path))
    assert [task.name for task in tasks] == list(MMEB)
    assert all(task.split == MMEB[task.name].split and task.kind == MMEB[task.name].kind for task in tasks)
    assert all(task.relevant == [[0]] * 3 and [len(c) for c in task.candidates] == [4] * 3 for task in tasks)
    assert "4 candidates a query, published with 1000" in tasks[0].notes
    assert not any("do not say" in note for task in tasks for note in task.notes)
    (one,) = read_mmeb(tmp_path, ["places365"])
    assert one.name == "Place365" and one.queries[1].text.endswith("query 1")


def test_missing_data_sets_are_named_or_left_out(tmp_path):
    write_mmeb(tmp_path, ["GQA", "CIRR"])
    with pytest.raises(ValueError, match=r"lacks \['ImageNet-1K', .* partial"):
        read_mmeb(tmp_path)
    assert [task.name for task in read_mmeb(tmp_path, partial=True)] == ["GQA", "CIRR"]
    with pytest.raises(ValueError, match=r"\['CIFAR-100'\] are not data sets of MMEB"):
        read_mmeb(tmp_path, ["CIFAR-100"])
    with pytest.raises(ValueError, match="say where with image_root"):
        read_mmeb("hf://datasets/TIGER-Lab/MMEB-eval")
    shutil.copytree(tmp_path / "GQA", tmp_path / "gqa_")
    with pytest.raises(ValueError, match="GQA and .*gqa_ are the same data set under two names"):
        read_mmeb(tmp_path, ["GQA"])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tgt_text": ["a", "b", "c"]}, "row 0: tgt_text and tgt_img_path are lists"),
        ({"qry_img_path": ["images/GQA/0.png", "../x.png", ""]}, "row 1: image path '../x.png' leaves the image root"),
        ({"qry_img_path": ["images/GQA/0.png"] * 2 + ["no.png"]}, "row 2: image 'no.png' does not exist"),
        ({"tgt_text": [["a"], ["a"], []], "tgt_img_path": [[""], [""], []]}, "row 2: 0 target texts"),
        ({"qry_inst": [""] * 3, "tgt_inst": [[""]] * 3}, "row 0: 1 target instructions for 4 target texts"),
    ],
)
def test_malformed_mmeb_rows_are_named(tmp_path, change, message):
    path = write_mmeb(tmp_path, ["GQA"]) / "GQA" / "test-00000-of-00001.parquet"
    write_parquet(path, {**pq.read_table(path).to_pydict(), **change})
    with pytest.raises(ValueError, match=message) as error:
        read_mmeb(tmp_path, ["GQA"])
    assert str(path) in str(error.value)


def test_instructions_in_columns_of_their_own_are_joined_to_the_texts(tmp_path):
    (task,) = read_mmeb(write_mmeb(tmp_path, ["GQA"], instructions=True), ["GQA"])
    assert (
        task.queries[2].text == f"<|image_1|> {MMEB['GQA'].instruction} query 2\n" and task.corpus[0].text == "GQA 0"
    )


# images and captions
def test_captions_count_for_every_image_that_has_them():
    images = [Item(image=f"{i}.png") for i in range(3)]
    a, b, c = Item("a"), Item("b"), Item("c")
    t2i, i2t = both_ways("x", images, [[a, b], [c], [b, b]])
    assert [t2i.name, i2t.name] == ["x_t2i", "x_i2t"] and t2i.queries == [a, b, c, b, b]
    assert t2i.relevant == [[0], [0, 2], [1], [0, 2], [0, 2]]
    assert i2t.corpus == [a, b, c] and i2t.relevant == [[0, 1], [2], [1]]


def test_recall_of_several_captions_takes_the_best_of_them():
    images = [Item(image="0.png"), Item(image="1.png")]
    _, task = both_ways("x", images, [[Item("a"), Item("b")], [Item("c")]])
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    corpus = torch.tensor([[-1.0, 0.0], [0.9, 0.1], [0.95, 0.0]])  # for the first image: c, b, a
    found, top, similarity = score_task(queries, corpus, task, depth=5)
    assert found["ranks"] == [2, 3] and found["recall@1"] == 0 and found["recall@5"] == 1
    assert top[0].tolist() == [2, 1, 0, -1, -1]
    assert similarity[0, :3].tolist() == pytest.approx([0.95, 0.9, -1.0])


def test_retrieval_sets_are_read_from_their_public_layouts(tmp_path):
    write_captioned(tmp_path / "flickr30k")
    write_captioned(tmp_path / "coco", captions=7)
    write_urban1k(tmp_path / "urban1k")
    write_sharegpt4v(tmp_path / "sharegpt4v")
    tasks = {task.name: task for task in read_retrieval(tmp_path)}
    sizes = {name: (len(task.queries), len(task.corpus)) for name, task in tasks.items()}
    assert sizes == {
        "flickr30k_t2i": (20, 4),
        "flickr30k_i2t": (4, 20),
        "coco_t2i": (20, 4),
        "coco_i2t": (4, 20),
        "sharegpt4v_t2i": (3, 3),
        "sharegpt4v_i2t": (3, 3),
        "urban1k_t2i": (3, 3),
        "urban1k_i2t": (3, 3),
    }
    assert tasks["coco_i2t"].relevant[1] == [5, 6, 7, 8, 9], "the first five of seven captions"
    assert tasks["urban1k_t2i"].queries[0].text == "street 0", "the first line"
    assert tasks["sharegpt4v_t2i"].queries[2].text == "scene 2 in detail"
    notes = tasks["coco_t2i"].notes + tasks["flickr30k_i2t"].notes
    assert notes == [
        "4 images with 20 captions, published with 5000 and 25000",
        "4 images with 20 captions, published with 1000 and 5000",
    ]
    assert tasks["coco_t2i"].together == [image for image in range(4) for _ in range(5)]
    again = {task.name: task for task in read_retrieval(tmp_path, ["flickr30k"])}
    assert again["flickr30k_t2i"].corpus == tasks["flickr30k_t2i"].corpus, "pictures are unpacked once"


def test_malformed_retrieval_sets_are_named(tmp_path):
    path = write_captioned(tmp_path / "a") / "data" / "test-00000-of-00001.parquet"
    table = pq.read_table(path).to_pydict()
    write_parquet(path, {**table, "text": [["x"], [], ["y"], ["z"]]})
    with pytest.raises(ValueError, match=r"test-00000-of-00001.parquet, row 1: the image has no caption"):
        read_captioned("coco", tmp_path / "a", tmp_path / "cache")
    write_parquet(path, {"image": table["image"], "caption": table["text"]})
    with pytest.raises(ValueError, match=r"lacks the columns \['text'\]"):
        read_captioned("coco", tmp_path / "a", tmp_path / "cache")
    (write_urban1k(tmp_path / "b") / "Urban1k" / "caption" / "1.txt").unlink()
    with pytest.raises(ValueError, match=r"image/1.jpg has no counterpart"):
        read_urban1k(tmp_path / "b")
    file = write_sharegpt4v(tmp_path / "c") / "share-captioner_coco_lcs_sam_1246k_1107.json"
    file.write_text(json.dumps([json.loads(file.read_text())[0], {"image": "x.jpg", "conversations": []}]))
    with pytest.raises(ValueError, match=r"row 1 \(line 1\): lacks an image, or a caption"):
        read_sharegpt4v(tmp_path / "c")
    (tmp_path / "c" / "share-captioner_coco_lcs_sam_1246k_1107.json").write_text("[]")
    with pytest.raises(ValueError, match="sharegpt4v holds no image"):
        read_sharegpt4v(tmp_path / "c")
    with pytest.raises(ValueError, match=r"unknown retrieval sets \['cc3m'\]"):
        read_retrieval(tmp_path, ["cc3m"])


def test_sugarcrepe(tmp_path):
    tasks = read_sugarcrepe(write_sugarcrepe(tmp_path), tmp_path / "images" / "val2017")
    assert [task.name for task in tasks] == sorted(SUGARCREPE) and tasks[0].notes == ["3 pairs, published with 692"]
    rows = json.loads((tmp_path / "swap_obj.json").read_text())
    rows["1"]["negative_caption"] = rows["1"]["caption"]
    (tmp_path / "swap_obj.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=r"swap_obj.json, row 1: caption and negative_caption are equal"):
        read_sugarcrepe(tmp_path, tmp_path / "images" / "val2017")
    (tmp_path / "swap_obj.json").write_text("{")
    with pytest.raises(ValueError, match=r"swap_obj.json is not JSON"):
        read_sugarcrepe(tmp_path, tmp_path / "images" / "val2017")


# MMEB-V2
def test_visual_documents_have_graded_relevance(tmp_path):
    tasks = read_visdoc(write_visdoc(tmp_path))
    assert [task.name for task in tasks] == list(VISDOC) and all(task.metric == "ndcg@5" for task in tasks)
    task = tasks[0]
    assert task.relevant == [[0, 1], [1, 2], [2, 3]] and task.gains == [[2.0, 1.0]] * 3 and task.candidates is None
    assert task.queries[1].text == "Find a document image that matches the given query: question 1"
    queries, corpus = torch.eye(4)[[1, 1, 1]], torch.eye(4)
    scores = score_task(queries, corpus, task)[0]
    first = (2 / np.log2(5) + 1 / np.log2(2)) / (2 + 1 / np.log2(3))  # page 1 first; page 0 last of three equal ones
    second = (2 + 1 / np.log2(5)) / (2 + 1 / np.log2(3))
    third = (2 / np.log2(5) + 1 / np.log2(4)) / (2 + 1 / np.log2(3))  # of equal ones the less relevant first
    assert scores["values"] == pytest.approx([first, second, third], abs=1e-6)


def test_visual_documents_that_are_broken_are_named(tmp_path):
    name = "ViDoRe_arxivqa"
    home = write_visdoc(tmp_path, [name]) / VISDOC[name][1]
    qrels = home / "qrels" / "test-00000-of-00001.parquet"
    table = pq.read_table(qrels).to_pydict()
    write_parquet(qrels, {**table, "corpus-id": [*table["corpus-id"][:-1], 99]})
    with pytest.raises(ValueError, match="row 8: there is no document 99"):
        read_visdoc(tmp_path, [name])
    write_parquet(qrels, {**table, "score": [0.0] * 3 + table["score"][3:]})
    (task,) = read_visdoc(tmp_path, [name])
    assert len(task.queries) == 2 and task.notes == ["1 queries without a relevant document left out"]
    shutil.rmtree(home / "corpus")
    with pytest.raises(ValueError, match="corpus holds no test-"):
        read_visdoc(tmp_path, [name])
    with pytest.raises(ValueError, match="lacks .*ViDoRe_docvqa"):
        read_visdoc(tmp_path)


def test_videos_are_read_from_their_public_layouts(tmp_path, embedder):
    root = write_video(tmp_path)
    tasks = {task.name: task for task in read_video(root)}
    assert list(tasks) == [name for own in VIDEO.values() for name in own]
    assert all(task.queries and task.corpus for task in tasks.values())

    def right(name, query=0):
        task = tasks[name]
        options = task.options(query)
        return [task.corpus[options[place]] for place in task.relevant[query]]

    assert [right(name)[0].text for name in ("K700", "SmthSmthV2")] == ["run", "push"]
    assert right("Video-MME")[0].text == "blue" and right("MVBench")[0].text == "(B) blue"
    assert right("NExTQA")[0].text == "reason 4" and right("ActivityNetQA")[0].text == "no"
    assert right("QVHighlight")[0].image.endswith("v0/positive") and len(tasks["QVHighlight"].corpus) == 2
    assert right("DiDeMo", 1)[0].image.endswith("DiDeMo/v1") and tasks["DiDeMo"].candidates is None
    seeker = tasks["MomentSeeker"].queries
    assert [item.image.rsplit("/", 1)[-1] for item in seeker] == ["", "query_q.jpg", "a_p"]
    video = right("DiDeMo")[0]
    assert video.is_video and set(video.as_input()) == {"text", "video"}
    _, (clip,) = embedder.processor.render(video.as_input())
    assert [name.rsplit("_", 1)[1] for name in clip.frames] == ["1.jpg", "2.jpg", "10.jpg"], "by number, not by letter"
    frames = embedder.encode({"text": video.text, "video": video.image})
    assert torch.isfinite(frames).all()


@pytest.mark.parametrize(
    "file, row, name, message",
    [
        ("k700", {"video_id": "v9", "pos_text": "run"}, "K700", "k700.jsonl, row 0: image 'v9' does not exist"),
        ("k700", {"video_id": "v0"}, "K700", "row 0: lacks 'pos_text'"),
        (
            "activitynetqa",
            {"video_name": "v0", "question": "q", "answer": "maybe"},
            "ActivityNetQA",
            "'maybe' is not one",
        ),
        ("nextqa", [1], "NExTQA", "row 0: is not an object"),
        (
            "video-mme",
            {"videoID": "v0", "question": "q", "options": ["Yes"], "answer": "A"},
            "Video-MME",
            "row 0: the option 'Yes' does not begin with its letter",
        ),
        (
            "video-mme",
            {"videoID": "v0", "question": "q", "options": ["A. x"], "answer": ""},
            "Video-MME",
            "row 0: the answer '' is not one",
        ),
        (
            "egoschema",
            {"video_idx": "v0", "question": "q", "option": ["A. x"], "answer": "x"},
            "EgoSchema",
            "row 0: 'answer' is not a number but 'x'",
        ),
    ],
)
def test_broken_video_rows_are_named(tmp_path, file, row, name, message):
    root = write_video(tmp_path)
    (root / "data" / f"{file}.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=message):
        read_video(root, [name])


def test_files_without_a_row_are_named(tmp_path):
    root = write_video(tmp_path / "video")
    (root / "data" / "k700.jsonl").write_text("")
    with pytest.raises(ValueError, match="k700.jsonl holds no usable row of K700"):
        read_video(root, ["K700"])
    (tmp_path / "crepe").mkdir()
    (tmp_path / "crepe" / "swap_obj.json").write_text("[]")
    with pytest.raises(ValueError, match="swap_obj.json is not an object of rows"):
        read_sugarcrepe(tmp_path / "crepe", tmp_path)
    path = write_mmeb(tmp_path / "mmeb", ["GQA"]) / "GQA" / "test-00000-of-00001.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(ValueError, match="GQA holds no usable row of GQA"):
        read_mmeb(tmp_path / "mmeb", ["GQA"])


def test_a_video_is_known_by_its_frames(tmp_path):
    root = write_video(tmp_path)
    (task,) = read_video(root, ["DiDeMo"])
    before = item_name(task.corpus[0], root)
    assert before == item_name(read_video(root, ["DiDeMo"])[0].corpus[0], root) and str(root) not in before
    (root / "frames" / "video_ret" / "DiDeMo" / "v0" / "frame_2.jpg").write_bytes(b"another")
    assert item_name(task.corpus[0], root) != before


def test_the_released_sugarcrepe_is_read_whole(tmp_path):
    released = ROOT.parent / "shared" / "data" / "sugarcrepe"
    if not released.exists():
        pytest.skip("the released files are not here")
    for path in released.glob("*.json"):
        for row in json.loads(path.read_text()).values():
            (tmp_path / row["filename"]).touch()
    tasks = read_sugarcrepe(released, tmp_path)
    assert {task.name: len(task.queries) for task in tasks} == SUGARCREPE
    assert not any(task.notes for task in tasks) and sum(len(task.candidates) for task in tasks) == 7511
