"""Embedders of others: their authors' numbers where these lie here, else references written out from their code."""

import copy
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, fresh_process, picture
from PIL import Image
from safetensors.torch import load_file, save_file
from test_checkpoints import llava_reference, phi_parts, phi_reference
from tiny_checkpoints import tokenizer_for, write, write_json
from tokenizers import Regex, normalizers
from transformers import Qwen2VLImageProcessorPil

from unime import UniMEModel
from unime.checkpoints.drifts import Patient, drifts_of
from unime.native_unime import restore_normalizer
from unime.pooling_unime import pool
from unime.prompts_unime import CHECKPOINTS, PRESETS, instruct, published_checkpoint, with_full_stop

SHARED = ROOT.parent / "shared"
BICUBIC = Image.Resampling.BICUBIC
TEXT = "a red circle left of a blue star"
ASK = "Find the page"
PAD = "<|image_pad|>"
IMG = f"<|vision_start|>{PAD}<|vision_end|>"
CHAT = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
PLAIN = "You are a helpful assistant."
QUESTION = "Represent the given image with the following question:"


# What the authors' own code computed


def golden_items(name: str, items: list[dict]):
    """(item, instruction, role, embedding) of each key that `encode` can be asked for."""
    street = Image.open(SHARED / "data" / "street.jpg").convert("RGB")
    sizes = {"small": (200, 150), "wide": (330, 120)}
    for entry in items:
        key = entry["key"]
        if key == "image_large":  # a second on every run, and the limits are tested below
            continue
        item = {"text": entry["text"]} if entry.get("text") is not None else {}
        image = entry.get("image") or entry.get("image_name")
        if image:
            item["image"] = street.resize(sizes[image], BICUBIC)

        # strings that place their image are an item's text
        if key.endswith("_mmeb"):
            item["text"] = entry["prompt"].replace(PAD, "<|image_1|>")
        if key.startswith("image") and key.endswith("_cirr"):
            item["text"] = "<image>\n Describe this image in one word:"
        instruction = None if name.startswith("WeMM") else entry.get("instruction")  # WeMM's is in the text already
        yield item, instruction, entry.get("role", "query"), entry["embedding"]


@pytest.mark.parametrize(
    "name",
    [
        "VLM2Vec-Qwen2VL-2B",
        "Qwen3-VL-Embedding-2B",
        "WeMM-Embedding-2B",
        "e5-v",
        "gme-Qwen2-VL-2B-Instruct",
        "LamRA-Ret",
    ],
)
def test_checkpoints_give_the_numbers_of_their_authors(name):
    folder = SHARED / "checkpoints" / name
    if not folder.is_dir():
        pytest.skip("the authors' numbers are not here")
    golden = json.loads((folder / "golden.json").read_text())
    model = UniMEModel.from_backbone(folder)
    for item, instruction, role, embedding in golden_items(name, golden["items"]):
        ours = model.encode(item, instruction, role)
        assert (ours - torch.tensor(embedding)).abs().max() <= 2e-6, (item, instruction)


# References written out by hand


class Case(NamedTuple):
    """An item, the prompt that its authors feed, and the size at which they hand its image to the last resize."""

    item: str | tuple
    prompt: str
    instruction: str | None = None
    role: str = "query"
    size: tuple | None = None


IMAGE = picture(3, (64, 48))
BOTH = {"text": TEXT, "image": IMAGE}

