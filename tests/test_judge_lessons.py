"""The miniature judge's lessons are true, and reading them packed is reading them one by one."""

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from unime import UniMERerankerForCausalLM
from unime.miniature import scenes
from unime.miniature.judge import DESCRIBE, SO_FAR, JudgeConfig, JudgeTrainer, Lessons, add_layers
from unime.miniature.lessons import COMPARE, LONG, SINGLE, WHOLE, alter, make_lesson, make_list, redraw
from unime.miniature.packing import Packed
from unime.miniature.sources import Digits


@pytest.fixture(scope="module")
def digits():
    return Digits()


def test_a_lesson_is_a_function_of_seed_and_number_and_grows_harder():
    first, second = Lessons(100, 4, seed=3, batch=5), Lessons(100, 4, seed=3, batch=5)
    for number in (0, 20, 50, 99):
        one, two = first[number], second[number]
        assert one.task == two.task and one.right == two.right
        assert len(one.candidates) == (8 if one.task == "i2t" else 4), "captions are twice as many"
        assert [item["text"] for item in one.candidates] == [item["text"] for item in two.candidates]
    assert {first[number].task for number in range(15)} == set(COMPARE)
    assert {first[number].task for number in range(15, 25)} <= set(SINGLE)
    assert {first[number].task for number in range(100)} - set(SINGLE)


def test_captions_are_wrong_about_who_is_where_from_the_first_lesson(digits):
    rng = random.Random(0)
    swapped = 0
    for _ in range(40):
        lesson = make_lesson(rng, digits, level=0)
        said = [bag_of_words(item["text"]) for item in lesson.phrasings]
        for item, right in zip(lesson.candidates, lesson.right):
            swapped += not right and bag_of_words(item["text"]) in said
    assert swapped > 40, "at least one of sixteen has all words of a right one, in another order"


def bag_of_words(text):
    return sorted(text.split())


def test_a_pair_is_altered_in_all_that_sugarcrepe_replaces_and_swaps():
    rng = random.Random(0)
    found = Counter()
    for _ in range(400):
        scene = scenes.pair(rng)
        other = alter(scene, rng)
        (first, second), (one, two) = scene.things, other.things
        assert scenes.describe(replace(other, relation=placed(one, two))) == scenes.describe(other)
        found["relation"] += other.relation != scene.relation
        found["places"] += (one.kind, two.kind) == (second.kind, first.kind)
        found["colours"] += (one.colour, two.colour) == (second.colour, first.colour) and one.shape == first.shape
        found["colour or shape"] += (one.kind != first.kind) + (two.kind != second.kind) == 1
    assert min(found.values()) > 20 and len(found) == 4


def placed(one, two):
    """The relation of two things by where they are."""
    return "left of" if abs(two.x - one.x) > abs(two.y - one.y) else "above"


def test_all_tasks_occur_and_two_in_five_candidates_are_right(digits):
    rng = random.Random(0)
    found = [make_lesson(rng, digits, 2.5, long=number % 6 == 0) for number in range(300)]
    assert {lesson.task for lesson in found} == set(WHOLE) | set(LONG)
    share = sum(sum(lesson.right) for lesson in found) / sum(len(lesson.right) for lesson in found)
    assert 0.4 < share < 0.55
    for lesson in found:
        by_text = {}
        for item, right in zip(lesson.candidates, lesson.right):
            if "image" not in item:
                assert by_text.setdefault(item["text"], right) == right, "equal texts are equally right"
                assert (item in lesson.phrasings) == right, "what is right is said by one of the phrasings"
            else:
                assert not lesson.phrasings


def test_batches_of_lessons_are_long_or_short():
    lessons = Lessons(240, 2, seed=0, batch=6)
    kinds = [{lessons[number].task in LONG for number in range(start, start + 6)} for start in range(120, 240, 6)]
    assert {True} in kinds and {False} in kinds and {True, False} not in kinds


@pytest.mark.parametrize("make", [scenes.one, scenes.pair, scenes.crowd, scenes.quarters])
def test_redrawing_keeps_what_altering_changes(make):
    rng, changed = random.Random(0), Counter()
    for _ in range(60):
        scene = make(rng)
        assert scenes.describe(redraw(scene, rng)) == scenes.describe(scene)
        changed[scenes.describe(alter(scene, rng)) != scenes.describe(scene)] += 1
    assert changed[False] <= 2, "all but a rare change into itself"


