"""Tiny checkpoints of every backbone as the Hub holds them: key layout, configuration and processor files of 4.4x."""

import json
import re
from pathlib import Path

import torch
from conftest import TEXTS
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen3_5Config,
    Qwen3VLConfig,
    SiglipVisionConfig,
)

QWEN_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a "
    "helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ONEVISION_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + part['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}[INST] {% for part in message['content'] | "
    "selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}{% for part in message['content'] | "
    "selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %} [/INST]{% elif message['role'] == "
    "'assistant' %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}{% endfor %}"
)
PHI_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + '\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
PINPOINTS = [[28, 56], [56, 28], [56, 56], [28, 84], [84, 28]]
NORMALISE = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def tokenizer_for(kind: str, texts: list[str] = TEXTS) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the special tokens of the family, which reads words of the texts as few tokens."""
    qwen = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    special = {
        "qwen": [*qwen, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
        "llava_onevision": [*qwen, "<image>", "<video>"],
        "llava_next": ["<unk>", "<s>", "</s>", "<pad>", "<image>"],
        "phi3_v": ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|user|>", "<|end|>", "<|system|>"],
    }["qwen" if kind.startswith("qwen") else kind]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if kind == "phi3_v":
        tokenizer.add_special_tokens([AddedToken("<|assistant|>", rstrip=True, special=True)])
    bos = None
    if "<s>" in special:
        bos = "<s>"
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    pad = "<pad>" if "<pad>" in special else "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, pad_token=pad, eos_token=special[2])


def config_for(kind: str, tokenizer, width: int):
    """The configuration, two layers of four heads (Qwen's vision is 64 wide)."""
    ids = {
        name: tokenizer.convert_tokens_to_ids(token)
        for name, token in (
            ("image_token_id", "<|image_pad|>"),
            ("video_token_id", "<|video_pad|>"),
            ("vision_start_token_id", "<|vision_start|>"),
            ("vision_end_token_id", "<|vision_end|>"),
        )
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "pad_token_id": tokenizer.pad_token_id,
    }
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, width // 8 - 4]}
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    if kind == "qwen2_vl":
        vision = {"depth": 2, "embed_dim": 64, "hidden_size": width, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
        return Qwen2VLConfig(text_config={**text, "rope_parameters": rope}, vision_config=vision, **ids)
    if kind == "qwen2_5_vl":
        vision = {
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": width,
            "fullatt_block_indexes": [1],
            "patch_size": 14,
        }
        return Qwen2_5_VLConfig(text_config={**text, "rope_parameters": rope}, vision_config=vision, **ids)
    if kind == "qwen3_vl":
        vision = {
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": width,
            "patch_size": 14,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        }
        text = {**text, "head_dim": width // 4, "rope_parameters": {**rope, "mrope_interleaved": True}}
        return Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
    if kind == "qwen3_5":
        # three of its four layers keep a running state (linear attention), the fourth keys and values
        vision = {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": width,
            "patch_size": 14,
            "num_position_embeddings": 64,
        }
        text |= {
            "num_hidden_layers": 4,
            "head_dim": 32,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "rope_parameters": {
                **rope,
                "mrope_section": [2, 1, 1],
                "mrope_interleaved": True,
                "partial_rotary_factor": 0.25,
            },
        }
        return Qwen3_5Config(text_config=text, vision_config=vision, **ids)
    image = tokenizer.convert_tokens_to_ids("<image>")
    if kind == "llava_next":
        return LlavaNextConfig(
            vision_config=CLIPVisionConfig(**tower),
            text_config=LlamaConfig(**text),
            image_token_index=image,
            image_grid_pinpoints=PINPOINTS,
        )
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**tower),
        text_config=Qwen2Config(**text),
        image_token_index=image,
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_9",
    )


def old_name(kind: str, name: str) -> str:
    """The name of a weight in a file written by transformers 4.48 or 4.49."""
    if kind in ("qwen2_vl", "qwen2_5_vl"):
        return re.sub(r"^model\.language_model", "model", re.sub(r"^model\.visual", "visual", name))
    if kind.startswith("llava"):
        name = re.sub(r"^lm_head", "language_model.lm_head", name)
        name = re.sub(r"^model\.language_model", "language_model.model", name)
        name = re.sub(r"^model\.vision_tower\.(?!vision_model)", "vision_tower.vision_model.", name)
        return re.sub(r"^model\.(multi_modal_projector|image_newline)", r"\1", name)
    return name


def old_config(kind: str, config: dict) -> dict:
    """The configuration as transformers 4.49 wrote it: Qwen's text fields are not nested, names are old."""
    if kind in ("qwen3_vl", "qwen3_5"):  # younger than that
        return config
    text = config.pop("text_config")
    rope = text.pop("rope_parameters", None) or {}
    text["rope_theta"] = rope.get("rope_theta", 10000.0)
    vision = {k: v for k, v in config.pop("vision_config").items() if k != "dtype"}
    config = {k: v for k, v in config.items() if k not in ("dtype", "transformers_version")}
    old = {**config, "vision_config": vision, "torch_dtype": "float32", "transformers_version": "4.49.0"}
    if kind.startswith("llava"):
        return {**old, "text_config": text}
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    return {**{k: v for k, v in text.items() if k not in ("model_type", "dtype", "layer_types")}, **old}


def write_json(path: Path, **content):
    path.write_text(json.dumps(content), encoding="utf-8")


def write(path: Path, kind: str, seed: int = 0, width: int = 48, texts: list[str] = TEXTS):
    """Writes a checkpoint with random weights, and returns the stock model that was written."""
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_for(kind, texts)
    if kind == "phi3_v":
        return write_phi(path, tokenizer, seed, width)
    config = config_for(kind, tokenizer, width)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config).eval()
    spread(model)
    weights = {old_name(kind, name): tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    config.architectures = [type(model).__name__]
    config.save_pretrained(path)
    (path / "config.json").write_text(json.dumps(old_config(kind, config.to_dict())))
    tokenizer.save_pretrained(path)
    if kind.startswith("qwen"):
        write_qwen_images(path, "Qwen2VLProcessor")
        write_json(path / "chat_template.json", chat_template=QWEN_TEMPLATE)
        return model
    next_ = kind == "llava_next"
    name = "LlavaNext" if next_ else "LlavaOnevision"
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}, "do_center_crop": True}
    write_json(
        path / "preprocessor_config.json",
        image_grid_pinpoints=PINPOINTS,
        image_processor_type=f"{name}ImageProcessor",
        processor_class=f"{name}Processor",
        do_pad=True,
        **{**NORMALISE, **(size if next_ else {"size": {"height": 28, "width": 28}})},
    )
    write_json(path / "processor_config.json", processor_class=f"{name}Processor", image_token="<image>")
    write_json(path / "chat_template.json", chat_template=MISTRAL_TEMPLATE if next_ else ONEVISION_TEMPLATE)
    return model


