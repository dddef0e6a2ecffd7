"""Videos as the video tokens of a backbone: the ids of the stock processor, patches of pairs of frames, limits."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import picture
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.video_utils import VideoMetadata

from unime import UniMEModel
from unime.images_unime import Media, open_image
from unime.videos_unime import ClipReader, load_clip

BICUBIC = Image.Resampling.BICUBIC
KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@pytest.fixture(params=KINDS)
def model(request, tiny):
    return UniMEModel.from_backbone(tiny(request.param)[0], preset="joint")


def write_video(path, frames=12):
    from test_processing import write_video

    return write_video(path, frames)  # four frames a second


class StockVideos:
    """In the place of a stock video processor, which needs torchvision: what it would return of a video."""

    model_input_names = ["pixel_values_videos", "video_grid_thw"]

    def __init__(self, images, grid, indices, total, fps):
        self.merge_size = images.merge_size
        self.temporal_patch_size = images.temporal_patch_size
        self.outputs = BatchFeature(
            {
                "pixel_values_videos": torch.zeros(math.prod(grid), 1),
                "video_grid_thw": torch.tensor([grid]),
                "video_metadata": [VideoMetadata(total_num_frames=total, fps=fps, frames_indices=indices)],
            }
        )

    def __call__(self, videos, **kwargs):
        return BatchFeature(dict(self.outputs))


def test_ids_are_those_of_the_stock_processor(tmp_path, model):
    path = write_video(tmp_path / "v.mp4")
    processor = model.processor
    item = {"video": path, "text": "What happens?", "fps": 2}
    (entry,) = processor.prepare([item])
    batch = processor.collate([entry])
    assert entry.length == batch["input_ids"].shape[1]

    # its own class, over the same prompt
    native = processor._native.processor
    grid = batch["video_grid_thw"][0].tolist()
    assert grid[0] == 3, "six frames"
    ours = native.video_processor
    native.video_processor = StockVideos(processor.image_processor, grid, [0, 2, 4, 7, 9, 11], 12, 4.0)
    try:
        video = np.zeros((6, 48, 64, 3), np.uint8)
        stock = native(text=[entry.prompt], videos=[video], return_tensors="pt", return_mm_token_type_ids=True)
    finally:
        native.video_processor = ours
    assert batch["input_ids"].tolist() == stock["input_ids"].tolist()
    assert batch["mm_token_type_ids"].tolist() == stock["mm_token_type_ids"].tolist()
    if "second_per_grid_ts" in stock:
        intervals = torch.as_tensor(stock["second_per_grid_ts"]).tolist()
        assert batch["second_per_grid_ts"].tolist() == pytest.approx(intervals)


def pairs_of_frames(frames: list, images) -> tuple[torch.Tensor, list[int]]:
    """Patches and grid of a video, by the definition in transformers' video processors.

    Args:
        frames (`list[PIL.Image.Image]`): an even number, at the size that they are read at.
        images: the image processor, for its numbers.
    """
    pixels = []
    for frame in frames:
        array = np.asarray(frame.convert("RGB"), np.float64) / 255
        pixels.append(((array - images.image_mean) / images.image_std).transpose(2, 0, 1))

    width, height = frames[0].size
    side, merge = images.patch_size, images.merge_size
    shape = (len(frames) // 2, 2, 3, height // side // merge, merge, side, width // side // merge, merge, side)
    patches = np.stack(pixels).reshape(shape).transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
    patches = torch.tensor(patches.reshape(-1, 3 * 2 * side * side), dtype=torch.float32)
    return patches, [len(frames) // 2, height // side, width // side]


def test_patches_hold_pairs_of_frames(model):
    frames = [picture(seed) for seed in range(3)]
    processor = model.processor
    (entry,) = processor.prepare([{"video": frames}])
    batch = processor.collate([entry])

    # of three frames the last is there twice
    resized = [frame.resize(entry.sizes[0], BICUBIC) for frame in [*frames, frames[-1]]]
    patches, grid = pairs_of_frames(resized, processor.image_processor)
    assert (batch["pixel_values_videos"] - patches).abs().max() < 1e-5
    assert batch["video_grid_thw"].tolist() == [grid]


@pytest.mark.parametrize(
    ("kind", "preset", "steps"),
    [
        # UNITE's script resizes by qwen-vl-utils, and then the processor of transformers 4.47 by limits for images
        ("qwen2_vl", "unite", [(100_352, 151_200), (200_704, 1_003_520)]),
        ("qwen2_vl", "lamra-ret", [(100_352, 602_112)]),
        ("qwen3_vl", "qwen3-vl-embedding", [(131_072, 786_432)]),
        ("qwen3_5", "wemm-embedding", [(131_072, 786_432)]),
    ],
)
def test_frames_have_the_sizes_that_their_authors_read(tiny, kind, preset, steps):
    processor = UniMEModel.from_backbone(tiny(kind)[0], preset, weights=False).processor
    frames = [picture(seed) for seed in range(2)]
    batch = processor.collate(processor.prepare([{"video": frames}]))

    # fewest and most pixels of each resize; tiny checkpoints all have tokens of 28 pixels a side
    for fewest, most in steps:
        width, height = frames[0].size
        height, width = smart_resize(height, width, 28, fewest, most)
        frames = [frame.resize((width, height), BICUBIC) for frame in frames]
    patches, grid = pairs_of_frames(frames, processor.image_processor)
    assert batch["video_grid_thw"].tolist() == [grid]
    assert (batch["pixel_values_videos"] - patches).abs().max() < 1e-5


def test_frames_that_are_images_may_have_limits_of_their_own(tiny):
    # rzen_embed_inference.py: two resizes, the second to 160 to 180 tokens for frames, to 256 to 1280 for images
    model = UniMEModel.from_backbone(tiny("qwen2_vl")[0], "rzenembed")
    frames = [picture(seed) for seed in range(2)]
    items = [{"image": frames[0]}, {"video": frames}, "a text", {"image": frames[1]}]
    batch = model.processor.collate(model.processor.prepare(items))

    for row, (frame, fewest, most) in enumerate(
        [(frames[0], 256, 1280), (frames[0], 160, 180), (frames[1], 160, 180), (frames[1], 256, 1280)]
    ):
        for least, greatest in ((4, 16_384), (fewest, most)):
            width, height = frame.size
            height, width = smart_resize(height, width, 28, least * 784, greatest * 784)
            frame = frame.resize((width, height), BICUBIC)
        patches, grid = pairs_of_frames([frame, frame], model.processor.image_processor)
        assert batch["image_grid_thw"][row].tolist() == grid
        start = int(batch["image_grid_thw"][:row].prod(dim=1).sum())
        assert (batch["pixel_values"][start : start + len(patches)] - patches).abs().max() < 1e-5

    together = model.encode(items)
    for item, row in zip(items, together):
        assert torch.allclose(model.encode([item])[0], row, atol=1e-5)


@pytest.mark.parametrize(
    ("fps", "total", "count"), [(1.0, 48, 12), (1.0, 12, 4), (2.0, 13, 6), (1.0, 3, 2), (1.0, 1, 1), (9.0, 99, 16)]
)
def test_frames_of_a_second_are_an_even_number_as_qwen_vl_utils_has_it(fps, total, count):
    assert Media(fps=fps, max_frames=16).count(total, 4.0) == count


def test_a_still_video_is_embedded_like_its_image(tiny):
    model = UniMEModel.from_backbone(tiny("qwen2_vl")[0], preset="joint")
    image = picture(0)
    still, moving, single = model.encode([{"video": [image, image]}, {"video": [image, picture(1)]}, image])
    assert torch.allclose(still, single, atol=1e-5) and (still - moving).abs().max() > 1e-4


def test_videos_and_images_share_a_batch(tmp_path, model):
    path = write_video(tmp_path / "v.mp4")
    chat = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": picture(0)},
                {"type": "video", "video": str(path)},
                {"type": "text", "text": "Which?"},
            ],
        }
    ]
    items = [{"video": path, "text": "x"}, {"image": picture(1)}, "a text", {"video": f"{path}#frames=2"}]
    together = model.encode(items)
    for item, row in zip(items, together):
        assert torch.allclose(model.encode([item])[0], row, atol=1e-4)
    assert model.encode([chat]).isfinite().all()


def test_rows_of_images_where_that_is_asked_for(tmp_path, tiny):
    path = write_video(tmp_path / "v.mp4")
    model = UniMEModel.from_backbone(tiny("qwen2_vl")[0], preset="joint", video="frames", num_frames=3)
    assert len(model.processor.render({"video": path})[1]) == 3
    model.save_pretrained(tmp_path / "saved")
    again = UniMEModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.encode({"video": path}), model.encode({"video": path}))
    frames = [open_image(frame) for frame in model.processor.render({"video": path})[1]]
    assert torch.equal(model.encode({"image": frames}), model.encode({"video": path}))

    # other backbones have no tokens for videos
    other = UniMEModel.from_backbone(tiny("llava_next")[0]).processor
    assert other._native.videos is None and not other.media.as_clips
    with pytest.raises(ValueError, match="video must be one of tokens, frames"):
        UniMEModel.from_backbone(tiny("qwen2_vl")[0], video="pixels")


def test_settings_of_a_processor_say_how_many_frames_and_pixels_are_read(tmp_path, tiny):
    path = write_video(tmp_path / "v.mp4")
    settings = {"fps": 2.0, "max_frames": 4, "frame_pixels": (28 * 28 * 4, 28 * 28 * 6)}
    model = UniMEModel.from_backbone(tiny("qwen2_vl")[0], preset="joint", **settings)
    (clip,) = model.processor.render({"video": path})[1]
    assert len(clip.frames) == 4 and clip.seconds == (0, 1, 1.75, 2.75)
    (entry,) = model.processor.prepare([{"video": path}])
    width, height = entry.sizes[0]
    assert 4 <= width * height // 28**2 <= 6


@pytest.mark.parametrize("frames", [2, 8, 64, 768])
def test_limits_of_pixels_are_those_of_the_reference(frames):
    # qwen-vl-utils' rule for videos, written out: a frame's share of the whole, above its floor
    fewest, most, total = 128 * 28 * 28, 768 * 28 * 28, 24_576 * 28 * 28
    images = SimpleNamespace(
        patch_size=14,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": fewest, "longest_edge": most},
    )
    processor = SimpleNamespace(image_processor=images, video_token="<|video_pad|>")
    tokenizer = SimpleNamespace(convert_tokens_to_ids=lambda token: 1)
    width, height = ClipReader(processor, tokenizer, None, total).fit(frames, 1920, 1080)
    limit = max(min(most, total * 2 / frames), fewest * 1.05)
    assert width % 28 == height % 28 == 0 and width * height <= limit
    assert width * height > 0.8 * limit or width * height >= 0.8 * most


def test_frames_that_are_left_stand_where_they_stood(tmp_path):
    """Eight seconds of a list or a folder, two frames a second, of which three are read."""
    frames = [picture(number) for number in range(16)]
    for number, frame in enumerate(frames):
        frame.save(tmp_path / f"frame{number}.png")
    for video in (frames, tmp_path):
        clip = load_clip(video, Media(num_frames=3))
        assert clip.seconds == (0.0, 4.0, 7.5) and clip.interval == pytest.approx(8 / 3)
        whole = load_clip(video, Media(num_frames=16))
        assert whole.seconds == tuple(number / 2 for number in range(16)) and whole.interval == 0.5
