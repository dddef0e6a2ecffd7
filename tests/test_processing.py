"""Prompts, image handling, length limits, and the chunk planner."""

import pickle

import numpy as np
import pytest
import torch
from conftest import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import LlavaOnevisionImageProcessorPil

from unime import UniMEModel
from unime.batching_unime import plan_chunks
from unime.images_unime import Resolution, VideoFrame, load_frames, open_image
from unime.items_unime import item_key
from unime.processing_unime import UniMEProcessor
from unime.prompts_unime import PRESETS

CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.fixture(scope="module")
def processor(backbone):
    return UniMEProcessor.from_backbone(backbone)


def with_preset(backbone, preset):
    return UniMEProcessor.from_backbone(backbone, preset=preset)


@given(st.lists(st.integers(1, 400), max_size=300), st.integers(1, 3000))
@settings(max_examples=200, deadline=None)
def test_chunks_partition_the_items_within_the_budget(lengths, budget):
    chunks = plan_chunks(lengths, budget)
    assert sorted(i for chunk in chunks for i in chunk) == list(range(len(lengths)))
    for chunk in chunks:
        longest = max(lengths[i] for i in chunk)
        padded = longest * len(chunk)
        assert padded <= budget or len(chunk) == 1
        assert padded - sum(lengths[i] for i in chunk) <= max(256, 0.05 * padded)


def test_equal_lengths_share_chunks_up_to_the_budget():
    assert [len(chunk) for chunk in plan_chunks([10] * 25, 100)] == [5, 10, 10]
    with pytest.raises(ValueError, match="batch_tokens"):
        plan_chunks([1], 0)


def test_summary_prompts(processor):
    image = picture(0)
    assert processor.render("a cat")[0] == CHAT.format("a cat\nSummary above sentence in one word:")
    assert processor.render(image) == (CHAT.format(IMAGE + "\nSummary above image in one word:"), (image,))
    both = CHAT.format(IMAGE + "\nfind this\n\nSummary above image and sentence in one word:")
    assert processor.render({"text": "find this\n", "image": image})[0] == both
    assert processor.render({"text": "<|image_1|>\nfind this\n", "image": image})[0] == both


def test_joint_prompts_are_the_data_sets_own_strings(backbone):
    processor, image = with_preset(backbone, "joint"), picture(0)
    assert processor.render("a cat")[0] == "a cat"
    assert processor.render({"text": "<|image_1|>\nIdentify it\n", "image": image})[0] == IMAGE + "\nIdentify it\n"


def test_hierarchical_prompts_differ_by_role(backbone):
    processor = with_preset(backbone, "hierarchical")
    query, document = processor.render("a cat", role="query")[0], processor.render("a cat", role="document")[0]
    assert query.startswith("<|im_start|>system\nGiven an image, summarize") and query.endswith(
        "a cat\nRepresent the given text in one word.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert document.endswith("<|im_start|>user\na cat<|im_end|>\n<|im_start|>assistant\n")


def test_instruction_goes_before_the_text_and_serves_as_text_of_an_image(processor):
    assert "find it\na cat\nSummary" in processor.render("a cat", instruction="find it")[0]
    assert "find it: a cat\nSummary" in processor.render("a cat", instruction="find it: ")[0], "as MMEB's strings"
    assert (
        IMAGE + "\nfind it\nSummary above image and sentence" in processor.render(picture(0), instruction="find it")[0]
    )


def test_chat_messages_bypass_the_preset(processor):
    image = picture(0)
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What?"}]}]
    assert processor.render(messages) == (CHAT.format(IMAGE + "What?"), (image,))
    with pytest.raises(ValueError, match="item has a message part"):
        processor.render([{"role": "user", "content": [{"type": "audio", "audio": 1}]}])


def test_judge_prompt_strips_placeholders_and_keeps_the_following_space(processor):
    messages = processor.rerank_messages(
        {"text": "<|image_1|> Find it.", "image": picture(0)},
        ["one <image>", {"text": "<|image_1|>\ntwo", "image": picture(1)}],
        "listwise",
    )
    content = messages[0]["content"]
    assert [part.get("text", "IMAGE") for part in content[1:]] == [
        "Query:",
        "IMAGE",
        " Find it.",
        "Candidates:",
        "(1) ",
        "one <image>",  # a text without an image places none
        "(2) ",
        "IMAGE",
        "two",
    ]
    assert "respond with the number" in content[0]["text"]
    pointwise = processor.rerank_messages("q", ["c"], "pointwise")[0]["content"]
    assert [part["text"] for part in pointwise[1:]] == ["Query:", "q", "Candidate:", "c"]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("  ", "item 0 is empty"),
        ({"text": ""}, "item 0 is empty"),
        ({"text": "<|image_1|>\n"}, "holds only an image placeholder"),
        ({"txt": "a"}, r"unknown keys \['txt'\]"),
        ({"image": "missing.png"}, "item 0: image 'missing.png' cannot be read"),
        ("a <|image_pad|> b<|image_pad|>", None),
    ],
)
def test_bad_items_are_named(processor, item, message):
    if message is None:  # placeholders without an image are text
        (entry,) = processor.prepare([item])
        assert entry.image_tokens == () and item in processor.tokenizer.decode(entry.input_ids)
        return
    with pytest.raises(ValueError, match=message):
        processor.prepare([item])


