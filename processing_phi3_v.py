"""Image and text processing of Phi-3(.5)-vision, equal to the published code, on PIL and torch alone."""

import math
import re
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers.image_processing_base import BatchFeature, ImageProcessingMixin

from .configuration_phi3_v import IMAGE_TOKEN_ID

_TAG = re.compile(r"<\|image_\d+\|>")


class Phi3VImageProcessor(ImageProcessingMixin):
    """The "HD transform": an image becomes a white-padded canvas, its crops, and a thumbnail of the canvas.

    Args:
        num_crops (`int`, defaults to 4): most crops of one image (4 in Phi-3.5-vision, 16 in Phi-3-vision).
        image_mean, image_std (`list[float]`): of each channel; CLIP's by default.
        crop_size (`int`, defaults to 336): pixels a side of a crop.
        num_img_tokens (`int`, defaults to 144): tokens of one crop.
    """

    model_input_names = ["pixel_values", "image_sizes"]

    def __init__(
        self,
        num_crops: int = 4,
        image_mean=(0.48145466, 0.4578275, 0.40821073),
        image_std=(0.26862954, 0.26130258, 0.27577711),
        crop_size: int = 336,
        num_img_tokens: int = 144,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_crops = num_crops
        self.crop_size = crop_size
        self.num_img_tokens = num_img_tokens
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def canvas(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(resized width, resized height, canvas width, canvas height) of an image."""
        # An upright image is planned as if it lay on its side.
        if width < height:
            resized_height, resized_width, canvas_height, canvas_width = self.canvas(height, width)
            return resized_width, resized_height, canvas_width, canvas_height

        # The most crops side by side whose rows still fit into the number of crops.
        ratio = width / height
        columns = 1
        while (columns + 1) * math.ceil((columns + 1) / ratio) <= self.num_crops:
            columns += 1

        new_width = columns * self.crop_size
        new_height = int(new_width / ratio)
        return new_width, new_height, new_width, math.ceil(new_height / self.crop_size) * self.crop_size

    def count_tokens(self, width: int, height: int) -> int:
        """Tokens of an image: crops and thumbnail, a separator after each row of tokens, and one in between."""
        _, _, canvas_width, canvas_height = self.canvas(width, height)
        rows = canvas_height // self.crop_size
        columns = canvas_width // self.crop_size
        side = math.isqrt(self.num_img_tokens)
        return (rows * columns + 1) * self.num_img_tokens + 1 + (rows + 1) * side

    def _read(self, image: Image.Image) -> tuple[torch.Tensor, tuple[int, int]]:
        """Thumbnail and crops `[num_crops + 1, 3, crop, crop]`, zeros where there are none; size (h, w)."""
        canvas = self._paint_canvas(image)
        pixels = self._normalise(canvas)  # [3, H, W]
        thumbnail = F.interpolate(pixels[None], size=(self.crop_size, self.crop_size), mode="bicubic")

        rows = canvas.height // self.crop_size
        columns = canvas.width // self.crop_size
        crops = pixels.unflatten(2, (columns, self.crop_size))
        crops = crops.unflatten(1, (rows, self.crop_size))  # [3, rows, crop, columns, crop]
        crops = crops.permute(1, 3, 0, 2, 4).flatten(0, 1)  # [rows * columns, 3, crop, crop]

        padding = crops.new_zeros(max(0, self.num_crops - len(crops)), *crops.shape[1:])
        return torch.cat([thumbnail, crops, padding]), (canvas.height, canvas.width)

    def _paint_canvas(self, image: Image.Image) -> Image.Image:
        """The resized image, centred on white."""
        # As published, upright images are mirrored on the diagonal, padded, and mirrored back.
        is_upright = image.width < image.height
        if is_upright:
            image = image.transpose(Image.Transpose.TRANSPOSE)

        width, height, canvas_width, canvas_height = self.canvas(*image.size)
        canvas = Image.new("RGB", (canvas_width, canvas_height), "white")
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        canvas.paste(resized, (0, (canvas_height - height) // 2))
        return canvas.transpose(Image.Transpose.TRANSPOSE) if is_upright else canvas

    def _normalise(self, image: Image.Image) -> torch.Tensor:
        mean = torch.tensor(self.image_mean, dtype=torch.float32).view(3, 1, 1)
        std = torch.tensor(self.image_std, dtype=torch.float32).view(3, 1, 1)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()  # [3, H, W]
        return pixels.div(255).sub(mean).div(std)

    def __call__(self, images, return_tensors="pt") -> BatchFeature:
        """`pixel_values` `[images, num_crops + 1, 3, 336, 336]` and `image_sizes` `[images, 2]` (height, width)."""
        pixels = []
        sizes = []
        for image in images:
            crops, size = self._read(image.convert("RGB"))
            pixels.append(crops)
            sizes.append(size)
        return BatchFeature({"pixel_values": torch.stack(pixels), "image_sizes": torch.tensor(sizes)})


class Phi3VProcessor:
    """Phi-3-vision's way to read prompts and images, with the interface of [`~unime.native_unime.NativeProcessor`].

    Args:
        image_processor ([`Phi3VImageProcessor`]).
        tokenizer (`PreTrainedTokenizerFast`): the published one.
    """

    follows_transformers = False  # its prompts cannot go through `ProcessorMixin.__call__`
    takes_several_images = True
    grain = None  # its tokens are not squares of a fixed size
    types_name = "mm_token_type_ids"
    videos = None  # it reads their frames as images
    image_token = "<|image_1|>"
    tag = _TAG.pattern
    image_token_id = IMAGE_TOKEN_ID
    image_token_ids = [IMAGE_TOKEN_ID]
    placeholder_id = IMAGE_TOKEN_ID
    placeholder_ids = frozenset([IMAGE_TOKEN_ID])

    def __init__(self, image_processor, tokenizer):
        self.name = type(self).__name__
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.frames = self  # what reads frames of a video

    def count_tokens(self, sizes: list[tuple[int, int]]) -> list[int]:
        """Tokens of images given as (width, height)."""
        return [self.image_processor.count_tokens(*size) for size in sizes]

    def tokenize(self, prompts: list[str]) -> list[list[int]]:
        """Ids of prompts, with one negative id per image."""
        return [self._tokenize_one(prompt) for prompt in prompts]

    def _tokenize_one(self, prompt: str) -> list[int]:
        # As published, each piece of text around the images has its own BOS.
        first, *others = self.tokenizer(_TAG.split(prompt))["input_ids"]

        ids = list(first)
        for piece in others:
            ids.append(self.image_token_id)
            ids.extend(piece)
        return ids

    def read_images(self, prompts: list[list[Image.Image]]) -> tuple[dict, list[str]]:
        """The vision tower's inputs for the images of each prompt, and the string that stands for each image."""
        images = list(chain.from_iterable(prompts))
        counts = self.count_tokens([image.size for image in images])
        return dict(self.image_processor(images)), [self.image_token * count for count in counts]

    def run_length(self, string: str) -> int | None:
        """How many image tokens a string consists of; None if it holds anything else."""
        return run_length(string, self.image_token)

    def complete(self, batch: dict) -> dict:
        """The tensors of a batch, which need nothing more."""
        return batch


def run_length(string: str, token: str) -> int | None:
    """How often a string repeats a token; None if it holds anything else."""
    count = len(string) // len(token)
    return count if string == token * count else None


def load_phi3_v_images(settings: dict) -> Phi3VImageProcessor:
    """The image processor from the settings of a saved one."""
    names = ("num_crops", "image_mean", "image_std", "crop_size", "num_img_tokens")
    return Phi3VImageProcessor(**{name: settings[name] for name in names})


__all__ = [
    "Phi3VImageProcessor",
    "Phi3VProcessor",
    "load_phi3_v_images",
    "run_length",
]
