"""Every saved embedder as a module of sentence-transformers, every saved reranker as one of its cross-encoders.

`SentenceTransformer(repository, trust_remote_code=True)` and `CrossEncoder(...)` read `modules.json`, which names the
classes here. They feed the model what `encode` and `score` feed it, so the numbers are the same.
"""

import json
from pathlib import Path

import torch
from transformers import AutoModel, AutoModelForCausalLM
from transformers.image_utils import load_image

from .items_unime import describe

try:
    from sentence_transformers.base.modules.input_module import InputModule
except ModuleNotFoundError as error:
    if error.name != "sentence_transformers":
        raise ImportError("this model needs sentence-transformers 6.2 or newer.") from error
    # this file travels with every model, and models are saved without sentence-transformers, too
    InputModule = torch.nn.Module

_HUB = {"token": "token", "cache_folder": "cache_dir", "revision": "revision", "local_files_only": "local_files_only"}
_TIMEOUT = 30  # seconds in which a server must answer that is asked for an image


class _UniMEModule(InputModule):
    """What both modules share: loading, saving, and what sentence-transformers asks of a module.

    Args:
        model (`UniMEModel` or `UniMERerankerForCausalLM`).
    """

    auto_class = None  # the Auto class that builds the model

    def __init__(self, model):
        super().__init__()
        self.model = model

    @classmethod
    def load(cls, model_name_or_path, subfolder="", trust_remote_code=False, model_kwargs=None, **kwargs):
        hub = {}
        for theirs, ours in _HUB.items():
            if kwargs.get(theirs) is not None:
                hub[ours] = kwargs[theirs]

        # what the user sets for the model goes before what the library hands on
        arguments = {"trust_remote_code": trust_remote_code, **hub, **(model_kwargs or {})}
        model = cls.auto_class.from_pretrained(model_name_or_path, **arguments)
        _ = model.processor  # it is read on first use, and what is wrong with it is to be known now
        return cls(model)

    def save(self, output_path, *args, **kwargs):
        self.model.save_pretrained(output_path)

    @property
    def modalities(self) -> list:
        return ["text", "image", "video", ("text", "image"), ("text", "video"), "message"]

    @property
    def tokenizer(self):
        return self.model.processor.tokenizer

    @property
    def processor(self):
        return self.model.processor

    @property
    def config(self):
        return self.model.config

    @property
    def max_seq_length(self) -> int:
        return self.model.processor.max_length


def _as_item(value):
    """What `encode` takes: a string is a text, whatever it looks like, and `{"image": name}` is an image.

    Addresses and data URIs of images are read here; any other name is a path.
    """
    if isinstance(value, dict) and isinstance(value.get("image"), str):
        return {**value, "image": _picture(value["image"])}
    return value


def _picture(name: str):
    if name.startswith(("http://", "https://", "data:image/")):
        return load_image(name, timeout=_TIMEOUT)
    return name


class UniMETransformer(_UniMEModule):
    """`UniMEModel` in sentence-transformers; a prompt is the instruction before the text of every item."""

    auto_class = AutoModel

    def get_embedding_dimension(self) -> int:
        return self.model.config.hidden_size

    def preprocess(self, inputs, prompt: str | None = None, task: str | None = None, **kwargs) -> dict:
        """Features of a batch; `task` is what `encode_query` and `encode_document` set."""
        role = "document" if task == "document" else "query"
        items = [_as_item(item) for item in inputs]

        # the caller's order is not known here, where texts come sorted by length
        names = list(map(describe, items))
        rows, prepared = self.processor.prepare_parts(items, instruction=prompt or None, role=role, names=names)
        return {**self.processor.collate(prepared), "rows": torch.tensor(rows)}

    def forward(self, features: dict, **kwargs) -> dict:
        features = dict(features)
        rows = features.pop("rows")  # [P], the item of each part
        parts = self.model(**features).embeddings  # [P, D]
        return {"sentence_embedding": self.model.sum_parts(parts, rows)}


class UniMECrossEncoder(_UniMEModule):
    """`UniMERerankerForCausalLM` in sentence-transformers: a pair's score is the log-odds of Yes against No.

    A prompt is the instruction of every query.
    """

    auto_class = AutoModelForCausalLM

    def __init__(self, model):
        super().__init__(model)
        if model.gives_places:
            raise ValueError(
                f"the preset {model.processor.preset!r} puts lists in order and scores no pairs, which is what a "
                "CrossEncoder does; use `UniMERerankerForCausalLM.rank`."
            )

    def preprocess(self, inputs, prompt: str | None = None, **kwargs) -> dict:
        questions = []
        names = []
        for pair in inputs:
            query, candidate = map(_as_item, pair)
            name = f"the pair of {describe(query)} and {describe(candidate)}"
            names.append(name)
            questions.append(self.processor.question(query, candidate, name, instruction=prompt))

        # padded on the left, so that the answer follows the last token of every prompt
        prepared = self.processor.prepare(questions, names=names)
        return dict(self.processor.collate(prepared, "left"))

    def forward(self, features: dict, **kwargs) -> dict:
        last = self.model(**features, use_cache=False, **self.model.keep_last_logits).logits[:, -1].float()
        scores = self.model.log_odds_after(last, features["input_ids"])  # [N]

        # `rank` sorts what the sigmoid makes of these, and that of confident answers is 1.0 in float32
        if not self.training and scores.device.type != "mps":  # which has no float64
            scores = scores.double()
        return {"scores": scores}


def write_modules(model, folder):
    """Writes the small files by which sentence-transformers finds its way in a saved model's folder."""
    folder = Path(folder)
    if model.config.model_type == "unime":
        name = "UniMETransformer"
        settings = {
            "model_type": "SentenceTransformer",
            "prompts": {"query": "", "document": ""},
            "similarity_fn_name": "cosine",
        }
    else:
        name = "UniMECrossEncoder"
        # what a pair's log-odds become
        reports_log_odds = model.has_processor and model.default_output == "logit"
        activation = "linear.Identity" if reports_log_odds else "activation.Sigmoid"
        settings = {"model_type": "CrossEncoder", "activation_fn": f"torch.nn.modules.{activation}"}

    # the class by the name of this file, which is saved with every model
    modules = [{"idx": 0, "name": "0", "path": "", "type": f"{Path(__file__).stem}.{name}"}]
    _write_json(folder / "modules.json", modules)
    _write_json(folder / "config_sentence_transformers.json", settings)


def _write_json(path: Path, content):
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
