"""Phi-3-vision and Phi-3.5-vision from transformers' own parts: a Phi-3 decoder and a CLIP tower.

Module names give the published key layout (`model.vision_embed_tokens.img_projection.0.weight`, ...), so released
checkpoints load and are saved as they are.
"""

import contextlib
import copy
import os
import re

import torch
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPVisionModel,
    Phi3ForCausalLM,
    Phi3Model,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .configuration_phi3_v import Phi3VConfig


class Phi3VImageEmbedding(nn.Module):
    """CLIP features of crops and thumbnail -> one sequence per image in the language model's width.

    Args:
        config (`Phi3VConfig`): says how large the tower is and which of its layers is read.
    """

    def __init__(self, config: Phi3VConfig):
        super().__init__()
        vision = config.vision_config
        vision._attn_implementation = config._attn_implementation
        width = 4 * vision.hidden_size  # 2 x 2 patches become one vector
        self.layer = config.img_processor.get("layer_idx", -2)
        self.side = vision.image_size // vision.patch_size  # patches a side of one crop
        self.crop = vision.image_size  # pixels a side of one crop

        # names as published: a separator between crops and thumbnail, and one after every row
        self.img_processor = CLIPVisionModel(vision)
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, width))
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.img_projection = nn.Sequential(
            nn.Linear(width, config.hidden_size), nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)
        )

    def forward(self, pixel_values, image_sizes) -> list[torch.Tensor]:
        """Features `[tokens, H]` of each image.

        Args:
            pixel_values (`FloatTensor` `[images, crops + 1, 3, 336, 336]`): thumbnail, crops row by row, zeros.
            image_sizes (`LongTensor` `[images, 2]`): height and width of the canvas the crops tile.
        """
        grids = [(int(height) // self.crop, int(width) // self.crop) for height, width in image_sizes]

        # thumbnail and crops of all images; the zeros that pad an image are skipped
        pixels = []
        for image, (rows, columns) in zip(pixel_values, grids):
            pixels.append(image[: 1 + rows * columns])
        patches = self._merged_patches(torch.cat(pixels))  # [crops, side / 2, side / 2, 4C]

        features = []
        start = 0
        for rows, columns in grids:
            end = start + 1 + rows * columns
            features.append(self._sequence(patches[start], patches[start + 1 : end], rows, columns))
            start = end
        return features

    def _merged_patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """CLIP's features of crops `[crops, 3, 336, 336]`, 2 x 2 patches side by side in one vector."""
        output = self.img_processor(pixels.to(self.glb_GN.dtype), output_hidden_states=True, return_dict=True)
        patches = output.hidden_states[self.layer][:, 1:]  # [crops, side * side, C], without CLS
        squares = patches.unflatten(1, (self.side // 2, 2, self.side // 2, 2))
        return squares.permute(0, 1, 3, 2, 4, 5).flatten(3)  # [crops, side / 2, side / 2, 4C]

    def _sequence(self, thumbnail, crops, rows: int, columns: int) -> torch.Tensor:
        """One image as the language model reads it: the picture its crops tile, a separator, the thumbnail."""
        tiles = crops.unflatten(0, (rows, columns)).transpose(1, 2)  # [rows, side / 2, columns, side / 2, 4C]
        picture = tiles.flatten(2, 3).flatten(0, 1)  # [rows * side / 2, columns * side / 2, 4C]
        vectors = torch.cat([self._rows(picture), self.glb_GN[0], self._rows(thumbnail)])  # [tokens, 4C]
        return self.img_projection(vectors)  # [tokens, H]

    def _rows(self, grid):
        """A grid `[rows, columns, 4C]` as a sequence with the learnt separator after every row."""
        separator = self.sub_GN[0].expand(len(grid), 1, -1)
        return torch.cat([grid, separator], dim=1).flatten(0, 1)


class Phi3VModel(Phi3Model):
    """The Phi-3 decoder that reads image features wherever the token id is negative."""

    config: Phi3VConfig
    config_class = Phi3VConfig
    input_modalities = ("image", "text")
    # other tools also write the embedding table under the image embedder, and old CLIP exports their position ids
    _keys_to_ignore_on_load_unexpected = [r"vision_embed_tokens\.wte\.weight$", r"embeddings\.position_ids$"]

    def __init__(self, config: Phi3VConfig):
        super().__init__(config)
        self.vision_embed_tokens = Phi3VImageEmbedding(config)
        self.post_init()

    def get_image_features(self, pixel_values, image_sizes, **kwargs) -> BaseModelOutputWithPooling:
        """`pooler_output`: a list with the features `[tokens, H]` of each image."""
        return BaseModelOutputWithPooling(pooler_output=self.vision_embed_tokens(pixel_values, image_sizes))

    def embed(self, input_ids, features: list[torch.Tensor]) -> torch.Tensor:
        """Token embeddings with the features of the images, in order, where the ids are negative.

        Args:
            input_ids (`LongTensor` `[N, L]`): tokens.
            features (`list[Tensor]`): features `[tokens, H]` of each image.

        Returns:
            `Tensor` `[N, L, H]`.

        Raises:
            ValueError: there are more or fewer image tokens than features.
        """
        embeds = self.embed_tokens(input_ids.clamp(min=0))  # [N, L, H]
        is_image = input_ids < 0  # [N, L]

        image_tokens = int(is_image.sum())
        feature_count = sum(len(image) for image in features)
        if image_tokens != feature_count:
            raise ValueError(f"{image_tokens} image tokens for {feature_count} image features; they must be equal.")

        if not features:
            return embeds
        return embeds.masked_scatter(is_image.unsqueeze(-1), torch.cat(features).to(embeds.dtype))

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        pixel_values=None,
        image_sizes=None,
        inputs_embeds=None,
        mm_encoder_outputs=None,
        mm_token_type_ids=None,
        **kwargs,
    ):
        """As [`Phi3Model`], with images.

        Args:
            pixel_values, image_sizes (*optional*): of the images in the order of their tokens, see
                [`Phi3VImageEmbedding`].
            mm_encoder_outputs (`dict`, *optional*): under `"image"`, what `get_image_features` returned earlier.
            mm_token_type_ids (*optional*): not used; processors pass it to every VLM.
        """
        if inputs_embeds is None:
            images = (mm_encoder_outputs or {}).get("image")
            if images is None and pixel_values is not None:
                images = self.get_image_features(pixel_values, image_sizes)
            features = [] if images is None else list(images.pooler_output)
            inputs_embeds = self.embed(input_ids, features)
        return super().forward(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)


class Phi3VForCausalLM(Phi3ForCausalLM):
    """[`Phi3VModel`] with the language-modelling head."""

    config: Phi3VConfig
    config_class = Phi3VConfig
    input_modalities = ("image", "text")
    _keys_to_ignore_on_load_unexpected = Phi3VModel._keys_to_ignore_on_load_unexpected

    def __init__(self, config: Phi3VConfig):
        super().__init__(config)
        self.model = Phi3VModel(config)
        self.post_init()

    def get_image_features(self, pixel_values, image_sizes, **kwargs) -> BaseModelOutputWithPooling:
        """As [`Phi3VModel`]'s."""
        return self.model.get_image_features(pixel_values, image_sizes)

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        pixel_values=None,
        image_sizes=None,
        mm_token_type_ids=None,
        mm_encoder_outputs=None,
        **kwargs,
    ):
        """As [`Phi3ForCausalLM`], with the arguments of [`Phi3VModel`] (`generate` goes by the names given here)."""
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )

    def generate(self, input_ids, pixel_values=None, image_sizes=None, **kwargs):
        """As in transformers, from embeddings: logits processors would look up the negative ids of images."""
        features = []
        if pixel_values is not None:
            features = self.get_image_features(pixel_values, image_sizes).pooler_output
        kwargs.pop("mm_token_type_ids", None)

        # from embeddings, transformers returns the new tokens alone
        new_ids = super().generate(inputs_embeds=self.model.embed(input_ids, features), **kwargs)
        return torch.cat([input_ids, new_ids], dim=1)  # [N, L + new]


def complete_config(path, config):
    """Adds what the weights in a folder say about a CLIP tower that is not the ViT-L/14-336 of the published files.

    Published configurations do not describe the tower.

    Args:
        path: folder or repository of the checkpoint.
        config (`PreTrainedConfig`): of any model.

    Returns:
        a completed copy; `config` itself for other models, for repositories, and where nothing is to be added.
    """
    if config.model_type != "phi3_v" or not os.path.isdir(path) or "vision_config" in config.img_processor:
        return config

    shapes = _tower_shapes(path)
    layers = set()
    for key in shapes:
        layer = re.match(r"encoder\.layers\.(\d+)\.", key)
        if layer:
            layers.add(int(layer[1]))
    if not layers:
        return config

    width = shapes["embeddings.class_embedding"][0]
    config = copy.deepcopy(config)
    config.img_processor["vision_config"] = {
        "num_hidden_layers": len(layers),
        "hidden_size": width,
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "num_attention_heads": max(1, width // 64),  # as in every CLIP
    }
    return config


def _tower_shapes(folder) -> dict[str, list[int]]:
    """Shapes of the CLIP tower's weights in a folder, by their names inside the tower."""
    prefix = re.compile(r"^model\.vision_embed_tokens\.img_processor\.(?:vision_model\.)?")
    shapes = {}
    for file in sorted(os.listdir(folder)):
        if not file.endswith(".safetensors"):
            continue
        with safe_open(os.path.join(folder, file), framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118 (a safetensors handle is not a dict)
                if prefix.match(key):
                    shapes[prefix.sub("", key)] = weights.get_slice(key).get_shape()
    return shapes


for _auto, _model in (
    (AutoModel, Phi3VModel),
    (AutoModelForCausalLM, Phi3VForCausalLM),
    (AutoModelForImageTextToText, Phi3VForCausalLM),
):
    with contextlib.suppress(ValueError):  # raised when another copy of this module came first, which stays
        _auto.register(CONFIG_MAPPING["phi3_v"], _model)

__all__ = ["Phi3VForCausalLM", "Phi3VModel", "complete_config"]
