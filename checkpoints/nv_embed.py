"""NV-Embed-v2, the text teacher of UniME's first stage, from transformers' own parts (2405.17428).

The code in its repository (`nvidia/NV-Embed-v2`, 7.85 B parameters, licence CC-BY-NC-4.0) does not import on
transformers 5. Here it is a `MistralModel` that looks both ways, a block of latent attention, and a mean over tokens.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoTokenizer, MistralConfig, MistralModel, PreTrainedConfig, PreTrainedModel

from ..vlm_unime import assert_all_landed, bitsandbytes_config, naming_broken_files
from .opening import local_folder

MODEL_TYPE = "nvembed"  # what its `config.json` calls it
LICENSE = "cc-by-nc-4.0"
MAX_LENGTH = 4096  # tokens of a text by default, as in the authors' `encode`

# the published `latent_attention_config` may leave out what is as here
_LATENT_DEFAULTS = {
    "num_latents_value": 512,
    "num_cross_heads": 8,
    "hidden_dim": 4096,
    "latent_dim": 4096,
    "cross_dim_head": 4096,
}
_FEED_FORWARD = 4  # how many times wider than a token the feed-forward layer is


class NVEmbedConfig(PreTrainedConfig):
    """Reads the published `config.json` (`model_type` `nvembed`).

    Args:
        text_config (`dict` or `MistralConfig`): of the language model, which the file calls `bidirectional_mistral`.
        latent_attention_config (`dict`, *optional*): `num_latents_value`, `num_cross_heads`, `hidden_dim`,
            `latent_dim` and `cross_dim_head`; what is left out is as published.
        padding_side (`str`, defaults to `"right"`): the only side that is read.
        is_mask_instruction (`bool`, defaults to `True`): leave the instruction's tokens out of the mean.

    Raises:
        ValueError: texts are padded on the left, or token and latent attention differ in width.
    """

    model_type = MODEL_TYPE
    sub_configs = {"text_config": MistralConfig}

    text_config: dict | PreTrainedConfig | None = None
    latent_attention_config: dict | None = None
    padding_side: str = "right"
    is_mask_instruction: bool = True

    def __post_init__(self, **kwargs):
        # the authors' name of the model type is not one of transformers
        if not isinstance(self.text_config, PreTrainedConfig):
            fields = {key: value for key, value in (self.text_config or {}).items() if key != "model_type"}
            self.text_config = MistralConfig(**fields)

        # nothing but padding is masked, whatever window the causal model had
        self.text_config.sliding_window = None
        self.text_config.use_cache = False

        # latent attention adds its output to the token it reads, so both have one width
        self.latent_attention_config = {**_LATENT_DEFAULTS, **(self.latent_attention_config or {})}
        width = self.latent_attention_config["hidden_dim"]
        if width != self.text_config.hidden_size:
            raise ValueError(
                f"nvembed: hidden_dim of latent_attention_config is {width}, hidden_size of text_config "
                f"{self.text_config.hidden_size}; they must be equal."
            )

        if self.padding_side != "right":
            raise ValueError(f"nvembed with padding_side={self.padding_side!r} is not supported, only 'right'.")
        super().__post_init__(**kwargs)


class _CrossAttention(nn.Module):
    """Tokens look at the latents: several heads, no mask, no bias."""

    def __init__(self, width: int, latent_width: int, heads: int, head_width: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, heads * head_width, bias=False)
        self.to_kv = nn.Linear(latent_width, 2 * heads * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, width, bias=False)

    def forward(self, tokens, latents):
        """`[N, L, width]` from tokens `[N, L, width]` and latents `[1, M, latent_width]`."""
        queries = self._split(self.to_q(tokens))  # [N, heads, L, head_width]

        # the latents are the same for every text
        keys, values = self.to_kv(latents).chunk(2, dim=-1)
        keys = self._split(keys).expand(len(tokens), -1, -1, -1)  # [N, heads, M, head_width]
        values = self._split(values).expand(len(tokens), -1, -1, -1)

        attended = F.scaled_dot_product_attention(queries, keys, values)  # [N, heads, L, head_width]
        return self.to_out(attended.transpose(1, 2).flatten(2))

    def _split(self, states):
        """`[N, heads, L, head_width]` from `[N, L, heads * head_width]`."""
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class _GatedGelu(nn.Module):
    """Half of the features, times the exact GELU of the other half."""

    def forward(self, states):
        features, gate = states.chunk(2, dim=-1)
        return features * F.gelu(gate)


class _FeedForward(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        inner = _FEED_FORWARD * width
        self.net = nn.Sequential(nn.Linear(width, 2 * inner), _GatedGelu(), nn.Linear(inner, width))

    def forward(self, states):
        return self.net(states)


class _Normed(nn.Module):
    """A layer behind a norm of what it reads, and of the context where it has one."""

    def __init__(self, layer: nn.Module, width: int, context_width: int | None = None):
        super().__init__()
        self.fn = layer
        self.norm = nn.LayerNorm(width)
        self.norm_context = None if context_width is None else nn.LayerNorm(context_width)

    def forward(self, states, context=None):
        if self.norm_context is None:
            return self.fn(self.norm(states))
        return self.fn(self.norm(states), self.norm_context(context))


class _LatentAttention(nn.Module):
    """Attention to learnt latents and a feed-forward layer, each added to its input."""

    def __init__(self, config: dict):
        super().__init__()
        width = config["hidden_dim"]
        latent_width = config["latent_dim"]

        # the names are those of the published weights
        self.latents = nn.Parameter(torch.zeros(config["num_latents_value"], latent_width))
        attention = _CrossAttention(width, latent_width, config["num_cross_heads"], config["cross_dim_head"])
        self.cross_attend_blocks = nn.ModuleList(
            [_Normed(attention, width, latent_width), _Normed(_FeedForward(width), width)]
        )

    def forward(self, hidden):
        """`[N, L, width]` from the language model's last hidden states `[N, L, width]`."""
        attention, feed_forward = self.cross_attend_blocks
        hidden = hidden + attention(hidden, self.latents[None])
        return hidden + feed_forward(hidden)


