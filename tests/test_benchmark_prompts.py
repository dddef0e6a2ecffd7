"""What is fed on each kind of benchmark, from stage to stage, as exact strings; and the sum of section 3.2."""

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import picture
from layouts import write_captioned, write_mmeb, write_sugarcrepe, write_urban1k

from unime import UniMEModel, UniMEProcessor, UniMERerankerForCausalLM, vlm_unime
from unime.commands.evaluate import main as evaluate_command
from unime.data.schema import Example, Item, to_dataset
from unime.eval.runner import evaluate
from unime.eval.suites import MMEB
from unime.eval.tasks import read_mmeb
from unime.mining.pipeline import Mining, MiningConfig
from unime.trainers.contrastive import ContrastiveConfig, ContrastiveTrainer
from unime.trainers.distillation import DistillationConfig, DistillationTrainer, TeacherTable
from unime.trainers.stage import load_model

INSTRUCTION = MMEB["GQA"].instruction
REQUEST = " Find an image caption describing the given image."
SUMMARY = {  # preset -> prompts of a text, and of an image
    "unime-llava-1.6": (
        "[INST] {}\nSummary above sentence in one word: [/INST]",
        "[INST] <image>\nSummary above image in one word: [/INST]",
    ),
    "unime-phi3.5-v": (
        "<|user|>\n{}\nSummary above sentence in one word: <|end|>\n<|assistant|>\n",
        "<|user|>\n<|image_1|>\nSummary above image in one word: <|end|>\n<|assistant|>\n",
    ),
    "unime-llava-onevision": (
        "<|im_start|>user \n{}\nSummary above sentence in one word:\n<|im_end|><|im_start|>assistant\n",
        "<|im_start|>user <image>\nSummary above image in one word:\n<|im_end|><|im_start|>assistant\n",
    ),
}
KINDS = {"unime-llava-1.6": "llava_next", "unime-phi3.5-v": "phi3_v", "unime-llava-onevision": "llava_onevision"}


@pytest.fixture
def fed(monkeypatch) -> set[str]:
    """All prompts that reach a model, as they come; not those that loading tries a model out on."""
    prompts = set()
    prepare = UniMEProcessor._prepare

    def recorded(self, *args, **kwargs):
        entries = prepare(self, *args, **kwargs)
        prompts.update(entry.prompt for entry in entries)
        return entries

    monkeypatch.setattr(UniMEProcessor, "_prepare", recorded)
    monkeypatch.setattr(vlm_unime, "check_processor", lambda files, model, processor: None)
    return prompts


def run(benchmark, model, data, out, *options):
    evaluate_command([benchmark, "--model", str(model), "--data", str(data), "--out", str(out), *options])


@pytest.fixture(scope="module")
def mmeb(tmp_path_factory):
    return write_mmeb(tmp_path_factory.mktemp("mmeb"), ["GQA"])


@pytest.mark.parametrize("preset", sorted(KINDS))
def test_the_first_generation_reads_mmeb_raw_and_the_others_as_summaries(tiny, tmp_path, mmeb, fed, preset):
    UniMEModel.from_backbone(tiny(KINDS[preset])[0], preset, resolution=56).save_pretrained(tmp_path / "model")
    image = UniMEProcessor.from_pretrained(tmp_path / "model").image_token
    queries = {f"{image}\n{INSTRUCTION} query {number}" for number in range(3)}
    targets = {f"GQA {number}" for number in range(4)}
    run("mmeb", tmp_path / "model", mmeb, tmp_path / "out", "--tasks", "GQA")
    assert fed == queries | targets, "texts alone are raw, too"

    # the same in memory
    fed.clear()
    evaluate(UniMEModel.from_pretrained(tmp_path / "model"), read_mmeb(mmeb, ["GQA"]), show_progress=False)
    assert fed == queries | targets

    # short and long retrieval, and SugarCrepe
    of_text, of_image = SUMMARY[preset]
    write_captioned(tmp_path / "retrieval" / "flickr30k", images=2, captions=1)
    (tmp_path / "retrieval" / "urban1k").mkdir()
    write_urban1k(tmp_path / "retrieval" / "urban1k", count=2)
    fed.clear()
    run("retrieval", tmp_path / "model", tmp_path / "retrieval", tmp_path / "out")
    captions = ["picture 0 said 0", "picture 1 said 0", "street 0", "street 1"]
    assert fed == {of_image} | {of_text.format(caption) for caption in captions}

    fed.clear()
    run(
        "sugarcrepe",
        tmp_path / "model",
        write_sugarcrepe(tmp_path / "crepe", 1),
        tmp_path / "out",
        "--tasks",
        "add_att",
    )
    assert fed == {of_image, of_text.format("add_att 0"), of_text.format("no add_att 0")}


