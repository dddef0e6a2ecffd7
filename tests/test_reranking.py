"""The reranker: shared prefixes, the vision cache, answer formats, listwise distributions, fused ranking."""

import math

import pytest
import torch
from conftest import picture
from peft import LoraConfig, get_peft_model

from unime import UniMEProcessor, UniMERerankerForCausalLM
from unime.commands.search import rerank
from unime.data.schema import Item
from unime.jobs.reranking import Reranker
from unime.prompts_unime import LISTWISE_ANSWER
from unime.scoring_unime import groups_of

KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "llava_next", "llava_onevision", "phi3_v")
QUERY = {"text": "Find the caption.", "image": picture(20, (90, 60))}


@pytest.fixture(scope="module", params=KINDS)
def judged(request, tiny):
    return request.param, UniMERerankerForCausalLM.from_backbone(tiny(request.param)[0])


@pytest.fixture(scope="module")
def judge(tiny):
    return UniMERerankerForCausalLM.from_backbone(tiny("qwen2_5_vl")[0])


def test_shared_prefix_equals_pair_by_pair(judged):
    kind, reranker = judged
    texts = ["a red circle", "a blue star left of a red circle, and much more text than that", "x", "a red circle"]
    images = [picture(21), {"text": "at night", "image": picture(22, (40, 80))}, "a red circle", picture(20, (90, 60))]
    cases = [(QUERY, texts), ("only text", texts), (QUERY, texts[:1])]
    if kind != "llava_next":  # it takes one image at a time
        cases += [(QUERY, images), ("only text", images)]
    for query, candidates in cases:
        apart = reranker.score(query, candidates, share_prefix=False)
        assert (reranker.score(query, candidates) - apart).abs().max() <= 1e-5
        assert (reranker.score(query, candidates, batch_tokens=128) - apart).abs().max() <= 1e-5
    assert len(set(reranker.score(QUERY, texts).tolist())) == 3, "equal candidates, equal scores; others differ"


def test_prefix_and_images_are_run_once(judge):
    calls, seen = [], []
    whole, look = judge.vlm.forward, judge.vlm.get_image_features
    judge.vision_cache.entries.clear()

    def forward(input_ids=None, mm_encoder_outputs=None, logits_to_keep=0, **kwargs):
        calls.append(input_ids.numel())
        return whole(
            input_ids=input_ids, mm_encoder_outputs=mm_encoder_outputs, logits_to_keep=logits_to_keep, **kwargs
        )

    def features(pixel_values, image_grid_thw=None, **kwargs):
        seen.append(len(image_grid_thw))
        return look(pixel_values, image_grid_thw, **kwargs)

    judge.vlm.forward, judge.vlm.get_image_features = forward, features
    try:
        judge.score(QUERY, [f"candidate {i}" for i in range(9)])
        shared = sum(calls)
        judge.score(QUERY, [f"candidate {i}" for i in range(9)])
        assert seen == [1], "one image, seen in the first call only"
        calls.clear()
        judge.score(QUERY, [f"candidate {i}" for i in range(9)], share_prefix=False)
        assert shared < sum(calls) / 4
    finally:
        judge.vlm.forward, judge.vlm.get_image_features = whole, look


def test_vision_cache_is_bounded_and_forgets_changed_weights(judge):
    cache = judge.vision_cache
    cache.entries.clear()
    limit, cache.max_tokens = cache.max_tokens, 20
    try:
        for seed in range(6):
            judge.score(picture(30 + seed, (84, 84)), ["a"])  # nine tokens each
        assert 0 < sum(entry.tokens for entry in cache.entries.values()) <= 20
        before = judge.score(picture(35, (84, 84)), ["a"])
        weight = judge.vlm.model.visual.merger.mlp[2].weight
        with torch.no_grad():
            weight.mul_(1.5)
        after = judge.score(picture(35, (84, 84)), ["a"])
        fresh = judge.score(picture(35, (84, 84)), ["a"], share_prefix=False)
        with torch.no_grad():
            weight.div_(1.5)
        assert (after - fresh).abs().max() < 1e-6 and (after - before).abs().max() > 1e-6
    finally:
        cache.max_tokens = limit
        cache.entries.clear()