def write_qwen_images(path: Path, processor_class: str):
    """How images are read, as Qwen-VL's repositories say it."""
    write_json(
        path / "preprocessor_config.json",
        min_pixels=3136,
        max_pixels=12845056,
        patch_size=14,
        temporal_patch_size=2,
        merge_size=2,
        image_processor_type="Qwen2VLImageProcessor",
        processor_class=processor_class,
        **NORMALISE,
    )


def spread(model):
    """Makes tiny random weights matter: with the library's spread of 0.02 every input would give the same output."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)


def write_phi(path: Path, tokenizer, seed: int, width: int):
    """Phi-3.5-vision in the published layout, with a small CLIP tower that its configuration does not mention."""
    from unime.configuration_phi3_v import Phi3VConfig
    from unime.modeling_phi3_v import Phi3VForCausalLM

    factors = {
        "type": "su",
        "short_factor": [1.0 + 0.1 * i for i in range(width // 8)],
        "long_factor": [1.0 + 0.7 * i for i in range(width // 8)],
    }
    published = {
        "architectures": ["Phi3VForCausalLM"],
        "model_type": "phi3_v",
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "sliding_window": 8192,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5,
        "rope_scaling": factors,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": tokenizer.pad_token_id,
        "torch_dtype": "float32",
        "auto_map": {
            "AutoConfig": "configuration_phi3_v.Phi3VConfig",
            "AutoModelForCausalLM": "modeling_phi3_v.Phi3VForCausalLM",
        },
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
            "image_dim_out": 64,
            "num_img_tokens": 144,
        },
    }
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 1}
    options = {
        key: value for key, value in published.items() if key not in ("architectures", "auto_map", "model_type")
    }
    options["img_processor"] = {**options["img_processor"], "vision_config": small}
    torch.manual_seed(seed)
    model = Phi3VForCausalLM(Phi3VConfig(**options)).eval()
    spread(model)
    with torch.no_grad():
        model.model.vision_embed_tokens.glb_GN.normal_()
        model.model.vision_embed_tokens.sub_GN.normal_()
    clip = "model.vision_embed_tokens.img_processor."
    weights = {
        name.replace(clip, clip + "vision_model."): tensor.clone().contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    write_json(path / "config.json", **published)
    write_json(
        path / "preprocessor_config.json",
        num_crops=4,
        num_img_tokens=144,
        image_mean=NORMALISE["image_mean"],
        image_std=NORMALISE["image_std"],
        image_processor_type="Phi3VImageProcessor",
        processor_class="Phi3VProcessor",
        auto_map={"AutoImageProcessor": "processing_phi3_v.Phi3VImageProcessor"},
    )
    tokenizer.chat_template = PHI_TEMPLATE
    tokenizer.save_pretrained(path)
    return model


def write_nv_embed(path: Path, seed: int = 0, width: int = 64, **changes) -> dict:
    """NV-Embed-v2 in the published layout: names, shapes, shards, and a `config.json` of 4.42; returns its weights.

    `changes` are weights to replace, by name with `.` written as `__`; None leaves the weight out.
    """
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_for("llava_next")
    tokenizer.save_pretrained(path)
    latents, heads, head_width, latent_width = 5, 2, 24, 40

    shapes = {"embedding_model.embed_tokens.weight": (len(tokenizer), width), "embedding_model.norm.weight": (width,)}
    for number in range(2):
        layer = f"embedding_model.layers.{number}"
        for name, shape in (
            ("self_attn.q_proj", (width, width)),
            ("self_attn.k_proj", (width // 2, width)),
            ("self_attn.v_proj", (width // 2, width)),
            ("self_attn.o_proj", (width, width)),
            ("mlp.gate_proj", (2 * width, width)),
            ("mlp.up_proj", (2 * width, width)),
            ("mlp.down_proj", (width, 2 * width)),
            ("input_layernorm", (width,)),
            ("post_attention_layernorm", (width,)),
        ):
            shapes[f"{layer}.{name}.weight"] = shape
    attention, feed_forward = (f"latent_attention_model.cross_attend_blocks.{number}" for number in range(2))
    shapes["latent_attention_model.latents"] = (latents, latent_width)
    shapes[f"{attention}.fn.to_q.weight"] = (heads * head_width, width)
    shapes[f"{attention}.fn.to_kv.weight"] = (2 * heads * head_width, latent_width)
    shapes[f"{attention}.fn.to_out.weight"] = (width, heads * head_width)
    for name, size in ((f"{attention}.norm", width), (f"{attention}.norm_context", latent_width)):
        shapes |= {f"{name}.weight": (size,), f"{name}.bias": (size,)}
    shapes |= {f"{feed_forward}.norm.weight": (width,), f"{feed_forward}.norm.bias": (width,)}
    shapes |= {
        f"{feed_forward}.fn.net.0.weight": (width * 4 * 2, width),
        f"{feed_forward}.fn.net.0.bias": (width * 8,),
    }
    shapes |= {f"{feed_forward}.fn.net.2.weight": (width, width * 4), f"{feed_forward}.fn.net.2.bias": (width,)}

    random = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        weights[name] = torch.randn(shape, generator=random) * 0.3 + ("norm" in name and name.endswith("weight"))
    for name, tensor in changes.items():
        weights[name.replace("__", ".")] = tensor
    weights = {name: tensor for name, tensor in weights.items() if tensor is not None}

    # two shards and their index
    names = sorted(weights)
    files = {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name].clone() for name in part}, path / file, metadata={"format": "pt"})
        files |= dict.fromkeys(part, file)
    write_json(path / "model.safetensors.index.json", metadata={}, weight_map=files)

    text = {
        "_name_or_path": "nvidia/NV-Embed-v2",
        "architectures": ["MistralModel"],
        "model_type": "bidirectional_mistral",
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "sliding_window": 4,  # of the causal model it was made from
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
        "tie_word_embeddings": False,
        "use_cache": True,
        "torch_dtype": "float32",
        "add_cross_attention": False,
        "early_stopping": False,
        "temperature": 1.0,
        "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    }
    write_json(
        path / "config.json",
        architectures=["NVEmbedModel"],
        auto_map={"AutoConfig": "configuration_nvembed.NVEmbedConfig", "AutoModel": "modeling_nvembed.NVEmbedModel"},
        model_type="nvembed",
        add_eos=True,
        add_pad_token=True,
        is_mask_instruction=True,
        mask_type="b",
        padding_side="right",
        hidden_size=width,
        text_config=text,
        latent_attention_config={
            "model_type": "latent_attention",
            "num_latents_value": latents,
            "num_cross_heads": heads,
            "hidden_dim": width,
            "latent_dim": latent_width,
            "cross_dim_head": head_width,
        },
        torch_dtype="float32",
        transformers_version="4.42.4",
    )
    return weights
