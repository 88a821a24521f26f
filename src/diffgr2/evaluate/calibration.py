"""Strengths as chances: one scale, fitted where targets are known, and how far off it is.

Contract: the chance that a candidate is the one is the softmax over its list of scale × expected
strength. `fit_scale` is the maximum-likelihood scale; `chances` turns strengths into probabilities
that fall strictly along the said order, so they can be shown as scores; `calibration_error` says
how often what is said with 70 % is so. A candidate that was not judged counts as the weakest of its
list. Not here: where strengths come from, and which lists they are fitted on (`stages.calibrate`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffgr2.prompts.said import order_by_level
from diffgr2.types import MISS

FEWEST = 20
"""Lists with their target that a scale needs."""

FLATTEST, STEEPEST = 1e-3, 20.0
"""Scales per level of strength: lists that are ranked without a fault, or at random, set none."""


def softmax(x_LK: np.ndarray) -> np.ndarray:
    """Along the last axis; −inf has no chance."""
    e_LK = np.exp(x_LK - x_LK.max(-1, keepdims=True))
    return e_LK / e_LK.sum(-1, keepdims=True)


def fit_scale(levels_LK: np.ndarray, hit_L: np.ndarray, default: float) -> float:
    """The scale under which the targets are likeliest; `default` where lists are too few.

    `hit_L` is the target's column or MISS; NaN stands behind the end of a shorter list, and where
    a candidate was not judged.
    """
    from scipy.optimize import brentq  # late: who ranks fits nothing

    own_L = levels_LK[np.arange(len(hit_L)), hit_L]
    told_L = [len(np.unique(list_K[~np.isnan(list_K)])) > 1 for list_K in levels_LK]
    rows_L = (hit_L != MISS) & ~np.isnan(own_L) & np.array(told_L, dtype=bool)
    if rows_L.sum() < FEWEST:
        return float(default)
    own_L, held_LK = own_L[rows_L], ~np.isnan(levels_LK[rows_L])
    level_LK = np.nan_to_num(levels_LK[rows_L])

    def slope(scale: float) -> float:
        """Derivative of the mean log-likelihood; it falls with the scale."""
        chance_LK = softmax(np.where(held_LK, scale * level_LK, -np.inf))
        return float((own_L - (chance_LK * level_LK).sum(1)).mean())

    if slope(FLATTEST) <= 0.0:  # strengths say nothing here, or the contrary
        return FLATTEST
    if slope(STEEPEST) >= 0.0:
        return STEEPEST
    return float(brentq(slope, FLATTEST, STEEPEST, xtol=1e-9))  # type: ignore[arg-type]


def chances(levels_K: np.ndarray, scale: float, order_K: np.ndarray | None = None) -> np.ndarray:
    """Probability of each candidate to be the one, strictly falling along the said order.

    `order_K` is that order where ties have a floor of their own. Equal chances differ by the
    smallest steps that a float knows.
    """
    order_K = order_by_level(levels_K) if order_K is None else order_K
    known_K = levels_K[~np.isnan(levels_K)]
    lowest = known_K.min() if len(known_K) else 0.0
    chance_K = softmax(scale * np.where(np.isnan(levels_K), lowest, levels_K))
    least = 0.0
    for place in np.asarray(order_K)[::-1]:
        chance_K[place] = least = max(chance_K[place], np.nextafter(least, 1.0))
    return chance_K


@dataclass(frozen=True)
class Reliability:
    """What was said and what was so, in bins of equal count, by rising chance."""

    error: float  # expected calibration error
    bins: tuple[tuple[float, float, int], ...]  # mean chance, share that were the one, candidates


def calibration_error(chance_LK: np.ndarray, hit_L: np.ndarray, bins: int = 10) -> Reliability:
    """Over all candidates (NaN: none): mean distance of chance and share, by candidates per bin.

    By hand, two bins: two candidates said at .8, one of them right, and two at .2, none of them
    right: |.8 - .5| / 2 + |.2 - 0| / 2 = .25.
    """
    right_LK = np.arange(chance_LK.shape[1]) == hit_L[:, None]
    held_LK = ~np.isnan(chance_LK)
    chance_N, right_N = chance_LK[held_LK], right_LK[held_LK]
    found, error = [], 0.0
    for inside in np.array_split(np.argsort(chance_N, kind="stable"), bins):
        if n := len(inside):
            said, so = float(chance_N[inside].mean()), float(right_N[inside].mean())
            found.append((said, so, n))
            error += abs(said - so) * n / len(chance_N)
    return Reliability(error, tuple(found))
