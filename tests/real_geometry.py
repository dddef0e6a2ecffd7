"""Checkpoints in the size of the real ones, without weights: configuration, processor files and a small tokenizer."""

import json
from pathlib import Path

from tiny_checkpoints import (
    MISTRAL_TEMPLATE,
    NORMALISE,
    ONEVISION_TEMPLATE,
    PHI_TEMPLATE,
    QWEN_TEMPLATE,
    tokenizer_for,
    write_json,
)
from transformers import (
    LlavaNextConfig,
    LlavaOnevisionConfig,
    MistralConfig,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen2VLConfig,
    SiglipVisionConfig,
)

QWEN_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
QWEN_2B = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}}
NEXT_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
ONEVISION_PINPOINTS = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
PHI = {  # config.json of microsoft/Phi-3.5-vision-instruct
    "architectures": ["Phi3VForCausalLM"],
    "model_type": "phi3_v",
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {"type": "su", "short_factor": [1.08] * 48, "long_factor": [1.1] * 48},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 32000,
    "torch_dtype": "bfloat16",
    "embd_layer": {
        "embedding_cls": "image",
        "hd_transform_order": "sub_glb",
        "projection_cls": "mlp",
        "use_hd_transform": True,
        "with_learnable_separator": True,
    },
    "img_processor": {
        "name": "clip_vision_model",
        "model_name": "openai/clip-vit-large-patch14-336",
        "image_dim_out": 1024,
        "num_img_tokens": 144,
    },
}


def qwen_ids(tokenizer) -> dict:
    """The special ids that a Qwen-VL configuration names."""
    ids = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    ids |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in ids.items()}


def config_of(name: str, tokenizer):
    """The configuration of a model by the last part of its name."""
    if name.startswith("Qwen2-VL"):
        text = QWEN_2B if "2B" in name else QWEN_7B
        tied = "2B" in name
        vision = {"hidden_size": text["hidden_size"]}
        return Qwen2VLConfig(
            text_config={**text, **MROPE}, vision_config=vision, tie_word_embeddings=tied, **qwen_ids(tokenizer)
        )
    if name.startswith("Qwen2.5-VL"):
        vision = {"hidden_size": 1280, "out_hidden_size": QWEN_7B["hidden_size"], "intermediate_size": 3420}
        return Qwen2_5_VLConfig(
            text_config={**QWEN_7B, **MROPE}, vision_config=vision, tie_word_embeddings=False, **qwen_ids(tokenizer)
        )

    image = tokenizer.convert_tokens_to_ids("<image>")
    if name.startswith("llava-v1.6"):
        text = MistralConfig(vocab_size=32064, num_key_value_heads=8, max_position_embeddings=32768)
        return LlavaNextConfig(text_config=text, image_token_index=image, image_grid_pinpoints=NEXT_PINPOINTS)
    return LlavaOnevisionConfig(
        text_config=Qwen2Config(**{**QWEN_7B, "vocab_size": 152128}),
        vision_config=SiglipVisionConfig(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=26,
            num_attention_heads=16,
            image_size=384,
            patch_size=14,
            vision_use_head=False,
        ),
        image_token_index=image,
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=ONEVISION_PINPOINTS,
        vision_aspect_ratio="anyres_max_9",
    )


def save_tokenizer(tokenizer, folder: Path, limit: int):
    """Writes a tokenizer that pads on the left, and has the family's limit of tokens."""
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    write_json(file, **{**settings, "padding_side": "left", "model_max_length": limit})


def write_checkpoint(folder: Path, name: str):
    """Writes everything of a stock checkpoint but its weights.

    Args:
        folder (`Path`): to write.
        name (`str`): which model: `"Qwen2-VL-2B-Instruct"`, `"llava-v1.6-mistral-7b-hf"`, ...
    """
    folder.mkdir(parents=True)
    if name.startswith("Phi"):
        write_phi(folder)
        return

    kind = "qwen2_vl" if name.startswith("Qwen") else "llava_next" if "v1.6" in name else "llava_onevision"
    tokenizer = tokenizer_for(kind)
    save_tokenizer(tokenizer, folder, 32768)
    config = config_of(name, tokenizer)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))

    if kind == "qwen2_vl":
        pixels = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2}
        names = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor"}
        write_json(folder / "preprocessor_config.json", merge_size=2, **pixels, **names, **NORMALISE)
        write_json(folder / "chat_template.json", chat_template=QWEN_TEMPLATE)
        return

    family = "LlavaNext" if kind == "llava_next" else "LlavaOnevision"
    size = {"size": {"height": 384, "width": 384}}
    if kind == "llava_next":
        size = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}, "do_center_crop": True}
    write_json(
        folder / "preprocessor_config.json",
        image_grid_pinpoints=config.image_grid_pinpoints,
        image_processor_type=f"{family}ImageProcessor",
        processor_class=f"{family}Processor",
        do_pad=True,
        **{**NORMALISE, **size},
    )
    write_json(folder / "processor_config.json", processor_class=f"{family}Processor", image_token="<image>")
    template = MISTRAL_TEMPLATE if kind == "llava_next" else ONEVISION_TEMPLATE
    write_json(folder / "chat_template.json", chat_template=template)


def write_phi(folder: Path):
    """Phi-3.5-vision in the published layout."""
    tokenizer = tokenizer_for("phi3_v")
    tokenizer.chat_template = PHI_TEMPLATE
    save_tokenizer(tokenizer, folder, 131072)
    write_json(folder / "config.json", **PHI)
    write_json(
        folder / "preprocessor_config.json",
        num_crops=4,
        num_img_tokens=144,
        image_mean=NORMALISE["image_mean"],
        image_std=NORMALISE["image_std"],
        image_processor_type="Phi3VImageProcessor",
        processor_class="Phi3VProcessor",
        auto_map={"AutoImageProcessor": "processing_phi3_v.Phi3VImageProcessor"},
    )


def write_unime(folder: Path, source, preset: str | None = None, reranker: bool = False):
    """Writes everything of a saved UniME model but its weights.

    Args:
        folder (`Path`): to write.
        source: a stock checkpoint that was written before.
        preset (`str`, *optional*): that it is saved with.
        reranker (`bool`): a reranker, not an embedder.
    """
    from unime.checkpoints.opening import open_checkpoint

    model = open_checkpoint(source, preset, reranker, weights=False)
    model.config.save_pretrained(folder)
    model.processor.save_pretrained(folder)
