"""The mining commands: from raw pairs to judged hard negatives, each step a resumable job in one folder.

    unime mine run --config recipes/mining/unime-v2.yaml --data MMEB-train --out mined
    accelerate launch -m unime.cli mine run --config ...        # the same, over many processes

`run` does `embed`, `retrieve`, `judge` and `select`, which are commands of their own; `saha` makes clusters from the
embeddings, and `inspect` a page to look at. Each step's work is in the file of its name: `retrieval.py`, `judging.py`,
`selection.py`, `saha.py`, `inspection.py`.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np

from ..checkpoints.opening import open_checkpoint, require_kind
from ..data.readers import Findings, read_rows
from ..data.schema import Example, Item, content_hash, to_example
from ..files.identity import verify_files
from ..files.writing import write_json, write_text
from ..jobs.embedding import checkpoint_fingerprint, embed, item_name
from ..jobs.engines import RayEngine
from ..jobs.shards import (
    MANIFEST,
    check_manifest,
    fingerprint,
    processes,
    read_errors,
    read_job,
    read_manifest,
    run_job,
)
from .judging import JudgingWork, LocalJudge, ServerJudge
from .retrieval import RetrievalWork
from .saha import write_clusters
from .selection import Pair, Pool, probabilities, select
from .settings import MiningConfig
from .writers import write_judged

EMBEDDED = ("queries", "candidates")  # folders of the embeddings
RETRIEVAL_SETTINGS = ("near_copies", "top_k", "pool", "delta", "index", "ivf_lists", "ivf_probes")
SELECTION_SETTINGS = ("num_negatives", "margin", "stride", "fallback", "seed")
CLUSTER_SETTINGS = ("near_copies", "cluster_size", "pool_multiplier", "label_datasets")
SERVER_SETTINGS = ("answer_format", "top_logprobs", "resolution")  # those that change a score


class Mining:
    """The steps over one folder. Each needs what the one before it left there.

    Args:
        config ([`MiningConfig`]): the settings; `data` and `out` are required.
        engine ([`~unime.jobs.engines.RayEngine`], *optional*): workers that do the shards, in place of this process.

    Raises:
        ValueError: `data` or `out` is missing.

    Example:

    ```python
    config = MiningConfig(data="pairs.jsonl", out="mined", embedder="outputs/own", judge="Qwen/Qwen2.5-VL-7B-Instruct")
    mining = Mining(config)
    mining.run()  # writes mined/judged.json
    mining.inspect()
    ```
    """

    def __init__(self, config: MiningConfig, engine: RayEngine | None = None):
        for name in ("data", "out"):
            if getattr(config, name) is None:
                raise ValueError(f"`{name}` is missing; set it in the recipe or on the command line.")

        # before the first file is asked for what it holds
        if config.verify:
            verify_files()
        self.config = config
        self.engine = engine
        self.state = processes()
        self.out = Path(config.out)
        self.out.mkdir(parents=True, exist_ok=True)

        data = Path(config.data)
        folder = data
        if not data.is_dir():
            folder = data.parent
        self.image_root = Path(config.image_root or folder)

    # the steps

    def run(self):
        """`embed`, `retrieve`, `judge` and `select`."""
        self.embed()
        self.retrieve()
        self.judge()
        self.select()

    def embed(self):
        """Embeds the distinct queries and candidates."""
        config = self.config
        embedder = config.make_embedder()

        # one process looks at the pictures, and the others read what it remembered of them
        with self.state.main_process_first():
            pool = self.pool
        self.say(f"{len(pool.candidates)} distinct candidates for {len(pool.queries)} distinct queries")

        for name, role in (("queries", "query"), ("candidates", "document")):
            items = self._items(name)
            count = embed(
                self.out / name,
                items,
                embedder,
                role,
                self.image_root,
                shard_size=config.embed_shard,
                retry_failed=config.retry_failed,
                benchmark="mmeb",  # training rows are worded as they will be in training
                engine=self.engine,
            )
            self.say(f"{name}: {count} of {len(items)} embedded")

        self._write_errors()

    def retrieve(self):
        """Finds the potential hard negatives of each pair."""
        config = self.config
        embeddings = self.embeddings()
        work = RetrievalWork(config, self.pool, embeddings, self.embedded["candidates"], self.state.device)

        # other embeddings would have other neighbours, so the manifest names them as well
        settings = self._settings(RETRIEVAL_SETTINGS)
        for name in EMBEDDED:
            manifest = self._manifest(name)
            settings[name] = {"fingerprint": manifest["fingerprint"], **manifest["settings"]}

        # a pair cannot fail on its own here: any error ends the job
        self._run_job(
            "neighbours",
            self.mined,
            work.neighbours,
            settings,
            keys=self._pair_key,
            shard_size=config.retrieve_shard,
            description="Retrieving",
            failures=(),
        )

        counts = (self._neighbours()["neighbours"] >= 0).sum(1)  # [P]
        self.say(f"neighbours: {counts.mean():.1f} of {config.top_k} a pair; none for {(counts == 0).sum()}")

    def judge(self):
        """Scores each pair's positive and its potential hard negatives."""
        config = self.config
        neighbours = self._neighbours()["neighbours"]  # [P, top_k]
        rows = list(zip(self.mined, neighbours.tolist()))
        work = JudgingWork(self.pool, neighbours.shape[1])

        self._run_job(
            "scores",
            rows,
            work.scores,
            self._judge_settings(),
            keys=self._judged_key,
            shard_size=config.judge_shard,
            description="Judging",
            prepare=partial(_open_judge, config),
            retry_failed=config.retry_failed,
        )

        results = self._finished("scores", "judge", map(self._judged_key, rows))
        scores = results["scores"][~np.isnan(results["scores"])]
        mean = scores.mean() if len(scores) else float("nan")
        self.say(f"scores: positives {results['positive_score'].mean():.3f} on average, candidates {mean:.3f}")
        self._write_errors()

    def select(self):
        """Writes the rows with their hard negatives in UniME-V2's layout."""
        judged = self.judged
        settings = self._settings(SELECTION_SETTINGS)
        manifest = {"settings": settings, "scores": self._manifest("scores")}
        check_manifest(self.out / f"{self.config.name}.manifest.json", manifest)

        # one process is enough: this takes no model
        if self.state.is_main_process:
            written = write_judged(self.out / f"{self.config.name}.json", self._selected(), self.image_root)
            self._report(written, len(judged) - written)
        self.state.wait_for_everyone()

    def saha(self):
        """Writes clusters of each data set, from the embeddings, in the layout of the released script."""
        embeddings = self.embeddings()
        folder = self.out / "saha"
        folder.mkdir(exist_ok=True)

        settings = self._settings(CLUSTER_SETTINGS)
        for name in EMBEDDED:
            settings[name] = self._manifest(name)
        check_manifest(folder / MANIFEST, settings)

        write_clusters(self, embeddings, folder)
        self.state.wait_for_everyone()

    def inspect(self):
        """Draws what was mined, and what was not and why."""
        from .inspection import draw

        if self.state.is_main_process:
            draw(self, self.out / f"{self.config.name}.html")
            self.say(f"{self.out / self.config.name}.html, and beside it .png and .histograms.png")

    # what the steps read and leave

    @property
    def pool(self) -> Pool:
        """The distinct queries, candidates and pairs of all usable rows."""
        return self._pool_and_unread[0]

    @cached_property
    def _pool_and_unread(self) -> tuple[Pool, list[dict]]:
        """The pool of all usable rows, and the others as `errors.jsonl` has them."""
        config = self.config
        findings = Findings()
        rows = read_rows(
            config.data, config.image_root, config.subsets, config.split, config.rows_per_subset, findings
        )
        problems = findings.problems
        self.say(f"{len(rows)} rows of {len(set(rows['dataset']))} data sets; {len(problems)} unusable")

        unread = []
        for problem in problems:
            unread.append({"stage": "read", "row": problem.where, "reason": problem.reason})
        return Pool.of(map(to_example, rows), config.near_copies), unread

    @cached_property
    def first_copies(self) -> list[int]:
        """For each query, the first that is the same by what it shows and says."""
        return self.pool.first_copies()

    def embeddings(self) -> dict[str, np.ndarray]:
        """Those of `"queries"` `[Q, D]` and `"candidates"` `[N, D]`; zero for items that could not be embedded.

        Raises:
            ValueError: `embed` is not finished, or was done for other rows.
        """
        embeddings = {}
        for name in EMBEDDED:
            items = self._items(name)
            results = self._finished(name, "embed", self._item_keys(items))

            table = np.zeros((len(items), results["embeddings"].shape[1]), np.float32)
            table[results["row"]] = results["embeddings"]
            embeddings[name] = table
        return embeddings

    @cached_property
    def embedded(self) -> dict[str, np.ndarray]:
        """Which of the `"queries"` and `"candidates"` could be embedded: bool `[Q]` and `[N]`."""
        embedded = {}
        for name in EMBEDDED:
            items = self._items(name)
            rows = self._finished(name, "embed", self._item_keys(items), arrays=())["row"]
            embedded[name] = np.isin(np.arange(len(items)), rows)
        return embedded

    @cached_property
    def pairs(self) -> list[Pair]:
        """The pairs of which both parts were embedded."""
        queries = self.embedded["queries"]
        candidates = self.embedded["candidates"]
        return [pair for pair in self.pool.pairs if queries[pair.query] and candidates[pair.positive]]

    @cached_property
    def mined(self) -> list[Pair]:
        """The pairs that negatives are mined for, one data set after the other."""
        pairs_of = {}
        for pair in self.pairs:
            pairs_of.setdefault(pair.dataset, []).append(pair)

        mined = []
        for pairs in pairs_of.values():
            mined += pairs[: self.config.mined_per_subset]
        return mined

    @cached_property
    def judged(self) -> list[dict]:
        """Every judged pair, with what was retrieved for it and the scores.

        Each has `pair`; of its `n` neighbours the numbers `candidates` and arrays of `similarities` and `scores`; and
        `positive_similarity` and `positive_score`.

        Raises:
            ValueError: `judge` is not finished, or was done for other rows.
        """
        retrieved = self._neighbours()
        neighbours = retrieved["neighbours"]  # [P, top_k]
        keys = map(self._judged_key, zip(self.mined, neighbours.tolist()))
        scored = self._finished("scores", "judge", keys)

        # log-odds differ where saved scores are all 1.0, and give finer probabilities
        if "logits" in scored:  # results of earlier versions have none
            scored["positive_score"] = probabilities(scored["positive_logit"])
            scored["scores"] = probabilities(scored["logits"])

        # pairs that could not be judged are left out: the place among the scores is not the row
        judged = []
        for place, row in enumerate(scored["row"].tolist()):
            present = neighbours[row] >= 0  # [top_k]
            judged.append(
                {
                    "pair": self.mined[row],
                    "candidates": neighbours[row][present].tolist(),
                    "similarities": retrieved["similarities"][row][present],
                    "positive_similarity": float(retrieved["positive_similarity"][row]),
                    "positive_score": float(scored["positive_score"][place]),
                    "scores": scored["scores"][place][present],
                }
            )
        return judged

    def choice(self, row: dict) -> tuple[list[int], list[float]] | None:
        """What [`~unime.mining.selection.select`] takes of a row of `judged`."""
        settings = self._settings(SELECTION_SETTINGS)

        # random choices differ from row to row, but not with the order of rows or the number of processes
        settings["seed"] = (self.config.seed + content_hash(self._pair_key(row["pair"]))) % 2**63
        return select(row["positive_score"], row["scores"], **settings)

    def choose(self, row: dict) -> Example | None:
        """A row of `judged` with its selected negatives; None where none is allowed and the fallback drops it."""
        choice = self.choice(row)
        if choice is None:
            return None

        places, scores = choice
        pair = row["pair"]
        negatives = [self.pool.candidates[row["candidates"][place]] for place in places]
        query = self.pool.queries[pair.query]
        return Example(query, pair.item, negatives, row["positive_score"], scores, pair.dataset)

    def _selected(self) -> Iterator[Example]:
        """The judged rows with their negatives, without those that are dropped."""
        for row in self.judged:
            example = self.choose(row)
            if example is not None:
                yield example

    def _neighbours(self) -> dict[str, np.ndarray]:
        """The results of `retrieve`."""
        return self._finished("neighbours", "retrieve", map(self._pair_key, self.mined))

    # jobs and their manifests

    def _run_job(self, name: str, rows: Sequence, work: Callable, settings: dict, **options):
        """Does a job in the folder `name`, split over the processes; see [`~unime.jobs.shards.run_job`]."""
        run_job(
            self.out / name,
            rows,
            work,
            settings,
            rank=self.state.process_index,
            world_size=self.state.num_processes,
            engine=self.engine,
            **options,
        )
        self.state.wait_for_everyone()

    def _finished(self, name: str, command: str, keys: Iterable[str], arrays=None) -> dict[str, np.ndarray]:
        """The results of a job, which must be finished and have been made from these rows."""
        folder = self.out / name
        try:
            results = read_job(folder, arrays)
        except ValueError as error:
            raise ValueError(f"{error} (`unime mine {command}` comes first.)") from error

        keys = list(keys)
        manifest = self._manifest(name)
        if manifest["rows"] != len(keys) or manifest["fingerprint"] != fingerprint(keys):
            raise ValueError(
                f"{folder} was made from other rows ({manifest['rows']}, now {len(keys)}), or their pictures have "
                "changed since; choose another `out`."
            )

        # results of failed rows alone are no results
        if keys and not len(results["row"]):
            raise ValueError(f"{folder}: every row failed; {read_errors(folder)[0]}")
        return results

    def _manifest(self, name: str) -> dict:
        return read_manifest(self.out / name)

    def _settings(self, names: Iterable[str]) -> dict:
        """Some settings by name, as a manifest has them."""
        return {name: getattr(self.config, name) for name in names}

    def _judge_settings(self) -> dict:
        """What decides the scores, as the manifest has it; a server's address does not."""
        config = self.config
        if config.judge is None:
            raise ValueError(
                "`judge` is missing: a folder or repository, or the name under which the server knows it."
            )

        # a server's weights cannot be read, so its name of the model stands for them
        settings = {"options": config.judge_options}
        if config.server:
            settings["model"] = config.judge
            settings["server"] = {name: config.server_options.get(name) for name in SERVER_SETTINGS}
        else:
            settings["model"] = checkpoint_fingerprint(config.judge)
            settings["dtype"] = config.judge_dtype
        return settings

    # what identifies the rows of a job

    def _items(self, name: str) -> list[Item]:
        """The pool's queries or candidates."""
        return getattr(self.pool, name)

    @cached_property
    def _item_key(self) -> Callable[[Item], str]:
        """`item_name`, which asks the disk what an image's file holds, once for each item."""
        return cache(partial(item_name, image_root=self.image_root))

    def _item_keys(self, items: Iterable[Item]) -> list[str]:
        return list(map(self._item_key, items))

    def _pair_key(self, pair: Pair) -> str:
        items = self._item_keys([self.pool.queries[pair.query], pair.item])
        return "\x01".join([*items, pair.dataset])

    def _judged_key(self, row: tuple[Pair, list[int]]) -> str:
        pair, neighbours = row
        return "\x01".join([self._pair_key(pair), *map(str, neighbours)])

    # what a person reads

    def say(self, text: str):
        """Prints a line, once for all processes."""
        if self.state.is_main_process:
            print(text, flush=True)

    def _write_errors(self) -> Counter:
        """Writes the failed rows of all finished steps to `errors.jsonl`, and counts them by step."""
        _, unread = self._pool_and_unread
        errors = list(unread)
        for name in (*EMBEDDED, "scores"):
            for error in read_errors(self.out / name):
                errors.append({"stage": name, **error})
        counts = Counter(error["stage"] for error in errors)

        if self.state.is_main_process:
            lines = [json.dumps(error, ensure_ascii=False) + "\n" for error in errors]
            write_text(self.out / "errors.jsonl", "".join(lines))
            if errors:
                self.say(f"{len(errors)} failures {dict(counts)}: see {self.out / 'errors.jsonl'}")
        return counts

    def _report(self, written: int, dropped: int):
        """Writes and prints what became of all pairs."""
        report = {
            "pairs": len(self.pool.pairs),
            "mined": len(self.mined),
            "judged": len(self.judged),
            "written": written,
            "dropped because no candidate was allowed": dropped,
            "failed": dict(self._write_errors()),
        }

        write_json(self.out / f"{self.config.name}.report.json", report)
        self.say(f"{self.out / self.config.name}.json: {written} rows of {len(self.mined)} pairs")
        self.say(f"  {dropped} dropped because no candidate was allowed")


def _open_judge(config: MiningConfig) -> LocalJudge | ServerJudge:
    """The judge of some settings, on this process's device."""
    if config.server:
        return ServerJudge(config.server, config.judge, **config.judge_options, **config.server_options)

    model = open_checkpoint(
        config.judge,
        reranker=True,
        dtype=config.judge_dtype,
        trust_remote_code=config.trust_remote_code,
    )
    require_kind(model, config.judge, reranker=True)
    return LocalJudge(model.to(processes().device).eval(), **config.judge_options)
