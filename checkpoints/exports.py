"""The small files by which sentence-transformers and inference servers know how an exported checkpoint is meant."""

import json
import re
import warnings
from pathlib import Path

from PIL import Image

from ..files.writing import write_text
from ..images_unime import Resolution
from ..modeling_unime import UniMEModel
from ..recognition_unime import EXPORTED, INSTRUCTIONS

_MACROS = Path(__file__).with_name("chat_template.jinja")  # what all templates share

# These stand for the texts while a prompt is turned into a template.
_QUERY = "\x02query\x02"
_DOCUMENT = "\x02document\x02"

_CLASSES = "sentence_transformers."
_TRANSFORMER = ("", f"{_CLASSES}base.modules.transformer.Transformer")


def write_exports(model, out: Path):
    """Writes a model's chat templates (`templates/`), preset and sentence-transformers' files beside its checkpoint.

    `templates/query.jinja` and `templates/document.jinja` render what `encode_query` and `encode_document` feed the
    model, `templates/judge.jinja` what a reranker's `score` does; a server takes one with `--chat-template`.

    Args:
        model ([`UniMEModel`] or [`UniMERerankerForCausalLM`]): the model that was exported.
        out (`Path`): folder of the stock checkpoint.

    Warns:
        UserWarning: sentence-transformers cannot read items as this model does; its files are left out.
    """
    if isinstance(model, UniMEModel):
        templates = {
            "query": preset_template(model.processor, "query"),
            "document": preset_template(model.processor, "document"),
        }
        _write_embedder(model, out)
    elif model.gives_places:
        warnings.warn(
            f"no template words what the preset {model.processor.preset!r} asks about lists: the stock checkpoint is "
            "written alone.",
            stacklevel=3,
        )
        return
    else:
        templates = {"judge": judge_template(model.processor)}
        _write_reranker(model, templates["judge"], out)

    # the preset is kept for whoever reads the checkpoint here again
    write_json(out / EXPORTED, _preset_of(model.processor))
    (out / "templates").mkdir(exist_ok=True)
    for name, template in templates.items():
        write_text(out / "templates" / f"{name}.jinja", template)


def _preset_of(processor) -> dict:
    """How a processor reads items, for `from_backbone`: its preset, with the settings that stand beside it."""
    content = dict(processor.preset_rules or {"extends": processor.preset})
    for name in ("fusion", "resolution", "anyres_padding", "num_frames"):
        value = getattr(processor, name)
        if value != getattr(processor.rules, name):
            content[name] = value
    if processor.instructions:
        content[INSTRUCTIONS] = processor.instructions
    return content


def _write_embedder(model, out: Path):
    """The files of a `SentenceTransformer`, where it gives the same vectors.

    Where image and text are a sum, it embeds each of them alone, and refuses both.
    """
    differences = _differences(model)
    sums = model.processor.fusion == "sum"
    if differences:
        # alone a sum is no reason to leave the files out
        if sums:
            differences.insert(0, "the sum of two embeddings")
        warnings.warn(
            f"sentence-transformers cannot be told all of the preset {model.processor.preset!r} "
            f"({', '.join(differences)}): its files are left out.",
            stacklevel=4,
        )
        return

    modules = [_TRANSFORMER, ("1_Pooling", f"{_CLASSES}sentence_transformer.modules.pooling.Pooling")]
    if model.config.normalize:
        modules.append(("2_Normalize", f"{_CLASSES}sentence_transformer.modules.normalize.Normalize"))

    # one template for both, as they are prompted alike
    template = preset_template(model.processor, "query", joint=not sums)
    _write_modules(out, modules, "feature-extraction", "last_hidden_state", "token_embeddings", template)

    pooling = {"embedding_dimension": model.config.hidden_size, "pooling_mode": "lasttoken", "include_prompt": True}
    write_json(out / "1_Pooling" / "config.json", pooling)

    settings = {"similarity_fn_name": "cosine", "model_type": "SentenceTransformer"}
    write_json(out / "config_sentence_transformers.json", settings)