QWEN_CASES = {
    # (backbone, flat positions, pooling, fewest and most tokens of the last resize)
    "gme": (
        ("qwen2_vl", True, "last", (256, 1280)),
        [
            Case(TEXT, CHAT.format(PLAIN, TEXT) + "<|endoftext|>"),
            Case(TEXT, CHAT.format(ASK, TEXT) + "<|endoftext|>", ASK),
            Case(TEXT, CHAT.format(PLAIN, TEXT) + "<|endoftext|>", ASK, "document"),
            Case(BOTH, CHAT.format(ASK, IMG + TEXT) + "<|endoftext|>", ASK, size=(56, 56)),
        ],
    ),
    "rzenembed": (
        ("qwen2_vl", True, "last", (256, 1280)),
        [
            Case(TEXT, CHAT.format(PLAIN, ASK + TEXT) + "<|endoftext|>", ASK),
            Case(BOTH, CHAT.format(PLAIN, IMG + ASK + TEXT) + "<|endoftext|>", ASK, size=(56, 56)),
            Case(IMAGE, CHAT.format(PLAIN, IMG) + "<|endoftext|>", size=(56, 56)),
        ],
    ),
    "ops-mm": (
        ("qwen2_vl", False, "last", (256, 1280)),
        [
            Case(TEXT, CHAT.format(ASK, TEXT) + "<|endoftext|>", ASK, "document"),
            Case(IMAGE, CHAT.format(PLAIN, IMG) + "<|endoftext|>"),
        ],
    ),
    "unite": (
        ("qwen2_vl", True, "last", (256, 1280)),
        [
            Case(TEXT, CHAT.format(PLAIN, f"{TEXT}\nSummary above sentence in one word:") + "<|endoftext|>"),
            Case(
                BOTH,
                CHAT.format(PLAIN, f"{IMG}{TEXT}\nSummary above sentence and image in one word:") + "<|endoftext|>",
                size=(56, 56),
            ),
        ],
    ),
    "vlm2vec-qwen2-vl": (
        ("qwen2_vl", True, "last", (4, 1280)),
        [
            Case(BOTH, f"{PAD} {QUESTION} {TEXT}"),
            Case(BOTH, f"{PAD} {ASK} {TEXT}", ASK),
            Case(picture(4, (60, 20)), f"{PAD} Represent the given image.", size=(56, 56)),
            Case(TEXT, f"{ASK} {TEXT}", ASK),
        ],
    ),
    "b3": (
        ("qwen2_vl", True, "last", (4, 1280)),
        [
            Case(TEXT, TEXT),
            Case(IMAGE, f"{PAD}\nRepresent the given image.\n"),
            Case(picture(4, (60, 20)), f"{PAD}\nRepresent the given image.\n", size=(56, 56)),
            Case(BOTH, f"{PAD}\n{QUESTION} {TEXT}\n"),
        ],
    ),
    "lamra-ret": (
        ("qwen2_vl", True, "last", (4, 16384)),
        [
            Case(TEXT, CHAT.format(PLAIN, f"{ASK} {TEXT}\nSummarize above sentence in one word: "), ASK),
            Case(
                BOTH,
                CHAT.format(PLAIN, f"{IMG}{TEXT}\nSummarize above image and sentence in one word: "),
                size=(56, 56),
            ),
        ],
    ),
    "lamra-ret-qwen2.5-vl": (
        ("qwen2_5_vl", False, "last", (4, 16384)),
        [Case(IMAGE, CHAT.format(PLAIN, f"{IMG}\nSummarize above image in one word: "), size=(56, 56))],
    ),
    "qwen3-vl-embedding": (
        ("qwen3_vl", False, "last", (4, 1800)),
        [
            Case(TEXT, CHAT.format("Represent the user's input.", TEXT)),
            Case(BOTH, CHAT.format("Find the page.", IMG + TEXT), f" {ASK}\n", "document"),
        ],
    ),
    "wemm-embedding": (
        ("qwen3_5", False, "last", (4, 16384)),
        [
            Case(f"{TEXT}\n", f"<|im_start|>user\n{TEXT}<|im_end|>\n"),
            Case(TEXT, f"<|im_start|>user\n{ASK}{TEXT}<|im_end|>\n", ASK),
            Case(IMAGE, f"<|im_start|>user\n{IMG}<|im_end|>\n", size=(56, 56)),
        ],
    ),
    "moca": (
        ("qwen2_5_vl", False, "mean", (4, 16384)),
        [
            Case(TEXT, TEXT),
            Case(TEXT, f"{ASK} {TEXT}\n", ASK),
            Case(IMAGE, f"{IMG}Represent the given image.\n"),
            Case(BOTH, f"{IMG}{QUESTION} {TEXT}\n"),
        ],
    ),
    "nomic-embed-multimodal": (
        ("qwen2_5_vl", False, "last", (4, 768)),
        [
            Case(TEXT, f"Query: {TEXT}<|endoftext|>", ASK, "document"),
            Case(IMAGE, f"<|im_start|>user\n{IMG}Describe the image.<|im_end|><|endoftext|>"),
        ],
    ),
    "jina-embeddings-v4": (
        ("qwen2_5_vl", False, "image", (4, 16384)),
        [
            Case(TEXT, f"Query: {TEXT}"),
            Case(TEXT, f"Passage: {TEXT}", role="document"),
            Case(IMAGE, f"<|im_start|>user\n{IMG}Describe the image.<|im_end|>\n"),
        ],
    ),
}


