"""The model card that lies beside every saved model: what it is, how to use it, where it comes from, how it did."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import ModelCardData

from ..preset_files_unime import preset_from
from ..prompts_unime import PRESETS, Preset, Prompts, is_noncommercial, published_checkpoint, rules_of

_CITE = """@article{unime,
  title={Breaking the Modality Barrier: Universal Embedding Learning with Multimodal LLMs}, eprint={2504.17432},
  archivePrefix={arXiv}, year={2025}
}
@article{unimev2,
  title={UniME-V2: MLLM-as-a-Judge for Universal Multimodal Embedding Learning}, eprint={2510.13515},
  archivePrefix={arXiv}, year={2025}
}"""
_EMBED = """```python
from transformers import AutoModel

model = AutoModel.from_pretrained("{repo}", trust_remote_code=True)
queries = model.encode_query(["a red circle left of a blue star"])
images = model.encode_document([{{"image": "photo.png"}}, {{"image": "other.png", "text": "with words"}}])
print(queries @ images.T)
```

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{repo}", trust_remote_code=True)
print(model.similarity(model.encode_query(["a red circle"]), model.encode_document([{{"image": "photo.png"}}])))
```"""
_SERVE = """

For vLLM, export a stock checkpoint with the package `unime`, and ask whether the server gives this model's numbers:

```sh
unime export {repo} exported
vllm serve exported --runner pooling --chat-template exported/templates/query.jinja
unime serve-check http://localhost:8000 --model {repo}
```"""
_RERANK = """```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{repo}", trust_remote_code=True)
print(model.rank("a red circle left of a blue star", [{{"image": "photo.png"}}, {{"image": "other.png"}}]))
```

```python
from sentence_transformers import CrossEncoder

