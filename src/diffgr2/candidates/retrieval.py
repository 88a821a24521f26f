"""What every retriever can do, and queries as ragged histories.

Contract: a retriever maps L histories to scores over items. `score` rates given candidates, `top_k`
finds the best items that a history does not hold yet. Queries are `Histories` with one row per
list, so the same call serves training prefixes, test users and a single request. `evaluate` gives
R@k and NDCG@k over every list (a miss counts 0). Not here: any model, lists with targets (`lists`)
or the report's metrics (`evaluate`).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from diffgr2.types import Histories

SCORES_PER_CHUNK = 2_000_000
"""How many query x item scores are held at once."""


class Retriever(Protocol):
    """Anything that can rank the catalogue for a history."""

    @property
    def n_items(self) -> int: ...

    def score_all(self, queries: Histories) -> np.ndarray:
        """Scores of every item for every query, f32 (L, I); small L only."""
        ...


def ragged(rows: list[np.ndarray], n_items: int) -> Histories:
    """Histories from one item array per row (timestamps unknown)."""
    offsets_U1 = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64)
    items_N = np.concatenate([*rows, np.empty(0)]).astype(np.int32)
    return Histories(offsets_U1, items_N, np.zeros(len(items_N), np.int64), n_items)


def prefixes(histories: Histories, user_L: np.ndarray, end_L: np.ndarray) -> Histories:
    """Row l is the first `end_L[l]` items of `user_L[l]`."""
    start_L = histories.offsets_U1[user_L]
    offsets_U1 = np.concatenate([[0], np.cumsum(end_L)]).astype(np.int64)
    index_N = np.arange(offsets_U1[-1]) + np.repeat(start_L - offsets_U1[:-1], end_L)
    return Histories(
        offsets_U1, histories.items_N[index_N], histories.timestamps_N[index_N], histories.n_items
    )


def slice_rows(queries: Histories, begin: int, end: int) -> Histories:
    """Rows begin..end-1 as a view."""
    low, high = queries.offsets_U1[begin], queries.offsets_U1[end]
    return Histories(
        queries.offsets_U1[begin : end + 1] - low,
        queries.items_N[low:high],
        queries.timestamps_N[low:high],
        queries.n_items,
    )


def padded_last(queries: Histories, width: int, fill: int = -1) -> np.ndarray:
    """The last `width` items per row, oldest first, filled at the right: int32 (L, width)."""
    take_L = np.minimum(queries.lengths_U, width)
    column_W = np.arange(width)
    index_LW = (queries.offsets_U1[1:] - take_L)[:, None] + column_W
    inside_LW = column_W < take_L[:, None]
    source_N = np.append(queries.items_N, np.int32(fill))
    return np.where(inside_LW, source_N[np.where(inside_LW, index_LW, -1)], fill).astype(np.int32)


def chunks(queries: Histories, width: int) -> list[tuple[int, int]]:
    """Row ranges whose score matrices of `width` columns stay small."""
    step = max(1, min(2048, SCORES_PER_CHUNK // max(width, 1)))
    return [
        (begin, min(begin + step, queries.n_users)) for begin in range(0, queries.n_users, step)
    ]


def score(retriever: Retriever, queries: Histories, items_LK: np.ndarray) -> np.ndarray:
    """Scores of given candidates, f32 (L, K)."""
    result_LK = np.empty(items_LK.shape, np.float32)
    for begin, end in chunks(queries, retriever.n_items):
        scores_CI = retriever.score_all(slice_rows(queries, begin, end))
        result_LK[begin:end] = np.take_along_axis(scores_CI, items_LK[begin:end], 1)
    return result_LK


def top_k(
    retriever: Retriever, queries: Histories, k: int, *, exclude_seen: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """The k best items per query and their scores, best first; equal scores by item number."""
    items_LK = np.empty((queries.n_users, k), np.int32)
    scores_LK = np.empty((queries.n_users, k), np.float32)
    for begin, end in chunks(queries, retriever.n_items):
        part = slice_rows(queries, begin, end)
        scores_CI = retriever.score_all(part)
        if exclude_seen:
            row_N = np.repeat(np.arange(part.n_users), part.lengths_U)
            scores_CI[row_N, part.items_N] = -np.inf
        items_CK, best_CK = _best(scores_CI, k)
        items_LK[begin:end], scores_LK[begin:end] = items_CK, best_CK
    return items_LK, scores_LK


def _best(scores_CI: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact top k by (score down, item up), ties at the edge included."""
    n_items = scores_CI.shape[1]
    if k >= n_items:
        order_CK = np.argsort(-scores_CI, axis=1, kind="stable")[:, :k]
        return order_CK.astype(np.int32), np.take_along_axis(scores_CI, order_CK, 1)
    values, picked = torch.from_numpy(scores_CI).topk(k + 1, dim=1)
    picked_CK, edge_C = picked[:, :k].numpy(), values[:, k - 1] == values[:, k]
    # Where more items tie at the edge than fit, the lowest item numbers win.
    for row in torch.nonzero(edge_C).ravel().tolist():
        picked_CK[row] = np.argsort(-scores_CI[row], kind="stable")[:k]
    picked_CK = np.sort(picked_CK, axis=1)
    values_CK = np.take_along_axis(scores_CI, picked_CK, 1)
    order_CK = np.argsort(-values_CK, axis=1, kind="stable")
    items_CK = np.take_along_axis(picked_CK, order_CK, 1).astype(np.int32)
    return items_CK, np.take_along_axis(values_CK, order_CK, 1)


def target_ranks(retriever: Retriever, queries: Histories, target_L: np.ndarray) -> np.ndarray:
    """0-based rank of each target over the catalogue without the history's items.

    Equal scores rank by item number, as in `top_k`; a target that its history already holds gets
    the last rank.
    """
    rank_L = np.empty(queries.n_users, np.int64)
    for begin, end in chunks(queries, retriever.n_items):
        part = slice_rows(queries, begin, end)
        scores_CI, target_C = retriever.score_all(part), target_L[begin:end]
        row_N = np.repeat(np.arange(part.n_users), part.lengths_U)
        scores_CI[row_N, part.items_N] = -np.inf
        own_C1 = np.take_along_axis(scores_CI, target_C[:, None], 1)
        above_C = np.count_nonzero(scores_CI > own_C1, axis=1)
        level_C = np.count_nonzero(scores_CI >= own_C1, axis=1) - above_C
        for row in np.flatnonzero(level_C > 1):
            above_C[row] += np.count_nonzero(scores_CI[row, : target_C[row]] == own_C1[row])
        rank_L[begin:end] = above_C
    return rank_L


def evaluate(
    retriever: Retriever, queries: Histories, target_L: np.ndarray, k: int = 10
) -> dict[str, float]:
    """R@k and NDCG@k over all queries; a miss counts 0."""
    rank_L = target_ranks(retriever, queries, target_L)
    gain_L = np.where(rank_L < k, 1.0 / np.log2(rank_L + 2.0), 0.0)
    return {f"r@{k}": float((rank_L < k).mean()), f"ndcg@{k}": float(gain_L.mean())}
