"""Every saved embedder as a module of sentence-transformers, every saved reranker as one of its cross-encoders.

`SentenceTransformer(repository, trust_remote_code=True)` and `CrossEncoder(...)` read `modules.json`, which names the
classes here. They feed the model what `encode` and `score` feed it, so the numbers are the same.
"""

import json
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModel, AutoModelForCausalLM
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .items_unime import describe
from .processing_unime import SETTINGS
from .st_features_unime import features_of, model_inputs, rows_of, rows_of_parts, sides_of, split_parts
from .st_inputs_unime import (
    HUB_NAMES,
    as_chat,
    as_item,
    as_pair,
    limit_pixels,
    reading_of,
    split_processor_kwargs,
)

try:
    from sentence_transformers.base.modules.input_module import InputModule
except ModuleNotFoundError as error:
    if error.name != "sentence_transformers":
        raise ImportError("this model needs sentence-transformers 6.2 or newer.") from error
    # this file travels with every model, and models are saved without sentence-transformers, too
    InputModule = torch.nn.Module

ROLES = ("query", "document")
MODALITIES = ("text", "image", "video", ("image", "text"), ("text", "video"), "message")

_CODE = Path(__file__).stem  # this file, as it is called beside every saved model
_MODULES_FILE = "modules.json"
_SETTINGS_FILE = "config_sentence_transformers.json"


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
    def load(
        cls,
        model_name_or_path,
        subfolder="",
        trust_remote_code=False,
        model_kwargs=None,
        processor_kwargs=None,
        config_kwargs=None,
        backend="torch",
        **kwargs,
    ):
        """A module of a saved model, as sentence-transformers loads one.

        Args:
            model_kwargs (`dict`, *optional*): for `from_pretrained` of the model.
            processor_kwargs (`dict`, *optional*): settings of the processor (`max_length`, `resolution`, `num_frames`,
                ...), and `min_pixels` and `max_pixels` where the image processor has them.
            config_kwargs (`dict`, *optional*): fields of the configuration, such as `normalize`.
            backend (`str`, defaults to `"torch"`): the only one there is.

        Raises:
            ValueError: the backend, a setting of the processor or a number of labels is not available here.
        """
        if backend != "torch":
            raise ValueError(f"backend={backend!r} is not available: UniME models run on the backend 'torch'.")
        labels = (config_kwargs or {}).get("num_labels")
        if labels not in (None, 1):
            raise ValueError(f"num_labels={labels} is not available: the judge gives one score for a pair.")

        hub = {}
        for theirs, ours in HUB_NAMES.items():
            if kwargs.get(theirs) is not None:
                hub[ours] = kwargs[theirs]
        settings, pixels = split_processor_kwargs(processor_kwargs or {})

        # what the user sets for the model goes before what the library hands on
        arguments = {"trust_remote_code": trust_remote_code, **hub, **(config_kwargs or {}), **settings}
        model = cls.auto_class.from_pretrained(model_name_or_path, **(arguments | (model_kwargs or {})))
        processor = model.processor  # it is read on first use, and what is wrong with it is to be known now
        if pixels:
            limit_pixels(processor, **pixels)
        return cls(model)

    def on_model_ready(self, model):
        """Lets the library's model, once it is complete, be saved for whoever has no package of ours.

        Its prompts of queries and documents are the default instructions of ours, unless it has some already.
        """
        for role, instruction in default_instructions(self.model).items():
            model.prompts[role] = model.prompts.get(role) or instruction
        if model.prompts.get("query") and model.default_prompt_name is None:
            model.default_prompt_name = "query"

        # it follows its model through deepcopy and pickle, which a bound method does not
        model.save = partial(_save, model)

    def save(self, output_path, *args, **kwargs):
        # prompts, similarity, activation: the library has written them already, and knows better than we
        file = Path(output_path, _SETTINGS_FILE)
        settings = file.read_bytes() if file.exists() else None
        self.model.save_pretrained(output_path)
        if settings is not None:
            file.write_bytes(settings)

    @property
    def modalities(self) -> list:
        return list(MODALITIES)

    @property
    def tokenizer(self):
        return self.model.processor.tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer):
        # what the processor has found out about the old one must not stay
        old = self.model.processor
        settings = {name: getattr(old, name) for name in SETTINGS}
        self.model.processor = type(old)(
            old.image_processor, tokenizer, preset=old.preset, backbone=old.backbone, **settings
        )

    @property
    def processor(self):
        return self.model.processor

    @property
    def config(self):
        return self.model.config

    @property
    def max_seq_length(self) -> int:
        return self.model.processor.max_length

    @max_seq_length.setter
    def max_seq_length(self, length: int):
        if not isinstance(length, int) or length < 1:
            raise ValueError(f"max_seq_length must be a number of tokens, at least 1, got {length!r}.")
        processor = self.model.processor
        processor.max_length = length
        processor.tokenizer.model_max_length = max(length, processor.tokenizer.model_max_length)