def test_packed_lessons_have_the_loss_of_single_prompts(reranker, digits):
    lessons = [make_lesson(random.Random(number), digits, 2.5, 3) for number in range(12)]
    lessons += [
        next(lesson for n in range(99) if (lesson := make_lesson(random.Random(n), digits, 0.5, 3)).task == "same")
    ]
    batch = Packed(reranker)(lessons)
    assert torch.isclose(loss_of(reranker, batch), single_losses(reranker, lessons).mean(), atol=1e-5)
    prefix = batch["attention_mask"][0, 0] == 0  # who sees whom in the first lesson
    ends = batch["ends"][batch["ends"][:, 0] == 0][:, 1]
    assert prefix[ends[1], 0] and not prefix[ends[1], ends[0]], "a candidate sees the query, not its neighbour"


def test_a_text_is_right_up_to_the_token_where_no_right_text_goes_on_like_it(reranker, digits):
    rng = random.Random(3)
    lessons = [make_lesson(rng, digits, 2.9, 6, long=number % 3 == 0) for number in range(12)]
    batch = Packed(reranker)(lessons)
    processor = reranker.processor

    checked = 0
    for row, lesson in enumerate(lessons):
        labels = batch["so_far"][row]
        if not lesson.phrasings:
            assert (labels == -100).all(), "nothing is known of pictures"
            continue
        texts = [entry["text"] for entry in lesson.phrasings]
        starts = torch.nonzero(labels != -100)[:, 0]
        ends = batch["ends"][batch["ends"][:, 0] == row][:, 1].tolist()
        first = int(starts[0])
        for end, right in zip(ends, lesson.right):
            found = labels[first : end + 1].tolist()
            assert found == sorted(found, reverse=True) and found[-1] == right
            # what is right of a wrong text is what it shares with a right one
            words = processor.tokenizer.decode(batch["input_ids"][row, first : end + 1][torch.tensor(found) == 1])
            kept = words.replace("\n", " ").split("<|im_end|>")[0].strip()
            assert any(kept in text for text in texts)
            first = end + 1
            checked += 1
    assert checked > 20


def test_each_candidate_of_a_packed_list_is_labelled_where_it_stands(reranker, digits):
    lessons = [make_list(random.Random(number), digits, 2.9, 2 + number % 8) for number in range(24)]
    batch = Packed(reranker)(lessons)
    with_texts = 0
    for row, lesson in enumerate(lessons):
        labels = batch["so_far"][row]
        ids = batch["input_ids"][row]
        if not lesson.phrasings:
            assert labels[labels != -100].tolist() == [int(right) for right in lesson.right], "one label a picture"
            continue

        # labels stand on the candidates' texts, one after the other
        with_texts += 1
        labelled = torch.nonzero(labels != -100)[:, 0].tolist()
        runs = [[labelled[0]]]
        for place in labelled[1:]:
            if place == runs[-1][-1] + 1:
                runs[-1].append(place)
            else:
                runs.append([place])
        texts = [reranker.processor.tokenizer.decode(ids[run]).strip() for run in runs]
        assert texts == [item["text"].strip() for item in lesson.candidates]
        assert [bool(labels[run[-1]]) for run in runs] == lesson.right
    assert 5 < with_texts < 24


def test_one_candidate_of_a_list_is_right_and_in_any_place(digits):
    places = Counter()
    for number in range(200):
        lesson = make_list(random.Random(number), digits, 2.9, count=4)
        assert lesson.listwise and sum(lesson.right) == 1 and len(lesson.candidates) == 4
        places[lesson.right.index(True)] += 1
    assert all(25 < places[place] < 80 for place in range(4))


def test_a_packed_list_is_asked_as_in_ranking_and_counts_as_much_as_a_lesson(reranker, digits):
    lessons = [make_lesson(random.Random(0), digits, 2.5, 3), make_list(random.Random(1), digits, 2.5, 5)]
    packed = Packed(reranker)
    batch = packed(lessons)
    turn = reranker.processor.rerank_messages(lessons[1].query, lessons[1].candidates, "listwise")
    inputs = reranker.processor.collate(reranker.processor.prepare([turn], suffix="Ans: ("))
    place = lessons[1].right.index(True)
    number = reranker.processor.tokenizer(str(place + 1))["input_ids"]
    ends = batch["ends"][batch["ends"][:, 0] == 1][:, 1]
    with torch.no_grad():
        logits = reranker(**inputs).logits[0, ends]

    # due behind the right candidate and behind each after it, before the next number, and at the end
    following = [inputs["input_ids"][0, end + 1 :] for end in ends[:-1]]
    marks = [reranker.processor.tokenizer(f"({later})")["input_ids"] for later in range(place + 2, 6)]
    for ids, mark in zip(following, marks):
        assert ids[: len(mark)].tolist() == mark
    assert len(ends) == 5 - place + 1 and ends[-1] == inputs["input_ids"].shape[1] - 1
    losses = F.cross_entropy(logits, torch.tensor(number * len(ends)), reduction="none")
    of_list = (losses[:-1].mean() + losses[-1]) / 2
    expected = (single_losses(reranker, lessons[:1]).mean() + of_list) / 2
    assert torch.isclose(loss_of(reranker, batch), expected, atol=1e-5)


