"""The rehearsal of mining: its rows, how embedder and judge read them, and what can be selected."""

from collections.abc import Iterator

from ..data.readers import Findings
from ..data.schema import Item
from ..items_unime import judge_messages
from ..jobs.model_rehearsal import WordedItem, rehearse_embedder, rehearse_reranker
from ..jobs.rehearsal import Rehearsal
from ..jobs.reranking import Reranker
from .pools import Pool, rows_of

EMBEDDING = ("run", "embed", "saha")  # steps that embed
JUDGING = ("run", "judge")
SELECTING = ("run", "retrieve", "select")
EXAMPLES = 3


def rehearse(config, step: str, given: dict[str, str]) -> Rehearsal:
    """Rehearses a step of mining; nothing is written.

    Args:
        config ([`~unime.mining.settings.MiningConfig`]): the settings.
        step (`str`): of `unime mine`.
        given (`dict[str, str]`): where each setting was given.

    Raises:
        ValueError: `data`, or a model that the step needs, is missing, or no row can be read.
    """
    if config.data is None:
        raise ValueError("`data` is missing; set it in the recipe or on the command line.")

    # with findings, rows that cannot be read are collected: a rehearsal names all of them
    findings = Findings()
    rows = rows_of(config, config.data, config.image_root, findings)
    pool = Pool(rows)

    rehearsal = Rehearsal(f"unime mine {step}")
    rehearsal.errors += [f"{problem.where}: {problem.reason}" for problem in findings.problems]
    rehearsal.facts["Rows"] = {
        "rows": len(rows),
        "data sets": len(set(rows["dataset"])),
        "unusable rows": len(findings.problems),
        "distinct queries": len(pool.queries),
        "distinct candidates": len(pool.candidates),
        "distinct pairs": len(pool.pairs),
    }
    rehearsal.facts["Data sets"] = _data_sets(pool)

    if step in EMBEDDING:
        rehearsal.include(_embedder(config, pool, given))
    if step in JUDGING:
        rehearsal.include(_judge(config, pool, given))
    if step in SELECTING:
        rehearsal.include(_selection(config, pool))
    if step == "saha":
        rehearsal.include(_clusters(config, pool))
    return rehearsal


def _data_sets(pool: Pool) -> list[dict]:
    """Pairs and candidates of each data set."""
    counts = {}
    for pair in pool.pairs:
        counts[pair.dataset] = counts.get(pair.dataset, 0) + 1

    candidates = pool.by_dataset()
    rows = []
    for name, count in counts.items():
        rows.append({"data set": name, "pairs": count, "candidates": len(candidates[name])})
    return rows


def _options(given: dict[str, str], setting: str, options: dict) -> dict[str, str]:
    """Where each of some options was given: with the setting that holds them."""
    return dict.fromkeys(options, given.get(setting, "default"))


def _embedder(config, pool: Pool, given: dict[str, str]) -> Rehearsal:
    """The embedder over queries and candidates."""
    # made as `embed` makes it, but never loaded
    embedder = config.make_embedder()
    sources = _options(given, "embedder_options", config.embedder_options)
    if "embedder_preset" in given:
        sources["preset"] = given["embedder_preset"]

    # training rows are worded as they will be in training
    roles = {
        "query": [WordedItem(item, "mmeb") for item in pool.queries],
        "document": [WordedItem(item, "mmeb") for item in pool.candidates],
    }
    return rehearse_embedder(embedder, roles, sources, of_training=True)


def _judge(config, pool: Pool, given: dict[str, str]) -> Rehearsal:
    """The judge over pairs and their neighbours, here or on a server."""
    if config.judge is None:
        raise ValueError("`judge` is missing: a folder or repository, or the name under which the server knows it.")

    # the positive is judged, too
    count = len(pool.pairs) * (config.top_k + 1)
    if config.server:
        return _server(config, pool, count)

    judge = Reranker(
        config.judge,
        dtype=config.judge_dtype,
        trust_remote_code=config.trust_remote_code,
        preset=config.judge_preset,
        **config.judge_options,
    )
    sources = _options(given, "judge_options", config.judge_options)
    if "judge_preset" in given:
        sources["preset"] = given["judge_preset"]
    rehearsal = rehearse_reranker(judge, _questions(pool), sources, count)
    rehearsal.facts["Judge"] = {"options": str(config.judge_options or "none")}
    return rehearsal


def _questions(pool: Pool) -> Iterator[tuple[str, Item, list[Item], str, None]]:
    """Questions about the first pairs of each data set: about the positive, and about the next candidate."""
    names = set()
    for pair in pool.pairs:
        if pair.dataset in names:
            continue
        names.add(pair.dataset)

        # what is nearest is known after the embedding only
        other = pool.candidates[(pair.positive + 1) % len(pool.candidates)]
        yield "positive", pair.query_item, [pair.item], "pointwise", None
        yield "candidate", pair.query_item, [other], "pointwise", None


def _server(config, pool: Pool, count: int) -> Rehearsal:
    """What a server is sent: the messages, as its own tokenizer is not here."""
    answer_format = config.judge_options.get("answer_format", "yes_no")
    questions = list(_questions(pool))[: 2 * EXAMPLES]  # two of each data set

    rows = []
    for kind, query, candidates, strategy, _ in questions:
        inputs = [candidate.as_input() for candidate in candidates]
        messages = judge_messages(query.as_input(), inputs, strategy, answer_format=answer_format)
        pieces = [piece.get("text", "<image>") for piece in messages[0]["content"]]
        rows.append({"kind": kind, "prompt": "".join(pieces)})

    facts = {
        "Judge": {
            "server": config.server,
            "model": config.judge,
            "options": str({**config.judge_options, **config.server_options}),
            "requests at most": count,
        },
        "Messages to the judge": rows,
    }
    return Rehearsal("", facts)


def _selection(config, pool: Pool) -> Rehearsal:
    """How negatives are selected, and where there are too few candidates for that."""
    names = ("pool", "delta", "top_k", "num_negatives", "margin", "stride", "repeat", "fallback", "seed")
    rehearsal = Rehearsal("", {"Selection": {name: getattr(config, name) for name in names}})

    # what a query can choose from
    sizes = {"all data sets": len(pool.candidates)}
    if config.pool == "dataset":
        sizes = {name: len(numbers) for name, numbers in pool.by_dataset().items()}

    # with fewer than top_k, all of them are judged, which does no harm
    for name, size in sizes.items():
        message = f"{name}: a query has {size - 1} candidates beside its positive, "
        if size - 1 < config.num_negatives:
            rehearsal.errors.append(message + f"num_negatives is {config.num_negatives}.")
        elif size - 1 < config.top_k:
            rehearsal.warnings.append(message + f"top_k is {config.top_k}.")
    return rehearsal


def _clusters(config, pool: Pool) -> Rehearsal:
    """How clusters are made; a data set of few labels has smaller ones, as with the authors."""
    names = ("cluster_size", "pool_multiplier", "label_datasets")
    rehearsal = Rehearsal("", {"Clusters": {name: getattr(config, name) for name in names}})

    for name, numbers in pool.by_dataset().items():
        if len(numbers) - 1 < config.cluster_size:
            rehearsal.warnings.append(
                f"{name}: a cluster has at most {len(numbers) - 1} negatives, cluster_size is {config.cluster_size}."
            )
    return rehearsal
