"""Exact top-k of many queries, against FAISS's IndexFlatIP in the same run, and what both need in memory.

    python benchmarks/retrieval.py

Each engine runs in a process of its own; its extra memory is the growth of that process's peak over what it held with
both matrices loaded (FAISS holds a copy of the corpus in its index, which is part of it).
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np


def peak() -> int:
    """Most bytes this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def worker(engine: str, options):
    import faiss

    from unime.mining.retrieval import exact_top_k

    rng = np.random.default_rng(0)
    queries, corpus = (rng.normal(size=(options.rows, options.width)).astype(np.float32) for _ in range(2))
    for array in (queries, corpus):
        array /= np.linalg.norm(array, axis=1, keepdims=True)

    def run(q, c):
        if engine == "ours":
            return exact_top_k(q, c, options.k)
        index = faiss.IndexFlatIP(options.width)
        index.add(c)
        return index.search(q, options.k)[::-1]

    run(queries[:64], corpus[: options.k * 4])
    before, seconds = peak(), []
    print("ready", flush=True)
    for _ in sys.stdin:  # one line, one run
        start = time.perf_counter()
        _, scores = run(queries, corpus)
        seconds.append(time.perf_counter() - start)
        print(json.dumps({"seconds": seconds[-1], "extra": peak() - before, "sum": float(scores.sum())}), flush=True)


def main():
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
    command = [sys.executable, __file__, "--rows", str(options.rows), "--width", str(options.width)]
    command += ["--k", str(options.k), "--engine"]
    workers = {
        name: subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in ("ours", "faiss")
    }
    results = {name: [] for name in workers}
    for process in workers.values():
        process.stdout.readline()
    for _ in range(options.rounds):
        for name, process in workers.items():
            process.stdin.write("go\n")
            process.stdin.flush()
            results[name].append(json.loads(process.stdout.readline()))
    for process in workers.values():
        process.stdin.close()
        process.wait()
    flops = 2 * options.rows**2 * options.width
    for name, found in results.items():
        middle = statistics.median(entry["seconds"] for entry in found)
        print(
            f"{name:<6} {middle:6.2f} s (median of {len(found)}), {flops / middle / 1e9:,.0f} GFLOP/s, "
            f"{max(entry['extra'] for entry in found) / 2**20:,.0f} MiB extra, sum of scores {found[0]['sum']:.3f}"
        )
    ratio = [f["seconds"] / o["seconds"] for o, f in zip(results["ours"], results["faiss"])]
    print(
        f"FAISS's time over ours: {statistics.median(ratio):.2f} (least {min(ratio):.2f}, greatest {max(ratio):.2f})"
    )


if __name__ == "__main__":
    main()