model = CrossEncoder("{repo}", trust_remote_code=True)
print(model.predict([("a red circle", {{"image": "photo.png"}}), ("a red circle", "a blue star")]))
```"""
_ADAPT = """With the package `unime`:

```sh
unime merge {repo} merged  # a whole model, from the adapter and what it was trained on
```"""


class _Kind(NamedTuple):
    """What a card tells of every model of a type: the Hub's pipeline tag, what it is, and code that uses it."""

    pipeline_tag: str
    description: str
    use: str


_KINDS = {
    "unime": _Kind("feature-extraction", "embedder: texts, images and both become vectors of one space", _EMBED),
    "unime_reranker": _Kind("text-ranking", "reranker: it judges and ranks texts and images for a query", _RERANK),
}
_LIMITS = (
    "It knows what its base model and its training data know, and shares their biases. Scores and similarities rank "
    "the candidates of one query; they are not calibrated probabilities. Last digits differ between kinds of hardware."
)
_THIS_REPOSITORY = "<this repository>"


@dataclass
class Card:
    """What a model card tells.

    Args:
        kind (`str`): model type, `"unime"` or `"unime_reranker"`.
        name (`str`): its title.
        base (`str`, *optional*): the model it was made from; a folder's name is kept, its path is not.
        preset (`str` or `Preset`, *optional*): its prompts; a preset itself where it is not in the table.
        fusion (`str`, *optional*): `"joint"` or `"sum"`, how it reads image and text; the preset's by default.
        resolution (*optional*): at which it reads images.
        instructions (`str` or `dict`, *optional*): default instructions, as the processor has them.
        adapter (`bool`, defaults to `False`): whether the repository has only an adapter.
        origin (`str`): a sentence on how it was made.
        training, evaluation (`str`): sections, in Markdown.
        license (`str`, *optional*): its identifier, as the Hub knows it: `"apache-2.0"`, `"mit"`, ...; by default that
            of a published checkpoint that it was made from.
        tags (`tuple[str]`): further tags.

    Example:

    ```python
    text = Card("unime", "my-embedder", base="Qwen/Qwen2-VL-2B-Instruct", license="mit").render("me/my-embedder")
    ```
    """

    kind: str
    name: str
    base: str | None = None
    preset: str | Preset | None = None
    fusion: str | None = None
    resolution: str | int = "native"
    instructions: str | dict | None = None
    adapter: bool = False
    origin: str = ""
    training: str = ""
    evaluation: str = ""
    license: str | None = None
    tags: tuple = ()

    def render(self, repo: str | None = None) -> str:
        """The whole file, with the Hub's metadata first.

        Args:
            repo (`str`, *optional*): `owner/name`, for the examples.

        Returns:
            `str`: Markdown.
        """
        description = _KINDS[self.kind].description
        base = self._base_in_words()
        sections = [
            f"# {self.name}",
            f"A multimodal {description}. Made from {base} with [UniME](https://arxiv.org/abs/2504.17432){self.origin}.",
            "## Use",
            self._use(repo or _THIS_REPOSITORY),
        ]

        # at another resolution than here, embeddings would differ
        if self.resolution != "native":
            sections.append(f"Images are read at the resolution `{self.resolution}`, kept in the repository.")
        if self.preset and self.kind == "unime":
            fusion = self.fusion or rules_of(self.preset).fusion
            sections += ["## Prompts", _prompts(self.preset, fusion)]
        sections += _default_instructions(self.instructions)

        # what was done, and what came of it
        if self.training:
            sections += ["## Training", self.training]
        if self.evaluation:
            sections += ["## Evaluation", self.evaluation]
        sections += ["## Limits", _LIMITS]

        # without a license of its own, it is bound by those of what went into it
        license_name = self._license()
        terms = f"That of {base}, and of the data it was trained on."
        if license_name:
            terms = f"`{license_name}`."
        if is_noncommercial(license_name):
            terms += " **Not for commercial use.**"
        sections += ["## License", terms]

        sections += ["## Cite", f"```bibtex\n{_CITE}\n```"]
        return f"---\n{self._metadata()}\n---\n\n" + "\n\n".join(sections) + "\n"

    def _public_base(self) -> str | None:
        """The repository it was made from; `None` if that was a folder on somebody's disk."""
        if not self.base or Path(self.base).exists():
            return None
        return self.base

    def _license(self) -> str | None:
        """Its license, or that of a published checkpoint that it was made from."""
        checkpoint = published_checkpoint(self.base) if self.base else None
        return self.license or (checkpoint.license if checkpoint else None)

    def _base_in_words(self) -> str:
        """What it was made from, as a sentence has it."""
        if not self.base:
            return "a multimodal LLM"
        return f"`{self._public_base() or Path(self.base).name}`"

    def _metadata(self) -> str:
        """What the Hub reads, in YAML."""
        kind_tag = "multimodal-embedding" if self.kind == "unime" else "reranker"
        data = ModelCardData(
            library_name="peft" if self.adapter else "sentence-transformers",
            pipeline_tag=_KINDS[self.kind].pipeline_tag,
            base_model=self._public_base(),
            license=self._license(),
            tags=["unime", "transformers", kind_tag, *self.tags],
        )
        return data.to_yaml()

    def _use(self, repo: str) -> str:
        """How the model is used: code for a whole model, the command that makes one of an adapter."""
        if self.adapter:
            return _ADAPT.format(repo=repo)

        use = _KINDS[self.kind].use
        preset = rules_of(self.preset) if self.preset else None

        # servers do not know flat positions or sums
        if self.kind == "unime" and preset:
            fusion = self.fusion or preset.fusion
            if preset.positions == "native" and fusion == "joint":
                use += _SERVE
        return use.format(repo=repo)


def _prompts(preset: str | Preset, fusion: str) -> str:
    """What the model reads for each kind of item, as a table, and how it joins image and text."""
    name = preset if isinstance(preset, str) else preset.name
    preset = rules_of(preset)
    lines = ["| item | prompt |", "|---|---|"]
    if preset.query == preset.document:
        lines += _prompt_rows(preset.query)
    else:
        lines += _prompt_rows(preset.query, "query, ")
        lines += _prompt_rows(preset.document, "document, ")
    table = "\n".join(lines)

    # how text and image become one vector is not seen in the prompts
    sentences = [f"Preset `{name}`, kept in the repository; an `instruction` stands before the text."]
    if fusion == "sum":
        sentences.append("An item of image and text is the sum of the two embeddings.")
    return f"{' '.join(sentences)}\n\n{table}"


def _default_instructions(instructions: str | dict | None) -> list[str]:
    """A sentence for each default instruction."""
    if isinstance(instructions, str):
        instructions = dict.fromkeys(("query", "document"), instructions)

    sentences = []
    for role, text in (instructions or {}).items():
        if text:
            shown = json.dumps(text, ensure_ascii=False)[1:-1]
            sentences.append(f"Instruction of a {role} that comes without one, except on a benchmark: `{shown}`")
    return sentences


def _prompt_rows(prompts: Prompts, role: str = "") -> list[str]:
    """A row of the table for each kind of item, line breaks written as `\\n`."""
    rows = []
    for kind, prompt in zip(Prompts._fields, prompts):
        if prompt is None:  # the authors read no such item
            continue
        rows.append(f"| {role}{kind} | `{json.dumps(prompt)[1:-1]}` |")
    return rows


def read_card(folder) -> Card:
    """A card from a saved model's folder, with the training section of the card that lies there.

    Its license is that of the published checkpoint that the model was made from, if that is one that is known.

    Args:
        folder (`str` or `Path`): what `save_pretrained` or a trainer wrote.

    Raises:
        ValueError: the folder has neither a UniME model nor an adapter.
    """
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} has no saved model: there is no config.json in it.")

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model_type = config.get("model_type")
    if model_type not in _KINDS:
        raise ValueError(f"{folder} holds a {model_type} model, not a UniME model; `unime convert` makes one.")

    # how the model reads may differ from its preset, and stands beside it
    processor = {}
    if (folder / "processor_config.json").exists():
        processor = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))

    # one that is not in the table is saved whole
    preset = processor.get("preset")
    if processor.get("preset_rules"):
        preset = preset_from(processor["preset_rules"], PRESETS, preset, str(folder / "processor_config.json"))

    card = Card(
        model_type,
        folder.resolve().name,
        config.get("backbone"),
        preset=preset,
        fusion=processor.get("fusion"),
        resolution=processor.get("resolution", "native"),
        instructions=processor.get("instructions"),
        adapter=(folder / "adapter_config.json").exists(),
    )

    # what a trainer or a person wrote stays
    if (folder / "README.md").exists():
        text = (folder / "README.md").read_text(encoding="utf-8")
        card.training = section(text, "Training")
        card.evaluation = section(text, "Evaluation")
        title = re.search(r"^# (.+)$", text, re.MULTILINE)
        if title:
            card.name = title.group(1)
    return card


def section(text: str, title: str) -> str:
    """The body of a card's section, empty if there is none.

    Args:
        text (`str`): the card.
        title (`str`): heading of the section, of the second level.
    """
    match = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return match.group(1).strip() if match else ""
