"""EmbeddingGemma 2, an encoder: mean pooling, attention in both directions, a projection behind its language model."""

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import fresh_process, picture
from test_unlisted import TEXT, VISION, tokenizer
from tiny_checkpoints import spread
from transformers import AutoModel, EmbeddingGemma2Config, Gemma4ImageProcessorPil

from unime import UniMEModel, UniMERerankerForCausalLM
from unime.checkpoints.conversion import export

ASK = "question answering"
IMAGE = picture(1, (100, 40))


def write_gemma(folder):
    """Writes a tiny checkpoint, whose embedding is wider than its language model, and returns the parts of it."""
    named = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>"}
    named |= {"audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"}
    words = tokenizer([*named.values(), "<|video|>"], **named)
    ids = {}
    for name in ("image", "boi", "eoi", "audio", "boa"):
        ids[f"{name}_token_id"] = words.convert_tokens_to_ids(named[f"{name}_token"])

    text = {**TEXT, "head_dim": 12, "global_head_dim": 24, "num_global_key_value_heads": 1, "sliding_window": 6}
    text |= {"num_hidden_layers": 3, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
    text |= {"vocab_size": len(words), "hidden_size_per_layer_input": 8, "embedding_dim": 64}
    vision = {**VISION, "num_key_value_heads": 2, "head_dim": 16, "patch_size": 8, "pooling_kernel_size": 2}
    config = EmbeddingGemma2Config(
        text_config=text,
        vision_config={"model_type": "gemma4_vision", **vision},
        eoa_token_index=words.convert_tokens_to_ids("<audio|>"),
        video_token_id=words.convert_tokens_to_ids("<|video|>"),
        **ids,
    )
    torch.manual_seed(0)
    stock = AutoModel.from_config(config).eval()
    spread(stock)
    reader = Gemma4ImageProcessorPil(patch_size=8, pooling_kernel_size=2, max_soft_tokens=70)
    for part in (stock, words, reader):
        part.save_pretrained(folder)
    settings = {"processor_class": "EmbeddingGemma2Processor", "image_seq_length": 70}
    (folder / "processor_config.json").write_text(json.dumps(settings))
    return stock, words, reader


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """A folder with a tiny checkpoint, and the stock model, tokenizer and image processor in it."""
    folder = tmp_path_factory.mktemp("gemma") / "embeddinggemma-2"
    return folder, *write_gemma(folder)


def reference(gemma, prompt: str, image=None) -> torch.Tensor:
    """An embedding with prompt, ids, pixels and pooling written out."""
    _, stock, words, reader = gemma
    inputs = {}
    if image is not None:
        inputs = dict(reader([[image]], return_tensors="pt"))
        count = int(inputs.pop("num_soft_tokens_per_image")[0])
        prompt = prompt.replace("{}", "<|image>" + "<|image|>" * count + "<image|>")
    ids = torch.tensor([words(prompt)["input_ids"]])
    with torch.no_grad():
        hidden = stock(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs).last_hidden_state[0]
    return F.normalize(hidden.mean(dim=0), dim=-1)


def test_embeddings_are_the_mean_of_its_projected_states(gemma):
    model = UniMEModel.from_backbone(gemma[0])
    assert model.processor.preset == "embeddinggemma-2" and model.config.hidden_size == 64
    both = {"text": "a star", "image": IMAGE}
    for item, instruction, role, prompt, image in (
        ("a star", None, "query", "task: search result | query: a star", None),
        ("a {instruction}", "find {text}", "query", "task: find {text} | query: a {instruction}", None),
        ("a star", ASK, "document", "title: none | text: a star", None),
        (IMAGE, ASK, "query", f"task: {ASK} | query: {{}}", IMAGE),
        (IMAGE, None, "document", "title: none | text: {}", IMAGE),
        (both, None, "query", "task: search result | query: a star{}", IMAGE),
    ):
        expected = reference(gemma, prompt, image)
        assert (model.encode(item, instruction, role) - expected).abs().max() <= 2e-6, prompt

    # rows of other lengths, with and without images, move nothing
    items = ["x", both, IMAGE, "a longer text than the window of its attention", picture(2, (40, 100))]
    together = model.encode(items, batch_tokens=10**6)
    assert (together - torch.stack([model.encode(item) for item in items])).abs().max() <= 2e-6
    short = model.encode(items, truncate_dim=32)
    assert (short - F.normalize(together[:, :32], dim=-1)).abs().max() <= 1e-6


ALONE = """
import json, sys
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
assert "unime" not in sys.modules
print(json.dumps(model.encode(["a star", "a ring"]).tolist()))
"""


def test_a_saved_one_gives_the_same_without_the_package_and_is_not_exported(gemma, tmp_path):
    model = UniMEModel.from_backbone(gemma[0])
    model.save_pretrained(tmp_path / "saved")
    again = torch.tensor(fresh_process(ALONE, tmp_path / "saved"))
    assert (again - model.encode(["a star", "a ring"])).abs().max() <= 1e-6
    with pytest.raises(ValueError, match="embedding_gemma2, which transformers knows no generating class for"):
        export(tmp_path / "saved", tmp_path / "stock")


def test_it_is_not_a_judge(gemma):
    with pytest.raises(ValueError, match="embedding_gemma2, which transformers knows no generating class for"):
        UniMERerankerForCausalLM.from_backbone(gemma[0], preset="summary")
