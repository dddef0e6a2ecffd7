"""Which candidates are nearest: exact top-k by blocks in bounded memory, and FAISS for corpora too large for that.

[`exact_top_k`] and [`FaissIndex`] search a whole matrix, [`Corpus`] some rows of one.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import torch

from ..devices_unime import fast_bfloat16, is_amd
from ..jobs.results import SomeRows

RESULTS = 2**24  # results of FAISS held at once
GROUP = 16  # scores whose greatest is compared first
COPY = 1e-5  # similarities of equal embeddings differ by less, depending on the batch they were computed in


def exact_top_k(
    queries,
    corpus,
    k: int,
    below=None,
    excluded: Sequence[Sequence[int]] | None = None,
    block: int = 1024,
    corpus_block: int = 32_768,
    device: str | torch.device = "cpu",
    screen: bool | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The `k` rows of the corpus with the greatest inner product with each query, exactly, in float32.

    Memory beyond the inputs is about `5 * block * corpus_block` bytes, and less with `screen`.

    Args:
        queries: array `[Q, D]`.
        corpus: array `[N, D]`, or anything that has its shape and slices; a block of it is read at a time.
        k (`int`): results of each query.
        below (*optional*): array `[Q]`; only scores less than that count.
        excluded (*optional*): for each query, corpus rows that never count.
        block (`int`, defaults to 1024): queries of one matrix product.
        corpus_block (`int`, defaults to 32768): corpus rows of one matrix product.
        device (`str` or `torch.device`, defaults to `"cpu"`): where to compute.
        screen (`bool`, *optional*): compute a short list in bfloat16 first, and float32 scores of that alone; the
            results are the same (see `_screened`). By default on CPUs where bfloat16 products are fast.

    Returns:
        indices `[Q, k]` int64 (-1 where there are fewer) and scores `[Q, k]` float32 (-inf there), best first; equal
        scores in the order of the corpus.

    Raises:
        ValueError: widths differ, `k` is not positive, or a value is not finite.

    Example:

    ```python
    corpus = np.eye(3, dtype=np.float32)
    indices, scores = exact_top_k(corpus[:1], corpus, k=1)  # [[0]], [[1.0]]
    ```
    """
    queries = np.asarray(queries)
    if len(queries.shape) != 2 or len(corpus.shape) != 2 or queries.shape[1] != corpus.shape[1]:
        raise ValueError(f"queries {queries.shape} and corpus {corpus.shape} must be matrices of one width.")
    if k < 1:
        raise ValueError(f"k must be positive, got {k}.")
    _require_finite("query", queries)
    device = torch.device(device)
    if screen is None:
        screen = device.type == "cpu" and fast_bfloat16()
    if below is not None:
        below = np.asarray(below, np.float32)

    # the best so far: none at first
    indices = np.full((len(queries), k), -1, dtype=np.int64)
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)

    # all products go to one place, as new memory for each would cost a quarter of the time
    buffer = torch.empty(min(block, len(queries)) * min(corpus_block, len(corpus)), device=device)

    for first in range(0, len(corpus), corpus_block):
        documents = corpus[first : first + corpus_block]  # [c, D]
        _require_finite("corpus row", documents, first)
        documents = _on(documents, device)

        # a short list is worth its price only where it is much shorter than the block
        rounded = None
        if screen and len(documents) > 8 * GROUP * k:
            rounded = _Rounded(documents)

        for start in range(0, len(queries), block):
            rows = slice(start, start + block)
            query_block = _on(queries[rows], device)  # [q, D]
            limit = None if below is None else _on(below[rows], device)[:, None]  # [q, 1]
            excluded_cells = _excluded_cells(() if excluded is None else excluded[rows], first, len(documents))

            if rounded is None:
                values, columns = _direct(query_block, documents, k, limit, excluded_cells, buffer)
            else:
                values, columns = _screened(query_block, documents, rounded, k, limit, excluded_cells, buffer)

            # earlier blocks stand to the left, so that equal scores keep the order of the corpus
            values = torch.cat([_on(scores[rows], device), values], 1)  # [q, up to 2 k]
            columns = torch.cat([torch.from_numpy(indices[rows]).to(device), columns + first], 1)
            values, order = _ordered(values, k)
            scores[rows] = values.cpu().numpy()
            indices[rows] = columns.gather(1, order).cpu().numpy()

    indices[scores == -np.inf] = -1
    return indices, scores


