"""Rerankers by other authors: scores against what their own code gave, and against references written out by hand."""

import json
import re

import pytest
import torch
from conftest import ROOT, TEXTS, fresh_process, picture
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from test_adapters import stock_adapter
from test_pipeline import settings
from test_videos import pairs_of_frames
from tiny_checkpoints import tokenizer_for, write, write_json
from transformers import GenerationConfig, Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from unime import UniMEModel, UniMERerankerForCausalLM
from unime.checkpoints.cards import read_card
from unime.checkpoints.conversion import export
from unime.commands.rerank import main as rerank_main
from unime.data.readers import read_judged
from unime.data.schema import to_example
from unime.jobs.reranking import Reranker
from unime.mining.judging import LocalJudge
from unime.mining.pipeline import Mining, MiningConfig
from unime.windows_unime import order_in_windows, read_order, window_places

SHARED = ROOT.parent / "shared"
GOLDENS = ["LamRA-Rank", "Qwen3-VL-Reranker-2B", "jina-reranker-m0"]
SIZES = {"small": (200, 150), "street200x150": (200, 150), "wide": (330, 120), "wide330x120": (330, 120)}
WORDS = [*TEXTS, *["True", "False", "yes", "no"] * 20]
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


def street(name: str) -> Image.Image:
    """A picture of the goldens, by the name that they give it."""
    image = Image.open(SHARED / "data/street.jpg").convert("RGB")
    if name == "mirror":
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((200, 150), Image.Resampling.BICUBIC)
    if name == "lefthalf":
        return image.crop((0, 0, 400, 600)).resize((120, 180), Image.Resampling.BICUBIC)
    return image.resize(SIZES[name], Image.Resampling.BICUBIC)


def candidate_of(kind: str, value):
    """A candidate of a golden item."""
    if kind == "text":
        return value
    if kind == "image":
        return street(value)
    name, text = value
    return {"image": street(name), "text": text}


def query_of(item: dict):
    """The query of a golden item."""
    if "query" in item:  # jina's
        return street(item["query"]) if item["query_type"] == "image" else item["query"]
    query = {}
    if item["query_text"]:
        query["text"] = item["query_text"]
    if item["query_image"]:
        query["image"] = street(item["query_image"])
    return query


@pytest.mark.parametrize("name", GOLDENS)
def test_scores_are_those_of_the_authors_code(name):
    folder = SHARED / "checkpoints" / name
    if not folder.is_dir():
        pytest.skip("the checkpoints with values of the authors' code are not here")
    golden = json.loads((folder / "golden.json").read_text())
    reranker = UniMERerankerForCausalLM.from_backbone(folder)

    for item in golden["items"]:
        kind = item.get("candidate_kind") or item["doc_type"]
        candidates = [candidate_of(kind, value) for value in item["candidates"]]
        expected = torch.tensor(item.get("scores") or item["p_yes"])
        scores = reranker.score(query_of(item), candidates, instruction=item.get("instruction"))
        assert (scores - expected).abs().max() <= 1e-5, item["prompt_of_first"]

        question = reranker.processor.question(query_of(item), candidates[0], instruction=item.get("instruction"))
        prompt, _ = reranker.processor.render(question)
        assert prompt == item["prompt_of_first"]