def test_the_last_answer_of_a_list_counts_the_same_wherever_the_right_one_stands(reranker, digits):
    lists = [make_list(random.Random(number), digits, 2.5, 5) for number in range(12)]
    assert len({lesson.right.index(True) for lesson in lists}) >= 4
    batch = Packed(reranker)(lists)
    for row in range(len(lists)):
        weights = batch["weights"][batch["ends"][:, 0] == row]
        assert float(weights.sum()) == pytest.approx(1 / 12) and float(weights[-1]) == pytest.approx(1 / 24)


def test_added_layers_change_nothing_at_first_and_texts_are_described_below_them(backbone, digits):
    deeper = UniMERerankerForCausalLM.from_backbone(backbone)
    lessons = [make_lesson(random.Random(number), digits, 2.5, 4) for number in range(8)]
    lessons += [make_list(random.Random(number), digits, 2.5, 5) for number in range(4)]
    batch = Packed(deeper)(lessons)
    before = loss_of(deeper, batch)
    with pytest.raises(ValueError, match="at least one layer above its backbone's, got added_layers 0"):
        add_layers(deeper, 0)
    add_layers(deeper, 2)
    assert loss_of(deeper, batch) == before

    # once they change something, descriptions are still those of the layers below
    torch.manual_seed(0)
    for layer in deeper.vlm.model.language_model.layers[-2:]:
        torch.nn.init.normal_(layer.mlp.down_proj.weight, std=0.1)
    deeper.train()
    found = loss_of(deeper, batch)

    below = UniMERerankerForCausalLM.from_backbone(backbone)
    described = batch["words"] != -100
    images = read_images(deeper, batch)
    words = F.cross_entropy(below.vlm.lm_head(hidden_of(below, batch, images)[described]), batch["words"][described])
    decided = batch["so_far"] != -100
    verdicts = hidden_of(deeper, batch, images)[decided] @ deeper.vlm.lm_head.weight[batch["verdicts"]].T
    so_far = F.cross_entropy(verdicts, batch["so_far"][decided])
    deeper.eval()
    assert torch.isclose(found, loss_of(deeper, batch) + DESCRIBE * words + SO_FAR * so_far, atol=1e-5)


def read_images(model, batch):
    """Features of the images of a batch, in the order in which they stand."""
    with torch.no_grad():
        features = model.vlm.get_image_features(**batch["images"], return_dict=True).pooler_output
    return torch.cat([features[place] for place in batch["order"]])


def hidden_of(model, batch, images):
    """The last hidden states of a packed batch `[B, L, H]`."""
    ids = batch["input_ids"]
    with torch.no_grad():
        embeddings = model.vlm.get_input_embeddings()(ids)
        embeddings[ids == model.processor.image_token_id] = images
        language_model = model.vlm.model.language_model
        seen = {"attention_mask": batch["attention_mask"], "position_ids": batch["position_ids"]}
        return language_model(inputs_embeds=embeddings, **seen).last_hidden_state


def loss_of(reranker, batch):
    """What the trainer takes for the loss of a packed batch."""
    trainer = JudgeTrainer.__new__(JudgeTrainer)
    trainer.args = JudgeConfig(added_layers=2)
    trainer.accelerator = type("Accelerator", (), {"unwrap_model": staticmethod(lambda model: model)})
    with torch.no_grad():
        return trainer.compute_loss(reranker, batch)


def single_losses(reranker, lessons):
    """The mean losses of the candidates of each lesson, each in a prompt of its own."""
    means = []
    no, yes = Packed(reranker).answers
    for lesson in lessons:
        losses = []
        for item, right in zip(lesson.candidates, lesson.right):
            turn = reranker.processor.rerank_messages(lesson.query, [item], "pointwise")
            inputs = reranker.processor.collate(reranker.processor.prepare([turn]))
            with torch.no_grad():
                losses.append(F.cross_entropy(reranker(**inputs).logits[:, -1], torch.tensor([yes if right else no])))
        means.append(torch.stack(losses).mean())
    return torch.stack(means)
