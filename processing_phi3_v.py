"""Image and text processing of Phi-3(.5)-vision, equal to the published code, on PIL and torch alone."""

import math
import re

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
        self.num_crops, self.crop_size, self.num_img_tokens = num_crops, crop_size, num_img_tokens
        self.image_mean, self.image_std = list(image_mean), list(image_std)

    def canvas(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(resized width, resized height, canvas width, canvas height) of an image."""
        if width < height:
            h, w, canvas_h, canvas_w = self.canvas(height, width)
            return w, h, canvas_w, canvas_h
        ratio, scale = width / height, 1
        while (scale + 1) * math.ceil((scale + 1) / ratio) <= self.num_crops:
            scale += 1
        new_width = scale * self.crop_size
        new_height = int(new_width / ratio)
        return new_width, new_height, new_width, math.ceil(new_height / self.crop_size) * self.crop_size

    def count_tokens(self, width: int, height: int) -> int:
        """Tokens of an image: crops and thumbnail, a separator after each row of tokens, and one in between."""
        _, _, canvas_width, canvas_height = self.canvas(width, height)
        rows, columns = canvas_height // self.crop_size, canvas_width // self.crop_size
        side = math.isqrt(self.num_img_tokens)
        return (rows * columns + 1) * self.num_img_tokens + 1 + (rows + 1) * side

    def _pixels(self, image: Image.Image) -> tuple[torch.Tensor, tuple[int, int]]:
        crop = self.crop_size
        turned = image.width < image.height  # upright images are mirrored on the diagonal, padded, and mirrored back
        if turned:
            image = image.transpose(Image.Transpose.TRANSPOSE)
        width, height, canvas_width, canvas_height = self.canvas(*image.size)
        canvas = Image.new("RGB", (canvas_width, canvas_height), "white")
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        canvas.paste(resized, (0, (canvas_height - height) // 2))
        if turned:
            canvas = canvas.transpose(Image.Transpose.TRANSPOSE)
        mean, std = (torch.tensor(x, dtype=torch.float32).view(3, 1, 1) for x in (self.image_mean, self.image_std))
        pixels = torch.from_numpy(np.array(canvas)).permute(2, 0, 1).float().div(255).sub(mean).div(std)  # [3, H, W]
        thumbnail = F.interpolate(pixels[None], size=(crop, crop), mode="bicubic")
        rows, columns = canvas.height // crop, canvas.width // crop
        tiles = pixels.unflatten(2, (columns, crop)).unflatten(1, (rows, crop))  # [3, rows, crop, columns, crop]
        tiles = tiles.permute(1, 3, 0, 2, 4).flatten(0, 1)
        padding = tiles.new_zeros(max(0, self.num_crops - len(tiles)), *tiles.shape[1:])
        return torch.cat([thumbnail, tiles, padding]), (canvas.height, canvas.width)

    def __call__(self, images, return_tensors="pt") -> BatchFeature:
        """`pixel_values` `[images, num_crops + 1, 3, 336, 336]` and `image_sizes` `[images, 2]` (height, width)."""
        pixels, sizes = zip(*(self._pixels(image.convert("RGB")) for image in images))
        return BatchFeature({"pixel_values": torch.stack(pixels), "image_sizes": torch.tensor(sizes)})


class Phi3VProcessor:
    """What [`UniMEProcessor`] asks of a native processor: counting image tokens and tokenising prompts."""

    image_token = "<|image_1|>"
    image_token_id = IMAGE_TOKEN_ID

    def __init__(self, image_processor, tokenizer):
        self.image_processor, self.tokenizer = image_processor, tokenizer

    def count_image_tokens(self, sizes) -> list[int]:
        """Tokens of images given as (width, height)."""
        return [self.image_processor.count_tokens(*size) for size in sizes]

    def tokenize(self, prompt: str) -> list[int]:
        """Ids with one negative id per image; the pieces around images each have their own BOS, as published."""
        pieces = self.tokenizer(_TAG.split(prompt))["input_ids"]
        ids = list(pieces[0])
        for piece in pieces[1:]:
            ids += [self.image_token_id, *piece]
        return ids


__all__ = ["Phi3VImageProcessor", "Phi3VProcessor"]