def test_vision_cache_knows_processors_and_adapters(tiny):
    reranker = UniMERerankerForCausalLM.from_backbone(tiny("llava_onevision")[0])
    candidates, image = ["a", "b c"], picture(4, (56, 45))
    first = reranker.score(image, candidates)
    reranker.processor = UniMEProcessor.from_backbone(tiny("llava_onevision")[0], anyres_padding="legacy")
    legacy = reranker.score(image, candidates)
    assert (legacy - reranker.score(image, candidates, share_prefix=False)).abs().max() < 1e-6
    assert (legacy - first).abs().max() > 1e-6
    adapted = get_peft_model(reranker, LoraConfig(target_modules=r".*vision_tower.*q_proj", init_lora_weights=False))
    with_adapter = reranker.score(image, candidates)
    with adapted.disable_adapter():
        assert (reranker.score(image, candidates) - legacy).abs().max() < 1e-6
    assert (with_adapter - legacy).abs().max() > 1e-6
    held = [seen.features.untyped_storage().nbytes() for seen in reranker.vision_cache.entries.values()]
    assert held == [seen.features.nbytes for seen in reranker.vision_cache.entries.values()]


def test_many_images_are_scored_in_groups_that_fit_the_cache(judge):
    candidates = [picture(50 + seed, (84, 84)) for seed in range(7)]
    whole = judge.score(QUERY, candidates)
    judge.vision_cache.entries.clear()
    limit, judge.vision_cache.max_tokens = judge.vision_cache.max_tokens, 30
    try:
        entries = judge.processor.prepare(
            [judge.processor.rerank_messages(QUERY, [c], "pointwise") for c in candidates]
        )
        groups = groups_of(entries, 30)
        assert [i for group in groups for i in group] == list(range(7)) and [len(g) for g in groups] == [2, 2, 2, 1]
        assert (judge.score(QUERY, candidates) - whole).abs().max() < 1e-6
    finally:
        judge.vision_cache.max_tokens = limit


def test_answer_formats_and_variants(judge):
    processor, candidates = judge.processor, ["a red circle", "a blue star"]
    messages = [processor.rerank_messages("q", [c], "pointwise", answer_format="multiple_choice") for c in candidates]
    assert "A. Yes, the candidate fully matches the query." in messages[0][0]["content"][0]["text"]

    def logits_of(messages):
        batch = processor.collate(processor.prepare(messages), padding_side="left")
        with torch.no_grad():
            return judge(**batch).logits[:, -1]

    def chance(logits, words):
        groups = [[processor.tokenizer(word)["input_ids"] for word in group] for group in words]
        tops = [logits[:, [ids[0] for ids in group if len(ids) == 1]].logsumexp(1) for group in groups]
        return torch.stack(tops, 1).softmax(1)[:, 0]

    found = judge.score("q", candidates, answer_format="multiple_choice")
    assert (found - chance(logits_of(messages), [["A"], ["B"]])).abs().max() < 1e-6
    plain = logits_of([processor.rerank_messages("q", [c], "pointwise") for c in candidates])
    spellings = [[space + f(w) for space in ("", " ") for f in (str, str.lower, str.upper)] for w in ("Yes", "No")]
    assert (judge.score("q", candidates, sum_variants=True) - chance(plain, spellings)).abs().max() < 1e-6
    assert (judge.score("q", candidates) - chance(plain, [["Yes"], ["No"]])).abs().max() < 1e-6
    with pytest.raises(ValueError, match="answer_format must be"):
        judge.score("q", candidates, answer_format="stars")


def test_listwise_numbers_of_two_digits_are_the_product_of_their_tokens(judge):
    """Against one forward pass per prefix of a number, in plain loops, constrained to numbers that exist."""
    processor, count = judge.processor, 23
    candidates = [f"candidate of number {i}" for i in range(count)]
    found = {entry["index"]: entry["score"] for entry in judge.rank("q", candidates, strategy="listwise")}
    messages = processor.rerank_messages("q", candidates, "listwise")

    def next_token(written, allowed):
        (entry,) = processor.prepare([messages], suffix=LISTWISE_ANSWER)
        ids = torch.tensor(
            [entry.input_ids + processor.tokenizer(written)["input_ids"] if written else entry.input_ids]
        )
        with torch.no_grad():
            logits = judge(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1].double()
        chances = logits[[processor.tokenizer(token)["input_ids"][0] for token in allowed]].softmax(0)
        return dict(zip(allowed, chances.tolist()))

    first = next_token("", [str(d) for d in range(1, 10)])
    ones, twos = next_token("1", [*map(str, range(10)), ")"]), next_token("2", ["0", "1", "2", "3", ")"])
    for number in range(1, count + 1):
        text = str(number)
        expected = first[text[0]]
        if text[0] in "12":
            expected *= (ones if text[0] == "1" else twos)[text[1] if len(text) == 2 else ")"]
        assert abs(found[number - 1] - expected) < 1e-6
    assert abs(sum(found.values()) - 1) < 1e-6


