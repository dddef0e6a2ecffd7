"""Exact top-k of many queries, against FAISS's IndexFlatIP in the same run, and what both need in memory.

    python benchmarks/retrieval.py

Each engine runs in a process of its own; its extra memory is the growth of that process's peak over what it held with
both matrices loaded (FAISS holds a copy of the corpus in its index, which is part of it).

The BLAS inside FAISS takes recent Intel processors for a Pentium 4, so it is told what they are, which makes it four
times faster. Set OPENBLAS_CORETYPE to choose for yourself.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
from common import machine

from unime.devices_unime import cpu_capabilities, is_amd


def peak() -> int:
    """Most bytes this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def unit_rows(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """Random rows of length one, `[N, D]`."""
    array = rng.normal(size=(rows, width)).astype(np.float32)
    array /= np.linalg.norm(array, axis=1, keepdims=True)
    return array


def top_scores(engine: str, queries: np.ndarray, corpus: np.ndarray, k: int) -> np.ndarray:
    """Scores `[Q, k]` of what an engine retrieves."""
    import faiss

    from unime.mining.retrieval import exact_top_k

    if engine == "ours":
        return exact_top_k(queries, corpus, k)[1]
    index = faiss.IndexFlatIP(corpus.shape[1])
    index.add(corpus)
    return index.search(queries, k)[0]


def worker(engine: str, options):
    """Runs once for every line that it reads, and prints seconds, bytes and a sum that tells results apart."""
    rng = np.random.default_rng(0)
    queries = unit_rows(rng, options.rows, options.width)
    corpus = unit_rows(rng, options.rows, options.width)

    # warm up, which also imports what the peak is not to count
    top_scores(engine, queries[:64], corpus[: options.k * 4], options.k)
    before = peak()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        scores = top_scores(engine, queries, corpus, options.k)
        seconds = time.perf_counter() - start
        result = {"seconds": seconds, "extra": peak() - before, "sum": float(scores.sum())}
        print(json.dumps(result), flush=True)


def run_engines(options) -> dict[str, list[dict]]:
    """The results of every round, by engine; the engines alternate."""
    command = [sys.executable, __file__, "--rows", str(options.rows), "--width", str(options.width)]
    command += ["--k", str(options.k), "--engine"]

    environment = dict(os.environ)
    if cpu_capabilities().get("avx512_f") and not is_amd():
        environment.setdefault("OPENBLAS_CORETYPE", "SKYLAKEX")

    processes = {}
    for name in ("ours", "faiss"):
        processes[name] = subprocess.Popen(
            [*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
    for process in processes.values():
        process.stdout.readline()  # ready

    # only one engine runs at a time
    results = {name: [] for name in processes}
    for _ in range(options.rounds):
        for name, process in processes.items():
            process.stdin.write("go\n")
            process.stdin.flush()
            results[name].append(json.loads(process.stdout.readline()))

    for process in processes.values():
        process.stdin.close()
        process.wait()
    return results


def main():
    """Prints a line for each engine, and how their times compare round by round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000, help="queries, and corpus rows")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        worker(options.engine, options)
        return

    print(machine())
    results = run_engines(options)
    operations = 2 * options.rows**2 * options.width
    for name, rounds in results.items():
        median = statistics.median(entry["seconds"] for entry in rounds)
        extra = max(entry["extra"] for entry in rounds)
        print(
            f"{name:<6} {median:6.2f} s (median of {len(rounds)}), {operations / median / 1e9:,.0f} GFLOP/s, "
            f"{extra / 2**20:,.0f} MiB extra, sum of scores {rounds[0]['sum']:.3f}"
        )

    # of each round, as both engines of a round met the same machine
    ratios = []
    for ours, faiss in zip(results["ours"], results["faiss"]):
        ratios.append(faiss["seconds"] / ours["seconds"])
    print(
        f"FAISS's time over ours: {statistics.median(ratios):.2f} "
        f"(least {min(ratios):.2f}, greatest {max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