# references written out by hand
def last_state(stock, tokenizer, prompt: str, image=None, appended=()) -> torch.Tensor:
    """The last hidden state of the stock model after a prompt of at most one image."""
    ids = tokenizer(prompt)["input_ids"]
    images = {}
    if image is not None:
        patch = stock.config.vision_config.patch_size
        images = dict(
            Qwen2VLImageProcessorPil(patch_size=patch, size={"shortest_edge": 3136, "longest_edge": 12845056})(
                images=[image], return_tensors="pt"
            )
        )
        token = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        place = ids.index(token)
        count = int(images["image_grid_thw"].prod() // 4)
        ids = ids[:place] + [token] * count + ids[place + 1 :]
        images["mm_token_type_ids"] = torch.tensor([[int(i == token) for i in ids] + [0] * len(appended)])
    ids = torch.tensor([[*ids, *appended]])
    with torch.no_grad():
        return stock.model(input_ids=ids, attention_mask=torch.ones_like(ids), **images).last_hidden_state[0, -1]


def logits_of(stock, tokenizer, state: torch.Tensor, words) -> torch.Tensor:
    """The logits of single words after a state."""
    rows = [tokenizer(word)["input_ids"] for word in words]
    assert all(len(row) == 1 for row in rows)
    return torch.stack([stock.lm_head.weight[row[0]] @ state for row in rows])


LAMRA = (
    "I will provide you with a query and a candidate. Please evaluate whether the candidate{}meets the requirements "
    "of the query. If it does, respond with 'Yes'; if it doesn't, responed with 'No'.Query:{}Candidate:{}"
)


def test_lamra_of_qwen2_5_reads_scores_behind_the_repetition_penalty(tmp_path):
    folder = tmp_path / "LamRA-Rank-Qwen2.5VL-7b"
    stock = write(folder, "qwen2_5_vl", texts=[LAMRA, *WORDS])
    GenerationConfig(repetition_penalty=1.05).save_pretrained(folder)
    tokenizer = tokenizer_for("qwen2_5_vl", [LAMRA, *WORDS])
    reranker = UniMERerankerForCausalLM.from_backbone(folder)

    image = picture(1)
    candidates = ["a red circle", {"image": image}, {"image": image, "text": "a blue star"}]
    penalised = []
    plain = []
    for shown, read in (("a red circle", None), (IMAGE, image), (f"{IMAGE}a blue star", image)):
        turn = LAMRA.format(" ", "Find me an image of a star", shown)
        prompt = f"{SYSTEM}<|im_start|>user\n{turn}<|im_end|>\n<|im_start|>assistant\n"
        logits = logits_of(stock, tokenizer, last_state(stock, tokenizer, prompt, read), ("Yes", "No"))
        plain.append(logits.softmax(0)[0])
        penalised.append(torch.where(logits > 0, logits / 1.05, logits * 1.05).softmax(0)[0])

    query = "Find me an image of a star"
    assert (reranker.score(query, candidates) - torch.stack(penalised)).abs().max() <= 1e-5
    assert (reranker.score(query, candidates, repetition_penalty=1) - torch.stack(plain)).abs().max() <= 1e-5
    assert (torch.stack(plain) - torch.stack(penalised)).abs().max() > 1e-3
    spoken = reranker.score("a star", candidates, instruction="Find me an image of")
    assert (spoken - torch.stack(penalised)).abs().max() <= 1e-5


def test_qwen3_vl_reranker_is_the_difference_of_two_rows_of_the_head(tmp_path):
    folder = tmp_path / "Qwen3-VL-Reranker-8B"
    stock = write(folder, "qwen3_vl", texts=WORDS)
    tokenizer = tokenizer_for("qwen3_vl", WORDS)
    reranker = UniMERerankerForCausalLM.from_backbone(folder)
    task = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: {}'
        "<Query>:{}\n<Document>:{}<|im_end|>\n<|im_start|>assistant\n"
    )
    default = "Given a search query, retrieve relevant candidates that answer the query."
    for instruction, candidate, shown in (
        (None, "a {query} in {document}", "a {query} in {document}"),
        ("Find it.", {"text": ""}, "NULL"),
    ):
        prompt = task.format(instruction or default, "a star", shown)
        state = last_state(stock, tokenizer, prompt)
        yes, no = logits_of(stock, tokenizer, state, ("yes", "no"))
        (score,) = reranker.score("a star", [candidate], instruction=instruction)
        assert abs(score - (yes - no).sigmoid()) <= 1e-5
        (log_odds,) = reranker.score("a star", [candidate], instruction=instruction, output="logit")
        assert abs(log_odds - (yes - no)) <= 1e-4


