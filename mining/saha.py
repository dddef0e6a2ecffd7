"""Self-aware hard negatives: the clusters of SaHa (2508.00955)."""

import numpy as np


# From Generator to Embedder: SaHa, 2508.00955
def is_label_type(positives: int, rows: int, ratio: float = 0.05) -> bool:
    """Whether a data set's targets are labels: on average, `1 / ratio` rows or more share one."""
    return positives <= ratio * rows


def clusters(
    queries: np.ndarray, candidates: np.ndarray, pairs: list[tuple[int, int]], neighbours: np.ndarray, size: int = 15,
    pool_multiplier: int = 3, labels: bool = False,
) -> list[tuple[int, list[int]]]:  # fmt: skip
    """Self-aware hard negative sampling: each anchor with rows whose positives look hard and whose queries do not.

    Pass 1 takes anchors in the order of rows. The candidates nearest to the anchor are replaced by the queries that
    own them; of `size * pool_multiplier` owners, the `size` least similar to the anchor's query are kept, because
    their positives are the least likely to fit it (for label sets, which have no such order, the nearest are). Anchors
    and owners are used up. Pass 2 makes clusters of the anchors that found no unused owner; there an owner may be used
    again, once.

    Unlike the released script, two members never share a positive, and a query of several rows keeps them apart.

    Args:
        queries (array `[Q, D]`), candidates (array `[N, D]`): unit-norm embeddings.
        pairs (`list[tuple[int, int]]`): the rows, as query and positive.
        neighbours (array `[Q, 2 * size * pool_multiplier]`): nearest candidates of each query, -1 for none.
        size (`int`, defaults to 15): negatives of a cluster.
        pool_multiplier (`int`, defaults to 3).
        labels (`bool`): whether the positives are labels (see [`is_label_type`]).

    Returns:
        `(row, [rows])`: anchor and members, as indices into `pairs`.
    """
    rows_of_query, owners_of, row_of = {}, {}, {}
    for row, (query, positive) in enumerate(pairs):
        rows_of_query.setdefault(query, []).append(row)
        owners_of.setdefault(positive, {}).setdefault(query)
        row_of.setdefault((query, positive), row)
    positives_of = {query: {pairs[row][1] for row in rows} for query, rows in rows_of_query.items()}
    used, found, left = set(), [], []

    def members(anchor: int, wanted: int, taken: set[int]) -> list[int]:
        """Rows of the owners of an anchor's nearest candidates, in the order in which they are to be kept."""
        own, covered = {}, set(positives_of[anchor])
        for candidate in neighbours[anchor].tolist():
            if candidate < 0 or candidate in covered:
                continue
            free = [
                query for query in owners_of.get(candidate, ())
                if query != anchor and query not in taken and query not in own and not positives_of[query] & covered
            ]  # fmt: skip
            if not free:
                continue
            similarity = queries[free] @ queries[anchor]  # [owners]
            best = int(similarity.argmax())
            own[free[best]] = (candidate, float(similarity[best]))
            covered |= positives_of[free[best]]
            if len(own) == wanted:
                break
        order = list(own) if labels else sorted(own, key=lambda query: own[query][1])
        return [row_of[query, own[query][0]] for query in order[:size]]

    first = size * pool_multiplier
    for row, (query, _) in enumerate(pairs):
        if query in used:
            continue
        if chosen := members(query, first, used | {query}):
            found.append((row, chosen))
            used |= {query, *(pairs[member][0] for member in chosen)}
        elif rows_of_query[query][0] == row:
            left.append(row)
    again = set()
    for row in left:
        if chosen := members(pairs[row][0], 2 * first, again):
            found.append((row, chosen))
            again |= {pairs[member][0] for member in chosen}
    return found