def qwen_reference(stock, tokenizer, case: Case, settings) -> torch.Tensor:
    """An embedding of Qwen-VL with prompt, pixels, positions, mask and pooling written out."""
    _, is_flat, pooling, (fewest, most) = settings
    ids = tokenizer(case.prompt)["input_ids"]
    inputs = {}
    pads = [tokenizer.convert_tokens_to_ids(PAD)]
    if PAD in case.prompt:
        image = case.item["image"] if isinstance(case.item, dict) else case.item
        if case.size:
            image = image.resize(case.size, BICUBIC)
        read = Qwen2VLImageProcessorPil(size={"shortest_edge": fewest * 784, "longest_edge": most * 784})
        inputs = dict(read(images=[image], return_tensors="pt"))
        place = ids.index(pads[0])
        ids = ids[:place] + pads * int(inputs["image_grid_thw"].prod() // 4) + ids[place + 1 :]

    ids = torch.tensor([ids])
    inputs["mm_token_type_ids"] = (ids == pads[0]).int()
    positions = torch.arange(ids.shape[1]).expand(3, 1, -1) if is_flat else None
    mask = torch.ones_like(ids)
    if pooling == "mean":  # MoCa's tokens see each other, at the positions that they have anyway
        mask = torch.zeros(1, 1, ids.shape[1], ids.shape[1])
        grid = inputs.get("image_grid_thw")
        positions, _ = stock.model.get_rope_index(ids, inputs["mm_token_type_ids"], grid)
    with torch.no_grad():
        hidden = stock.model(input_ids=ids, attention_mask=mask, position_ids=positions, **inputs).last_hidden_state[0]

    if pooling == "image" and PAD in case.prompt:
        first, last = (ids[0] == pads[0]).nonzero()[[0, -1], 0].tolist()
        hidden = hidden[first - 1 : last + 2]  # its markers too
    vector = hidden[-1] if pooling == "last" else hidden.mean(dim=0)
    return F.normalize(vector, dim=-1)


@pytest.mark.parametrize("preset", QWEN_CASES)
def test_embedders_on_qwen(tiny, preset):
    settings, cases = QWEN_CASES[preset]
    path, stock = tiny(settings[0])
    model = UniMEModel.from_backbone(path, preset=preset)
    tokenizer = tokenizer_for(settings[0])
    assert {PRESETS[preset].positions} == {"flat" if settings[1] else "native"}
    for case in cases:
        ours = model.encode(case.item, case.instruction, case.role)
        assert (ours - qwen_reference(stock, tokenizer, case, settings)).abs().max() <= 2e-6, case

    # a padded batch gives what each item gives alone
    items = [case.item for case in cases if case.role == "query"]
    together = model.encode(items, batch_tokens=10**6)
    for item, embedding in zip(items, together, strict=True):
        assert (model.encode(item) - embedding).abs().max() <= 2e-6


# LLaVA and Phi-3-vision: as the first seven are held in test_checkpoints.py

E5V = "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n \n"


def test_e5_v(tiny):
    path, stock = tiny("llava_next")
    model = UniMEModel.from_backbone(path, preset="e5-v")
    image = picture(2, (56, 56))
    composed = '<image>Modify this image with "{}", desribe modified image in one word:'
    for item, turn in (
        (TEXT, f"{TEXT}\nSummary above sentence in one word: "),
        (image, "<image>\nSummary above image in one word: "),
        ({"text": TEXT, "image": image}, composed.format(TEXT)),
        (
            {"text": "<image>\n Describe this image in one word:", "image": image},
            "<image>\n Describe this image in one word:",
        ),
    ):
        pixels = image if "<image>" in turn else None
        expected = llava_reference(path, stock, "llava_next", E5V.format(turn), pixels)
        assert (model.encode(item) - expected).abs().max() <= 2e-6, turn


def test_vlm2vec_on_llava_and_phi(tiny):
    cases = (
        (TEXT, TEXT, None),
        (TEXT, f"{ASK} {TEXT}", ASK),
        ({"image": IMAGE}, "{} Represent the given image.", None),
        ({"image": IMAGE, "text": TEXT}, f"{{}} {QUESTION} {TEXT}", None),
    )
    path, stock = tiny("llava_next")
    llava = UniMEModel.from_backbone(path, preset="vlm2vec-llava-1.6", resolution=56)
    parts = phi_parts(*tiny("phi3_v"))
    phi = UniMEModel.from_backbone(tiny("phi3_v")[0], preset="vlm2vec-phi3.5-v")
    for item, prompt, instruction in cases:
        images = [IMAGE] if isinstance(item, dict) else []
        squashed = IMAGE.resize((56, 56), BICUBIC) if images else None
        of_llava = llava_reference(path, stock, "llava_next", prompt.format("<image>"), squashed)
        assert (llava.encode(item, instruction) - of_llava).abs().max() <= 2e-6
        of_phi = phi_reference(parts, prompt.format("<|image_1|>"), *images)
        assert (phi.encode(item, instruction) - of_phi).abs().max() <= 1e-5

    # the demo of its authors reads 16 crops
    more = UniMEModel.from_backbone(tiny("phi3_v")[0], preset="vlm2vec-phi3.5-v", crops=16)
    (wide, few) = (model.processor.prepare([picture(7, (900, 300))])[0] for model in (more, phi))
    assert wide.length > few.length


def test_llave_is_read_once_it_is_converted(tiny, tmp_path):
    """The assistant says a line break, and the prompt goes on to the line break after it, which is pooled."""
    path, stock = tiny("llava_onevision")
    shutil.copytree(path, tmp_path / "LLaVE-2B")
    model = UniMEModel.from_backbone(tmp_path / "LLaVE-2B")
    assert model.processor.preset == "llave"
    for item, turn, instruction in (
        (TEXT, TEXT, None),
        (TEXT, f"{ASK} {TEXT}", ASK),
        (IMAGE, "<image> Represent the given image.", None),
        (BOTH, f"<image> {QUESTION} {TEXT}", None),
    ):
        prompt = CHAT.format(PLAIN, turn) + "\n<|im_end|>\n"
        image = IMAGE if "<image>" in turn else None
        expected = llava_reference(path, stock, "llava_onevision", prompt, image)
        assert (model.encode(item, instruction) - expected).abs().max() <= 2e-6, turn

    # as the repositories hold it, and one that only its authors' package reads
    for name, model_type, class_name, reason in (
        ("mine", "llava_qwen", "LlavaQwenForCausalLM", 'convert it with transformers\' script .* preset="llave"'),
        ("QQMM-embed-v1", "qqmm", "QQMM", "its Perceiver are classes of its authors' package alone"),
    ):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "config.json", model_type=model_type, architectures=[class_name])
        with pytest.raises(ValueError, match=f"is a {model_type}, which transformers does not know: .*{reason}"):
            UniMEModel.from_backbone(tmp_path / name)


