"""The tables of all ranks as one."""

import torch
import torch.distributed as dist

from ..data.collators import Batch
from ..data.schema import content_hash


class GatheredTable:
    """The tables of all ranks as one: items with equal content share the index of their first copy.

    Every rank computes the same loss over all rows, so the gradient of its own slice is exact and nothing has to be
    sent back; DDP's averaging is undone by `gradient_scale = world_size`.

    Attributes:
        query, positive (`[B]`), negatives (`[B, K]`), positive_score (`[B]`), negative_scores (`[B, K]`): as in
            `Batch`, over all ranks.
        hashes (`[T]`): of the items and their roles.
        is_query (`[T]`): 1 where an item is in the role of a query.
        dataset (`[B]`): hash of the name of each row's data set.
    """

    def __init__(self, batch: Batch, device: torch.device):
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if self.world_size > 1 else 0
        hashes = self._gather(batch.hashes.to(device))
        offsets = [sum(map(len, hashes[:rank])) for rank in range(self.world_size)]
        self.hashes = torch.cat(hashes)
        first = _first_copies(self.hashes)

        def indices(local):
            parts = self._gather(local.to(device))
            return _stack(
                [torch.where(part >= 0, first[(part + o).clamp(min=0)], part) for part, o in zip(parts, offsets)], -1
            )

        self.query, self.positive, self.negatives = map(indices, (batch.query, batch.positive, batch.negatives))
        # a copy of a query keeps the role of its first copy, whose hash it has
        self.is_query = torch.isin(self.hashes, self.hashes[self.query]).long()
        names = torch.tensor([content_hash(name) for name in batch.dataset], device=device)
        self.dataset = torch.cat(self._gather(names))
        self.positive_score, self.negative_scores = (
            _stack(self._gather(scores.to(device)), float("nan"))
            for scores in (batch.positive_score, batch.negative_scores)
        )

    def gather(self, embeddings: torch.Tensor) -> torch.Tensor:
        """All ranks' embeddings `[T, D]`; only the own slice carries a graph."""
        if self.world_size == 1:
            return embeddings
        parts = self._gather(embeddings.detach())
        parts[self.rank] = embeddings
        return torch.cat(parts)

    def _gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """One tensor per rank; shapes may differ in every dimension."""
        if self.world_size == 1:
            return [tensor]
        shape = torch.tensor(tensor.shape, device=tensor.device)
        shapes = [torch.empty_like(shape) for _ in range(self.world_size)]
        dist.all_gather(shapes, shape)
        largest = torch.stack(shapes).amax(dim=0).tolist()
        padded = tensor.new_zeros(largest)
        padded[tuple(slice(size) for size in tensor.shape)] = tensor
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(parts, padded)
        return [part[tuple(slice(size) for size in own.tolist())] for part, own in zip(parts, shapes)]


def _stack(parts: list[torch.Tensor], fill) -> torch.Tensor:
    """The ranks' rows under each other; narrower ones are filled up on the right."""
    if parts[0].dim() == 1:
        return torch.cat(parts)
    width = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1]), value=fill) for part in parts])


def _first_copies(hashes: torch.Tensor) -> torch.Tensor:
    """For each item the index of the first item with the same hash: `[a, b, a]` gives `[0, 1, 0]`."""
    _, group = hashes.unique(return_inverse=True)
    positions = torch.arange(len(hashes), device=hashes.device)
    first = torch.full_like(positions, len(hashes)).scatter_reduce(0, group, positions, "amin")
    return first[group]
