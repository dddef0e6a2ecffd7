"""UniMEModel (embedder) and UniMERerankerForCausalLM (reranker and judge) on top of any VLM of the library."""

import inspect

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.utils import can_return_tuple

from .configuration_unime import UniMEConfig, UniMERerankerConfig
from .generation_unime import VLMGenerationMixin
from .heads_unime import ranking_head, untied, with_ranking_head
from .items_unime import is_chat, item_key, with_instruction
from .listwise_unime import ListRanking
from .pooling_unime import UniMEOutput, bidirectional_mask, pool
from .precision_unime import quantize
from .processing_unime import Reading
from .prompts_unime import POINTWISE, one_of, resolve_preset, rules_of, shown
from .ranking_unime import (
    OUTPUTS,
    as_retrieval_scores,
    occurrences,
    penalised,
    ranked,
)
from .scoring_unime import SharedPrefix, VisionCache, groups_of
from .vlm_unime import UniMEPreTrainedModel, wants_progress


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
        rules = rules_of(preset)
        return cls.config_class(
            vlm_config=vlm_config,
            positions=rules.positions,
            pooling=rules.pooling,
            attention=rules.attention,
            **fields,
        )

    @classmethod
    def _find_preset(cls, files, model_type, preset):
        """As in the base class, but a reranker's preset, which words questions, is refused."""
        preset = super()._find_preset(files, model_type, preset)
        if rules_of(preset).judging is not None:
            raise ValueError(
                f"the preset {shown(preset)!r} is a reranker's; open {files.source} with "
                "`UniMERerankerForCausalLM`, or choose an embedder's preset."
            )
        return preset

    def use_preset(self, preset: str, positions: str | None = None, **settings):
        """As in [`~UniMEPreTrainedModel.use_preset`]; `positions` are the preset's too, unless they are given.

        Raises:
            ValueError: also where the weights hold the adapter of another task than the preset's.
        """
        preset = resolve_preset(preset)
        merged = self.processor.rules.adapter
        if merged is not None and rules_of(preset).adapter not in (None, merged):
            raise ValueError(
                f"the preset {shown(preset)!r} is for the task {rules_of(preset).adapter!r}, but these weights hold "
                f"the adapter for {merged!r}; open the checkpoint anew with this preset."
            )
        super().use_preset(preset, **settings)
        rules = self.processor.rules
        self.config.positions = positions or rules.positions
        self.config.pooling = rules.pooling
        self.config.attention = rules.attention

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> UniMEOutput:
        """Runs the VLM over what the processor returned.

        Args:
            input_ids (`LongTensor` `[N, L]`), attention_mask (`[N, L]`): padded on either side.
            position_ids, past_key_values, inputs_embeds, use_cache, output_hidden_states, output_attentions: as in
                every model of transformers; `inputs_embeds` `[N, L, D]` may stand in for `input_ids`.
            kwargs: the rest of the processor's output (`pixel_values`, ...) and any argument of the wrapped VLM;
                `return_dict=False` asks for a tuple.

        Returns:
            [`UniMEOutput`] with float32 `embeddings` `[N, D]`.

        Raises:
            ValueError: `past_key_values` are given to an embedder whose attention is bidirectional.
        """
        inputs = input_ids if input_ids is not None else inputs_embeds
        if attention_mask is None:
            attention_mask = torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)  # [N, L]

        # every token, those of images too, has a 1-D position that padding does not move
        if position_ids is None and self.config.positions == "flat":
            position_ids = _flat_positions(attention_mask)[:, -inputs.shape[1] :]  # [N, L]
        visible = attention_mask
        if self.config.attention == "bidirectional":
            if past_key_values is not None:
                raise ValueError("with bidirectional attention, items are read whole: leave `past_key_values` out.")
            if position_ids is None:
                position_ids = self._native_positions(input_ids, attention_mask, kwargs)
            visible = bidirectional_mask(attention_mask, self.dtype)  # [N, 1, L, L]

        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        outputs = self.vlm(
            input_ids=input_ids,
            attention_mask=visible,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=bool(use_cache),
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            **kwargs,
        )

        is_image = kwargs.get("mm_token_type_ids")
        embeddings = pool(outputs.last_hidden_state, attention_mask, is_image, self.config.pooling)  # [N, D]
        if self.config.normalize:
            embeddings = F.normalize(embeddings, dim=-1)
        return UniMEOutput(
            embeddings=embeddings,
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.get("past_key_values"),
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )

    def _native_positions(self, input_ids, attention_mask, inputs: dict):
        """Positions as the VLM computes them of a plain mask, for a call with another mask."""
        get_rope_index = getattr(self.vlm, "get_rope_index", None)
        if get_rope_index is None or input_ids is None:
            return _flat_positions(attention_mask)

        names = inspect.signature(get_rope_index).parameters
        arguments = {name: value for name, value in inputs.items() if name in names}
        positions, _ = get_rope_index(input_ids, attention_mask=attention_mask, **arguments)
        return positions  # [3, N, L]

    def encode(
        self,
        items,
        instruction: str | list[str | None] | None = None,
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
            items: one item or a list; an item is a string, an image (PIL, `os.PathLike`, bytes, an array),
                `{"text": ..., "image": ...}` or `{"text": ..., "video": ...}` (either part may be missing; a video is
                a path or its frames), a list of texts and images in their order
                (`[{"text": ...}, {"image": ...}, ...]`), or a list of chat messages; see
                [`~unime.items_unime.split_item`]. Such a list is an item of a list of items.
            instruction (`str` or `list[str]`, *optional*): put before the text of every item (see
                [`~unime.prompts_unime.instruct`]), or a list with one for each; an item may also have its own
                (`{"text": ..., "instruction": ...}`), which goes before. By default the one that was saved with the
                model (`model.processor.instructions`), except on a benchmark; `""` for none.
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
        if isinstance(instruction, (list, tuple)):
            if len(instruction) != len(items):
                raise ValueError(f"there are {len(instruction)} instructions for {len(items)} items.")
            items = [with_instruction(item, line) for item, line in zip(items, instruction)]
            instruction = None
        reading = Reading(instruction, role, max_length, resolution, fusion, benchmark=benchmark)

        # equal items are embedded once
        distinct, names, places = self._distinct(items, show_progress)
        rows, prepared = self.processor.prepare_parts(distinct, reading, names)

        if batch_size is not None:
            # shorter items share a pass in greater number
            longest = max((entry.length for entry in prepared), default=1)
            batch_tokens = batch_size * longest

        parts = self.embed_parts(prepared, batch_tokens, show_progress)  # [P, D]
        embeddings = self.sum_parts(parts, torch.tensor(rows, dtype=torch.long))  # [distinct, D]
        embeddings = self.truncate(embeddings, truncate_dim)
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

    def embed_parts(self, prepared, batch_tokens: int, show_progress: bool | None = None) -> torch.Tensor:
        """Embeds prepared items, each of which is a part of an item.

        Args:
            prepared (`list[PreparedItem]`): P parts, from [`~UniMEProcessor.prepare_parts`].
            batch_tokens (`int`), show_progress (`bool`, *optional*): as in [`~UniMEModel.encode`].

        Returns:
            float32 `[P, D]` on the CPU, for [`~UniMEModel.sum_parts`].

        Raises:
            ValueError: an embedding is not finite; the message names the item.
        """
        embeddings = torch.zeros(len(prepared), self.config.hidden_size)
        order = []
        outputs = []
        with self._inference():
            for chunk, batch in self._batches(prepared, batch_tokens, show_progress, "Encoding"):
                output = self(**batch).embeddings  # [n, D]
                order.extend(chunk)
                outputs.append(output.to("cpu", non_blocking=True))

            # a GPU is waited for once, not after every chunk
            if outputs and output.device.type != "cpu":
                torch.accelerator.synchronize(output.device)
        if outputs:
            embeddings[order] = torch.cat(outputs)

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

    def truncate(self, embeddings: torch.Tensor, width: int | None) -> torch.Tensor:
        """The first `width` dimensions of embeddings `[N, D]`, normalised again (Matryoshka); all where it is None."""
        if width is None or width == self.config.hidden_size:
            return embeddings
        embeddings = embeddings[:, :width]
        return F.normalize(embeddings, dim=-1) if self.config.normalize else embeddings

    quantize = staticmethod(quantize)

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


class UniMERerankerForCausalLM(ListRanking, VLMGenerationMixin, UniMEPreTrainedModel):
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
        self.take_signature()
        self.vision_cache = VisionCache()

    def _build_vlm(self, config):
        vlm = super()._build_vlm(config)
        if config.head is not None:
            vlm.lm_head = ranking_head(config.head)
        return vlm

    @classmethod
    def _load_vlm(cls, path, config, kwargs: dict, preset: str):
        """As in the base class; where the preset's score is a head's, it is loaded in the place of the output head."""
        require_generating_class(config, path)
        if not _has_head(rules_of(preset)):
            return super()._load_vlm(path, config, kwargs, preset)

        config = kwargs["config"] = untied(config)
        kwargs["key_mapping"] = {r"^model\.visual\.": "visual.", r"^score\.": "lm_head."}
        stock_class = cls._vlm_class._model_mapping[type(config)]
        class_with_head = with_ranking_head(stock_class, config.get_text_config().hidden_size)
        vlm = super()._load_vlm(path, config, kwargs, preset, class_with_head)
        vlm.__class__ = stock_class  # which the saved configuration names
        return vlm

    @classmethod
    def _wrap_config(cls, vlm_config, preset, **fields):
        head = None
        if _has_head(rules_of(preset)):
            vlm_config = untied(vlm_config)
            width = vlm_config.get_text_config().hidden_size
            head = [width, width, 1]
        return cls.config_class(vlm_config=vlm_config, head=head, **fields)

    def use_preset(self, preset: str, **settings):
        """As in [`~UniMEPreTrainedModel.use_preset`].

        Raises:
            ValueError: the preset's score is a head's, and the model has none, or the other way round.
        """
        preset = resolve_preset(preset)
        if _has_head(rules_of(preset)) != (self.config.head is not None):
            needs = "needs a ranking head" if self.config.head is None else "asks for words"
            has = "an output head" if self.config.head is None else "a ranking head"
            raise ValueError(f"the preset {shown(preset)!r} {needs}, but this model has {has}.")
        super().use_preset(preset, **settings)

    @classmethod
    def from_backbone(cls, path_or_repo, preset: str | None = None, **kwargs):
        model = super().from_backbone(path_or_repo, preset, **kwargs)
        model.generation_config = model.vlm.generation_config
        return model

    from_backbone.__func__.__doc__ = UniMEPreTrainedModel.from_backbone.__doc__

    def save_pretrained(self, *args, **kwargs):
        # it is a class of two Auto classes, and transformers registers the one of `register_for_auto_class`
        auto_map = getattr(self.config, "auto_map", None) or {}
        reference = f"{type(self).__module__.rpartition('.')[2]}.{type(self).__name__}"
        self.config.auto_map = {**auto_map, "AutoModelForImageTextToText": reference}
        super().save_pretrained(*args, **kwargs)

    save_pretrained.__doc__ = UniMEPreTrainedModel.save_pretrained.__doc__

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
        repetition_penalty: float | None = None,
        share_prefix: bool = True,
        output: str | None = None,
        benchmark: str | None = None,
        *,
        instruction: str | None = None,
    ) -> torch.Tensor:
        """Probability that each candidate meets the query: softmax over the logits of two answers (2510.13515).

        The presets of other authors' rerankers have questions of their own, and answers or a head that is scored.

        Args:
            query: a string, PIL image, path, or dict of `"text"` with `"image"` or `"video"`.
            candidates (`list`): items of the same kinds.
            batch_tokens (`int`, defaults to 8192): padded tokens of one forward pass.
            resolution (*optional*): as in [`~UniMEModel.encode`].
            answer_format (`str`): `"yes_no"` asks for Yes or No; `"multiple_choice"` for A or B, which an untrained
                judge answers better (FreeRet).
            sum_variants (`bool`): add up the probabilities of all spellings of an answer that are one token (`yes`,
                ` Yes`, ...).
            repetition_penalty (`float`, *optional*): divides the logit of answers that occur in the prompt, as
                `generate` does; above 0. By default the preset's, mostly 1, which changes nothing; 1.05 gives the
                scores published with UniME-V2.
            share_prefix (`bool`, defaults to `True`): run what all prompts begin with once, and see every image once,
                kept in `vision_cache` for later calls. Off, every prompt is run whole.
            output (`str`, *optional*): `"probability"`, or `"logit"` for the log-odds of Yes against No (what a
                ranking head gives, with its shift). Probabilities of confident answers are all 1.0 in float32; their
                log-odds still differ, so compare and sort by these. By default what the authors of the preset report,
                mostly probabilities.
            benchmark (`str`, *optional*): `"mmeb"`, `"retrieval"` or `"sugarcrepe"`: show items as the preset does on
                this kind of benchmark.
            instruction (`str`, *optional*): what the query is to be read as. It stands where the preset has a place
                for it, else before the query's text. By default the one that was saved with the model, except on a
                benchmark; `""` for none.

        Returns:
            float32 tensor `[len(candidates)]`: probabilities in [0, 1], or log-odds. A preset that only puts lists in
            order gives places instead: N for the best of N candidates, 1 for the last.

        Raises:
            ValueError: an option is unknown or out of range, or a candidate cannot be read; the message names it.
            TypeError: `output` is asked of a preset that gives places.
        """
        _check_candidates(candidates)
        if output is not None:
            one_of("output", output, *OUTPUTS)
        if repetition_penalty is not None and not 0 < repetition_penalty < float("inf"):
            raise ValueError(f"repetition_penalty must be a number above 0, got {repetition_penalty}.")
        one_of("answer_format", answer_format, *POINTWISE)
        if not candidates:
            return torch.empty(0)
        if self.gives_places:
            if output is not None:
                raise TypeError(
                    f"output means nothing to the preset {self.processor.preset!r}, which gives places in a list and "
                    "neither probabilities nor log-odds."
                )
            reading = {"resolution": resolution, "benchmark": benchmark, "instruction": instruction}
            window = self._lists.window
            return self._windowed_places(query, candidates, window, 1, 0, batch_tokens, show_progress, reading)

        names = [f"candidate {i}" for i in range(len(candidates))]

        # each candidate in a prompt of its own
        questions = []
        for candidate, name in zip(candidates, names):
            questions.append(self.processor.question(query, candidate, name, answer_format, benchmark, instruction))
        prepared = self.processor.prepare(questions, names=names, resolution=resolution)

        # one forward pass gives the logits of both answers
        yes_tokens, no_tokens = self._answer_tokens(answer_format, sum_variants)
        tokens = [*yes_tokens, *no_tokens]
        logits = self._next_logits(prepared, tokens, batch_tokens, share_prefix, show_progress)
        if repetition_penalty is None:
            repetition_penalty = self.repetition_penalty
        logits = penalised(logits, occurrences(prepared, tokens), repetition_penalty)  # [N, yes tokens + no tokens]

        log_odds = self._log_odds(logits[:, : len(yes_tokens)], logits[:, len(yes_tokens) :])  # [N]

        # confident answers are told apart by their log-odds alone
        output = output or self.default_output
        return log_odds if output == "logit" else log_odds.sigmoid()

    def _log_odds(self, yes: torch.Tensor, no: torch.Tensor) -> torch.Tensor:
        """Log-odds `[N]` from the logits `[N, yes tokens]` and `[N, no tokens]` of the spellings of two answers.

        A ranking head has one output and no answer against it.
        """
        judging = self.processor.rules.judging
        if self.config.head is not None:
            return judging.scale * yes[:, 0] + judging.shift

        # the logits of all spellings of an answer become one, whose probability is their sum
        return yes.logsumexp(dim=1) - no.logsumexp(dim=1)

    def log_odds_after(self, logits: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Log-odds of Yes against No, as `score` has them, from what the model says after its prompts.

        Args:
            logits (`FloatTensor` `[N, vocabulary]`): of the token after each prompt.
            input_ids (`LongTensor` `[N, L]`): the prompts.

        Returns:
            `FloatTensor` `[N]`.
        """
        (yes, *_), no_tokens = self._answer_tokens("yes_no", False)
        tokens = torch.tensor([yes, *no_tokens[:1]], device=logits.device)
        occurs = (input_ids[:, :, None] == tokens).any(dim=1)  # [N, tokens]
        logits = penalised(logits[:, tokens], occurs, self.repetition_penalty)
        return self._log_odds(logits[:, :1], logits[:, 1:])

    @property
    def gives_places(self) -> bool:
        """Whether the preset only puts lists in order, and knows no score of a single candidate."""
        judging = self.processor.rules.judging
        return judging is not None and judging.turn is None and not judging.by_roles

    @property
    def default_output(self) -> str:
        """`"probability"` or `"logit"`, whichever the authors of the preset report."""
        judging = self.processor.rules.judging
        return "probability" if judging is None else judging.output

    @property
    def repetition_penalty(self) -> float:
        """The penalty on answers that occur in the prompt, where a call names none."""
        judging = self.processor.rules.judging
        if judging is None:
            return 1.0
        if judging.penalty == "generation":
            return getattr(self.generation_config, "repetition_penalty", None) or 1.0
        return judging.penalty

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
        output: str | None = None,
        benchmark: str | None = None,
        instruction: str | None = None,
        **scoring,
    ) -> list[dict]:
        """Ranks candidates, best first.

        Args:
            query, candidates, batch_tokens, resolution, show_progress: as in [`~UniMERerankerForCausalLM.score`].
            strategy (`str`): `"pointwise"` sorts by the log-odds of `score`. `"listwise"` shows all candidates at once
                and reads the distribution of the number after the forced prefix `Ans: (`; a list that does not fit
                is put in order by windows of neighbours, from its end to its beginning, and the scores are places.
                So it is with presets that have windows of their own. `"fused"` sorts by retrieval score plus
                `weight` times `score`, and equal sums by log-odds. `"generate"` is the procedure released with
                UniME-V2: the model writes an answer, the candidate it names comes first and the others keep their
                order.
            rounds (`int`, defaults to 1): listwise passes, each after the first with the candidates shuffled; their
                distributions are averaged, which cancels a liking for certain positions.
            seed (`int`): of the shuffling.
            retrieval_scores (`list[float]`): of the candidates, for `"fused"`.
            weight (`float`): of the reranker's score, for `"fused"`.
            top_k (`int`, *optional*): how many entries to return, best first; all by default.
            return_documents (`bool`, defaults to `False`): return each candidate too, as `"text"`, whatever its kind.
            output (`str`, *optional*): `"probability"`, or `"logit"` for log-odds, which `"fused"` then adds in
                place of probabilities. Otherwise the order is the same with either, and places stay places. By
                default as in `score`.
            benchmark, instruction (`str`, *optional*): as in [`~UniMERerankerForCausalLM.score`].
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
        if scoring and (strategy in ("listwise", "generate") or self.gives_places):
            raise TypeError(f"{', '.join(scoring)} means nothing to the strategy {strategy!r}.")
        if output is not None:
            one_of("output", output, *OUTPUTS)
        if output == "logit" and strategy == "generate":
            raise TypeError("output means nothing to the strategy 'generate', which gives no scores.")
        if top_k is not None and top_k < 0:
            raise ValueError(f"top_k must not be negative, got {top_k}.")
        _check_candidates(candidates)

        # to the other strategies they mean nothing
        if strategy == "fused":
            retrieval_scores = as_retrieval_scores(retrieval_scores, len(candidates), weight)  # [N]
        else:
            retrieval_scores = None
        if not candidates:
            return []

        reading = {"resolution": resolution, "benchmark": benchmark, "instruction": instruction}
        if strategy == "generate":
            scores = [None] * len(candidates)
            order = self._order_by_generation(query, candidates, reading)
        elif strategy == "listwise" or self.gives_places:
            passes = (rounds, seed, batch_tokens, show_progress, reading)
            window = self.list_window(query, candidates, reading)
            if self.gives_places or window < len(candidates):
                values = self._windowed_places(query, candidates, window, *passes)  # [N]
                output = "logit"  # as they are
            else:
                values = self._listwise_log_odds(query, candidates, *passes)  # [N]
            scores, order = ranked(values, output or self.default_output, retrieval_scores, weight)
        else:
            scoring |= {"output": "logit", **reading}
            log_odds = self.score(query, candidates, batch_tokens, show_progress, **scoring)  # [N]
            scores, order = ranked(log_odds, output or self.default_output, retrieval_scores, weight)

        ranking = []
        for index in order[:top_k]:
            entry = {"index": index, "corpus_id": index, "score": scores[index]}
            if return_documents:
                entry["text"] = candidates[index]
            ranking.append(entry)
        return ranking

    def _next_logits(self, prepared, tokens, batch_tokens, share_prefix, show_progress) -> torch.Tensor:
        """Logits `[N, len(tokens)]` of the token after each prompt, float32."""
        columns = torch.tensor(tokens)
        is_silent = not wants_progress(show_progress, len(prepared) // 8)
        with self._inference(), tqdm(total=len(prepared), desc="Scoring", disable=is_silent, unit="item") as bar:
            logits = self._shared_logits(prepared, columns, batch_tokens, bar) if share_prefix else None
            if logits is None:
                logits = self._separate_logits(prepared, columns, batch_tokens, bar)

        # a broken weight shows here first
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
        """The tokens of the answers whose log-odds a pointwise score is.

        Raises:
            ValueError: the score is that of a ranking head.
        """
        if self.config.head is not None:
            raise ValueError(f"the preset {self.processor.preset!r} scores with a ranking head, not with two answers.")
        yes, no = self._answer_tokens("yes_no", False)
        return yes[0], no[0]

    def _answer_tokens(self, answer_format: str, sum_variants: bool) -> list[list[int]]:
        """The columns of the logits that speak for a candidate, and those against it."""
        judging = self.processor.rules.judging
        if self.config.head is not None:
            return [[0], []]
        return self._answers(POINTWISE[answer_format][1:] if judging is None else judging.words, sum_variants)

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


def require_generating_class(config, source):
    """Refuses a backbone that has no class with an output head, as an encoder has none.

    Args:
        config (`PreTrainedConfig`): of the backbone.
        source: its folder or repository, for the message.

    Raises:
        ValueError: transformers knows no such class.
    """
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise ValueError(
            f"{source} is a {config.model_type}, which transformers knows no generating class for: it can neither "
            "judge nor be exported."
        )


def _has_head(preset) -> bool:
    """Whether a preset's score is that of a ranking head, and not of words."""
    return preset.judging is not None and preset.judging.words is None


def _flat_positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """The number `[N, L]` of each attended token."""
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


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
    for auto_class in (AutoModelForCausalLM, AutoModelForImageTextToText):
        auto_class.register(UniMERerankerConfig, UniMERerankerForCausalLM, exist_ok=True)

__all__ = ["UniMEModel", "UniMEOutput", "UniMEPreTrainedModel", "UniMERerankerForCausalLM"]
