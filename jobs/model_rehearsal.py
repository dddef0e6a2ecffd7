"""Rehearsals of an embedder and of a reranker over items, for the commands that mine and measure."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..checkpoints.dual_encoders import is_dual_encoder
from ..checkpoints.opening import open_checkpoint, require_kind
from ..data.collators import Fed
from ..data.schema import Item
from ..images_unime import read_size
from ..processing_unime import Reading
from . import estimates
from .embedding import Embedder
from .prompts import changes, examples, reading
from .rehearsal import Rehearsal
from .reranking import Reranker

SAMPLE = 128  # items of a role that are read
READING = ("instruction", "max_length", "resolution", "fusion")  # options of `encode` that decide a prompt
BATCH_TOKENS = 8192  # of `encode` and `score`, where nothing is said


class WordedItem(NamedTuple):
    """An item, and what may decide its wording.

    Args:
        item ([`~unime.data.schema.Item`]): a text, an image, or both.
        benchmark (`str`, *optional*): the kind of benchmark that it belongs to.
        dataset (`str`): the data set that it belongs to.
    """

    item: Item
    benchmark: str | None = None
    dataset: str = ""


def rehearse_embedder(
    embedder: Embedder, roles: dict[str, Sequence[WordedItem]], given: dict[str, str], of_training: bool = False
) -> Rehearsal:
    """How an embedder reads items, and what that costs.

    Args:
        embedder ([`~unime.jobs.embedding.Embedder`]): as the command made it; it is not loaded.
        roles (`dict[str, Sequence[WordedItem]]`): the items that are embedded as `"query"` and as `"document"`.
        given (`dict[str, str]`): where `preset` and the options of `encode` were given.
        of_training (`bool`, defaults to `False`): as in [`~unime.jobs.embedding.Embedder.encode`].
    """
    if embedder.library != "unime":
        return Rehearsal("", {"Embedder": {"checkpoint": str(embedder.source), "library": embedder.library}})
    if is_dual_encoder(embedder.source, embedder.trust_remote_code):
        return Rehearsal("", {"Embedder": {"checkpoint": str(embedder.source), "kind": "dual encoder"}})

    # without weights, which take longest to load
    model = open_checkpoint(
        embedder.source, embedder.preset, weights=False, trust_remote_code=embedder.trust_remote_code
    )
    require_kind(model, embedder.source, reranker=False)
    processor = model.processor
    settings = {name: embedder.options[name] for name in READING if name in embedder.options}

    fed = []
    problems = []
    work = []
    for role, items in roles.items():
        worded = dict(settings)
        if of_training:
            worded.setdefault("instruction", processor.default_instruction(role))

        # a sample: to read millions of items would take as long as the job
        entries, messages = _read(processor, items[:SAMPLE], role, worded)
        fed += entries
        problems += messages
        work.append(_work(model, role, len(items), entries, embedder.options))

    how = reading(model, given, settings)
    facts = {
        "Embedder": _model(model, embedder.source, embedder.dtype),
        "How the embedder reads": how,
        "Prompts of the embedder": examples(fed, processor, _size),
        "Embedding": work,
    }
    return Rehearsal("", facts, _of("the embedder", changes(model, how, embedder.source)), problems)


def rehearse_reranker(reranker: Reranker, questions: Iterable[tuple], given: dict[str, str], count: int) -> Rehearsal:
    """How a reranker or judge reads questions, and what that costs.

    Args:
        reranker ([`~unime.jobs.reranking.Reranker`]): as the command made it; it is not loaded.
        questions (`Iterable[tuple]`): `(kind, query, candidates, strategy, benchmark)` of some questions.
        given (`dict[str, str]`): where the options were given.
        count (`int`): how many questions there will be at most.
    """
    source = reranker.source
    options = reranker.options
    model = open_checkpoint(
        source, reranker.preset, reranker=True, weights=False, trust_remote_code=reranker.trust_remote_code
    )
    require_kind(model, source, reranker=True)
    processor = model.processor

    fed = []
    problems = []
    for number, (kind, query, candidates, strategy, benchmark) in enumerate(questions):
        inputs = [candidate.as_input() for candidate in candidates]

        # one that cannot be read is reported, and the others are shown all the same
        try:
            question = _question(model, query.as_input(), inputs, strategy, benchmark, options)
            (prepared,) = processor.prepare([question], names=[str(query)], resolution=options.get("resolution"))
        except (ValueError, OSError) as error:
            problems.append(f"{kind}: {error}")
            continue

        fed.append(Fed(kind, (kind, number), prepared))

    how = reading(model, given, {"resolution": options.get("resolution")})
    facts = {
        "Reranker": _model(model, source, reranker.dtype),
        "How the reranker reads": how,
        "Prompts of the reranker": examples(fed, processor, _size),
        "Reranking": [_work(model, "question", count, fed, options)],
    }
    return Rehearsal("", facts, _of("the reranker", changes(model, how, source)), problems)


def _question(model, query, candidates: list, strategy: str, benchmark: str | None, options: dict):
    """What a reranker is asked about candidates: about the first window of them, where its preset has windows."""
    processor = model.processor
    instruction = options.get("instruction")

    # a long list is shown in windows, of which the first is rehearsed
    if model.gives_places or strategy == "listwise":
        reading = {"resolution": options.get("resolution"), "benchmark": benchmark, "instruction": instruction}
        candidates = candidates[: model.list_window(query, candidates, reading)]

    if model.gives_places:
        names = [f"candidate {number}" for number in range(len(candidates))]
        return processor.list_question(query, candidates, names, instruction, benchmark)

    if strategy == "listwise":
        return processor.rerank_messages(query, candidates, strategy, benchmark=benchmark, instruction=instruction)

    # one candidate at a time
    answer_format = options.get("answer_format", "yes_no")
    return processor.question(query, *candidates, "candidate 0", answer_format, benchmark, instruction)


def _read(processor, items: Sequence[WordedItem], role: str, settings: dict) -> tuple[list[Fed], list[str]]:
    """The sequences of some items, and what is wrong with those that cannot be read."""
    fed = []
    problems = []
    for item, benchmark, dataset in items:
        worded_as, wording = processor.wording(role, benchmark, dataset)
        how = Reading(role=worded_as, benchmark=wording, **settings)

        # each by itself, since one that cannot be read would hide the others
        try:
            _, parts = processor.prepare_parts([item.as_input()], how, [str(item)])
        except (ValueError, OSError) as error:
            problems.append(f"{role}: {error}")
            continue

        for number, prepared in enumerate(parts):
            fed.append(Fed(f"{role} ({item.modality})", (role, item, number), prepared))
    return fed, problems


def _work(model, role: str, count: int, fed: list[Fed], options: dict) -> dict:
    """Tokens and arithmetic of a job over so many items, in the proportion of a sample of them."""
    prepared = [entry.prepared for entry in fed]
    flops = estimates.forward_flops(model.vlm, model.processor, prepared)
    tokens = 0
    image_tokens = 0
    longest = 0
    for entry in prepared:
        tokens += entry.length
        image_tokens += sum(entry.image_tokens)
        longest = max(longest, entry.length)

    # an item may be several sequences, which have the rest of the key in common
    sampled = len({entry.key[:2] for entry in fed})
    scale = count / max(1, sampled)
    return {
        "read as": role,
        "items": count,
        "tokens": round(tokens * scale),
        "longest": longest,
        "image tokens": round(image_tokens * scale),
        "batch_tokens": options.get("batch_tokens", BATCH_TOKENS),
        "arithmetic": estimates.tera(sum(flops.values()) * scale),
    }


def _model(model, source, dtype: str) -> dict:
    """What the model is, and the memory of its weights."""
    return {
        "checkpoint": str(source),
        "architecture": model.vlm.config.model_type,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": dtype,
        "weights": estimates.gib(estimates.weight_bytes(model.vlm, dtype, None)),
    }


def _size(image) -> tuple[int, int]:
    return read_size(image, str(image))


def _of(name: str, messages: list[str]) -> list[str]:
    return [f"{name}: {message}" for message in messages]
