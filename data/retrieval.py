"""Exact top-k by blocks in bounded memory, and FAISS for corpora that are too large for it."""

from collections.abc import Sequence

import numpy as np
import torch

GROUP = 64  # scores whose greatest is compared first


def exact_top_k(
    queries, corpus, k: int, below=None, excluded: Sequence[Sequence[int]] | None = None, block: int = 4096,
    corpus_block: int = 16_384, device: str | torch.device = "cpu",
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The `k` rows of the corpus with the greatest inner product with each query, exactly, in float32.

    Memory beyond the inputs is about `6 * block * corpus_block` bytes.

    Args:
        queries: array `[Q, D]`.
        corpus: array `[N, D]`.
        k (`int`): results of each query.
        below (*optional*): array `[Q]`; only scores less than that count.
        excluded (*optional*): for each query, corpus rows that never count.
        block (`int`, defaults to 4096): queries of one matrix product.
        corpus_block (`int`, defaults to 16384): corpus rows of one matrix product.
        device: where to compute.

    Returns:
        indices `[Q, k]` int64 (-1 where there are fewer) and scores `[Q, k]` float32 (-inf there), best first; equal
        scores in the order of the corpus.

    Raises:
        ValueError: widths differ, or a value is not finite.
    """
    queries, corpus = (np.asarray(array) for array in (queries, corpus))
    if queries.ndim != 2 or corpus.ndim != 2 or queries.shape[1] != corpus.shape[1]:
        raise ValueError(f"queries {queries.shape} and corpus {corpus.shape} must be matrices of one width.")
    if k < 1:
        raise ValueError(f"k must be positive, got {k}.")
    indices = np.full((len(queries), k), -1, dtype=np.int64)
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    for start in range(0, len(queries), block):
        rows = slice(start, min(start + block, len(queries)))
        part = _on(queries[rows], device)
        limit = None if below is None else _on(np.asarray(below, np.float32)[rows], device)[:, None]
        best = torch.full((len(part), k), -torch.inf, device=device)
        found = torch.full((len(part), k), -1, dtype=torch.long, device=device)
        for first in range(0, len(corpus), corpus_block):
            own = part @ _on(corpus[first : first + corpus_block], device).T  # [q, c]
            if not torch.isfinite(own.sum()):
                raise ValueError(f"a score of queries {rows.start} to {rows.stop - 1} is not finite.")
            if limit is not None:
                own.masked_fill_(own >= limit, -torch.inf)
            if excluded is not None:
                row, column = _pairs(excluded[rows], first, own.shape[1])
                own[row, column] = -torch.inf
            values, columns = _top(own, k)
            best, chosen = _ordered(torch.cat([best, values], 1), k)
            found = torch.cat([found, columns + first], 1).gather(1, chosen)
        found[best == -torch.inf] = -1
        indices[rows], scores[rows] = found.cpu().numpy(), best.cpu().numpy()
    return indices, scores


def _on(array: np.ndarray, device) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32, order="C")).to(device)


def _pairs(excluded, first: int, width: int) -> tuple[list[int], list[int]]:
    pairs = [(row, i - first) for row, own in enumerate(excluded) for i in own if first <= i < first + width]
    return [row for row, _ in pairs], [column for _, column in pairs]


def _top(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `k` greatest of each row `[q, c]`, as values and columns in the order of columns.

    They lie in the `k` groups of columns with the greatest maxima: one pass finds these, and only they are sorted.
    """
    count, width = scores.shape
    if width <= 2 * k * GROUP:
        values, columns = scores.topk(min(k, width), dim=1)
    else:
        groups = -(-width // GROUP)
        if groups * GROUP != width:
            scores = torch.nn.functional.pad(scores, (0, groups * GROUP - width), value=-torch.inf)
        grouped = scores.view(count, groups, GROUP)
        chosen = grouped.amax(2).topk(min(k, groups), dim=1).indices  # [q, k]
        inside = grouped.gather(1, chosen[:, :, None].expand(-1, -1, GROUP)).flatten(1)  # [q, k * GROUP]
        values, places = inside.topk(k, dim=1)
        columns = chosen.gather(1, places // GROUP) * GROUP + places % GROUP
    columns, order = columns.sort(dim=1)
    return values.gather(1, order), columns


def _ordered(values: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `k` greatest of each row, best first; of equal ones, those further left."""
    values, order = values.sort(dim=1, descending=True, stable=True)
    return values[:, :k], order[:, :k]


class FaissIndex:
    """FAISS over inner products: `flat` compares all, `ivf` only the nearest of `lists` cells.

    Args:
        corpus: array `[N, D]`.
        kind (`str`): `"flat"` or `"ivf"`.
        lists (`int`, *optional*): cells; `4 * sqrt(N)` by default.
        probes (`int`, defaults to 32): cells looked into.
    """

    def __init__(self, corpus, kind: str = "flat", lists: int | None = None, probes: int = 32):
        try:
            import faiss
        except ImportError as error:
            raise ImportError("this index needs FAISS: pip install 'unime[mining]'.") from error
        corpus = np.ascontiguousarray(corpus, dtype=np.float32)
        self.index = faiss.IndexFlatIP(corpus.shape[1])
        if kind == "ivf":
            lists = min(lists or int(4 * len(corpus) ** 0.5), len(corpus))
            self.index = faiss.IndexIVFFlat(self.index, corpus.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
            self.index.train(corpus)
            self.index.nprobe = min(probes, lists)
        elif kind != "flat":
            raise ValueError(f"the index must be 'exact', 'flat' or 'ivf', got {kind!r}.")
        self.index.add(corpus)

    def top_k(self, queries, k: int, below=None, excluded=None) -> tuple[np.ndarray, np.ndarray]:
        """As [`exact_top_k`]; the search goes deeper for queries whose results are not enough after the rules."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        indices = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        left, depth = np.arange(len(queries)), k
        while len(left):
            depth = min(2 * depth, self.index.ntotal)
            values, found = self.index.search(queries[left], depth)
            open_rows = []
            for row, own_values, own in zip(left, values, found):
                keep = own >= 0
                if below is not None:
                    keep &= own_values < below[row]
                if excluded is not None and len(excluded[row]):
                    keep &= ~np.isin(own, np.asarray(excluded[row]))
                places = np.flatnonzero(keep)[:k]
                indices[row, : len(places)], scores[row, : len(places)] = own[places], own_values[places]
                if len(places) < k and depth < self.index.ntotal and own[-1] >= 0:
                    open_rows.append(row)
            left = np.array(open_rows, dtype=np.int64)
        return indices, scores
