"""The mining commands: from raw pairs to judged hard negatives, each step a resumable stage in one folder.

    unime mine run --config recipes/mining/unime-v2.yaml --data MMEB-train --out mined
    accelerate launch -m unime.cli mine run --config ...        # the same, over many processes

`run` does `embed`, `retrieve`, `judge` and `select`, which are commands of their own; `saha` makes clusters from the
embeddings, and `inspect` a page to look at.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache, partial
from pathlib import Path

import numpy as np

from ..checkpoints.opening import open_checkpoint
from ..data.readers import Findings, read_rows
from ..data.schema import Example, Item, content_hash, to_example
from ..jobs.embedding import Embedder, checkpoint_fingerprint, embed, image_name, item_name
from ..jobs.shards import (
    MANIFEST,
    check_manifest,
    fingerprint,
    processes,
    read_errors,
    read_job,
    run_job,
    write_text,
)
from .judging import LocalJudge, ServerJudge
from .retrieval import Corpus, exact_top_k
from .saha import clusters, is_label_type
from .selection import Pair, Pool, select
from .writers import write_judged

COPY = 1e-5  # similarities of equal embeddings differ by less, depending on the batch they were computed in


@dataclass
class MiningConfig:
    """Settings of `unime mine`; the defaults are UniME-V2's (2510.13515 section 3)."""

    data: str | None = field(default=None, metadata={"help": "Rows of any layout of unime.data.readers.read_rows."})
    out: str | None = field(default=None, metadata={"help": "Folder for everything that is made."})
    image_root: str | None = field(default=None, metadata={"help": "Where image paths start; the data's folder else."})
    subsets: list[str] | None = field(default=None, metadata={"help": "Data sets to take; all by default."})
    split: str = field(default="original", metadata={"help": "MMEB-train: original or diverse_instruction."})
    rows_per_subset: int | None = field(default=None, metadata={"help": "At most that many rows of each data set."})
    mined_per_subset: int | None = field(
        default=None, metadata={"help": "Mine for that many pairs of each data set; the others are candidates only."}
    )
    retry_failed: bool = field(default=False, metadata={"help": "Do shards with failed rows once more."})
    # embed
    embedder: str | None = field(default=None, metadata={"help": "Folder or repository of the embedder."})
    embedder_library: str = field(default="unime", metadata={"help": "unime or sentence-transformers."})
    embedder_preset: str | None = field(default=None, metadata={"help": "Prompts, for a stock VLM."})
    embedder_dtype: str = field(default="auto", metadata={"help": "auto is the checkpoint's own."})
    embedder_options: dict | str | None = field(
        default_factory=dict, metadata={"help": "For encode: batch_tokens, ..."}
    )
    embed_shard: int = field(default=1024, metadata={"help": "Items of one shard."})
    # retrieve
    top_k: int = field(default=50, metadata={"help": "Potential hard negatives of each pair."})
    pool: str = field(default="global", metadata={"help": "Candidates of all (global) or its own (dataset)."})
    delta: str = field(
        default="positive",
        metadata={"help": "Candidates must be less similar than the positive (positive), than a number, or none."},
    )
    index: str = field(default="exact", metadata={"help": "exact, flat or ivf (both FAISS)."})
    ivf_lists: int | None = field(default=None, metadata={"help": "Cells of ivf; 4 sqrt(N) by default."})
    ivf_probes: int = field(default=32, metadata={"help": "Cells that ivf looks into."})
    retrieve_shard: int = field(default=8192, metadata={"help": "Pairs of one shard."})
    # judge
    judge: str | None = field(default=None, metadata={"help": "Folder or repository of the judge."})
    judge_dtype: str = field(default="auto", metadata={"help": "auto is the checkpoint's own."})
    judge_options: dict | str | None = field(
        default_factory=dict, metadata={"help": "For score: answer_format, resolution, batch_tokens, ..."}
    )
    judge_shard: int = field(default=32, metadata={"help": "Pairs of one shard."})
    server: str | None = field(default=None, metadata={"help": "An OpenAI-compatible server that judges instead."})
    server_options: dict | str | None = field(
        default_factory=dict, metadata={"help": "concurrency, timeout, attempts, key_variable, ..."}
    )
    # select
    num_negatives: int = field(default=10, metadata={"help": "Hard negatives of each row."})
    margin: str = field(default="0.01", metadata={"help": "beta of s <= s_pos - beta, or released."})
    stride: int = field(default=5, metadata={"help": "Step of the cyclic sampling."})
    fallback: str = field(default="drop", metadata={"help": "No survivor: drop, judge_lowest or released."})
    seed: int = field(default=0, metadata={"help": "Of random choices."})
    name: str = field(default="judged", metadata={"help": "Name of the file of selected rows, and of the page."})
    # saha
    cluster_size: int = field(default=15, metadata={"help": "Negatives of a cluster."})
    pool_multiplier: int = field(default=3, metadata={"help": "Owners looked at, for each that is kept."})
    label_datasets: list[str] | None = field(
        default=None, metadata={"help": "Data sets whose targets are labels; measured by default."}
    )
    # inspect
    count: int = field(default=20, metadata={"help": "Rows on the page."})

    def __post_init__(self):
        for name in ("embedder_options", "judge_options", "server_options"):
            if isinstance(value := getattr(self, name), str):
                setattr(self, name, json.loads(value))
        if self.delta not in ("positive", "none"):
            float(self.delta)
        if self.margin != "released":
            float(self.margin)


