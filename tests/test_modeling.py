"""The embedder and the reranker: exact wrapping, strict loading, encode, score and rank."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import fresh_process, picture, save_backbone
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText

from unime import UniMEModel, UniMERerankerForCausalLM
from unime.jobs.embedding import Embedder
from unime.jobs.reranking import Reranker
from unime.trainers.stage import load_model


def items():
    """Texts of several lengths, images of several sizes, both together, and copies."""
    words = ["a", "red", "circle", "left", "of", "a", "blue", "star"]
    texts = [" ".join(words[: n + 1]) for n in range(8)]
    images = [picture(n, size) for n, size in enumerate([(64, 48), (32, 32), (96, 40), (16, 64)])]
    both = [{"text": text, "image": image} for text, image in zip(texts, images)]
    return texts + images + both + [texts[0], images[0].copy()]


def test_wrapping_changes_no_weight_and_no_hidden_state(backbone, embedder):
    stock = AutoModelForImageTextToText.from_pretrained(backbone).eval()
    for name, weight in stock.model.state_dict().items():
        assert torch.equal(embedder.vlm.state_dict()[name], weight), name
    batch = embedder.processor.collate(embedder.processor.prepare(items()[:12]))
    with torch.no_grad():
        hidden = stock.model(**batch).last_hidden_state[:, -1]  # left padding: the last position is the last token
        output = embedder(**batch)
    expected = hidden / hidden.norm(dim=1, keepdim=True)
    assert torch.allclose(output.embeddings, expected, atol=1e-5)
    assert output.last_hidden_state.shape == (*batch["input_ids"].shape, 96)


def test_packed_vision_attention_and_linear_patches_equal_the_stock_tower(backbone, embedder):
    stock = AutoModel.from_pretrained(backbone)
    assert embedder.vlm.config.vision_config._attn_implementation == embedder.vision_attention
    batch = embedder.processor.collate(embedder.processor.prepare([picture(0), picture(1, (32, 32)), picture(2)]))
    pixels, grid = batch["pixel_values"], batch["image_grid_thw"]
    for selection in (slice(None), [0, 2]):  # unequal and equal lengths
        lengths = grid.prod(-1).tolist()
        chosen = torch.cat(
            [pixels.split(lengths)[i] for i in range(3)[selection]]
            if selection == slice(None)
            else [pixels.split(lengths)[i] for i in selection]
        )
        expected = stock.visual(chosen, grid_thw=grid[selection]).pooler_output
        assert torch.allclose(embedder.vlm.visual(chosen, grid_thw=grid[selection]).pooler_output, expected, atol=1e-5)
        with torch.no_grad():
            assert torch.allclose(
                embedder.vlm.visual(chosen, grid_thw=grid[selection]).pooler_output, expected, atol=1e-5
            )


def test_a_deep_copy_uses_its_own_weights(embedder):
    copied = copy.deepcopy(embedder)
    with torch.no_grad():
        copied.vlm.visual.patch_embed.proj.weight.zero_()
    assert copied.vlm.visual.patch_embed(torch.ones(4, 192)).abs().max() == 0
    assert embedder.vlm.visual.patch_embed(torch.ones(4, 192)).abs().max() > 0


def test_pooling_takes_the_last_token_with_either_padding_side(embedder):
    ids = embedder.processor.tokenizer("a red circle")["input_ids"]
    pad = [embedder.processor.tokenizer.pad_token_id] * 3
    rows = {
        "left": (pad + ids, [0] * 3 + [1] * len(ids)),
        "right": (ids + pad, [1] * len(ids) + [0] * 3),
        "none": (ids, [1] * len(ids)),
    }
    with torch.no_grad():
        found = {
            side: embedder(
                input_ids=torch.tensor([row]), attention_mask=torch.tensor([mask]), position_ids=_positions(mask)
            ).embeddings
            for side, (row, mask) in rows.items()
        }
    assert torch.allclose(found["left"], found["none"], atol=1e-5) and torch.allclose(
        found["right"], found["none"], atol=1e-5
    )


def _positions(mask):
    return (torch.tensor([mask]).cumsum(1) - 1).clamp(min=0)


def test_encode_keeps_order_encodes_copies_once_and_ignores_batching(embedder):
    embedder.processor.fusion = "joint"  # a sum would take two passes for an item
    whole = embedder.encode(items())
    seen = []
    embedder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    assert torch.equal(embedder.encode(items()), whole)
    assert sum(seen) == len(items()) - 2
    assert torch.equal(whole[0], whole[-2]) and torch.equal(whole[8], whole[-1])
    one_by_one = torch.stack([embedder.encode(item) for item in items()])
    assert torch.allclose(whole, one_by_one, atol=1e-5)
    assert torch.allclose(whole, embedder.encode(items(), batch_tokens=64), atol=1e-5)
    assert whole.dtype == torch.float32 and torch.allclose(whole.norm(dim=1), torch.ones(len(whole)), atol=1e-5)


def test_encode_accepts_paths_messages_and_instructions(embedder, tmp_path):
    image = picture(5)
    image.save(tmp_path / "a.png")
    by_path, by_dict = embedder.encode(tmp_path / "a.png"), embedder.encode({"image": str(tmp_path / "a.png")})
    assert torch.equal(by_path, by_dict) and torch.allclose(by_path, embedder.encode(image), atol=1e-6)
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": image},
                {"type": "text", "text": "\nSummary above image in one word:"},
            ],
        }
    ]
    assert torch.allclose(embedder.encode(messages), embedder.encode(image), atol=1e-6)
    assert torch.allclose(embedder.encode([messages, "a"])[0], embedder.encode(image), atol=1e-5)
    assert torch.allclose(embedder.encode("a cat", instruction="find"), embedder.encode("find\na cat"), atol=1e-6)
    assert embedder.encode([]).shape == (0, 96)


def test_truncated_embeddings_are_renormalised_prefixes(embedder):
    whole, short = embedder.encode(["a", "b"]), embedder.encode(["a", "b"], truncate_dim=16)
    assert torch.allclose(short, torch.nn.functional.normalize(whole[:, :16], dim=1), atol=1e-6)
    with pytest.raises(ValueError, match="between 1 and 96"):
        embedder.encode("a", truncate_dim=97)


def test_similarity_is_cosine(embedder):
    queries, documents = torch.randn(3, 8), torch.randn(5, 8)
    expected = [
        [np.dot(q, d) / np.linalg.norm(q) / np.linalg.norm(d) for d in documents.numpy()] for q in queries.numpy()
    ]
    assert torch.allclose(
        embedder.similarity(queries, documents), torch.tensor(np.array(expected), dtype=torch.float32), atol=1e-6
    )


def test_encode_restores_training_mode_and_leaves_no_graph(embedder):
    embedder.train()
    embeddings = embedder.encode("a")
    assert embedder.training and not embeddings.requires_grad


def test_nan_weights_are_named_with_the_item(embedder):
    with torch.no_grad():
        embedder.vlm.language_model.norm.weight[0] = float("nan")
    with pytest.raises(ValueError, match=r"output for item 0 is not finite: weight 'vlm.language_model.norm.weight'"):
        embedder.encode("a cat")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_and_load_round_trip_bit_for_bit(backbone, tmp_path, dtype):
    model = UniMEModel.from_backbone(backbone, preset="joint", dtype=dtype)
    model.save_pretrained(tmp_path)
    again = UniMEModel.from_pretrained(tmp_path)
    assert again.dtype == dtype and again.processor.preset == "joint"
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert torch.equal(model.encode(items()), again.encode(items()))
    names = {path.name for path in tmp_path.iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "modeling_unime.py",
        "configuration_unime.py",
        "processing_unime.py",
        "processor_config.json",
    } <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)


REMOTE = """
import importlib.util, json, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder)]
assert importlib.util.find_spec("unime") is None
from PIL import Image
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor
embedder = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
reranker = AutoModelForCausalLM.from_pretrained(sys.argv[2], trust_remote_code=True)
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
image = Image.open(sys.argv[3])
again = sys.argv[1] + "-again"
embedder.save_pretrained(again)
print(json.dumps({
    "modules": [type(x).__module__.split(".")[0] for x in (embedder, reranker, processor)],
    "embeddings": embedder.encode(["a red circle", image]).tolist(),
    "scores": reranker.score(image, ["a red circle", "a star"]).tolist(),
    "again": AutoModel.from_pretrained(again, trust_remote_code=True).encode(image).tolist(),
}))
"""


def test_fresh_process_without_the_package_gets_the_same_numbers(embedder, reranker, tmp_path):
    embedder.save_pretrained(tmp_path / "embedder")
    reranker.save_pretrained(tmp_path / "reranker")
    image = picture(6)
    image.save(tmp_path / "a.png")
    found = fresh_process(
        REMOTE,
        tmp_path / "embedder",
        tmp_path / "reranker",
        tmp_path / "a.png",
        HF_MODULES_CACHE=str(tmp_path / "modules"),
        PYTHONSAFEPATH="1",
    )
    assert found["modules"] == ["transformers_modules"] * 3
    expected = embedder.encode(["a red circle", image])
    assert torch.equal(torch.tensor(found["embeddings"]), expected)
    assert torch.equal(torch.tensor(found["again"]), expected[1])
    assert torch.equal(torch.tensor(found["scores"]), reranker.score(image, ["a red circle", "a star"]))


def damaged(source, target, change):
    """Copies a checkpoint and changes its state dict."""
    shutil.copytree(source, target)
    weights = load_file(target / "model.safetensors")
    change(weights)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("vlm.language_model.norm.weight"), "missing keys: vlm.language_model.norm.weight"),
        (lambda w: w.update({"vlm.extra.weight": torch.ones(2)}), "unexpected keys: vlm.extra.weight"),
        (lambda w: w.update({"vlm.language_model.norm.weight": torch.ones(5)}), "vlm.language_model.norm.weight"),
    ],
)
def test_a_partial_checkpoint_is_an_error_that_names_the_weight(embedder, tmp_path, change, message):
    embedder.save_pretrained(tmp_path / "whole")
    with pytest.raises((ValueError, RuntimeError), match=message):
        UniMEModel.from_pretrained(damaged(tmp_path / "whole", tmp_path / "bad", change))


def test_a_backbone_with_a_missing_weight_is_refused(backbone, tmp_path):
    bad = damaged(backbone, tmp_path / "bad", lambda w: w.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ValueError, match=r"missing keys: .*layers\.1\.mlp\.up_proj\.weight"):
        UniMEModel.from_backbone(bad)


def test_sharded_save_loads(embedder, tmp_path):
    embedder.save_pretrained(tmp_path, max_shard_size="300KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert torch.equal(UniMEModel.from_pretrained(tmp_path).encode("a"), embedder.encode("a"))


def test_config_round_trip_keeps_the_sub_config(embedder, tmp_path):
    embedder.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "unime" and config["vlm_config"]["model_type"] == "qwen2_vl"
    assert config["auto_map"] == {
        "AutoConfig": "configuration_unime.UniMEConfig",
        "AutoModel": "modeling_unime.UniMEModel",
    }
    assert embedder.config.hidden_size == 96
    with pytest.raises(ValueError, match="pooling='max' is unknown"):
        type(embedder.config)(pooling="max")


def test_a_model_without_processor_says_so(embedder):
    bare = UniMEModel(embedder.config)
    with pytest.raises(ValueError, match="set `model.processor`"):
        bare.encode("a")


# the reranker
def pairs(reranker, query, candidates):
    """P(yes) of each pair by an independent path: one prompt at a time through the stock model."""
    tokenizer, found = reranker.processor.tokenizer, []
    for candidate in candidates:
        messages = reranker.processor.rerank_messages(query, [candidate], "pointwise")
        images = [part["image"] for part in messages[0]["content"] if part["type"] == "image"]
        batch = reranker.processor(
            text=[tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)],
            images=images or None,
            return_tensors="pt",
        )
        with torch.no_grad():
            logits = reranker.vlm(**batch).logits[0, -1].double()
        yes, no = (logits[tokenizer(word)["input_ids"][0]] for word in ("Yes", "No"))
        found.append(float(torch.exp(yes) / (torch.exp(yes) + torch.exp(no))))
    return torch.tensor(found)


def test_score_is_the_two_way_softmax_of_yes_and_no(reranker):
    query = {"text": "<|image_1|>\nFind an image of a red circle.", "image": picture(7)}
    candidates = ["a red circle", picture(8), {"text": "a blue star", "image": picture(9, (32, 32))}, "left of"]
    scores = reranker.score(query, candidates)
    assert scores.dtype == torch.float32
    assert torch.allclose(scores, pairs(reranker, query, candidates), atol=1e-5)
    assert torch.allclose(scores, reranker.score(query, candidates, batch_tokens=1), atol=1e-5)


def test_pointwise_rank_sorts_the_scores(reranker):
    candidates = ["a red circle", "a blue star", "left of", "a"]
    scores = reranker.score("red", candidates)
    ranked = reranker.rank("red", candidates)
    assert [entry["index"] for entry in ranked] == scores.argsort(descending=True).tolist()
    assert [entry["score"] for entry in ranked] == sorted(scores.tolist(), reverse=True)


def test_listwise_rank_reads_the_number_after_the_forced_prefix(reranker):
    candidates = ["a red circle", picture(1), "a blue star"]
    tokenizer = reranker.processor.tokenizer
    prompt, images = reranker.processor.render(reranker.processor.rerank_messages("red", candidates, "listwise"))
    batch = reranker.processor(text=[prompt + "Ans: ("], images=list(images), return_tensors="pt")
    with torch.no_grad():
        logits = reranker.vlm(**batch).logits[0, -1]
    expected = logits[[tokenizer(str(n))["input_ids"][0] for n in (1, 2, 3)]].softmax(0)
    calls = []
    reranker.register_forward_pre_hook(lambda *args: calls.append(1))
    ranked = reranker.rank("red", candidates, strategy="listwise")
    assert len(calls) == 1, "one forward"
    assert sorted(entry["index"] for entry in ranked) == [0, 1, 2]
    assert torch.allclose(
        torch.tensor([entry["score"] for entry in ranked]), expected.sort(descending=True).values, atol=1e-5
    )


def test_rank_refuses_what_it_cannot_do(reranker):
    with pytest.raises(ValueError, match="unknown strategy"):
        reranker.rank("a", ["b"], strategy="fancy")
    with pytest.raises(ValueError, match="one retrieval score for each candidate"):
        reranker.rank("a", ["b", "c"], strategy="fused", retrieval_scores=[0.5])
    with pytest.raises(TypeError, match="sum_variants means nothing"):
        reranker.rank("a", ["b", "c"], strategy="listwise", sum_variants=True)
    with pytest.raises(ValueError, match="candidate 1 is empty"):
        reranker.rank("a", ["b", ""])
    with pytest.raises(TypeError, match="must be a list of items, not a str"):
        reranker.score("a", "b")
    assert reranker.rank("a", []) == []


def test_reranker_round_trip_keeps_the_tied_head(reranker, tmp_path):
    reranker.save_pretrained(tmp_path)
    again = UniMERerankerForCausalLM.from_pretrained(tmp_path)
    assert again.vlm.lm_head.weight is again.vlm.get_input_embeddings().weight or torch.equal(
        again.vlm.lm_head.weight, again.vlm.get_input_embeddings().weight
    )
    assert torch.equal(again.score("a", ["b", "c"]), reranker.score("a", ["b", "c"]))


def test_untied_head_survives(tmp_path):
    path = save_backbone(tmp_path / "backbone")
    stock = AutoModelForImageTextToText.from_pretrained(path)
    stock.config.tie_word_embeddings = stock.config.text_config.tie_word_embeddings = False
    stock.lm_head.weight = torch.nn.Parameter(torch.randn_like(stock.lm_head.weight))
    stock.save_pretrained(path)
    reranker = UniMERerankerForCausalLM.from_backbone(path)
    assert torch.equal(reranker.vlm.lm_head.weight, stock.lm_head.weight)
    reranker.save_pretrained(tmp_path / "saved")
    again = UniMERerankerForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.vlm.lm_head.weight, stock.lm_head.weight)


def test_names_of_sentence_transformers_are_understood(embedder, reranker):
    texts = ["a red circle", "a blue star", "a red circle left of a blue star"]
    expected = embedder.encode(texts, instruction="Find it.")
    assert torch.equal(embedder.encode(texts, prompt="Find it.", show_progress_bar=False), expected)
    assert torch.allclose(embedder.encode(texts, instruction="Find it.", batch_size=1), expected, atol=1e-6)
    with pytest.raises(TypeError, match="instruction and prompt are two names"):
        embedder.encode("a", prompt="b", instruction="c")
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        embedder.encode("a", batch_size=0)

    ranking = reranker.rank("red", texts, top_k=2, return_documents=True)
    whole = reranker.rank("red", texts)
    assert [(e["index"], e["score"]) for e in ranking] == [(e["index"], e["score"]) for e in whole[:2]]
    assert all(e["corpus_id"] == e["index"] and e["text"] == texts[e["index"]] for e in ranking)
    with pytest.raises(ValueError, match="top_k must not be negative"):
        reranker.rank("red", texts, top_k=-1)


def test_a_reading_is_a_reading(embedder):
    with pytest.raises(TypeError, match="reading must be a Reading"):
        embedder.processor.prepare(["x"], "Find it")
    with pytest.raises(ValueError):
        embedder.encode([], resolution="zzz")


def test_the_other_kind_of_model_is_refused_by_name(embedder, reranker, tmp_path):
    embedder.save_pretrained(tmp_path / "emb")
    reranker.save_pretrained(tmp_path / "rer")
    with pytest.raises(ValueError, match="rer is a reranker; an embedder or a stock VLM is needed"):
        Embedder(tmp_path / "rer").load()
    with pytest.raises(ValueError, match="rer is a reranker; an embedder"):
        load_model(tmp_path / "rer")
    with pytest.raises(ValueError, match="emb is an embedder; a reranker or a stock VLM is needed"):
        Reranker(tmp_path / "emb").load()


def test_a_merged_adapter_can_be_trained_on(embedder, tmp_path):
    embedder.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(embedder, LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapted.save_pretrained(tmp_path / "adapter")
    assert all(parameter.requires_grad for parameter in load_model(tmp_path / "adapter").parameters())
