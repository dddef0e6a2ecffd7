"""How a sentence-transformers repository reads items, as a preset: what its files say."""

import json
import re

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from .integrity_unime import SavedFiles
from .preset_unime import RAW, Instruction, Preset, Prompts, same

_MODULES = ("Transformer", "Pooling", "Normalize")  # of sentence-transformers; any other computes something else
_POOLINGS = {"lasttoken": "last", "mean": "mean"}
_IMAGE = re.compile(r"(<\|vision_start\|>)?(<\|image_pad\|>|<image>)(?(1)<\|vision_end\|>)")
_SYSTEM, _TEXT = "\x02system\x02", "\x02text\x02"  # these stand for a prompt and a text while a template is read


class Unreadable(ValueError):
    """The files do not say all of how items are read, or say what no preset can."""


def sentence_preset(files: SavedFiles) -> Preset:
    """The preset that the files of a sentence-transformers repository describe.

    Args:
        files ([`SavedFiles`]): with `modules.json`.

    Returns:
        [`Preset`], named `"sentence-transformers"`.

    Raises:
        Unreadable: something in them has no place in a preset, or is missing.
    """
    pooling = _pooling(files)
    settings = files.json("config_sentence_transformers.json") or {}
    module = files.json("sentence_bert_config.json") or {}
    chat = _chat_options(files, module)

    prompts = settings.get("prompts") or {}
    default = prompts.get(settings.get("default_prompt_name") or "", "")
    by_role = {role: prompts.get(role) or default for role in ("query", "document")}

    words = _framed(chat, by_role) or _whole(chat, by_role)
    limit = module.get("max_seq_length")
    values = {**vars(words), "name": "sentence-transformers", "pooling": pooling}
    if limit:
        values["max_length"] = limit
    return Preset(**values)


def _pooling(files: SavedFiles) -> str:
    """The pooling of a preset, if the modules are those of a preset."""
    with open(files.file("modules.json"), encoding="utf-8") as file:
        modules = json.load(file)

    kinds = []
    for module in modules:
        kinds.append(module["type"].rpartition(".")[2])
        if not module["type"].startswith("sentence_transformers.") or kinds[-1] not in _MODULES:
            raise Unreadable(f"modules.json names {module['type']}, which is not one of {', '.join(_MODULES)}.")
    if kinds[:2] != ["Transformer", "Pooling"] or modules[0]["path"]:
        raise Unreadable(f"modules.json names {', '.join(kinds)}, and not a transformer and its pooling.")

    # lengths of vectors do not change cosine similarities
    settings = files.json("config_sentence_transformers.json") or {}
    similarity = settings.get("similarity_fn_name") or "cosine"
    if "Normalize" not in kinds and similarity != "cosine":
        raise Unreadable(f"its embeddings are not normalised, and are compared by {similarity}.")

    config = files.json(f"{modules[1]['path']}/config.json") or {}
    mode = config.get("pooling_mode")
    if mode is None:  # earlier versions had a flag for each
        flags = [key for key, value in config.items() if value is True and key.startswith("pooling_mode_")]
        mode = ", ".join(flags).removeprefix("pooling_mode_").removesuffix("_tokens")
    if mode not in _POOLINGS or not config.get("include_prompt", True):
        raise Unreadable(f"1_Pooling/config.json pools by {mode!r}, which no preset does.")
    return _POOLINGS[mode]


def _chat_options(files: SavedFiles, module: dict) -> dict:
    """What is needed to render a conversation: `template`, `generate`, and the tokenizer's `tokens` by name."""
    options = module.get("processing_kwargs") or {}
    others = sorted(options.keys() - {"chat_template"})
    if others:
        raise Unreadable(f"sentence_bert_config.json sets processing_kwargs of {', '.join(others)}.")
    chat = options.get("chat_template") or {}

    modalities = module.get("modality_config")
    if modalities is not None and "message" not in modalities:
        raise Unreadable("sentence_bert_config.json feeds no chat messages, so nothing says how images are worded.")
    if modalities is not None and modalities["message"].get("format", "structured") == "flat":
        raise Unreadable("sentence_bert_config.json feeds messages that are texts alone.")

    tokenizer = files.json("tokenizer_config.json") or {}
    template = chat.get("chat_template") or _saved_template(files) or tokenizer.get("chat_template")
    if not isinstance(template, str):
        raise Unreadable("there is no chat template.")

    tokens = {}
    for name, value in tokenizer.items():
        if name.endswith("_token") and value:
            tokens[name] = value["content"] if isinstance(value, dict) else value
    return {"template": template, "generate": bool(chat.get("add_generation_prompt")), "tokens": tokens}


