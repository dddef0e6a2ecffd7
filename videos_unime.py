"""Videos that a backbone reads as such, Qwen-VL's: their frames in pairs, with a token of their own.

The patches of a pair of frames are those of two images, of which each gives one of the two moments that a patch of
the vision tower holds. So the image processor reads the frames, and no video processor (which needs torchvision) is
asked.
"""

import math
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from types import SimpleNamespace

import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from .images_unime import Media, VideoFrame, load_frames, spread

MARKERS = ("<|vision_start|>", "<|vision_end|>")  # Qwen-VL's, around what is seen
FRAME_TOKENS = 768  # most tokens of a frame, where neither preset nor image processor says less


@dataclass(frozen=True)
class Clip:
    """A video as its frames.

    Args:
        frames (`tuple`): what [`~unime.images_unime.open_image`] takes.
        seconds (`tuple[float, ...]`): where in the video each stands.
        interval (`float`): seconds from one frame to the next.
    """

    frames: tuple
    seconds: tuple[float, ...]
    interval: float


def load_clip(video, media: Media) -> Clip:
    """A video as [`~unime.images_unime.load_frames`] reads it, with its times.

    Args:
        video: a path, a folder of frames, or frames.
        media ([`~unime.images_unime.Media`]): how many frames are read.

    Raises:
        ValueError: the video cannot be decoded, or has no frame.
    """
    frames = load_frames(video, media)
    if all(isinstance(frame, VideoFrame) for frame in frames):
        return Clip(tuple(frames), tuple(frame.seconds for frame in frames), frames[0].interval)

    # of a list or folder some frames may have been left out, and the others stand where they stood
    total = len(load_frames(video, replace(media, num_frames=sys.maxsize)))
    seconds = [place / media.rate for place in spread(total, len(frames)).tolist()]
    return Clip(tuple(frames), tuple(seconds), total / media.rate / len(frames))


