"""Samplers that decide which rows meet in a batch."""

from collections.abc import Sequence

import torch
from torch.utils.data import Sampler


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
