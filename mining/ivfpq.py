"""A compressed index on the disk, for corpora that no memory holds: FAISS's `OPQ,IVF,PQ`, scored again exactly."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..files.writing import move_into_place, read_json, write_json, write_whole
from ..jobs.results import SomeRows, StoredArray
from ..jobs.shards import MANIFEST, check_manifest
from .retrieval import RESULTS, FaissIndex, exact_top_k, import_faiss

LEAST = 39 * 256  # rows that FAISS wants for its 256 centroids
CODES = 64  # bytes of a row at most
SAMPLES = 48  # rows for each cell that the cells are trained on
FEWEST = 39  # below so many, FAISS warns
TRAINED = 2**28  # values of all rows that are trained on: 1 GiB
BLOCK = 2**18  # rows of the piece of an index that is filled at a time
ROTATIONS = 2  # steps of OPQ


class IvfPqIndex(FaissIndex):
    """An index of some rows of stored embeddings: cells (IVF) of rotated and quantized rows (OPQ, PQ), on the disk.

    It takes about `min(64, D / 4) + 8` bytes a row. Of `short_list` times as many rows as are asked for, the true
    inner products are computed from the embeddings, and the best are returned with these.

    Args:
        folder (`Path`): in which [`build_ivfpq`] has built it.
        vectors ([`~unime.jobs.results.StoredArray`]): the embeddings `[N, D]`.
        probes (`int`, defaults to 32): cells looked into.
        short_list (`int`, defaults to 4): how many times as many rows are scored exactly.
    """

    def __init__(self, folder: Path, vectors: StoredArray, probes: int = 32, short_list: int = 4):
        faiss = import_faiss()

        # the lists stay on the disk, beside the index wherever that lies now
        self.index = faiss.read_index(str(folder / "merged.index"), faiss.IO_FLAG_ONDISK_SAME_DIR)
        faiss.extract_index_ivf(self.index).nprobe = probes
        self.vectors = vectors
        self.short_list = short_list

    def _enough(self, k: int) -> int:
        """Some more than `k`: the end of a list that was found by codes is not to be relied on."""
        return k * (1 + self.short_list) // 2

    def _search(self, queries, rows, depth: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yields each row with exact scores and indices, best first; -1 and -inf stand at the end where there are too
        few."""
        listed = min(self.short_list * depth, self.index.ntotal)
        block = max(1, RESULTS // listed)
        for start in range(0, len(rows), block):
            block_rows = rows[start : start + block]
            _, neighbours = self.index.search(queries[block_rows], listed)  # [b, listed]
            scores = self._exact(queries[block_rows], neighbours)

            order = np.argsort(-scores, axis=1, kind="stable")
            scores = np.take_along_axis(scores, order, axis=1)
            neighbours = np.take_along_axis(neighbours, order, axis=1)
            yield from zip(block_rows, scores, neighbours)

    def _exact(self, queries: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
        """The inner products `[b, m]` of queries with their neighbours, -inf where there is none."""
        scores = np.full(neighbours.size, -np.inf, np.float32)
        present = np.flatnonzero(neighbours.ravel() >= 0)
        for places, values in self.vectors.pieces(neighbours.ravel()[present]):
            cells = present[places]
            scores[cells] = np.einsum("ij,ij->i", queries[cells // neighbours.shape[1]], values)
        return scores.reshape(neighbours.shape)


def build_ivfpq(
    folder: Path, vectors: StoredArray, rows: np.ndarray, settings: dict, lists: int | None = None, seed: int = 0
):
    """Trains and fills an index on the disk, going on where it was interrupted.

    Args:
        folder (`Path`): for the index and its manifest.
        vectors ([`~unime.jobs.results.StoredArray`]): the embeddings `[N, D]`.
        rows (array `[n]`): numbers of the rows that are to be found, at least `LEAST`.
        settings (`dict`): what the embeddings were made from.
        lists (`int`, *optional*): cells; `4 * sqrt(n)` by default. There are no more than what is trained on suffices
            for: at most 1 GiB of rows, `FEWEST` for each.
        seed (`int`, defaults to 0): of the rows that are trained on.

    Raises:
        ValueError: the folder holds the index of something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    most = min(len(rows), TRAINED // vectors.shape[1])
    lists = max(1, min(lists or int(4 * len(rows) ** 0.5), most // FEWEST))
    about = {"rows": len(rows), "lists": lists, "codes": _code_bytes(vectors.shape[1]), "seed": seed, **settings}
    check_manifest(folder / MANIFEST, about)
    if (folder / "merged.index").exists():
        return

    faiss = import_faiss()
    trained = folder / "trained.index"
    if not trained.exists():
        count = min(most, max(SAMPLES * lists, LEAST))
        sample = np.random.default_rng(seed).permutation(len(rows))[:count]
        index = _new_index(faiss, vectors.shape[1], lists)
        index.train(np.ascontiguousarray(vectors[rows[np.sort(sample)]], np.float32))
        write_whole(trained, lambda draft: faiss.write_index(index, str(draft)))

    # pieces that are filled one after the other, so that no more than one is in memory
    pieces = []
    for start in range(0, len(rows), BLOCK):
        piece = folder / f"part-{start:09d}.index"
        pieces.append(piece)
        if piece.exists():
            continue
        numbers = rows[start : start + BLOCK]
        index = faiss.read_index(str(trained))
        for first in range(0, len(numbers), 8192):
            some = numbers[first : first + 8192]
            index.add_with_ids(np.ascontiguousarray(vectors[some], np.float32), some)
        write_whole(piece, lambda draft, index=index: faiss.write_index(index, str(draft)))

    _merge(faiss, folder, trained, pieces)


def _code_bytes(width: int) -> int:
    """The greatest divisor of the width up to `CODES` that leaves four values or more to a byte, if there is one."""
    for count in range(min(CODES, max(width // 4, 1)), 0, -1):
        if width % count == 0:
            return count
    return 1


def _new_index(faiss, width: int, lists: int):
    """An index that is not trained yet."""
    codes = _code_bytes(width)
    index = faiss.index_factory(width, f"OPQ{codes},IVF{lists},PQ{codes}", faiss.METRIC_INNER_PRODUCT)

    # far fewer steps than FAISS's 50 x 4: scoring the short list again makes up for them
    rotation = faiss.downcast_VectorTransform(index.chain.at(0))
    rotation.niter = ROTATIONS
    rotation.niter_pq_0 = 2 * ROTATIONS
    rotation.niter_pq = ROTATIONS
    rotation.max_train_points = LEAST

    cells = faiss.downcast_index(index.index)
    cells.pq.cp.niter = 2 * ROTATIONS
    cells.pq.cp.max_points_per_centroid = LEAST // 256

    # orders codes for comparisons by their bits, which are not made here; it takes ten times all other training
    cells.do_polysemous_training = False
    return index


def _merge(faiss, folder: Path, trained: Path, pieces: list[Path]):
    """One index on the disk from its pieces, which are removed."""
    # an interrupted attempt may have left the lists
    lists = folder / "merged.ivfdata"
    lists.unlink(missing_ok=True)

    # not by FAISS's own helper, which never lets go of the pieces that it maps
    parts = [faiss.read_index(str(piece), faiss.IO_FLAG_MMAP) for piece in pieces]
    lists_of_parts = faiss.InvertedListsPtrVector()
    for part in parts:
        lists_of_parts.push_back(faiss.extract_index_ivf(part).invlists)

    index = faiss.read_index(str(trained))
    cells = faiss.extract_index_ivf(index)
    merged = faiss.OnDiskInvertedLists(cells.nlist, cells.code_size, str(lists))
    index.ntotal = cells.ntotal = merged.merge_from_multiple(lists_of_parts.data(), lists_of_parts.size())
    cells.replace_invlists(merged, True)
    merged.this.disown()  # the index frees it

    draft = folder / "merged.index.part"
    faiss.write_index(index, str(draft))
    move_into_place(lists, lists)
    move_into_place(draft, folder / "merged.index")
    for piece in pieces:
        piece.unlink()


def measure_recall(
    folder: Path, index: IvfPqIndex, rows: np.ndarray, queries: StoredArray, count: int, k: int, device
) -> float:
    """The share of the exact `k` nearest rows that the index finds, over a sample of queries; kept in its manifest.

    Args:
        folder (`Path`): of the index.
        index ([`IvfPqIndex`]).
        rows (array `[n]`): numbers of the rows that it holds.
        queries ([`~unime.jobs.results.StoredArray`]): embeddings `[Q, D]`.
        count (`int`): queries of the sample.
        k (`int`): results of each.
        device: where exact search computes.
    """
    name = f"recall@{k}"
    manifest = read_json(folder / MANIFEST)
    if name in manifest:
        return manifest[name]

    numbers = np.flatnonzero(queries.present)
    numbers = np.sort(np.random.default_rng(0).permutation(numbers)[:count])
    sample = queries[numbers]  # [count, D]
    places, _ = exact_top_k(sample, SomeRows(index.vectors, rows), k, device=device)
    indices, _ = index.top_k(sample, k)

    shares = []
    for row, nearest in zip(indices, places):
        nearest = rows[nearest[nearest >= 0]]
        shares.append(np.isin(nearest, row).mean())
    manifest |= {name: round(float(np.mean(shares)), 4), "recall_queries": len(numbers)}
    write_json(folder / MANIFEST, manifest)
    return manifest[name]
