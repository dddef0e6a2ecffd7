"""Released checkpoints: embeddings and scores against references written out by hand from the published code."""

import shutil
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import fresh_process, picture
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_checkpoints import PINPOINTS, old_name, tokenizer_for
from transformers import (
    CLIPVisionModel,
    LlavaNextImageProcessorPil,
    LlavaOnevisionImageProcessorPil,
    Phi3Config,
    Phi3Model,
    Qwen2VLImageProcessorPil,
)

from unime import UniMEModel, UniMEProcessor, UniMERerankerForCausalLM

KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "llava_next", "llava_onevision", "phi3_v")
CAPTION = "a red circle left of a blue star"
QUESTION = "Represent the given image with the following question: What is in the top left?"
QWEN_MIN, QWEN_MAX = 3136, 12845056


def squash(image, side):
    return image.resize((side, side), Image.Resampling.BICUBIC)


def close(ours, reference, tolerance=1e-5):
    assert (ours - reference).abs().max() <= tolerance, (ours - reference).abs().max()


def last_state(stock, ids, positions=None, **images):
    ids = torch.tensor([ids])
    with torch.no_grad():
        out = stock.model(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions, **images)
    return F.normalize(out.last_hidden_state[0, -1].float(), dim=-1)


# UniME-V2 on Qwen2-VL: raw prompts, no fence around images, 1-D positions for every token