def _differences(model) -> list[str]:
    """Why an embedder's vectors are not those of its exported checkpoint with its template."""
    processor = model.processor
    preset = processor.rules
    differences = []

    # how tokens and images are placed
    if model.config.positions != "native":
        differences.append("flat positions")
    if Resolution.parse(processor.resolution) != Resolution():
        differences.append(f"the resolution {processor.resolution}")
    if processor.anyres_padding == "legacy":
        differences.append("legacy tile padding")
    if preset.image_tokens or preset.crops:
        differences.append("limits of images")
    if (model.config.pooling, model.config.attention) != ("last", "native"):
        differences.append("pooling or attention")

    # one template cannot tell a query from a document
    defaults = (processor.default_instruction("query"), processor.default_instruction("document"))
    if preset.query != preset.document or defaults[0] != defaults[1]:
        differences.append("prompts that differ by role")
    if model.config.vlm_config.model_type == "phi3_v":
        differences.append("a backbone it does not know")

    return differences


def _write_reranker(model, template: str, out: Path):
    """The files of a `CrossEncoder`, where it gives the same scores."""
    differences = _reranker_differences(model)
    if differences:
        warnings.warn(
            f"sentence-transformers cannot be told all of the preset {model.processor.preset!r} "
            f"({', '.join(differences)}): its files are left out.",
            stacklevel=4,
        )
        return

    modules = [_TRANSFORMER, ("1_LogitScore", f"{_CLASSES}cross_encoder.modules.logit_score.LogitScore")]
    _write_modules(out, modules, "any-to-any", "logits", "causal_logits", template)

    # all that vLLM reads
    yes, no = model.yes_no_tokens
    write_json(out / "1_LogitScore" / "config.json", {"true_token_id": yes, "false_token_id": no})
    activation = "linear.Identity" if model.default_output == "logit" else "activation.Sigmoid"
    settings = {"model_type": "CrossEncoder", "activation_fn": f"torch.nn.modules.{activation}"}
    write_json(out / "config_sentence_transformers.json", settings)


def _reranker_differences(model) -> list[str]:
    """Why a reranker's scores are not those of its exported checkpoint with its template."""
    processor = model.processor
    differences = []
    if Resolution.parse(processor.resolution) != Resolution():
        differences.append(f"the resolution {processor.resolution}")
    if processor.rules.image_tokens is not None:
        differences.append("limits of image tokens")

    # how a score is made of what the model says
    if model.repetition_penalty != 1.0:
        differences.append(f"a repetition penalty of {model.repetition_penalty}")
    if isinstance(processor.rules.appended, int):
        differences.append("an appended token")
    if model.config.vlm_config.model_type == "phi3_v":
        differences.append("a backbone it does not know")
    return differences


def _write_modules(out: Path, modules, task: str, output: str, name: str, template: str):
    """`modules.json`, the folders of the modules, and how the first of them reads messages and runs the model.

    Args:
        out (`Path`): folder of the checkpoint.
        modules (`list[tuple[str, str]]`): folder and class of each module.
        task (`str`): by which the first module chooses the model's class.
        output (`str`): which of the model's outputs is used.
        name (`str`): what the next module calls it.
        template (`str`): the chat template.
    """
    entries = []
    for number, (folder, class_path) in enumerate(modules):
        entries.append({"idx": number, "name": str(number), "path": folder, "type": class_path})
        (out / folder).mkdir(exist_ok=True)
    write_json(out / "modules.json", entries)

    # whatever an item is made of goes through the same forward
    method = {"method": "forward", "method_output_name": output}
    settings = {
        "transformer_task": task,
        "modality_config": {
            "text": method,
            "image": method,
            "image+text": method,
            "message": {**method, "format": "structured"},
        },
        "module_output_name": name,
        "processing_kwargs": {"chat_template": {"add_generation_prompt": True, "chat_template": template}},
    }
    write_json(out / "sentence_bert_config.json", settings)