def _require_finite(name: str, array: np.ndarray, first: int = 0):
    """Refuses a matrix with a value that is not finite; `first` is the number of its first row."""
    # a row's sum is finite only if all its values are, and takes less memory than a mask of them
    if not np.isfinite(array.sum(axis=1, dtype=np.float64)).all():
        bad_row = first + int(np.argmin(np.isfinite(array).all(axis=1)))
        raise ValueError(f"{name} {bad_row} is not finite.")


def _on(array: np.ndarray, device) -> torch.Tensor:
    """The array as a float32 tensor on a device."""
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(device)


def _excluded_cells(excluded, first: int, width: int) -> tuple[list[int], list[int]]:
    """Which cells of the scores with corpus rows `first` to `first + width` never count, as rows and columns."""
    rows = []
    columns = []
    for row, corpus_rows in enumerate(excluded):
        for corpus_row in corpus_rows:
            if first <= corpus_row < first + width:
                rows.append(row)
                columns.append(corpus_row - first)
    return rows, columns


def _products(queries: torch.Tensor, corpus: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    """`queries @ corpus.T` `[q, c]`, written over a buffer of at least `q * c` values of their type."""
    out = buffer[: len(queries) * len(corpus)].view(len(queries), len(corpus))

    # torch's BLAS is Intel's, and NumPy's is faster on the CPUs of AMD
    if out.device.type == "cpu" and out.dtype == torch.float32 and is_amd():
        np.matmul(queries.numpy(), corpus.numpy().T, out=out.numpy())
        return out
    return torch.mm(queries, corpus.T, out=out)


def _direct(queries, corpus, k: int, limit, excluded_cells, buffer=None) -> tuple[torch.Tensor, torch.Tensor]:
    """The `k` best columns of `queries @ corpus.T` in each row: float32 values and columns `[q, k]`."""
    if buffer is None:
        buffer = queries.new_empty(len(queries) * len(corpus))
    scores = _products(queries, corpus, buffer)  # [q, c]
    scores[excluded_cells] = -torch.inf
    if limit is not None:
        scores.masked_fill_(scores >= limit, -torch.inf)
    return _top(scores, k)


class _Rounded:
    """Corpus rows in bfloat16, and how far they may be from what they were.

    Args:
        corpus (`Tensor` `[c, D]`): in float32.
    """

    def __init__(self, corpus: torch.Tensor):
        self.rows = corpus.bfloat16()
        self.longest = corpus.norm(dim=1).max()
        self.longest_error = (corpus - self.rows.float()).norm(dim=1).max()

    def bound(self, queries: torch.Tensor, rounded_queries: torch.Tensor) -> torch.Tensor:
        """By how much a query's score with rounded rows may differ from its true score with any of them: `[q]`."""
        bound = (queries - rounded_queries.float()).norm(dim=1) * self.longest
        bound += rounded_queries.float().norm(dim=1) * self.longest_error

        # float32 sums in another order differ as well
        bound += 4 * queries.shape[1] * 2**-24 * queries.norm(dim=1) * self.longest
        return bound


def _screened(
    queries, corpus, rounded: _Rounded, k: int, limit, excluded_cells, buffer
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `_direct`, from a short list found in bfloat16.

    A rounded score differs from the true one by no more than the rounding errors' norms allow (Cauchy-Schwarz). So no
    column outside the list can be among the best if the list's least rounded score, plus that bound, is below the
    `k`-th best true score inside it. Rows for which this does not hold are computed directly.
    """
    rounded_queries = queries.bfloat16()
    bound = rounded.bound(queries, rounded_queries)  # [q]

    # the short list, by rounded scores
    rounded_scores = _products(rounded_queries, rounded.rows, buffer.view(torch.bfloat16))  # [q, c]
    rounded_scores[excluded_cells] = -torch.inf
    listed, columns = _top(rounded_scores, min(2 * k + 32, len(corpus)))  # [q, m]

    # what a column outside the list can reach; the product itself is rounded to bfloat16, too
    least = listed.float().amin(1)  # [q]
    bound += least + least.abs() / 128

    # the best of the list by true scores
    scores = _some_products(queries, corpus, columns)  # [q, m]
    scores.masked_fill_(listed == -torch.inf, -torch.inf)
    if limit is not None:
        scores.masked_fill_(scores >= limit, -torch.inf)
    values, order = scores.topk(k, dim=1, sorted=False)

    # in the order of columns, as `_direct` gives them
    order, by_column = order.sort(dim=1)
    values = values.gather(1, by_column)
    columns = columns.gather(1, order)

    # rows whose list may have left something out
    unproven = torch.nonzero(~(values.amin(1) > bound))[:, 0]
    if len(unproven):
        cells = _cells_of_rows(excluded_cells, unproven.tolist())
        if limit is not None:
            limit = limit[unproven]
        values[unproven], columns[unproven] = _direct(queries[unproven], corpus, k, limit, cells)
    return values, columns


def _some_products(queries, corpus, columns) -> torch.Tensor:
    """The inner products of each query with some rows of the corpus only: float32 `[q, m]`, as `columns`."""
    count, width = columns.shape
    starts = torch.arange(0, count * width + 1, width)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that its sparse rows are in beta
        cells = torch.sparse_csr_tensor(starts, columns.flatten(), torch.zeros(count * width), (count, len(corpus)))
    return torch.sparse.sampled_addmm(cells, queries, corpus.T, beta=0.0).values().view(count, width)


def _cells_of_rows(cells, rows: list[int]) -> tuple[list[int], list[int]]:
    """The cells that lie in some rows, as rows and columns; the rows are numbered by their places in `rows`."""
    number_of = {row: number for number, row in enumerate(rows)}
    new_rows = []
    columns = []
    for row, column in zip(*cells):
        if row in number_of:
            new_rows.append(number_of[row])
            columns.append(column)
    return new_rows, columns


def _top(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `k` greatest of each row `[q, c]`, as values and columns in the order of columns.

    They lie in the `k` groups of columns with the greatest maxima: one pass finds these, and only they are sorted.
    """
    count, width = scores.shape
    if width <= 2 * k * GROUP:
        values, columns = scores.topk(min(k, width), dim=1, sorted=False)
    else:
        groups = -(-width // GROUP)  # rounded up
        if groups * GROUP != width:
            scores = torch.nn.functional.pad(scores, (0, groups * GROUP - width), value=-torch.inf)

        # a group is every `groups`-th column: all maxima are then taken at once, vector by vector
        grouped = scores.view(count, GROUP, groups)
        best_groups = grouped.amax(1).topk(min(k, groups), dim=1, sorted=False).indices  # [q, k]
        candidates = grouped.gather(2, best_groups[:, None].expand(-1, GROUP, -1)).flatten(1)  # [q, GROUP * k]
        values, places = candidates.topk(k, dim=1, sorted=False)

        # from a place among the candidates back to its column
        row_in_group = places // best_groups.shape[1]
        columns = row_in_group * groups + best_groups.gather(1, places % best_groups.shape[1])
        columns.clamp_(max=width - 1)  # padding, whose values are -inf, is taken where there is too little else

    columns, order = columns.sort(dim=1)
    return values.gather(1, order), columns


def _ordered(values: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `k` greatest of each row, best first; of equal ones, those further left."""
    values, order = values.sort(dim=1, descending=True, stable=True)
    return values[:, :k], order[:, :k]


def import_faiss():
    """FAISS, which only some indices need.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError("this index needs FAISS: pip install faiss-cpu.") from error
    return faiss


class FaissIndex:
    """FAISS over inner products: `flat` compares all, `ivf` only the nearest of `lists` cells.

    Args:
        corpus: array `[N, D]`.
        kind (`str`, defaults to `"flat"`): `"flat"` or `"ivf"`.
        lists (`int`, *optional*): cells; `4 * sqrt(N)` by default.
        probes (`int`, defaults to 32): cells looked into.

    Raises:
        ImportError: FAISS is not installed.
        ValueError: `kind` is neither of them.

    Example:

    ```python
    indices, scores = FaissIndex(corpus, "ivf").top_k(queries, k=50)
    ```
    """

    def __init__(self, corpus, kind: str = "flat", lists: int | None = None, probes: int = 32):
        faiss = import_faiss()
        corpus = np.ascontiguousarray(corpus[:], dtype=np.float32)
        self.index = faiss.IndexFlatIP(corpus.shape[1])

        # cells are found by clustering, which needs rows for each of them
        if kind == "ivf":
            lists = min(lists or int(4 * len(corpus) ** 0.5), len(corpus))
            self.index = faiss.IndexIVFFlat(self.index, corpus.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
            self.index.train(corpus)
            self.index.nprobe = min(probes, lists)
        elif kind != "flat":
            raise ValueError(f"the index must be 'exact', 'flat' or 'ivf', got {kind!r}.")

        self.index.add(corpus)

    def top_k(self, queries, k: int, below=None, excluded=None) -> tuple[np.ndarray, np.ndarray]:
        """As [`exact_top_k`]; the search goes deeper for queries whose results are not enough after the rules.

        Args:
            queries: array `[Q, D]`.
            k (`int`): results of each query.
            below (*optional*): array `[Q]`; only scores less than that count.
            excluded (*optional*): for each query, corpus rows that never count.

        Returns:
            indices `[Q, k]` int64 (-1 where there are fewer) and scores `[Q, k]` float32 (-inf there), best first.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        indices = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)

        remaining = np.arange(len(queries))
        depth = min(k, self.index.ntotal)
        while len(remaining):
            short_rows = []
            for row, row_scores, neighbours in self._search(queries, remaining, depth):
                allowed = neighbours >= 0
                if below is not None:
                    allowed &= row_scores < below[row]
                if excluded is not None and len(excluded[row]):
                    allowed &= ~np.isin(neighbours, np.asarray(excluded[row]))

                count = np.count_nonzero(allowed)
                places = np.flatnonzero(allowed)[:k]
                indices[row, : len(places)] = neighbours[places]
                scores[row, : len(places)] = row_scores[places]

                # FAISS gives -1 last where the cells it looked into hold no more
                exhausted = depth >= self.index.ntotal or neighbours[-1] < 0
                if count < self._enough(k) and not exhausted:
                    short_rows.append(row)

            remaining = np.array(short_rows, dtype=np.int64)
            depth = min(2 * depth, self.index.ntotal)
        return indices, scores

    def _enough(self, k: int) -> int:
        """How many results that the rules allow are enough for the `k` best of all."""
        return k

    def _search(self, queries, rows, depth: int):
        """Yields each row with its values and indices `[depth]`; at most `RESULTS` are held at a time."""
        block = max(1, RESULTS // depth)
        for start in range(0, len(rows), block):
            block_rows = rows[start : start + block]
            values, neighbours = self.index.search(queries[block_rows], depth)  # [b, depth]
            yield from zip(block_rows, values, neighbours)


class Corpus:
    """Some rows of a matrix of embeddings, searched under the numbers that they have in the whole.

    Args:
        embeddings: array `[N, D]`, in memory or a [`~unime.jobs.results.StoredArray`].
        rows: array of the row numbers that are searched, in order.
        index (`str`, defaults to `"exact"`): `"exact"`, or `"flat"` or `"ivf"` of FAISS.
        lists (`int`, *optional*), probes (`int`, defaults to 32): of [`FaissIndex`].
        device (`str` or `torch.device`, defaults to `"cpu"`): where exact search computes.
    """

    def __init__(self, embeddings, rows, index: str = "exact", lists=None, probes: int = 32, device="cpu"):
        self.rows = rows
        self.device = device

        # all rows in order are the matrix itself
        self.vectors = embeddings  # [n, D]
        if len(rows) != len(embeddings):
            self.vectors = SomeRows(embeddings, rows)

        self.index = None
        if index != "exact":
            self.index = FaissIndex(self.vectors, index, lists, probes)

    def top_k(self, queries, k: int, below=None, excluded=None) -> tuple[np.ndarray, np.ndarray]:
        """As [`exact_top_k`], with `excluded` and the indices in the numbers of the whole."""
        places = None
        if excluded is not None:
            places = [self._places(rows) for rows in excluded]

        if self.index is None:
            neighbours, scores = exact_top_k(queries, self.vectors, k, below, places, device=self.device)
        else:
            neighbours, scores = self.index.top_k(queries, k, below, places)

        # -1 stands for no row, but as an index it is the last one
        return np.where(neighbours >= 0, self.rows[neighbours], -1), scores

    def _places(self, rows) -> list[int]:
        """The places of some rows among those searched; the other rows cannot be retrieved anyway."""
        rows = np.asarray(rows, np.int64)
        places = np.searchsorted(self.rows, rows)
        places = places[places < len(self.rows)]
        return places[np.isin(self.rows[places], rows)].tolist()
