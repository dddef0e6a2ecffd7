"""The model card that lies beside every saved model: what it is, how to use it, where it comes from, how it did."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCardData

from ..prompts_unime import PRESETS, Prompts

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
_KINDS = {  # model type -> pipeline tag, what it is, use
    "unime": ("feature-extraction", "embedder: texts, images and both become vectors of one space", _EMBED),
    "unime_reranker": ("text-ranking", "reranker: it judges and ranks texts and images for a query", _RERANK),
}
_LIMITS = (
    "It knows what its base model and its training data know, and shares their biases. Scores and similarities rank "
    "the candidates of one query; they are no calibrated probabilities. Last digits differ between kinds of hardware."
)
_HERE = "<this repository>"


@dataclass
class Card:
    """What a card tells.

    Args:
        kind (`str`): model type, `"unime"` or `"unime_reranker"`.
        name (`str`): its title.
        base (`str`, *optional*): the model it was made from; a folder's name is kept, its path is not.
        preset (`str`, *optional*): its prompts.
        adapter (`bool`): whether only an adapter is there.
        origin (`str`): a sentence on how it was made.
        training, evaluation (`str`): sections, in Markdown.
        license (`str`, *optional*): its identifier, as the Hub knows it.
        tags (`tuple[str]`): further tags.
    """

    kind: str
    name: str
    base: str | None = None
    preset: str | None = None
    adapter: bool = False
    origin: str = ""
    training: str = ""
    evaluation: str = ""
    license: str | None = None
    tags: tuple = ()

    def render(self, repo: str | None = None) -> str:
        """The whole file, with the Hub's metadata first."""
        tag, what, use = _KINDS[self.kind]
        public = self.base if self.base and not Path(self.base).exists() else None
        base = f"`{public or Path(self.base).name}`" if self.base else "a multimodal LLM"
        kind = "multimodal-embedding" if self.kind == "unime" else "reranker"
        data = ModelCardData(
            library_name="peft" if self.adapter else "sentence-transformers",
            pipeline_tag=tag,
            base_model=public,
            license=self.license,
            tags=["unime", "transformers", kind, *self.tags],
        )
        own = PRESETS.get(self.preset)
        if self.kind == "unime" and own and own.positions == "native" and own.fusion == "joint":
            use += _SERVE  # servers know neither flat positions nor sums
        use = (_ADAPT if self.adapter else use).format(repo=repo or _HERE)
        sections = [
            f"# {self.name}",
            f"A multimodal {what}. Made from {base} with [UniME](https://arxiv.org/abs/2504.17432){self.origin}.",
            "## Use",
            use,
        ]
        if self.preset and self.kind == "unime":
            sections += ["## Prompts", _prompts(self.preset)]
        sections += ["## Training", self.training] if self.training else []
        sections += ["## Evaluation", self.evaluation] if self.evaluation else []
        own = f"`{self.license}`." if self.license else f"That of {base}, and of the data it was trained on."
        sections += ["## Limits", _LIMITS, "## Licence", own, "## Cite", f"```bibtex\n{_CITE}\n```"]
        return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"


def _prompts(preset: str) -> str:
    """What the model reads for each kind of item."""
    own = PRESETS[preset]

    def rows(prompts: Prompts, role: str) -> list[str]:
        return [f"| {role}{kind} | `{json.dumps(prompt)[1:-1]}` |" for kind, prompt in zip(Prompts._fields, prompts)]

    both = (
        rows(own.query, "")
        if own.query == own.document
        else rows(own.query, "query, ") + rows(own.document, "document, ")
    )
    shown = "\n".join(["| item | prompt |", "|---|---|", *both])
    return f"Preset `{preset}`, kept in the repository; an `instruction` stands before the text.\n\n{shown}"


def read_card(folder) -> Card:
    """A card from a saved model's folder, with the training section of the card that lies there.

    Raises:
        ValueError: the folder holds no UniME model or adapter.
    """
    folder = Path(folder)
    path, adapter = folder / "config.json", folder / "adapter_config.json"
    if not path.exists():
        raise ValueError(f"{folder} holds no saved model: it has no config.json.")
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("model_type") not in _KINDS:
        raise ValueError(
            f"{folder} holds a {config.get('model_type')} model, no UniME model; `unime convert` makes one."
        )
    processor = folder / "processor_config.json"
    preset = json.loads(processor.read_text(encoding="utf-8")).get("preset") if processor.exists() else None
    card = Card(config["model_type"], folder.resolve().name, config.get("backbone"), preset, adapter.exists())
    if (folder / "README.md").exists():
        text = (folder / "README.md").read_text(encoding="utf-8")
        card.training = section(text, "Training")
        card.evaluation = section(text, "Evaluation")
        if title := re.search(r"^# (.+)$", text, re.MULTILINE):
            card.name = title.group(1)
    return card


def section(text: str, title: str) -> str:
    """The body of a card's section, empty if there is none."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return found.group(1).strip() if found else ""