def _saved_template(files: SavedFiles) -> str | None:
    """The chat template that lies in a file of its own."""
    path = files.file("chat_template.jinja")
    if path is not None:
        with open(path, encoding="utf-8") as file:
            return file.read()
    return (files.json("chat_template.json") or {}).get("chat_template")


def _framed(chat: dict, by_role: dict[str, str]) -> Preset | None:
    """A preset whose instruction is the system turn; `None` where the template has no such frame, or roles differ."""
    if by_role["query"] != by_role["document"]:
        return None
    try:
        frame = _render(chat, _SYSTEM, "text")
    except jinja2.TemplateError:
        return None
    if frame.count(_SYSTEM) != 1 or frame.count(_TEXT) != 1:
        return None
    before, after = frame.split(_TEXT)

    turns = {}
    for kind in Prompts._fields[:3]:
        whole = _render(chat, _SYSTEM, kind)
        if not (whole.startswith(before) and whole.endswith(after)):
            return None
        turns[kind] = whole[len(before) : len(whole) - len(after)]

    # without a prompt, the template may have a system turn of its own, or none
    default = by_role["query"]
    if not default:
        alone = _render(chat, None, "text")
        start, end = frame.split(_SYSTEM)
        if not (alone.startswith(start) and alone.endswith(end)):
            return None
        default = alone[len(start) : len(alone) - len(end)]

    fenced, turns = _with_marks(turns)
    frame = before.replace(_SYSTEM, "{system}") + "{user}" + after
    return same(Prompts(**turns), frame=frame, fenced=fenced, instruction=Instruction("system", default=default))


def _whole(chat: dict, by_role: dict[str, str]) -> Preset:
    """A preset that has the whole prompt of each role and kind of item, with no place for an instruction."""
    prompts = {}
    fences = set()
    for role, prompt in by_role.items():
        wholes = {}
        for kind in Prompts._fields[:3]:
            try:
                wholes[kind] = _render(chat, prompt or None, kind)
            except jinja2.TemplateError as error:
                raise Unreadable(f"its chat template renders no item of {kind}: {error}") from error
        fenced, wholes = _with_marks(wholes)
        fences.add(fenced)
        prompts[role] = Prompts(**wholes)
    return Preset(**prompts, frame=RAW, fenced=fences.pop(), instruction=Instruction("none"))


def _render(chat: dict, system: str | None, kind: str) -> str:
    """A conversation of one item as the template renders it, without the token that the tokenizer puts before it."""
    content = []
    if kind != "text":
        content.append({"type": "image"})
    if kind != "image":
        content.append({"type": "text", "text": _TEXT})
    messages = [{"role": "user", "content": content}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})

    rendered, _ = render_jinja_template(
        [messages], chat_template=chat["template"], add_generation_prompt=chat["generate"], **chat["tokens"]
    )
    beginning = chat["tokens"].get("bos_token")
    if beginning and not rendered[0].startswith(beginning):
        raise Unreadable(f"its chat template leaves out {beginning}, which the tokenizer adds.")
    return rendered[0].removeprefix(beginning or "")


def _with_marks(turns: dict[str, str]) -> tuple[bool, dict[str, str]]:
    """Whether images stand between markers, and the turns with `{text}` and `{image}` in the place of samples."""
    marked = {}
    fences = set()
    for kind, turn in turns.items():
        images = list(_IMAGE.finditer(turn))
        if len(images) != (kind != "text"):
            raise Unreadable(f"its chat template places images in a way that is not known: {turn!r}.")
        fences |= {match[1] is not None for match in images}
        marked[kind] = _IMAGE.sub("{image}", turn).replace(_TEXT, "{text}")
    return fences == {True}, marked


__all__ = ["Unreadable", "sentence_preset"]
