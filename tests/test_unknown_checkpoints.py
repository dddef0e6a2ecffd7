"""What is asked and what is read: presets of one's own, repositories of sentence-transformers, and unknown ones."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import fresh_process, picture
from hypothesis import given
from hypothesis import strategies as st
from test_adapters import stock_adapter
from tiny_checkpoints import QWEN_TEMPLATE

from unime import UniMEModel, UniMERerankerForCausalLM
from unime.checkpoints.cards import read_card
from unime.checkpoints.conversion import export
from unime.checkpoints.opening import open_checkpoint, open_processor
from unime.jobs.embedding import Embedder
from unime.preset_files_unime import preset_content, preset_from, read_preset
from unime.prompts_unime import PRESETS

ITEMS = ["a red circle", picture(40, (64, 48)), {"text": "what is it?", "image": picture(41)}]
MINE = """
extends: summary
prompts: {text: "Sum up: {text}", image: "{image} Sum up.", both: "{image}{text} Sum up."}
instruction: {place: system, default: Represent the input., full_stop: true}
fusion: joint
pooling: mean
positions: flat
max_length: 900
"""


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of a tiny Qwen2-VL under another name."""

    def make(name):
        shutil.copytree(tiny("qwen2_vl")[0], tmp_path / name)
        return tmp_path / name

    return make


# presets of one's own
def test_a_file_is_a_preset_that_travels_with_the_model(tiny, tmp_path):
    (tmp_path / "mine.yaml").write_text(MINE)
    path = tiny("qwen2_vl")[0]
    model = UniMEModel.from_backbone(path, preset=tmp_path / "mine.yaml")
    assert (model.config.pooling, model.config.positions, model.processor.max_length) == ("mean", "flat", 900)
    prompt, _ = model.processor.render("a cat", instruction="find it")
    assert prompt == model.processor._template(
        [
            {"role": "system", "content": [{"type": "text", "text": "find it."}]},
            {"role": "user", "content": [{"type": "text", "text": "Sum up: a cat"}]},
        ]
    )
    embeddings = model.encode(ITEMS)
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "mine.yaml").unlink()

    code = """
import json, sys
from PIL import Image
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
assert "unime" not in sys.modules
print(json.dumps([model.processor.preset, model.encode("a red circle").tolist()]))
"""
    name, alone = fresh_process(code, tmp_path / "saved")
    assert name == "mine" and torch.allclose(torch.tensor(alone), embeddings[0], atol=1e-6)
    assert "Sum up: {text}" in read_card(tmp_path / "saved").render()

    # another preset takes the place of all of it, and what is saved then has none of it
    again = UniMEModel.from_pretrained(tmp_path / "saved", preset="joint")
    assert again.config.pooling == "last" and again.processor.preset_rules is None


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_can_be_written_down_and_read(name):
    content = json.loads(json.dumps(preset_content(PRESETS[name])))
    assert preset_from(content, PRESETS, name, "x.json") == replace(PRESETS[name], name=name)
    assert preset_from({"extends": name}, PRESETS, name, "x.json") == replace(PRESETS[name], name=name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", r"holds no settings of a preset, but \['a'\]"),
        ("a: [", "cannot be read: while parsing"),
        ("extends: gmee", "extends: there is no preset 'gmee'"),
        ("poling: mean", "there is no setting 'poling' of a preset; did you mean 'pooling'"),
        ("pooling: mean", "query is missing"),
        ("extends: summary\npooling: max", "pooling must be one of last, mean, image, not 'max'"),
        ("extends: summary\nmax_length: long", "max_length must be a whole number, not 'long'"),
        ("extends: summary\nmax_length: 0", "max_length must be at least 1"),
        ("extends: summary\nchat: true", "there is no setting 'chat'"),
        ("extends: summary\nraw_joint: 1", "raw_joint must be true or false, not 1"),
        ("extends: summary\nquery: {text: a}", "query.image is missing"),
        ("extends: summary\nprompts: {text: a, image: '{image}', both: null}", "query.text must hold {text}"),
        ("extends: summary\ninstruction: {plase: text}", "no instruction.plase; did you mean 'place'"),
        ("extends: summary\ninstruction: {place: end}", "instruction.place must be one of"),
        ("extends: summary\nimage_tokens: [4]", "image_tokens must have 2 entries, not 1"),
        ("extends: summary\nresolution: huge", "resolution: "),
        ("extends: summary\nframe: x", "frame must hold {user}"),
        ("extends: summary\nbenchmarks: {mmeb: other}", "benchmarks: mmeb: other is not"),
    ],
)
def test_errors_name_key_and_file(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"mine.yaml.*{message}"):
        read_preset(tmp_path / "mine.yaml", PRESETS)
    with pytest.raises(ValueError, match="cannot be read: .*No such file"):
        read_preset(tmp_path / "other.yaml", PRESETS)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("ab{}", max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab", max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from([*preset_content(PRESETS["joint"]), "judging", "appended", "extends"]), values))
def test_whatever_a_file_holds_is_a_preset_or_an_error_of_ours(content):
    try:
        preset = preset_from({"extends": "summary", **content}, PRESETS, "mine", "mine.yaml")
    except (ValueError, TypeError) as error:
        assert isinstance(error, ValueError) and str(error).startswith("mine.yaml")
    else:
        assert preset.query.text


def test_manifests_hold_what_a_file_says(tmp_path, backbone):
    (tmp_path / "mine.yaml").write_text(MINE)
    settings = Embedder(backbone, preset=str(tmp_path / "mine.yaml")).settings()
    assert settings["preset"]["pooling"] == "mean" and json.dumps(settings)
    assert Embedder(backbone, preset="joint").settings()["preset"] == "joint"
    with pytest.raises(ValueError, match="unknown preset 'jiont'"):
        Embedder(backbone, preset="jiont")


# what is not known
@pytest.mark.parametrize("model_class", [UniMEModel, UniMERerankerForCausalLM])
@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("My-Embedding-2B", {}, "its name says so"),
        ("plain", {"config.json": {"architectures": ["MyEmbedder"]}}, "config.json names the class MyEmbedder"),
        ("plain", {"1_Pooling/config.json": {}}, "it has 1_Pooling/config.json"),
        (
            "plain",
            {"tokenizer_config.json": {"added_tokens_decoder": {"399": {"content": "<embedding>", "special": True}}}},
            "its tokenizer has the token <embedding>",
        ),
        ("plain", {"README.md": "---\ntags: [x, Reranker]\n---\n"}, "its card has the tag 'reranker'"),
        ("plain", {"README.md": "---\npipeline_tag: sentence-similarity\n---\n"}, "the tag 'sentence-similarity'"),
        (
            "plain",
            {"config.json": {"architectures": ["Qwen2VLRetForConditionalGeneration"]}},
            "the class Qwen2VLRetForConditionalGeneration, which transformers does not have",
        ),
        ("plain", {"config.json": {"_name_or_path": "x/gme-Qwen2-VL-2B-Instruct"}}, "made from x/gme-Qwen2-VL-2B"),
        ("plain", {"README.md": "---\nbase_model: [code-kunkun/LamRA-Ret]\n---\n"}, "made from code-kunkun/LamRA-Ret"),
        ("plain", {"scripts/gme_inference.py": "import torch"}, "it has scripts/gme_inference.py"),
    ],
)
def test_embedders_and_rerankers_that_are_not_known_ask(copy, name, change, reason, model_class):
    folder = copy(name)
    for file, content in change.items():
        (folder / file).parent.mkdir(exist_ok=True)
        if isinstance(content, dict):
            old = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
            content = json.dumps(old | content)
        (folder / file).write_text(content)
    with pytest.raises(ValueError, match=f"was trained with prompts of its own .*{reason}.*pass `preset=`.*joint"):
        model_class.from_backbone(folder)
    assert model_class.from_backbone(folder, preset="joint").processor.preset == "joint"


