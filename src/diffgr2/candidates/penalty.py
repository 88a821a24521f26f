"""How strongly a scorecard's weights are held back, chosen on the lists that it learns from.

Contract: `chosen` tries a small fixed grid of penalties on five folds by person and takes the one
under which outcomes of lists held out are likeliest. It sees nothing but what the scorecard may
learn from, so whatever is judged elsewhere stays unseen, and the number of outcomes decides: few of
them want neighbouring buckets pulled together, many hardly notice. From `MANY` lists on nothing is
tried and the usual penalty holds. What a recipe says itself is kept, and only the rest chosen. Same
lists and seed give the same penalty. Not here: the scorecard (`scorers`).
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
    likely_P = np.zeros(len(tried))
    for fold in range(FOLDS):
        held_L = fold_L == fold
        learned, held = np.flatnonzero(rows_L)[~held_L], np.flatnonzero(rows_L)[held_L]
        share_LK = scorers.shares(gains_LK[held])
        if weight_LK is not None:
            share_LK = scorers.weighted(share_LK, weight_LK[held])
        given: dict[str, Any] = {"seed": seed, "there_LK": there_LK[learned]}
        given["weight_LK"] = None if weight_LK is None else weight_LK[learned]
        for p, one in enumerate(tried):
            given |= {"l2": one.l2, "smooth": one.smooth}
            lists = (buckets_LKF[learned], gains_LK[learned])
            scorer = scorers.fit("linear", *lists, n_buckets, **given)
            likely_P[p] += likelihood(scorer.score(buckets_LKF[held], there_LK[held]), share_LK)
    return tried[int(likely_P.argmax())]


def likelihood(score_LK: np.ndarray, share_LK: np.ndarray) -> float:
    """The sum over lists of the log-probability of what came of them; a score of NaN is none."""
    logp_LK = log_softmax(np.where(np.isnan(score_LK), -np.inf, score_LK), axis=1)
    won_LK = share_LK > 0
    return float((share_LK[won_LK] * np.maximum(logp_LK[won_LK], -700.0)).sum())