def test_wrong_types_and_presets_are_named(processor, backbone):
    with pytest.raises(TypeError, match="item 0 is a int"):
        processor.prepare([3])
    with pytest.raises(ValueError, match="unknown preset 'summery'"):
        with_preset(backbone, "summery")
    with pytest.raises(ValueError, match="role must be"):
        processor.render("a", role="passage")


def test_long_texts_are_cut_and_images_never(processor):
    words = " ".join(["red circle left of a blue star"] * 60)
    with pytest.warns(UserWarning, match="1 of 2 items were longer than 80 tokens"):
        cut, short = processor.prepare([{"text": words, "image": picture(0)}, "a star"], max_length=80)
    assert 70 <= cut.length <= 80 and cut.input_ids.count(processor.image_token_id) == 1
    assert processor.tokenizer.decode(cut.input_ids).endswith(
        "Summary above image and sentence in one word:<|im_end|>\n<|im_start|>assistant\n"
    )
    assert short.length < 80
    with pytest.raises(ValueError, match="item 0 takes .* image tokens.*lower the resolution, shorten"):
        processor.prepare([picture(0, (128, 128))], max_length=40)


def test_image_token_count_is_planned_from_the_header(processor, tmp_path):
    sizes = [(64, 48), (16, 16), (100, 37), (300, 200)]
    for number, size in enumerate(sizes):
        picture(number, size).save(tmp_path / f"{number}.png")
    prepared = processor.prepare([tmp_path / f"{n}.png" for n in range(len(sizes))])
    batch = processor.collate(prepared)
    grids = batch["image_grid_thw"].prod(-1) // 4
    assert [entry.image_tokens[0] for entry in prepared] == grids.tolist()
    assert (batch["mm_token_type_ids"].sum(1) == grids).all()
    assert batch["attention_mask"].sum(1).tolist() == [entry.length for entry in prepared]
    assert batch["attention_mask"][:, -1].all(), "padding is on the left"


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "CMYK", "L", "1", "I;16"])
def test_every_image_mode_becomes_rgb(mode, tmp_path):
    image = picture(1, (20, 20))
    if mode == "I;16":
        image = Image.fromarray((np.arange(400).reshape(20, 20) * 160).astype("uint16"))
    else:
        image = image.convert(mode)
    path = tmp_path / ("a.tiff" if mode in ("CMYK", "I;16") else "a.png")
    image.save(path)
    opened = open_image(path)
    assert opened.mode == "RGB" and opened.size == (20, 20)
    assert np.asarray(opened).std() > 5, "no mode collapses to one colour"


