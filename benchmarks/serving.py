"""What serving costs: throughput of `unime serve` on loopback beside `encode`, times of requests, and twice too much.

    python benchmarks/serving.py

Mixed items (a third texts, a third images, a third both), one a request, sent by clients in a process of their own.
First so many requests are kept in flight as `--in-flight` says; then they arrive at random times, at half, at the
whole and at twice the rate that was reached before.
"""

import argparse
import asyncio
import json
import multiprocessing
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
import torch
from common import machine
from encode_throughput import make_items, make_repo

from unime import UniMEModel
from unime.data.images import sent_image


def bodies_of(items: list[dict]) -> list[bytes]:
    """A request for each item."""
    bodies = []
    for item in items:
        value = dict(item)
        if "image" in value:
            value["image"] = sent_image(value["image"])["image_url"]["url"]
        bodies.append(json.dumps({"input": value, "encoding_format": "base64"}).encode())
    return bodies


async def send(client: httpx.AsyncClient, body: bytes, answers: list):
    """Sends a request, and notes how it ended and how many seconds it took."""
    start = time.monotonic()
    response = await client.post("/v1/embeddings", content=body, timeout=600)
    answers.append((response.status_code, time.monotonic() - start, response.headers.get("retry-after")))


async def keep_in_flight(url: str, bodies: list[bytes], count: int) -> tuple[list, float]:
    """Sends all requests, `count` at a time; how they ended, and how many seconds that took."""
    answers = []
    remaining = iter(bodies)

    async def client_loop(client):
        for body in remaining:
            await send(client, body, answers)

    start = time.monotonic()
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(base_url=url, limits=limits) as client:
        await asyncio.gather(*(client_loop(client) for _ in range(count)))
    return answers, time.monotonic() - start


async def arrive(url: str, bodies: list[bytes], rate: float) -> tuple[list, float]:
    """Sends requests at random times, `rate` a second on average, whether earlier ones are answered or not."""
    answers = []
    tasks = []
    rng = random.Random(0)
    start = time.monotonic()
    async with httpx.AsyncClient(base_url=url, limits=httpx.Limits(max_connections=1000)) as client:
        for body in bodies:
            tasks.append(asyncio.create_task(send(client, body, answers)))
            await asyncio.sleep(rng.expovariate(rate))
        await asyncio.gather(*tasks)
    return answers, time.monotonic() - start


def run_clients(pipe, kind: str, *arguments):
    """In a process of its own: so that clients do not stand in the server's way more than they must."""
    work = {"in flight": keep_in_flight, "arriving": arrive}[kind]
    pipe.send(asyncio.run(work(*arguments)))


def measured(label: str, kind: str, *arguments) -> float:
    """Prints a row of the table, and returns the answers a second."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=run_clients, args=(there, kind, *arguments))
    process.start()
    answers, seconds = here.recv()
    process.join()

    statuses = Counter(status for status, _, _ in answers)
    times = sorted(duration for status, duration, _ in answers if status == 200)
    rate = len(times) / seconds
    median = times[len(times) // 2]
    late = times[min(len(times) - 1, int(0.99 * len(times)))]
    refused = sorted(int(header) for status, _, header in answers if status == 429)
    advice = f"{refused[0]} to {refused[-1]} s" if refused else "-"
    print(
        f"| {label} | {rate:.1f} | {median:.2f} | {late:.2f} | {statuses[200]} | {statuses[429]} | {advice} |",
        flush=True,
    )
    return rate


def start_server(repo: Path, waiting_tokens: int) -> tuple[subprocess.Popen, str]:
    """`unime serve` in a process of its own, and its address."""
    command = [sys.executable, "-m", "unime.cli", "serve", str(repo), "--port", "0"]
    command += ["--max-waiting-tokens", str(waiting_tokens), "--timeout", "600"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    for line in process.stderr:
        if "running on " in line:
            return process, line.partition("running on ")[2].split()[0]
    raise SystemExit("the server did not start.")


def main():
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=96)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument(
        "--waiting-tokens", type=int, default=1024, help="of the server's queue: few, so that it fills"
    )
    options = parser.parse_args()
    print(machine())

    with tempfile.TemporaryDirectory() as folder:
        random.seed(0)
        repo = make_repo(Path(folder))
        items = make_items(options.items)
        bodies = bodies_of(items)

        # the same items by `encode`, one at a time as they would arrive, and all at once
        model = UniMEModel.from_pretrained(repo, dtype=torch.float32).eval()
        model.encode(items[:8])
        for label, groups in (("one by one", [[item] for item in items]), ("all at once", [items])):
            start = time.monotonic()
            for group in groups:
                model.encode(group, show_progress=False)
            print(f"encode, {label}: {len(items) / (time.monotonic() - start):.1f} items/s", flush=True)

        process, url = start_server(repo, options.waiting_tokens)
        try:
            print("| requests | answers/s | p50 s | p99 s | answered | refused (429) | Retry-After |")
            print("|---|---|---|---|---|---|---|")
            rates = []
            for count in options.in_flight:
                rates.append(measured(f"{count} in flight", "in flight", url, bodies, count))
            for share in (0.5, 1, 2):
                rate = share * max(rates)
                measured(f"{share:g} times the capacity: {rate:.1f} a second", "arriving", url, bodies, rate)
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
