"""Backbones that are named nowhere in the code work by transformers' common interface, or the error says why not."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import TEXTS, picture
from test_gradient_cache import rows, trained
from tiny_checkpoints import spread
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    Gemma3Config,
    Gemma3ImageProcessorPil,
    Gemma3TextConfig,
    Gemma4Config,
    Gemma4ImageProcessorPil,
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
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMImageProcessorPil,
    SmolVLMVisionConfig,
)
from transformers.models.smolvlm import processing_smolvlm

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


def smolvlm():
    """As Idefics3, with a class that asks for a video processor and for num2words, which only words videos."""
    words, config, _, image_token, settings = idefics3()
    config = SmolVLMConfig(
        vision_config=SmolVLMVisionConfig(**VISION, image_size=56),
        scale_factor=2,
        text_config=config.text_config,
        image_token_id=config.image_token_id,
    )
    reader = SmolVLMImageProcessorPil(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    return words, config, reader, image_token, settings


def gemma4():
    """Its class asks for processors of video and audio; its layers attend in windows, and share keys and values."""
    named = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>"}
    named |= {"audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"}
    words = tokenizer([*named.values(), "<|video|>"], **named)
    ids = {}
    for name in ("image", "boi", "eoi", "audio", "boa"):
        ids[f"{name}_token_id"] = words.convert_tokens_to_ids(named[f"{name}_token"])
    text = {**TEXT, "num_hidden_layers": 4, "head_dim": 12, "global_head_dim": 12, "sliding_window": 24}
    text |= {"vocab_size": len(words), "vocab_size_per_layer_input": len(words), "hidden_size_per_layer_input": 8}
    text |= {"num_kv_shared_layers": 1, "layer_types": ["sliding_attention", "full_attention"] * 2}
    text |= {"use_bidirectional_attention": "vision"}
    vision = {**VISION, "num_key_value_heads": 2, "head_dim": 16, "patch_size": 8, "pooling_kernel_size": 2}
    config = Gemma4Config(
        text_config=text,
        vision_config=vision,
        eoa_token_index=words.convert_tokens_to_ids("<audio|>"),
        video_token_id=words.convert_tokens_to_ids("<|video|>"),
        **ids,
    )
    reader = Gemma4ImageProcessorPil(patch_size=8, pooling_kernel_size=2, max_soft_tokens=70)
    return words, config, reader, "<|image|>", {"image_seq_length": 70}


def template(image):
    return (
        "{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for p in m['content'] %}{% if p['type'] == 'image' %}" + image + "{% else %}{{ p['text'] }}{% endif %}"
        "{% endfor %}{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )


@pytest.mark.filterwarnings("ignore:the answer")  # random weights name no candidate
@pytest.mark.parametrize("make", [gemma3, gemma4, internvl, idefics3, smolvlm])
def test_native_models_work_unlisted(make, tmp_path, monkeypatch):
    monkeypatch.setattr(processing_smolvlm, "num2words", str)
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
    gradients = trained(tmp_path, rows(tmp_path, 4), tmp_path / "out")
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert {"0", "1"} == {name.split()[-1] for name in gradients}, "two steps"


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
