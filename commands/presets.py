"""The presets: a list with the checkpoints that were trained with each, or one of them as items will be fed."""

import json

from PIL import Image

from ..checkpoints.opening import open_processor
from ..images_unime import Media
from ..preset_files_unime import preset_content
from ..preset_unime import Preset
from ..prompts_unime import CHECKPOINTS, PRESETS, resolve_preset, rules_of
from ..rendering_unime import PromptRenderer
from .errors import one_line_errors
from .parsers.presets import read

_QUERY, _TEXT = "{query}", "{text}"
_KINDS = {"text": ["text"], "image": ["image"], "both": ["image", "text"]}


class _Sketch(PromptRenderer):
    """Words items without a checkpoint: an image is `{image}`, and a chat template is shown as turns.

    Args:
        rules ([`Preset`]): the preset.
        name (`str`): its name.
    """

    image_token = _fenced_image = "{image}"
    takes_several_images = True
    benchmarks = ()
    instructions = None

    def __init__(self, rules: Preset, name: str):
        self.rules = rules
        self.preset = name
        self.num_frames = rules.num_frames

    @property
    def media(self) -> Media:
        """Frames of videos are images, as nothing is known of a backbone's tokens."""
        return Media(self.num_frames)

    @property
    def controls(self):
        """Nothing is tokenised, so that nothing need be guarded."""
        return self

    @staticmethod
    def guard(text: str, places_image: bool = False) -> str:
        """The text itself."""
        return text

    @staticmethod
    def _first_tokens(text: str, count: int) -> str:
        """The whole text, of which nothing is cut."""
        return text

    def _template(self, messages, add_generation_prompt: bool = True, image: str | None = None) -> str:
        turns = []
        for message in messages:
            content = "".join(entry.get("text", "{image}") for entry in message["content"])
            turns.append(f"[{message['role']}] {content}\n")
        return "".join(turns) + "[assistant] "


def rows() -> list[dict]:
    """All presets, each with its backbones and its checkpoints."""
    entries = []
    for name, preset in PRESETS.items():
        checkpoints = [repository for repository, checkpoint in CHECKPOINTS.items() if checkpoint.preset == name]
        entries.append({"preset": name, "backbones": list(preset.model_types), "checkpoints": checkpoints})
    return entries


def prompts_of(preset, model=None, trust_remote_code: bool = False) -> dict[str, str | None]:
    """What is fed for an item of each role and kind.

    Args:
        preset (`str`, path or [`Preset`]): the preset.
        model (`str` or `Path`, *optional*): a checkpoint, whose chat template and image tokens are shown.
        trust_remote_code (`bool`, defaults to `False`): run the code of its repository.

    Returns:
        `dict`: `"query, text"` -> the prompt; `None` where the preset has no prompt for such items.

    Raises:
        ValueError: the preset is unknown, or not for the checkpoint.
    """
    rules, renderer = _renderer(preset, model, trust_remote_code)
    sample = {"text": _TEXT, "image": Image.new("RGB", (56, 56))}
    prompts = {}
    for role in ("query", "document"):
        for kind, parts in _KINDS.items():
            if getattr(getattr(rules, role), kind) is None:
                prompts[f"{role}, {kind}"] = None
                continue

            prompts[f"{role}, {kind}"], _ = renderer.render({part: sample[part] for part in parts}, role=role)
    return prompts


def _renderer(preset, model, trust_remote_code: bool):
    """What a preset says, and what words items by it: a checkpoint's processor, or a sketch of one."""
    preset = resolve_preset(preset)
    rules = rules_of(preset)
    if model is None:
        return rules, _Sketch(rules, preset if isinstance(preset, str) else preset.name)

    processor, _ = open_processor(model, preset, trust_remote_code=trust_remote_code)
    return rules, processor


def questions_of(preset, model=None, trust_remote_code: bool = False) -> dict[str, str | None]:
    """What a reranker's preset asks about a candidate of each kind, for a query that is a text.

    Args:
        preset, model, trust_remote_code: as in [`prompts_of`].

    Returns:
        `dict`: `"candidate, text"` -> the prompt; `None` where the authors never ask about such candidates.
    """
    rules, renderer = _renderer(preset, model, trust_remote_code)
    sample = {"text": _TEXT, "image": Image.new("RGB", (56, 56))}
    prompts = {}
    for kind, parts in _KINDS.items():
        prompts[f"candidate, {kind}"] = None
        if getattr(rules.judging.document, kind) is None:
            continue

        # some are asked about lists alone, of which two candidates show the form
        candidate = {part: sample[part] for part in parts}
        if rules.judging.turn is None and not rules.judging.by_roles:
            question = renderer.list_question(_QUERY, [candidate] * 2, ["candidate 0", "candidate 1"])
        else:
            question = renderer.question(_QUERY, candidate)
        prompts[f"candidate, {kind}"], _ = renderer.render(question)
    return prompts


def _list(as_json: bool):
    """Prints all presets."""
    entries = rows()
    if as_json:
        print(json.dumps(entries))
        return
    for entry in entries:
        print(f"{entry['preset']}  ({', '.join(entry['backbones']) or 'any backbone'})")
        for repository in entry["checkpoints"]:
            print(f"    {repository}{_license_note(repository)}")


def _license_note(repository: str) -> str:
    """The license of a checkpoint, as far as it is known."""
    return f"  {CHECKPOINTS[repository].license or 'license unknown'}"


def _show(preset, model, trust_remote_code: bool, as_json: bool):
    """Prints one preset."""
    preset = resolve_preset(preset)
    prompts = prompts_of(preset, model, trust_remote_code)
    questions = {}
    if rules_of(preset).judging is not None:
        questions = questions_of(preset, model, trust_remote_code)

    # prompts are shown as they are fed, not as they are stored
    settings = preset_content(rules_of(preset))
    for name in ("query", "document"):
        del settings[name]
    if as_json:
        print(json.dumps({"settings": settings, "prompts": prompts, "questions": questions}))
        return

    for name, value in settings.items():
        print(f"{name}: {json.dumps(value, ensure_ascii=False)}")

    # a reranker's items are fed in its questions
    for title, question in questions.items():
        _print_prompt(title, question, "(refused: its authors ask about no such candidate)")
    if questions:
        return

    # where the authors have no prompt for an image with a text
    missing = "(refused: no such prompt)"
    if rules_of(preset).fusion == "sum":
        missing = "(the embeddings of the image and of the text are added up)"

    for (title, query), document in zip(list(prompts.items())[:3], list(prompts.values())[3:]):
        kind = title.partition(", ")[2]
        if query == document:
            _print_prompt(f"query and document, {kind}", query, missing)
        else:
            _print_prompt(title, query, missing)
            _print_prompt(f"document, {kind}", document, missing)


def _print_prompt(title: str, prompt: str | None, missing: str):
    """Prints one prompt, every line break marked, or what stands for one that the authors do not have."""
    shown = missing if prompt is None else prompt.replace("\n", "⏎\n")
    print(f"\n{title}\n{shown}")


def execute(options):
    """Does what the options of `unime presets` say."""
    with one_line_errors("unime presets"):
        if options.step:
            _show(options.preset, options.model, options.trust_remote_code, options.json)
        else:
            _list(options.json)


def main(arguments=None):
    """The command `unime presets`."""
    execute(read(arguments))


if __name__ == "__main__":
    main()
