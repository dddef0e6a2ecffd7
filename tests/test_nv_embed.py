"""NV-Embed-v2 from native parts, against the same arithmetic in plain loops in float64."""

import math

import numpy as np
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from bitsandbytes.nn import Linear4bit
from tiny_checkpoints import write_nv_embed

from unime.checkpoints.nv_embed import NVEmbedConfig, NVEmbedModel, load_nv_embed

TEXTS = ["a red circle", "one", "the small blue star is left of a large white ring, and 12 squares are below both"]
INSTRUCTION = "Instruct: find what is meant\nQuery: "
HEADS, KEY_HEADS, CROSS_HEADS = 4, 2, 2


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Folder and weights of a tiny checkpoint."""
    path = tmp_path_factory.mktemp("nv") / "NV-Embed-v2"
    return path, write_nv_embed(path)


@pytest.fixture(scope="module")
def model(published):
    return load_nv_embed(published[0], dtype="float32")


# the reference: one text at a time, one token at a time, nothing of torch
def rms_norm(x, weight):
    return x / math.sqrt((x * x).mean() + 1e-5) * weight


def layer_norm(x, weights, name):
    centred = x - x.mean()
    return centred / math.sqrt((centred**2).mean() + 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def softmax(scores):
    powers = [math.exp(score - max(scores)) for score in scores]
    return [power / sum(powers) for power in powers]


def rotated(x, position):
    """Rotary position of one head: the halves are the real and the imaginary parts."""
    half = len(x) // 2
    y = np.empty_like(x)
    for i in range(half):
        angle = position * 10000.0 ** (-i / half)
        y[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        y[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return y


def attend(queries, keys, values):
    """For each query the mean of all values, weighted by the softmax of its products with the keys."""
    out = []
    for query in queries:
        weights = softmax([float(query @ key) / math.sqrt(len(query)) for key in keys])
        out.append(sum(weight * value for weight, value in zip(weights, values)))
    return out


def heads_of(vectors, heads):
    """`heads` lists of one part of each vector."""
    return [[np.split(vector, heads)[head] for vector in vectors] for head in range(heads)]


def mistral(weights, ids):
    """Last hidden states of one text without padding; every token sees every other."""
    hidden = [weights["embedding_model.embed_tokens.weight"][token] for token in ids]
    for number in range(2):
        w = {
            name.split(f"layers.{number}.")[1].removesuffix(".weight"): tensor
            for name, tensor in weights.items()
            if f"layers.{number}." in name
        }
        normed = [rms_norm(x, w["input_layernorm"]) for x in hidden]
        queries = heads_of([w["self_attn.q_proj"] @ x for x in normed], HEADS)
        keys = heads_of([w["self_attn.k_proj"] @ x for x in normed], KEY_HEADS)
        values = heads_of([w["self_attn.v_proj"] @ x for x in normed], KEY_HEADS)
        parts = []
        for head in range(HEADS):
            shared = head // (HEADS // KEY_HEADS)
            q = [rotated(x, position) for position, x in enumerate(queries[head])]
            k = [rotated(x, position) for position, x in enumerate(keys[shared])]
            parts.append(attend(q, k, values[shared]))
        hidden = [
            x + w["self_attn.o_proj"] @ np.concatenate([part[place] for part in parts])
            for place, x in enumerate(hidden)
        ]
        for place, x in enumerate(hidden):
            normed = rms_norm(x, w["post_attention_layernorm"])
            gate = w["mlp.gate_proj"] @ normed
            silu = np.array([value / (1 + math.exp(-value)) for value in gate])
            hidden[place] = x + w["mlp.down_proj"] @ (silu * (w["mlp.up_proj"] @ normed))
    return [rms_norm(x, weights["embedding_model.norm.weight"]) for x in hidden]


def latent_attention(weights, hidden):
    attention = "latent_attention_model.cross_attend_blocks.0"
    feed_forward = "latent_attention_model.cross_attend_blocks.1"
    latents = [
        layer_norm(latent, weights, f"{attention}.norm_context")
        for latent in weights["latent_attention_model.latents"]
    ]
    both = [weights[f"{attention}.fn.to_kv.weight"] @ latent for latent in latents]
    keys = heads_of([np.split(x, 2)[0] for x in both], CROSS_HEADS)
    values = heads_of([np.split(x, 2)[1] for x in both], CROSS_HEADS)

    out = []
    for token in hidden:
        query = weights[f"{attention}.fn.to_q.weight"] @ layer_norm(token, weights, f"{attention}.norm")
        parts = []
        for head, part in enumerate(np.split(query, CROSS_HEADS)):
            parts.append(attend([part], keys[head], values[head])[0])
        token = token + weights[f"{attention}.fn.to_out.weight"] @ np.concatenate(parts)

        normed = layer_norm(token, weights, f"{feed_forward}.norm")
        wide = weights[f"{feed_forward}.fn.net.0.weight"] @ normed + weights[f"{feed_forward}.fn.net.0.bias"]
        features, gate = np.split(wide, 2)
        gelu = np.array([value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in gate])
        narrow = weights[f"{feed_forward}.fn.net.2.weight"] @ (features * gelu)
        out.append(token + narrow + weights[f"{feed_forward}.fn.net.2.bias"])
    return out


def reference(published, tokenizer, text, instruction="", max_length=4096):
    weights = {name: tensor.double().numpy() for name, tensor in published[1].items()}
    bos = tokenizer.convert_tokens_to_ids("<s>")
    ids = [bos, *tokenizer.encode(f"{instruction}{text}</s>", add_special_tokens=False)][:max_length]
    hidden = latent_attention(weights, mistral(weights, ids))
    skipped = len(tokenizer.tokenize(instruction)) if instruction else 0
    mean = sum(hidden[skipped:]) / len(hidden[skipped:])
    return mean / math.sqrt(mean @ mean)


@pytest.mark.parametrize("instruction", ["", INSTRUCTION])
def test_embeddings_are_those_of_plain_loops(published, model, instruction):
    expected = np.stack([reference(published, model.tokenizer, text, instruction) for text in TEXTS])
    embeddings = model.encode(TEXTS, instruction)
    assert embeddings.dtype == np.float32 and embeddings.shape == (3, 64)
    assert np.abs(embeddings - expected).max() < 2e-6
    assert np.abs(expected @ expected.T - np.eye(3)).max() < 0.99, "texts that are told apart"


def test_padding_order_and_batch_do_not_matter(model):
    together = model.encode(TEXTS)
    assert np.abs(model.encode(TEXTS, batch_size=1) - together).max() < 1e-6
    assert np.abs(model.encode(TEXTS[::-1], batch_size=2)[::-1] - together).max() < 1e-6


def test_every_token_sees_those_behind_it(model):
    inputs = model.tokenize(["a red circle", "a red star"])
    hidden = model.embedding_model(
        input_ids=inputs["input_ids"],
        attention_mask=torch.ones(2, 1, *[inputs["input_ids"].shape[1]] * 2, dtype=torch.bool),
    ).last_hidden_state
    embeddings = model(**inputs)
    assert (inputs["input_ids"][0, :2] == inputs["input_ids"][1, :2]).all()
    assert not torch.allclose(hidden[0, 0], hidden[1, 0], atol=1e-3), "BOS knows how the text ends"
    assert not torch.allclose(embeddings[0], embeddings[1], atol=1e-3)


def test_a_text_ends_in_eos_and_is_padded_right_with_it(model):
    inputs = model.tokenize(TEXTS[:2])
    eos = model.tokenizer.convert_tokens_to_ids("</s>")
    for ids, mask in zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist()):
        length = sum(mask)
        assert mask == [1] * length + [0] * (len(mask) - length)
        assert ids[0] == model.tokenizer.convert_tokens_to_ids("<s>")
        assert ids[length - 1 :] == [eos] * (len(ids) - length + 1)


def test_the_instructions_last_token_stays_in_the_mean(model):
    instruction = "Find the text that means:"
    tokens = model.tokenizer.tokenize(instruction)
    inputs = model.tokenize(["one"], instruction)
    length = inputs["input_ids"].shape[1]
    assert inputs["pool_mask"][0].tolist() == [0] * len(tokens) + [1] * (length - len(tokens))

    # place 0 is BOS, so the instruction's tokens are 1 to their number
    ids = inputs["input_ids"][0].tolist()
    assert model.tokenizer.convert_ids_to_tokens(ids[1 : len(tokens) + 1]) == tokens


def test_a_text_that_is_cut_loses_its_eos(published, model):
    inputs = model.tokenize([TEXTS[2]], max_length=9)
    whole = model.tokenize([TEXTS[2]])["input_ids"]
    assert inputs["input_ids"].tolist() == whole[:, :9].tolist()
    assert model.tokenizer.convert_tokens_to_ids("</s>") not in inputs["input_ids"]
    expected = reference(published, model.tokenizer, TEXTS[2], INSTRUCTION, max_length=40)
    assert np.abs(model.encode([TEXTS[2]], INSTRUCTION, max_length=40) - expected).max() < 2e-6
    with pytest.raises(ValueError, match="instruction has .* tokens, and max_length is 8: nothing of a text is left"):
        model.encode(["one"], INSTRUCTION, max_length=8)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"latent_attention_model__latents": None}, "missing keys: latent_attention_model.latents"),
        ({"embedding_model__layers__1__mlp__up_proj__weight": None}, r"missing keys: .*layers\.1\.mlp\.up_proj"),
        ({"lm_head__weight": torch.zeros(2, 64)}, "unexpected keys: lm_head.weight"),
        ({"latent_attention_model__latents": torch.zeros(6, 40)}, "mismatched keys: .*latents"),
    ],
)
def test_every_weight_must_land(tmp_path, changes, message):
    write_nv_embed(tmp_path, **changes)
    with pytest.raises(ValueError, match=f"does not fit this model: {message}"):
        load_nv_embed(tmp_path)


def test_what_the_configuration_leaves_out_is_as_published():
    config = NVEmbedConfig(text_config={}, latent_attention_config={"model_type": "latent_attention"})
    assert config.text_config.hidden_size == 4096 and config.text_config.num_key_value_heads == 8
    settings = config.latent_attention_config
    assert (settings["num_latents_value"], settings["num_cross_heads"], settings["cross_dim_head"]) == (512, 8, 4096)
    with torch.device("meta"):
        model = NVEmbedModel(config)
    assert sum(weight.numel() for weight in model.parameters()) == 7_851_016_192, "7.85 B, as published"
    with pytest.raises(ValueError, match="hidden_dim of latent_attention_config is 4096, hidden_size .* 64"):
        NVEmbedConfig(text_config={"hidden_size": 64})
    with pytest.raises(ValueError, match="padding_side='left' is not supported"):
        NVEmbedConfig(text_config={}, padding_side="left")


def test_half_precision_stays_near(published, model):
    half = load_nv_embed(published[0])
    assert half.dtype == torch.bfloat16
    assert (half.encode(TEXTS) * model.encode(TEXTS)).sum(1).min() > 0.995


def test_four_bits_are_those_of_the_language_model_alone(published, tmp_path):
    small = load_nv_embed(published[0], quantization="nf4")
    linear = {name for name, module in small.named_modules() if isinstance(module, Linear4bit)}
    assert len(linear) == 14 and all(name.startswith("embedding_model.layers.") for name in linear)

    # the same rounding of these weights, written out in full
    rounded = {}
    for name in linear:
        weight = published[1][f"{name}.weight"].to(torch.bfloat16)
        codes, state = quantize_4bit(weight, quant_type="nf4")
        rounded[f"{name}.weight"] = dequantize_4bit(codes, state).float()
    write_nv_embed(tmp_path, **{name.replace(".", "__"): weight for name, weight in rounded.items()})
    expected = load_nv_embed(tmp_path, dtype="float32").encode(TEXTS)
    assert (small.encode(TEXTS) * expected).sum(1).min() > 0.995
    with pytest.raises(ValueError, match="must be 'nf4' or 'int8'"):
        load_nv_embed(published[0], quantization="int3")


def test_nothing_is_said_about_another_type_of_model(published, caplog):
    load_nv_embed(published[0])
    assert "model of type" not in caplog.text
