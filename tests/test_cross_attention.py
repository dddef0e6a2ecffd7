"""Mllama (Llama 3.2 Vision), which looks at images by cross-attention: rows with and without images in one batch."""

import copy
import json

import pytest
import torch
from conftest import picture
from test_gradient_cache import EVERYTHING, difference, rows, trained
from test_unlisted import TEXT, template, tokenizer
from tiny_checkpoints import spread
from transformers import AutoModelForImageTextToText, MllamaConfig, MllamaImageProcessorPil

from unime import UniMEModel, UniMERerankerForCausalLM

ITEMS = ["a cat", picture(0), {"text": "what is it?", "image": picture(1, (100, 40))}, picture(2, (40, 100)), "x"]


def write_mllama(folder):
    """Writes a tiny checkpoint, and returns the stock model in it."""
    words = tokenizer(["<|image|>", "<|python_tag|>"])
    rope = {"rope_type": "default", "rope_theta": 1e4}
    text = {**TEXT, "num_hidden_layers": 4, "cross_attention_layers": [1, 3], "rope_parameters": rope}
    text |= {"vocab_size": len(words), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_global_layers": 1}
    vision |= {"attention_heads": 2, "image_size": 28, "patch_size": 14, "max_num_tiles": 4}
    vision |= {"intermediate_layers_indices": [1, 2], "vision_output_dim": 96}
    image_id = words.convert_tokens_to_ids("<|image|>")
    config = MllamaConfig(vision_config=vision, text_config=text, image_token_index=image_id)

    torch.manual_seed(0)
    stock = AutoModelForImageTextToText.from_config(config).eval()
    spread(stock)
    with torch.no_grad():
        for name, weight in stock.named_parameters():
            if "gate" in name and weight.ndim == 1:  # it is zero before training, and closes the gates
                weight.fill_(0.7)

    for part in (stock, words, MllamaImageProcessorPil(size={"height": 28, "width": 28}, max_image_tiles=4)):
        part.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(template("<|image|>"))
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "MllamaProcessor"}))
    return stock


@pytest.fixture(scope="module")
def mllama(tmp_path_factory):
    """A folder with a tiny checkpoint, and the stock model in it."""
    folder = tmp_path_factory.mktemp("mllama")
    return folder, write_mllama(folder)


def test_mixed_batches_equal_one_by_one_and_a_saved_model(mllama, tmp_path):
    model = UniMEModel.from_backbone(mllama[0])
    together = model.encode(ITEMS, fusion="joint")
    apart = torch.stack([model.encode(item, fusion="joint") for item in ITEMS])
    assert (together - apart).abs().max() <= 1e-5
    assert (together @ together.T).triu(1).max() < 0.999
    model.save_pretrained(tmp_path)
    assert torch.equal(UniMEModel.from_pretrained(tmp_path).encode(ITEMS, fusion="joint"), together)


def test_a_text_is_what_the_stock_model_makes_of_it(mllama):
    folder, stock = mllama
    model = UniMEModel.from_backbone(folder)
    batch = model.processor.collate(model.processor.prepare(["a cat"]))
    with torch.no_grad():
        hidden = stock.model(**batch).last_hidden_state[0, -1]
    assert (model.encode("a cat") - torch.nn.functional.normalize(hidden, dim=-1)).abs().max() <= 1e-6


def test_mme5_writes_a_begin_of_text_of_its_own(mllama):
    """Its processor puts one before every text, and its tokenizer another one; MMEB's queries end in a line break."""
    folder, stock = mllama
    model = UniMEModel.from_backbone(folder, preset="mme5")
    bos = "<|begin_of_text|>"
    question = "Represent the given image with the following question:"
    for item, instruction, prompt in (
        ("a cat", None, f"{bos}a cat"),
        ("a cat", "Find it:", f"{bos}Find it: a cat\n"),
        (picture(0), None, f"<|image|>{bos}Represent the given image.\n"),
        ({"image": picture(0), "text": "where?"}, None, f"<|image|>{bos}{question} where?\n"),
    ):
        assert model.processor.render(item, instruction)[0] == prompt

    ids = model.processor.tokenizer(f"{bos}a cat")["input_ids"]
    with torch.no_grad():
        hidden = stock.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
    assert (model.encode("a cat") - torch.nn.functional.normalize(hidden, dim=-1)).abs().max() <= 1e-6
    apart = torch.stack([model.encode(item) for item in ITEMS])
    assert (model.encode(ITEMS) - apart).abs().max() <= 1e-5