def test_a_renamed_qwen3_vl_embedding_is_known_by_the_limits_of_its_images(tiny, tmp_path):
    folder = shutil.copytree(tiny("qwen3_vl")[0], tmp_path / "plain")
    assert UniMEModel.from_backbone(folder, weights=False).processor.preset == "summary"

    file = folder / "preprocessor_config.json"
    size = {"shortest_edge": 4096, "longest_edge": 1_310_720}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"size": size}))
    with pytest.raises(ValueError, match="at most 1,310,720 pixels.*qwen3-vl-embedding"):
        UniMEModel.from_backbone(folder)


def test_a_plain_vlm_and_a_known_name_say_what_they_got(copy, caplog):
    plain = copy("Qwen2-VL-2B-Instruct")
    (plain / "checkpoint-5").mkdir()
    scripts = ("checkpoint-5/presets_gme_unime.py", "presets_gme_unime.py", "checkpoint-5/embed.py", "augment.py")
    for script in scripts:
        (plain / script).write_text("our own code, and that of a training beside the weights")
    (plain / "README.md").write_text("---\ntags: [multimodal]\npipeline_tag: image-text-to-text\n---\n")
    cases = [(plain, 'Qwen2-VL-2B-Instruct: preset "summary" for a plain VLM')]
    cases.append((copy("VLM2Vec-Qwen2VL-2B"), 'VLM2Vec-Qwen2VL-2B: preset "vlm2vec-qwen2-vl" by name'))
    for folder, line in cases:
        caplog.clear()
        UniMEModel.from_backbone(folder, weights=False)
        assert caplog.messages.count(line) == 1
    caplog.clear()
    UniMEModel.from_backbone(plain, "joint", weights=False)
    assert not any("preset" in message for message in caplog.messages), "who names one knows it"