def qwen_reference(stock, tokenizer, prompt, image=None, flat=True):
    ids, images = tokenizer(prompt)["input_ids"], {}
    if image is not None:
        read = Qwen2VLImageProcessorPil(size={"shortest_edge": QWEN_MIN, "longest_edge": QWEN_MAX})
        images = dict(read(images=[image], return_tensors="pt"))
        token = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        at = ids.index(token)
        ids = ids[:at] + [token] * int(images["image_grid_thw"].prod() // 4) + ids[at + 1 :]
        images["mm_token_type_ids"] = torch.tensor([[int(i == token) for i in ids]])
    positions = torch.arange(len(ids)).expand(3, 1, -1) if flat else None
    return last_state(stock, ids, positions, **images)


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl"])
def test_unime_v2_qwen(tiny, kind):
    path, stock = tiny(kind)
    model, tokenizer, image = (
        UniMEModel.from_backbone(path, preset="unime-v2-qwen2-vl"),
        tokenizer_for(kind),
        picture(1),
    )
    pad = "<|image_pad|>"
    cases = [
        (CAPTION, CAPTION, None),
        (f"{CAPTION}\n", f"{CAPTION}\n", None),
        (image, f"{pad} Find an image caption describing the given image.", image),
        ({"text": QUESTION, "image": image}, f"{pad}\n{QUESTION}\n", image),
        ({"text": f"{QUESTION}\n", "image": image}, f"{pad}\n{QUESTION}\n", image),
        ({"text": f"<|image_1|>\n{QUESTION}\n", "image": image}, f"{pad}\n{QUESTION}\n", image),
        ({"text": f"<image> {QUESTION}", "image": image}, f"{pad} {QUESTION}", image),
    ]
    ours = model.encode([item for item, _, _ in cases], resolution=112)
    for row, (_, prompt, picture_) in zip(ours, cases):
        close(row, qwen_reference(stock, tokenizer, prompt, picture_ and squash(picture_, 112)))
    native = model.encode(image, resolution="native")
    close(native, qwen_reference(stock, tokenizer, cases[2][1], image))
    grid = qwen_reference(stock, tokenizer, cases[2][1], squash(image, 112), flat=False)
    assert (ours[2] - grid).abs().max() > 1e-3, "3-D positions would be another embedding"


def test_vlm2vec_and_saha_qwen(tiny):
    path, stock = tiny("qwen2_vl")
    tokenizer, image, pad = tokenizer_for("qwen2_vl"), picture(1), "<|image_pad|>"
    chat = (
        "<|im_start|>system\nGiven an image, summarize the provided image in one word. Given only text, describe the "
        "text in one word.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    )
    request = "\nRepresent the given text/image in one word."
    mmeb = {"text": f"<|image_1|>\n{QUESTION}\n", "image": image}
    for preset, role, item, prompt in (
        ("vlm2vec-qwen2-vl", "query", CAPTION, CAPTION),
        ("vlm2vec-qwen2-vl", "document", image, f"{pad} Represent the given image."),
        ("vlm2vec-qwen2-vl", "query", mmeb, f"{pad}\n{QUESTION}\n"),
        ("saha-qwen2-vl", "query", mmeb, chat.format(f"{pad}\n{QUESTION}\n{request}")),
        ("saha-qwen2-vl", "document", mmeb, chat.format(f"{pad}\n{QUESTION}\n")),
    ):
        model = UniMEModel.from_backbone(path, preset=preset)
        shown = image if pad in prompt else None

        # Gen2Embed makes the shorter side, here of 48 pixels, at least 336
        if shown and preset == "saha-qwen2-vl":
            shown = image.resize((448, 336), Image.Resampling.LANCZOS)
        close(model.encode(item, role=role), qwen_reference(stock, tokenizer, prompt, shown))


# LLaVA: anyres tiles


def tokens_of_tiles(size, tiles):
    """LLaVA's unpadded grid by hand: 28-pixel tiles of 2 x 2 patches, a newline after each row, and the overview."""
    width, height = size
    columns, rows = 2 * tiles[1] // 28, 2 * tiles[0] // 28
    if width / height > columns / rows:
        rows -= 2 * ((rows - int(round(height * columns / width, 7))) // 2)
    else:
        columns -= 2 * ((columns - int(round(width * rows / height, 7))) // 2)
    return rows * columns + rows + 4


def llava_reference(path, stock, kind, prompt, image=None, read=None, tiles=(56, 56)):
    tokenizer = tokenizer_for(kind)
    ids, images = tokenizer(prompt)["input_ids"], {}
    if image is not None:
        next_ = kind == "llava_next"
        size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
        read = read or (LlavaNextImageProcessorPil if next_ else LlavaOnevisionImageProcessorPil)(
            image_grid_pinpoints=PINPOINTS,
            image_mean=[0.48145466, 0.4578275, 0.40821073],
            image_std=[0.26862954, 0.26130258, 0.27577711],
            **(size if next_ else {"size": {"height": 28, "width": 28}}),
        )
        read_images = read(images=[image], return_tensors="pt")
        images = {key: read_images[key] for key in ("pixel_values", "image_sizes")}
        token = tokenizer.convert_tokens_to_ids("<image>")
        at = ids.index(token)
        ids = ids[:at] + [token] * tokens_of_tiles(image.size, tiles) + ids[at + 1 :]
    return last_state(stock, ids, **images)


def test_unime_llava_next(tiny):
    path, stock = tiny("llava_next")
    model, image = UniMEModel.from_backbone(path, preset="unime-llava-1.6"), squash(picture(2), 56)
    assert model.processor.tokenizer("x")["input_ids"][0] == 1, "BOS"
    of_text = llava_reference(
        path, stock, "llava_next", f"[INST] {CAPTION}\nSummary above sentence in one word: [/INST]"
    )
    prompt = "[INST] <image>\nSummary above image in one word: [/INST]"
    of_image = llava_reference(path, stock, "llava_next", prompt, image)
    joint = llava_reference(path, stock, "llava_next", f"<image>\n{QUESTION}\n", image)
    close(model.encode(CAPTION), of_text)
    close(model.encode(picture(2), resolution=56), of_image)
    both = {"text": CAPTION, "image": image}
    close(model.encode(both), F.normalize(of_text + of_image, dim=0))
    instructed = llava_reference(
        path, stock, "llava_next", f"[INST] Find it.\n{CAPTION}\nSummary above sentence in one word: [/INST]"
    )
    close(model.encode(both, instruction="Find it."), F.normalize(instructed + of_image, dim=0))
    close(model.encode({"text": QUESTION, "image": image}, fusion="joint"), joint)
    close(model.encode({"text": f"<|image_1|>\n{QUESTION}\n", "image": image}), joint)


def test_llava_onevision_presets(tiny):
    path, stock = tiny("llava_onevision")
    image = squash(picture(3), 56)

    def expect(turn, image=None):
        prompt = f"<|im_start|>user {turn}<|im_end|><|im_start|>assistant\n"
        return llava_reference(path, stock, "llava_onevision", prompt, image)

    first = UniMEModel.from_backbone(path, preset="unime-llava-onevision")
    of_text = expect(f"\n{CAPTION}\nSummary above sentence in one word:\n")
    of_image = expect("<image>\nSummary above image in one word:\n", image)
    close(first.encode(CAPTION), of_text)
    close(first.encode(image, resolution="native"), of_image)
    close(first.encode({"text": CAPTION, "image": image}, resolution="native"), F.normalize(of_text + of_image, dim=0))

    second = UniMEModel.from_backbone(path, preset="unime-v2-llava-onevision")
    close(second.encode(CAPTION), expect(f"\n{CAPTION}"))
    caption = "Find an image caption describing the given image."
    close(second.encode(image, resolution=56), expect(f"<image>\n{caption}", image))
    for text in (QUESTION, f"{QUESTION}\n", f"<|image_1|>\n{QUESTION}\n"):
        close(
            second.encode({"text": text, "image": image}, resolution="native"), expect(f"<image>\n{QUESTION}", image)
        )


@pytest.mark.parametrize("kind", ["llava_next", "llava_onevision"])
def test_legacy_padding_is_what_transformers_4_pads(tiny, kind):
    """An image whose tiles need an odd padding: 4.49 made the canvas one pixel short and stretched the last tile."""
    path, stock = tiny(kind)
    image = picture(4, (56, 45))  # resized to 56 x 45 in a canvas of 56 x 56: 11 pixels of padding
    model = UniMEModel.from_backbone(
        path, preset={"llava_next": "unime-llava-1.6"}.get(kind, "unime-v2-llava-onevision")
    )
    even = UniMEModel.from_backbone(path, preset=model.processor.preset, anyres_padding="even")
    read = model.processor.image_processor

    def by_hand(images, return_tensors):
        canvas = np.zeros((55, 56, 3), dtype=np.uint8)
        canvas[5:50] = np.asarray(image)
        tiles = [Image.fromarray(canvas[y : y + 28, x : x + 28]) for y in (0, 28) for x in (0, 28)]
        overview = image.resize((28, 28), Image.Resampling.BICUBIC)
        crops = []
        for tile in [overview, *tiles]:
            if kind == "llava_next":  # the short side becomes 28, then the middle is cut out
                tile = tile.resize((28 * tile.width // min(tile.size), 28 * tile.height // min(tile.size)), 3)
                left = (tile.width - 28) // 2
                tile = tile.crop((left, 0, left + 28, 28))
            crops.append(np.asarray(tile.resize((28, 28), Image.Resampling.BICUBIC)).transpose(2, 0, 1) / 255)
        mean, std = (np.array(x)[:, None, None] for x in (read.image_mean, read.image_std))
        pixels = torch.tensor(np.stack([(crop - mean) / std for crop in crops]), dtype=torch.float32)
        return {"pixel_values": pixels[None], "image_sizes": torch.tensor([[45, 56]])}

    prompt = model.processor.render(image)[0]
    close(model.encode(image, resolution="native"), llava_reference(path, stock, kind, prompt, image, by_hand))
    close(even.encode(image, resolution="native"), llava_reference(path, stock, kind, prompt, image))
    gap = (model.encode(image, resolution="native") - even.encode(image, resolution="native")).abs().max()
    assert gap > 1e-3


# Phi-3.5-vision: the published assembly in plain loops, on transformers' CLIP and Phi-3 with the weights of the file


def phi_parts(path, stock):
    weights = load_file(path / "model.safetensors")
    config = stock.config.to_dict()
    config = {key: config[key] for key in Phi3Config().to_dict() if key in config and key != "model_type"}
    language = Phi3Model(Phi3Config(**config)).eval()
    own = {k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.") and "vision" not in k}
    language.load_state_dict(own)
    tower = CLIPVisionModel(stock.config.vision_config).eval()
    prefix = "model.vision_embed_tokens."
    clip = f"{prefix}img_processor.vision_model."
    tower.load_state_dict({k.removeprefix(clip): v for k, v in weights.items() if k.startswith(clip)})
    return language, tower, {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def phi_pixels(image):
    """The HD transform for four crops, one image at a time."""
    turned = image.width < image.height
    image = image.transpose(Image.Transpose.TRANSPOSE) if turned else image
    ratio = image.width / image.height
    scale = max(s for s in range(1, 5) if s * -(-s // ratio) <= 4)
    width = 336 * scale
    height = int(width / ratio)
    padded = -(-height // 336) * 336
    canvas = Image.new("RGB", (width, padded), (255, 255, 255))
    canvas.paste(image.resize((width, height), Image.Resampling.BILINEAR), (0, (padded - height) // 2))
    canvas = canvas.transpose(Image.Transpose.TRANSPOSE) if turned else canvas
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = torch.tensor(((np.asarray(canvas) / 255 - mean) / std).transpose(2, 0, 1), dtype=torch.float32)
    crops = [F.interpolate(pixels[None], size=(336, 336), mode="bicubic")[0]]
    for y in range(0, canvas.height, 336):
        for x in range(0, canvas.width, 336):
            crops.append(pixels[:, y : y + 336, x : x + 336])
    return torch.stack(crops), canvas.height // 336, canvas.width // 336


def phi_image_features(tower, head, image):
    crops, rows, columns = phi_pixels(image)
    with torch.no_grad():
        states = tower(crops, output_hidden_states=True).hidden_states[-2][:, 1:]

    def merged(crop, y, x):  # 2 x 2 patches side by side
        at = lambda dy, dx: states[crop, (2 * y + dy) * 24 + 2 * x + dx]  # noqa: E731
        return torch.cat([at(0, 0), at(0, 1), at(1, 0), at(1, 1)])

    newline, between = head["sub_GN"].flatten(), head["glb_GN"].flatten()
    sequence = []
    for y in range(12 * rows):
        for x in range(12 * columns):
            sequence.append(merged(1 + (y // 12) * columns + x // 12, y % 12, x % 12))
        sequence.append(newline)
    sequence.append(between)
    for y in range(12):
        sequence += [merged(0, y, x) for x in range(12)] + [newline]
    out = torch.stack(sequence) @ head["img_projection.0.weight"].T + head["img_projection.0.bias"]
    return F.gelu(out) @ head["img_projection.2.weight"].T + head["img_projection.2.bias"]


def phi_reference(parts, prompt, *images):
    language, tower, head = parts
    tokenizer, table = tokenizer_for("phi3_v"), parts[0].embed_tokens.weight
    pieces = prompt.split("<|image_1|>")
    rows = [table[torch.tensor(tokenizer(pieces[0])["input_ids"])]]
    for piece, image in zip(pieces[1:], images, strict=True):
        rows += [phi_image_features(tower, head, image), table[torch.tensor(tokenizer(piece)["input_ids"])]]
    with torch.no_grad():
        out = language(inputs_embeds=torch.cat(rows)[None], use_cache=False)
    return F.normalize(out.last_hidden_state[0, -1], dim=-1)


@pytest.mark.parametrize("size", [(64, 48), (40, 120), (200, 50)])
def test_unime_phi(tiny, size):
    path, stock = tiny("phi3_v")
    model, parts, image = (
        UniMEModel.from_backbone(path, preset="unime-phi3.5-v"),
        phi_parts(path, stock),
        picture(5, size),
    )
    prompt = "<|user|>\n<|image_1|>\nSummary above image in one word: <|end|>\n<|assistant|>\n"
    of_image = phi_reference(parts, prompt, image)
    of_text = phi_reference(
        parts, f"<|user|>\n{CAPTION}\nSummary above sentence in one word: <|end|>\n<|assistant|>\n"
    )
    joint = {"text": f"<|image_1|>\n{QUESTION}\n", "image": image}
    close(model.encode(image), of_image)
    close(model.encode(CAPTION), of_text)
    close(model.encode({"text": CAPTION, "image": image}), F.normalize(of_text + of_image, dim=0))
    close(model.encode(joint), phi_reference(parts, joint["text"], image))
    mixed = model.encode([CAPTION, image, joint, "short"])
    close(mixed[1], of_image)


def test_phi_squares_are_resized_before_the_transform(tiny):
    path, stock = tiny("phi3_v")
    model, image = UniMEModel.from_backbone(path, preset="unime-phi3.5-v"), picture(6, (90, 40))
    prompt = "<|user|>\n<|image_1|>\nSummary above image in one word: <|end|>\n<|assistant|>\n"
    close(model.encode(image, resolution=336), phi_reference(phi_parts(path, stock), prompt, squash(image, 336)))


def test_the_auto_processor_path_gives_the_same_embedding(tiny):
    for kind, preset in (("phi3_v", "unime-phi3.5-v"), ("llava_next", "unime-llava-1.6"), ("qwen2_vl", "summary")):
        model = UniMEModel.from_backbone(tiny(kind)[0], preset=preset)
        prompt, images = model.processor.render(picture(6))
        with torch.no_grad():
            batch = model.processor(
                text=[prompt, model.processor.render("x")[0]], images=list(images), return_tensors="pt"
            )
            close(model(**batch).embeddings, model.encode([picture(6), "x"]))
    phi = UniMEModel.from_backbone(tiny("phi3_v")[0]).processor
    with pytest.raises(ValueError, match="text 0 holds more image tokens than there are images"):
        phi(text="<|image_1|>")
    with pytest.raises(ValueError, match="more images than image tokens"):
        phi(text="no image", images=[picture(6)])


def test_phi_embeds_where_the_table_lies_under_the_image_embedder(tiny, tmp_path):
    path, _ = tiny("phi3_v")
    shutil.copytree(path, tmp_path / "wte")
    weights = load_file(path / "model.safetensors")
    table = weights.pop("model.embed_tokens.weight")
    weights["model.vision_embed_tokens.wte.weight"] = table
    expected, file = UniMEModel.from_backbone(path).encode("x"), tmp_path / "wte/model.safetensors"
    for stored in (weights, {**weights, "model.embed_tokens.weight": table.clone()}):
        save_file(stored, file, {"format": "pt"})
        assert torch.equal(UniMEModel.from_backbone(tmp_path / "wte").encode("x"), expected)


def test_a_processor_elsewhere_is_used(tiny, tmp_path):
    path, _ = tiny("phi3_v")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((path / name).read_bytes())
    with pytest.raises((OSError, ValueError)):
        UniMEModel.from_backbone(tmp_path)
    apart = UniMEModel.from_backbone(tmp_path, preset="unime-phi3.5-v", processor=path)
    assert torch.equal(apart.encode(CAPTION), UniMEModel.from_backbone(path, preset="unime-phi3.5-v").encode(CAPTION))


def test_a_phi_tokenizer_that_loses_spaces_is_told():
    from unime.native_unime import _warn_of_lost_spaces

    class Words:
        def __init__(self, ids):
            self.ids = ids

        def __call__(self, text):
            return {"input_ids": self.ids}

        def convert_tokens_to_ids(self, token):
            return 32010

    with pytest.warns(UserWarning, match=r"reads '<\|user\|>.n' as \[1, 32010, 13\]"):
        _warn_of_lost_spaces(Words([1, 32010, 13]), "here")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _warn_of_lost_spaces(Words([1, 32010, 29871, 13]), "here")


def test_phi_token_counts_of_the_published_code():
    from unime.processing_phi3_v import Phi3VImageProcessor

    four, sixteen = Phi3VImageProcessor(), Phi3VImageProcessor(num_crops=16)
    counts = {(640, 480): 757, (480, 640): 757, (1920, 1080): 757, (1000, 250): 745, (250, 1000): 781}
    assert {size: four.count_tokens(*size) for size in counts} == counts
    assert [sixteen.count_tokens(*size) for size in [(800, 600), (900, 900), (1920, 1080)]] == [1921, 2509, 2353]
    assert Phi3VImageProcessor(num_crops=1).count_tokens(500, 500) == 313


def test_a_long_phi_text_does_not_change_the_short_ones_beside_it(tiny):
    """Beyond 2048 tokens the rotary factors of the whole batch change."""
    path, _ = tiny("phi3_v")
    model = UniMEModel.from_backbone(path, preset="joint")
    texts = ["a red circle " * 700, "a red circle", "a blue star"]
    together = model.encode(texts, batch_tokens=100_000)
    close(together, torch.stack([model.encode(text) for text in texts]))
    assert model.processor.prepare(texts)[0].length > 2048


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_batches_equal_one_by_one(tiny, kind):
    path, _ = tiny(kind)
    model = UniMEModel.from_backbone(path)
    items = [
        CAPTION,
        picture(7),
        {"text": QUESTION, "image": picture(8, (100, 40))},
        picture(9, (40, 120)),
        "short",
        {"text": "Find it", "image": picture(10, (29, 31))},
    ]
    together = model.encode(items)
    close(together, torch.stack([model.encode(item) for item in items]))
    assert (together @ together.T).triu(1).max() < 0.9999, "the items differ"
    close(model.encode(items, batch_tokens=64), together)


@pytest.mark.parametrize("kind", KINDS)
def test_old_and_new_layouts_land_whole(tiny, kind, tmp_path):
    path, stock = tiny(kind)
    model = UniMEModel.from_backbone(path)
    inner = {k.removeprefix("model."): v for k, v in stock.state_dict().items() if k.startswith("model.")}
    loaded = model.vlm.state_dict()
    assert set(loaded) == set(inner) and all(torch.equal(loaded[key], inner[key]) for key in inner)
    shutil.copytree(path, tmp_path / "new")
    save_file(
        {k: v.clone() for k, v in stock.state_dict().items()}, tmp_path / "new/model.safetensors", {"format": "pt"}
    )
    assert torch.equal(UniMEModel.from_backbone(tmp_path / "new").encode(CAPTION), model.encode(CAPTION))


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_checkpoints_are_named(tiny, kind, tmp_path):
    path, _ = tiny(kind)
    weights = load_file(path / "model.safetensors")
    lost = next(key for key in weights if "layers.1" in key and "norm" in key)

    def spoil(content):
        broken = tmp_path / "broken"
        shutil.copytree(path, broken, dirs_exist_ok=True)
        save_file(content, broken / "model.safetensors", {"format": "pt"})
        return broken

    with pytest.raises(ValueError, match=r"missing keys: .*norm"):
        UniMEModel.from_backbone(spoil({key: value for key, value in weights.items() if key != lost}))
    with pytest.raises(ValueError, match="unexpected keys: .*surplus"):
        UniMEModel.from_backbone(spoil({**weights, "surplus.weight": torch.zeros(2)}))
    with pytest.raises(ValueError, match="mismatched keys: .*norm"):
        UniMEModel.from_backbone(spoil({**weights, lost: torch.zeros(3)}))
    file = tmp_path / "broken" / "model.safetensors"
    file.write_bytes((path / "model.safetensors").read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        UniMEModel.from_backbone(tmp_path / "broken")


def test_presets_are_for_their_backbone_and_their_repositories(tiny, tmp_path):
    qwen, _ = tiny("qwen2_vl")
    with pytest.raises(
        ValueError, match="'unime-phi3.5-v' is for phi3_v, but .* is a qwen2_vl; choose one of summary"
    ):
        UniMEModel.from_backbone(qwen, preset="unime-phi3.5-v")
    for name, preset in (("UniME-V2-Qwen2VL-2B", "unime-v2-qwen2-vl"), ("stock", "summary")):
        shutil.copytree(qwen, tmp_path / name)
        assert UniMEProcessor.from_backbone(tmp_path / name).preset == preset
    cached = tmp_path / "models--TianchengGu--UniME-V2-Qwen2VL-7B" / "snapshots" / "0a1b"
    for folder in (cached, tmp_path / "UniME-V2_qwen2VL_2B"):  # the Hub's cache, and upstream's README
        shutil.copytree(qwen, folder)
        assert UniMEProcessor.from_backbone(folder).preset == "unime-v2-qwen2-vl"
    judge = shutil.copytree(tiny("qwen2_5_vl")[0], tmp_path / "UniME-v2-rerank_qwen25VL_7B")
    assert UniMERerankerForCausalLM.from_backbone(judge).processor.resolution == "1344+tokens:300"
    shutil.copytree(qwen, tmp_path / "UniME-tuned" / "checkpoint-50")
    with pytest.raises(ValueError, match="checkpoint-50 was trained with prompts of its own"):
        UniMEModel.from_backbone(tmp_path / "UniME-tuned" / "checkpoint-50")
    shutil.copytree(qwen, tmp_path / "My-UniME")
    with pytest.raises(
        ValueError, match="My-UniME was trained with prompts of its own .*pass `preset=`.*one of summary"
    ):
        UniMEModel.from_backbone(tmp_path / "My-UniME")
    for name in ("Qwen9-VL-Embedding-2B", "gme-Qwen9-VL", "LamRA-3"):  # embedders, not plain VLMs
        shutil.copytree(qwen, tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} was trained with prompts of its own .*pass `preset=`"):
            UniMEModel.from_backbone(tmp_path / name)
        assert UniMEModel.from_backbone(tmp_path / name, "summary").processor.preset == "summary"
    with pytest.raises(
        ValueError, match="describes a qwen2_vl, not a unime; wrap a stock VLM with `UniMEModel.from_backbone`"
    ):
        UniMEModel.from_pretrained(qwen)


def test_saved_model_keeps_preset_positions_and_resolution(tiny, tmp_path):
    path, _ = tiny("qwen2_vl")
    model = UniMEModel.from_backbone(path, preset="unime-v2-qwen2-vl", resolution="112+tokens:9")
    model.save_pretrained(tmp_path)
    again, items = UniMEModel.from_pretrained(tmp_path), [CAPTION, picture(1)]
    assert again.config.positions == "flat" and again.processor.resolution == "112+tokens:9"
    assert torch.equal(again.encode(items), model.encode(items))


def test_reranker_prompts_and_probabilities(tiny):
    """Qwen2.5-VL with the default system turn, true 3-D positions, and the logits of the first new token."""
    path, stock = tiny("qwen2_5_vl")
    reranker, tokenizer = UniMERerankerForCausalLM.from_backbone(path), tokenizer_for("qwen2_5_vl")
    image = picture(11)
    query = {"text": "<|image_1|> Find an image caption describing the given image.", "image": image}
    prompt = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "I will provide you with a query and a candidate. Please evaluate whether the candidate meets the "
        "requirements of the query. If it does, respond with 'Yes'; if it doesn't, respond with 'No'.Query:"
        "<|vision_start|><|image_pad|><|vision_end|> Find an image caption describing the given image."
        f"Candidate:{CAPTION}<|im_end|>\n<|im_start|>assistant\n"
    )
    read = Qwen2VLImageProcessorPil(size={"shortest_edge": QWEN_MIN, "longest_edge": QWEN_MAX})
    images = dict(read(images=[image], return_tensors="pt"))
    pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    count = int(images["image_grid_thw"].prod() // 4)
    ids = torch.tensor([tokenizer(prompt.replace("<|image_pad|>", "<|image_pad|>" * count))["input_ids"]])
    with torch.no_grad():
        logits = stock(input_ids=ids, mm_token_type_ids=(ids == pad).int(), **images).logits[0, -1]
    yes, no = (tokenizer(word)["input_ids"][0] for word in ("Yes", "No"))
    expected = torch.stack([logits[yes], logits[no]])
    close(reranker.score(query, [CAPTION, "other"])[:1], expected.softmax(0)[:1], 1e-6)
    penalised = torch.where(expected > 0, expected / 1.05, expected * 1.05)  # both words stand in the prompt
    close(reranker.score(query, [CAPTION], repetition_penalty=1.05), penalised.softmax(0)[:1], 1e-6)


def test_released_listwise_procedure(tiny, monkeypatch):
    path, _ = tiny("qwen2_5_vl")
    reranker = UniMERerankerForCausalLM.from_backbone(path)
    tokenizer = reranker.processor.tokenizer
    answers = iter(["Ans: (3)", "no idea", "(0)", "Ans: (9)"])

    def generate(input_ids, max_new_tokens, do_sample, **_):
        assert (max_new_tokens, do_sample) == (128, False)
        assert tokenizer.decode(input_ids[0]).endswith("Candidates:(1) a(2) b(3) c<|im_end|>\n<|im_start|>assistant\n")
        new = torch.tensor([tokenizer(next(answers))["input_ids"]])
        return torch.cat([input_ids, new], dim=1)

    monkeypatch.setattr(reranker.vlm, "generate", generate)
    order = lambda: [entry["index"] for entry in reranker.rank("q", ["a", "b", "c"], strategy="generate")]  # noqa: E731
    assert order() == [2, 0, 1]
    for _ in range(3):
        with pytest.warns(UserWarning, match="names none of 3 candidates; their order stays"):
            assert order() == [0, 1, 2]


REMOTE = """
import importlib.util, json, sys, torch
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder)]
assert importlib.util.find_spec("unime") is None
from PIL import Image
from transformers import AutoModel, AutoModelForCausalLM
embedder = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
reranker = AutoModelForCausalLM.from_pretrained(sys.argv[2], trust_remote_code=True)
image = Image.open(sys.argv[3])
print(json.dumps([embedder.encode(["a red circle", image]).tolist(), reranker.score(image, ["a", "b c"]).tolist()]))
"""


@pytest.mark.parametrize("kind", ["llava_onevision", "phi3_v"])
def test_remote_code_of_every_family_needs_no_package(tiny, tmp_path, kind):
    path, _ = tiny(kind)
    image = picture(12)
    image.save(tmp_path / "a.png")
    embedder, reranker = UniMEModel.from_backbone(path), UniMERerankerForCausalLM.from_backbone(path)
    embedder.save_pretrained(tmp_path / "embedder")
    reranker.save_pretrained(tmp_path / "reranker")
    found = fresh_process(
        REMOTE,
        tmp_path / "embedder",
        tmp_path / "reranker",
        tmp_path / "a.png",
        HF_MODULES_CACHE=str(tmp_path / "modules"),
        PYTHONSAFEPATH="1",
    )
    assert torch.equal(torch.tensor(found[0]), embedder.encode(["a red circle", image]))
    assert torch.equal(torch.tensor(found[1]), reranker.score(image, ["a", "b c"]))


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_stays_close(tiny, kind):
    path, _ = tiny(kind)
    full, half = (UniMEModel.from_backbone(path, dtype=dtype) for dtype in ("float32", "bfloat16"))
    items = [CAPTION, picture(7), {"text": QUESTION, "image": picture(8, (100, 40))}]
    assert half.dtype == torch.bfloat16 and (full.encode(items) * half.encode(items)).sum(1).min() > 0.99


def test_every_name_of_4_49_is_renamed_by_the_fixture(tiny):
    """The fixtures are old indeed: otherwise the tests above would prove nothing about old layouts."""
    for kind, expected in (
        ("qwen2_vl", "visual.blocks.0."),
        ("llava_next", "vision_tower.vision_model.encoder.layers.0."),
    ):
        path, stock = tiny(kind)
        assert any(key.startswith(expected) for key in load_file(path / "model.safetensors"))
        assert all(old_name(kind, key) in load_file(path / "model.safetensors") for key in stock.state_dict())
