"""What mteb asks about our models, and about the released checkpoints of the papers."""

import mteb
from mteb.models.model_meta import ModelMeta, ScoringFunction

from ..modeling_unime import UniMEModel
from ..prompts_unime import CHECKPOINTS, PRESETS

_UNIME = (
    "@inproceedings{gu2025unime, title={Breaking the Modality Barrier: Universal Embedding Learning with Multimodal "
    "LLMs}, author={Gu, Tiancheng and others}, year={2025}, note={arXiv:2504.17432}}"
)
_UNIME_V2 = (
    "@inproceedings{gu2026unimev2, title={UniME-V2: MLLM-as-a-Judge for Universal Multimodal Embedding Learning}, "
    "author={Gu, Tiancheng and others}, year={2026}, note={arXiv:2510.13515}}"
)
_LISTED = "TianchengGu/UniME-V2-LLaVA-OneVision-8B"  # mteb knows this one itself

# repository: (backbone, width of the embedding, code, paper)
_RELEASED = {
    "DeepGlint-AI/UniME-Phi3.5-V-4.2B": ("microsoft/Phi-3.5-vision-instruct", 3072, "deepglint/UniME", _UNIME),
    "DeepGlint-AI/UniME-LLaVA-1.6-7B": ("llava-hf/llava-v1.6-mistral-7b-hf", 4096, "deepglint/UniME", _UNIME),
    "DeepGlint-AI/UniME-LLaVA-OneVision-7B": (
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        3584,
        "deepglint/UniME",
        _UNIME,
    ),
    "TianchengGu/UniME-V2-Qwen2VL-2B": ("Qwen/Qwen2-VL-2B-Instruct", 1536, "GaryGuTC/UniME-v2", _UNIME_V2),
    "TianchengGu/UniME-V2-Qwen2VL-7B": ("Qwen/Qwen2-VL-7B-Instruct", 3584, "GaryGuTC/UniME-v2", _UNIME_V2),
    _LISTED: ("llava-hf/llava-onevision-qwen2-7b-ov-hf", 3584, "GaryGuTC/UniME-v2", _UNIME_V2),
    "TianchengGu/UniME-V2-reranker-Qwen25VL-7B": (
        "Qwen/Qwen2.5-VL-7B-Instruct",
        None,
        "GaryGuTC/UniME-v2",
        _UNIME_V2,
    ),
}


class UniMEModelMeta(ModelMeta):
    """`ModelMeta` of a model that reads images with PIL and videos with PyAV."""

    def _resolve_extras_groups(self) -> list[str]:
        return []  # neither torchvision nor torchcodec


def model_meta(model, name: str, loader, revision: str | None = None, **facts) -> ModelMeta:
    """What mteb asks about a loaded model: its size, width, modalities.

    Args:
        model (`UniMEModel` or `UniMERerankerForCausalLM`).
        name (`str`): `"owner/name"`; a folder's is `"unime/<folder>"`.
        loader: what makes the wrapper again from `name` and `revision`.
        revision (`str`, *optional*): of the repository.
        facts: other fields of `ModelMeta`: `training_datasets`, `license`, `citation`, ...
    """
    fields = {
        "name": name,
        "revision": revision,
        "loader": loader,
        "modalities": _modalities(model.processor.takes_several_images),
        "n_parameters": model.num_parameters(),
        "max_tokens": model.processor.max_length,
        "memory_usage_mb": round(model.get_memory_footprint() / 2**20),
        "framework": ["PyTorch", "Transformers"],
        "use_instructions": True,
        "open_weights": True,
        **_kind_of_model(model.config.hidden_size if isinstance(model, UniMEModel) else None),
    }
    return UniMEModelMeta.create_empty(overwrites=fields | facts)


def released_metas(encoder, cross_encoder) -> list[ModelMeta]:
    """What mteb asks about the seven released checkpoints; `meta.load_model()` downloads one and wraps it.

    Args:
        encoder, cross_encoder: the classes that wrap an embedder and a reranker.
    """
    listed = mteb.get_model_meta(_LISTED)
    metas = []
    for name, (backbone, width, code, citation) in _RELEASED.items():
        preset = PRESETS[CHECKPOINTS[name].preset]
        fields = {
            "name": name,
            "revision": None,
            "release_date": None,
            "n_parameters": None,
            "n_embedding_parameters": None,
            "memory_usage_mb": None,
            "license": None,
        }
        if name == _LISTED:
            fields = {field: getattr(listed, field) for field in fields}

        fields |= {
            "loader": encoder if width else cross_encoder,
            "languages": ["eng-Latn"],
            "max_tokens": preset.max_length,
            "modalities": _modalities("llava_next" not in preset.model_types),
            "open_weights": True,
            "public_training_code": f"https://github.com/{code}",
            "public_training_data": listed.public_training_data,
            "framework": ["PyTorch", "Transformers", "safetensors"],
            "reference": f"https://huggingface.co/{name}",
            "use_instructions": True,
            "training_datasets": listed.training_datasets,  # all were trained on MMEB
            "adapted_from": backbone,
            "citation": citation,
            **_kind_of_model(width),
        }
        metas.append(UniMEModelMeta(**fields))
    return metas


def _modalities(takes_several_images: bool) -> list[str]:
    """Without them, mteb takes a model for a text model and drops images silently; a video is several images."""
    return ["text", "image", "video"] if takes_several_images else ["text", "image"]


def _kind_of_model(width: int | None) -> dict:
    """The fields by which mteb tells an embedder, which has a width, from a reranker."""
    if width is None:
        return {"embed_dim": None, "similarity_fn_name": None, "model_type": ["cross-encoder"]}
    return {"embed_dim": width, "similarity_fn_name": ScoringFunction.COSINE, "model_type": ["dense"]}
