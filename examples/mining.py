"""Mining on the miniature world, where it is known which candidates are right: what each method takes for a negative.

    python -m unime.examples.mining --world outputs/world --mined outputs/chain/mined

prints the share of false negatives, candidates that show what the query asks for, among the negatives of in-batch
top-k, of retrieval alone, of retrieval with the judge, and of SaHa.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from ..data.readers import read_clusters, read_judged, read_mmeb_train
from ..data.schema import Item, to_example
from ..mining.pipeline import Mining, MiningConfig
from ..mining.retrieval import exact_top_k
from ..mining.selection import Pair
from .common import RECIPES, write_json

METHODS = ("in-batch top-k", "retrieval", "retrieval, below the positive", "retrieval + judge", "SaHa")


def mine(world: Path, embedder: Path, judge: Path, out: Path, **changes) -> Mining:
    """Runs `unime mine run` and `unime mine saha` with the miniature recipe, and draws the page.

    Args:
        world (`Path`): written by `unime.miniature.world`.
        embedder (`Path`): whose embeddings are searched.
        judge (`Path`): whose scores choose among what is found.
        out (`Path`): folder for everything that is made.
        changes: settings of [`~unime.mining.pipeline.MiningConfig`] in place of the recipe's.
    """
    settings = yaml.safe_load((RECIPES / "mining" / "shapes.yaml").read_text(encoding="utf-8"))
    settings |= {"data": str(world / "train"), "image_root": str(world), "out": str(out)}
    settings |= {"embedder": str(embedder), "judge": str(judge)}
    mining = Mining(MiningConfig(**settings | changes))
    mining.run()
    mining.saha()
    mining.inspect()
    return mining


class Truth:
    """Which targets of the training rows show the same.

    Args:
        world (`Path`): written by `unime.miniature.world`.
    """

    def __init__(self, world: Path):
        self.contents = {}
        for path in sorted((world / "truth").glob("*.json")):
            rows = read_mmeb_train(world / "train", [path.stem], image_root=world)
            for positive, content in zip(rows["positive"], json.loads(path.read_text(encoding="utf-8"))):
                self.contents[path.stem, Item(**positive).identity] = content

    def same(self, task: str, first: Item, second: Item) -> bool:
        """Whether two targets of a task show the same."""
        return self.contents[task, first.identity] == self.contents[task, second.identity]


@dataclass(frozen=True)
class Choice:
    """What a method takes for the negatives of one row."""

    task: str
    positive: Item
    negatives: list[Item]


class Chooser:
    """The negatives of each row by each method.

    Args:
        mining ([`~unime.mining.pipeline.Mining`]): finished, with a pool per data set.
        count (`int`): negatives of each row.
    """

    def __init__(self, mining: Mining, count: int):
        self.mining = mining
        self.count = count
        self.pool = mining.pool
        self.excluded = mining.pool.excluded()
        self.queries, self.corpus = mining.embeddings().values()

        self.pairs = {}  # of each task
        for pair in mining.pairs:
            self.pairs.setdefault(pair.dataset, []).append(pair)

    def in_batch(self, batch: int, seed: int) -> Iterator[Choice]:
        """The candidates of a batch of one task that are most similar to the query."""
        for pairs in self.pairs.values():
            shuffled = random.Random(seed).sample(pairs, len(pairs))
            for start in range(0, len(shuffled), batch):
                yield from self._of_batch(shuffled[start : start + batch])

    def _of_batch(self, pairs: list[Pair]) -> Iterator[Choice]:
        """The most similar candidates of one batch."""
        candidates = sorted({pair.positive for pair in pairs})
        scores = self.queries[[pair.query for pair in pairs]] @ self.corpus[candidates].T  # [B, N]
        for pair, row in zip(pairs, scores):
            nearest = [candidates[place] for place in np.argsort(-row)]
            allowed = [number for number in nearest if number not in self.excluded[pair.query]]
            yield self._choice(pair, allowed)

    def retrieved(self) -> Iterator[Choice]:
        """The candidates of the whole task that are most similar to the query."""
        for task, pairs in self.pairs.items():
            candidates = sorted({pair.positive for pair in pairs})
            place_of = {number: place for place, number in enumerate(candidates)}

            mined = [pair for pair in self.mining.mined if pair.dataset == task]
            queries = [pair.query for pair in mined]
            excluded = []
            for query in queries:
                excluded.append([place_of[number] for number in self.excluded[query] if number in place_of])

            # -1 where there are fewer than `count`
            nearest, _ = exact_top_k(self.queries[queries], self.corpus[candidates], self.count, excluded=excluded)
            for pair, places in zip(mined, nearest.tolist()):
                yield self._choice(pair, [candidates[place] for place in places if place >= 0])

    def below_positive(self) -> Iterator[Choice]:
        """What mining retrieved: the same, but for candidates more similar than the positive."""
        for row in self.mining.judged:
            yield self._choice(row["pair"], row["candidates"])

    def judged(self) -> Iterator[Choice]:
        """What mining wrote, with a judge's help."""
        rows = read_judged(self.mining.out / f"{self.mining.config.name}.json", self.mining.image_root)
        for example in map(to_example, rows):
            yield Choice(example.dataset, example.positive, example.negatives[: self.count])

    def clusters(self) -> Iterator[Choice]:
        """The positives of the other members of SaHa's clusters."""
        for example in map(to_example, read_clusters(self.mining.out / "saha", self.mining.image_root)):
            positives = [member.positive for member in example.members()]
            for place, positive in enumerate(positives):
                others = positives[:place] + positives[place + 1 :]
                yield Choice(example.dataset, positive, others[: self.count])

    def _choice(self, pair: Pair, candidates: list[int]) -> Choice:
        """The first of some candidates, given by their numbers in the pool."""
        items = [self.pool.candidates[number] for number in candidates[: self.count]]
        return Choice(pair.dataset, pair.item, items)