def test_shuffled_rounds_average_over_positions(judge):
    candidates = ["a red circle", "a blue star", "a green square"]

    def scores(**options):
        ranked = judge.rank("q", candidates, strategy="listwise", **options)
        return torch.tensor([entry["score"] for entry in sorted(ranked, key=lambda entry: entry["index"])])

    generator, expected = torch.Generator().manual_seed(5), torch.zeros(3)
    for number in range(4):
        order = torch.randperm(3, generator=generator).tolist() if number else [0, 1, 2]
        for entry in judge.rank("q", [candidates[i] for i in order], strategy="listwise"):
            expected[order[entry["index"]]] += entry["score"] / 4
    assert (scores(rounds=4, seed=5) - expected).abs().max() < 1e-6
    assert torch.equal(scores(rounds=4, seed=5), scores(rounds=4, seed=5))
    assert not torch.allclose(scores(rounds=4, seed=5), scores())
    assert judge.rank("q", candidates[:1], strategy="listwise") == [{"index": 0, "corpus_id": 0, "score": 1.0}]
    assert judge.rank("q", [], strategy="listwise") == []


def test_fused_adds_the_weighted_score(judge):
    candidates, retrieval = ["a red circle", "a blue star", "x"], [0.1, 0.9, 0.5]
    expected = torch.tensor(retrieval) + 0.25 * judge.score("q", candidates)
    ranked = judge.rank("q", candidates, strategy="fused", retrieval_scores=retrieval, weight=0.25)
    assert [entry["index"] for entry in ranked] == expected.argsort(descending=True).tolist()
    assert ranked[0]["score"] == pytest.approx(float(expected.max()))


@pytest.fixture
def confident(judge, monkeypatch):
    """The judge, sure of Yes for all three candidates: probabilities of 1.0 in float32 whose log-odds differ."""

    def next_logits(prepared, tokens, *options):
        logits = torch.zeros(len(prepared), len(tokens))
        logits[:, 0] = torch.tensor([20.0, 60.0, 50.0])
        return logits

    monkeypatch.setattr(judge, "_next_logits", next_logits)
    return judge


def test_confident_answers_are_ranked_by_their_log_odds(confident):
    candidates = ["a", "b", "c"]
    assert confident.score("q", candidates).tolist() == [1.0, 1.0, 1.0]
    assert confident.score("q", candidates, output="logit").tolist() == [20.0, 60.0, 50.0]
    ranking = confident.rank("q", candidates)
    assert [(entry["index"], entry["score"]) for entry in ranking] == [(1, 1.0), (2, 1.0), (0, 1.0)]
    ranking = confident.rank("q", candidates, output="logit", top_k=2)
    assert [(entry["index"], entry["score"]) for entry in ranking] == [(1, 60.0), (2, 50.0)]
    with pytest.raises(ValueError, match="output must be one of probability, logit, got 'log'"):
        confident.score("q", candidates, output="log")
    with pytest.raises(TypeError, match="output means nothing to the strategy 'generate'"):
        confident.rank("q", candidates, strategy="generate", output="logit")


def test_fused_sums_that_are_equal_are_ranked_by_log_odds(confident):
    def order(retrieval_scores, **options):
        options = {"strategy": "fused", "retrieval_scores": retrieval_scores, **options}
        return [(e["index"], e["score"]) for e in confident.rank("q", ["a", "b", "c"], **options)]

    assert [index for index, _ in order([0.5, 0.5, 0.5])] == [1, 2, 0]
    assert order([0.5, 0.25, 0.25]) == [(0, 1.5 - 1 / (1 + math.exp(20))), (1, 1.25), (2, 1.25)]
    assert order([50, 0, 20], output="logit") == [(2, 70.0), (0, 70.0), (1, 60.0)]
    assert order([0.5, 0.25, 0.25], weight=0) == [(0, 0.5), (1, 0.25), (2, 0.25)]
    with pytest.raises(ValueError, match="the retrieval score of candidate 1 is NaN"):
        order([0.5, float("nan"), 0.1])
    with pytest.raises(ValueError, match="weight must be finite, got nan"):
        order([0.5, 0.4, 0.1], weight=float("nan"))
    with pytest.raises(ValueError, match="one retrieval score for each candidate"):
        order([0.5, 0.4])


