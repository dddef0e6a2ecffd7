"""Configurations of the embedder and the reranker: a sub-config for the wrapped VLM, plus how it is read."""

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


class _VLMWrapperConfig(PreTrainedConfig):
    """What both configs share. The sub-config is called `vlm_config` (`backbone_config` is special-cased for timm)."""

    sub_configs_defaults = {"vlm_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen2_vl")}

    vlm_config: dict | PreTrainedConfig | None = None

    def get_text_config(self, *args, **kwargs):
        return self.vlm_config.get_text_config(*args, **kwargs)

    @property
    def hidden_size(self) -> int:
        """Width of the language model and of the embedding; sentence-transformers and DeepSpeed's "auto" read it."""
        return self.get_text_config().hidden_size


class UniMEConfig(_VLMWrapperConfig):
    """Configuration of [`UniMEModel`].

    Args:
        vlm_config (`dict` or `PreTrainedConfig`): of the wrapped VLM, any `model_type` that `AutoModel` builds.
        pooling (`str`, defaults to `"last"`): `"last"` reads the last attended token, with either padding side.
        normalize (`bool`, defaults to `True`): whether embeddings have unit L2 norm.
    """

    model_type = "unime"

    pooling: str = "last"
    normalize: bool = True

    def __post_init__(self, **kwargs):
        if self.pooling != "last":
            raise ValueError(f"pooling={self.pooling!r} is unknown; the only pooling is 'last'.")
        super().__post_init__(**kwargs)


class UniMERerankerConfig(_VLMWrapperConfig):
    """Configuration of [`UniMERerankerForCausalLM`].

    Args:
        vlm_config (`dict` or `PreTrainedConfig`): configuration of a VLM that `AutoModelForImageTextToText` builds.
    """

    model_type = "unime_reranker"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.tie_word_embeddings = getattr(self.vlm_config, "tie_word_embeddings", False)


UniMEConfig.register_for_auto_class()
UniMERerankerConfig.register_for_auto_class()

__all__ = ["UniMEConfig", "UniMERerankerConfig"]