def test_mining_embeds_rows_as_training_words_them(tiny, tmp_path, fed):
    path, _ = tiny("llava_next")
    picture(1, (56, 56)).save(tmp_path / "a.png")
    row = {"query": {"text": f"<|image_1|>\n{INSTRUCTION} a?\n", "image": "a.png"}, "positive": "a ring"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    config = MiningConfig(
        data=str(tmp_path / "pairs.jsonl"),
        out=str(tmp_path / "mined"),
        embedder=str(path),
        embedder_preset="unime-llava-1.6",
    )
    Mining(config).embed()
    assert fed == {f"<image>\n{INSTRUCTION} a?\n", "a ring"}


def test_mmeb_texts_are_not_read_twice_by_other_presets(tiny, tmp_path, mmeb, fed):
    UniMEModel.from_backbone(tiny("qwen2_vl")[0], "unime-v2-qwen2-vl", resolution=56).save_pretrained(
        tmp_path / "model"
    )
    run("mmeb", tmp_path / "model", mmeb, tmp_path / "out", "--tasks", "GQA")
    queries = {f"<|image_pad|>\n{INSTRUCTION} query {number}" for number in range(3)}
    assert fed == queries | {f"GQA {number}" for number in range(4)}
    (results,) = (tmp_path / "out").rglob("results.json")
    assert (results.parent / "items").is_dir(), "queries and candidates are one job"


def test_saha_words_targets_of_refcoco_matching_as_queries(tiny, tmp_path, fed):
    data = write_mmeb(tmp_path / "data", ["RefCOCO-Matching", "GQA"], queries=1, candidates=2)
    model = UniMEModel.from_backbone(tiny("qwen2_vl")[0], "saha-qwen2-vl", resolution=56)
    evaluate(model, read_mmeb(data, ["RefCOCO-Matching", "GQA"]), show_progress=False)
    turns = {prompt.partition("<|im_start|>user\n")[2].partition("<|im_end|>")[0] for prompt in fed}
    request = "\nRepresent the given text in one word."
    targets = {f"RefCOCO-Matching 0{request}", f"RefCOCO-Matching 1{request}", "GQA 0", "GQA 1"}
    assert targets <= turns and len(turns) == 6

    # training words its documents as evaluation does
    fed.clear()
    rows = [Example(Item("q"), Item("p"), [Item("n")], dataset=name) for name in ("RefCOCO-Matching", "GQA")]
    ContrastiveTrainer(
        model, ContrastiveConfig(output_dir=str(tmp_path), report_to=[]), train_dataset=to_dataset(rows)
    ).data_collator(list(to_dataset(rows)))
    turns = {prompt.partition("<|im_start|>user\n")[2].partition("<|im_end|>")[0] for prompt in fed}
    assert turns == {f"q{request}", f"p{request}", f"n{request}", "p", "n"}


# The sum of two embeddings (2504.17432 section 3.2)


def by_hand(model, image, text):
    return F.normalize(model.encode({"image": image}) + model.encode(text), dim=0)


@pytest.mark.parametrize("kind", ["qwen2_vl", "llava_next"])
def test_summary_adds_up_image_and_text_and_mmebs_items_too(tiny, kind):
    model = UniMEModel.from_backbone(tiny(kind)[0])
    image = picture(3, (56, 56))
    assert (model.processor.preset, model.processor.fusion) == ("summary", "sum")
    expected = by_hand(model, image, "What is it?\n")
    for text in ("What is it?\n", "<|image_1|>\nWhat is it?\n", "<image>\nWhat is it?\n"):
        item = {"text": text, "image": image}
        assert (model.encode(item) - expected).abs().max() <= 1e-6
        assert (model.encode(item, benchmark="mmeb") - expected).abs().max() <= 1e-6
    assert (model.encode(item, fusion="joint") - expected).abs().max() > 1e-3
    assert model.processor.prepare_parts([{"text": "<|image_1|>\n", "image": image}])[0] == [0], "nothing to add"


def texts_of(rows):
    return sorted({item[part]["text"] for item in rows for part in ("query", "positive")})


def distilled(path, preset, out):
    """A model after a step of stage 1, saved and loaded."""
    rows = to_dataset([Example(Item(f"sentence {i}"), Item(f"the same {i}"), dataset="nli") for i in range(4)])
    texts = texts_of(rows)
    teacher = TeacherTable(texts, torch.randn(len(texts), 8, generator=torch.Generator().manual_seed(0)).numpy())
    args = DistillationConfig(
        output_dir=str(out), max_steps=1, per_device_train_batch_size=4, report_to=[], bf16=False, save_strategy="no"
    )
    trainer = DistillationTrainer(load_model(path, preset), args, train_dataset=rows, teacher=teacher)
    trainer.train()
    trainer.save_model(str(out))
    return UniMEModel.from_pretrained(out)


# preset -> what stage 2 is trained with: a question to an image, and a text
TRAINED = {
    "unime-llava-1.6": ("<image>\n{}", "{}"),
    "summary": (
        "[INST] <image>\n{}\nSummary above image and sentence in one word: [/INST]",
        "[INST] {}\nSummary above sentence in one word: [/INST]",
    ),
}


@pytest.mark.parametrize("preset", sorted(TRAINED))
def test_distillation_leaves_the_sum_alone_and_stage_2_trains_joint_prompts(tiny, tmp_path, capsys, mmeb, fed, preset):
    of_text, of_image = SUMMARY["unime-llava-1.6"]  # on this backbone, those of `summary` as well
    image = picture(3, (56, 56))
    model = distilled(tiny("llava_next")[0], preset, tmp_path / "stage1")
    assert of_text.format("sentence 0") in fed, "texts have the template of inference"
    assert model.processor.fusion == "sum" and "fusion: joint" not in capsys.readouterr().err
    expected = by_hand(model, image, "What is it?\n")
    for text in ("What is it?\n", "<|image_1|>\nWhat is it?\n"):
        cosine = F.cosine_similarity(model.encode({"text": text, "image": image}), expected, dim=0)
        assert cosine == pytest.approx(1.0, abs=1e-6)

    # it has seen no raw string, so it reads none on MMEB
    question = f"{INSTRUCTION} query 0"
    fed.clear()
    run("mmeb", tmp_path / "stage1", mmeb, tmp_path / "eval", "--tasks", "GQA")
    assert len(fed) == 8 and {of_image, of_text.format(question), of_text.format("GQA 0")} <= fed

    # stage 2 trains joint prompts on MMEB's strings, and says so
    image_path = str(mmeb / "images" / "GQA" / "0.png")
    rows = to_dataset([Example(Item(f"<|image_1|>\n{question}", image_path), Item("GQA 0"), dataset="GQA")])
    args = ContrastiveConfig(
        output_dir=str(tmp_path / "stage2"), max_steps=1, report_to=[], bf16=False, save_strategy="no"
    )
    trainer = ContrastiveTrainer(load_model(tmp_path / "stage1"), args, train_dataset=rows)
    assert f"the preset '{preset}' would add up two embeddings" in capsys.readouterr().err
    fed.clear()
    trainer.data_collator(list(rows))
    of_question, of_answer = TRAINED[preset]
    trained = {of_question.format(question), of_answer.format("GQA 0")}
    assert fed == trained

    # the saved model reads MMEB as it was trained, and what stands alone elsewhere in summary prompts
    trainer.save_model(str(tmp_path / "stage2"))
    fed.clear()
    run("mmeb", tmp_path / "stage2", mmeb, tmp_path / "eval", "--tasks", "GQA")
    assert len(fed) == 7 and trained <= fed
    processor = UniMEModel.from_pretrained(tmp_path / "stage2").processor
    assert processor.fusion == "joint"
    assert processor.render("a street", benchmark="retrieval")[0] == of_text.format("a street")
    assert processor.render(image, benchmark="retrieval")[0] == of_image


# What a judge reads


def judged(processor, query, candidates, strategy, benchmark):
    prompt, _ = processor.render(processor.rerank_messages(query, candidates, strategy, benchmark=benchmark))
    return prompt


def test_judges_read_the_released_request_after_images(tiny):
    processor = UniMERerankerForCausalLM.from_backbone(tiny("qwen2_5_vl")[0], "unime-v2-reranker").processor
    image = picture(0)
    vision = "<|vision_start|><|image_pad|><|vision_end|>"
    end = "<|im_end|>\n<|im_start|>assistant\n"
    for benchmark in ("retrieval", "sugarcrepe"):
        prompt = judged(processor, image, ["A man is crossing"], "pointwise", benchmark)
        assert prompt.endswith(f"'No'.Query:{vision}{REQUEST}Candidate:A man is crossing{end}")
        prompt = judged(processor, image, ["first", "second"], "listwise", benchmark)
        assert prompt.endswith(f"of the query.Query:{vision}{REQUEST}Candidates:(1) first(2) second{end}")
        prompt = judged(processor, "a street", [image, {"image": image}], "listwise", benchmark)
        assert prompt.endswith(f"Query:a streetCandidates:(1) {vision}{REQUEST}(2) {vision}{REQUEST}{end}")
        prompt = judged(processor, {"text": "as it is", "image": image}, ["first"], "pointwise", benchmark)
        assert prompt.endswith(f"Query:{vision}as it isCandidate:first{end}")

    # elsewhere the items are what they are
    for benchmark in (None, "mmeb"):
        prompt = judged(processor, image, [image], "pointwise", benchmark)
        assert prompt.endswith(f"Query:{vision}Candidate:{vision}{end}")
    mmeb = {"text": "<|image_1|>\nRepresent the given image.\n", "image": image}
    prompt = judged(processor, "a street", [mmeb, mmeb], "listwise", "mmeb")
    one = f"{vision}Represent the given image.\n"
    assert prompt.endswith(f"Query:a streetCandidates:(1) {one}(2) {one}{end}")
    with pytest.raises(ValueError, match="benchmark must be one of mmeb, retrieval, sugarcrepe, got 'flickr'"):
        judged(processor, image, ["a"], "pointwise", "flickr")


@pytest.mark.parametrize("strategy", ["pointwise", "listwise"])
def test_reranking_of_retrieval_sets_and_sugarcrepe_feeds_them(tiny, tmp_path, fed, strategy):
    UniMEModel.from_backbone(tiny("qwen2_vl")[0], resolution=56).save_pretrained(tmp_path / "model")
    UniMERerankerForCausalLM.from_backbone(tiny("qwen2_5_vl")[0], resolution=56).save_pretrained(tmp_path / "judge")
    (tmp_path / "retrieval").mkdir()
    write_captioned(tmp_path / "retrieval" / "flickr30k", images=2, captions=1)
    write_sugarcrepe(tmp_path / "crepe", 1)
    for benchmark, data in (("retrieval", "retrieval"), ("sugarcrepe", "crepe")):
        out = tmp_path / f"out-{benchmark}"
        run(benchmark, tmp_path / "model", tmp_path / data, out)
        fed.clear()
        options = ["--results", str(out), "--reranker", str(tmp_path / "judge"), "--strategy", strategy]
        evaluate_command(["rerank", *options, "--candidates", "2"])
        vision = "<|vision_start|><|image_pad|><|vision_end|>"
        assert fed
        for prompt in fed:
            assert prompt.count(vision) == prompt.count(vision + REQUEST) > 0
        (path,) = out.rglob("*judge*/results.json")
        assert json.loads(path.read_text())["settings"]["rerank"]["strategy"] == strategy
