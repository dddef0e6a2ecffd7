"""LoRA, DoRA and QLoRA: which layers get an adapter, and how a model is put into one."""

from collections.abc import Sequence

from transformers import set_seed

from ..jobs.estimates import component_of
from ..vlm_unime import vision_parameters

COMPONENTS = ("language_model", "vision_tower", "projector")


def find_targets(
    model, names: list[str] | str | None = None, components: Sequence[str] = ("language_model",)
) -> list[str]:
    """The paths of the layers that get an adapter.

    Args:
        model: an embedder or reranker.
        names (`list[str]`, *optional*): last parts of the layers' paths, such as `"q_proj"`; by default, and for
            `"all-linear"`, all linear layers.
        components (`list[str]`): among `"language_model"`, `"vision_tower"` and `"projector"`.

    Returns:
        `list[str]`: in the order of the components, and of the model within each.

    Raises:
        ValueError: a component is unknown or has no such layer, or a name matches no layer of these components.

    Example:

    ```python
    config = LoraConfig(r=16, target_modules=find_targets(model, ["q_proj", "v_proj"]))
    ```
    """
    unknown = set(components) - set(COMPONENTS)
    if unknown or not components:
        raise ValueError(f"lora_components must be among {COMPONENTS}, got {list(components)}.")
    layers = _linear_layers(model)

    if names in (None, "all-linear", ["all-linear"]):
        names = None
    elif isinstance(names, str):
        names = [names]

    # a name may have no layer in some of the components, but must have one in another
    if names is not None:
        available = set()
        for component in components:
            available |= _layer_names(layers[component])
        missing = sorted(set(names) - available)
        if missing:
            raise ValueError(
                f"lora_target_modules {missing} match no linear layer of {list(components)}; there are "
                f"{sorted(available)}."
            )

    targets = []
    for component in components:
        paths = layers[component]
        matches = [path for path in paths if names is None or _layer_name(path) in names]
        if not matches:
            raise ValueError(
                f"no linear layer of the {component} gets an adapter; it has {sorted(_layer_names(paths))}."
            )
        targets.extend(matches)
    return targets


def _linear_layers(model) -> dict[str, list[str]]:
    """The paths of the linear layers of each component, without the output head."""
    vlm = vlm_of(model)
    vision_ids = {id(parameter) for parameter in vision_parameters(vlm)}
    head = None
    if hasattr(vlm, "get_output_embeddings"):
        head = vlm.get_output_embeddings()

    layers = {component: [] for component in COMPONENTS}
    for path, module in model.named_modules():
        # quantised layers are not `nn.Linear`, but have its attributes
        if not hasattr(module, "in_features") or module is head:
            continue

        component = component_of(path, is_language=id(module.weight) not in vision_ids)
        layers[component].append(path)
    return layers


def _layer_name(path: str) -> str:
    """The last part of a path: `"q_proj"` of `"layers.0.self_attn.q_proj"`."""
    return path.rpartition(".")[2]


def _layer_names(paths: list[str]) -> set[str]:
    return {_layer_name(path) for path in paths}


def adapted(model, peft_config, seed: int):
    """The model in an adapter, whose random start belongs to the seed; the model itself without a configuration.

    The adapter notes what the model came from, so that it can be opened by its own path. Over quantised weights
    (QLoRA), PEFT's preparation puts everything that is not quantised into float32.

    Args:
        model: an embedder or reranker.
        peft_config (`peft.PeftConfig`, *optional*): of the adapter.
        seed (`int`): set before the adapter's weights are drawn.
    """
    if peft_config is None:
        return model
    from peft import get_peft_model, prepare_model_for_kbit_training

    if getattr(model, "is_quantized", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)

    set_seed(seed)
    source = model.source  # of the model itself, which the adapter is about to wrap
    model = get_peft_model(model, peft_config)

    # PEFT itself only knows the names of stock models
    peft_config.base_model_name_or_path = source and str(source)  # no string "None"
    return model


def without_adapter(model):
    """The embedder or reranker inside an adapter, or itself."""
    if hasattr(model, "get_base_model"):
        return model.get_base_model()
    return model


def vlm_of(model):
    """The VLM inside an embedder or reranker, which may be wrapped in an adapter."""
    return without_adapter(model).vlm