def test_a_video_is_asked_about_as_one(tiny):
    frames = [picture(1, (56, 56)), picture(2, (56, 56))]
    for preset, kind, with_text in (
        ("unite", "Summary above video in one word:", "Summary above sentence and video in one word:"),
        ("lamra-ret", "Summarize above video in one word: ", "Summarize above video and sentence in one word: "),
        ("vlm2vec-qwen2-vl", "Represent the given video.", TEXT),
    ):
        processor = UniMEModel.from_backbone(tiny("qwen2_vl")[0], preset=preset, weights=False).processor
        assert processor.render({"video": frames})[0].count(kind) == 1
        assert processor.render({"video": frames, "text": TEXT})[0].count(with_text) == 1


def test_several_images_of_one_item(tiny):
    path, _ = tiny("qwen2_vl")
    model = UniMEModel.from_backbone(path, preset="ops-mm", image_tokens=(4, 1280))
    images = [picture(1, (56, 56)), picture(2, (84, 56))]
    prompt, _ = model.processor.render({"image": images, "text": TEXT})
    assert prompt == CHAT.format(PLAIN, IMG * 2 + TEXT) + "<|endoftext|>"
    frames = model.encode({"video": images, "text": TEXT})
    assert torch.equal(model.encode({"image": images, "text": TEXT}), frames)
    with pytest.raises(TypeError, match="item has an image of type int"):
        model.processor.render({"image": [images[0], 3]})


def test_saha_sizes_of_images(tiny):
    processor = UniMEModel.from_backbone(tiny("qwen2_vl")[0], preset="saha-qwen2-vl").processor
    for size, expected in (
        ((64, 48), (448, 336)),
        ((2000, 1000), (992, 496)),
        ((3000, 500), (992, 496)),
        ((100, 10), (672, 336)),
        ((1500, 400), (992, 496)),
    ):
        (entry,) = processor.prepare([picture(0, size)])
        assert entry.sizes == (expected,), size
    image = picture(0)
    (entry,) = processor.prepare([image])
    assert processor.read_image(entry, 0).tobytes() == image.resize((448, 336), Image.Resampling.LANCZOS).tobytes()


