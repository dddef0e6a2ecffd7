"""UniMEModel (embedder) and UniMERerankerForCausalLM (reranker and judge) on top of any VLM of the library."""

import inspect
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from types import MethodType

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from transformers import AttentionInterface, AutoModel, AutoModelForImageTextToText, GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_unime import UniMEConfig, UniMERerankerConfig
from .processing_unime import LISTWISE_ANSWER, UniMEProcessor, is_chat, item_key, plan_chunks

_HUB_KEYS = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download", "proxies")
_PACKED_ATTENTION = "unime_packed_flash"  # "flash" makes the Qwen-VL vision towers hand over the whole packed sequence


def packed_attention(module, query, key, value, attention_mask=None, scaling=None, cu_seq_lens_q=None, **kwargs):
    """Attention over images packed into one sequence: one call per distinct image length instead of one per image.

    Shapes: query, key, value `[1, heads, patches, head_dim]`; `cu_seq_lens_q` `[images + 1]`; the result is
    `[1, patches, heads, head_dim]`.
    """
    starts = cu_seq_lens_q.tolist()
    by_length = {}
    for start, end in pairwise(starts):
        by_length.setdefault(end - start, []).append(start)
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # [patches, heads, dim]
    if len(by_length) == 1:
        (length,) = by_length
        q, k, v = (
            x.unflatten(0, (-1, length)).transpose(1, 2) for x in (query, key, value)
        )  # [images, heads, length, dim]
        return _attend(q, k, v, scaling).transpose(1, 2).flatten(0, 1).unsqueeze(0), None
    pieces, rows = [], []
    for length, begins in by_length.items():
        index = torch.tensor(begins, device=query.device)[:, None] + torch.arange(
            length, device=query.device
        )  # [images, length]
        q, k, v = (x[index].transpose(1, 2) for x in (query, key, value))
        pieces.append(_attend(q, k, v, scaling).transpose(1, 2).flatten(0, 1))
        rows.append(index.flatten())
    return torch.cat(pieces)[torch.cat(rows).argsort()].unsqueeze(0), None


def _attend(query, key, value, scaling):
    """SDPA, or plain matmuls where its backward is several times slower (short sequences on CPU)."""
    if query.device.type == "cpu" and query.requires_grad and query.shape[2] <= 512:
        return ((query * scaling) @ key.transpose(-1, -2)).softmax(dim=-1).to(value.dtype) @ value
    return F.scaled_dot_product_attention(query, key, value, scale=scaling)


def _linear_patches(patch_embed):
    """Lets a patch embedding, a convolution whose stride is its kernel, run as the matrix product that it is."""
    patch_embed.forward = MethodType(_embed_patches, patch_embed)  # a bound method follows its module through deepcopy


def _embed_patches(self, patches):  # [patches, channels * time * height * width]
    if type(self.proj) is not torch.nn.Conv3d:  # an adapter or a quantised layer stands there
        return type(self).forward(self, patches)
    return F.linear(patches.to(self.proj.weight.dtype), self.proj.weight.flatten(1), self.proj.bias)


AttentionInterface.register(_PACKED_ATTENTION, packed_attention)


@dataclass
class UniMEOutput(ModelOutput):
    """`embeddings` `[N, D]` in float32; `last_hidden_state` `[N, L, D]` in the model's dtype."""

    embeddings: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None


