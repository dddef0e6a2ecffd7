"""What a model costs: parameters by part, and estimates of memory and of arithmetic (docs/rehearsal.md)."""

from collections.abc import Sequence

from ..items_unime import PreparedItem
from ..vlm_unime import vision_parameters

PARTS = ("language_model", "vision_tower", "projector", "output_head")
# what the families call the module between vision tower and language model
_PROJECTORS = ("merger", "projector", "img_projection", "connector", "aligner")

ADAM_BYTES = 8  # two moments in float32
GRADIENT_BYTES = 4
NF4_BYTES = 0.5 + 4 / 64  # four bits, and a float32 scale for each block of 64
ACTIVATIONS = 34  # bytes a token, layer and unit of width in 16 bits, without the scores of attention
GIB = 2**30


def component_of(name: str, is_language: bool) -> str:
    """The component that a layer of a VLM belongs to.

    Args:
        name (`str`): the layer's path.
        is_language (`bool`): its weight is the language model's.
    """
    if is_language:
        return "language_model"
    return "projector" if any(word in name for word in _PROJECTORS) else "vision_tower"


def part_names(vlm) -> dict[str, str]:
    """The part of every parameter of a VLM, by the parameter's name.

    Args:
        vlm: inside an embedder or reranker; possibly with an adapter in it.
    """
    vision_ids = {id(parameter) for parameter in vision_parameters(vlm)}

    # the VLM of an embedder has none
    head = vlm.get_output_embeddings() if hasattr(vlm, "get_output_embeddings") else None
    head_ids = set()
    if head is not None:
        head_ids.update(map(id, head.parameters()))

    parts = {}
    for name, parameter in vlm.named_parameters():
        if id(parameter) in head_ids and id(parameter) in vision_ids:
            parts[name] = "output_head"
        else:
            parts[name] = component_of(name, is_language=id(parameter) not in vision_ids)
    return parts


def parameters(vlm) -> list[dict]:
    """Numbers of parameters by part: `part`, `parameters` without those of adapters, and `trained`.

    Args:
        vlm: inside an embedder or reranker; possibly with an adapter in it.
    """
    counts = {}
    for component in PARTS:
        counts[component] = {"part": component.replace("_", " "), "parameters": 0, "trained": 0}

    parts = part_names(vlm)
    for name, parameter in vlm.named_parameters():
        row = counts[parts[name]]
        if "lora_" not in name:
            row["parameters"] += parameter.numel()
        if parameter.requires_grad:
            row["trained"] += parameter.numel()

    # not every VLM has all of them
    return [row for row in counts.values() if row["parameters"]]


def _matrices(vlm) -> dict[str, int]:
    """Parameters of matrix products by part: all matrices but the table of token embeddings."""
    embedding = id(vlm.get_input_embeddings().weight)
    parts = part_names(vlm)
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in vlm.named_parameters():
        # a vector, such as a bias, is no matrix; in the table of embeddings a token is looked up, not multiplied
        if parameter.ndim > 1 and id(parameter) != embedding and "lora_" not in name:
            counts[parts[name]] += parameter.numel()
    return counts


def patches_per_token(processor) -> int:
    """How many patches of the vision tower become one token of the language model."""
    images = processor.image_processor
    if hasattr(images, "merge_size"):
        return images.merge_size**2

    # Phi-3-vision joins squares of 2 x 2 patches, and LLaVA joins none
    return 4 if processor._native.name == "Phi3VProcessor" else 1


def forward_flops(vlm, processor, prepared: Sequence[PreparedItem]) -> dict[str, float]:
    """Floating-point operations of one forward pass over some sequences: `"language"` and `"vision"`.

    A product with a matrix of P parameters takes 2 P operations a token or patch. Causal attention over a sequence of
    L tokens takes 2 L^2 width operations a layer. Attention between the patches of an image is left out.

    Args:
        vlm: inside an embedder or reranker.
        processor ([`~unime.processing_unime.UniMEProcessor`]): that prepared the sequences.
        prepared (`Sequence[PreparedItem]`): the sequences.
    """
    text = vlm.config.get_text_config()
    matrices = _matrices(vlm)

    # what grows with the length of a sequence, with its square, and with its images
    tokens = 0
    squares = 0
    patches = 0
    for entry in prepared:
        tokens += entry.length
        squares += entry.length**2
        patches += sum(entry.image_tokens) * patches_per_token(processor)

    # two operations for each weight and token; attention compares every pair of tokens
    language = 2 * matrices["language_model"] * tokens + 2 * text.num_hidden_layers * text.hidden_size * squares
    vision = 2 * (matrices["vision_tower"] + matrices["projector"]) * patches
    return {"language": float(language), "vision": float(vision)}


def weight_bytes(vlm, dtype: str | None, quantization: str | None) -> float:
    """Memory of the weights in bytes, those of adapters included.

    Args:
        vlm: inside an embedder or reranker; possibly with an adapter in it.
        dtype (`str`, *optional*): of the weights, such as `"bfloat16"`; float32 by default.
        quantization (`str`, *optional*): `"nf4"` or `"int8"`, of the language model's matrices; everything beside
            them is kept in float32.
    """
    total = sum(parameter.numel() for parameter in vlm.parameters())
    if quantization is None:
        return total * bytes_of(dtype)

    quantized = _matrices(vlm)["language_model"]
    quantized_bytes = NF4_BYTES if quantization == "nf4" else 1
    return quantized * quantized_bytes + (total - quantized) * 4


def bytes_of(dtype: str | None) -> int:
    """Bytes of a number; float32 where nothing is said."""
    return 2 if str(dtype) in ("bfloat16", "float16", "auto") else 4


def activation_bytes(vlm, tokens: int, half: bool, checkpointing: bool = False) -> float:
    """What the graph of a forward pass keeps of the language model, in bytes.

    Args:
        vlm: inside an embedder or reranker.
        tokens (`int`): padded tokens of the pass.
        half (`bool`): activations are in 16 bits.
        checkpointing (`bool`): only the inputs of layers are kept, and one layer is run again at a time.
    """
    text = vlm.config.get_text_config()
    unit = tokens * text.hidden_size * (1 if half else 2)
    if checkpointing:
        return unit * (2 * text.num_hidden_layers + ACTIVATIONS)
    return unit * ACTIVATIONS * text.num_hidden_layers


def gib(count: float) -> str:
    """Bytes as a person reads them."""
    return f"{count / GIB:,.2f} GiB"


def tera(count: float) -> str:
    """Operations as a person reads them."""
    return f"{count / 1e12:,.4g} TFLOP"
