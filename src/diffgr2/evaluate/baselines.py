"""Reference rows that need no model: floor, random, oracle, and orders from scores.

Contract: an order is int16 positions in the floor order, best first. `random` is the exact
expectation over all K! orders, not a draw: every hit user gets the mean of each metric over the K
possible ranks. The oracle puts the target first, or orders by the true next-item probabilities
where those are known (a simulated shop), which is what a perfect re-ranker would do.
Not here: fitting a scorer (that needs training lists).
"""

import numpy as np

from diffgr2.errors import DataError
from diffgr2.evaluate.metrics import value_table
from diffgr2.types import MISS


def floor_order(n_lists: int, k: int) -> np.ndarray:
    """The order as it came."""
    return np.tile(np.arange(k, dtype=np.int16), (n_lists, 1))


def order_from_scores(score_LK: np.ndarray, source: str) -> np.ndarray:
    """Best score first; equal scores keep the floor's order."""
    bad = np.flatnonzero(np.isnan(score_LK).any(1))
    if len(bad):
        raise DataError(f"{source}: list {bad[0]} has a score that is not a number")
    return np.argsort(-score_LK, axis=1, kind="stable").astype(np.int16)


def oracle_order(hit_L: np.ndarray, k: int, p_LK: np.ndarray | None = None) -> np.ndarray:
    """By true probabilities if given, else the target first and the rest in floor order."""
    score_LK = np.arange(k) == hit_L[:, None] if p_LK is None else p_LK
    return order_from_scores(score_LK.astype(np.float64), "oracle")


def random_values(hit_L: np.ndarray, k: int) -> np.ndarray:
    """`values_LM` expected of a uniformly random order (K = 10: r@1 is .1 on hit users)."""
    expected_M = value_table(k)[:k].mean(0)
    return np.where((hit_L != MISS)[:, None], expected_M, 0.0)
