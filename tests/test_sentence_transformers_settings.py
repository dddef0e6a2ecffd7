"""What sentence-transformers lets users set, ask for and save is set, given and saved."""

import json

import numpy as np
import pytest
import torch
from conftest import picture
from sentence_transformers import CrossEncoder, SentenceTransformer

from unime import UniMEModel, UniMERerankerForCausalLM
from unime.items_unime import judge_messages

TEXTS = ["a red circle", "a blue star left of it", "Query"]
MIXED = [TEXTS[0], {"image": picture(1)}, {"image": picture(2), "text": "a star"}, TEXTS[1]]


@pytest.fixture(scope="module")
def saved(backbone, tmp_path_factory):
    home = tmp_path_factory.mktemp("saved")
    UniMEModel.from_backbone(backbone).save_pretrained(home / "embedder")
    UniMERerankerForCausalLM.from_backbone(backbone).save_pretrained(home / "reranker")
    return home


def embedder(saved, **settings):
    return SentenceTransformer(str(saved / "embedder"), trust_remote_code=True, device="cpu", **settings)


def judge(saved, **settings):
    return CrossEncoder(str(saved / "reranker"), trust_remote_code=True, device="cpu", **settings)


def test_what_was_set_is_saved(saved, tmp_path):
    model = embedder(
        saved,
        prompts={"query": "Find:", "other": "Look:"},
        default_prompt_name="other",
        similarity_fn_name="dot",
        truncate_dim=16,
    )
    model.max_seq_length = 48
    model.save_pretrained(str(tmp_path / "embedder"))
    again = SentenceTransformer(str(tmp_path / "embedder"), trust_remote_code=True, device="cpu")
    assert again.prompts == {"query": "Find:", "document": "", "other": "Look:"}
    assert again.default_prompt_name == "other" and again.similarity_fn_name == "dot"
    assert again.truncate_dim == 16 and again.max_seq_length == 48
    for method in ("encode", "encode_query", "encode_document"):
        assert (getattr(again, method)(MIXED) == getattr(model, method)(MIXED)).all()

    model = judge(saved, activation_fn=torch.nn.Tanh(), prompts={"ask": "Is it so?"}, default_prompt_name="ask")
    model.save_pretrained(str(tmp_path / "judge"))
    again = CrossEncoder(str(tmp_path / "judge"), trust_remote_code=True, device="cpu")
    assert isinstance(again.activation_fn, torch.nn.Tanh) and again.prompts["ask"] == "Is it so?"
    assert (again.predict([("a", "b")]) == model.predict([("a", "b")])).all()

    # saved by ourselves, a model has our settings again
    again[0].model.save_pretrained(tmp_path / "judge")
    plain = CrossEncoder(str(tmp_path / "judge"), trust_remote_code=True, device="cpu")
    assert isinstance(plain.activation_fn, torch.nn.Sigmoid) and not plain.prompts


def test_others_read_which_inputs_a_model_takes(saved):
    for name in ("embedder", "reranker"):
        config = json.loads((saved / name / "sentence_bert_config.json").read_text(encoding="utf-8"))
        assert set(config["modality_config"]) == {"text", "image", "video", "image+text", "text+video", "message"}
    model = embedder(saved)
    assert all(model.supports(kind) for kind in ("text", "video", ("image", "text"), ("text", "video")))
    assert not model.supports("audio")


def test_settings_of_processor_and_configuration(saved):
    big = picture(3, (160, 160))
    own = UniMEModel.from_pretrained(saved / "embedder", resolution="pixels:6272", max_length=64)
    model = embedder(saved, processor_kwargs={"max_length": 64, "resolution": "pixels:6272"})
    assert model.max_seq_length == 64
    assert np.abs(model.encode([big]) - own.encode([big]).numpy()).max() < 1e-5

    few = embedder(saved, processor_kwargs={"min_pixels": 784, "max_pixels": 3136})
    (prepared,) = few.processor.prepare([big])
    (whole,) = model.processor.prepare([big], resolution="native", max_length=200)
    pixels = few.processor._native.grain**2  # of a token
    assert sum(prepared.image_tokens) * pixels <= 3136 < sum(whole.image_tokens) * pixels
    assert few.encode([big]).shape == (1, 96)

    long = embedder(saved, config_kwargs={"normalize": False})
    assert np.linalg.norm(long.encode(TEXTS), axis=1).max() > 1.1
    assert judge(saved, max_length=77).max_seq_length == 77


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"backend": "onnx"}, "backend='onnx' is not available"),
        ({"processor_kwargs": {"do_resize": False}}, "processor_kwargs has do_resize, which mean nothing here"),
        ({"config_kwargs": {"num_labels": 3}}, "num_labels=3 is not available"),
    ],
)
def test_what_means_nothing_is_refused_by_name(saved, settings, message):
    with pytest.raises(ValueError, match=message):
        judge(saved, **settings)


def test_pixels_of_tiles_are_refused(tiny, tmp_path):
    UniMEModel.from_backbone(tiny("llava_next")[0]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="mean nothing to a LlavaNextImageProcessor"):
        SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu", processor_kwargs={"max_pixels": 3136})


