"""Configurations of the embedder and the reranker: a sub-config for the wrapped VLM, plus how it is read."""

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_phi3_v import Phi3VConfig  # noqa: F401 (registers phi3_v, which `vlm_config` may be)
from .pooling_unime import ATTENTIONS, POOLINGS


class _VLMWrapperConfig(PreTrainedConfig):
    """What both configurations share.

    The sub-config is called `vlm_config`, as transformers reads `backbone_config` in a way of its own (for timm).
    """

    sub_configs_defaults = {"vlm_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen2_vl")}

    vlm_config: dict | PreTrainedConfig | None = None
    backbone: str | None = None

    def get_text_config(self, *args, **kwargs):
        """Configuration of the language model inside the VLM."""
        return self.vlm_config.get_text_config(*args, **kwargs)

    def to_dict(self) -> dict:
        """As in transformers, with the language model's under `text_config`, where PEFT's prompt methods read it."""
        return {**super().to_dict(), "text_config": self.get_text_config().to_dict()}

    def to_diff_dict(self) -> dict:
        """As in transformers: what is saved, in which `vlm_config` says it already."""
        content = super().to_diff_dict()
        content.pop("text_config", None)
        return content

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers, also of what [`to_dict`] gives."""
        content = {key: value for key, value in config_dict.items() if key != "text_config"}
        return super().from_dict(content, **kwargs)

    @property
    def hidden_size(self) -> int:
        """Width of the language model and of the embedding; sentence-transformers and DeepSpeed's "auto" read it.

        EmbeddingGemma's language model ends in a projection to another width, which is that of the embedding.
        """
        text = self.get_text_config()
        return getattr(text, "embedding_dim", None) or text.hidden_size

    @property
    def length_boundary(self) -> int | None:
        """Length in tokens beyond which the rotary factors of a whole batch change (Phi-3's longrope), or `None`.

        A prompt on one side of it must not share a batch with a prompt on the other side.
        """
        rope = getattr(self.get_text_config(), "rope_parameters", None) or {}
        if rope.get("rope_type") != "longrope":
            return None
        return rope.get("original_max_position_embeddings")


class UniMEConfig(_VLMWrapperConfig):
    """Configuration of [`UniMEModel`].

    Args:
        vlm_config (`dict` or `PreTrainedConfig`): of the wrapped VLM, any `model_type` that `AutoModel` builds.
        backbone (`str`, *optional*): repository or folder of the VLM that was wrapped.
        pooling (`str`, defaults to `"last"`): `"last"` reads the last attended token, with either padding side;
            `"mean"` and `"image"` as in [`~unime.pooling_unime.pool`].
        attention (`str`, defaults to `"native"`): the backbone's own; or `"bidirectional"`, where every token sees
            every other, although the backbone is causal.
        normalize (`bool`, defaults to `True`): whether embeddings have unit L2 norm.
        positions (`str`, defaults to `"native"`): `"flat"` gives every token, those of images too, a 1-D position;
            UniME-V2's Qwen2-VL checkpoints were trained so.

    Raises:
        ValueError: `pooling`, `attention` or `positions` is unknown.

    Example:

    ```python
    config = UniMEConfig.from_pretrained("outputs/quickstart/model")
    config.hidden_size, config.positions
    ```
    """

    model_type = "unime"

    pooling: str = "last"
    normalize: bool = True
    positions: str = "native"
    attention: str = "native"

    def __post_init__(self, **kwargs):
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling={self.pooling!r} is unknown; choose {', '.join(map(repr, POOLINGS))}.")
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention={self.attention!r} is unknown; choose 'native' or 'bidirectional'.")
        if self.positions not in ("native", "flat"):
            raise ValueError(f"positions={self.positions!r} is unknown; choose 'native' or 'flat'.")
        super().__post_init__(**kwargs)


class UniMERerankerConfig(_VLMWrapperConfig):
    """Configuration of [`UniMERerankerForCausalLM`].

    Args:
        vlm_config (`dict` or `PreTrainedConfig`): configuration of a VLM that `AutoModelForImageTextToText` builds.
        backbone (`str`, *optional*): repository or folder of the VLM that was wrapped.
        head (`list[int]`, *optional*): widths of a ranking head in the place of the output head, from the language
            model's to 1, with a ReLU between its layers; none by default.
    """

    model_type = "unime_reranker"

    head: list[int] | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)

        # transformers looks for it in the outermost configuration
        self.tie_word_embeddings = getattr(self.vlm_config, "tie_word_embeddings", False)


UniMEConfig.register_for_auto_class()
UniMERerankerConfig.register_for_auto_class()

# Copies that travel with saved models are found through their `auto_map` instead.
if __package__ == "unime":
    AutoConfig.register("unime", UniMEConfig, exist_ok=True)
    AutoConfig.register("unime_reranker", UniMERerankerConfig, exist_ok=True)

__all__ = ["UniMEConfig", "UniMERerankerConfig"]