class UniMETransformer(_UniMEModule):
    """`UniMEModel` in sentence-transformers; a prompt is the instruction before the text of every item."""

    auto_class = AutoModel

    def get_embedding_dimension(self) -> int:
        return self.model.config.hidden_size

    def preprocess(
        self,
        inputs,
        prompt: str | None = None,
        task: str | None = None,
        processing_kwargs: dict | None = None,
        max_length: int | None = None,
        **kwargs,
    ) -> dict:
        """Features of a batch.

        Args:
            inputs (`list`): `N` items.
            prompt (`str`, *optional*): the instruction; the library itself finds the default one among its prompts.
            task (`str`, *optional*): what `encode_query` and `encode_document` set, from which the role follows.
            processing_kwargs (`dict`, *optional*): `text.max_length`, `image.max_pixels` and `image.resolution`.
            max_length (`int`, *optional*): the same limit, as the trainer sets it.

        Returns:
            `dict` of tensors: of the tokens `[N, L]`, of the images of all items, and how many images each has. Where
            an item's embedding is a sum, `part_numbers` `[N, L]` says which part a token belongs to, from 1.

        Raises:
            ValueError: an item cannot be read, or a setting is not available.
        """
        role = "document" if task == "document" else "query"
        reading = reading_of(processing_kwargs, max_length)
        items = [as_item(item) for item in inputs]

        # the caller's order is not known here, where texts come sorted by length
        names = list(map(describe, items))
        rows, prepared = self.processor.prepare_parts(
            items, instruction=prompt or "", role=role, names=names, **reading
        )
        return features_of(self.processor, rows, prepared)

    def forward(self, features: dict, **kwargs) -> dict:
        """Adds `sentence_embedding` `[N, D]` and `token_embeddings` `[N, L, D]` to features."""
        inputs = model_inputs(features)
        numbers = inputs.pop("part_numbers", None)  # [N, L]
        if numbers is None:
            embeddings, hidden = self._embed(inputs)
            return {**features, "token_embeddings": hidden, "sentence_embedding": embeddings}

        rows, is_of_part = rows_of_parts(numbers)  # [P], [P, L]
        embeddings, hidden = self._embed(split_parts(inputs, rows, is_of_part, self.processor.padding_id))
        hidden = hidden * is_of_part[..., None]  # [P, L, D]
        return {
            **features,
            "token_embeddings": hidden.new_zeros(len(numbers), *hidden.shape[1:]).index_add(0, rows, hidden),
            "sentence_embedding": self.model.sum_parts(embeddings, rows),
        }

    def _embed(self, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings `[N, D]` and last hidden states `[N, L, D]` of a batch, none of which depends on the others."""
        sides = sides_of(inputs["attention_mask"], self.model.config.length_boundary)
        if len(sides) < 2:
            outputs = self.model(**inputs)
            return outputs.embeddings, outputs.last_hidden_state

        # the library puts texts together that our own batches keep apart
        embeddings = []
        states = []
        for rows in sides:
            taken, columns = rows_of(inputs, rows, self.processor.image_token_id)
            outputs = self.model(**taken)
            embeddings.append(outputs.embeddings)
            hidden = outputs.last_hidden_state  # [n, l, D]
            wide = hidden.new_zeros(len(rows), len(columns), hidden.shape[-1])
            states.append(wide.index_copy(1, columns.nonzero().flatten(), hidden))
        order = torch.cat(sides).argsort()
        return torch.cat(embeddings)[order], torch.cat(states)[order]


class UniMECrossEncoder(_UniMEModule):
    """`UniMERerankerForCausalLM` in sentence-transformers: a pair's score is the log-odds of Yes against No.

    A prompt is the instruction before the text of every query.
    """

    auto_class = AutoModelForCausalLM

    def __init__(self, model):
        super().__init__(model)
        if model.gives_places:
            raise ValueError(
                f"the preset {model.processor.preset!r} puts lists in order and scores no pairs, which is what a "
                "CrossEncoder does; use `UniMERerankerForCausalLM.rank`."
            )

    def preprocess(
        self,
        inputs,
        prompt: str | None = None,
        task: str | None = None,
        processing_kwargs: dict | None = None,
        max_length: int | None = None,
        **kwargs,
    ) -> dict:
        """Features of a batch.

        Args:
            inputs (`list`): `N` pairs of a query and a candidate, or chats. A chat of the roles `query` and `document`
                is a pair, whose system message, if it has one, is its prompt; any other is put to the model as it is.
                A single item, which the library counts tokens of, is a chat with that item.
            prompt (`str`, *optional*): as in [`UniMETransformer.preprocess`].
            processing_kwargs, max_length: as in [`UniMETransformer.preprocess`].

        Returns:
            `dict` of tensors, as in [`UniMETransformer.preprocess`].

        Raises:
            ValueError: an item cannot be read, or a setting is not available.
        """
        questions = []
        names = []
        for value in inputs:
            pair, instruction = as_pair(value)
            if pair is None:
                questions.append(as_chat(value))
                names.append(describe(value))
                continue
            query, candidate = map(as_item, pair)
            name = f"the pair of {describe(query)} and {describe(candidate)}"
            names.append(name)
            instruction = instruction or prompt or ""
            questions.append(self.processor.question(query, candidate, name, instruction=instruction))

        prepared = self.processor.prepare(questions, names=names, **reading_of(processing_kwargs, max_length))

        # padded on the left, so that the answer follows the last token of every prompt
        return features_of(self.processor, range(len(prepared)), prepared, "left")

    def forward(self, features: dict, **kwargs) -> dict:
        """Adds `scores` `[N, 1]` to features."""
        inputs = model_inputs(features)
        sides = sides_of(inputs["attention_mask"], self.model.config.length_boundary)
        logits = []
        for rows in sides:
            taken = inputs
            if len(sides) > 1:
                taken, _ = rows_of(inputs, rows, self.processor.image_token_id)
            outputs = self.model(**taken, use_cache=False, **self.model.keep_last_logits)
            logits.append(outputs.logits[:, -1].float())  # [n, vocabulary]
        last = torch.cat(logits)[torch.cat(sides).argsort()]
        scores = self.model.log_odds_after(last, inputs["input_ids"])[:, None]  # [N, 1]

        # `rank` sorts what the sigmoid makes of these, and that of confident answers is 1.0 in float32
        if not self.training and scores.device.type != "mps":  # which has no float64
            scores = scores.double()
        return {**features, "scores": scores}


def _save(model, path, *args, **kwargs):
    """Saves a model of sentence-transformers, with our modules named by the file that travels with them.

    The library names a class by where Python found it, and that may be a package which others do not have. By that
    name its trainer looks for the class when it goes on from a checkpoint, which therefore keeps it.

    Args:
        model (`SentenceTransformer` or `CrossEncoder`): with a module of ours.
        path, args, kwargs: of its `save`.
    """
    # its prompts may have changed since it was loaded
    model[0].processor.instructions = {role: model.prompts[role] for role in ROLES if model.prompts.get(role)}
    type(model).save(model, path, *args, **kwargs)
    if path is None:  # then the library saves nothing
        return
    if Path(path).name.startswith(f"{PREFIX_CHECKPOINT_DIR}-"):
        return

    file = Path(path, _MODULES_FILE)
    modules = json.loads(file.read_text(encoding="utf-8"))
    for module in modules:
        place, _, name = module["type"].rpartition(".")
        if place == __name__:
            module["type"] = f"{_CODE}.{name}"
    _write_json(file, modules)


def default_instructions(model) -> dict[str, str]:
    """The default instructions by role, as far as there are any; the library calls them prompts."""
    instructions = {}
    for role in ROLES:
        instruction = model.processor.default_instruction(role) if model.has_processor else None
        if instruction:
            instructions[role] = instruction
    return instructions


def write_modules(model, folder):
    """Writes the small files by which sentence-transformers finds its way in a saved model's folder."""
    folder = Path(folder)
    if model.config.model_type == "unime":
        name = "UniMETransformer"
        output = "embeddings"
        settings = {
            "model_type": "SentenceTransformer",
            "prompts": {"query": "", "document": ""},
            "similarity_fn_name": "cosine",
        }
    else:
        name = "UniMECrossEncoder"
        output = "logits"
        # what a pair's log-odds become
        reports_log_odds = model.has_processor and model.default_output == "logit"
        activation = "linear.Identity" if reports_log_odds else "activation.Sigmoid"
        settings = {"model_type": "CrossEncoder", "activation_fn": f"torch.nn.modules.{activation}"}

    # the library shows default instructions as its prompts
    prompts = default_instructions(model)
    if prompts:
        settings["prompts"] = {**settings.get("prompts", {}), **prompts}
    if "query" in prompts:
        settings["default_prompt_name"] = "query"

    # the class by the name of this file, which is saved with every model
    modules = [{"idx": 0, "name": "0", "path": "", "type": f"{_CODE}.{name}"}]
    _write_json(folder / _MODULES_FILE, modules)
    _write_json(folder / _SETTINGS_FILE, settings)

    # mteb and others read here which kinds of input the model takes
    method = {"method": "forward", "method_output_name": output}
    kinds = ["+".join(kind) if isinstance(kind, tuple) else kind for kind in MODALITIES]
    _write_json(folder / "sentence_bert_config.json", {"modality_config": dict.fromkeys(kinds, method)})


def _write_json(path: Path, content):
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
