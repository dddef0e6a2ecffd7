"""The tables of all ranks as one."""

import torch
import torch.distributed as dist
import torch.nn.functional as F

from ..data.collators import Batch
from ..data.schema import content_hash


class GatheredTable:
    """The tables of all ranks as one: items with equal content share the index of their first copy.

    Every rank computes the same loss over all rows, so the gradient of its own slice is exact and nothing has to be
    sent back; DDP's averaging is undone by `gradient_scale = world_size`.

    Args:
        batch (`Batch`): this rank's, with a table of t items.
        device (`torch.device`): of the process group.

    Attributes:
        query, positive (`LongTensor` `[B]`), negatives (`LongTensor` `[B, K]`, -1 pads): indices into the table of T
            items, for the rows of all ranks.
        positive_score (`Tensor` `[B]`), negative_scores (`Tensor` `[B, K]`): judge scores, NaN where there are none.
        hashes (`LongTensor` `[T]`): of the items and their roles.
        is_query (`LongTensor` `[T]`): 1 where an item is in the role of a query.
        dataset (`LongTensor` `[B]`): hash of the name of each row's data set.
        also_positive (`BoolTensor` `[B, T]`, *optional*): where an item is right for a row, although it is not its
            positive; None where no row has any.
        weight (`Tensor` `[B]`, *optional*): how much each row counts; None where all count alike.
        world_size, rank (`int`): how many ranks there are, and which of them this one is.

    Example:

    ```python
    table = GatheredTable(batch, device)
    embeddings = table.gather(local_embeddings)  # [T, D]
    scores = embeddings[table.query] @ embeddings[table.positive].T  # [B, B]
    ```
    """

    def __init__(self, batch: Batch, device: torch.device):
        self.world_size = 1
        self.rank = 0
        if dist.is_initialized():
            self.world_size = dist.get_world_size()
            self.rank = dist.get_rank()

        hashes_by_rank = self._gather(batch.hashes.to(device))
        self.hashes = torch.cat(hashes_by_rank)  # [T]

        # where the items of each rank begin in the table of all
        offsets = []
        total = 0
        for hashes in hashes_by_rank:
            offsets.append(total)
            total += len(hashes)

        first_copies = _first_copies(self.hashes)  # [T]
        self.query = self._gather_indices(batch.query.to(device), offsets, first_copies)
        self.positive = self._gather_indices(batch.positive.to(device), offsets, first_copies)
        self.negatives = self._gather_indices(batch.negatives.to(device), offsets, first_copies)

        # a copy of a query has the same hash, and with it the role of its first copy
        self.is_query = torch.isin(self.hashes, self.hashes[self.query]).long()

        names = torch.tensor(list(map(content_hash, batch.dataset)), dtype=torch.long, device=device)
        self.dataset = torch.cat(self._gather(names))
        self.positive_score = torch.cat(self._gather(batch.positive_score.to(device)))
        self.negative_scores = _stack(self._gather(batch.negative_scores.to(device)), float("nan"))
        self.also_positive = self._also_positive(batch.other_positives.to(device))

        weight = torch.cat(self._gather(batch.weight.to(device)))  # [B]
        self.weight = None if (weight == 1).all() else weight

    def _also_positive(self, others: torch.Tensor) -> torch.Tensor | None:
        """Where `[B, T]` an item of the table is among the other positives `[b, P]` of a row."""
        hashes = _stack(self._gather(others), 0)  # [B, P]
        if hashes.shape[1] == 0:
            return None

        # a row at a time: [B, P, T] might not fit
        rows = [torch.isin(self.hashes, row[row != 0]) for row in hashes]
        return torch.stack(rows) if rows else None

    def gather(self, embeddings: torch.Tensor) -> torch.Tensor:
        """The embeddings `[T, D]` of all ranks, from the `[t, D]` of this one; only its own slice carries a graph."""
        if self.world_size == 1:
            return embeddings
        slices = self._gather(embeddings.detach())
        slices[self.rank] = embeddings
        return torch.cat(slices)

    def _gather_indices(self, indices: torch.Tensor, offsets: list[int], first_copies: torch.Tensor) -> torch.Tensor:
        """Indices into this rank's table become indices into the table of all ranks, over the rows of all ranks."""
        gathered = []
        for rank_indices, offset in zip(self._gather(indices), offsets):
            shifted = first_copies[(rank_indices + offset).clamp(min=0)]
            gathered.append(torch.where(rank_indices >= 0, shifted, rank_indices))  # -1 stays
        return _stack(gathered, -1)

    def _gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """One tensor per rank; shapes may differ in every dimension."""
        if self.world_size == 1:
            return [tensor]

        shape = torch.tensor(tensor.shape, device=tensor.device)
        shapes = [torch.empty_like(shape) for _ in range(self.world_size)]
        dist.all_gather(shapes, shape)

        # ranks can only exchange tensors of one shape, so each fills the corner of a large enough one
        largest = torch.stack(shapes).amax(dim=0).tolist()
        padded = tensor.new_zeros(largest)
        _corner(padded, tensor.shape).copy_(tensor)
        gathered = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(gathered, padded)
        return list(map(_corner, gathered, torch.stack(shapes).tolist()))


def _corner(tensor: torch.Tensor, shape) -> torch.Tensor:
    """A view of the first entries of each dimension."""
    return tensor[tuple(slice(size) for size in shape)]


def _stack(tensors: list[torch.Tensor], fill) -> torch.Tensor:
    """The ranks' rows under each other; narrower ones are filled up on the right."""
    if tensors[0].dim() == 1:
        return torch.cat(tensors)
    width = max(tensor.shape[1] for tensor in tensors)
    padded = []
    for tensor in tensors:
        missing = width - tensor.shape[1]
        padded.append(F.pad(tensor, (0, missing), value=fill))
    return torch.cat(padded)


def _first_copies(hashes: torch.Tensor) -> torch.Tensor:
    """For each item the index of the first item with the same hash: `[a, b, a]` gives `[0, 1, 0]`."""
    _, group = hashes.unique(return_inverse=True)  # [T]
    positions = torch.arange(len(hashes), device=hashes.device)
    first = torch.full_like(positions, len(hashes)).scatter_reduce(0, group, positions, "amin")
    return first[group]
