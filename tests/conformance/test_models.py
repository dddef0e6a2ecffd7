"""What transformers' model mixins expect of any model, for our two wrappers; the reference is the VLM inside."""

import copy
import inspect
import pickle

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from conftest import fresh_process, picture
from transformers import AutoModel, AutoModelForImageTextToText, pipeline

from unime import UniMEModel, UniMERerankerForCausalLM

ITEMS = ["a red circle", {"image": picture(1), "text": "a star"}]
CHAT = [{"role": "user", "content": [{"type": "image", "image": picture(2)}, {"type": "text", "text": "What is it?"}]}]


def batch_of(model, items=ITEMS) -> dict:
    return dict(model.processor.collate(model.processor.prepare(items)))


def chat_of(model) -> dict:
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    return dict(model.processor.apply_chat_template(CHAT, **options))


# forward of the embedder
def test_a_tuple_has_what_the_output_has(embedder):
    batch = batch_of(embedder)
    output = embedder(**batch)
    for values in (embedder(**batch, return_dict=False), output.to_tuple()):
        assert isinstance(values, tuple) and len(values) == 2
        assert torch.equal(values[0], output.embeddings) and torch.equal(values[1], output.last_hidden_state)

    embedder.config.return_dict = False
    assert isinstance(embedder(**batch), tuple)


def test_hidden_states_and_attentions_are_those_of_the_vlm(backbone):
    model = UniMEModel.from_backbone(backbone, attn_implementation="eager")
    batch = batch_of(model)
    reference = model.vlm(**batch, output_hidden_states=True, output_attentions=True, use_cache=False)
    output = model(**batch, output_hidden_states=True, output_attentions=True)
    for name in ("hidden_states", "attentions"):
        assert len(output[name]) == len(reference[name]) >= 2
        for ours, theirs in zip(output[name], reference[name]):
            assert torch.equal(ours, theirs)
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)

    # the configuration may ask for them too, and a call may say no
    assert model(**batch).get("hidden_states") is None and model(**batch).get("attentions") is None
    model.config.output_hidden_states = True
    model.config.output_attentions = True
    assert len(model(**batch).hidden_states) == len(model(**batch).attentions) + 1
    assert model(**batch, output_hidden_states=False).get("hidden_states") is None


def test_the_gradient_reaches_all_hidden_states(embedder):
    output = embedder(**batch_of(embedder), output_hidden_states=True)
    for states in output.hidden_states:
        states.retain_grad()
    output.embeddings[:, 0].sum().backward()
    assert all(states.grad.abs().sum() > 0 for states in output.hidden_states)


def test_embeddings_of_tokens_stand_in_for_their_ids(embedder):
    batch = batch_of(embedder, ["a red circle", "a blue star left of it"])
    expected = embedder(**batch).embeddings
    embeds = embedder.get_input_embeddings()(batch["input_ids"])
    output = embedder(inputs_embeds=embeds, attention_mask=batch["attention_mask"])
    torch.testing.assert_close(output.embeddings, expected)

    # without a mask, every token counts
    alone = embedder(inputs_embeds=embeds[:1], attention_mask=torch.ones_like(batch["input_ids"][:1]))
    torch.testing.assert_close(embedder(inputs_embeds=embeds[:1]).embeddings, alone.embeddings)


@pytest.mark.parametrize("positions", ["native", "flat"])
def test_a_cache_of_the_beginning_gives_the_embedding_of_the_whole(embedder, positions):
    embedder.config.positions = positions
    ids = batch_of(embedder, ["a red circle left of a blue star"])["input_ids"]
    whole = embedder(input_ids=ids)
    assert whole.past_key_values is None

    cache = embedder(input_ids=ids[:, :5], use_cache=True).past_key_values
    rest = embedder(input_ids=ids[:, 5:], attention_mask=torch.ones_like(ids), past_key_values=cache)
    torch.testing.assert_close(rest.embeddings, whole.embeddings)


def test_the_embedder_can_be_exported_and_is_called_by_position(embedder):
    batch = batch_of(embedder, ["a red circle", "a blue star left of it"])
    inputs = (batch["input_ids"], batch["attention_mask"])
    expected = embedder(**batch).embeddings
    assert torch.equal(embedder(*inputs).embeddings, expected)
    exported = torch.export.export(embedder, inputs, strict=False).module()
    torch.testing.assert_close(exported(*inputs).embeddings, expected)


