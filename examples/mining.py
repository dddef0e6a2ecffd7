"""Mining on the miniature world, where it is known which candidates are right: what each method takes for a negative.

    python -m unime.examples.mining --world outputs/world --mined outputs/chain/mined

prints the share of false negatives, candidates that show what the query asks for, among the negatives of in-batch
top-k, of retrieval alone, of retrieval with the judge, and of SaHa.
"""

import argparse
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from ..data.readers import read_clusters, read_judged, read_mmeb_train
from ..data.schema import Item, to_example
from ..files.writing import read_json, write_json
from ..jobs.notices import silence_alarms
from ..mining.pipeline import Mining
from ..mining.pools import Pair
from ..mining.retrieval import exact_top_k
from ..mining.settings import MiningConfig
from .common import RECIPES

METHODS = ("in-batch top-k", "retrieval", "retrieval, below the positive", "retrieval + judge", "SaHa")


def mine(world: Path, embedder: Path, judge: Path, out: Path, **changes) -> Mining:
    """Runs `unime mine run` and `unime mine saha` with the miniature recipe, and draws the page.

    Args:
        world (`Path`): written by `unime.miniature.world`.
        embedder (`Path`): whose embeddings are searched.
        judge (`Path`): whose scores choose among what is found.
        out (`Path`): folder for everything that is made.
        changes: settings of [`~unime.mining.settings.MiningConfig`] in place of the recipe's.
    """
    settings = yaml.safe_load((RECIPES / "mining" / "shapes.yaml").read_text(encoding="utf-8"))
    settings |= {"data": str(world / "train"), "image_root": str(world), "out": str(out)}
    settings |= {"embedder": str(embedder), "judge": str(judge)}

    # each of these goes on where it was interrupted, and does nothing again
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
        self.contents = {}  # what a target shows, by task and identity of the target
        for path in sorted((world / "truth").glob("*.json")):
            rows = read_mmeb_train(world / "train", [path.stem], image_root=world)
            for positive, content in zip(rows["positive"], read_json(path)):
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
        self.pairs = _by_task(mining.pairs)
        self.mined = _by_task(mining.mined)  # those of the pairs that negatives are mined for
        self.queries, self.corpus = mining.embeddings().values()  # [Q, D], [N, D]

    def in_batch(self, batch: int, seed: int) -> Iterator[Choice]:
        """The candidates of a batch of one task that are most similar to the query."""
        for pairs in self.pairs.values():
            # in training, rows of a task share a batch by chance
            shuffled = random.Random(seed).sample(pairs, len(pairs))
            for start in range(0, len(shuffled), batch):
                yield from self._of_batch(shuffled[start : start + batch])

    def _of_batch(self, pairs: list[Pair]) -> Iterator[Choice]:
        """The most similar candidates of one batch."""
        candidates = np.unique([pair.positive for pair in pairs])  # [C]
        scores = self.queries[[pair.query for pair in pairs]] @ self.corpus[candidates].T  # [B, C]
        for pair, row in zip(pairs, scores):
            nearest = candidates[np.argsort(-row)]  # [C]
            allowed = nearest[~np.isin(nearest, self.pool.excluded(pair.query))]
            yield self._choice(pair, allowed)

    def retrieved(self) -> Iterator[Choice]:
        """The candidates of the whole task that are most similar to the query."""
        for task, pairs in self.mined.items():
            candidates = np.unique([pair.positive for pair in self.pairs[task]])  # [C]
            queries = [pair.query for pair in pairs]

            # excluded candidates, as places among those of the task
            excluded = []
            for query in queries:
                places = np.flatnonzero(np.isin(candidates, self.pool.excluded(query)))
                excluded.append(places.tolist())

            nearest, _ = exact_top_k(self.queries[queries], self.corpus[candidates], self.count, excluded=excluded)
            for pair, places in zip(pairs, nearest):
                places = places[places >= 0]  # -1 stands where there are fewer candidates than asked for
                yield self._choice(pair, candidates[places])

    def below_positive(self) -> Iterator[Choice]:
        """What mining retrieved: the same, but for candidates more similar than the positive."""
        for row in self.mining.judged:
            yield self._choice(row["pair"], row["candidates"])

    def judged(self) -> Iterator[Choice]:
        """What mining wrote, with a judge's help."""
        rows = read_judged(self.mining.selected_path, self.mining.image_root)
        for example in map(to_example, rows):
            yield Choice(example.dataset, example.positive, example.negatives[: self.count])

    def clusters(self) -> Iterator[Choice]:
        """The positives of the other members of SaHa's clusters."""
        for example in map(to_example, read_clusters(self.mining.out / "saha", self.mining.image_root)):
            positives = [member.positive for member in example.members()]

            # every member of a cluster is a query, and the others are its negatives
            for place, positive in enumerate(positives):
                others = positives[:place] + positives[place + 1 :]
                yield Choice(example.dataset, positive, others[: self.count])

    def _choice(self, pair: Pair, candidates: Sequence[int]) -> Choice:
        """The first of some candidates, given by their numbers in the pool."""
        items = [self.pool.candidates[number] for number in candidates[: self.count]]
        return Choice(pair.dataset, pair.item, items)


def _by_task(pairs: list[Pair]) -> dict[str, list[Pair]]:
    """Pairs by the task that they are of."""
    groups = {}
    for pair in pairs:
        groups.setdefault(pair.dataset, []).append(pair)
    return groups


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
    choices = (  # in the order of METHODS
        chooser.in_batch(batch, seed),
        chooser.retrieved(),
        chooser.below_positive(),
        chooser.judged(),
        chooser.clusters(),
    )

    # one method after the other, as each may read large files
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

    # a task without negatives has no false ones
    shares = {}
    for name in (*tasks, "all"):
        shares[name] = wrong[name] / max(totals[name], 1)
    return shares


def print_shares(shares: dict[str, dict[str, float]]):
    """Method x task, in percent, for the tasks that have false negatives at all."""
    # of tasks whose targets all differ there is nothing to say
    tasks = []
    for task in shares[METHODS[0]]:
        if any(by_task[task] for by_task in shares.values()):
            tasks.append(task)

    line = f"{'false negatives, %':<32}"
    for task in tasks:
        line += f"{task.removeprefix('Shapes_'):>12}"
    print(f"\n{line}")

    for method, by_task in shares.items():
        line = f"{method:<32}"
        for task in tasks:
            line += f"{100 * by_task[task]:>12.2f}"
        print(line)


def main(arguments=None):
    """The command `python -m unime.examples.mining`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, default=Path("outputs/world"))
    parser.add_argument("--embedder", type=Path, default=Path("outputs/quickstart/model"))
    parser.add_argument("--judge", type=Path, default=Path("outputs/judge"))
    parser.add_argument("--mined", type=Path, default=Path("outputs/mined"), help="folder for what is made")
    parser.add_argument("--rows", type=int, help="pairs mined of each task")
    options = parser.parse_args(arguments)
    silence_alarms()

    changes = {}
    if options.rows:
        changes["mined_per_subset"] = options.rows
    mining = mine(options.world, options.embedder, options.judge, options.mined, **changes)
    shares = false_negatives(options.world, mining)
    write_json(options.mined / "false_negatives.json", shares)
    print_shares(shares)


if __name__ == "__main__":
    main()