class NVEmbedModel(PreTrainedModel):
    """NV-Embed-v2 with the names of its published weights; [`load_nv_embed`] opens it.

    Attributes:
        tokenizer: of its repository, padding on the right with the EOS token.
    """

    config_class = NVEmbedConfig
    _supports_sdpa = True
    _no_split_modules = ["MistralDecoderLayer"]

    def __init__(self, config: NVEmbedConfig):
        super().__init__(config)
        config.text_config._attn_implementation = "sdpa"  # takes the mask as it is
        self.embedding_model = MistralModel(config.text_config)
        self.latent_attention_model = _LatentAttention(config.latent_attention_config)
        self.tokenizer = None
        self.post_init()

    def forward(self, input_ids, attention_mask, pool_mask):
        """Embeds tokens that are padded on the right.

        Args:
            input_ids (`LongTensor` `[N, L]`).
            attention_mask (`LongTensor` `[N, L]`): 1 for tokens, 0 for padding.
            pool_mask (`LongTensor` `[N, L]`): 1 for the tokens whose mean is taken.

        Returns:
            `FloatTensor` `[N, D]` of unit norm, in float32 at least.
        """
        # a mask with four axes replaces the causal one: every token sees all but the padding
        length = input_ids.shape[1]
        visible = attention_mask.bool()[:, None, None, :].expand(-1, 1, length, -1)  # [N, 1, L, L]
        hidden = self.embedding_model(input_ids=input_ids, attention_mask=visible).last_hidden_state  # [N, L, D]
        hidden = self.latent_attention_model(hidden)

        # sums over thousands of tokens lose too much in 16 bits
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        weights = pool_mask.to(hidden.dtype)[..., None]  # [N, L, 1]
        mean = (hidden * weights).sum(1) / weights.sum(1)  # [N, D]
        return F.normalize(mean, dim=-1)

    def tokenize(self, texts: list[str], instruction: str = "", max_length: int = MAX_LENGTH) -> dict:
        """The inputs of [`~NVEmbedModel.forward`]: instruction, text and EOS, cut at the end.

        As in the authors' code, EOS is part of the text, so that a text that is cut loses it; and the instruction is
        counted without BOS, so that its last token stays in the mean.

        Args:
            texts (`list[str]`): N texts.
            instruction (`str`): put before each of them.
            max_length (`int`, defaults to 4096): of instruction and text, in tokens, with BOS.

        Raises:
            ValueError: the instruction leaves no place for a text.
        """
        eos = self.tokenizer.eos_token
        inputs = self.tokenizer(
            [f"{instruction}{text}{eos}" for text in texts],
            padding=True,
            truncation=True,
            max_length=max_length,
            return_token_type_ids=False,
            return_tensors="pt",
        )

        # the mean is that of the text; its tokens have seen the instruction
        pool_mask = inputs["attention_mask"].clone()
        if instruction and self.config.is_mask_instruction:
            masked = len(self.tokenizer.tokenize(instruction))
            if masked >= max_length:
                raise ValueError(
                    f"the teacher's instruction has {masked} tokens, and max_length is {max_length}: nothing of a "
                    "text is left. Shorten the one or raise the other."
                )
            pool_mask[:, :masked] = 0
        return {**inputs, "pool_mask": pool_mask}

    @torch.inference_mode()
    def encode(
        self, texts: list[str], instruction: str = "", batch_size: int = 32, max_length: int = MAX_LENGTH
    ) -> np.ndarray:
        """Embeds texts.

        Args:
            texts (`list[str]`): N texts.
            instruction (`str`): put before each, such as `"Instruct: {task}\\nQuery: "`; none for passages.
            batch_size (`int`, defaults to 32): texts that are run together.
            max_length (`int`, defaults to 4096): of instruction and text, in tokens; the rest is cut.

        Returns:
            `np.ndarray` `[N, D]` of unit norm, in float32.

        Raises:
            ValueError: the instruction leaves no place for a text.
        """
        embeddings = np.empty((len(texts), self.config.text_config.hidden_size), np.float32)  # [N, D]

        # texts of like length share a batch, so that little is padded
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            inputs = self.tokenize([texts[row] for row in rows], instruction, max_length)
            tensors = {name: tensor.to(self.device) for name, tensor in inputs.items()}
            embeddings[rows] = self(**tensors).float().cpu().numpy()
        return embeddings