# forward and generate of the reranker
def test_the_reranker_has_the_signature_of_its_vlm(reranker):
    names = list(inspect.signature(reranker.vlm.forward).parameters)
    assert list(inspect.signature(reranker.forward).parameters) == names
    assert names[:2] == ["input_ids", "attention_mask"] and "logits_to_keep" in names

    batch = chat_of(reranker)
    expected = reranker.vlm(**batch).logits
    assert torch.equal(reranker(**batch).logits, expected)
    text = (batch["input_ids"][:, :5], batch["attention_mask"][:, :5])
    assert torch.equal(reranker(*text).logits, reranker.vlm(*text).logits)

    # copies answer with their own weights
    for twin in (copy.deepcopy(reranker), pickle.loads(pickle.dumps(reranker))):
        with torch.no_grad():
            twin.get_output_embeddings().weight.zero_()
        assert list(inspect.signature(twin.forward).parameters) == names
        assert twin(**batch).logits.abs().max() == 0 < reranker(**batch).logits.abs().max()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 2, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3},
        {"use_cache": False},
        {"cache_implementation": "static"},
    ],
    ids=str,
)
def test_generate_writes_what_the_vlm_writes(reranker, options):
    batch = chat_of(reranker)
    written = []
    for model in (reranker, reranker.vlm):
        torch.manual_seed(0)
        written.append(model.generate(**batch, max_new_tokens=4, **options))
    assert torch.equal(*written) and written[0].shape[1] == batch["input_ids"].shape[1] + 4

    with pytest.raises(ValueError, match="not_an_input"):
        reranker.generate(**batch, not_an_input=1)


def test_generate_goes_on_from_embeddings(reranker):
    batch = reranker.processor.tokenizer("a red circle", return_tensors="pt")
    embeddings = reranker.get_input_embeddings()(batch["input_ids"])
    settings = {"max_new_tokens": 4, "do_sample": False, "attention_mask": batch["attention_mask"]}
    written = reranker.generate(inputs_embeds=embeddings, **settings)
    assert written.tolist() == reranker.vlm.generate(inputs_embeds=embeddings, **settings).tolist()
    whole = reranker.generate(batch["input_ids"], **settings)
    assert written[0].tolist() == whole[0, batch["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("kind", ["llava_next", "llava_onevision", "phi3_v", "qwen3_vl"])
def test_other_families_generate_too(tiny, kind):
    reranker = UniMERerankerForCausalLM.from_backbone(tiny(kind)[0])
    entry = reranker.processor.prepare([{"image": picture(3), "text": "a star"}])
    names = inspect.signature(reranker.forward).parameters
    batch = {key: value for key, value in reranker.processor.collate(entry).items() if key in names}
    written = [model.generate(**batch, max_new_tokens=3, do_sample=False) for model in (reranker, reranker.vlm)]
    assert torch.equal(*written) and written[0].shape[1] == batch["input_ids"].shape[1] + 3


AUTO = """
import json, sys, importlib.util
from transformers import pipeline
assert importlib.util.find_spec("unime") is None
pipe = pipeline("image-text-to-text", model=sys.argv[1], trust_remote_code=True)
chat = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}]}]
answer = pipe(text=chat, max_new_tokens=3, return_full_text=False)[0]["generated_text"]
print(json.dumps([type(pipe.model).__name__, answer]))
"""
NO_PACKAGE = "import sys; sys.meta_path = [f for f in sys.meta_path if '__editable__' not in str(f)]\n"


def test_pipelines_take_the_reranker_by_object_and_by_name(reranker, tmp_path):
    reranker.save_pretrained(tmp_path)
    assert isinstance(AutoModelForImageTextToText.from_pretrained(tmp_path), UniMERerankerForCausalLM)

    chat = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}]}]
    pipe = pipeline("image-text-to-text", model=reranker, processor=reranker.processor)
    answer = pipe(text=chat, max_new_tokens=3, return_full_text=False)[0]["generated_text"]
    modules = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    assert fresh_process(NO_PACKAGE + AUTO, tmp_path, **modules) == ["UniMERerankerForCausalLM", answer]


def test_the_embedder_is_a_feature_extractor(embedder, backbone):
    pipe = pipeline("feature-extraction", model=embedder, tokenizer=embedder.processor.tokenizer)
    features = pipe("a red circle", return_tensors=True)
    batch = embedder.processor.tokenizer("a red circle", return_tensors="pt")
    assert torch.equal(features, embedder(**batch).embeddings)


