"""Configuration of Phi-3-vision and Phi-3.5-vision, which transformers does not know by itself."""

from transformers import AutoConfig, CLIPVisionConfig, Phi3Config
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

IMAGE_TOKEN_ID = -1  # image positions carry no id of the vocabulary

# CLIP ViT-L/14-336, the tower of the published checkpoints
_CLIP_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}


class Phi3VConfig(Phi3Config):
    """Reads the published `config.json` of Phi-3(.5)-vision (`model_type` `phi3_v`).

    Args:
        img_processor (`dict`, *optional*): `image_dim_out`, the CLIP width; `layer_idx` (defaults to -2), the CLIP
            layer that is read; and `vision_config` (`dict`, *optional*), what is different from the CLIP ViT-L/14-336
            that published files do not describe.
        embd_layer (`dict`, *optional*): only the published arrangement, `hd_transform_order: sub_glb` with separators,
            is read.

    Raises:
        ValueError: the crops and the thumbnail are arranged in another way.
    """

    model_type = "phi3_v"

    img_processor: dict | None = None
    embd_layer: dict | None = None

    def __post_init__(self, **kwargs):
        # "su" is longrope's first name; transformers renames it too late to find the length it needs
        scaling = kwargs.get("rope_scaling")
        if scaling and scaling.get("type", scaling.get("rope_type")) == "su":
            kwargs["rope_scaling"] = {**scaling, "type": "longrope", "rope_type": "longrope"}

        order = (self.embd_layer or {}).get("hd_transform_order", "sub_glb")
        if order != "sub_glb":
            raise ValueError(f"phi3_v with hd_transform_order={order!r} is not supported, only 'sub_glb'.")

        self.img_processor = self.img_processor or {}
        super().__post_init__(**kwargs)

    @property
    def image_token_id(self) -> int:
        """The id at the positions of images; negative, as the vocabulary has none for them."""
        return IMAGE_TOKEN_ID

    @property
    def vision_config(self) -> CLIPVisionConfig:
        """Geometry of the CLIP tower."""
        geometry = dict(_CLIP_LARGE)
        if "image_dim_out" in self.img_processor:
            geometry["hidden_size"] = self.img_processor["image_dim_out"]
        geometry.update(self.img_processor.get("vision_config", {}))
        return CLIPVisionConfig(**geometry)


# A copy of this module may be loaded twice (remote code); the first one stays, so that its configs keep their model.
if "phi3_v" not in CONFIG_MAPPING or CONFIG_MAPPING["phi3_v"].__module__.startswith("transformers.models."):
    AutoConfig.register("phi3_v", Phi3VConfig, exist_ok=True)

__all__ = ["IMAGE_TOKEN_ID", "Phi3VConfig"]