def test_an_adapter_that_is_not_known_asks(tiny, tmp_path):
    path, _ = tiny("qwen2_vl")
    stock_adapter(path, tmp_path / "adapter", "qwen2_vl", dora=False, old=False)
    for load in (UniMEModel.from_backbone, open_checkpoint, open_processor):
        with pytest.raises(ValueError, match="it is an adapter over a VLM.*pass `preset=`"):
            load(tmp_path / "adapter")
    assert open_checkpoint(tmp_path / "adapter", "joint").processor.preset == "joint"


# what sentence-transformers' files say
def sentence_files(folder, prompts=None, pooling="lasttoken", **module):
    kinds = ["base.modules.transformer.Transformer", "sentence_transformer.modules.pooling.Pooling"]
    kinds.append("sentence_transformer.modules.normalize.Normalize")
    modules = []
    for number, kind in enumerate(kinds):
        path = f"{number}_{kind.split('.')[-1]}" if number else ""
        modules.append({"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.{kind}"})
        (folder / path).mkdir(exist_ok=True)
    method = {"method": "forward", "method_output_name": "last_hidden_state"}
    modalities = dict.fromkeys(("text", "image", "image+text"), method)
    modalities["message"] = {**method, "format": "structured"}
    settings = {"transformer_task": "feature-extraction", "modality_config": modalities}
    settings |= {"module_output_name": "token_embeddings", **module}
    pooling = {"embedding_dimension": 48, "pooling_mode": pooling, "include_prompt": True}
    for name, content in (
        ("modules.json", modules),
        ("1_Pooling/config.json", pooling),
        ("sentence_bert_config.json", settings),
        ("config_sentence_transformers.json", {"prompts": prompts or {}, "similarity_fn_name": "cosine"}),
    ):
        (folder / name).write_text(json.dumps(content))
    return folder


def rendered(model, system, text):
    """What the chat template itself makes of a text."""
    messages = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    if system:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    return model.processor.tokenizer.apply_chat_template(
        messages, chat_template=QWEN_TEMPLATE, tokenize=False, add_generation_prompt=False
    )


def test_a_repository_of_sentence_transformers_is_read_into_a_preset(copy, caplog, tmp_path):
    folder = sentence_files(copy("some-embedding"), {"query": "Find it.", "document": "Find it."}, max_seq_length=77)
    model = UniMEModel.from_backbone(folder)
    assert 'some-embedding: preset "sentence-transformers" from its sentence-transformers files' in caplog.messages
    assert model.processor.render("a cat")[0] == rendered(model, "Find it.", "a cat")
    assert model.processor.render("a cat", instruction="Or that.")[0] == rendered(model, "Or that.", "a cat")
    assert model.processor.max_length == 77
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(UniMEModel.from_pretrained(tmp_path / "saved").encode(ITEMS), model.encode(ITEMS))

    folder = sentence_files(copy("another-embedding"), {"query": "Find it."}, pooling="mean")
    model = UniMEModel.from_backbone(folder)
    assert model.config.pooling == "mean"
    assert model.processor.render("a cat")[0] == rendered(model, "Find it.", "a cat")
    assert model.processor.render("a cat", role="document")[0] == rendered(model, None, "a cat")
    assert model.processor.render(ITEMS[2])[0].count("<|vision_start|><|image_pad|><|vision_end|>") == 1


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "cls"}, "pools by 'cls'"),
        ("1_Pooling/config.json", {"include_prompt": False}, "pools by"),
        ("sentence_bert_config.json", {"modality_config": {"text": {}}}, "feeds no chat messages"),
        ("sentence_bert_config.json", {"processing_kwargs": {"image": {}}}, "sets processing_kwargs of image"),
        ("modules.json", [{"type": "custom_st.MultiModalTransformer", "path": ""}], "names custom_st.MultiModal"),
    ],
)
def test_what_no_preset_can_say_is_asked(copy, file, change, reason):
    folder = sentence_files(copy("some-embedding"))
    if isinstance(change, dict):
        change = json.loads((folder / file).read_text()) | change
    (folder / file).write_text(json.dumps(change))
    with pytest.raises(ValueError, match=f"sentence-transformers files do not say how: .*{reason}.*pass `preset=`"):
        UniMEModel.from_backbone(folder)


@pytest.mark.filterwarnings("ignore:sentence-transformers")
def test_an_export_is_read_as_it_was_meant(tiny, tmp_path):
    (tmp_path / "mine.yaml").write_text(MINE)
    for number, preset in enumerate(("unime-v2-qwen2-vl", str(tmp_path / "mine.yaml"))):
        model = UniMEModel.from_backbone(tiny("qwen2_vl")[0], preset, resolution=56)
        model.save_pretrained(tmp_path / f"saved{number}")
        export(tmp_path / f"saved{number}", tmp_path / f"stock{number}", head=tiny("qwen2_vl")[0])
        again = UniMEModel.from_backbone(tmp_path / f"stock{number}")
        assert torch.equal(again.encode(ITEMS), model.encode(ITEMS)) and again.config.positions == "flat"
