"""Backbones that are named nowhere in the code work by transformers' common interface, or the error says why not."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import TEXTS, picture
from real_geometry import qwen_ids
from tiny_checkpoints import QWEN_TEMPLATE, spread, tokenizer_for, write_qwen_images
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    Gemma3Config,
    Gemma3ImageProcessorPil,
    Gemma3TextConfig,
    GotOcr2ImageProcessorPil,
    Idefics3Config,
    Idefics3ImageProcessorPil,
    Idefics3VisionConfig,
    InternVLConfig,
    InternVLVisionConfig,
    LlamaConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3_5Config,
    SiglipVisionConfig,
)

from unime import UniMEModel, UniMERerankerForCausalLM

TEXT = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 14,
}


def tokenizer(special, **named):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<pad>", "<s>", "</s>", *special],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    options = {"extra_special_tokens": named} if named else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", **options
    )


def gemma3():
    """The image token becomes line breaks, a beginning, soft tokens and an end."""
    begin, end, soft = "<start_of_image>", "<end_of_image>", "<image_soft_token>"
    words = tokenizer([begin, end, soft], image_token=soft, boi_token=begin, eoi_token=end)
    ids = dict(
        zip(
            ("boi_token_index", "eoi_token_index", "image_token_index"),
            words.convert_tokens_to_ids([begin, end, soft]),
        )
    )
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**VISION, image_size=56),
        mm_tokens_per_image=4,
        text_config=Gemma3TextConfig(vocab_size=len(words), head_dim=12, **TEXT),
        **ids,
    )
    return words, config, Gemma3ImageProcessorPil(size={"height": 56, "width": 56}), begin, {"image_seq_length": 4}


def internvl():
    """Its processor asks for a video processor, which would need torchvision; images are cut into tiles."""
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    words = tokenizer(list(named.values()), **named)
    vision = {**VISION, "patch_size": [14, 14], "image_size": [28, 28]}
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(**vision),
        text_config=Qwen2Config(vocab_size=len(words), **TEXT),
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        downsample_ratio=0.5,
    )
    reader = GotOcr2ImageProcessorPil(size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=4)
    return words, config, reader, "<IMG_CONTEXT>", {"image_seq_length": 1}


def idefics3():
    """Text stands between the tiles of an image (SmolVLM's family)."""
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    words = tokenizer(["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *tiles])
    config = Idefics3Config(
        vision_config=Idefics3VisionConfig(**VISION, image_size=56),
        scale_factor=2,
        text_config=LlamaConfig(vocab_size=len(words), **TEXT),
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )
    reader = Idefics3ImageProcessorPil(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    return words, config, reader, "<image>", {"image_seq_len": 4}


def template(image):
    return (
        "{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for p in m['content'] %}{% if p['type'] == 'image' %}" + image + "{% else %}{{ p['text'] }}{% endif %}"
        "{% endfor %}{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )


@pytest.mark.filterwarnings("ignore:the answer")  # random weights name no candidate
@pytest.mark.parametrize("make", [gemma3, internvl, idefics3])
def test_native_models_work_unlisted(make, tmp_path):
    words, config, reader, image_token, settings = make()
    torch.manual_seed(0)
    stock = AutoModelForImageTextToText.from_config(config).eval()
    spread(stock)
    for part in (stock, words, reader):
        part.save_pretrained(tmp_path)
    name = type(stock).__name__.replace("ForConditionalGeneration", "Processor")
    (tmp_path / "chat_template.jinja").write_text(template(image_token))
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": name, **settings}))
    model, reranker = UniMEModel.from_backbone(tmp_path), UniMERerankerForCausalLM.from_backbone(tmp_path)
    items = ["a cat", picture(0), {"text": "what is it?", "image": picture(1, (100, 40))}, picture(2, (40, 100)), "x"]
    together = model.encode(items)
    assert (together - torch.stack([model.encode(item) for item in items])).abs().max() <= 1e-5
    assert (together @ together.T).triu(1).max() < 0.999
    prompt, images = model.processor.render(items[2])
    theirs = model.processor._native.processor(text=[prompt], images=[list(images)], return_tensors="pt")
    ours = model.processor.collate(model.processor.prepare([items[2]]))
    assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
    with torch.no_grad():
        state = stock.model(**theirs).last_hidden_state[0, -1]
    joint = model.encode(items[2], fusion="joint")
    assert (joint - torch.nn.functional.normalize(state, dim=-1)).abs().max() <= 1e-5
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(UniMEModel.from_pretrained(tmp_path / "saved").encode(items), together)
    ranked = reranker.rank(items[2], [f"candidate {i}" for i in range(11)], strategy="listwise")
    assert sum(entry["score"] for entry in ranked) == pytest.approx(1)
    (entry,) = model.processor.prepare([items[2]])
    _, strings = model.processor.read_images([entry])
    assert model.processor.expand(replace(entry, written=(7, 8)), strings[0]) == [*ours["input_ids"][0].tolist(), 7, 8]
    assert len(reranker.rank(items[2], ["a", "b"], strategy="generate")) == 2
    for candidates in (["one", "two cats", "a third"], [picture(5), "x"]):
        shared = reranker.score(items[2], candidates)
        assert (shared - reranker.score(items[2], candidates, share_prefix=False)).abs().max() <= 1e-5


def test_what_a_text_model_lacks_is_said(tmp_path):
    config = Phi3Config(vocab_size=300, pad_token_id=0, bos_token_id=1, eos_token_id=2, **TEXT)
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a phi3, for which transformers has no processor"):
        UniMEModel.from_backbone(tmp_path)


def test_a_processor_without_the_interface_is_said(monkeypatch, tiny):
    from transformers import Qwen2VLProcessor
    from transformers.processing_utils import ProcessorMixin

    monkeypatch.setattr(Qwen2VLProcessor, "replace_image_token", ProcessorMixin.replace_image_token)
    with pytest.raises(ValueError, match="Qwen2VLProcessor does not follow .* it lacks replace_image_token"):
        UniMEModel.from_backbone(tiny("qwen2_vl")[0])


def write_qwen3_5(folder):
    """Three of its four layers keep a running state (linear attention), the fourth keys and values."""
    words = tokenizer_for("qwen")
    text = {
        **TEXT,
        "vocab_size": len(words),
        "num_hidden_layers": 4,
        "head_dim": 32,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "pad_token_id": words.pad_token_id,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
            "partial_rotary_factor": 0.25,
        },
    }
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 48}
    vision |= {"patch_size": 14, "num_position_embeddings": 64}
    config = Qwen3_5Config(text_config=text, vision_config=vision, **qwen_ids(words))

    torch.manual_seed(0)
    stock = AutoModelForImageTextToText.from_config(config).eval()
    spread(stock)
    stock.save_pretrained(folder)
    words.chat_template = QWEN_TEMPLATE
    words.save_pretrained(folder)
    write_qwen_images(folder, "Qwen3VLProcessor")


def test_layers_of_linear_attention_judge_each_prompt_whole(tmp_path):
    write_qwen3_5(tmp_path)
    reranker = UniMERerankerForCausalLM.from_backbone(tmp_path)
    candidates = ["a", "a much longer candidate than the first", {"image": picture(0, (56, 56))}, "b c"]
    one_by_one = torch.cat([reranker.score("q", [entry], share_prefix=False) for entry in candidates])
    with pytest.warns(UserWarning, match="qwen3_5 has layers of linear attention"):
        together = reranker.score("q", candidates)
    assert (together - one_by_one).abs().max() <= 1e-5 and together.unique().numel() == 4
    with pytest.warns(UserWarning, match="linear attention"):
        assert len(reranker.rank("q", [f"candidate {i}" for i in range(11)], strategy="listwise")) == 11