class Mining:
    """The steps over one folder. Each needs what the one before it left there.

    Args:
        config ([`MiningConfig`]).
    """

    def __init__(self, config: MiningConfig):
        for name in ("data", "out"):
            if getattr(config, name) is None:
                raise ValueError(f"`{name}` is missing.")
        self.config = config
        self.state = processes()
        self.out = Path(config.out)
        self.out.mkdir(parents=True, exist_ok=True)
        data = Path(config.data)
        self.image_root = Path(config.image_root or (data if data.is_dir() else data.parent))

    @cached_property
    def _read(self) -> tuple[Pool, list[dict]]:
        """The pool of all usable rows, and the others as `errors.jsonl` has them."""
        config, found = self.config, Findings()
        rows = read_rows(config.data, config.image_root, config.subsets, config.split, config.rows_per_subset, found)
        self.say(f"{len(rows)} rows of {len(set(rows['dataset']))} data sets; {len(found.problems)} unusable")
        if not len(rows):
            raise ValueError(f"{config.data} has no usable row; {found.problems[0].where}: {found.problems[0].reason}")
        unread = [{"stage": "read", "row": where, "reason": reason} for where, reason in found.problems]
        return Pool.of(map(to_example, rows)), unread

    @property
    def pool(self) -> Pool:
        return self._read[0]

    def say(self, text: str, end: str = "\n"):
        if self.state.is_main_process:
            print(text, end=end, flush=True)

    # steps
    def embed(self):
        """Embeds the distinct queries and candidates."""
        if self.config.embedder is None:
            raise ValueError("`embedder` is missing.")
        embedder = Embedder(
            self.config.embedder,
            self.config.embedder_library,
            self.config.embedder_preset,
            self.config.embedder_dtype,
            **self.config.embedder_options,
        )
        for name, items, role in self._roles():
            shards = (self.config.embed_shard, self.config.retry_failed)
            done = embed(self.out / name, items, embedder, role, self.image_root, *shards)
            self.say(f"{name}: {done} of {len(items)} embedded")
        self._write_errors()

    def _roles(self):
        return (("queries", self.pool.queries, "query"), ("candidates", self.pool.candidates, "document"))

    def embeddings(self) -> dict[str, np.ndarray]:
        """Those of `queries` and `candidates`; rows of items that could not be embedded are zero."""
        found = {}
        for name, items, _ in self._roles():
            stage = self._finished(name, "embed", self._item_keys(items))
            found[name] = np.zeros((len(items), stage["embeddings"].shape[1]), np.float32)
            found[name][stage["row"]] = stage["embeddings"]
        return found

    @cached_property
    def embedded(self) -> dict[str, np.ndarray]:
        """Which of the queries and candidates could be embedded: bool `[N]`."""
        found = {}
        for name, items, _ in self._roles():
            rows = self._finished(name, "embed", self._item_keys(items), ())["row"]
            found[name] = np.isin(np.arange(len(items)), rows)
        return found

    @cached_property
    def _item_key(self) -> Callable[[Item], str]:
        """`item_name`, which asks the disk for an image's size, once for each item."""
        return cache(partial(item_name, image_root=self.image_root))

    def _item_keys(self, items) -> list[str]:
        return list(map(self._item_key, items))

    def _finished(self, name: str, command: str, keys: Iterable[str], arrays=None) -> dict[str, np.ndarray]:
        """The results of a step, which must be finished and have been made from these rows."""
        try:
            found = read_job(self.out / name, arrays)
        except ValueError as error:
            raise ValueError(f"{error} (`unime mine {command}` comes first.)") from error
        keys, manifest = list(keys), self._manifest(name)
        if manifest["rows"] != len(keys) or manifest["fingerprint"] != fingerprint(keys):
            raise ValueError(f"{self.out / name} was made from other rows ({manifest['rows']}, now {len(keys)}).")
        if keys and not len(found["row"]):
            raise ValueError(f"{self.out / name}: every row failed; {read_errors(self.out / name)[0]}")
        return found

    def _manifest(self, name: str) -> dict:
        return json.loads((self.out / name / MANIFEST).read_text(encoding="utf-8"))

    @cached_property
    def pairs(self) -> list[Pair]:
        """The pairs of which both parts were embedded."""
        queries, candidates = self.embedded["queries"], self.embedded["candidates"]
        return [pair for pair in self.pool.pairs if queries[pair.query] and candidates[pair.positive]]

    @cached_property
    def mined(self) -> list[Pair]:
        """The pairs that negatives are mined for."""
        limit, found = self.config.mined_per_subset, {}
        for pair in self.pairs:
            found.setdefault(pair.dataset, []).append(pair)
        return [pair for pairs in found.values() for pair in pairs[:limit]]

    def retrieve(self):
        """Finds the potential hard negatives of each pair."""
        config, found = self.config, self.embeddings()
        if config.pool not in ("global", "dataset"):
            raise ValueError(f"the pool must be 'global' or 'dataset', got {config.pool!r}.")
        queries, vectors, there = found["queries"], found["candidates"], self.embedded["candidates"]
        excluded, pools = self.pool.excluded(), self.pool.by_dataset()

        @lru_cache(maxsize=1)  # an index may be large, and rows of a data set stand together
        def corpus(name: str) -> Corpus:
            own = np.arange(len(vectors)) if config.pool == "global" else np.array(pools[name])
            index = (config.index, config.ivf_lists, config.ivf_probes, self.state.device)
            return Corpus(vectors, own[there[own]], *index)

        def work(part):
            neighbours = np.empty((len(part), config.top_k), np.int64)
            similarities = np.empty((len(part), config.top_k), np.float32)
            positive = np.array([queries[pair.query] @ vectors[pair.positive] for pair in part], np.float32)
            names = ["" if config.pool == "global" else pair.dataset for pair in part]
            for name in dict.fromkeys(names):
                rows = [row for row, own in enumerate(names) if own == name]
                below = None
                if config.delta != "none":
                    below = positive[rows] - COPY if config.delta == "positive" else [float(config.delta)] * len(rows)
                asked = [part[row].query for row in rows]
                neighbours[rows], similarities[rows] = corpus(name).top_k(
                    queries[asked], config.top_k, below, [excluded[query] for query in asked]
                )
            return {"neighbours": neighbours, "similarities": similarities, "positive_similarity": positive}

        names = ("top_k", "pool", "delta", "index", "ivf_lists", "ivf_probes")
        settings = {name: getattr(config, name) for name in names}
        for name in ("queries", "candidates"):
            manifest = self._manifest(name)
            settings[name] = {"fingerprint": manifest["fingerprint"], **manifest["settings"]}
        shards = (config.retrieve_shard, "Retrieving")
        self._stage("neighbours", self.mined, work, settings, self._pair_name, *shards, failures=())
        found = self._neighbours()["neighbours"]
        counts = (found >= 0).sum(1)
        self.say(f"neighbours: {counts.mean():.1f} of {config.top_k} a pair; none for {(counts == 0).sum()}")

    def _pair_name(self, pair: Pair) -> str:
        items = self._item_keys([self.pool.queries[pair.query], pair.item])
        return "\x01".join([*items, pair.dataset])

    def _judged_name(self, row: tuple[Pair, list[int]]) -> str:
        return "\x01".join([self._pair_name(row[0]), *map(str, row[1])])

    def _neighbours(self) -> dict[str, np.ndarray]:
        return self._finished("neighbours", "retrieve", map(self._pair_name, self.mined))

    def _stage(self, name, rows, work, settings, keys, shard_size, description, **options):
        run_job(
            self.out / name,
            rows,
            work,
            settings,
            keys,
            shard_size,
            self.state.process_index,
            self.state.num_processes,
            description,
            **options,
        )
        self.state.wait_for_everyone()

    def judge(self):
        """Scores each pair's positive and its potential hard negatives."""
        config, neighbours = self.config, self._neighbours()["neighbours"]
        rows = list(zip(self.mined, neighbours.tolist()))

        def work(part, judge):
            asked = []
            for pair, own in part:
                candidates = [pair.item, *(self.pool.candidates[i] for i in own if i >= 0)]
                asked.append((self.pool.queries[pair.query], candidates))
            scores = np.full((len(part), neighbours.shape[1]), np.nan, np.float32)
            positive_scores = np.empty(len(part), np.float32)
            for row, own in enumerate(judge.score(asked)):
                positive_scores[row], scores[row, : len(own) - 1] = own[0], own[1:]
            return {"positive_score": positive_scores, "scores": scores}

        if config.judge is None:
            raise ValueError(
                "`judge` is missing: a folder or repository, or the name under which the server knows it."
            )
        settings = {"options": config.judge_options}
        if config.server:
            served = ("answer_format", "top_logprobs", "resolution")
            settings |= {"model": config.judge, "server": {k: config.server_options.get(k) for k in served}}
        else:
            settings |= {"model": checkpoint_fingerprint(config.judge), "dtype": config.judge_dtype}

        self._stage(
            "scores",
            rows,
            work,
            settings,
            self._judged_name,
            config.judge_shard,
            "Judging",
            prepare=self._judge,
            retry_failed=config.retry_failed,
        )
        found = self._finished("scores", "judge", map(self._judged_name, rows))
        scores = found["scores"][~np.isnan(found["scores"])]
        self.say(f"scores: positives {found['positive_score'].mean():.3f} on average, ", end="")
        self.say(f"candidates {scores.mean() if len(scores) else float('nan'):.3f}")
        self._write_errors()

    def _judge(self):
        config = self.config
        if config.server:
            return ServerJudge(config.server, config.judge, **config.judge_options, **config.server_options)
        model = open_checkpoint(config.judge, reranker=True, dtype=config.judge_dtype)
        return LocalJudge(model.to(self.state.device).eval(), **config.judge_options)

    @cached_property
    def judged(self) -> list[dict]:
        """Every judged pair: its items, what was retrieved, and the scores."""
        near, found = self._neighbours(), []
        rows = zip(self.mined, near["neighbours"].tolist())
        scored = self._finished("scores", "judge", map(self._judged_name, rows))
        for place, row in enumerate(scored["row"].tolist()):
            pair, own = self.mined[row], near["neighbours"][row]
            there = own >= 0
            found.append(
                {
                    "pair": pair,
                    "candidates": own[there].tolist(),
                    "similarities": near["similarities"][row][there],
                    "positive_similarity": float(near["positive_similarity"][row]),
                    "positive_score": float(scored["positive_score"][place]),
                    "scores": scored["scores"][place][there],
                }
            )
        return found

    def select(self):
        """Writes the rows with their hard negatives in UniME-V2's layout."""
        config, path = self.config, self.out / f"{self.config.name}.json"
        names = ("num_negatives", "margin", "stride", "fallback", "seed")
        settings = {name: getattr(config, name) for name in names}
        judged = self.judged
        manifest = {"settings": settings, "scores": self._manifest("scores")}
        check_manifest(self.out / f"{config.name}.manifest.json", manifest)
        counts = Counter()

        def chosen():
            for row in judged:
                example = self.choose(row)
                counts["written" if example else "dropped"] += 1
                if example:
                    yield example

        if self.state.is_main_process:
            write_judged(path, chosen(), self.image_root)
            self._report(counts)
        self.state.wait_for_everyone()

    def choice(self, row: dict) -> tuple[list[int], list[float]] | None:
        """What [`~unime.mining.selection.select`] takes of a row of `judged`."""
        config, seed = self.config, content_hash(self._pair_name(row["pair"]))
        return select(
            row["positive_score"],
            row["scores"],
            config.num_negatives,
            config.margin,
            config.stride,
            config.fallback,
            (config.seed + seed) % 2**63,
        )

    def choose(self, row: dict) -> Example | None:
        """A row of `judged` with its selected negatives; None where none is allowed and the fallback drops it."""
        pair, found = row["pair"], self.choice(row)
        if found is None:
            return None
        negatives = [self.pool.candidates[row["candidates"][place]] for place in found[0]]
        query = self.pool.queries[pair.query]
        return Example(query, pair.item, negatives, row["positive_score"], found[1], pair.dataset)

    def _write_errors(self) -> Counter:
        """Writes the failed rows of all finished steps to `errors.jsonl`, and counts them by step."""
        errors = [*self._read[1]]
        for name in ("queries", "candidates", "scores"):
            errors += [{"stage": name, **error} for error in read_errors(self.out / name)]
        counts = Counter(error["stage"] for error in errors)
        if self.state.is_main_process:
            lines = (json.dumps(error, ensure_ascii=False) + "\n" for error in errors)
            write_text(self.out / "errors.jsonl", "".join(lines))
            if errors:
                print(f"{len(errors)} failures {dict(counts)}: see {self.out / 'errors.jsonl'}", flush=True)
        return counts

    def _report(self, counts: Counter):
        report = {
            "pairs": len(self.pool.pairs),
            "mined": len(self.mined),
            "judged": len(self.judged),
            "written": counts["written"],
            "dropped because no candidate was allowed": counts["dropped"],
            "failed": dict(self._write_errors()),
        }
        write_text(self.out / f"{self.config.name}.report.json", json.dumps(report, indent=1))
        self.say(f"{self.out / self.config.name}.json: {counts['written']} rows of {len(self.mined)} pairs")
        self.say(f"  {counts['dropped']} dropped because no candidate was allowed")

    def saha(self):
        """Writes clusters of each data set, from the embeddings, in the layout of the released script."""
        config, found = self.config, self.embeddings()
        folder = self.out / "saha"
        folder.mkdir(exist_ok=True)
        settings = {
            "cluster_size": config.cluster_size,
            "pool_multiplier": config.pool_multiplier,
            "label_datasets": config.label_datasets,
        }
        for name in ("queries", "candidates"):
            settings[name] = self._manifest(name)
        check_manifest(folder / MANIFEST, settings)
        names = list(dict.fromkeys(pair.dataset for pair in self.pairs))
        for number, name in enumerate(names):
            path = folder / f"{name}_hard_negatives.json"
            if number % self.state.num_processes != self.state.process_index or path.exists():
                continue
            own = [pair for pair in self.pairs if pair.dataset == name]
            made = self._clusters(name, own, found)
            write_text(path, "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in made) + "\n]\n")
            sizes = [1 + len(row["neg_samples"]) for row in made]
            print(f"{name}: {len(made)} clusters of {np.mean(sizes) if sizes else 0:.1f} rows on average", flush=True)
        self.state.wait_for_everyone()

    def _clusters(self, name: str, own: list[Pair], found) -> list[dict]:
        config = self.config
        queries = {query: number for number, query in enumerate(dict.fromkeys(pair.query for pair in own))}
        candidates = {item: number for number, item in enumerate(dict.fromkeys(pair.positive for pair in own))}
        pairs = [(queries[pair.query], candidates[pair.positive]) for pair in own]
        asked, corpus = found["queries"][list(queries)], found["candidates"][list(candidates)]
        depth = 2 * config.cluster_size * config.pool_multiplier
        neighbours, _ = exact_top_k(asked, corpus, depth, device=self.state.device)
        labels = (
            is_label_type(len(candidates), len(pairs))
            if config.label_datasets is None
            else name in config.label_datasets
        )
        made = clusters(asked, corpus, pairs, neighbours, config.cluster_size, config.pool_multiplier, labels)

        def row(number):
            query, positive = self.pool.queries[own[number].query], own[number].item
            return {
                "qry": query.text,
                "qry_image_path": image_name(query, self.image_root),
                "pos_text": positive.text,
                "pos_image_path": image_name(positive, self.image_root),
            }

        return [{**row(anchor), "neg_samples": [row(member) for member in members]} for anchor, members in made]

    def inspect(self):
        """Draws what was mined, and what was not and why."""
        from .inspection import draw

        if self.state.is_main_process:
            draw(self, self.out / f"{self.config.name}.html")
            self.say(f"{self.out / self.config.name}.html, and beside it .png and .histograms.png")

    def run(self):
        """`embed`, `retrieve`, `judge` and `select`."""
        for step in (self.embed, self.retrieve, self.judge, self.select):
            step()
