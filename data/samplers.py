"""What decides which rows meet in a batch, and which of them each rank reads: samplers, and an order of streams."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import IterableDataset, Sampler


class HomogeneousSampler(Sampler[int]):
    """Shuffles rows so that every block of `block_size` consecutive indices comes from one data set.

    With `block_size` = per-device batch x processes, all ranks work on the same data set in every step, whatever
    sharding the data loader does. Rows that do not fill a block of their own data set end up in mixed blocks at the
    end of the epoch's order, so nothing is lost; every index occurs exactly once per epoch.

    Args:
        datasets (`Sequence[str]`): name of the data set of each row.
        block_size (`int`): rows in a block.
        seed (`int`, defaults to 0): the order is a function of seed and epoch.

    Raises:
        ValueError: `block_size` is not positive.

    Example:

    ```python
    sampler = HomogeneousSampler(rows["dataset"], block_size=1024)
    sampler.set_epoch(1)
    loader = DataLoader(rows, batch_size=1024, sampler=sampler)
    ```
    """

    def __init__(self, datasets: Sequence[str], block_size: int, seed: int = 0):
        if block_size < 1:
            raise ValueError(f"block_size must be positive, got {block_size}.")
        self.block_size = block_size
        self.seed = seed
        self.epoch = 0
        self.length = len(datasets)

        indices = {}  # name -> rows of that data set
        for index, name in enumerate(datasets):
            indices.setdefault(name, []).append(index)
        self.rows_by_dataset = list(map(torch.tensor, indices.values()))

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)

        def shuffled(rows):
            return rows[torch.randperm(len(rows), generator=generator)]

        full_blocks = []
        remainders = []
        for rows in self.rows_by_dataset:
            *pieces, last = shuffled(rows).split(self.block_size)

            # what does not fill a block waits for the mixed blocks at the end of the epoch
            if len(last) < self.block_size:
                remainders.append(last)
            else:
                full_blocks.append(last)  # before the others: the order of every epoch rests on it
            full_blocks.extend(pieces)

        for number in torch.randperm(len(full_blocks), generator=generator).tolist():
            yield from full_blocks[number].tolist()
        if remainders:
            yield from shuffled(torch.cat(remainders)).tolist()


class HomogeneousStream(IterableDataset):
    """A stream of rows in blocks of one data set each: a row waits until its data set has filled a block.

    At the end of the stream, those that still wait come in mixed blocks. A stream is not shuffled here; `datasets`
    does that with a buffer (`stream.shuffle(buffer_size=10_000)`).

    Args:
        rows (`IterableDataset`): dicts or [`~unime.data.schema.Example`]s with `dataset`, the name of their data set.
        block_size (`int`): rows in a block; as many of each data set, less one, are in memory.

    Example:

    ```python
    stream = HomogeneousStream(rows.to_iterable_dataset().shuffle(buffer_size=1000), block_size=64)
    ```
    """

    def __init__(self, rows: IterableDataset, block_size: int):
        self.rows = rows
        self.block_size = block_size

    def set_epoch(self, epoch: int):
        """Chooses the order of an epoch, where the stream has one for each."""
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator:
        waiting = {}  # name of a data set -> its rows
        for row in self.rows:
            name = row.get("dataset") if isinstance(row, dict) else row.dataset
            block = waiting.setdefault(name, [])
            block.append(row)
            if len(block) == self.block_size:
                yield from waiting.pop(name)

        for block in waiting.values():
            yield from block


class StepBatches(Sampler[list[int]]):
    """Cuts the order of a sampler into steps, and each step into one batch for each rank.

    A contrastive loss over a few rows is far lower than over many, and its gradient larger: a small last step would
    weigh as much as a whole one. The rows that do not fill a step join the step before it, shared out evenly, or are
    left out. Every rank has as many batches; where there are fewer rows than ranks, some batches are empty.

    Args:
        sampler (`Sampler[int]`): gives the order of the rows.
        batch_size (`int`): rows of one rank in a step.
        ranks (`int`, defaults to 1): processes that share a step. Batch number `step * ranks + rank` is that of one
            rank in one step, which is how accelerate shares out the batches of a loader.
        drop_last (`bool`, defaults to `False`): leave out the rows that do not fill a step.

    Raises:
        ValueError: `batch_size` is not positive, or all rows would be left out.

    Example:

    ```python
    list(StepBatches(range(5), batch_size=1, ranks=2))  # [[0], [1], [2, 3], [4]]
    ```
    """

    def __init__(self, sampler, batch_size: int, ranks: int = 1, drop_last: bool = False):
        if batch_size < 1:
            raise ValueError(f"the batch size must be positive, got {batch_size}.")
        if drop_last and len(sampler) < batch_size * ranks:
            raise ValueError(
                f"dataloader_drop_last leaves none of the {len(sampler)} rows, of which a step takes "
                f"{batch_size * ranks}; lower the batch size, or leave the option off."
            )

        self.sampler = sampler
        self.rows = batch_size * ranks  # of a step; accelerate would read an attribute `batch_size` as fixed
        self.ranks = ranks
        self.drops_last = drop_last

    def set_epoch(self, epoch: int):
        """Chooses the order of an epoch, where the sampler has one for each."""
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return self.ranks * max(1, len(self.sampler) // self.rows)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.sampler)
        steps = len(self) // self.ranks
        for step in range(steps):
            end = (step + 1) * self.rows

            # the last step takes in what would not fill another
            if step == steps - 1 and not self.drops_last:
                end = len(order)
            yield from self._shares(order[step * self.rows : end])

    def _shares(self, rows: list[int]) -> Iterator[list[int]]:
        """A step's rows, one share for each rank; the first ones have a row more where they are not equal."""
        size, larger = divmod(len(rows), self.ranks)
        start = 0
        for rank in range(self.ranks):
            end = start + size + int(rank < larger)
            yield rows[start:end]
            start = end