def test_qwen3_vl_reranker_reads_a_video_as_its_authors_do(tmp_path):
    folder = tmp_path / "Qwen3-VL-Reranker-8B"
    stock = write(folder, "qwen3_vl", texts=WORDS)
    tokenizer = tokenizer_for("qwen3_vl", WORDS)
    reranker = UniMERerankerForCausalLM.from_backbone(folder)
    frames = [picture(seed) for seed in range(3)]
    candidates = [{"video": frames, "text": "a star"}, "a star"]

    # frames have 131,072 pixels or more; of three, at two a second, the last is there twice
    height, width = smart_resize(48, 64, 28, 131_072, 786_432)
    resized = [frame.resize((width, height), Image.Resampling.BICUBIC) for frame in [*frames, frames[-1]]]
    patches, grid = pairs_of_frames(resized, reranker.processor.image_processor)
    pair = "<|vision_start|>" + "<|video_pad|>" * (width * height // 28**2) + "<|vision_end|>"
    prompt = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: Find it.'
        f"<Query>:a ring\n<Document>:<0.2 seconds>{pair}<1.0 seconds>{pair}a star<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    video = {"pixel_values_videos": patches, "video_grid_thw": torch.tensor([grid])}
    types = 2 * (ids == tokenizer.convert_tokens_to_ids("<|video_pad|>")).int()
    with torch.no_grad():
        state = stock.model(input_ids=ids, mm_token_type_ids=types, **video).last_hidden_state[0, -1]
    yes, no = logits_of(stock, tokenizer, state, ("yes", "no"))

    scores = reranker.score("a ring", candidates, instruction="Find it.")
    assert abs(scores[0] - (yes - no).sigmoid()) <= 1e-5
    assert abs(scores[1] - reranker.score("a ring", ["a star"], instruction="Find it.")[0]) <= 1e-5


def test_lamra_rank_reads_a_video_as_one(tmp_path):
    write(tmp_path / "LamRA-Rank", "qwen2_vl", texts=WORDS)
    reranker = UniMERerankerForCausalLM.from_backbone(tmp_path / "LamRA-Rank", weights=False)
    question = reranker.processor.question("a ring", {"video": [picture(0), picture(1)]})
    prompt, clips = reranker.processor.render(question)
    assert "Candidate:<|vision_start|><|video_pad|><|vision_end|><|im_end|>" in prompt and len(clips) == 1


@pytest.fixture(scope="module")
def jina(tmp_path_factory):
    """A tiny jina-reranker-m0: no output head, a ranking head under its published names; and the stock model."""
    folder = tmp_path_factory.mktemp("jina") / "jina-reranker-m0"
    stock = write(folder, "qwen2_vl", texts=WORDS)
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    generator = torch.Generator().manual_seed(1)
    for name, shape in (("0.weight", (48, 48)), ("0.bias", (48,)), ("2.weight", (1, 48)), ("2.bias", (1,))):
        weights[f"score.{name}"] = torch.randn(shape, generator=generator) * 0.3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    # a head that the base ties
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", **{**config, "tie_word_embeddings": True})
    return folder, stock, weights


def test_jina_scores_with_its_head_and_the_document_first(jina):
    folder, stock, weights = jina
    tokenizer = tokenizer_for("qwen2_vl", WORDS)
    reranker = UniMERerankerForCausalLM.from_backbone(folder)
    image = picture(2, (90, 60))

    def expected(document: str, query: str, read=None):
        prompt = f"**Document**:\n{document}\n**Query**:\n{query}"
        state = last_state(stock, tokenizer, prompt, read, appended=(100,))
        hidden = (weights["score.0.weight"] @ state + weights["score.0.bias"]).relu()
        return weights["score.2.weight"] @ hidden + weights["score.2.bias"] - 2.65

    log_odds = torch.cat([expected("a red circle", "a star"), expected(IMAGE, "a star", image)])
    candidates = ["a red circle", image]
    assert (reranker.score("a star", candidates, output="logit") - log_odds).abs().max() <= 1e-4
    assert (reranker.score("a star", candidates) - log_odds.sigmoid()).abs().max() <= 1e-5
    by_image = torch.cat([expected("a red circle", IMAGE, image)])
    assert (reranker.score(image, ["a red circle"], output="logit") - by_image).abs().max() <= 1e-4

    with pytest.raises(ValueError, match="candidate 1 is an image with a text, for which the preset 'jina-rerank"):
        reranker.score("q", ["a", {"image": image, "text": "b"}])
    with pytest.raises(ValueError, match="scores with a ranking head, not with two answers"):
        _ = reranker.yes_no_tokens
    with pytest.raises(ValueError, match="asks about single candidates only"):
        reranker.rank("q", ["a", "b"], strategy="listwise")
    with pytest.raises(ValueError, match="'jina-reranker-m0' is a reranker's; open"):
        UniMEModel.from_backbone(folder)
    with pytest.raises(ValueError, match="asks for words, but this model has a ranking head"):
        reranker.use_preset("monoqwen2-vl")


def test_a_long_document_is_cut_and_the_query_never(jina):
    reranker = UniMERerankerForCausalLM.from_backbone(jina[0], max_length=60)
    long = " ".join(["a red circle left of a blue star"] * 20)
    question = reranker.processor.question("a star", long)
    with pytest.warns(UserWarning, match="longer than 60 tokens"):
        (entry,) = reranker.processor.prepare([question])
    assert 50 < entry.length <= 60 and entry.prompt.endswith("\n**Query**:\na star") and entry.written == (100,)
    assert entry.prompt.startswith("**Document**:\na red circle left of")
    with pytest.raises(ValueError, match="above the limit of 60"):
        reranker.score(long, ["a star"])


def test_monoqwen_is_an_adapter_with_old_keys_over_its_base(tmp_path):
    stock = write(tmp_path / "Qwen2-VL-2B-Instruct", "qwen2_vl", texts=WORDS)
    tokenizer = tokenizer_for("qwen2_vl", WORDS)
    folder = tmp_path / "MonoQwen2-VL-v0.1"
    torch.manual_seed(3)
    config = LoraConfig(
        r=4, lora_alpha=4, target_modules=r".*language_model.*(q_proj|down_proj)", init_lora_weights=False
    )
    adapted = get_peft_model(stock, config)
    adapted.save_pretrained(folder)

    # as transformers 4.4x named the modules
    weights = load_file(folder / "adapter_model.safetensors")
    old = {key.replace(".model.language_model.layers", ".model.layers"): value for key, value in weights.items()}
    assert old.keys() != weights.keys()
    save_file(old, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings |= {"base_model_name_or_path": "Qwen/Qwen2-VL-2B-Instruct", "target_modules": ["q_proj", "down_proj"]}
    write_json(folder / "adapter_config.json", **settings)

    merged = adapted.merge_and_unload()
    image = picture(3, (90, 60))
    turn = (
        f"{IMAGE}Assert the relevance of the previous image document to the following query, answer True or False. "
        "The query is: a red star"
    )
    prompt = f"{SYSTEM}<|im_start|>user\n{turn}<|im_end|>\n<|im_start|>assistant\n"
    logits = logits_of(merged, tokenizer, last_state(merged, tokenizer, prompt, image), ("True", "False"))
    reranker = UniMERerankerForCausalLM.from_backbone(folder)
    assert abs(reranker.score("a red star", [image]) - logits.softmax(0)[0]) <= 1e-5
    with pytest.raises(ValueError, match="candidate 0 is a text, for which the preset 'monoqwen2-vl' has no prompt"):
        reranker.score("a red star", ["a text"])


# lists in windows
def test_windows_move_over_the_whole_list():
    assert window_places(7, 4, 2) == [range(3, 7), range(1, 5), range(0, 4)]
    assert window_places(8, 4, 2) == [range(4, 8), range(2, 6), range(0, 4)]
    assert window_places(3, 4, 2) == [range(0, 3)] and window_places(1, 4, 2) == []
    assert window_places(7, 4, 2, from_below=False) == [range(0, 4), range(2, 6), range(3, 7)]
    with pytest.raises(ValueError, match="a window needs 2 candidates"):
        window_places(3, 1, 1)


@pytest.mark.parametrize("count", range(2, 30))
def test_the_best_of_a_list_rise_to_its_top(count):
    worth = torch.randperm(count, generator=torch.Generator().manual_seed(count)).tolist()
    order = order_in_windows(count, window_places(count, 4, 2), lambda shown: sorted(shown, key=lambda i: -worth[i]))
    assert sorted(order) == list(range(count))
    assert [worth[i] for i in order[:2]] == [count - 1, count - 2], "two, as many as windows share"


def test_an_answer_is_an_order_or_nothing():
    assert read_order(" [2] > [1]>[3]<|im_end|>", 3) == [1, 0, 2]
    assert read_order("[2] > [1] > [3] > [4]", 3) == [1, 0, 2]  # as the authors read it
    for answer in ("[1] > [2]", "[1] > [1] > [2]", "[0] > [1] > [2]", "2 > 1 > 3", ""):
        assert read_order(answer, 3) is None


@pytest.fixture(scope="module")
def lighton(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lighton")
    write(folder / "LightOn-rerank-LW-2B", "qwen3_5", texts=WORDS)
    return UniMERerankerForCausalLM.from_backbone(folder / "LightOn-rerank-LW-2B")


class Scripted:
    """A judge that puts texts in order by the number they end in, the greatest first; it keeps the prompts."""

    def __init__(self):
        self.prompts = []

    def __call__(self, entry, new_tokens):
        assert new_tokens == 30
        self.prompts.append(entry.prompt)
        worth = {}
        for number, value in re.findall(r"\[(\d+)\]: (?:document (\d+))?", entry.prompt):
            worth[number] = int(value or 0)
        return " > ".join(f"[{number}]" for number in sorted(worth, key=worth.get, reverse=True))


def test_lighton_ranks_windows_of_four_from_below(lighton, monkeypatch):
    script = Scripted()
    monkeypatch.setattr(lighton, "_generate", script)
    candidates = [f"document {number}" for number in (3, 1, 6, 4, 0, 5, 2)]
    scores = lighton.score("a star", candidates)
    assert script.prompts[0] == (
        "<|im_start|>user\nQuery: a star\n\nRank these passages from most to least relevant:\n[1]: document 4\n[2]: "
        "document 0\n[3]: document 5\n[4]: document 2\n\nRanking:<|im_end|>\n<|im_start|>assistant\n"
    )

    # 4 0 5 2 -> 5 4 2 0; then 1 6 5 4 -> 6 5 4 1; then 3 6 5 4 -> 6 5 4 3
    assert [int(prompt.split("[1]: document ")[1][0]) for prompt in script.prompts] == [4, 1, 3]
    assert scores.tolist() == [4.0, 3.0, 7.0, 5.0, 1.0, 6.0, 2.0]
    ranked = lighton.rank("a star", candidates)
    assert [entry["index"] for entry in ranked] == [2, 5, 3, 0, 1, 6, 4]
    assert ranked == lighton.rank("a star", candidates, strategy="listwise")
    with pytest.raises(TypeError, match="gives places in a list and neither probabilities nor log-odds"):
        lighton.score("a star", candidates, output="logit")


def test_lighton_words_images_in_another_way(lighton, monkeypatch):
    script = Scripted()
    monkeypatch.setattr(lighton, "_generate", script)
    lighton.score("a star", ["document 1", picture(1)])
    # this tiny checkpoint's template has one, whatever the published one does
    assert script.prompts == [
        f"{SYSTEM}<|im_start|>user\nQuery: a star\n\nRank these documents from most to least relevant:\n[1]: document "
        f"1\n[2]: {IMAGE}\n\nRanking:<|im_end|>\n<|im_start|>assistant\n"
    ]
    with pytest.raises(ValueError, match="the query is an image, for which the preset"):
        lighton.score(picture(1), ["a", "b"])


def test_lighton_of_four_billion_is_told_not_to_think(lighton, monkeypatch):
    script = Scripted()
    monkeypatch.setattr(lighton, "_generate", script)
    try:
        lighton.use_preset("lighton-rerank-lw-4b")
        lighton.score("a star", ["document 1", "document 2"])
    finally:
        lighton.use_preset("lighton-rerank-lw")
    assert script.prompts[0].endswith("\n\nRanking:<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_an_order_that_cannot_be_read_leaves_the_window_as_it_was(lighton):
    with pytest.warns(UserWarning, match="is no order of 3 candidates; their order stays"):
        assert lighton.score("a star", ["a", "b", "c"]).tolist() == [3.0, 2.0, 1.0]


def test_what_only_ranks_lists_is_no_judge_and_no_cross_encoder(lighton):
    from unime.sentence_transformers_unime import UniMECrossEncoder

    with pytest.raises(ValueError, match="puts lists in order and scores no candidate"):
        LocalJudge(lighton)
    with pytest.raises(ValueError, match="puts lists in order and scores no pairs"):
        UniMECrossEncoder(lighton)


def test_a_list_that_does_not_fit_is_ranked_in_windows(reranker):
    """Every reranker: with the order of numbers as the judge's, the result is that of the windows."""
    candidates = [f"candidate {number} " + "a red circle " * 8 for number in range(9)]
    whole = reranker.rank("q", candidates, strategy="listwise")
    assert sum(entry["score"] for entry in whole) == pytest.approx(1)

    single = reranker.processor.prepare([reranker.processor.rerank_messages("q", candidates[:1], "listwise")])
    reranker.processor.max_length = single[0].length * 2
    with pytest.warns(UserWarning, match=r"9 candidates do not fit into one prompt of \d+ tokens; windows of \d"):
        ranked = reranker.rank("q", candidates, strategy="listwise")
        window = reranker.list_window("q", candidates, {"resolution": None, "benchmark": None, "instruction": None})
    assert sorted(entry["index"] for entry in ranked) == list(range(9))
    assert [entry["score"] for entry in ranked] == [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]

    assert 2 <= window < 9

    def order_of(shown):
        best = reranker.rank("q", [candidates[i] for i in shown], strategy="listwise")
        return [shown[entry["index"]] for entry in best]

    expected = order_in_windows(9, window_places(9, window, window // 2), order_of)
    assert [entry["index"] for entry in ranked] == expected

    reranker.processor.max_length = single[0].length + 10
    with pytest.raises(ValueError, match="two candidates do not fit into the limit"):
        reranker.rank("q", candidates, strategy="listwise")


def test_a_pointwise_lighton_is_worded_by_its_own_template(tmp_path):
    """Its prompt is known from its template alone, which renders messages of the roles query and document."""
    folder = tmp_path / "LightOn-rerank-PW-2B"
    stock = write(folder, "qwen3_5", texts=WORDS)
    tokenizer = tokenizer_for("qwen3_5", WORDS)
    write_json(
        folder / "chat_template.json",
        chat_template=(
            "{% for m in messages %}<{{ m['role'] }}>{% if m['content'] is string %}{{ m['content'] }}{% else %}"
            "{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endif %}{{ '\n' }}{% endfor %}Relevant?"
        ),
    )
    reranker = UniMERerankerForCausalLM.from_backbone(folder)
    state = last_state(stock, tokenizer, "<query>a star\n<document>a red circle\nRelevant?")
    yes, no = logits_of(stock, tokenizer, state, ("Yes", "No"))
    assert abs(reranker.score("a star", ["a red circle"]) - (yes - no)) <= 1e-4, "the authors report the difference"
    assert abs(reranker.score("a star", ["a red circle"], output="probability") - (yes - no).sigmoid()) <= 1e-5

    reranker.processor.chat_template = "{% for m in messages %}{% if m['role'] == 'user' %}?{% endif %}{% endfor %}"
    with pytest.raises(ValueError, match="the chat template leaves out messages of the role 'document'"):
        reranker.score("a star", ["a red circle"])


# saved, and in other places
_AGAIN = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoProcessor
assert "unime" not in sys.modules
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
print(json.dumps(model.score("a star", ["a red circle", "a blue star, and more"]).tolist()))
"""


def test_a_saved_reranker_scores_alike_in_a_process_without_the_package(jina, tmp_path):
    reranker = UniMERerankerForCausalLM.from_backbone(jina[0])
    scores = reranker.score("a star", ["a red circle", "a blue star, and more"])
    reranker.save_pretrained(tmp_path / "saved")
    again = fresh_process(_AGAIN, tmp_path / "saved", HF_MODULES_CACHE=str(tmp_path / "modules"))
    assert torch.allclose(torch.tensor(again), scores, atol=1e-6)
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["head"] == [48, 48, 1]


def test_cross_encoders_of_saved_rerankers_give_the_same_scores(jina, tmp_path):
    from sentence_transformers import CrossEncoder

    reranker = UniMERerankerForCausalLM.from_backbone(jina[0])
    reranker.save_pretrained(tmp_path)
    pairs = [("a star", "a red circle"), ("a star", "a blue star, and more")]
    predicted = CrossEncoder(str(tmp_path), trust_remote_code=True, device="cpu").predict(pairs)
    expected = reranker.score("a star", [candidate for _, candidate in pairs])
    assert (torch.tensor(predicted) - expected).abs().max() <= 1e-5


def test_a_job_takes_the_order_of_a_reranker_of_lists(lighton, monkeypatch):
    monkeypatch.setattr(lighton, "_generate", Scripted())
    job = Reranker("LightOn-rerank-LW-2B")
    job.model = lighton
    assert job.scores("a star", ["document 1", "document 3", "document 2"], [0.0] * 3) == [1.0, 3.0, 2.0]


def test_vlm2vec_mines_and_lamra_judges(world, tmp_path):
    """UniME-V2's mining with the checkpoints that its paper begins from, an adapter among them."""
    write(tmp_path / "Qwen2-VL-2B-Instruct", "qwen2_vl")
    stock_adapter(tmp_path / "Qwen2-VL-2B-Instruct", tmp_path / "VLM2Vec-Qwen2VL-2B", "qwen2_vl", dora=True, old=True)
    write(tmp_path / "LamRA-Rank", "qwen2_vl", seed=1)
    changes = {
        "subsets": ["Shapes_vqa"],
        "rows_per_subset": 4,
        "embedder": str(tmp_path / "VLM2Vec-Qwen2VL-2B"),
        "embedder_preset": None,
        "top_k": 3,
        "num_negatives": 2,
    }
    mining = Mining(MiningConfig(**settings(world, tmp_path / "LamRA-Rank", tmp_path / "mined", **changes)))
    mining.run()

    rows = [to_example(row) for row in read_judged(mining.out / "judged", world)]
    judge = UniMERerankerForCausalLM.from_backbone(tmp_path / "LamRA-Rank")
    assert judge.processor.preset == "lamra-rank" and rows
    for row in rows:
        candidates = [item.as_input() for item in (row.positive, *row.negatives)]
        scores = judge.score(row.query.as_input(), candidates, benchmark="mmeb")
        assert (scores - torch.tensor([row.positive_score, *row.negative_scores])).abs().max() <= 1e-5


def test_a_card_carries_the_license_over(jina, tmp_path):
    UniMERerankerForCausalLM.from_backbone(jina[0]).save_pretrained(tmp_path)
    text = read_card(tmp_path).render("me/mine")
    assert "license: cc-by-nc-4.0" in text and "`cc-by-nc-4.0`. **Not for commercial use.**" in text
    assert "jina-reranker-m0" in text


def test_a_head_of_its_own_is_not_exported(jina, tmp_path):
    UniMERerankerForCausalLM.from_backbone(jina[0]).save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="has a ranking head in the place of its output head"):
        export(tmp_path / "saved", tmp_path / "out")


def test_a_reranker_of_another_name_is_asked_as_a_preset_says(tmp_path, capsys):
    write(tmp_path / "mine-rerank", "qwen2_vl", texts=WORDS)
    picture(1).save(tmp_path / "one.png")
    line = [str(tmp_path / "one.png"), "--query", "a star", "--reranker", str(tmp_path / "mine-rerank"), "--json"]
    with pytest.raises(SystemExit, match="--reranker-preset"):
        rerank_main(line)
    rerank_main([*line, "--reranker-preset", "lamra-rank"])
    row = json.loads(capsys.readouterr().out)
    model = UniMERerankerForCausalLM.from_backbone(tmp_path / "mine-rerank", preset="lamra-rank")
    (score,) = model.score("a star", [picture(1)])
    assert row["score"] == pytest.approx(float(score), abs=1e-5)

    # a job with another preset is another job
    settings = Reranker(tmp_path / "mine-rerank", preset="lamra-rank").settings()
    assert settings["preset"] == "lamra-rank" and "preset" not in Reranker(tmp_path / "mine-rerank").settings()
