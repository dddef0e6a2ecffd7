"""Presets: the exact strings that are fed, blanks and line breaks included, and that a preset is all of it."""

import pytest
from conftest import picture

from unime import UniMEModel, UniMEProcessor
from unime.checkpoints.opening import open_checkpoint
from unime.jobs.embedding import Embedder
from unime.prompts_unime import published_preset
from unime.trainers.stage import load_model

PAD = "<|image_pad|>"
QUESTION = "What is prohibited in the shade?"
SAHA = (
    "<|im_start|>system\nGiven an image, summarize the provided image in one word. Given only text, describe the text "
    "in one word.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
PHI = "<|user|>\n{} <|end|>\n<|assistant|>\n"
ONEVISION = "<|im_start|>user {}<|im_end|><|im_start|>assistant\n"

# (backbone, preset, text, prompt): what becomes of the blanks of a text that stands alone
TEXTS = [
    (
        "llava_next",
        "unime-llava-1.6",
        f"{QUESTION}\n",
        f"[INST] {QUESTION}\n\nSummary above sentence in one word: [/INST]",
    ),
    ("llava_next", "unime-llava-1.6", QUESTION, f"[INST] {QUESTION}\nSummary above sentence in one word: [/INST]"),
    ("phi3_v", "unime-phi3.5-v", f"{QUESTION}\n", PHI.format(f"{QUESTION}\n\nSummary above sentence in one word:")),
    (
        "llava_onevision",
        "unime-llava-onevision",
        f"{QUESTION}\n",
        ONEVISION.format(f"\n{QUESTION}\n\nSummary above sentence in one word:\n"),
    ),
    ("llava_onevision", "unime-v2-llava-onevision", f" {QUESTION}\n", ONEVISION.format(f"\n{QUESTION}")),
    ("qwen2_vl", "unime-v2-qwen2-vl", f"{QUESTION}\n", f"{QUESTION}\n"),
    ("qwen2_vl", "vlm2vec-qwen2-vl", f"{QUESTION}\n", f"{QUESTION}\n"),
    ("qwen2_vl", "joint", f" {QUESTION}\n", f" {QUESTION}\n"),
    (
        "qwen2_vl",
        "saha-qwen2-vl",
        f"{QUESTION}\n",
        SAHA.format(f"{QUESTION}\n\nRepresent the given text in one word."),
    ),
    ("qwen2_vl", "saha-qwen2-vl", QUESTION, SAHA.format(f"{QUESTION}\nRepresent the given text in one word.")),
]


@pytest.mark.parametrize("kind, preset, text, prompt", TEXTS)
def test_blanks_of_texts_are_those_of_the_authors(tiny, kind, preset, text, prompt):
    processor = UniMEProcessor.from_backbone(tiny(kind)[0], preset=preset)
    assert processor.render(text)[0] == prompt


def test_saha_prompts_have_bare_images_and_a_request_on_queries_only(tiny):
    processor = UniMEProcessor.from_backbone(tiny("qwen2_vl")[0], preset="saha-qwen2-vl")
    image = picture(0)
    request = "Represent the given text/image in one word."
    mmeb = {"text": f"<|image_1|>\n{QUESTION}\n", "image": image}
    plain = {"text": QUESTION, "image": image}
    for item, query, document in (
        (mmeb, f"{PAD}\n{QUESTION}\n\n{request}", f"{PAD}\n{QUESTION}\n"),
        (plain, f"{PAD}\n{QUESTION}\n{request}", f"{PAD}\n{QUESTION}"),
        (image, f"{PAD}\n{request}", PAD),
    ):
        assert processor.render(item, role="query")[0] == SAHA.format(query)
        assert processor.render(item, role="document")[0] == SAHA.format(document)
    assert processor.render(f"{QUESTION}\n", role="document")[0] == SAHA.format(f"{QUESTION}\n")
    assert processor.document_role("RefCOCO-Matching") == "query" and processor.document_role("RefCOCO") == "document"

    # the same for any other VLM, with the backbone's own fence
    other = UniMEProcessor.from_backbone(tiny("qwen2_vl")[0], preset="hierarchical")
    fence = f"<|vision_start|>{PAD}<|vision_end|>"
    assert other.render(mmeb)[0] == SAHA.format(f"{fence}\n{QUESTION}\n\n{request}")
    assert other.document_role("RefCOCO-Matching") == "document"


def test_vlm2vec_prompts_are_raw(tiny):
    model = UniMEModel.from_backbone(tiny("qwen2_vl")[0], preset="vlm2vec-qwen2-vl")
    processor, image = model.processor, picture(0)
    question = "Represent the given image with the following question:"
    assert processor.render(image)[0] == f"{PAD} Represent the given image."
    assert processor.render({"image": image, "text": QUESTION}, question)[0] == f"{PAD} {question} {QUESTION}"
    mmeb = {"text": "<|image_1|>\nRepresent the given image.\n", "image": image}
    assert processor.render(mmeb)[0] == f"{PAD}\nRepresent the given image.\n"
    assert (model.config.positions, processor.resolution, processor.max_length) == (
        "flat",
        "tiny:56+tokens:1280",
        4096,
    )


def test_published_names_have_their_presets():
    assert published_preset("TIGER-Lab/VLM2Vec-Qwen2VL-7B") == "vlm2vec-qwen2-vl"
    assert published_preset("models/VLM2Vec-Qwen2VL-2B") == "vlm2vec-qwen2-vl"
    assert published_preset("Y-J-Ju/SaHa-Qwen2-VL-2B-Instruct") == "saha-qwen2-vl"
    assert published_preset("Qwen/Qwen2-VL-2B-Instruct") is None


# A preset is all of it


def reading_of(model):
    """Everything by which a model reads items."""
    processor = model.processor
    (short, _) = processor.collate(processor.prepare(["a", "a b c d e f"]))["attention_mask"]
    return {
        "preset": processor.preset,
        "prompt": processor.render({"text": QUESTION, "image": picture(0, (56, 56))})[0],
        "positions": model.config.positions,
        "resolution": processor.resolution,
        "fusion": processor.fusion,
        "max_length": processor.max_length,
        "anyres_padding": processor.anyres_padding,
        "padding_side": "left" if short[-1] else "right",
    }


CHANGES = [
    ("qwen2_vl", "summary", "unime-v2-qwen2-vl"),
    ("qwen2_vl", "saha-qwen2-vl", "joint"),
    ("llava_onevision", "joint", "unime-llava-onevision"),
    ("llava_onevision", "unime-v2-llava-onevision", "summary"),
]


@pytest.mark.parametrize("kind, before, after", CHANGES)
def test_a_preset_on_a_saved_model_changes_all_of_it(tiny, tmp_path, kind, before, after):
    path, _ = tiny(kind)
    UniMEModel.from_backbone(path, before).save_pretrained(tmp_path / "saved")
    fresh = UniMEModel.from_backbone(path, after)
    items = ["a", {"text": f"<|image_1|>\n{QUESTION}\n", "image": picture(0, (56, 45))}]
    expected = fresh.encode(items)

    embedder = Embedder(tmp_path / "saved", preset=after)
    for model in (
        UniMEModel.from_pretrained(tmp_path / "saved", preset=after),
        open_checkpoint(tmp_path / "saved", after),
        embedder.load(),
    ):
        assert reading_of(model) == reading_of(fresh)
        assert (model.encode(items) - expected).abs().max() <= 1e-6

    # and it is saved so
    model.save_pretrained(tmp_path / "again")
    assert reading_of(UniMEModel.from_pretrained(tmp_path / "again")) == reading_of(fresh)
    assert reading_of(UniMEModel.from_pretrained(tmp_path / "saved"))["preset"] == before
    alone = UniMEProcessor.from_pretrained(tmp_path / "saved", preset=after)
    assert (alone.resolution, alone.max_length) == (fresh.processor.resolution, fresh.processor.max_length)


def test_settings_beside_a_preset_win(tiny, tmp_path):
    UniMEModel.from_backbone(tiny("qwen2_vl")[0]).save_pretrained(tmp_path)
    settings = {"resolution": 112, "fusion": "sum", "max_length": 77, "positions": "native"}
    for model in (
        UniMEModel.from_pretrained(tmp_path, preset="unime-v2-qwen2-vl", **settings),
        open_checkpoint(tmp_path, "unime-v2-qwen2-vl", **settings),
    ):
        reading = reading_of(model)
        assert {name: reading[name] for name in settings} == settings
        assert reading["preset"] == "unime-v2-qwen2-vl"

    # without a preset, only what is named changes
    model = UniMEModel.from_pretrained(tmp_path, max_length=77)
    assert (model.processor.max_length, model.processor.preset) == (77, "summary")


def test_training_on_a_saved_model_reads_by_the_preset_of_the_recipe(tiny, tmp_path):
    UniMEModel.from_backbone(tiny("qwen2_vl")[0]).save_pretrained(tmp_path)
    model = load_model(tmp_path, "unime-v2-qwen2-vl")
    reading = reading_of(model)
    assert (reading["positions"], reading["resolution"], reading["max_length"]) == ("flat", 1344, 4096)
    with pytest.raises(ValueError, match="'unime-phi3.5-v' is for phi3_v"):
        load_model(tmp_path, "unime-phi3.5-v")
