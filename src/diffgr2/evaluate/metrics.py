"""Ranking metrics with a single relevant item, as per-user arrays.

Contract: a list's target stands at `rank` (0-based) of the final order, or is a MISS and counts 0
in everything. r@k = [rank < k]; ndcg@k = [rank < k] / log2(rank + 2), the ideal being 1;
mrr = 1 / (rank + 1). Per-user arrays are the primary artifact; means come last. By hand: rank 0, 2
and a miss give r@1 = 1/3, ndcg@3 = (1 + 1/2 + 0) / 3 = .5, mrr = (1 + 1/3 + 0) / 3 = .4444.
Not here: intervals (`significance`) and reference rows (`baselines`).
"""

import numpy as np

from diffgr2.types import MISS, ndcg_of

METRICS = ("r@1", "r@3", "r@5", "r@10", "ndcg@3", "ndcg@5", "ndcg@10", "mrr")
MAIN = ("r@1", "ndcg@3")  # where there is no room for all


def value_table(k: int) -> np.ndarray:
    """`table_RM`: every metric of every rank below `k`; the last row (index MISS) is the miss."""
    rank_R = np.arange(k)
    table_RM = np.zeros((k + 1, len(METRICS)))
    for m, name in enumerate(METRICS):
        kind, _, depth = name.partition("@")
        if kind == "mrr":
            table_RM[:k, m] = 1.0 / (rank_R + 1.0)
        elif kind == "r":
            table_RM[:k, m] = rank_R < int(depth)
        else:
            table_RM[:k, m] = ndcg_of(rank_R, int(depth))
    return table_RM


def ranks_of(order_LK: np.ndarray, hit_L: np.ndarray) -> np.ndarray:
    """Where each order puts its target (`hit_L`: position in the floor order), MISS if absent."""
    at_LK = order_LK == hit_L[:, None]
    return np.where(at_LK.any(1), at_LK.argmax(1), MISS).astype(np.int16)


def values_of(rank_L: np.ndarray, k: int) -> np.ndarray:
    """`values_LM`: every list's metrics."""
    return value_table(k)[rank_L]


def rows_are_permutations(order_LK: np.ndarray) -> np.ndarray:
    """Which rows are a permutation of range(K)."""
    return (np.sort(order_LK, axis=1) == np.arange(order_LK.shape[1])).all(1)