class UniMEPreTrainedModel(PreTrainedModel):
    """What embedder and reranker share: strict loading, a processor that travels along, batches by token budget."""

    base_model_prefix = "vlm"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = []  # the children's are merged in `post_init`
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _vlm_class = None  # the Auto class that builds the wrapped VLM

    def __init__(self, config):
        if (vision := _vision_config(config)) is not None and vision._attn_implementation == _PACKED_ATTENTION:
            # transformers builds no model under our name; it is set again below
            vision._attn_implementation = "sdpa"
        super().__init__(config)
        self.vlm = self._vlm_class.from_config(config.vlm_config)
        self.post_init()
        self._processor, self._processor_source = None, None
        self._speed_up_vision()

    vision_attention = _PACKED_ATTENTION  # the name under which transformers knows `packed_attention`

    def _speed_up_vision(self):
        """Takes attention's loop over images and the patch convolution out of Qwen-VL towers, with equal results.

        An explicit choice of FlashAttention or eager attention is left alone.
        """
        vision = _vision_config(self.config)
        if vision is None or not vision.model_type.startswith("qwen"):
            return
        tower = next(module for name, module in self.vlm.named_modules() if name.rpartition(".")[2] == "visual")
        _linear_patches(tower.patch_embed)
        if vision._attn_implementation == "sdpa":
            vision._attn_implementation = _PACKED_ATTENTION

    # loading and saving
    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in transformers, but a missing, unexpected or mis-shaped weight is an error that names it."""
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs["ignore_mismatched_sizes"] = True  # so that our own error can name the weights
        hub = {key: kwargs[key] for key in _HUB_KEYS if key in kwargs}
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        _assert_all_landed(info, pretrained_model_name_or_path)
        model._processor_source = (pretrained_model_name_or_path, hub)
        return (model, info) if wants_info else model

    @classmethod
    def from_backbone(cls, path_or_repo, preset: str = "summary", **kwargs):
        """Wraps a stock VLM checkpoint.

        Args:
            path_or_repo (`str`): directory or Hub id of the VLM.
            preset (`str`, defaults to `"summary"`): prompt preset, kept in the saved processor.
            kwargs: processor settings (`max_length`, `max_image_pixels`, `image_token`, `chat_template`); everything
                else (`dtype`, `device_map`, `quantization_config`, `attn_implementation`, `revision`, ...) goes to the
                VLM's `from_pretrained`.

        Raises:
            ValueError: a weight of the checkpoint is missing, unexpected or mis-shaped, or the preset is unknown.
        """
        settings = {
            k: kwargs.pop(k) for k in ("max_length", "max_image_pixels", "image_token", "chat_template") if k in kwargs
        }
        hub = {key: kwargs[key] for key in _HUB_KEYS if key in kwargs}
        processor = UniMEProcessor.from_backbone(path_or_repo, preset, **settings, **hub)
        kwargs["ignore_mismatched_sizes"] = True
        vlm, info = cls._vlm_class.from_pretrained(path_or_repo, output_loading_info=True, **kwargs)
        _assert_all_landed(info, path_or_repo, ignore=cls._dropped_weights)
        with torch.device("meta"):
            model = cls(cls.config_class(vlm_config=vlm.config, dtype=vlm.dtype))
        model.vlm = vlm
        model.processor = processor
        model._speed_up_vision()
        return model.eval()

    _dropped_weights = ()

    def save_pretrained(self, save_directory, *args, save_original_format: bool = False, **kwargs):
        """As in transformers, with the processor, in the key layout of memory, which Trainer's resume needs."""
        super().save_pretrained(save_directory, *args, save_original_format=save_original_format, **kwargs)
        if kwargs.get("is_main_process", True) and (self._processor is not None or self._processor_source is not None):
            self.processor.save_pretrained(save_directory)

    @property
    def processor(self) -> UniMEProcessor:
        """The processor of the checkpoint this model came from, loaded on first use; may be set."""
        if self._processor is None:
            if self._processor_source is None:
                raise ValueError("this model has no processor yet; set `model.processor`.")
            source, hub = self._processor_source
            # Whoever runs this class has trusted its repository; with the package imported, local classes win.
            self._processor = UniMEProcessor.from_pretrained(source, trust_remote_code=True, **hub)
        return self._processor

    @processor.setter
    def processor(self, processor):
        self._processor = processor

    # batching
    @contextmanager
    def _inference(self):
        training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.train(training)

    def _batches(self, prepared, token_budget, show_progress, description):
        """Yields (indices, tensors on the model's device); the next chunk is decoded while the model runs this one."""
        chunks = plan_chunks([entry.length for entry in prepared], token_budget)
        collate = lambda chunk: self.processor.collate([prepared[i] for i in chunk])  # noqa: E731
        bar = tqdm(
            total=len(prepared), desc=description, disable=not _wants_progress(show_progress, len(chunks)), unit="item"
        )
        with bar, ThreadPoolExecutor(1) as pool:
            upcoming = pool.submit(collate, chunks[0]) if chunks else None
            for number, chunk in enumerate(chunks):
                batch = upcoming.result()
                if number + 1 < len(chunks):
                    upcoming = pool.submit(collate, chunks[number + 1])
                yield chunk, batch.to(self.device)
                bar.update(len(chunk))

    def _explain_not_finite(self, name: str):
        bad = next((key for key, weight in self.named_parameters() if not torch.isfinite(weight).all()), None)
        cause = f"weight {bad!r} holds NaN or infinity" if bad else f"activations overflowed in {self.dtype}"
        raise ValueError(f"the output for {name} is not finite: {cause}.")