@pytest.mark.parametrize("preset", ["nomic-embed-multimodal", "jina-embeddings-v4"])
def test_a_vector_for_an_image_and_a_text_where_authors_have_no_prompt_for_both(tiny, preset):
    model = UniMEModel.from_backbone(tiny("qwen2_5_vl")[0], preset=preset)
    parts = model.encode([TEXT, IMAGE])
    assert (model.encode(BOTH) - F.normalize(parts.sum(dim=0), dim=-1)).abs().max() <= 1e-6
    with pytest.raises(ValueError, match=f"item 0 has an image and a text, which the preset '{preset}' has no"):
        model.encode([BOTH], fusion="joint")


# jina-embeddings-v4: the base's weights, and the adapters of three tasks in one file


def write_jina(folder: Path) -> tuple:
    """Writes a tiny one, and returns the stock model in it and what adapters add to weights, by task and layer."""
    stock = write(folder, "qwen2_5_vl")
    weights = load_file(folder / "model.safetensors")
    random = torch.Generator().manual_seed(0)
    weights["multi_vector_projector.weight"] = torch.randn(16, 48, generator=random)
    weights["multi_vector_projector.bias"] = torch.zeros(16)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["JinaEmbeddingsV4Model"], "task_names": ["retrieval", "text-matching", "code"]}
    config["auto_map"] = {"AutoModel": "modeling_jina_embeddings_v4.JinaEmbeddingsV4Model"}
    write_json(folder / "config.json", **config)

    # as they are saved by a class that has a layer for each task below every lora_A and lora_B
    adapters = {}
    added = {}
    for name, layer in [*stock.named_modules(), ("multi_vector_projector", torch.nn.Linear(48, 16))]:
        if not name.endswith(("q_proj", "down_proj", "multi_vector_projector")) or "visual" in name:
            continue
        for task in ("retrieval", "text-matching", "code"):
            first = torch.randn(4, layer.in_features, generator=random) * 0.2
            second = torch.randn(layer.out_features, 4, generator=random) * 0.2
            adapters[f"base_model.model.{name}.lora_A.{task}.weight"] = first
            adapters[f"base_model.model.{name}.lora_B.{task}.weight"] = second
            added[task, name] = second @ first * 2
    (folder / "adapters").mkdir()
    save_file(adapters, folder / "adapters/adapter_model.safetensors", metadata={"format": "pt"})
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": "(.*(model).*(down_proj|q_proj).*$)"}
    write_json(folder / "adapters/adapter_config.json", **settings)
    return stock, added


@pytest.fixture(scope="module")
def jina(tmp_path_factory):
    """A folder with a tiny one, the stock model in it, and what its adapters add."""
    folder = tmp_path_factory.mktemp("jina") / "jina-embeddings-v4"
    return folder, *write_jina(folder)


@pytest.mark.parametrize("task", ["retrieval", "text-matching", "code"])
def test_the_adapter_of_a_task_is_merged(jina, task, tmp_path):
    folder, stock, added = jina
    preset = "jina-embeddings-v4" if task == "retrieval" else f"jina-embeddings-v4-{task}"
    model = UniMEModel.from_backbone(folder, preset=None if task == "retrieval" else preset)
    assert model.processor.preset == preset

    tuned = copy.deepcopy(stock)
    for name, layer in tuned.named_modules():
        if (task, name) in added:
            layer.weight.data += added[task, name]
    settings, _ = QWEN_CASES["jina-embeddings-v4"]
    passage = f"Query: {TEXT}" if task == "text-matching" else f"Passage: {TEXT}"
    for case in (
        Case(TEXT, f"Query: {TEXT}"),
        Case(TEXT, passage, role="document"),
        Case(IMAGE, f"<|im_start|>user\n{IMG}Describe the image.<|im_end|>\n"),
    ):
        expected = qwen_reference(tuned, tokenizer_for("qwen2_5_vl"), case, settings)
        assert (model.encode(case.item, role=case.role) - expected).abs().max() <= 2e-6

    # what is saved has it in its weights, and so is of this task alone
    model.save_pretrained(tmp_path)
    again = UniMEModel.from_pretrained(tmp_path)
    assert torch.equal(again.encode(TEXT), model.encode(TEXT))
    other = "jina-embeddings-v4" if task == "code" else "jina-embeddings-v4-code"
    with pytest.raises(ValueError, match=f"these weights hold the adapter for '{task}'"):
        again.use_preset(other)


