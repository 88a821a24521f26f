"""What every retriever can do, and queries as ragged histories.

Contract: a retriever maps L histories to scores over items. `score` rates given candidates, `top_k`
finds the best items that a history does not hold yet. Queries are `Histories` with one entry per
list, so the same call serves training prefixes, test users and a single request. `evaluate` gives
R@k and NDCG@k over every list (a miss counts 0). Equal scores rank by item number everywhere. Not
here: any model, lists with targets (`lists`) or the report's metrics (`evaluate`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from diffgr2.candidates.ranks import ALONE, Ranks
from diffgr2.types import Histories, ndcg_of

if TYPE_CHECKING:
    import scipy.sparse as sp

SCORES_PER_CHUNK = 2_000_000  # query x item scores that are held at once, unless items are many
LEAST_ROWS = 32  # queries scored at once, however many items there are
FINDER_ROWS = 8_192  # queries at once of who does not score the whole catalogue
GROUP, GROUPS_PER_K = 64, 4  # scores per group, and groups that make a bound by them worth a pass


class Retriever(Protocol):
    """Anything that can rank the catalogue for a history."""

    @property
    def n_items(self) -> int: ...

    def score_all(self, queries: Histories) -> np.ndarray:
        """Scores of every item for every query, f32 (L, I); small L only."""
        ...


@runtime_checkable
class Finder(Protocol):
    """A retriever that finds the best items without scores of all."""

    def best(self, queries: Histories, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best unseen items per query and their scores, best first, equals by number."""
        ...


def ragged(rows: list[np.ndarray], n_items: int) -> Histories:
    """Histories from one item array each (timestamps unknown)."""
    offsets_U1 = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64)
    items_N = np.concatenate([*rows, np.empty(0)]).astype(np.int32)
    return Histories(offsets_U1, items_N, np.zeros(len(items_N), np.int64), n_items)


def bought(histories: Histories) -> sp.csr_array:
    """Histories x items, 1.0 where a history has the item at least once."""
    import scipy.sparse as sp  # late: who only ranks needs none

    shape = (histories.n_users, histories.n_items)
    row_N = np.repeat(np.arange(histories.n_users), histories.lengths_U)
    one_N = np.ones(len(row_N), np.float32)
    matrix = sp.csr_array((one_N, (row_N, histories.items_N)), shape)
    matrix.data[:] = 1.0
    return matrix


def prefixes(histories: Histories, user_L: np.ndarray, end_L: np.ndarray) -> Histories:
    """Query l is the first `end_L[l]` items of `user_L[l]`."""
    start_L = histories.offsets_U1[user_L]
    offsets_U1 = np.concatenate([[0], np.cumsum(end_L)]).astype(np.int64)
    index_N = np.arange(offsets_U1[-1]) + np.repeat(start_L - offsets_U1[:-1], end_L)
    return Histories(
        offsets_U1, histories.items_N[index_N], histories.timestamps_N[index_N], histories.n_items
    )


def padded_last(queries: Histories, width: int, fill: int = -1) -> np.ndarray:
    """The last `width` items per query, oldest first, filled at the right: int32 (L, width)."""
    take_L = np.minimum(queries.lengths_U, width)
    column_W = np.arange(width)
    index_LW = (queries.offsets_U1[1:] - take_L)[:, None] + column_W
    inside_LW = column_W < take_L[:, None]
    source_N = np.append(queries.items_N, np.int32(fill))
    return np.where(inside_LW, source_N[np.where(inside_LW, index_LW, -1)], fill).astype(np.int32)


def chunks(n_queries: int, rows: int, ranks: Ranks = ALONE) -> list[slice]:
    """Queries in parts of so many; of several processes each has its turns of the same parts."""
    every = [slice(at, min(at + rows, n_queries)) for at in range(0, n_queries, rows)]
    return every[ranks.rank :: ranks.size]


def part_of(queries: Histories, places: slice) -> Histories:
    """These queries."""
    return prefixes(queries, np.arange(places.start, places.stop), queries.lengths_U[places])