# vocabulary and head
@pytest.mark.parametrize("tied", [True, False])
def test_a_resized_vocabulary_is_saved(reranker, tmp_path, tied):
    size = reranker.get_input_embeddings().num_embeddings
    if not tied:
        for config in (reranker.config, reranker.config.vlm_config, reranker.config.get_text_config()):
            config.tie_word_embeddings = False
        head = torch.nn.Linear(96, size, bias=False)
        reranker.set_output_embeddings(head)
        assert reranker.get_output_embeddings() is head and reranker.vlm.lm_head is head

    reranker.resize_token_embeddings(size + 7, mean_resizing=False)
    reranker.save_pretrained(tmp_path)
    loaded = UniMERerankerForCausalLM.from_pretrained(tmp_path)
    for model in (reranker, loaded):
        inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        assert inputs.shape == outputs.shape == (size + 7, 96)
        assert (inputs.data_ptr() == outputs.data_ptr()) == tied
        assert model.config.get_text_config().vocab_size == size + 7
    batch = chat_of(reranker)
    torch.testing.assert_close(loaded(**batch).logits, reranker(**batch).logits)
    torch.testing.assert_close(loaded.score("a", ["b"]), reranker.score("a", ["b"]))


# configuration, attention, files
@pytest.mark.parametrize("name", ["embedder", "reranker"])
def test_a_configuration_survives_its_own_dict_and_saves_nothing_twice(name, request, tmp_path):
    model = request.getfixturevalue(name)
    content = model.config.to_dict()
    assert content["text_config"] == model.config.get_text_config().to_dict()
    again = type(model.config).from_dict(content)
    assert again.to_dict() == content
    again.save_pretrained(tmp_path)
    assert '"text_config"' in (tmp_path / "config.json").read_text()  # within vlm_config
    assert "text_config" not in again.to_diff_dict()


def test_sdpa_keeps_the_fast_tower(embedder):
    vision = embedder.config.vlm_config.vision_config
    fast = vision._attn_implementation
    expected = embedder.encode(ITEMS)
    embedder.set_attn_implementation("eager")
    assert vision._attn_implementation == "eager"
    torch.testing.assert_close(embedder.encode(ITEMS), expected)
    embedder.set_attn_implementation("sdpa")
    assert vision._attn_implementation == fast == "unime_packed_flash"
    assert torch.equal(embedder.encode(ITEMS), expected)


def test_a_model_without_a_processor_is_saved_and_loaded(embedder, tmp_path):
    batch = batch_of(embedder)
    embedder._processor = None
    embedder.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert not loaded.has_processor
    assert torch.equal(loaded(**batch).embeddings, embedder(**batch).embeddings)


# several devices
def partly_on_disk(prefix: str) -> dict:
    layers = {"layers.0": "cpu", "layers.1": "disk", "embed_tokens": "cpu", "norm": "cpu", "rotary_emb": "cpu"}
    return {f"{prefix}visual": "disk", **{f"{prefix}language_model.{name}": place for name, place in layers.items()}}


def test_weights_on_disk_embed_and_are_saved(backbone, embedder, tmp_path):
    expected = embedder.encode(ITEMS)
    embedder.save_pretrained(tmp_path / "saved")
    arguments = {"offload_folder": tmp_path / "disk"}
    models = [
        UniMEModel.from_pretrained(tmp_path / "saved", device_map=partly_on_disk("vlm."), **arguments),
        UniMEModel.from_backbone(backbone, device_map=partly_on_disk(""), **arguments),
    ]
    for number, model in enumerate(models):
        assert any(weight.is_meta for weight in model.parameters()) and model.device.type == "cpu"
        torch.testing.assert_close(model.encode(ITEMS), expected)
        with pytest.warns(UserWarning, match="offloaded modules"):
            model.save_pretrained(tmp_path / str(number))
        torch.testing.assert_close(UniMEModel.from_pretrained(tmp_path / str(number)).encode(ITEMS), expected)


@pytest.mark.parametrize("name", ["embedder", "reranker"])
def test_offloaded_weights_give_the_same_numbers(name, request):
    model = request.getfixturevalue(name)
    run = model.encode if name == "embedder" else lambda items: model.score("a", items)
    expected = run(ITEMS)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(weight.is_meta for weight in model.parameters()) and model.device.type == "cpu"
    torch.testing.assert_close(run(ITEMS), expected)


def test_pooling_happens_where_the_hidden_states_are(embedder):
    decoder = embedder.vlm.language_model
    for module in (decoder.layers[1], decoder.norm):
        add_hook_to_module(module.to("meta"), AlignDevicesHook(execution_device="meta"))
    output = embedder(**batch_of(embedder))
    assert output.last_hidden_state.device.type == output.embeddings.device.type == "meta"
    assert output.embeddings.shape == (2, 96)