def is_nv_embed(folder: Path) -> bool:
    """Whether a folder holds a checkpoint of this kind, as its `config.json` says."""
    path = folder / "config.json"
    if not path.exists():
        return False
    return json.loads(path.read_text(encoding="utf-8")).get("model_type") == MODEL_TYPE


def load_nv_embed(source, dtype: str = "bfloat16", quantization: str | None = None, device=None) -> NVEmbedModel:
    """Opens NV-Embed-v2 without the code of its repository; every weight must land.

    Args:
        source (`str` or `Path`): folder or repository, in the published layout.
        dtype (`str`, defaults to `"bfloat16"`): of the weights; 16 GB of memory.
        quantization (`str`, *optional*): `"nf4"` (about 6 GB) or `"int8"`: the language model in 4 or 8 bits through
            bitsandbytes, the latent attention as it is.
        device (*optional*): where the model goes; the CPU by default.

    Raises:
        ValueError: a weight is missing, unexpected or mis-shaped, or a file is damaged.

    Example:

    ```python
    teacher = load_nv_embed("nvidia/NV-Embed-v2", device="cuda")
    embeddings = teacher.encode(["a dog", "a puppy"])  # [2, 4096]
    ```
    """
    folder = local_folder(source)
    device = torch.device(device or "cpu")
    options = {"dtype": dtype}
    if device.type != "cpu":
        options["device_map"] = {"": device}  # weights go there one by one, and are quantised there

    # the latent attention is a small share of the weights, and the last to touch an embedding
    if quantization is not None:
        options["quantization_config"] = bitsandbytes_config(quantization)
        options["quantization_config"].llm_int8_skip_modules = ["latent_attention_model"]

    with naming_broken_files(folder):
        model, info = NVEmbedModel.from_pretrained(
            folder,
            ignore_mismatched_sizes=True,  # so that our own error can name the weights
            output_loading_info=True,
            **options,
        )
    assert_all_landed(info, source)

    # as the authors' code sets them, whatever the tokenizer's files say
    model.tokenizer = AutoTokenizer.from_pretrained(folder, config=model.config, trust_remote_code=False)
    model.tokenizer.padding_side = "right"
    model.tokenizer.pad_token = model.tokenizer.eos_token
    return model.eval()
