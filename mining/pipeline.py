"""The mining commands: from raw pairs to judged hard negatives, each step a resumable job in one folder.

    unime mine run --config recipes/mining/unime-v2.yaml --data MMEB-train --out mined
    accelerate launch -m unime.cli mine run --config ...        # the same, over many processes

`run` does `embed`, `retrieve`, `judge` and `select`, which are commands of their own; `saha` makes clusters from the
embeddings, and `inspect` a page to look at. Each step's work has a file of its own: `neighbours.py`, `judging.py`,
`selection.py`, `saha.py`, `inspection.py`. Rows and results stay on the disk: a step reads what it works on.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, lru_cache, partial
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..data.readers import Findings
from ..data.schema import Example, Item, content_hash
from ..files.addresses import fetched, make_folder, remove_folder, to_path
from ..files.identity import verify_files
from ..files.writing import write_json, write_json_lines
from ..jobs.embedding import checkpoint_fingerprint, embed, item_name, preset_in_words
from ..jobs.engines import RayEngine
from ..jobs.notices import notice
from ..jobs.results import JobResults, StoredArray
from ..jobs.shards import (
    MANIFEST,
    check_manifest,
    fingerprint,
    processes,
    read_errors,
    read_manifest,
    run_job,
)
from ..prompts_unime import resolve_preset
from .judging import Request, judge_requests, open_judge
from .neighbours import RetrievalWork
from .pools import Entries, Pair, Pool, numbered, rows_of
from .saha import NEIGHBOURS, write_clusters
from .selection import probabilities, select
from .settings import MiningConfig
from .symptoms import comparisons, judge_symptoms, label_symptoms, nothing_kept
from .writers import write_judged, write_judged_shards

EMBEDDED = ("queries", "candidates")  # folders of the embeddings
RETRIEVAL_SETTINGS = ("near_copies", "top_k", "pool", "delta", "index", "ivf_lists", "ivf_probes")
IVFPQ_SETTINGS = ("short_list",)  # which earlier versions did not have
SELECTION_SETTINGS = ("num_negatives", "margin", "stride", "repeat", "fallback", "seed")
CLUSTER_SETTINGS = ("near_copies", "cluster_size", "pool_multiplier", "label_datasets")
SERVER_SETTINGS = ("answer_format", "top_logprobs", "resolution")  # those that change a score
RESULTS = (
    "_embeddings",
    "pair_numbers",
    "mined",
    "_pairs_digest",
    "_neighbours",
    "_judged_digest",
    "_scores",
    "judged",
)
SELECTED = 1024  # rows whose negatives are read at once
REMEMBERED = 2**16  # items whose names are remembered


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
    mining.run()  # writes mined/judged
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
        self.out = to_path(config.out)
        make_folder(self.out)

        # what lies at an address is read from a copy
        self.data = Path(fetched(config.data))
        folder = self.data
        if not self.data.is_dir():
            folder = self.data.parent
        self.image_root = Path(fetched(config.image_root) if config.image_root else folder)

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
        self.warn(label_symptoms(pool, config.num_negatives))

        for name, role in (("queries", "query"), ("candidates", "document")):
            items = getattr(pool, name)
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
                of_training=True,
            )
            self.say(f"{name}: {count} of {len(items)} embedded")

        self._forget_results()
        self._write_errors()

    def retrieve(self):
        """Finds the potential hard negatives of each pair."""
        config = self.config
        work = RetrievalWork(config, self.embeddings(), self.pool.by_dataset(), self.out / "index")

        # other embeddings would have other neighbours, so the manifest names them as well
        settings = self._settings(RETRIEVAL_SETTINGS)
        if config.index == "ivfpq":
            settings |= self._settings(IVFPQ_SETTINGS)
        for name in EMBEDDED:
            manifest = read_manifest(self.out / name)
            settings[name] = {"fingerprint": manifest["fingerprint"], **manifest["settings"]}

        # an index on the disk is built once, for all processes
        with self.state.main_process_first():
            for line in work.build({name: settings[name] for name in EMBEDDED}):
                self.say(line)

        # a pair cannot fail on its own here: any error ends the job
        self._run_job(
            "neighbours",
            self.mined,
            work.neighbours,
            settings,
            keys=self._pair_key,
            digest=self._pairs_digest,
            inputs=self._with_excluded,
            shard_size=config.retrieve_shard,
            description="Retrieving",
            failures=(),
        )

        counts = [(block >= 0).sum(1) for block in self._neighbours["neighbours"].blocks()]
        counts = np.concatenate(counts)  # [P]
        self.say(f"neighbours: {counts.mean():.1f} of {config.top_k} a pair; none for {(counts == 0).sum()}")

    def judge(self):
        """Scores each pair's positive and its potential hard negatives."""
        config = self.config
        width = self._neighbours["neighbours"].shape[1]
        self._run_job(
            "scores",
            self._retrieved,
            partial(judge_requests, width=width),
            self._judge_settings(),
            keys=self._judged_key,
            digest=self._judged_digest,
            inputs=self._requests,
            shard_size=config.judge_shard,
            description="Judging",
            prepare=partial(open_judge, config),
            retry_failed=config.retry_failed,
        )

        results = self._scores
        positives = results["positive_score"][results.present]
        total, below, count = 0.0, 0.0, 0
        first = 0
        for positive_scores, block in zip(results["positive_score"].blocks(), results["scores"].blocks()):
            # rows that failed have no scores
            present = results.present[first : first + len(positive_scores)]
            first += len(positive_scores)
            positive_scores = positive_scores[present]
            block = block[present]

            total += np.nansum(block, dtype=np.float64)
            count += np.count_nonzero(~np.isnan(block))
            below += comparisons(positive_scores, block)

        mean = total / max(count, 1)
        self.say(f"scores: positives {positives.mean():.3f} on average, candidates {mean:.3f}")
        if count:
            self.warn(judge_symptoms(below / count, float(positives.mean()), mean))
        self._write_errors()

    def select(self):
        """Writes the rows with their hard negatives in UniME-V2's layout."""
        config = self.config
        manifest = {"settings": self._settings(SELECTION_SETTINGS), "scores": read_manifest(self.out / "scores")}
        judged = self.judged

        # one process is enough: this takes no model
        path = self.selected_path
        written = 0
        if config.layout == "json":
            self._check_selection(self.out / f"{config.name}.manifest.json", manifest)
            if self.state.is_main_process:
                written = write_judged(path, self._selected(range(len(judged))), self.image_root)
        else:
            manifest["shard_size"] = config.select_shard
            self._check_selection(path / MANIFEST, manifest)
            if self.state.is_main_process:
                written = write_judged_shards(path, len(judged), config.select_shard, self._selected, self.image_root)
        if self.state.is_main_process:
            self._report(path, written)
        self.state.wait_for_everyone()

        # a script that goes on to train must stop here
        if self.state.is_main_process and not written:
            scores = self._scores["positive_score"][self._scores.present]
            raise ValueError(nothing_kept(len(judged), config.margin, scores))

    @property
    def selected_path(self) -> Path:
        """What `select` writes: a folder of Parquet files, or a file of JSON."""
        if self.config.layout == "json":
            return self.out / f"{self.config.name}.json"
        return self.out / self.config.name

    @staticmethod
    def _check_selection(path: Path, manifest: dict):
        """Refuses to select by other settings under the same name."""
        try:
            check_manifest(path, manifest)
        except ValueError as error:
            raise ValueError(f"{error} Another --name writes beside it, from the same scores.") from error

    def saha(self):
        """Writes clusters of each data set, from the embeddings, in the layout of the released script."""
        folder = self.out / "saha"
        make_folder(folder)
        embeddings = self.embeddings()

        settings = self._settings(CLUSTER_SETTINGS)
        for name in EMBEDDED:
            settings[name] = read_manifest(self.out / name)
        check_manifest(folder / MANIFEST, settings)

        write_clusters(self, embeddings, folder)
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            remove_folder(self.out / NEIGHBOURS)

    def inspect(self):
        """Draws what was mined, and what was not and why."""
        from .inspection import draw

        if self.state.is_main_process:
            draw(self, self.out / f"{self.config.name}.html")
            self.say(f"{self.out / self.config.name}.html, and beside it .png and .histograms.png")

    # the rows

    @property
    def pool(self) -> Pool:
        """The distinct queries, candidates and pairs of all usable rows."""
        return self._pool_and_unread[0]

    @cached_property
    def _pool_and_unread(self) -> tuple[Pool, list[dict]]:
        """The pool of all usable rows, and the others as `errors.jsonl` has them."""
        config = self.config
        findings = Findings()
        image_root = config.image_root and self.image_root
        rows = rows_of(config, fetched(config.data), image_root, findings)
        pool = Pool(rows, config.near_copies)
        problems = findings.problems
        self.say(f"{len(rows)} rows of {len(pool.datasets)} data sets; {len(problems)} unusable")

        unread = []
        for problem in problems:
            unread.append({"stage": "read", "row": problem.where, "reason": problem.reason})
        return pool, unread

    @cached_property
    def pair_numbers(self) -> np.ndarray:
        """The pairs of the pool of which both parts were embedded, by their numbers."""
        embeddings = self.embeddings()
        present = embeddings["queries"].present[self.pool.query_of]
        return np.flatnonzero(present & embeddings["candidates"].present[self.pool.positive_of])

    @property
    def pairs(self) -> Sequence[Pair]:
        """The pairs of which both parts were embedded."""
        return self.pool.some_pairs(self.pair_numbers)

    @cached_property
    def mined(self) -> Sequence[Pair]:
        """The pairs that negatives are mined for, one data set after the other."""
        names, _ = numbered(pa.array(self.pool.dataset_of[self.pair_numbers]))
        order = np.argsort(names, kind="stable")
        names = names[order]

        # how many pairs of its data set stand before each
        places = np.arange(len(names)) - np.searchsorted(names, names)
        limit = self.config.mined_per_subset
        if limit is not None:
            order = order[places < limit]
        return self.pool.some_pairs(self.pair_numbers[order])

    # what the steps leave

    def embeddings(self) -> dict[str, StoredArray]:
        """Those of `"queries"` `[Q, D]` and `"candidates"` `[N, D]`; zero for items that could not be embedded.

        Raises:
            ValueError: `embed` is not finished, or was done for other rows.
        """
        return self._embeddings

    @cached_property
    def _embeddings(self) -> dict[str, StoredArray]:
        embeddings = {}
        for name in EMBEDDED:
            items = getattr(self.pool, name)
            digest = fingerprint(map(self._item_key, items))
            embeddings[name] = self._finished(name, "embed", len(items), digest)["embeddings"]
        return embeddings

    @cached_property
    def _neighbours(self) -> JobResults:
        """The results of `retrieve`."""
        return self._finished("neighbours", "retrieve", len(self.mined), self._pairs_digest)

    @cached_property
    def _scores(self) -> JobResults:
        """The results of `judge`."""
        return self._finished("scores", "judge", len(self.mined), self._judged_digest)

    @cached_property
    def judged(self) -> Sequence[dict]:
        """Every judged pair, with what was retrieved for it and the scores.

        Each has `pair`; of its `n` neighbours the numbers `candidates` and arrays of `similarities` and `scores`; and
        `positive_similarity` and `positive_score`. Pairs that could not be judged are left out.

        Raises:
            ValueError: `judge` is not finished, or was done for other rows.
        """
        return Entries(np.flatnonzero(self._scores.present), self._judged_rows)

    def _judged_rows(self, numbers: np.ndarray) -> list[dict]:
        """Some judged pairs by their numbers among the mined ones."""
        neighbours = self._neighbours["neighbours"][numbers]  # [r, top_k]
        similarities = self._neighbours["similarities"][numbers]  # [r, top_k]
        positive_similarities = self._neighbours["positive_similarity"][numbers]  # [r]

        # log-odds differ where saved scores are all 1.0, and give finer probabilities
        if "logits" in self._scores.names:
            positive_scores = probabilities(self._scores["positive_logit"][numbers])
            scores = probabilities(self._scores["logits"][numbers])
        else:  # results of earlier versions
            positive_scores = self._scores["positive_score"][numbers]
            scores = self._scores["scores"][numbers]

        rows = []
        for place, pair in enumerate(self.mined.take(numbers)):
            present = neighbours[place] >= 0  # [top_k]
            rows.append(
                {
                    "pair": pair,
                    "candidates": neighbours[place][present].tolist(),
                    "similarities": similarities[place][present],
                    "positive_similarity": float(positive_similarities[place]),
                    "positive_score": float(positive_scores[place]),
                    "scores": scores[place][present],
                }
            )
        return rows

    def choice(self, row: dict) -> tuple[list[int], list[float]] | None:
        """What [`~unime.mining.selection.select`] takes of a row of `judged`."""
        settings = self._settings(SELECTION_SETTINGS)

        # random choices differ from row to row, but not with the order of rows or the number of processes
        settings["seed"] = (self.config.seed + content_hash(self._pair_key(row["pair"]))) % 2**63
        return select(row["positive_score"], row["scores"], **settings)

    def _selected(self, span: range) -> Iterator[Example]:
        """Some judged rows with their negatives, without those that are dropped."""
        for start in range(span.start, span.stop, SELECTED):
            rows = self.judged[start : min(start + SELECTED, span.stop)]
            choices = [self.choice(row) for row in rows]

            # the negatives of all these rows are read at once
            numbers = []
            for row, choice in zip(rows, choices):
                if choice is not None:
                    numbers += [row["candidates"][place] for place in choice[0]]
            negatives = iter(self.pool.candidates.take(np.array(numbers, np.int64)))

            for row, choice in zip(rows, choices):
                if choice is None:
                    continue
                pair = row["pair"]
                places, scores = choice
                yield Example(
                    pair.query_item,
                    pair.item,
                    list(islice(negatives, len(places))),
                    row["positive_score"],
                    scores,
                    pair.dataset,
                    other_positives=pair.others,
                    weight=pair.weight,
                )

    # what the work of a step is given

    def _with_excluded(self, pairs: list[Pair]) -> list[tuple[Pair, list[int]]]:
        """Pairs, each with the candidates that may not be found for it."""
        return [(pair, self.pool.excluded(pair.query)) for pair in pairs]

    @property
    def _retrieved(self) -> Sequence[tuple[Pair, list[int]]]:
        """The mined pairs with the numbers of what was retrieved for them, -1 where there are fewer."""
        neighbours = self._neighbours["neighbours"]
        return Entries(
            np.arange(len(self.mined)),
            lambda numbers: list(zip(self.mined.take(numbers), neighbours[numbers].tolist())),
        )

    def _requests(self, rows: list[tuple[Pair, list[int]]]) -> list[Request]:
        """What a judge is asked of pairs: the query with the positive, as its row spells it, before the candidates."""
        neighbours = np.array([numbers for _, numbers in rows], np.int64)  # [r, top_k]
        is_present = neighbours >= 0

        # the candidates of all these rows are read at once, and each once
        distinct, places = np.unique(neighbours[is_present], return_inverse=True)
        items = self.pool.candidates.take(distinct)
        candidates = map(items.__getitem__, places.tolist())
        requests = []
        for (pair, _), count in zip(rows, is_present.sum(axis=1).tolist()):
            requests.append((pair.query_item, [pair.item, *islice(candidates, count)]))
        return requests

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
        self._forget_results()

    def _forget_results(self):
        """Lets go of what was read of results, when there are others."""
        for name in RESULTS:
            self.__dict__.pop(name, None)

    def _finished(self, name: str, command: str, rows: int, digest: str) -> JobResults:
        """The results of a job, which must be finished and have been made from these rows."""
        folder = self.out / name
        try:
            results = JobResults(folder)
        except ValueError as error:
            raise ValueError(f"{error} (`unime mine {command}` comes first.)") from error

        manifest = read_manifest(folder)
        if manifest["rows"] != rows or manifest["fingerprint"] != digest:
            raise ValueError(
                f"{folder} was made from other rows ({manifest['rows']}, now {rows}), or their pictures have "
                "changed since; choose another `out`."
            )

        # results of failed rows alone are no results
        if not results.names:
            reason = read_errors(folder)[0] if rows else "there is none"
            raise ValueError(f"{folder}: every row failed; {reason}")
        return results

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
            if config.judge_preset is not None:
                settings["preset"] = preset_in_words(resolve_preset(config.judge_preset))
        return settings

    # what identifies the rows of a job

    @cached_property
    def _item_key(self) -> Callable[[Item], str]:
        """`item_name`, which asks the disk what an image's file holds; those of the last items are remembered."""
        return lru_cache(REMEMBERED)(partial(item_name, image_root=self.image_root))

    def _pair_key(self, pair: Pair) -> str:
        return "\x01".join([self._item_key(pair.query_item), self._item_key(pair.item), pair.dataset])

    def _judged_key(self, row: tuple[Pair, list[int]]) -> str:
        pair, neighbours = row
        return "\x01".join([self._pair_key(pair), *map(str, neighbours)])

    @cached_property
    def _pairs_digest(self) -> str:
        return fingerprint(map(self._pair_key, self.mined))

    @cached_property
    def _judged_digest(self) -> str:
        return fingerprint(map(self._judged_key, self._retrieved))

    # what a person reads

    def say(self, text: str):
        """Prints a line, once for all processes."""
        if self.state.is_main_process:
            print(text, flush=True)

    def warn(self, lines: list[str]):
        """Prints lines on stderr, once for all processes; `--quiet` leaves them out."""
        if self.state.is_main_process:
            for line in lines:
                notice(f"unime mine: {line}")

    def _write_errors(self) -> Counter:
        """Writes the failed rows of all finished steps to `errors.jsonl`, and counts them by step."""
        _, unread = self._pool_and_unread
        errors = list(unread)
        for name in (*EMBEDDED, "scores"):
            for error in read_errors(self.out / name):
                errors.append({"stage": name, **error})
        counts = Counter(error["stage"] for error in errors)

        if self.state.is_main_process:
            write_json_lines(self.out / "errors.jsonl", errors)
            if errors:
                self.say(f"{len(errors)} failures {dict(counts)}: see {self.out / 'errors.jsonl'}")
        return counts

    def _report(self, path: Path, written: int):
        """Writes and prints what became of all pairs."""
        dropped = len(self.judged) - written
        report = {
            "pairs": len(self.pool.pairs),
            "mined": len(self.mined),
            "judged": len(self.judged),
            "written": written,
            "dropped because no candidate was allowed": dropped,
            "failed": dict(self._write_errors()),
        }

        write_json(self.out / f"{self.config.name}.report.json", report)
        self.say(f"{path}: {written} rows of {len(self.mined)} pairs")
        self.say(f"  {dropped} dropped because no candidate was allowed")