@pytest.mark.filterwarnings("ignore:.*were longer than")
def test_settings_of_one_call(saved):
    model = embedder(saved)
    own = UniMEModel.from_pretrained(saved / "embedder")
    long = " ".join(["a red circle left of a blue star"] * 10)
    short = {"text": {"max_length": 40, "truncation": True}, "image": {"max_pixels": 3136}}
    items = [long, picture(3, (160, 160))]
    expected = own.encode(items, max_length=40, resolution="pixels:3136").numpy()
    assert np.abs(model.encode(items, processing_kwargs=short) - expected).max() < 1e-5
    assert model.preprocess([long], max_length=40)["input_ids"].shape[1] <= 40

    # a judge's question is never cut
    with pytest.raises(ValueError, match="above the limit of 64"):
        judge(saved).predict([("a", long)], processing_kwargs={"text": {"max_length": 64}})
    for unknown in ({"chat_template": {"tools": []}}, {"text": {"truncation": False}}):
        with pytest.raises(ValueError, match="which are not available"):
            model.encode(TEXTS, processing_kwargs=unknown)


@pytest.mark.filterwarnings("ignore:.*were longer than")
def test_lengths_and_tokenizers_may_be_set(saved):
    model = embedder(saved)
    model.max_seq_length = 24
    assert model.preprocess([" ".join(TEXTS * 20)])["input_ids"].shape[1] <= 24
    model.max_seq_length = 5000
    assert model.processor.prepare([" ".join(TEXTS * 300)])[0].length > 2000
    with pytest.raises(ValueError, match="max_seq_length must be a number of tokens"):
        model.max_seq_length = 0

    before = model.encode(TEXTS)
    tokenizer = embedder(saved).tokenizer
    tokenizer.add_tokens(["circle"])
    model.tokenizer = tokenizer
    assert model.tokenizer is tokenizer and model.processor.tokenizer is tokenizer
    assert tokenizer.convert_tokens_to_ids("circle") in model.preprocess(TEXTS[:1])["input_ids"]
    assert (model.encode(TEXTS[1:]) == before[1:]).all()


def test_embeddings_of_tokens(saved):
    model = embedder(saved)
    own = UniMEModel.from_pretrained(saved / "embedder")
    tokens = model.encode(MIXED, output_value="token_embeddings")
    everything = model.encode(MIXED, output_value=None)
    with torch.no_grad():
        for item, embeddings, values in zip(MIXED, tokens, everything):
            # those of the image, and after them those of the text, where an item is a sum
            _, parts = own.processor.prepare_parts([item])
            hidden = torch.cat([own(**own.processor.collate([part])).last_hidden_state[0] for part in parts])  # [L, D]
            attended = values["token_embeddings"][values["attention_mask"].bool()]
            assert torch.allclose(attended, hidden, atol=1e-4)
            assert torch.allclose(embeddings[-len(hidden) :], hidden, atol=1e-4)
            assert torch.allclose(values["sentence_embedding"], own.encode(item), atol=1e-5)


def test_several_processes_give_the_same(saved):
    model = embedder(saved)
    pool = model.start_multi_process_pool(["cpu"])
    embeddings = model.encode(MIXED, pool=pool, chunk_size=3)
    model.stop_multi_process_pool(pool)
    assert np.abs(embeddings - model.encode(MIXED)).max() < 1e-5


def test_arrays_are_images_and_videos(saved):
    model = embedder(saved)
    pixels = np.array(picture(5))
    frames = np.stack([np.asarray(picture(seed)) for seed in range(3)])
    same = [pixels, torch.from_numpy(pixels).permute(2, 0, 1), {"image": pixels}]
    assert np.abs(model.encode(same) - model.encode(picture(5))).max() < 1e-5
    same = [frames, {"array": frames, "video_metadata": {}}, {"video": {"array": frames, "video_metadata": {}}}]
    assert np.abs(model.encode(same) - model.encode({"video": list(map(picture, range(3)))})).max() < 1e-5
    with pytest.raises(ValueError, match="its values must be uint8"):
        model.encode([pixels / 100])


def test_chats_and_prompts_of_a_judge(saved):
    model = judge(saved, activation_fn=torch.nn.Identity())
    own = model[0].model
    query, candidate = {"text": "Find it.", "image": picture(1)}, "a star"
    parts = [{"type": "image", "image": picture(1)}, {"type": "text", "text": "Find it."}]
    chat = [{"role": "query", "content": parts}, {"role": "document", "content": candidate}]
    expected = own.score(query, [candidate], output="logit").item()
    assert model.predict([chat, (query, candidate)]) == pytest.approx([expected] * 2, abs=1e-5)

    # a prompt is the instruction before the text of the query
    instruction = "Find a picture of what is asked:"
    asked = {**query, "text": f"{instruction} Find it."}
    expected = own.score(asked, [candidate], output="logit").item()
    assert model.predict([(query, candidate)], prompt=instruction) == pytest.approx([expected], abs=1e-5)
    system = [{"role": "system", "content": instruction}, *chat]
    assert model.predict([system, judge_messages(asked, [candidate])]) == pytest.approx([expected] * 2, abs=1e-5)
    assert abs(expected - own.score(query, [candidate], output="logit").item()) > 1e-4
    expected = own.score({"text": instruction, "image": picture(1)}, [candidate], output="logit").item()
    assert model.predict([(picture(1), candidate)], prompt=instruction) == pytest.approx([expected], abs=1e-5)

    two = [{"role": "query", "content": parts * 2}, {"role": "document", "content": candidate}]
    with pytest.raises(ValueError, match="one image at most"):
        model.predict([two])