def scored(
    retriever: Retriever, queries: Histories, *, unseen: bool, ranks: Ranks = ALONE
) -> Iterator[tuple[slice, np.ndarray]]:
    """(queries' places, their scores over the catalogue), few enough at a time to stay small.

    `unseen` puts the items that a history holds at -inf.
    """
    rows = max(LEAST_ROWS, min(2048, SCORES_PER_CHUNK // max(retriever.n_items, 1)))
    for places in chunks(queries.n_users, rows, ranks):
        part = part_of(queries, places)
        scores_CI = retriever.score_all(part)
        if unseen:
            scores_CI[np.repeat(np.arange(part.n_users), part.lengths_U), part.items_N] = -np.inf
        yield places, scores_CI


def score(retriever: Retriever, queries: Histories, items_LK: np.ndarray) -> np.ndarray:
    """Scores of given candidates, f32 (L, K)."""
    result_LK = np.empty(items_LK.shape, np.float32)
    for places, scores_CI in scored(retriever, queries, unseen=False):
        result_LK[places] = np.take_along_axis(scores_CI, items_LK[places], 1)
    return result_LK


def best_columns(scores_CI: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best columns of each row and their scores, best first, equal ones by number.

    No column below the k-th best of the groups' bests can be among them, and that bound is one
    pass; what reaches it lies in fewer than k groups, but for equals, of which the first k do.
    """
    rows, n = scores_CI.shape
    groups = n // GROUP
    if groups >= GROUPS_PER_K * k:
        top_CG = scores_CI[:, : groups * GROUP].reshape(rows, GROUP, groups).max(1)
    else:
        top_CG = scores_CI
    at = top_CG.shape[1] - k
    edge_C1 = np.partition(top_CG, at, axis=1)[:, [at]]
    query_N, item_N = np.nonzero(scores_CI >= edge_C1)
    score_N = scores_CI[query_N, item_N]
    equal_N = score_N == edge_C1[query_N, 0]
    before_N = np.cumsum(equal_N) - equal_N  # equals that came before, in any row
    first_C = np.searchsorted(query_N, np.arange(rows))
    kept_N = ~equal_N | (before_N - before_N[first_C[query_N]] < k)
    query_N, item_N, score_N = query_N[kept_N], item_N[kept_N], score_N[kept_N]
    order_N = np.lexsort((item_N, -score_N, query_N))
    start_C1 = np.searchsorted(query_N, np.arange(rows))[:, None]
    best_CK = order_N[start_C1 + np.arange(k)]
    return item_N[best_CK], score_N[best_CK]


def top_k(
    retriever: Retriever, queries: Histories, k: int, ranks: Ranks = ALONE
) -> tuple[np.ndarray, np.ndarray]:
    """The k best unseen items per query and their scores, best first.

    A retriever that has a shorter way than scores over the whole catalogue goes it. Several
    processes share the queries, and each has all lists in the end.
    """
    items_LK = np.empty((queries.n_users, k), np.int32)
    scores_LK = np.empty((queries.n_users, k), np.float32)
    longest = int(queries.lengths_U.max(initial=0))
    if isinstance(retriever, Finder) and k + longest <= retriever.n_items:
        found = [
            (places, *retriever.best(part_of(queries, places), k))
            for places in chunks(queries.n_users, FINDER_ROWS, ranks)
        ]
    else:
        found = [
            (places, *best_columns(scores_CI, k))
            for places, scores_CI in scored(retriever, queries, unseen=True, ranks=ranks)
        ]
    for of_rank in ranks.gather(found):
        for places, items_CK, scores_CK in of_rank:
            items_LK[places], scores_LK[places] = items_CK, scores_CK
    return items_LK, scores_LK


def rank_of_target(score_LX: np.ndarray, place_L: np.ndarray) -> np.ndarray:
    """0-based rank of the column `place` after sorting by score; ties keep the columns' order."""
    own_L1 = np.take_along_axis(score_LX, place_L[:, None], 1)
    before_LX = np.arange(score_LX.shape[1]) < place_L[:, None]
    return ((score_LX > own_L1) | ((score_LX == own_L1) & before_LX)).sum(1)


def target_ranks(
    retriever: Retriever, queries: Histories, target_L: np.ndarray, ranks: Ranks = ALONE
) -> np.ndarray:
    """0-based rank of each target over the catalogue without the history's items.

    A target that its history already holds ranks behind all unseen items.
    """
    rank_L = np.zeros(queries.n_users, np.int64)  # of other processes' queries it stays 0
    for places, scores_CI in scored(retriever, queries, unseen=True, ranks=ranks):
        rank_L[places] = rank_of_target(scores_CI, target_L[places])
    return np.sum(ranks.gather(rank_L), axis=0)


def evaluate(
    retriever: Retriever,
    queries: Histories,
    target_L: np.ndarray,
    k: int = 10,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """R@k and NDCG@k over all queries; a miss counts 0."""
    rank_L = target_ranks(retriever, queries, target_L, ranks)
    return {f"r@{k}": float((rank_L < k).mean()), f"ndcg@{k}": float(ndcg_of(rank_L, k).mean())}