def test_a_task_is_asked_for_and_must_be_there(jina, tmp_path):
    folder = jina[0]
    with pytest.raises(ValueError, match="has adapters for several tasks in its adapters/, and the preset 'summary'"):
        UniMEModel.from_backbone(folder, preset="summary")
    (tmp_path / "mine.yaml").write_text("extends: jina-embeddings-v4\nadapter: clustering")
    with pytest.raises(ValueError, match="has no task 'clustering'; it has code, retrieval, text-matching"):
        UniMEModel.from_backbone(folder, preset=tmp_path / "mine.yaml")

    copied = tmp_path / "jina-embeddings-v4"
    shutil.copytree(folder, copied)
    (copied / "adapters/adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="adapters cannot be read: it has neither adapter_model"):
        UniMEModel.from_backbone(copied)
    names = [drift.name for drift in drifts_of(Patient(folder))]
    assert "adapters of tasks left out" in names


def test_a_saved_model_gives_the_same_without_the_package(tiny, tmp_path):
    model = UniMEModel.from_backbone(tiny("qwen2_5_vl")[0], preset="moca")
    items = [TEXT, {"text": "a star", "image": str(tmp_path / "photo.png")}]
    IMAGE.save(tmp_path / "photo.png")
    expected = model.encode(items, ASK)
    model.save_pretrained(tmp_path / "saved")
    code = (
        "import json, sys\nfrom transformers import AutoModel\n"
        "model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "assert 'unime' not in sys.modules\n"
        "print(json.dumps(model.encode(json.loads(sys.argv[2]), sys.argv[3]).tolist()))"
    )
    again = fresh_process(code, tmp_path / "saved", json.dumps(items), ASK)
    assert (torch.tensor(again) - expected).abs().max() <= 1e-6


# The parts


def test_an_empty_item_is_null_where_the_preset_says_so(tiny):
    model = UniMEModel.from_backbone(tiny("qwen3_vl")[0], preset="qwen3-vl-embedding")
    prompt = CHAT.format("Represent the user's input.", "NULL")
    for item in ("", {"text": None}, {}):
        assert model.processor.render(item)[0] == prompt
        assert torch.equal(model.encode(item), model.encode("NULL"))
    with pytest.raises(ValueError, match="item is empty"):
        UniMEModel.from_backbone(tiny("qwen3_vl")[0], preset="summary").processor.render("")


def test_instructions_end_in_punctuation_of_any_script():
    for instruction, expected in ((" Find\n", "Find."), ("Find?", "Find?"), ("找。", "找。"), ("", ""), ("a+", "a+.")):
        assert with_full_stop(instruction) == expected
    assert instruct("Find:", "", "{instruction} {text}\n") == "Find:\n"
    assert instruct("Find:", "a", "{instruction} {text}\n") == "Find: a\n"
    assert instruct("Find: ", "", "{instruction}{text}") == "Find: "
    assert instruct("", "a", "{instruction} {text}\n") == "a"


def test_a_normalizer_that_transformers_drops_is_that_of_the_file(tmp_path):
    tokenizer = tokenizer_for("qwen2_vl")
    rule = normalizers.Replace(Regex("\n$"), "")
    tokenizer.backend_tokenizer.normalizer = rule
    tokenizer.save_pretrained(tmp_path)
    text = f"{TEXT}\n<|im_end|>"
    expected = tokenizer(text)["input_ids"]
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    assert tokenizer(text)["input_ids"] != expected
    restore_normalizer(tokenizer, tmp_path, {"trust_remote_code": False})
    assert tokenizer(text)["input_ids"] == expected


def test_pooling_by_hand():
    hidden = torch.arange(24.0).view(2, 4, 3)
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0]])
    is_image = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0]])
    assert torch.equal(pool(hidden, mask), hidden[[0, 1], [3, 2]])
    assert torch.equal(pool(hidden, mask, pooling="mean"), torch.stack([hidden[0, 1:].mean(0), hidden[1, :3].mean(0)]))
    assert torch.equal(pool(hidden, mask, is_image, "image"), pool(hidden, mask, pooling="mean"))
    is_image = torch.tensor([[0, 0, 1, 0], [1, 0, 0, 0]])
    assert torch.equal(pool(hidden, mask, is_image, "image")[1], hidden[1, :2].mean(0))


def test_every_checkpoint_is_known_by_its_name_and_has_a_preset():
    for repository, checkpoint in CHECKPOINTS.items():
        assert published_checkpoint(f"models/{repository.split('/')[1]}") == checkpoint
        assert checkpoint.preset in PRESETS
