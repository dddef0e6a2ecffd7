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
        seed (`int`): the order is a function of seed and epoch.
    """

    def __init__(self, datasets: Sequence[str], block_size: int, seed: int = 0):
        if block_size < 1:
            raise ValueError(f"block_size must be positive, got {block_size}.")
        self.block_size, self.seed, self.epoch, self.length = block_size, seed, 0, len(datasets)
        rows = {}
        for index, name in enumerate(datasets):
            rows.setdefault(name, []).append(index)
        self.rows = [torch.tensor(indices) for indices in rows.values()]

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)

        def shuffled(rows):
            return rows[torch.randperm(len(rows), generator=generator)]

        blocks, rest = [], []
        for rows in self.rows:
            *full, last = (*shuffled(rows).split(self.block_size),)
            (blocks if len(last) == self.block_size else rest).append(last)
            blocks.extend(full)
        order = [blocks[i] for i in torch.randperm(len(blocks), generator=generator).tolist()] if blocks else []
        if rest:
            order.append(shuffled(torch.cat(rest)))
        yield from (index for block in order for index in block.tolist())
