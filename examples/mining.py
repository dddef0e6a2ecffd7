"""Mining on the miniature world, where it is known which candidates are right: what each method takes for a negative.

    python -m unime.examples.mining --world outputs/world --mined outputs/chain/mined

prints the share of false negatives, candidates that show what the query asks for, among the negatives of in-batch
top-k, of retrieval alone, of retrieval with the judge, and of SaHa.
"""

import argparse
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import yaml

from ..data.readers import read_clusters, read_judged, read_mmeb_train
from ..data.schema import Item, to_example
from ..mining.pipeline import Mining, MiningConfig
from ..mining.retrieval import exact_top_k
from .quickstart import write_json

RECIPE = Path(__file__).parent.parent / "recipes" / "mining" / "shapes.yaml"
METHODS = ("in-batch top-k", "retrieval", "retrieval, below the positive", "retrieval + judge", "SaHa")


def mine(world: Path, embedder: Path, judge: Path, out: Path, **changes) -> Mining:
    """Runs `unime mine run` and `unime mine saha` with the miniature recipe, and draws the page."""
    settings = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    settings |= {"data": str(world / "train"), "image_root": str(world), "embedder": str(embedder)}
    mining = Mining(MiningConfig(**settings | {"judge": str(judge), "out": str(out)} | changes))
    mining.run()
    mining.saha()
    mining.inspect()
    return mining


class Truth:
    """Which targets of the training rows show the same."""

    def __init__(self, world: Path):
        self.contents = {}
        for path in sorted((world / "truth").glob("*.json")):
            rows = read_mmeb_train(world / "train", [path.stem], image_root=world)
            for positive, content in zip(rows["positive"], json.loads(path.read_text(encoding="utf-8"))):
                self.contents[path.stem, Item(**positive).identity] = content

    def same(self, task: str, first: Item, second: Item) -> bool:
        return self.contents[task, first.identity] == self.contents[task, second.identity]


def false_negatives(world: Path, mining: Mining, batch: int = 64, negatives: int = 8, seed: int = 0) -> dict:
    """Share of false negatives by method and task, over the rows that were mined.

    Args:
        world (`Path`): written by `unime.miniature.world`.
        mining ([`~unime.mining.pipeline.Mining`]): finished, with a pool per data set.
        batch (`int`): rows of one task in a batch, for in-batch top-k.
        negatives (`int`): taken of each row.

    Returns:
        `{method: {task: share}}`, and of each method the share over all negatives under `"all"`.
    """
    truth, pool, counts = Truth(world), mining.pool, {method: Counter() for method in METHODS}

    def count(method, task, positive, others):
        for other in others:
            counts[method][task, truth.same(task, positive, other)] += 1

    queries, corpus = mining.embeddings().values()
    excluded = pool.excluded()
    by_task = {}
    for pair in mining.pairs:
        by_task.setdefault(pair.dataset, []).append(pair)
    for task, pairs in by_task.items():
        own = sorted({pair.positive for pair in pairs})
        place = {candidate: number for number, candidate in enumerate(own)}
        mined = [pair for pair in mining.mined if pair.dataset == task]
        asked = [pair.query for pair in mined]
        never = [[place[i] for i in excluded[query] if i in place] for query in asked]
        found, _ = exact_top_k(queries[asked], corpus[own], negatives, excluded=never)
        for pair, nearest in zip(mined, found.tolist()):
            count("retrieval", task, pair.item, [pool.candidates[own[i]] for i in nearest if i >= 0])
        shuffled = random.Random(seed).sample(pairs, len(pairs))
        for start in range(0, len(shuffled), batch):
            part = shuffled[start : start + batch]
            inside = sorted({pair.positive for pair in part})
            scores = queries[[pair.query for pair in part]] @ corpus[inside].T  # [B, N]
            for row, pair in enumerate(part):
                order = [inside[i] for i in np.argsort(-scores[row]) if inside[i] not in excluded[pair.query]]
                count("in-batch top-k", task, pair.item, [pool.candidates[i] for i in order[:negatives]])
    for row in mining.judged:
        others = [pool.candidates[i] for i in row["candidates"][:negatives]]
        count("retrieval, below the positive", row["pair"].dataset, row["pair"].item, others)
    for row in map(to_example, read_judged(mining.out / f"{mining.config.name}.json", mining.image_root)):
        count("retrieval + judge", row.dataset, row.positive, row.negatives[:negatives])
    for row in map(to_example, read_clusters(mining.out / "saha", mining.image_root)):
        for number, member in enumerate(members := row.members()):
            others = [other.positive for place, other in enumerate(members) if place != number]
            count("SaHa", row.dataset, member.positive, others[:negatives])
    shares = {}
    for method, found in counts.items():
        tasks = {task: [found[task, True], found[task, False]] for task in by_task}
        tasks["all"] = [sum(pair[i] for pair in tasks.values()) for i in (0, 1)]
        shares[method] = {task: wrong / max(wrong + right, 1) for task, (wrong, right) in tasks.items()}
    return shares


def print_shares(shares: dict):
    """Method x task, in percent, for the tasks that have false negatives at all."""
    tasks = [task for task in next(iter(shares.values())) if any(found[task] for found in shares.values())]
    print(f"\n{'false negatives, %':<32}" + "".join(f"{task.removeprefix('Shapes_'):>12}" for task in tasks))
    for method, found in shares.items():
        print(f"{method:<32}" + "".join(f"{100 * found[task]:>12.2f}" for task in tasks))


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, default=Path("outputs/world"))
    parser.add_argument("--embedder", type=Path, default=Path("outputs/quickstart/model"))
    parser.add_argument("--judge", type=Path, default=Path("outputs/judge"))
    parser.add_argument("--mined", type=Path, default=Path("outputs/mined"), help="folder for what is made")
    parser.add_argument("--rows", type=int, help="pairs mined of each task")
    options = parser.parse_args(arguments)
    changes = {"mined_per_subset": options.rows} if options.rows else {}
    mining = mine(options.world, options.embedder, options.judge, options.mined, **changes)
    shares = false_negatives(options.world, mining)
    write_json(options.mined / "false_negatives.json", shares)
    print_shares(shares)


if __name__ == "__main__":
    main()
