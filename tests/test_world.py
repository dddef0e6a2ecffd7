"""The miniature world: deterministic, true to its scenes, disjoint between train and test, in MMEB's layout."""

import csv
import json
import random

import pyarrow.parquet as pq
import pytest
from PIL import Image

from unime.data.readers import read_mmeb_train
from unime.eval.tasks import read_world_tasks
from unime.miniature import scenes
from unime.miniature.sources import Digits
from unime.miniature.tasks import KINDS, Row, with_candidates
from unime.miniature.world import build, main

NEGATIVE = ("neg_text", "neg_image_path")


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path):
    small = {"train_rows": 3, "test_rows": 3, "pretrain_rows": 6, "show_progress": False}
    first, second, other = (
        files(build(tmp_path / name, seed=seed, **small)) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == second
    assert first.keys() != other.keys()


def test_a_finished_world_is_kept_and_another_one_is_refused(world):
    before = (world / "world.json").stat().st_mtime_ns
    assert build(world, train_rows=16, test_rows=12, pretrain_rows=64, show_progress=False) == world
    assert (world / "world.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="holds a world made with"):
        build(world, seed=5)


def test_train_and_test_share_no_content():
    rng = random.Random(0)
    for make in (scenes.one, scenes.pair, scenes.crowd, scenes.quarters):
        contents = [make(rng).content for _ in range(400)]
        split = {content: scenes.is_test(content) for content in contents}
        assert 0.05 < sum(split.values()) / len(split) < 0.35
    digits = Digits()
    seen, held_out = ({scan.tobytes() for _, scan in digits.scans[test]} for test in (False, True))
    assert len(digits.scans[False]) + len(digits.scans[True]) == 1797
    assert len(seen & held_out) <= 2, "a few scans occur twice in the data set itself"


def test_no_training_picture_is_a_test_picture(world):
    train = {
        row["image"]
        for name in ("query", "positive")
        for row in read_mmeb_train(world / "train", image_root=world)[name]
    }
    for negatives in read_mmeb_train(world / "train", image_root=world)["negatives"]:
        train |= {item["image"] for item in negatives}
    test = {item.image for task in read_world_tasks(world) for item in task.queries + task.corpus}
    assert not (train & test) - {""}


def test_every_kind_of_task_is_there_in_mmebs_columns(world):
    assert set(KINDS.values()) == {"Classification", "VQA", "Retrieval", "Grounding"}
    for name in KINDS:
        train = pq.read_table(world / "train" / name / "original-00000-of-00001.parquet")
        assert train.column_names == ["qry", "qry_image_path", "pos_text", "pos_image_path", *NEGATIVE]
        table = pq.read_table(world / "eval" / name / "test-00000-of-00001.parquet")
        assert table.column_names == ["qry_text", "qry_img_path", "tgt_text", "tgt_img_path"]
        for row in table.to_pylist():
            targets = list(zip(row["tgt_text"], row["tgt_img_path"]))
            assert len(targets) == len(set(targets)) <= 100
            for image in filter(None, [row["qry_img_path"], *row["tgt_img_path"]]):
                assert (world / image).exists()


def test_what_a_test_picture_shows_is_what_the_caption_says_that_finds_it(world):
    shown = json.loads((world / "truth" / "test" / "pictures.json").read_text())
    for row in pq.read_table(world / "eval" / "Shapes_t2i" / "test-00000-of-00001.parquet").to_pylist():
        assert row["qry_text"].endswith(f" {shown[row['tgt_img_path'][0]]}\n")
        assert all(shown[path] not in row["qry_text"].splitlines()[0] for path in row["tgt_img_path"][1:])


def test_candidates_number_a_hundred_where_there_are_enough_rows(tmp_path):
    rows = [Row(("q", ""), (f"target {i}", ""), str(i)) for i in range(150)]
    lists = with_candidates("Shapes_t2i", rows, random.Random(0))
    assert all(len(candidates) == len(set(candidates)) == 100 for candidates in lists)
    assert [candidates[0] for candidates in lists] == [row.target for row in rows]
    closed = with_candidates("Shapes_object", [Row(("q", "i"), ("small red star", ""), "x")], random.Random(0))[0]
    assert len(closed) == 100 and closed[0] == ("small red star", "")


def colour_at(image, x, y):
    pixel = image.getpixel((x * 3 // 4, y * 3 // 4))
    return min(scenes.COLOURS, key=lambda name: sum((a - b) ** 2 for a, b in zip(scenes.COLOURS[name], pixel)))


def test_pictures_show_what_the_words_say():
    rng = random.Random(3)
    for _ in range(60):
        scene = scenes.pair(rng)
        image = scenes.draw(scene)
        assert image.size == (48, 48)
        for thing in scene.things:
            if thing.shape != "ring":  # a ring's centre is background
                assert colour_at(image, thing.x, thing.y) == thing.colour
        first, second = scene.things
        assert (first.x < second.x - 15) if scene.relation == "left of" else (first.y < second.y - 15)
        crowd = scenes.crowd(rng)
        assert scenes.NUMBERS[len(crowd.things)] in scenes.caption(crowd)


def test_negatives_are_false_and_paraphrases_are_not():
    rng = random.Random(4)
    for _ in range(200):
        scene = scenes.pair(rng)
        true = {scenes.caption(scene), scenes.paraphrase(scene)}
        found = scenes.negatives(scene, rng)
        assert not true & set(found.values())
        assert {"replace_att", "replace_obj", "replace_rel", "swap_obj", "add_att", "add_obj"} <= set(found)
        assert sorted(found["swap_obj"].split()) != [] and found["swap_obj"] != scenes.caption(scene)


def test_edits_change_one_thing_and_questions_have_known_answers():
    rng, known = random.Random(5), set(scenes.answers())
    for _ in range(200):
        scene = scenes.pair(rng)
        words, edited = scenes.change(scene, rng)
        assert sum(a != b for a, b in zip(scene.things, edited.things)) == 1
        assert any(thing.kind in words for thing in scene.things)
        for make in (scenes.one, scenes.pair, scenes.crowd, scenes.quarters):
            assert {answer for _, answer in scenes.questions(make(rng))} <= known
    assert len(known) >= 100


def test_sugarcrepe_and_nli_files(world):
    subsets = sorted(path.stem for path in (world / "compositional").glob("*.json"))
    assert subsets == ["add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj"]
    for subset in subsets:
        rows = json.loads((world / "compositional" / f"{subset}.json").read_text())
        assert len(rows) == 12
        assert all(
            row["caption"] != row["negative_caption"] and (world / "images" / row["filename"]).exists()
            for row in rows.values()
        )
    with open(world / "nli" / "nli_for_simcse.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 100 and all(row["sent0"] != row["sent1"] != row["hard_neg"] for row in rows)


def test_generative_rows_answer_what_they_ask(world):
    rows = pq.read_table(world / "pretrain" / "generative.parquet").to_pylist()
    assert all(row.keys() == {"task", "query", "candidates", "answer"} for row in rows)
    for row in rows:
        if row["task"] == "match":
            assert row["answer"] in ("Yes", "No") and len(row["candidates"]) == 1
        elif row["task"] == "pick":
            assert 1 <= int(row["answer"].removeprefix("Ans: (").removesuffix(")")) <= len(row["candidates"])
        else:
            assert row["answer"] and not row["candidates"]


def test_command_writes_a_world_and_a_contact_sheet(tmp_path, capsys):
    main(["--out", str(tmp_path / "w"), "--train-rows", "2", "--test-rows", "3", "--pretrain-rows", "2"])
    assert "contact sheet at" in capsys.readouterr().out
    sheet = Image.open(tmp_path / "w" / "contact_sheet.png")
    assert sheet.width > 1000 and len(sheet.getcolors(1 << 24)) > 50