def test_transparency_is_composed_over_white():
    assert open_image(Image.new("RGBA", (4, 4), (10, 20, 30, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_exif_orientation_is_applied_and_planned(processor, tmp_path):
    image, exif = picture(2, (96, 32)), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    upright = open_image(tmp_path / "turned.jpg")
    assert upright.size == (32, 96) and open_image(upright).tobytes() == upright.tobytes()
    grid = processor.collate(processor.prepare([tmp_path / "turned.jpg"]))["image_grid_thw"][0]
    assert grid[1] > grid[2]


def test_unreadable_truncated_and_huge_images_are_named(processor, tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"item 0: image .*text.png.* cannot be read"):
        processor.prepare([tmp_path / "text.png"])
    picture(0, (200, 200)).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60_000])
    with pytest.raises(ValueError, match=r"item 0: image .*half.png.* cannot be read"):
        processor.collate(processor.prepare([tmp_path / "half.png"]))
    processor_small = UniMEProcessor(processor.image_processor, processor.tokenizer, max_image_pixels=1000)
    with pytest.raises(ValueError, match="40,000 pixels, above the limit of 1,000"):
        processor_small.collate(processor_small.prepare([tmp_path / "whole.png"]))


def test_item_keys_follow_content():
    assert item_key("a") == item_key("a") != item_key({"text": "a"})
    assert item_key(picture(1)) == item_key(picture(1).copy()) != item_key(picture(2))
    assert item_key({"text": "a", "image": picture(1)}) != item_key({"text": "b", "image": picture(1)})
    assert item_key(["ab", "c"]) != item_key(["a", "bc"])


def test_item_keys_follow_what_the_model_sees_of_a_palette_image():
    red, blue = (
        Image.new("RGB", (8, 8), colour).convert("P", palette=Image.Palette.ADAPTIVE) for colour in ("red", "blue")
    )
    assert red.tobytes() == blue.tobytes() and item_key(red) != item_key(blue)
    assert item_key(red) == item_key(red.convert("RGB"))


def test_processor_round_trip_and_transformers_own_path(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    again = UniMEProcessor.from_pretrained(tmp_path)
    assert (again.preset, again.max_length, again.chat_template) == (
        processor.preset,
        processor.max_length,
        processor.chat_template,
    )
    image = picture(3)
    ours = again.collate(again.prepare([image]))
    theirs = again(text=[again.render(image)[0]], images=[image], return_tensors="pt")
    for key in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw"):
        assert torch.equal(ours[key], theirs[key]), key


def test_every_preset_renders_every_kind_of_item(backbone):
    for preset in (name for name, value in PRESETS.items() if "qwen2_vl" in (value.model_types or ("qwen2_vl",))):
        processor = with_preset(backbone, preset)
        for role in ("query", "document"):
            for item in ("a cat", picture(0), {"text": "a cat", "image": picture(0)}):
                prompt, images = processor.render(item, role=role)
                assert prompt.count(processor.image_token) == len(images)
                assert ("a cat" in prompt) == (not isinstance(item, Image.Image))


# Resolution, videos, and where an image stands in a text


def test_resolution_policies_decide_size_and_tokens(backbone):
    processor, image = UniMEProcessor.from_backbone(backbone, resolution="native"), picture(0, (96, 64))

    def sizes(resolution):
        (entry,) = processor.prepare([image], resolution=resolution)
        batch = processor.collate([entry])
        grid = batch["image_grid_thw"][0]
        assert entry.image_tokens == (int(grid.prod()) // 4,)
        return entry.sizes[0], tuple((grid[1:] * 8).tolist())

    assert sizes(None) == sizes("native") == ((96, 64), (64, 96))
    assert sizes(48) == sizes("48") == ((48, 48), (48, 48))
    assert sizes("low")[0] == (128, 128)
    assert sizes("tokens:6") == ((48, 32), (32, 48))
    assert sizes("pixels:1600") == sizes({"max_pixels": 1600}) == ((48, 32), (32, 48))
    assert sizes("48+tokens:4") == ((32, 32), (32, 32))
    for wrong in ("huge", "tokens:-1", "336x336"):
        with pytest.raises(ValueError, match=f"resolution '{wrong}' is unknown"):
            sizes(wrong)
    for value in (10**9, "sides:56-20000"):
        with pytest.raises(ValueError, match="sides of at most 10,000 pixels"):
            Resolution.parse(value)
    with pytest.raises(ValueError, match="must be positive"):
        sizes({"side": 0})


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 400))
@settings(max_examples=100, deadline=None)
def test_token_budgets_hold(width, height, tokens):
    from hypothesis import assume

    assume(max(width, height) / min(width, height) < 100)
    fitted = Resolution(max_tokens=tokens).fit(width, height, lambda w, h: w * h // 256, 16, 256)
    assert fitted[0] % 16 == fitted[1] % 16 == 0
    long_side = max(fitted)
    assert fitted[0] * fitted[1] <= max(tokens * 256, long_side * 16)  # a thin image cannot be thinner than one token
    count = lambda w, h: 1 + w * h // 256  # noqa: E731
    try:
        free = Resolution(max_tokens=tokens).fit(width, height, count, None, 1)
    except ValueError as error:  # said only when 28 pixels a side are still too many
        assert int(str(error).rpartition(" ")[2].rstrip(".")) > tokens and count(width, height) > tokens
        return
    assert count(*free) <= tokens and free[0] <= width and free[1] <= height


def test_a_budget_no_size_can_meet_is_said(tiny):
    processor = UniMEProcessor.from_backbone(tiny("phi3_v")[0])
    with pytest.raises(
        ValueError, match="item 0: image of 64 x 48 pixels: no size .* at most 10 tokens; the least is"
    ):
        processor.prepare([picture(0)], resolution="tokens:10")
    with pytest.raises(ValueError, match="at most 700 tokens; the least is 757"):
        processor.prepare([picture(0, (800, 600))], resolution="tokens:700")


def test_resolution_of_the_preset_is_overridden_by_the_call(tiny):
    processor = UniMEProcessor.from_backbone(tiny("qwen2_vl")[0], preset="unime-v2-qwen2-vl")
    assert processor.prepare([picture(0)])[0].sizes == ((1344, 1344),)
    assert processor.prepare([picture(0)], resolution="native")[0].sizes == ((64, 48),)


def test_an_image_placeholder_puts_the_image_there(tiny):
    path, image = tiny("qwen2_vl")[0], picture(0)
    fence = "<|vision_start|><|image_pad|><|vision_end|>"
    raw, chat = (UniMEProcessor.from_backbone(path, preset=name) for name in ("joint", "summary"))
    for spelling in ("<|image_1|>", "<image>", "<|image_pad|>", fence):
        item = {"text": f"Look at {spelling}: what is it?", "image": image}
        assert raw.render(item)[0] == f"Look at {fence}: what is it?"
        assert f"Look at {fence}: what is it?\nSummary above image and sentence" in chat.render(item)[0]
    with pytest.raises(ValueError, match="item 0 holds 2 image tokens for 1 images"):
        raw.prepare([{"text": "<image> and <image>", "image": image}])


def write_video(path, frames=12, size=(64, 48)):
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            shade = np.full((size[1], size[0], 3), 240 * number // frames, dtype=np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return path


def test_videos_become_frames_at_equal_distances(tmp_path, embedder):
    path = write_video(tmp_path / "v.mp4")
    frames = [open_image(frame) for frame in load_frames(path, 4)]
    assert [round(np.asarray(frame).mean() / 20) for frame in frames] == [0, 4, 7, 11]
    assert len(load_frames(path, 99)) == 12
    arrays = np.stack([np.asarray(frame) for frame in frames])
    processor = embedder.processor
    processor.num_frames = 4
    processor.video = "frames"
    prompt, images = processor.render({"video": path, "text": "What happens?"})
    assert prompt.count(processor.image_token) == len(images) == 4
    of_path, of_frames, of_array = (embedder.encode({"video": video, "text": "x"}) for video in (path, frames, arrays))
    assert torch.equal(of_path, of_frames) and torch.equal(of_path, of_array)
    backwards = embedder.encode({"video": frames[::-1], "text": "x"})
    assert (of_path - backwards).abs().max() > 1e-4, "the order of frames is seen"


def test_processors_travel_to_worker_processes(tiny):
    for kind in ("qwen3_vl", "llava_onevision", "phi3_v"):
        processor = UniMEProcessor.from_backbone(tiny(kind)[0])
        again = pickle.loads(pickle.dumps(processor))
        ours, theirs = (p.collate(p.prepare([picture(0), "x"])) for p in (processor, again))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_frames_of_files_are_decoded_late(tmp_path, embedder):
    path = write_video(tmp_path / "v.mp4")
    (entry,) = embedder.processor.prepare([{"video": path}])
    (clip,) = entry.images
    assert len(clip.frames) == 8 and all(isinstance(frame, VideoFrame) for frame in clip.frames)
    assert entry.sizes == ((64, 48),)
    changed = embedder.encode({"video": path})
    write_video(path, frames=30)
    assert not torch.equal(embedder.encode({"video": path}), changed), "the file has changed"


def test_clips_of_any_kind_are_told_apart(embedder):
    clips = torch.arange(2 * 4 * 48 * 64 * 3, dtype=torch.uint8).view(2, 4, 48, 64, 3)
    clips[1, 2] = 255 - clips[1, 2]
    together = embedder.encode([{"video": clip} for clip in clips])
    assert (together[0] - together[1]).abs().max() > 1e-4
    assert torch.equal(embedder.encode({"video": clips[0].numpy()}), embedder.encode({"video": clips[0]}))
    with pytest.raises(TypeError, match="item 0 holds a set; an item consists of texts"):
        embedder.encode([{"text": "a", "image": {1, 2}}])


def test_turned_pictures_are_the_same_opened_or_not(tmp_path, tiny):
    path, model = tmp_path / "turned.jpg", UniMEModel.from_backbone(tiny("qwen2_vl")[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(0, (56, 140)).save(path, exif=exif)
    assert torch.equal(model.encode(path), model.encode(Image.open(path)))
    assert model.processor.prepare([Image.open(path)])[0].sizes == ((140, 56),)


def test_a_square_of_onevision_fits_its_limit(tiny):
    """With the real tiles of LLaVA-OneVision a 1344 square takes 7,371 tokens."""
    small = UniMEProcessor.from_backbone(tiny("llava_onevision")[0], preset="unime-v2-llava-onevision")
    reader = LlavaOnevisionImageProcessorPil(size={"height": 384, "width": 384})
    settings = {**small.backbone, "num_image_tokens": 729}
    processor = UniMEProcessor(
        reader, small.tokenizer, small.chat_template, preset="unime-v2-llava-onevision", backbone=settings
    )
    (entry,) = processor.prepare([picture(0, (64, 48))])
    assert entry.image_tokens == (7371,) and processor.max_length > 8000


def test_bad_videos_are_named(tmp_path, embedder, tiny):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match="item 0: video 'nowhere.mp4' cannot be read: there is no such file"):
        embedder.encode({"video": "nowhere.mp4"})
    with pytest.raises(ValueError, match="item 0: video .*broken.mp4' cannot be read"):
        embedder.encode({"video": tmp_path / "broken.mp4"})
    with pytest.raises(ValueError, match="item 0: the video has no frame"):
        embedder.encode({"video": []})
    with pytest.raises(ValueError, match="both an image and a video"):
        embedder.encode({"video": [picture(0)], "image": picture(1)})
    single = UniMEProcessor.from_backbone(tiny("llava_next")[0])
    with pytest.raises(ValueError, match="item 0 has 2 images, but LlavaNextProcessor takes one image at a time"):
        single.prepare([{"video": [picture(0), picture(1)]}])


def test_videos_of_every_backbone_that_takes_several_images(tiny):
    for kind in ("qwen2_5_vl", "qwen3_vl", "llava_onevision", "phi3_v"):
        model = UniMEModel.from_backbone(tiny(kind)[0], num_frames=2)
        items = [{"video": [picture(1), picture(2, (80, 40)), picture(3)], "text": "x"}, picture(1), "a text"]
        together = model.encode(items)
        assert (together - torch.stack([model.encode(item) for item in items])).abs().max() <= 1e-5


def test_precisions_are_those_of_sentence_transformers(embedder):
    from sentence_transformers.quantization import quantize_embeddings

    texts = [f"text of number {i}" for i in range(120)]
    full = embedder.encode(texts)
    spread = torch.nn.functional.normalize(torch.randn(500, 63, generator=torch.Generator().manual_seed(0)), dim=1)
    spread[:, 5] = 0.25  # a dimension without a range, and a width that 8 does not divide
    ranges = torch.stack([full.amin(0), full.amax(0)])
    for precision in ("int8", "uint8", "binary", "ubinary"):
        kind = torch.uint8 if precision.startswith("u") else torch.int8
        for embeddings, shared in ((full, None), (spread, None), (3 * full[:5], ranges)):
            options = {} if shared is None else {"ranges": shared.numpy()}
            theirs = quantize_embeddings(embeddings.numpy(), precision=precision, **options)
            ours = UniMEModel.quantize(embeddings, precision, shared)
            assert ours.dtype == kind and np.array_equal(ours.numpy(), theirs), precision
        assert torch.equal(embedder.encode(texts, precision=precision), UniMEModel.quantize(full, precision))

    query = embedder.encode(texts[3], precision="int8", ranges=ranges)
    in_batch = embedder.encode(texts, precision="int8")[3]
    assert (query.int() - in_batch.int()).abs().max() <= 1, "a value may lie on the border of two steps"
    with pytest.raises(ValueError, match="precision must be one of float32, int8, uint8, binary, ubinary, got 'int4'"):
        embedder.encode("x", precision="int4")
    with pytest.raises(ValueError, match="int8 needs `ranges`, or at least 100 embeddings"):
        embedder.encode("x", precision="int8")
    spread[7, 0] = float("nan")
    with pytest.raises(ValueError, match="embedding 7 holds NaN or infinity, which int8 has no value for"):
        UniMEModel.quantize(spread, "int8")
