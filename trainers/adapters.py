"""LoRA, DoRA and QLoRA: which layers get an adapter, and how a trained one is merged and kept."""

from transformers import set_seed

from ..vlm_unime import vision_parameters

COMPONENTS = ("language_model", "vision_tower", "projector")
# what the families call the part between vision tower and language model
_PROJECTORS = ("merger", "projector", "img_projection", "connector", "aligner")


def component_of(name: str, is_language: bool) -> str:
    """The component that a layer of a VLM belongs to, by its path."""
    if is_language:
        return "language_model"
    return "projector" if any(part in name for part in _PROJECTORS) else "vision_tower"


def find_targets(model, names: list[str] | str | None = None, components=("language_model",)) -> list[str]:
    """The paths of the layers that get an adapter.

    Args:
        model: an embedder or reranker.
        names (`list[str]`, *optional*): last parts of the layers' paths, such as `"q_proj"`; by default, and for
            `"all-linear"`, all linear layers.
        components (`list[str]`): among `"language_model"`, `"vision_tower"` and `"projector"`.

    Raises:
        ValueError: a component is unknown or has no such layer, or a name matches no layer of these components.
    """
    unknown = set(components) - set(COMPONENTS)
    if unknown or not components:
        raise ValueError(f"lora_components must be among {COMPONENTS}, got {list(components)}.")
    wanted = None if names in (None, "all-linear", ["all-linear"]) else [names] if isinstance(names, str) else names
    vlm = vlm_of(model)
    outside = {id(parameter) for parameter in vision_parameters(vlm)}
    head = vlm.get_output_embeddings() if hasattr(vlm, "get_output_embeddings") else None
    linear = {}  # component -> paths
    for path, module in model.named_modules():
        if hasattr(module, "in_features") and module is not head:
            component = component_of(path, id(module.weight) not in outside)
            linear.setdefault(component, []).append(path)
    found = [path for component in components for path in linear.get(component, [])]
    last = {path.rpartition(".")[2] for path in found}
    if wanted is not None:
        if missing := sorted(set(wanted) - last):
            raise ValueError(
                f"lora_target_modules {missing} match no linear layer of {list(components)}; there are {sorted(last)}."
            )
        found = [path for path in found if path.rpartition(".")[2] in wanted]
    for component in components:
        if not any(path in found for path in linear.get(component, [])):
            raise ValueError(
                f"no linear layer of the {component} gets an adapter; it has "
                f"{sorted({path.rpartition('.')[2] for path in linear.get(component, [])})}."
            )
    return found


def adapted(model, peft_config, seed: int):
    """The model in an adapter, whose random start belongs to the seed; the model itself without a configuration.

    The adapter notes what the model came from, so that it can be opened by its own path.

    Over quantised weights (QLoRA), PEFT's preparation puts everything that is not quantised into float32.
    """
    if peft_config is None:
        return model
    from peft import get_peft_model, prepare_model_for_kbit_training

    if getattr(model, "is_quantized", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    set_seed(seed)
    source = model.source
    model = get_peft_model(model, peft_config)
    peft_config.base_model_name_or_path = source and str(source)  # PEFT knows the names of stock models alone
    return model


def without_adapter(model):
    """The embedder or reranker inside an adapter, or itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def vlm_of(model):
    """The VLM inside an embedder or reranker, which may be wrapped in an adapter."""
    return without_adapter(model).vlm