def _vision_config(config):
    return getattr(config.vlm_config, "vision_config", None)


def _wants_progress(show_progress, steps: int) -> bool:
    return steps > 8 if show_progress is None else show_progress


def _assert_all_landed(info, source, ignore=()):
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        keys = sorted(str(key) for key in info.get(kind) or () if not str(key).startswith(tuple(ignore)))
        if keys:
            more = f" and {len(keys) - 8} more" if len(keys) > 8 else ""
            raise ValueError(
                f"{source} does not fit this model: {kind.replace('_', ' ')}: {', '.join(keys[:8])}{more}."
            )


class UniMEModel(UniMEPreTrainedModel):
    """Universal multimodal embedder: the last token's hidden state, L2-normalised (2504.17432 section 3.2).

    Example:

    ```python
    model = UniMEModel.from_backbone("Qwen/Qwen2-VL-2B-Instruct", preset="summary")
    embeddings = model.encode(["a red circle", {"image": "photo.jpg"}, {"image": "photo.jpg", "text": "at night"}])
    ```
    """

    config: UniMEConfig
    config_class = UniMEConfig
    _vlm_class = AutoModel
    _dropped_weights = ("lm_head.",)  # an embedder has no use for a stock checkpoint's output head

    def forward(self, input_ids=None, attention_mask=None, **kwargs) -> UniMEOutput:
        """Runs the VLM over what the processor returned.

        Args:
            input_ids (`LongTensor` `[N, L]`), attention_mask (`[N, L]`): padded on either side.
            kwargs: the rest of the processor's output (`pixel_values`, ...) and any argument of the wrapped VLM.

        Returns:
            [`UniMEOutput`] with float32 `embeddings` `[N, D]`.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        outputs = self.vlm(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **kwargs)
        hidden = outputs.last_hidden_state  # [N, L, D]
        last = (attention_mask * torch.arange(attention_mask.shape[1], device=hidden.device)).argmax(dim=1)  # [N]
        embeddings = hidden[torch.arange(len(hidden), device=hidden.device), last].float()  # [N, D]
        if self.config.normalize:
            embeddings = F.normalize(embeddings, dim=-1)
        return UniMEOutput(embeddings=embeddings, last_hidden_state=hidden)

    def encode(
        self,
        items,
        instruction: str | None = None,
        role: str = "query",
        batch_tokens: int = 8192,
        truncate_dim: int | None = None,
        max_length: int | None = None,
        show_progress: bool | None = None,
    ) -> torch.Tensor:
        """Embeds items of any kind, each distinct one once, in batches of at most `batch_tokens` padded tokens.

        Args:
            items: one item or a list; an item is a string, a PIL image, an `os.PathLike` to an image,
                `{"text": ..., "image": ...}` (either may be missing), or a list of chat messages.
            instruction (`str`, *optional*): put before the text of every item.
            role (`str`, defaults to `"query"`): `"query"` or `"document"`, for presets that word them differently.
            batch_tokens (`int`, defaults to 8192): padded tokens of one forward pass.
            truncate_dim (`int`, *optional*): keep the first dimensions only, normalised again (Matryoshka).
            max_length (`int`, *optional*): cut longer texts; images are never cut.
            show_progress (`bool`, *optional*): by default only for long jobs.

        Returns:
            float32 tensor `[N, D]` on the CPU, in the order of `items` (`[D]` for a single item).

        Raises:
            ValueError: an item is empty, unreadable or too large, or an embedding is not finite; the message names it.
        """
        single = not isinstance(items, (list, tuple)) or is_chat(items)
        items = [items] if single else list(items)
        width = self.config.hidden_size
        if truncate_dim is not None and not 0 < truncate_dim <= width:
            raise ValueError(f"truncate_dim must be between 1 and {width}, got {truncate_dim}.")
        distinct = OrderedDict()  # key -> (position among the distinct, first index)
        positions = []
        for i, item in enumerate(items):
            key = item_key(item, self.processor.max_image_pixels, f"item {i}")
            positions.append(distinct.setdefault(key, (len(distinct), i))[0])
        first = [i for _, i in distinct.values()]
        prepared = self.processor.prepare(
            [items[i] for i in first], instruction, role, max_length, names=[f"item {i}" for i in first]
        )
        embeddings = torch.empty(len(first), width)
        with self._inference():
            for chunk, batch in self._batches(prepared, batch_tokens, show_progress, "Encoding"):
                embeddings[chunk] = self(**batch).embeddings.cpu()
        finite = torch.isfinite(embeddings).all(dim=1)
        if not finite.all():
            self._explain_not_finite(prepared[int(finite.logical_not().nonzero()[0])].name)
        if truncate_dim is not None and truncate_dim < width:
            embeddings = embeddings[:, :truncate_dim]
            embeddings = F.normalize(embeddings, dim=-1) if self.config.normalize else embeddings
        embeddings = embeddings[torch.tensor(positions, dtype=torch.long)]
        return embeddings[0] if single else embeddings

    def encode_query(self, items, **kwargs) -> torch.Tensor:
        """[`~UniMEModel.encode`] with `role="query"`."""
        return self.encode(items, role="query", **kwargs)

    def encode_document(self, items, **kwargs) -> torch.Tensor:
        """[`~UniMEModel.encode`] with `role="document"`."""
        return self.encode(items, role="document", **kwargs)

    @staticmethod
    def similarity(queries, documents) -> torch.Tensor:
        """Cosine similarity `[N, M]` of embeddings `[N, D]` and `[M, D]`."""
        queries, documents = (torch.atleast_2d(torch.as_tensor(x)).float() for x in (queries, documents))
        return F.normalize(queries, dim=-1) @ F.normalize(documents, dim=-1).T


class UniMERerankerForCausalLM(UniMEPreTrainedModel, GenerationMixin):
    """Multimodal reranker, and without training a judge: a VLM asked whether a candidate meets a query (2510.13515).

    Example:

    ```python
    reranker = UniMERerankerForCausalLM.from_backbone("Qwen/Qwen2.5-VL-7B-Instruct")
    reranker.rank({"image": "photo.jpg"}, ["a dog on a beach", "a red car"], strategy="listwise")
    ```
    """

    config: UniMERerankerConfig
    config_class = UniMERerankerConfig
    _vlm_class = AutoModelForImageTextToText

    def forward(self, **kwargs):
        """The wrapped VLM's forward: `logits` `[N, L, vocabulary]`, `loss` where `labels` are given."""
        return self.vlm(**kwargs)

    def prepare_inputs_for_generation(self, *args, **kwargs):
        return self.vlm.prepare_inputs_for_generation(*args, **kwargs)

    def get_output_embeddings(self):
        return self.vlm.get_output_embeddings()

    def score(self, query, candidates, batch_tokens: int = 8192, show_progress: bool | None = None) -> torch.Tensor:
        """Probability that each candidate meets the query: softmax over the logits of "Yes" and "No" (2510.13515).

        Args:
            query: a string, PIL image, path or `{"text": ..., "image": ...}`.
            candidates (`list`): items of the same kinds.
            batch_tokens (`int`, defaults to 8192): padded tokens of one forward pass.

        Returns:
            float32 tensor `[len(candidates)]` in [0, 1].
        """
        processor, answers = self.processor, self._tokens(["Yes", "No"])
        if isinstance(candidates, str):
            raise TypeError("candidates must be a list of items, not a string.")
        names = [f"candidate {i}" for i in range(len(candidates))]
        messages = [processor.rerank_messages(query, [c], "pointwise", [name]) for c, name in zip(candidates, names)]
        prepared = processor.prepare(messages, names=names)
        scores = torch.empty(len(candidates))
        with self._inference():
            for chunk, batch in self._batches(prepared, batch_tokens, show_progress, "Scoring"):
                logits = self._last_logits(batch)[:, answers]  # [n, 2]
                scores[chunk] = logits.softmax(dim=-1)[:, 0].cpu()
        if not torch.isfinite(scores).all():
            self._explain_not_finite(prepared[int(torch.isfinite(scores).logical_not().nonzero()[0])].name)
        return scores

    def rank(self, query, candidates, strategy: str = "pointwise", batch_tokens: int = 8192) -> list[dict]:
        """Ranks candidates, best first.

        Args:
            query, candidates: as in [`~UniMERerankerForCausalLM.score`].
            strategy (`str`): `"pointwise"` sorts by `score`; `"listwise"` shows all candidates at once and reads the
                distribution of the number after the forced prefix `Ans: (`, in one forward (at most 9 candidates).

        Returns:
            list of `{"index": int, "score": float}`; equal scores keep the order of `candidates`.
        """
        if strategy == "pointwise":
            scores = self.score(query, candidates, batch_tokens)
        elif strategy == "listwise":
            scores = self._listwise_scores(query, candidates)
        else:
            raise ValueError(f"unknown strategy {strategy!r}; choose 'pointwise' or 'listwise'.")
        order = scores.argsort(descending=True, stable=True).tolist()
        return [{"index": index, "score": float(scores[index])} for index in order]

    def _listwise_scores(self, query, candidates) -> torch.Tensor:
        if len(candidates) > 9:
            raise ValueError(
                f"listwise ranking reads one digit, so it takes at most 9 candidates; got {len(candidates)}."
            )
        if not candidates:
            return torch.empty(0)
        messages = self.processor.rerank_messages(query, candidates, "listwise")
        prepared = self.processor.prepare([messages], suffix=LISTWISE_ANSWER, names=["query and candidates"])
        numbers = self._tokens([str(i + 1) for i in range(len(candidates))])
        with self._inference():
            batch = self.processor.collate(prepared).to(self.device)
            scores = self._last_logits(batch)[0, numbers].softmax(dim=-1).cpu()  # [candidates]
        if not torch.isfinite(scores).all():
            self._explain_not_finite("query and candidates")
        return scores

    def _last_logits(self, batch) -> torch.Tensor:
        keep = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(self.vlm.forward).parameters else {}
        return self(**batch, use_cache=False, **keep).logits[:, -1].float()  # [N, vocabulary]; left padding

    def _tokens(self, words: list[str]) -> list[int]:
        """The ids of answers that are one token each."""
        found = self.processor.tokenizer(words, add_special_tokens=False)["input_ids"]
        if any(len(ids) != 1 for ids in found) or len({ids[0] for ids in found}) != len(words):
            raise ValueError(f"the tokenizer does not keep the answers {words} as one token each: {found}.")
        return [ids[0] for ids in found]


UniMEModel.register_for_auto_class("AutoModel")
UniMERerankerForCausalLM.register_for_auto_class("AutoModelForCausalLM")

__all__ = ["UniMEModel", "UniMEOutput", "UniMEPreTrainedModel", "UniMERerankerForCausalLM"]
