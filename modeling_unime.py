"""UniMEModel (embedder) and UniMERerankerForCausalLM (reranker and judge) on top of any VLM of the library."""

import inspect
import re
import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm, trange
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, GenerationMixin
from transformers.utils import ModelOutput

from .configuration_unime import UniMEConfig, UniMERerankerConfig
from .items_unime import is_chat, item_key
from .pooling_unime import bidirectional_mask, pool
from .processing_unime import Reading
from .prompts_unime import LISTWISE_ANSWER, POINTWISE, PRESETS, find_preset, one_of
from .ranking_unime import (
    OUTPUTS,
    as_retrieval_scores,
    log_odds_among,
    log_probability,
    penalised,
    ranked,
    rival_tokens,
)
from .scoring_unime import SharedPrefix, VisionCache, groups_of
from .vlm_unime import UniMEPreTrainedModel, wants_progress


@dataclass
class UniMEOutput(ModelOutput):
    """`embeddings` `[N, D]` in float32; `last_hidden_state` `[N, L, D]` in the model's dtype."""

    embeddings: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None


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
    _dropped_weights = ("lm_head.", "language_model.lm_head.")  # an embedder has no use for the output head

    @classmethod
    def _wrap_config(cls, vlm_config, preset, **fields):
        rules = PRESETS[preset]
        return cls.config_class(
            vlm_config=vlm_config,
            positions=rules.positions,
            pooling=rules.pooling,
            attention=rules.attention,
            **fields,
        )

    def use_preset(self, preset: str, positions: str | None = None, **settings):
        """As in [`~UniMEPreTrainedModel.use_preset`]; `positions` are the preset's too, unless they are given."""
        super().use_preset(preset, **settings)
        rules = self.processor.rules
        self.config.positions = positions or rules.positions
        self.config.pooling = rules.pooling
        self.config.attention = rules.attention

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

        # every token, those of images too, has a 1-D position that padding does not move
        if self.config.positions == "flat":
            kwargs["position_ids"] = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)  # [N, L]
        visible = attention_mask
        if self.config.attention == "bidirectional":
            kwargs.setdefault("position_ids", self._native_positions(input_ids, attention_mask, kwargs))
            visible = bidirectional_mask(attention_mask, self.dtype)  # [N, 1, L, L]

        outputs = self.vlm(input_ids=input_ids, attention_mask=visible, use_cache=False, **kwargs)
        hidden = outputs.last_hidden_state  # [N, L, D]

        is_image = kwargs.get("mm_token_type_ids")
        embeddings = pool(hidden, attention_mask, is_image, self.config.pooling)  # [N, D]
        if self.config.normalize:
            embeddings = F.normalize(embeddings, dim=-1)
        return UniMEOutput(embeddings=embeddings, last_hidden_state=hidden)

    def _native_positions(self, input_ids, attention_mask, inputs: dict):
        """Positions as the VLM computes them of a plain mask, for a call with another mask."""
        get_rope_index = getattr(self.vlm, "get_rope_index", None)
        if get_rope_index is None:
            return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)  # [N, L]

        names = inspect.signature(get_rope_index).parameters
        arguments = {name: value for name, value in inputs.items() if name in names}
        positions, _ = get_rope_index(input_ids, attention_mask=attention_mask, **arguments)
        return positions  # [3, N, L]

    def encode(
        self,
        items,
        instruction: str | None = None,
        role: str = "query",
        batch_tokens: int = 8192,
        truncate_dim: int | None = None,
        max_length: int | None = None,
        show_progress: bool | None = None,
        resolution=None,
        fusion: str | None = None,
        precision: str = "float32",
        ranges=None,
        *,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        benchmark: str | None = None,
    ) -> torch.Tensor:
        """Embeds items of any kind, each distinct one once, in batches of at most `batch_tokens` padded tokens.

        Args:
            items: one item or a list; an item is a string, a PIL image, an `os.PathLike` to an image,
                `{"text": ..., "image": ...}` or `{"text": ..., "video": ...}` (either part may be missing; a video is
                a path or its frames), or a list of chat messages.
            instruction (`str`, *optional*): put before the text of every item (see [`~unime.prompts_unime.instruct`]).
            role (`str`, defaults to `"query"`): `"query"` or `"document"`, for presets that word them differently.
            batch_tokens (`int`, defaults to 8192): padded tokens of one forward pass.
            truncate_dim (`int`, *optional*): keep the first dimensions only, normalised again (Matryoshka).
            max_length (`int`, *optional*): cut longer texts; images are never cut.
            show_progress (`bool`, *optional*): by default only for long jobs.
            resolution (*optional*): overrides the preset's policy: `"native"`, a square side such as `336`,
                `"pixels:N"`, `"tokens:N"`, joined by `+` (see [`~unime.images_unime.Resolution`]).
            fusion (`str`, *optional*): overrides the preset: `"joint"` reads image and text in one prompt, `"sum"`
                adds their two embeddings (2504.17432 section 3.2).
            precision (`str`, defaults to `"float32"`): `"int8"`, `"uint8"`, `"binary"` and `"ubinary"` as in
                [`~UniMEModel.quantize`].
            ranges (*optional*): for `"int8"` and `"uint8"`, see [`~UniMEModel.quantize`].
            prompt (`str`, *optional*): sentence-transformers' name of `instruction`.
            batch_size (`int`, *optional*): in place of `batch_tokens`, as many tokens as that many of the longest
                items take.
            show_progress_bar (`bool`, *optional*): sentence-transformers' name of `show_progress`.
            benchmark (`str`, *optional*): `"mmeb"`, `"retrieval"` or `"sugarcrepe"`: word items as the preset does on
                this kind of benchmark.

        Returns:
            tensor `[N, D]` on the CPU, in the order of `items` (`[D]` for a single item): float32, int8 or uint8
            (`[N, ceil(D / 8)]` for `"binary"` and `"ubinary"`).

        Raises:
            ValueError: an item is empty, unreadable or too large, or an embedding is not finite; the message names it.

        Example:

        ```python
        queries = model.encode_query(["a red circle", "a blue star"])
        documents = model.encode_document([{"image": "photo.jpg"}, {"image": "page.png", "text": "page 3"}])
        scores = model.similarity(queries, documents)  # [2, 2]
        ```
        """
        instruction = _same_argument(instruction=instruction, prompt=prompt)
        show_progress = _same_argument(show_progress=show_progress, show_progress_bar=show_progress_bar)
        if truncate_dim is not None and not 0 < truncate_dim <= self.config.hidden_size:
            raise ValueError(f"truncate_dim must be between 1 and {self.config.hidden_size}, got {truncate_dim}.")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")

        is_single = not isinstance(items, (list, tuple)) or is_chat(items)
        items = [items] if is_single else list(items)
        reading = Reading(instruction, role, max_length, resolution, fusion, benchmark=benchmark)

        # equal items are embedded once
        distinct, names, places = self._distinct(items, show_progress)
        rows, prepared = self.processor.prepare_parts(distinct, reading, names)

        if batch_size is not None:
            # shorter items share a pass in greater number
            longest = max((entry.length for entry in prepared), default=1)
            batch_tokens = batch_size * longest

        parts = self._embed(prepared, batch_tokens, show_progress)  # [P, D]
        embeddings = self.sum_parts(parts, torch.tensor(rows, dtype=torch.long))  # [distinct, D]
        embeddings = self._truncate(embeddings, truncate_dim)
        embeddings = self.quantize(embeddings[places], precision, ranges)
        return embeddings[0] if is_single else embeddings

    def _distinct(self, items: list, show_progress) -> tuple[list, list[str], torch.Tensor]:
        """The distinct items with their names, and for each item its place `[N]` among these."""
        is_silent = not wants_progress(show_progress, len(items) // 512)
        place_of = {}  # key -> place among the distinct items
        distinct = []
        names = []
        places = []

        # with a bar, since the key of an image in memory is a digest of all its pixels
        for i, item in enumerate(tqdm(items, desc="Reading", disable=is_silent, unit="item")):
            key = item_key(item, self.processor.max_image_pixels, f"item {i}")
            if key not in place_of:
                place_of[key] = len(distinct)
                distinct.append(item)
                names.append(f"item {i}")
            places.append(place_of[key])
        return distinct, names, torch.tensor(places, dtype=torch.long)

    def _embed(self, prepared, batch_tokens: int, show_progress) -> torch.Tensor:
        """Embeddings `[P, D]` of prepared items, in float32 on the CPU."""
        embeddings = torch.zeros(len(prepared), self.config.hidden_size)
        with self._inference():
            for chunk, batch in self._batches(prepared, batch_tokens, show_progress, "Encoding"):
                embeddings[chunk] = self(**batch).embeddings.cpu()

        is_finite = torch.isfinite(embeddings).all(dim=1)
        if not is_finite.all():
            self._explain_not_finite(prepared[int(is_finite.logical_not().nonzero()[0])].name)
        return embeddings

    def sum_parts(self, parts: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Adds up the embeddings of each item's parts (2504.17432 section 3.2), which are normalised again.

        Args:
            parts (`FloatTensor` `[P, D]`): embeddings of parts, from [`~UniMEProcessor.prepare_parts`].
            rows (`LongTensor` `[P]`): the item of each part; every item has at least one.

        Returns:
            `[N, D]`; an item of one part keeps its embedding.
        """
        if len(rows) == 0:
            return parts
        counts = torch.bincount(rows)  # [N]
        if len(counts) == len(parts):
            return parts

        embeddings = parts.new_zeros(len(counts), parts.shape[1]).index_add(0, rows, parts)
        if not self.config.normalize:
            return embeddings
        is_sum = (counts > 1)[:, None]
        return torch.where(is_sum, F.normalize(embeddings, dim=-1), embeddings)

    def _truncate(self, embeddings: torch.Tensor, width: int | None) -> torch.Tensor:
        """The first dimensions of embeddings, normalised again."""
        if width is None or width == self.config.hidden_size:
            return embeddings
        embeddings = embeddings[:, :width]
        return F.normalize(embeddings, dim=-1) if self.config.normalize else embeddings

    @staticmethod
    def quantize(embeddings, precision: str = "float32", ranges=None) -> torch.Tensor:
        """Embeddings in fewer bytes, with the results of sentence-transformers' `quantize_embeddings`.

        Args:
            embeddings (`FloatTensor` `[N, D]`).
            precision (`str`): `"float32"` leaves them alone; `"int8"` and `"uint8"` map the range of each dimension to
                256 steps; `"binary"` and `"ubinary"` keep the signs, 8 in a byte.
            ranges (`FloatTensor` `[2, D]`, *optional*): least and greatest value of each dimension, for `"int8"` and
                `"uint8"`. Queries and corpus must share them; by default they are those of `embeddings`, at least 100.

        Returns:
            float32 `[N, D]`, int8 or uint8 `[N, D]`, or int8 or uint8 `[N, ceil(D / 8)]`.

        Raises:
            ValueError: the precision is unknown, ranges are missing, or an embedding is not finite.
        """
        one_of("precision", precision, "float32", "int8", "uint8", "binary", "ubinary")
        if precision == "float32":
            return embeddings
        is_finite = torch.isfinite(embeddings).all(dim=1)
        if not is_finite.all():
            row = int(is_finite.logical_not().nonzero()[0])
            raise ValueError(f"embedding {row} holds NaN or infinity, which {precision} has no value for.")

        if precision.endswith("binary"):
            bits = np.packbits(embeddings.numpy() > 0, axis=1)
            return torch.from_numpy(bits if precision == "ubinary" else (bits - 128).astype(np.int8))

        if ranges is None and len(embeddings) < 100:
            raise ValueError(
                f"{precision} needs `ranges`, or at least 100 embeddings to take them from; got {len(embeddings)}."
            )
        if ranges is None:
            ranges = (embeddings.amin(0), embeddings.amax(0))
        lowest, highest = (torch.as_tensor(values, dtype=torch.float32) for values in ranges)
        steps = (highest - lowest) / 255
        steps = torch.where(steps == 0, 1, steps)
        buckets = ((embeddings - lowest) / steps).floor().clamp(0, 255)  # [N, D]
        return buckets.to(torch.uint8) if precision == "uint8" else (buckets - 128).to(torch.int8)

    def encode_query(self, items, **kwargs) -> torch.Tensor:
        """[`~UniMEModel.encode`] with `role="query"`."""
        return self.encode(items, role="query", **kwargs)

    def encode_document(self, items, **kwargs) -> torch.Tensor:
        """[`~UniMEModel.encode`] with `role="document"`."""
        return self.encode(items, role="document", **kwargs)

    @staticmethod
    def similarity(queries, documents) -> torch.Tensor:
        """Cosine similarity `[N, M]` of embeddings `[N, D]` and `[M, D]`."""
        queries = torch.atleast_2d(torch.as_tensor(queries)).float()
        documents = torch.atleast_2d(torch.as_tensor(documents)).float()
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
    judges = True
    _vlm_class = AutoModelForImageTextToText

    def __init__(self, config):
        super().__init__(config)
        self.vision_cache = VisionCache()

    @classmethod
    def from_backbone(cls, path_or_repo, preset: str | None = None, **kwargs):
        model = super().from_backbone(path_or_repo, preset, **kwargs)
        model.generation_config = model.vlm.generation_config
        return model

    from_backbone.__func__.__doc__ = UniMEPreTrainedModel.from_backbone.__doc__

    @classmethod
    def _find_preset(cls, path, model_type, preset):
        """As for an embedder, but any name is accepted: a reranker takes only its resolution from the preset."""
        return find_preset(path, model_type, preset, strict=False)

    def forward(self, **kwargs):
        """The wrapped VLM's forward: `logits` `[N, L, vocabulary]`, `loss` where `labels` are given."""
        return self.vlm(**kwargs)

    def prepare_inputs_for_generation(self, *args, **kwargs):
        return self.vlm.prepare_inputs_for_generation(*args, **kwargs)

    def get_output_embeddings(self):
        return self.vlm.get_output_embeddings()

    def set_output_embeddings(self, head):
        """As in transformers, which sets a new head where the vocabulary is resized."""
        self.vlm.set_output_embeddings(head)

    def score(
        self,
        query,
        candidates,
        batch_tokens: int = 8192,
        show_progress: bool | None = None,
        resolution=None,
        answer_format: str = "yes_no",
        sum_variants: bool = False,
        repetition_penalty: float = 1.0,
        share_prefix: bool = True,
        output: str = "probability",
        benchmark: str | None = None,
    ) -> torch.Tensor:
        """Probability that each candidate meets the query: softmax over the logits of two answers (2510.13515).

        Args:
            query: a string, PIL image, path, or dict of `"text"` with `"image"` or `"video"`.
            candidates (`list`): items of the same kinds.
            batch_tokens (`int`, defaults to 8192): padded tokens of one forward pass.
            resolution (*optional*): as in [`~UniMEModel.encode`].
            answer_format (`str`): `"yes_no"` asks for Yes or No; `"multiple_choice"` for A or B, which an untrained
                judge answers better (FreeRet).
            sum_variants (`bool`): add up the probabilities of all spellings of an answer that are one token (`yes`,
                ` Yes`, ...).
            repetition_penalty (`float`, defaults to 1): divides the logit of answers that occur in the prompt, as
                `generate` does; above 0. 1.05 gives the scores published with UniME-V2.
            share_prefix (`bool`, defaults to `True`): run what all prompts begin with once, and see every image once,
                kept in `vision_cache` for later calls. Off, every prompt is run whole.
            output (`str`, defaults to `"probability"`): `"logit"` gives the log-odds of Yes against No instead.
                Probabilities of confident answers are all 1.0 in float32; their log-odds still differ, so compare
                and sort by these.
            benchmark (`str`, *optional*): `"mmeb"`, `"retrieval"` or `"sugarcrepe"`: show items as the preset does on
                this kind of benchmark.

        Returns:
            float32 tensor `[len(candidates)]`: probabilities in [0, 1], or log-odds.

        Raises:
            ValueError: an option is unknown or out of range, or a candidate cannot be read; the message names it.
        """
        _check_candidates(candidates)
        one_of("output", output, *OUTPUTS)
        if not 0 < repetition_penalty < float("inf"):
            raise ValueError(f"repetition_penalty must be a number above 0, got {repetition_penalty}.")
        one_of("answer_format", answer_format, *POINTWISE)
        if not candidates:
            return torch.empty(0)

        names = [f"candidate {i}" for i in range(len(candidates))]
        messages = []
        for candidate, name in zip(candidates, names):
            messages.append(
                self.processor.rerank_messages(query, [candidate], "pointwise", [name], answer_format, benchmark)
            )
        prepared = self.processor.prepare(messages, names=names, resolution=resolution)

        # one forward pass gives the logits of both answers
        yes_tokens, no_tokens = self._answers(POINTWISE[answer_format][1:], sum_variants)
        tokens = [*yes_tokens, *no_tokens]
        logits = self._next_logits(prepared, tokens, batch_tokens, share_prefix, show_progress)
        logits = penalised(logits, prepared, tokens, repetition_penalty)  # [N, yes tokens + no tokens]

        # the logits of all spellings of an answer become one, whose probability is their sum
        yes = logits[:, : len(yes_tokens)].logsumexp(dim=1)
        no = logits[:, len(yes_tokens) :].logsumexp(dim=1)
        log_odds = yes - no  # [N]
        return log_odds if output == "logit" else log_odds.sigmoid()

    def rank(
        self,
        query,
        candidates,
        strategy: str = "pointwise",
        batch_tokens: int = 8192,
        resolution=None,
        rounds: int = 1,
        seed: int = 0,
        retrieval_scores=None,
        weight: float = 1.0,
        show_progress: bool | None = None,
        *,
        top_k: int | None = None,
        return_documents: bool = False,
        output: str = "probability",
        benchmark: str | None = None,
        **scoring,
    ) -> list[dict]:
        """Ranks candidates, best first.

        Args:
            query, candidates, batch_tokens, resolution, show_progress: as in [`~UniMERerankerForCausalLM.score`].
            strategy (`str`): `"pointwise"` sorts by the log-odds of `score`. `"listwise"` shows all candidates at once
                and reads the distribution of the number after the forced prefix `Ans: (`. `"fused"` sorts by retrieval
                score plus `weight` times `score`, and equal sums by log-odds. `"generate"` is the procedure released
                with UniME-V2: the model writes an answer, the candidate it names comes first and the others keep
                their order.
            rounds (`int`, defaults to 1): listwise passes, each after the first with the candidates shuffled; their
                distributions are averaged, which cancels a liking for certain positions.
            seed (`int`): of the shuffling.
            retrieval_scores (`list[float]`): of the candidates, for `"fused"`.
            weight (`float`): of the reranker's score, for `"fused"`.
            top_k (`int`, *optional*): how many entries to return, best first; all by default.
            return_documents (`bool`, defaults to `False`): return each candidate too, as `"text"`, whatever its kind.
            output (`str`, defaults to `"probability"`): `"logit"` reports log-odds, and for `"fused"` adds them in
                place of probabilities. Otherwise the order is the same with either.
            benchmark (`str`, *optional*): as in [`~UniMERerankerForCausalLM.score`].
            scoring: for `"pointwise"` and `"fused"`, the other arguments of `score`.

        Returns:
            list of `{"index": int, "corpus_id": int, "score": float}`, where `"corpus_id"` is `"index"` under the
            name that sentence-transformers gives it; equal log-odds keep the order of `candidates`. With
            `"generate"`, which gives no scores, `score` is None; if the answer names no candidate, a warning says so
            and the order is that of `candidates`.

        Raises:
            ValueError: an option is unknown, or `"fused"` lacks a retrieval score or was given one that is NaN.
            TypeError: an option means nothing to the strategy.

        Example:

        ```python
        for entry in reranker.rank("a red circle", ["a star", {"image": "photo.jpg"}], top_k=1):
            print(entry["index"], entry["score"])
        ```
        """
        if strategy not in ("pointwise", "listwise", "fused", "generate"):
            raise ValueError(f"unknown strategy {strategy!r}; choose 'pointwise', 'listwise', 'fused' or 'generate'.")
        if scoring and strategy in ("listwise", "generate"):
            raise TypeError(f"{', '.join(scoring)} means nothing to the strategy {strategy!r}.")
        if one_of("output", output, *OUTPUTS) == "logit" and strategy == "generate":
            raise TypeError("output means nothing to the strategy 'generate', which gives no scores.")
        if top_k is not None and top_k < 0:
            raise ValueError(f"top_k must not be negative, got {top_k}.")
        _check_candidates(candidates)

        # to the other strategies they mean nothing
        if strategy == "fused":
            retrieval_scores = as_retrieval_scores(retrieval_scores, len(candidates), weight)  # [N]
        else:
            retrieval_scores = None

        if strategy == "generate":
            scores = [None] * len(candidates)
            order = self._order_by_generation(query, candidates, resolution, benchmark)
        else:
            if strategy == "listwise":
                log_odds = self._listwise_log_odds(
                    query, candidates, rounds, seed, batch_tokens, resolution, show_progress, benchmark
                )
            else:
                scoring |= {"output": "logit", "benchmark": benchmark}
                log_odds = self.score(query, candidates, batch_tokens, show_progress, resolution, **scoring)
            scores, order = ranked(log_odds, output, retrieval_scores, weight)

        ranking = []
        for index in order[:top_k]:
            entry = {"index": index, "corpus_id": index, "score": scores[index]}
            if return_documents:
                entry["text"] = candidates[index]
            ranking.append(entry)
        return ranking

    def _listwise_log_odds(
        self, query, candidates, rounds, seed, batch_tokens, resolution, show_progress, benchmark
    ) -> torch.Tensor:
        """Log-odds `[N]` that each candidate is the best of all, of probabilities averaged over rounds; float64."""
        if rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {rounds}.")
        count = len(candidates)
        if not count:
            return torch.zeros(0)

        generator = torch.Generator().manual_seed(seed)
        is_silent = not wants_progress(show_progress, rounds)
        by_round = torch.empty(rounds, count, dtype=torch.float64)
        for number in trange(rounds, desc="Ranking", disable=is_silent, unit="round"):
            # the first round shows the candidates as they came
            order = torch.randperm(count, generator=generator) if number else torch.arange(count)
            order = order.tolist()

            # errors call a candidate by the number that the caller knows
            shown = [candidates[i] for i in order]
            names = [f"candidate {i}" for i in order]
            entry = self._listwise_prompt(query, shown, names, resolution, benchmark)
            by_round[number, order] = self._log_probabilities_of_numbers(entry, count, batch_tokens)
        return log_odds_among(by_round.logsumexp(dim=0))  # the number of rounds cancels

    def _listwise_prompt(self, query, candidates, names, resolution, benchmark, suffix=LISTWISE_ANSWER):
        messages = self.processor.rerank_messages(query, candidates, "listwise", names, benchmark=benchmark)
        (entry,) = self.processor.prepare(
            [messages], suffix=suffix, names=["query and candidates"], resolution=resolution
        )
        return entry

    def _log_probabilities_of_numbers(self, entry, count: int, batch_tokens: int) -> torch.Tensor:
        """Log-probabilities `[count]` of the numbers 1 to `count` as the answer, float64.

        Numbers of several digits are several tokens: the probability of each is the product of its tokens', each among
        those that may follow there (another digit, or the closing bracket).
        """
        answers = self._number_tokens(count)
        rivals = rival_tokens(answers)
        if not rivals:  # a single candidate
            return torch.zeros(count, dtype=torch.float64)

        # one prompt for each beginning of a number after which several tokens may come
        prompts = [replace(entry, written=beginning) for beginning in rivals]
        columns = sorted(set().union(*rivals.values()))
        logits = self._next_logits(prompts, columns, batch_tokens, share_prefix=True, show_progress=False)

        # beginning of a number -> the log-probability of each token that may come next
        chances = {}
        for row, (beginning, tokens) in zip(logits, rivals.items()):
            is_rival = torch.isin(torch.tensor(columns), torch.tensor(tokens))
            log_softmax = row[is_rival].double().log_softmax(dim=0)
            chances[beginning] = dict(zip(tokens, log_softmax.tolist()))

        log_probabilities = [log_probability(answer, chances) for answer in answers]
        return torch.tensor(log_probabilities, dtype=torch.float64)

    def _number_tokens(self, count: int) -> list[list[int]]:
        """Ids of `1)`, `2)`, ... as they stand after the forced prefix."""
        tokenizer = self.processor.tokenizer
        prefix = tokenizer(LISTWISE_ANSWER, add_special_tokens=False)["input_ids"]

        # with the prefix before it, a number may be other tokens than by itself
        answers = []
        for number in range(1, count + 1):
            ids = tokenizer(f"{LISTWISE_ANSWER}{number})", add_special_tokens=False)["input_ids"]
            if ids[: len(prefix)] != prefix:
                raise ValueError(f"the tokenizer joins {LISTWISE_ANSWER!r} with the number after it; use 'pointwise'.")
            answers.append(ids[len(prefix) :])
        return answers

    def _order_by_generation(self, query, candidates, resolution, benchmark) -> list[int]:
        """The candidate that the model names in its answer, then the others in their order."""
        answer = self._generate(self._listwise_prompt(query, candidates, None, resolution, benchmark, suffix=""))
        number = re.search(r"\((\d+)\)", answer)
        best = int(number[1]) - 1 if number else -1

        order = list(range(len(candidates)))
        if 0 <= best < len(candidates):
            order.insert(0, order.pop(best))
        else:
            warnings.warn(
                f"the answer {answer.strip()[:80]!r} names none of {len(candidates)} candidates; their order stays.",
                stacklevel=3,
            )
        return order

    def _generate(self, entry) -> str:
        """The model's answer to a prompt."""
        with self._inference():
            batch = self.processor.collate([entry], padding_side="left").to(self.device)
            arguments = inspect.signature(self.vlm.forward).parameters  # `generate` refuses what the VLM does not name
            batch = {key: value for key, value in batch.items() if key in arguments}

            token_ids = self.vlm.generate(
                **batch, generation_config=self.generation_config, max_new_tokens=128, do_sample=False, use_cache=True
            )

        # what comes back begins with the prompt
        answer_ids = token_ids[0, batch["input_ids"].shape[1] :]
        return self.processor.tokenizer.decode(answer_ids, skip_special_tokens=True)

    def _next_logits(self, prepared, tokens, batch_tokens, share_prefix, show_progress) -> torch.Tensor:
        """Logits `[N, len(tokens)]` of the token after each prompt, float32."""
        columns = torch.tensor(tokens)
        is_silent = not wants_progress(show_progress, len(prepared) // 8)
        with self._inference(), tqdm(total=len(prepared), desc="Scoring", disable=is_silent, unit="item") as bar:
            logits = self._shared_logits(prepared, columns, batch_tokens, bar) if share_prefix else None
            if logits is None:
                logits = self._separate_logits(prepared, columns, batch_tokens, bar)

        is_finite = torch.isfinite(logits).all(dim=1)
        if not is_finite.all():
            self._explain_not_finite(prepared[int(is_finite.logical_not().nonzero()[0])].name)
        return logits

    def _separate_logits(self, prepared, columns, batch_tokens, bar) -> torch.Tensor:
        """Logits `[N, len(columns)]` with every prompt run whole."""
        logits = torch.empty(len(prepared), len(columns))
        for chunk, batch in self._batches(prepared, batch_tokens, False, "Scoring", side="left"):
            last = self(**batch, use_cache=False, **self.keep_last_logits).logits[:, -1].float()  # [n, vocabulary]
            logits[chunk] = last[:, columns.to(last.device)].cpu()
            bar.update(len(chunk))
        return logits

    def _shared_logits(self, prepared, columns, batch_tokens, bar) -> torch.Tensor | None:
        """The same with what the prompts share run once; None where `SharedPrefix` does not apply."""
        logits = torch.empty(len(prepared), len(columns))
        for group in groups_of(prepared, self.vision_cache.max_tokens):
            shared = SharedPrefix.of(self, [prepared[i] for i in group], batch_tokens, not bar.disable)
            if shared is None:
                return None
            logits[group] = shared.last_logits(columns, bar)
        return logits

    @property
    def keep_last_logits(self) -> dict:
        """Argument that spares the logits of all tokens but the last, where the VLM has it."""
        return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(self.vlm.forward).parameters else {}

    @property
    def yes_no_tokens(self) -> tuple[int, int]:
        """The tokens of Yes and No, whose log-odds a pointwise score is."""
        yes, no = self._answers(POINTWISE["yes_no"][1:], False)
        return yes[0], no[0]

    def _answers(self, words: tuple[str, str], sum_variants: bool) -> list[list[int]]:
        """Token ids of each answer: the word itself first, then its other spellings that are one token."""
        yes, no = (self._spellings(word, sum_variants) for word in words)
        if set(yes) & set(no):
            raise ValueError(f"the tokenizer gives the answers {words} the same token.")
        return [yes, no]

    def _spellings(self, word: str, sum_variants: bool) -> list[int]:
        tokenizer = self.processor.tokenizer
        (first, *others) = tokenizer(word, add_special_tokens=False)["input_ids"]
        if others:
            raise ValueError(f"the tokenizer does not keep the answer {word!r} as one token: {[first, *others]}.")
        if not sum_variants:
            return [first]

        tokens = {}  # a dict, as it keeps their order
        for space in ("", " "):
            for spelling in (word, word.lower(), word.upper(), word.capitalize()):
                ids = tokenizer(space + spelling, add_special_tokens=False)["input_ids"]
                if len(ids) == 1:
                    tokens[ids[0]] = True
        return list(tokens)


def _same_argument(**names):
    """The value of an argument that has two names.

    Raises:
        TypeError: it was given under both.
    """
    (first, first_value), (second, second_value) = names.items()
    if first_value is not None and second_value is not None:
        raise TypeError(f"{first} and {second} are two names of one argument; give one of them.")
    return second_value if first_value is None else first_value


def _check_candidates(candidates):
    if not isinstance(candidates, (list, tuple)):
        raise TypeError(f"candidates must be a list of items, not a {type(candidates).__name__}.")


UniMEModel.register_for_auto_class("AutoModel")
UniMERerankerForCausalLM.register_for_auto_class("AutoModelForCausalLM")

# Copies that travel with saved models are found through their `auto_map` instead.
if __package__ == "unime":
    AutoModel.register(UniMEConfig, UniMEModel, exist_ok=True)
    AutoModelForCausalLM.register(UniMERerankerConfig, UniMERerankerForCausalLM, exist_ok=True)

__all__ = ["UniMEModel", "UniMEOutput", "UniMEPreTrainedModel", "UniMERerankerForCausalLM"]
