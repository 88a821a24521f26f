"""How strongly a scorecard's weights are held back, chosen on the lists that it learns from.

Contract: `chosen` tries a small fixed grid of penalties on five folds by person, by how likely each
makes the outcomes of lists held out. Of those that the best is not surely better than (paired, one
standard error) it takes the one that holds back most, which fits what it learned from least. It
sees nothing but what the scorecard may learn from, so whatever is judged elsewhere stays unseen.
From `MANY` lists on nothing is tried and the usual penalty holds. What a recipe says itself is
kept, and only the rest chosen. Same lists and seed give the same penalty. Not here: the scorecard
(`scorers`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy.special import log_softmax

from diffgr2.candidates import scorers
from diffgr2.candidates.lists import fold_of_users

MANY = 3_000
"""Lists with an outcome from which on a penalty is not looked for."""

FEWEST = 50
"""Lists with an outcome that folds need to tell anything; below, the middle of the grid holds."""

FOLDS = 5

L2 = (2.0, 8.0, 32.0)
SMOOTH = (0.0, 30.0, 100.0, 300.0, 1_000.0)
"""What is tried, per list: a penalty is as strong as so many lists are many."""


@dataclass(frozen=True)
class Penalty:
    """Of a scorecard's loss per list."""

    l2: float
    smooth: float
    why: str

    def told_as(self) -> str:
        """In a line of a run."""
        return f"scorecard held back by l2 {self.l2:.3g}, smooth {self.smooth:.3g} ({self.why})"


def grid(lists: int, l2: float | None, smooth: float | None) -> list[Penalty]:
    """What is tried with so many lists; what is given is not varied."""
    each_l2 = [value / lists for value in L2] if l2 is None else [l2]
    each_smooth = [value / lists for value in SMOOTH] if smooth is None else [smooth]
    why = f"chosen on {lists:,} lists with an outcome"
    return [Penalty(*pair, why) for pair in product(each_l2, each_smooth)]


def chosen(
    buckets_LKF: np.ndarray,
    gains_LK: np.ndarray,
    owner_L: np.ndarray,
    n_buckets: int,
    *,
    there_LK: np.ndarray,
    seed: int,
    weight_LK: np.ndarray | None = None,
    l2: float | None = None,
    smooth: float | None = None,
) -> Penalty:
    """The penalty for a scorecard on these lists, of which those teach that something came of."""
    rows_L = (gains_LK > 0).any(1)
    n = max(int(rows_L.sum()), 1)
    if l2 is not None and smooth is not None:
        return Penalty(l2, smooth, "by the recipe")
    if n >= MANY:
        why = f"as usual with {n:,} lists that have an outcome"
        return Penalty(1e-3 if l2 is None else l2, smooth or 0.0, why)
    tried = grid(n, l2, smooth)
    number_L = np.unique(owner_L[rows_L], return_inverse=True)[1]
    people = int(number_L.max(initial=-1)) + 1
    if n < FEWEST or people < FOLDS:
        return tried[len(tried) // 2]
    fold_L = fold_of_users(people, FOLDS, seed)[number_L]
    share_LK = scorers.shares(gains_LK[rows_L])
    if weight_LK is not None:
        share_LK = scorers.weighted(share_LK, weight_LK[rows_L])
    likely_PL, by_heart_P = np.zeros((len(tried), len(fold_L))), np.zeros(len(tried))
    for fold in range(FOLDS):
        held_L = fold_L == fold
        learned = np.flatnonzero(rows_L)[~held_L]
        given: dict[str, Any] = {"seed": seed, "there_LK": there_LK[learned]}
        given["weight_LK"] = None if weight_LK is None else weight_LK[learned]
        for p, one in enumerate(tried):
            given |= {"l2": one.l2, "smooth": one.smooth}
            lists = (buckets_LKF[learned], gains_LK[learned])
            scorer = scorers.fit("linear", *lists, n_buckets, **given)
            score_LK = scorer.score(buckets_LKF[rows_L], there_LK[rows_L])
            logp_L = likelihood(score_LK, share_LK)
            likely_PL[p, held_L] = logp_L[held_L]
            by_heart_P[p] += logp_L[~held_L].sum()
    less_PL = likely_PL[likely_PL.sum(1).argmax()] - likely_PL
    level_P = less_PL.mean(1) <= less_PL.std(1) / np.sqrt(n)
    return tried[int(np.where(level_P, by_heart_P, np.inf).argmin())]


def likelihood(score_LK: np.ndarray, share_LK: np.ndarray) -> np.ndarray:
    """Each list's log-probability of what came of it; a score of NaN is none."""
    logp_LK = log_softmax(np.where(np.isnan(score_LK), -np.inf, score_LK), axis=1)
    return (share_LK * np.where(share_LK > 0, logp_LK, 0.0)).sum(1)