def false_negatives(world: Path, mining: Mining, batch: int = 64, negatives: int = 8, seed: int = 0) -> dict:
    """Share of false negatives by method and task, over the rows that were mined.

    Args:
        world (`Path`): written by `unime.miniature.world`.
        mining ([`~unime.mining.pipeline.Mining`]): finished, with a pool per data set.
        batch (`int`, defaults to 64): rows of one task in a batch, for in-batch top-k.
        negatives (`int`, defaults to 8): taken of each row.
        seed (`int`, defaults to 0): which rows share a batch.

    Returns:
        `{method: {task: share}}`, and of each method the share over all negatives under `"all"`.
    """
    truth = Truth(world)
    chooser = Chooser(mining, negatives)
    choices = (
        chooser.in_batch(batch, seed),
        chooser.retrieved(),
        chooser.below_positive(),
        chooser.judged(),
        chooser.clusters(),
    )

    shares = {}
    for method, choices_of_method in zip(METHODS, choices):
        shares[method] = _shares(choices_of_method, truth, list(chooser.pairs))
    return shares


def _shares(choices: Iterable[Choice], truth: Truth, tasks: list[str]) -> dict[str, float]:
    """Share of false negatives among what was chosen, by task and over all."""
    totals = Counter()
    wrong = Counter()
    for choice in choices:
        for negative in choice.negatives:
            is_false = truth.same(choice.task, choice.positive, negative)
            for name in (choice.task, "all"):
                totals[name] += 1
                wrong[name] += is_false
    return {name: wrong[name] / max(totals[name], 1) for name in (*tasks, "all")}


def print_shares(shares: dict[str, dict[str, float]]):
    """Method x task, in percent, for the tasks that have false negatives at all."""
    tasks = []
    for task in shares[METHODS[0]]:
        if any(by_task[task] for by_task in shares.values()):
            tasks.append(task)

    print()
    print(_line("false negatives, %", [task.removeprefix("Shapes_") for task in tasks]))
    for method, by_task in shares.items():
        print(_line(method, [f"{100 * by_task[task]:.2f}" for task in tasks]))


def _line(title: str, cells: list[str]) -> str:
    """A line of the table."""
    return f"{title:<32}" + "".join(f"{cell:>12}" for cell in cells)


def main(arguments=None):
    """The command `python -m unime.examples.mining`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, default=Path("outputs/world"))
    parser.add_argument("--embedder", type=Path, default=Path("outputs/quickstart/model"))
    parser.add_argument("--judge", type=Path, default=Path("outputs/judge"))
    parser.add_argument("--mined", type=Path, default=Path("outputs/mined"), help="folder for what is made")
    parser.add_argument("--rows", type=int, help="pairs mined of each task")
    options = parser.parse_args(arguments)

    changes = {}
    if options.rows:
        changes["mined_per_subset"] = options.rows
    mining = mine(options.world, options.embedder, options.judge, options.mined, **changes)
    shares = false_negatives(options.world, mining)
    write_json(options.mined / "false_negatives.json", shares)
    print_shares(shares)


if __name__ == "__main__":
    main()
