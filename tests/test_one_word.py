"""Lessons in one word: what they ask, what is right, and how they are tokenised."""

import json

import pytest

from unime.data.readers import read_mmeb_train
from unime.miniature.backbone import GenerativeCollator, build_processor, build_tokenizer, world_texts
from unime.miniature.one_word import REQUESTS, SYSTEMS, make_rows, words_of
from unime.prompts_unime import PRESETS


@pytest.mark.parametrize(
    "content, words",
    [
        ("pair|red circle,blue circle|left of", ["red", "circle", "blue", "left"]),
        ("an orange cross below a yellow ring", ["orange", "cross", "below", "yellow", "ring"]),
        ("The background is teal. In the top left there is a small star.", ["teal", "top", "left", "small", "star"]),
        ("three blue crosses", ["three", "blue", "crosses"]),
        ("scans [12, 7]", []),
    ],
)
def test_words_are_those_that_stand_for_something_in_the_picture(content, words):
    assert words_of(content) == words


def test_an_answer_is_a_word_of_what_is_right(world):
    lessons = make_rows(world, 300, seed=0)
    assert lessons == make_rows(world, 300, seed=0) != make_rows(world, 300, seed=1)
    assert 100 < sum(bool(lesson["system"]) for lesson in lessons) < 200

    # of each picture, and of each text without one: what the rows that it stands in are about
    words = {}
    for path in (world / "truth").glob("*.json"):
        rows = read_mmeb_train(world / "train", [path.stem], image_root=world)
        for row, content in zip(rows, json.loads(path.read_text())):
            for item in (row["query"], row["positive"]):
                words.setdefault(item["image"] or item["text"].strip(), set()).update(words_of(content))
    for lesson in lessons:
        query = lesson["query"]
        text = query["text"].split("\nSummary above")[0]
        for request in REQUESTS:
            text = text.removesuffix(request).strip()
        assert lesson["answer"] in words[query["image"] or text]


def test_a_lesson_is_worded_as_a_chat_and_only_its_answer_is_learnt(world):
    tokenizer = build_tokenizer(world_texts(world))
    lessons = make_rows(world, 60, seed=0)
    caption = {"task": "caption", "query": lessons[0]["query"], "candidates": [], "answer": "a star", "system": ""}
    batch = GenerativeCollator(build_processor(tokenizer), world)([*lessons, caption])

    for labels, ids, lesson in zip(batch["labels"], batch["input_ids"], [*lessons, caption]):
        text = tokenizer.decode(ids).replace("<|endoftext|>", "")
        system = f"<|im_start|>system\n{lesson['system']}<|im_end|>\n" if lesson["system"] else ""
        assert text.startswith(f"{system}<|im_start|>user\n")
        assert text.endswith(
            f"{lesson['query']['text']}<|im_end|>\n<|im_start|>assistant\n{lesson['answer']}<|im_end|>"
        )
        assert ("<|vision_start|>" in text) == bool(lesson["query"]["image"])
        assert tokenizer.decode(labels[labels >= 0]) == f"{lesson['answer']}<|im_end|>"


def test_the_words_of_the_hierarchical_prompt_are_not_among_those_that_are_taught():
    preset = PRESETS["hierarchical"]
    assert preset.system not in SYSTEMS
    for request in REQUESTS:
        assert request not in preset.query.text and request not in preset.query.image