def test_mme5_sees_images_as_its_authors_did(mllama):
    """A stock model that takes the outputs of the layers before, which are the inputs of the right ones."""
    folder, stock = mllama
    model = UniMEModel.from_backbone(folder, preset="mme5")
    earlier = copy.deepcopy(stock)
    assert earlier.model.vision_model.intermediate_layers_indices == [1, 2]
    earlier.model.vision_model.intermediate_layers_indices = [0, 1]

    bos = "<|begin_of_text|>"
    question = "Represent the given image with the following question:"
    tokenizer = model.processor.tokenizer
    for image, text in ((picture(0), None), (picture(1, (100, 40)), None), (picture(2, (40, 100)), "where?")):
        turn = "Represent the given image.\n" if text is None else f"{question} {text}\n"
        ids = torch.tensor([tokenizer(f"<|image|>{bos}{turn}")["input_ids"]])
        read = MllamaImageProcessorPil(size={"height": 28, "width": 28}, max_image_tiles=4)
        pixels = dict(read([[image]], return_tensors="pt"))
        tiles = pixels.pop("num_tiles")[0][0]
        seen = torch.zeros(1, ids.shape[1], 1, 4, dtype=torch.long)  # which tokens see which tiles
        first = ids[0].tolist().index(tokenizer.convert_tokens_to_ids("<|image|>"))
        seen[:, first:, :, :tiles] = 1
        with torch.no_grad():
            hidden = earlier.model(input_ids=ids, cross_attention_mask=seen, **pixels).last_hidden_state[0, -1]
        expected = torch.nn.functional.normalize(hidden, dim=-1)
        item = {"image": image} if text is None else {"image": image, "text": text}
        assert (model.encode(item) - expected).abs().max() <= 1e-6

        # as transformers 5.23 has it, it is another embedding
        with torch.no_grad():
            hidden = stock.model(input_ids=ids, cross_attention_mask=seen, **pixels).last_hidden_state[0, -1]
        assert (model.encode(item) - torch.nn.functional.normalize(hidden, dim=-1)).abs().max() > 1e-3


def test_the_tower_hands_over_what_goes_into_its_layers(mllama):
    """As transformers 4 and Meta's code do; transformers 5.23 takes what comes out of them."""
    model = UniMEModel.from_backbone(mllama[0])
    tower = model.vlm.vision_model
    inputs = {}

    def keep(layer, arguments, kwargs):
        inputs[layer] = kwargs["hidden_states"]

    layers = tower.transformer.layers
    for layer in layers:
        layer.register_forward_pre_hook(keep, with_kwargs=True)

    batch = model.processor.collate(model.processor.prepare([picture(1, (100, 40))]))
    with torch.no_grad():
        features = tower(batch["pixel_values"], batch["aspect_ratio_ids"], batch["aspect_ratio_mask"])
    handed_over = features.last_hidden_state[..., 32:].unflatten(-1, (32, 2))  # [1, 1, tiles, patches, width, layers]
    for place, number in enumerate([1, 2]):
        expected = inputs[layers[number]].unflatten(1, (4, -1))[
            :, :, :5
        ]  # [1, tiles, patches, width], the padding cut off
        assert (handed_over[0, ..., place] - expected).abs().max() <= 1e-6


@pytest.mark.filterwarnings("ignore:the answer")  # random weights name no candidate
def test_it_judges_and_ranks(mllama):
    judge = UniMERerankerForCausalLM.from_backbone(mllama[0])
    query, candidates = ITEMS[2], ["one", "two cats", "a third"]
    apart = torch.cat([judge.score(query, [candidate], share_prefix=False) for candidate in candidates])
    assert (judge.score(query, candidates) - apart).abs().max() <= 1e-5
    assert len(judge.score("a cat", ITEMS)) == 5
    assert sum(entry["score"] for entry in judge.rank(query, candidates, strategy="listwise")) == pytest.approx(1)
    assert len(judge.rank(query, candidates, strategy="generate")) == 3
    with pytest.raises(ValueError, match="candidate 0 has 2 images, but MllamaProcessor takes one image at a time"):
        judge.score(query, [picture(3)])


def test_it_is_trained_with_the_gradient_of_the_full_batch(mllama, tmp_path):
    data = rows(tmp_path)
    whole = trained(mllama[0], data, tmp_path, **EVERYTHING)
    assert any("cross_attn" in name for name in whole)
    assert difference(trained(mllama[0], data, tmp_path, graph_tokens=0), whole) <= 1e-5
