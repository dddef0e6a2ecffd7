"""The small files by which sentence-transformers and inference servers know how an exported checkpoint is meant."""

import json
import warnings
from pathlib import Path

from PIL import Image

from ..images_unime import Resolution
from ..items_unime import judge_messages
from ..modeling_unime import UniMEModel
from ..prompts_unime import PRESETS

_TEXT = ("\x02query\x02", "\x02candidate\x02")  # stand for the texts while a prompt is turned into a template
_CLASSES = "sentence_transformers."
_TRANSFORMER = ("", f"{_CLASSES}base.modules.transformer.Transformer")


def write_exports(model, out: Path):
    """Writes its prompts as chat templates (`templates/`) and sentence-transformers' files beside a stock checkpoint.

    `templates/query.jinja` and `templates/document.jinja` render what `encode_query` and `encode_document` feed the
    model, `templates/judge.jinja` what a reranker's `score` does; a server takes one with `--chat-template`.
    """
    (out / "templates").mkdir(exist_ok=True)
    if isinstance(model, UniMEModel):
        templates = {role: preset_template(model.processor, role) for role in ("query", "document")}
        _write_embedder(model, templates["query"], out)
    else:
        templates = {"judge": judge_template(model.processor)}
        _write_reranker(model, templates["judge"], out)
    for name, template in templates.items():
        (out / "templates" / f"{name}.jinja").write_text(template, encoding="utf-8")


def _untold(model) -> list[str]:
    """What sets an embedder's vectors apart from those of its exported checkpoint with its template."""
    processor, preset = model.processor, PRESETS[model.processor.preset]
    found = {
        "flat positions": model.config.positions != "native",
        "the sum of two embeddings": processor.fusion == "sum",
        f"the resolution {processor.resolution}": Resolution.parse(processor.resolution) != Resolution(),
        "legacy tile padding": processor.anyres_padding == "legacy",
        "prompts that differ by role": preset.query != preset.document,
        "a backbone it does not know": model.config.vlm_config.model_type == "phi3_v",
    }
    return [reason for reason, holds in found.items() if holds]


def _write_embedder(model, template: str, out: Path):
    if reasons := _untold(model):
        warnings.warn(
            f"sentence-transformers cannot be told all of the preset {model.processor.preset!r} "
            f"({', '.join(reasons)}): its files are left out.",
            stacklevel=4,
        )
        return
    modules = [_TRANSFORMER, ("1_Pooling", f"{_CLASSES}sentence_transformer.modules.pooling.Pooling")]
    if model.config.normalize:
        modules.append(("2_Normalize", f"{_CLASSES}sentence_transformer.modules.normalize.Normalize"))
    pooling = {"embedding_dimension": model.config.hidden_size, "pooling_mode": "lasttoken", "include_prompt": True}
    _write_modules(out, modules, "feature-extraction", "last_hidden_state", "token_embeddings", template)
    write_json(out / "1_Pooling" / "config.json", pooling)
    settings = {"similarity_fn_name": "cosine", "model_type": "SentenceTransformer"}
    write_json(out / "config_sentence_transformers.json", settings)


def _write_reranker(model, template: str, out: Path):
    policy = Resolution.parse(model.processor.resolution)
    if policy != Resolution() or model.config.vlm_config.model_type == "phi3_v":
        warnings.warn(
            f"sentence-transformers cannot be told the resolution {model.processor.resolution} or this backbone: its "
            "files are left out.",
            stacklevel=4,
        )
        return
    yes, no = model.yes_no_tokens
    modules = [_TRANSFORMER, ("1_LogitScore", f"{_CLASSES}cross_encoder.modules.logit_score.LogitScore")]
    _write_modules(out, modules, "any-to-any", "logits", "causal_logits", template)
    score = {"true_token_id": yes, "false_token_id": no, "module_input_name": "causal_logits"}
    write_json(out / "1_LogitScore" / "config.json", score)
    settings = {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.activation.Sigmoid"}
    write_json(out / "config_sentence_transformers.json", settings)


def _write_modules(out: Path, modules, task: str, output: str, name: str, template: str):
    entries = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(modules)]
    write_json(out / "modules.json", entries)
    for path, _ in modules[1:]:
        (out / path).mkdir(exist_ok=True)
    method = {"method": "forward", "method_output_name": output}
    kinds = dict.fromkeys(("text", "image", "image+text"), method)
    settings = {
        "transformer_task": task,
        "modality_config": {**kinds, "message": {**method, "format": "structured"}},
        "module_output_name": name,
        "processing_kwargs": {"chat_template": {"add_generation_prompt": True, "chat_template": template}},
    }
    write_json(out / "sentence_bert_config.json", settings)


