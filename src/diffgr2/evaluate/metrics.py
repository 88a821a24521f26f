"""Ranking metrics of orders by what came of their candidates, as per-list arrays.

Contract: `metrics_of(order_LK, gains_LK)` judges an order of a list's candidates (positions in the
floor order, best first; -1 behind the end of a shorter list) by the gain of each candidate's
outcome; one above 0 is a positive, and a list without any counts 0 in everything. r@n = positives
within the first n over min(n, positives); ndcg@n has linear gains and the list's own ideal; mrr =
1 / place of the first positive. With a single target at `rank` (0-based) these are [rank < n],
[rank < n] / log2(rank + 2) and 1 / (rank + 1): `values_of`. Per-list arrays are the primary
artifact; means come last. By hand: rank 0, 2 and a miss give r@1 = 1/3, ndcg@3 =
(1 + 1/2 + 0) / 3 = .5, mrr = (1 + 1/3 + 0) / 3 = .4444; gains 3 and 1 at the second and the third
place give ndcg@3 = (3 / log2 3 + 1 / 2) / (3 + 1 / log2 3) = .6590. Not here: intervals
(`significance`) and reference rows (`baselines`).
"""

import numpy as np

from diffgr2.types import MISS, ndcg_of

METRICS = ("r@1", "r@3", "r@5", "r@10", "ndcg@3", "ndcg@5", "ndcg@10", "mrr")
MAIN = ("r@1", "ndcg@3")  # where there is no room for all


def parts_of(name: str) -> tuple[str, int]:
    """A metric's kind and depth; 0 without one."""
    kind, _, depth = name.partition("@")
    return kind, int(depth or 0)


def value_table(k: int) -> np.ndarray:
    """`table_RM`: every metric of every rank below `k`; the last row (index MISS) is the miss."""
    rank_R = np.arange(k)
    table_RM = np.zeros((k + 1, len(METRICS)))
    for m, name in enumerate(METRICS):
        kind, depth = parts_of(name)
        if kind == "mrr":
            table_RM[:k, m] = 1.0 / (rank_R + 1.0)
        elif kind == "r":
            table_RM[:k, m] = rank_R < depth
        else:
            table_RM[:k, m] = ndcg_of(rank_R, depth)
    return table_RM


def ranks_of(order_LK: np.ndarray, hit_L: np.ndarray) -> np.ndarray:
    """Where each order puts its target (`hit_L`: position in the floor order), MISS if absent."""
    at_LK = (order_LK == hit_L[:, None]) & (order_LK >= 0)
    return np.where(at_LK.any(1), at_LK.argmax(1), MISS).astype(np.int16)


def values_of(rank_L: np.ndarray, k: int) -> np.ndarray:
    """`values_LM`: every list's metrics, of its only target's rank."""
    return value_table(k)[rank_L]


def discounts(k: int) -> np.ndarray:
    """What a gain at each place counts."""
    return 1.0 / np.log2(np.arange(k) + 2.0)


def ideal_of(gains_LK: np.ndarray, depth: int) -> np.ndarray:
    """The most that the first `depth` places can be worth, (L)."""
    best_LN = -np.sort(-gains_LK.astype(np.float64), axis=1)[:, :depth]
    return (best_LN * discounts(best_LN.shape[1])).sum(1)


def metrics_of(order_LK: np.ndarray, gains_LK: np.ndarray) -> np.ndarray:
    """`values_LM` of these orders; see the module's docstring."""
    order_LK, k = order_LK.astype(np.int64), order_LK.shape[1]
    worth_LK = np.take_along_axis(gains_LK, np.maximum(order_LK, 0), 1).astype(np.float64)
    worth_LK[order_LK < 0] = 0.0
    won_LK, wanted_L = worth_LK > 0, (gains_LK > 0).sum(1)
    values_LM, discount_K = np.zeros((len(order_LK), len(METRICS))), discounts(k)
    for m, name in enumerate(METRICS):
        kind, depth = parts_of(name)
        if kind == "mrr":
            found_L = np.where(won_LK.any(1), won_LK.argmax(1) + 1.0, np.inf)
            values_LM[:, m] = 1.0 / found_L
        elif kind == "r":
            most_L = np.minimum(wanted_L, depth)
            values_LM[:, m] = won_LK[:, :depth].sum(1) / np.maximum(most_L, 1)
        else:
            made_L, ideal_L = (worth_LK * discount_K)[:, :depth].sum(1), ideal_of(gains_LK, depth)
            values_LM[:, m] = made_L / np.where(ideal_L > 0, ideal_L, 1.0)
    return values_LM


def rows_are_permutations(order_LK: np.ndarray) -> np.ndarray:
    """Which rows are a permutation of range(n), n ≤ K, with -1 behind it."""
    k = order_LK.shape[1]
    length_L1 = (order_LK >= 0).sum(1, keepdims=True)
    ended_L = ((order_LK >= 0) == (np.arange(k) < length_L1)).all(1)
    filled_LK = np.where(order_LK < 0, np.arange(k), order_LK)
    return ended_L & (order_LK >= -1).all(1) & (np.sort(filled_LK, axis=1) == np.arange(k)).all(1)
