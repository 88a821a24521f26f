"""Reference rows that need no model: floor, random, oracle, and orders from scores.

Contract: an order is int16 positions in the floor order, best first, -1 behind the end of a shorter
list (`length_L`; None: all K). `random` is the exact expectation over all orders, not a draw: every
list gets the mean of each metric over where its positives may come to stand. The oracle puts what
came of the list first, by gain, or orders by the true next-item probabilities where those are known
(a simulated shop), which is what a perfect re-ranker would do. Not here: fitting a scorer (that
needs training lists).
"""

import numpy as np

from diffgr2.errors import DataError
from diffgr2.evaluate.metrics import METRICS, discounts, ideal_of, parts_of


def shorter(order_LK: np.ndarray, length_L: np.ndarray | None) -> np.ndarray:
    """Orders whose first places are those of each list's own candidates, ended by -1."""
    if length_L is None:
        return order_LK.astype(np.int16)
    held_LK = np.arange(order_LK.shape[1]) < length_L[:, None]
    return np.where(held_LK, order_LK, -1).astype(np.int16)


def floor_order(n_lists: int, k: int, length_L: np.ndarray | None = None) -> np.ndarray:
    """The order as it came."""
    return shorter(np.tile(np.arange(k, dtype=np.int16), (n_lists, 1)), length_L)


def order_from_scores(
    score_LK: np.ndarray, source: str, length_L: np.ndarray | None = None
) -> np.ndarray:
    """Best score first; equal scores keep the floor's order."""
    there_LK = np.ones(score_LK.shape, dtype=bool)
    if length_L is not None:
        there_LK = np.arange(score_LK.shape[1]) < length_L[:, None]
    bad = np.flatnonzero((np.isnan(score_LK) & there_LK).any(1))
    if len(bad):
        raise DataError(f"{source}: list {bad[0]} has a score that is not a number")
    falling_LK = np.where(there_LK, -score_LK, np.nan)  # sorted behind all numbers
    return shorter(np.argsort(falling_LK, axis=1, kind="stable"), length_L)


def oracle_order(
    gains_LK: np.ndarray, p_LK: np.ndarray | None = None, length_L: np.ndarray | None = None
) -> np.ndarray:
    """By true probabilities if given, else by gain and the rest in floor order."""
    score_LK = gains_LK if p_LK is None else p_LK
    return order_from_scores(score_LK.astype(np.float64), "oracle", length_L)


def first_positive(n_L: np.ndarray, positives_L: np.ndarray) -> np.ndarray:
    """Expected 1 / place of the first of P positives among n candidates in any order."""
    expected_L, open_L = np.zeros(len(n_L)), np.ones(len(n_L))  # chance that none came so far
    for place in range(int(n_L.max(initial=0))):
        left_L = np.maximum(n_L - place, 1)
        now_L = np.clip(positives_L / left_L, 0.0, 1.0)
        expected_L += open_L * now_L / (place + 1.0)
        open_L *= 1.0 - now_L
    return expected_L


def random_values(gains_LK: np.ndarray, length_L: np.ndarray | None = None) -> np.ndarray:
    """`values_LM` expected of a uniformly random order (10 candidates, one target: r@1 is .1)."""
    n_lists, k = gains_LK.shape
    n_L = np.full(n_lists, k) if length_L is None else length_L
    positives_L, discount_K = (gains_LK > 0).sum(1), np.append(0.0, np.cumsum(discounts(k)))
    total_L, values_LM = gains_LK.sum(1, dtype=np.float64), np.zeros((n_lists, len(METRICS)))
    for m, name in enumerate(METRICS):
        kind, depth = parts_of(name)
        first_L = np.minimum(n_L, depth)
        if kind == "mrr":
            values_LM[:, m] = first_positive(n_L, positives_L)
        elif kind == "r":
            most_L = np.maximum(np.minimum(positives_L, depth), 1)
            values_LM[:, m] = positives_L * first_L / np.maximum(n_L, 1) / most_L
        else:
            ideal_L = ideal_of(gains_LK, depth)
            mean_L = total_L * discount_K[first_L] / np.maximum(n_L, 1)
            values_LM[:, m] = mean_L / np.where(ideal_L > 0, ideal_L, 1.0)
    return values_LM