def write_json(path: Path, content):
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def preset_template(processor, role: str = "query") -> str:
    """A chat template that renders a conversation, whoever speaks in it, as the preset words one item.

    The item is a text, an image, or both; more than one image is an error of the template.
    """
    preset, cases = PRESETS[processor.preset], []
    for kind, item in _samples(0).items():
        value = "item.text"
        if preset.strip and kind == "both":
            value = "item.text | trim"
        elif "{text}\n" in getattr(getattr(preset, role), kind):  # a break that the text has already is not doubled
            value = "item.text[:-1] if item.text.endswith('\\n') else item.text"
        cases.append((_is("item", kind), _expression(processor, processor.render(item, role=role)[0], [value])))
    return _gather("item", "messages") + _choose(cases)


def judge_template(processor) -> str:
    """A chat template that renders messages of the roles `query` and `document` as the judge's question about them."""
    cases = []
    for kind, query in _samples(0).items():
        for other, candidate in _samples(1).items():
            if "image" in query and "image" in candidate and not processor.takes_several_images:
                continue
            prompt, _ = processor.render(judge_messages(query, [candidate]))
            condition = f"{_is('query', kind)} and {_is('document', other)}"
            cases.append((condition, _expression(processor, prompt, ["query.text", "document.text"])))
    roles = [_gather(role, f"messages if message['role'] == '{role}'") for role in ("query", "document")]
    return "".join(roles) + _choose(cases)


def _samples(number: int) -> dict:
    """An item of each kind whose text is a mark."""
    text, image = _TEXT[number], Image.new("RGB", (64, 64))
    return {"text": {"text": text}, "image": {"image": image}, "both": {"text": text, "image": image}}


def _is(name: str, kind: str) -> str:
    """Whether what was gathered under a name is of a kind."""
    has_text, has_image = f"{name}.text | trim", f"{name}.images"
    return {
        "text": f"not {has_image}",
        "image": f"({has_image} and not ({has_text}))",
        "both": f"({has_image} and ({has_text}))",
    }[kind]


def _expression(processor, prompt: str, values: list[str]) -> str:
    """The prompt as a Jinja expression, beginning with what the tokenizer puts before every text."""
    bos = processor.tokenizer.bos_token or ""
    if (
        bos
        and not prompt.startswith(bos)
        and processor.tokenizer("a")["input_ids"][0] == processor.tokenizer.bos_token_id
    ):
        prompt = bos + prompt
    literal = json.dumps(prompt, ensure_ascii=False)
    for mark, value in zip(_TEXT, values):
        literal = literal.replace(json.dumps(mark)[1:-1], f'" ~ ({value}) ~ "')
    return literal


def _gather(name: str, messages: str) -> str:
    """Puts the texts and the number of images of some messages under a name."""
    return (
        f"{{%- set {name} = namespace(text='', images=0) -%}}{{%- for message in {messages} -%}}"
        f"{{%- if message['content'] is string -%}}{{%- set {name}.text = {name}.text ~ message['content'] -%}}"
        "{%- else -%}{%- for part in message['content'] -%}{%- if part['type'] == 'text' -%}"
        f"{{%- set {name}.text = {name}.text ~ part['text'] -%}}"
        "{%- elif part['type'] in ('image', 'image_url') -%}"
        f"{{%- set {name}.images = {name}.images + 1 -%}}"
        "{%- else -%}{{- raise_exception('an item has a text, an image, or both') -}}"
        "{%- endif -%}{%- endfor -%}{%- endif -%}{%- endfor -%}"
        f"{{%- if '<image>' in {name}.text or '<|image_' in {name}.text -%}}"
        "{{- raise_exception('a text does not place its image by itself here') -}}{%- endif -%}"
        f"{{%- if {name}.images > 1 -%}}{{{{- raise_exception('an item has at most one image') -}}}}{{%- endif -%}}"
    )


def _choose(cases: list[tuple[str, str]]) -> str:
    conditions = [
        f"{{%- {'elif' if i else 'if'} {condition} -%}}{{{{- {text} -}}}}" for i, (condition, text) in enumerate(cases)
    ]
    refused = "{{- raise_exception('this model takes one image at a time') -}}"
    return f"{''.join(conditions)}{{%- else -%}}{refused}{{%- endif -%}}"