def test_benchmarks_and_commands_take_their_order_from_log_odds(confident):
    reranker = Reranker("judge")
    reranker.model = confident
    items = [Item("a"), Item("b"), Item("c")]
    assert reranker.scores("q", ["a", "b", "c"], [0.0] * 3) == [20.0, 60.0, 50.0]
    rows = rerank(reranker, {"text": "q"}, items, [(2, 0.3), (0, 0.2), (1, 0.1)])
    assert [(row["index"], row["score"]) for row in rows] == [(0, 1.0), (1, 1.0), (2, 1.0)]
    fused = Reranker("judge", "fused")
    fused.model = confident
    assert sorted(fused.scores("q", ["a", "b", "c"], [0.5, 0.5, 0.4])) == [1.4, 1.5 - 1 / (1 + math.exp(20)), 1.5]


def test_improbable_numbers_of_a_list_are_told_apart(judge, monkeypatch):
    (first,), (second,), (third,) = (answer[:1] for answer in judge._number_tokens(3))
    logit_of = {first: 5.0, second: 300.0, third: 0.0}

    def next_logits(prompts, columns, *options, **settings):
        return torch.tensor([[logit_of[column] for column in columns]])

    monkeypatch.setattr(judge, "_next_logits", next_logits)
    ranking = judge.rank("q", ["a", "b", "c"], strategy="listwise")
    assert [entry["index"] for entry in ranking] == [1, 0, 2]
    assert ranking[0]["score"] == 1.0 and ranking[1]["score"] == pytest.approx(math.exp(-295))
    logits = {e["index"]: e["score"] for e in judge.rank("q", ["a", "b", "c"], strategy="listwise", output="logit")}
    assert logits == pytest.approx({0: -295.0, 1: 295 - math.log1p(math.exp(-5)), 2: -300.0})
    (only,) = judge.rank("q", ["a"], strategy="listwise", output="logit")
    assert only["score"] == math.inf
    reranker = Reranker("judge", "listwise")
    reranker.model = judge
    assert math.isfinite(reranker.scores("q", ["a"], [0.0])[0])


def test_a_repetition_penalty_must_be_above_zero(judge):
    for penalty in (0, 0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="repetition_penalty must be a number above 0"):
            judge.score("q", ["a"], repetition_penalty=penalty)
        with pytest.raises(ValueError, match="repetition_penalty must be a number above 0"):
            judge.rank("q", ["a"], repetition_penalty=penalty)


def test_a_bad_candidate_is_named(judge):
    with pytest.raises(ValueError, match="candidate 1: image 'missing.png' cannot be read"):
        judge.score("q", ["a", {"image": "missing.png"}])
    with pytest.raises(TypeError, match="candidates must be a list of items, not a dict"):
        judge.score("q", {"text": "a", "image": picture(0)})
    with pytest.raises(TypeError, match="query is a chat; the judge reads"):
        judge.score([{"role": "user", "content": "a"}], ["b"])


@pytest.mark.filterwarnings("ignore:the answer")
# it generates from embeddings, as the ids of its images are in no vocabulary
@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty` with `inputs_embeds`")
def test_phi_generates_with_a_repetition_penalty(tiny):
    reranker = UniMERerankerForCausalLM.from_backbone(tiny("phi3_v")[0])
    reranker.generation_config.repetition_penalty = 1.05
    assert len(reranker.rank(QUERY, ["a", "b"], strategy="generate")) == 2


@pytest.mark.filterwarnings("ignore:the answer")  # random weights name no candidate
def test_generation_runs_on_every_backbone(judged):
    _, reranker = judged
    ranked = reranker.rank("q", ["a", "b"], strategy="generate")
    assert sorted(entry["index"] for entry in ranked) == [0, 1]


@pytest.mark.parametrize("answer, picked", [("Ans: (2)", 1), ("(1) it is", 0), ("Ans: (4)", None), ("none", None)])
def test_what_a_written_answer_names(judged, monkeypatch, answer, picked):
    _, reranker = judged
    monkeypatch.setattr(type(reranker), "_generate", lambda *arguments: answer)
    assert reranker.pick("q", ["a", "b", "c"]) == picked
    order = [0, 1, 2]
    if picked is None:
        with pytest.warns(UserWarning, match="names none of 3 candidates"):
            ranked = reranker.rank("q", ["a", "b", "c"], strategy="generate")
    else:
        order.insert(0, order.pop(picked))
        ranked = reranker.rank("q", ["a", "b", "c"], strategy="generate")
    assert [entry["index"] for entry in ranked] == order