def write_json(path: Path, content):
    """Writes JSON that people can read."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def preset_template(processor, role: str = "query", joint: bool = True) -> str:
    """A chat template that renders a conversation, whoever speaks in it, as the preset words one item.

    The item is a text, an image, or both. The template raises an error for more than one image, for other parts of a
    message, and for texts that place their image by themselves. A control token in a text is broken by a space.

    Args:
        processor ([`UniMEProcessor`]): whose preset it is.
        role (`str`, defaults to `"query"`): `"query"` or `"document"`.
        joint (`bool`, defaults to `True`): whether it renders an item of image and text, or raises an error for it.

    Returns:
        `str`: the content of one file, which needs no other.
    """
    preset = processor.rules
    prompts = {}
    for kind, item in _sample_items(_QUERY).items():
        if kind == "both" and not joint:  # a kind without a prompt is what the template refuses
            continue

        # a text is inserted as `UniMEProcessor.render` does it
        words = getattr(getattr(preset, role), kind)
        if words is None:
            continue
        if preset.strip:
            text = "trimmed_text"
        elif words.endswith("{text}\n"):  # a prompt that ends in a line break does not end in two
            text = "text_without_last_break"
        else:
            text = "text"

        prompt, _ = processor.render(item, role=role)
        prompts[kind] = _pieces(processor.tokenizer, prompt, {_QUERY: text})
    return _template(prompts, processor.controls.names, "item_prompt")


def judge_template(processor) -> str:
    """A chat template that renders messages of the roles `query` and `document` as the judge's question about them.

    Args:
        processor ([`UniMEProcessor`]): of a reranker.

    Returns:
        `str`: the content of one file, which needs no other.
    """
    judging = processor.rules.judging
    prompts = {}
    for query_kind, query in _sample_items(_QUERY).items():
        for document_kind, document in _sample_items(_DOCUMENT).items():
            # what the judge is never asked needs no words
            several_images = "image" in query and "image" in document
            if several_images and not processor.takes_several_images:
                continue
            if judging is not None and None in (_words(judging.query, query), _words(judging.document, document)):
                continue

            prompt, _ = processor.render(processor.question(query, document))
            inserts = {_QUERY: "query", _DOCUMENT: "document"}
            prompts[f"{query_kind}, {document_kind}"] = _pieces(processor.tokenizer, prompt, inserts)
    return _template(prompts, processor.controls.names, "judge_prompt")


def _words(prompts, item: dict) -> str | None:
    """What stands for an item in a question; `None` if the authors ask about no such item."""
    return prompts.of("text" in item, "image" in item)


def _sample_items(mark: str) -> dict[str, dict]:
    """An item of each kind whose text is a mark."""
    image = Image.new("RGB", (64, 64))
    return {"text": {"text": mark}, "image": {"image": image}, "both": {"text": mark, "image": image}}


def _pieces(tokenizer, prompt: str, inserts: dict[str, str]) -> list:
    """A prompt as the templates have it: strings, and the names of texts in the place of their marks."""
    # a server adds nothing to a rendered prompt, so that it begins with what the tokenizer puts before every text
    beginning = tokenizer.bos_token or ""
    if not prompt.startswith(beginning) and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id:
        prompt = beginning + prompt

    pieces = []
    for piece in re.split(f"({'|'.join(inserts)})", prompt):
        if piece in inserts:
            pieces.append({"insert": inserts[piece]})
        elif piece:
            pieces.append(piece)
    return pieces


def _template(prompts: dict[str, list], controls: list[str], macro: str) -> str:
    """A whole template: the prompts, the control tokens, the macros, and the call of one of them."""
    # a dict of strings and lists is the same in Jinja
    settings = ""
    for name, value in (("prompts", prompts), ("controls", controls)):
        settings += f"{{%- set {name} = {json.dumps(value, ensure_ascii=False, indent=2)} -%}}\n\n"
    macros = _MACROS.read_text(encoding="utf-8")
    return settings + macros + "\n{{- " + macro + "(messages, prompts) -}}\n"
