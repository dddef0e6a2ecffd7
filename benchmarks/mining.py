"""What mining takes of time, memory and disk as data grows, with an embedder and a judge that cost nothing.

    python benchmarks/mining.py --pairs 100000 --folder outputs/mining-100k
    python benchmarks/mining.py --pairs 5000000 --folder outputs/mining-5m --index ivfpq

Texts are made up, embeddings (width 256) and judge scores are functions of them; everything else is `unime mine`. Each
step is a process of its own, whose peak memory and CPU time the system tells. The run may be killed at any time: the
same command goes on, and adds to the times. `figures.json` in the folder has what was measured.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

STEPS = ("write", "embed", "retrieve", "judge", "select")
WIDTH = 256
GROUP = 40  # pairs about one thing, whose candidates are hard negatives of each other
SEED = 0


# data
def write_pairs(path: Path, count: int):
    """Writes made-up pairs as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from unime.files.writing import write_whole

    def write(draft):
        schema = pa.schema({"query": pa.string(), "positive": pa.string(), "dataset": pa.string()})
        with pq.ParquetWriter(draft, schema) as writer:
            for start in range(0, count, 100_000):
                numbers = range(start, min(start + 100_000, count))
                columns = {
                    "query": [f"which picture shows thing {n} of kind {n // GROUP}" for n in numbers],
                    "positive": [f"a picture of thing {n} of kind {n // GROUP} on a table" for n in numbers],
                    "dataset": [f"set {n % 20}" for n in numbers],
                }
                writer.write_table(pa.table(columns, schema))

    if not path.exists():
        write_whole(path, write)


def number_of(text: str) -> int:
    """The number of the thing that a text is about."""
    return int(text.partition("thing ")[2].partition(" ")[0])


# models that cost nothing
def embeddings_of(texts: list[str], role: str):
    """Unit vectors `[n, WIDTH]`: what is said of the kind, of the thing, and of the role."""
    import numpy as np

    tables = _tables()
    numbers = np.array([number_of(text) for text in texts])
    kinds = numbers // GROUP
    vectors = tables[0][kinds % _SIZES[0]] + tables[1][kinds % _SIZES[1]]
    vectors += 0.5 * (tables[2][numbers % _SIZES[2]] + tables[3][numbers % _SIZES[3]])
    vectors += 0.3 * tables[4][(7 * numbers + (role == "query")) % _SIZES[4]]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


_SIZES = (1021, 1031, 2039, 2053, 4093)  # primes: together they tell millions apart


@cache
def _tables() -> list:
    """Random vectors that embeddings are sums of; drawn once, as drawing them costs more than the sums."""
    import numpy as np

    tables = []
    for place, size in enumerate(_SIZES):
        tables.append(np.random.default_rng(SEED + place).standard_normal((size, WIDTH)))
    return tables


def log_odds_of(query, candidates):
    """A judge's log-odds `[n]`: sure of the thing itself, unsure of its kind."""
    import numpy as np

    number = number_of(query.text)
    numbers = np.array([number_of(candidate.text) for candidate in candidates])
    noise = (numbers * 2654435761 % 1000) / 1000

    log_odds = noise - 3
    of_its_kind = numbers // GROUP == number // GROUP
    log_odds[of_its_kind] = 4 * noise[of_its_kind] - 1
    log_odds[numbers == number] = 3
    return log_odds.astype(np.float32)


# steps
def do_step(step: str, options):
    """One step, in this process."""
    folder = options.folder
    if step == "write":
        return write_pairs(folder / "pairs.parquet", options.pairs)

    from unime.jobs.embedding import Embedder
    from unime.mining import pipeline
    from unime.mining.judging import Judge
    from unime.mining.settings import MiningConfig

    class FreeEmbedder(Embedder):
        def __init__(self):
            super().__init__("free")

        def load(self):
            return None

        def settings(self):
            return {"model": "free@0"}

        def encode(self, items, role, benchmark=None, of_training=False):
            return embeddings_of([item.text for item in items], role)

    class FreeJudge(Judge):
        def log_odds(self, batch):
            return [log_odds_of(query, candidates) for query, candidates in batch]

    MiningConfig.make_embedder = lambda config: FreeEmbedder()
    pipeline.open_judge = lambda config: FreeJudge()
    config = MiningConfig(
        data=str(folder / "pairs.parquet"),
        out=str(folder / "mined"),
        judge="free",
        server="http://free",
        index=options.index,
        recall_queries=options.recall_queries,
        embed_shard=8192,
        retrieve_shard=options.retrieve_shard,
        judge_shard=8192,
    )
    getattr(pipeline.Mining(config), step)()


def size_of(folder: Path) -> int:
    """Bytes below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main():
    """Does what is not done yet, a process for each step, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--index", default="exact", choices=("exact", "ivfpq"))
    parser.add_argument("--recall-queries", type=int, default=10_000)
    parser.add_argument("--retrieve-shard", type=int, default=8192)
    parser.add_argument("--step", choices=STEPS, help="this step alone, in this process")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.step:
        return do_step(options.step, options)

    path = options.folder / "figures.json"
    figures = json.loads(path.read_text()) if path.exists() else {}
    for step in STEPS:
        figure = figures.setdefault(step, {"cpu_seconds": 0.0, "seconds": 0.0, "peak_mb": 0, "runs": 0, "done": False})
        if figure["done"]:
            continue

        # this process stays small: a child's peak is at least its parent's
        start = time.monotonic()
        child = subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--step", step])
        signal.signal(signal.SIGINT, lambda *_: None)  # the child ends, and what it took is counted
        _, status, usage = os.wait4(child.pid, 0)

        figure["seconds"] = round(figure["seconds"] + time.monotonic() - start, 1)
        figure["cpu_seconds"] = round(figure["cpu_seconds"] + usage.ru_utime + usage.ru_stime, 1)
        figure["peak_mb"] = max(figure["peak_mb"], usage.ru_maxrss // 1024)
        figure["runs"] += 1
        figure["done"] = status == 0
        figure["folder_mb"] = size_of(options.folder) // 2**20
        path.write_text(json.dumps(figures, indent=1))
        if status != 0:
            raise SystemExit(f"{step} ended with status {status}; the same command goes on.")

    print(f"\n{options.pairs:,} pairs, width {WIDTH}, {options.index}\n")
    print("| step | CPU s | s | peak MB | runs |\n|---|---|---|---|---|")
    for step, figure in figures.items():
        names = ("cpu_seconds", "seconds", "peak_mb", "runs")
        print(f"| {step} | " + " | ".join(f"{figure[name]:,}" for name in names) + " |")


if __name__ == "__main__":
    main()