class ClipReader:
    """How a backbone's processor reads videos.

    Args:
        processor: the backbone's own, with its image processor.
        tokenizer: the backbone's tokenizer.
        frame_pixels (`tuple[int, int]`, *optional*): fewest and most pixels of a frame; the image processor's limits
            by default, and at most 768 tokens. The image processor resizes a second time where these are not within
            its limits, as it did in transformers 4.
        video_pixels (`int`): most pixels of a pair of frames, times the number of pairs.

    Attributes:
        token (`str`): stands for a video in a prompt.
        token_id (`int`): its id.
    """

    def __init__(self, processor, tokenizer, frame_pixels: tuple[int, int] | None, video_pixels: int):
        self.processor = processor
        self.tokenizer = tokenizer
        self.images = processor.image_processor
        self.token = processor.video_token
        self.token_id = tokenizer.convert_tokens_to_ids(self.token)
        self.grain = self.images.patch_size * self.images.merge_size

        most = min(self.images.size["longest_edge"], FRAME_TOKENS * self.grain**2)
        self.frame_pixels = frame_pixels or (min(self.images.size["shortest_edge"], most), most)
        self.video_pixels = video_pixels

        # what a processor asks of its video processor to word a video
        pairs = self.images.temporal_patch_size
        processor.video_processor = SimpleNamespace(merge_size=self.images.merge_size, temporal_patch_size=pairs)

    @cached_property
    def marks_frames(self) -> bool:
        """Whether every pair of frames is put between markers (Qwen3-VL), and so the video itself between none.

        transformers 4.57 did so; 5.23 leaves those of the chat template around them all.
        """
        still = Clip((), seconds=(0.0, 0.0), interval=1.0)
        return MARKERS[0] in self.word(still, (1, self.images.merge_size, self.images.merge_size))

    def fit(self, count: int, width: int, height: int) -> tuple[int, int]:
        """(width, height) at which the frames of a video are handed to the image processor, as qwen-vl-utils has it.

        Args:
            count (`int`): of its frames.
            width, height (`int`): of a frame, in pixels.
        """
        fewest, most = self.frame_pixels
        share = self.video_pixels * self.images.temporal_patch_size // count
        most = max(min(most, share), int(fewest * 1.05))
        height, width = smart_resize(height, width, self.grain, fewest, most)
        return width, height

    def grid(self, clip: Clip, size: tuple[int, int]) -> tuple[int, int, int]:
        """Pairs of frames, and rows and columns of patches, of a video whose frames are handed over at that size."""
        width, height = size
        limits = self.images.size
        height, width = smart_resize(height, width, self.grain, limits["shortest_edge"], limits["longest_edge"])
        pairs = math.ceil(len(clip.frames) / self.images.temporal_patch_size)
        return pairs, height // self.images.patch_size, width // self.images.patch_size

    def count_tokens(self, clip: Clip, size: tuple[int, int]) -> int:
        """Tokens that a video takes, with those of its times where the backbone has any."""
        return len(self.tokenizer(self.word(clip, self.grid(clip, size)), add_special_tokens=False)["input_ids"])

    def word(self, clip: Clip, grid: tuple[int, int, int]) -> str:
        """What the token of a video becomes in a prompt: the processor of the backbone says it."""
        metadata = SimpleNamespace(frames_indices=list(clip.seconds), fps=1.0)  # indices in seconds
        inputs = {"video_grid_thw": torch.tensor([grid]), "video_metadata": [metadata]}
        return self.processor.replace_video_token(inputs, video_idx=0)

    def read(self, clips: list[tuple[Clip, list]]) -> tuple[dict, list[str]]:
        """The vision tower's inputs for videos, and the string that stands for each.

        Args:
            clips (`list`): videos with their decoded frames, at the size that they are read at.

        Returns:
            `pixel_values_videos`, `video_grid_thw` and, for Qwen2.5-VL, `second_per_grid_ts`; and the strings.
        """
        pixels = []
        grids = []
        strings = []
        for clip, frames in clips:
            outputs = self.images(frames, return_tensors="pt")
            rows, columns = outputs["image_grid_thw"][0, 1:].tolist()
            pixels.append(self._pair(outputs["pixel_values"], len(frames)))
            grids.append((math.ceil(len(frames) / self.images.temporal_patch_size), rows, columns))
            strings.append(self.word(clip, grids[-1]))

        inputs = {"pixel_values_videos": torch.cat(pixels), "video_grid_thw": torch.tensor(grids)}
        if "second_per_grid_ts" in self.processor.model_input_names:
            intervals = [clip.interval * self.images.temporal_patch_size for clip, _ in clips]
            inputs["second_per_grid_ts"] = torch.tensor(intervals)
        return inputs, strings

    def _pair(self, pixels: torch.Tensor, count: int) -> torch.Tensor:
        """Patches of pairs of frames, of which the last may be there twice.

        Args:
            pixels (`Tensor` `[F * n, C * T * p * p]`): patches of F images, each T times the same.
            count (`int`): F.

        Returns:
            `[ceil(F / T) * n, C * T * p * p]`.
        """
        times = self.images.temporal_patch_size  # T
        area = self.images.patch_size**2
        patches = pixels.view(count, -1, pixels.shape[1] // (times * area), times, area)  # [F, n, C, T, p * p]
        patches = patches[:, :, :, 0]

        missing = -count % times
        if missing:
            patches = torch.cat([patches, patches[-1:].expand(missing, -1, -1, -1)])
        groups = patches.unflatten(0, (-1, times))  # [F / T, T, n, C, p * p]
        return groups.permute(0, 2, 3, 1, 4).reshape(-1, pixels.shape[1])


def clip_reader(processor, tokenizer, frame_pixels, video_pixels: int) -> ClipReader | None:
    """The [`ClipReader`] of a backbone, or `None` where it has no token for videos, or patches of a single moment."""
    token = getattr(processor, "video_token", None)
    images = getattr(processor, "image_processor", None)
    if token is None or not hasattr(images, "merge_size") or not hasattr(images, "temporal_patch_size"):
        return None
    if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
        return None
    return ClipReader(processor, tokenizer, frame_pixels, video_pixels)


def without_clips(media: Media) -> Media:
    """The same, for what reads frames as images: UniME-V2's question to a judge."""
    return replace(media, as_clips=False)


__all__ = ["MARKERS", "Clip", "ClipReader", "clip_reader", "load_clip", "without_clips"]
