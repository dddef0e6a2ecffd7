"""Exact top-k by blocks in bounded memory, and FAISS for corpora that are too large for it."""

import warnings
from collections.abc import Sequence

import numpy as np
import torch

RESULTS = 2**24  # results of FAISS held at once
GROUP = 16  # scores whose greatest is compared first


def exact_top_k(
    queries,
    corpus,
    k: int,
    below=None,
    excluded: Sequence[Sequence[int]] | None = None,
    block: int = 4096,
    corpus_block: int = 32_768,
    device: str | torch.device = "cpu",
    screen: bool | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The `k` rows of the corpus with the greatest inner product with each query, exactly, in float32.

    Memory beyond the inputs is about `5 * block * corpus_block` bytes, and less with `screen`.

    Args:
        queries: array `[Q, D]`.
        corpus: array `[N, D]`.
        k (`int`): results of each query.
        below (*optional*): array `[Q]`; only scores less than that count.
        excluded (*optional*): for each query, corpus rows that never count.
        block (`int`, defaults to 4096): queries of one matrix product.
        corpus_block (`int`, defaults to 32768): corpus rows of one matrix product.
        device: where to compute.
        screen (`bool`, *optional*): compute a short list in bfloat16 first, and float32 scores of that alone; results
            are the same (see `_screened`). By default where bfloat16 products are fast: on a CPU with AMX.

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
    for name, array in (("query", queries), ("corpus row", corpus)):
        if not np.isfinite(array.sum(axis=1, dtype=np.float64)).all():
            raise ValueError(f"{name} {int(np.argmin(np.isfinite(array).all(axis=1)))} is not finite.")
    indices = np.full((len(queries), k), -1, dtype=np.int64)
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    screen = torch.device(device).type == "cpu" and torch.cpu._is_amx_tile_supported() if screen is None else screen
    for start in range(0, len(queries), block):
        rows = slice(start, min(start + block, len(queries)))
        part = _on(queries[rows], device)
        limit = None if below is None else _on(np.asarray(below, np.float32)[rows], device)[:, None]
        best = torch.empty(len(part), 0, device=device)
        found = torch.empty(len(part), 0, dtype=torch.long, device=device)
        for first in range(0, len(corpus), corpus_block):
            other = _on(corpus[first : first + corpus_block], device)
            never = _pairs(excluded[rows] if excluded is not None else (), first, len(other))
            engine = _screened if screen and len(other) > 8 * GROUP * k else _direct
            values, columns = engine(part, other, k, limit, never)
            best, chosen = _ordered(torch.cat([best, values], 1), k)
            found = torch.cat([found, columns + first], 1).gather(1, chosen)
        found[best == -torch.inf] = -1
        width = best.shape[1]  # less than k where the corpus is
        indices[rows, :width], scores[rows, :width] = found.cpu().numpy(), best.cpu().numpy()
    return indices, scores


def _on(array: np.ndarray, device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(device)


def _pairs(excluded, first: int, width: int) -> tuple[list[int], list[int]]:
    pairs = [(row, i - first) for row, own in enumerate(excluded) for i in own if first <= i < first + width]
    return [row for row, _ in pairs], [column for _, column in pairs]


def _direct(part, other, k: int, limit, never) -> tuple[torch.Tensor, torch.Tensor]:
    """The `k` best columns of `part @ other.T` in each row: float32 values and columns `[q, k]`."""
    scores = part @ other.T  # [q, c]
    scores[never] = -torch.inf
    if limit is not None:
        scores.masked_fill_(scores >= limit, -torch.inf)
    return _top(scores, k)


def _screened(part, other, k: int, limit, never) -> tuple[torch.Tensor, torch.Tensor]:
    """As `_direct`, from a short list found in bfloat16.

    A rounded score differs from the true one by no more than the rounding errors' norms allow (Cauchy-Schwarz). So no
    column outside the list can be among the best if the list's least rounded score, plus that bound, is below the
    `k`-th best true score inside it. Rows for which this does not hold are computed directly.
    """
    low, other_low = part.bfloat16(), other.bfloat16()
    longest, longest_error = other.norm(dim=1).max(), (other - other_low.float()).norm(dim=1).max()
    bound = (part - low.float()).norm(dim=1) * longest + low.float().norm(dim=1) * longest_error  # [q]
    bound += 4 * part.shape[1] * 2**-24 * part.norm(dim=1) * longest  # sums of float32 in another order
    rounded = low @ other_low.T  # [q, c]
    rounded[never] = -torch.inf
    listed, columns = _top(rounded, min(2 * k + 32, rounded.shape[1]))  # [q, m]
    least = listed.float().amin(1)
    bound += least + least.abs() / 128  # the product itself is rounded, too
    rows, count = columns.shape
    starts = torch.arange(0, rows * count + 1, count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its sparse rows a beta
        places = torch.sparse_csr_tensor(starts, columns.flatten(), torch.zeros(rows * count), (rows, len(other)))
    scores = torch.sparse.sampled_addmm(places, part, other.T, beta=0.0).values().view(rows, count)
    scores.masked_fill_(listed == -torch.inf, -torch.inf)
    if limit is not None:
        scores.masked_fill_(scores >= limit, -torch.inf)
    values, chosen = scores.topk(k, dim=1)
    chosen, order = chosen.sort(dim=1)
    values, columns = values.gather(1, order), columns.gather(1, chosen)
    open_rows = torch.nonzero(~(values.amin(1) > bound))[:, 0]
    if len(open_rows):
        number = {row: place for place, row in enumerate(open_rows.tolist())}
        own = [(number[row], column) for row, column in zip(*never) if row in number]
        never = [row for row, _ in own], [column for _, column in own]
        limit = None if limit is None else limit[open_rows]
        values[open_rows], columns[open_rows] = _direct(part[open_rows], other, k, limit, never)
    return values, columns


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
        grouped = scores.view(count, GROUP, groups)  # a group is every `groups`-th column: its maximum is a vector's
        chosen = grouped.amax(1).topk(min(k, groups), dim=1).indices  # [q, k]
        inside = grouped.gather(2, chosen[:, None].expand(-1, GROUP, -1)).flatten(1)  # [q, GROUP * k]
        values, places = inside.topk(k, dim=1)
        columns = places // chosen.shape[1] * groups + chosen.gather(1, places % chosen.shape[1])
        columns.clamp_(max=width - 1)  # padding, whose values are -inf, is chosen where there is too little else
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
            raise ImportError("this index needs FAISS: pip install faiss-cpu.") from error
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
        left, depth = np.arange(len(queries)), min(k, self.index.ntotal)
        while len(left):
            open_rows = []
            for row, own_values, own in self._search(queries, left, depth):
                keep = own >= 0
                if below is not None:
                    keep &= own_values < below[row]
                if excluded is not None and len(excluded[row]):
                    keep &= ~np.isin(own, np.asarray(excluded[row]))
                places = np.flatnonzero(keep)[:k]
                indices[row, : len(places)], scores[row, : len(places)] = own[places], own_values[places]
                if len(places) < k and depth < self.index.ntotal and own[-1] >= 0:
                    open_rows.append(row)
            left, depth = np.array(open_rows, dtype=np.int64), min(2 * depth, self.index.ntotal)
        return indices, scores

    def _search(self, queries, rows, depth: int):
        """Row by row, values and indices `[depth]` of some queries, at most `RESULTS` at a time."""
        block = max(1, RESULTS // depth)
        for start in range(0, len(rows), block):
            part = rows[start : start + block]
            yield from zip(part, *self.index.search(queries[part], depth))


class Corpus:
    """Some rows of a matrix of embeddings, searched under the numbers that they have in the whole.

    Args:
        embeddings: array `[N, D]`.
        rows: array of the row numbers that are searched, in order.
        index (`str`): `"exact"`, or `"flat"` or `"ivf"` of FAISS.
        lists, probes: of [`FaissIndex`].
        device: where exact search computes.
    """

    def __init__(self, embeddings, rows, index: str = "exact", lists=None, probes: int = 32, device="cpu"):
        self.rows, self.device = rows, device
        self.vectors = embeddings if len(rows) == len(embeddings) else embeddings[rows]
        self.place = {row: number for number, row in enumerate(rows.tolist())}
        self.index = None if index == "exact" else FaissIndex(self.vectors, index, lists, probes)

    def top_k(self, queries, k: int, below=None, excluded=None) -> tuple[np.ndarray, np.ndarray]:
        """As [`exact_top_k`], with `excluded` and the indices in the numbers of the whole."""
        never = None if excluded is None else [[self.place[i] for i in own if i in self.place] for own in excluded]
        if self.index is None:
            found, scores = exact_top_k(queries, self.vectors, k, below, never, device=self.device)
        else:
            found, scores = self.index.top_k(queries, k, below, never)
        return np.where(found >= 0, self.rows[found], -1), scores
