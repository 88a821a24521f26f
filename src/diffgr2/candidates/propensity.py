"""Who looks how far down: what a click at the tenth place is worth beside one at the first.

Contract: `fit_examination(item_N, shown_N, came_N)` estimates from what was shown where, and what
came of it, how the chance to be looked at falls with the place: place^-eta. No experiment is
needed, only items that were shown at several places: of an item's clicks the estimate asks at which
of its places they came, given how often it stood at each, so it makes no difference that good items
stand higher (the plain ratio of click rates by place mistakes that for looking). `weights` turns
places into inverse propensities, at most `most` for a single one.

    eta maximises  Σ_i Σ_k c_ik · log( n_ik k^-eta / Σ_j n_ij j^-eta )

with n_ik showings and c_ik clicks of item i at place k: concave, one root. Its limits: the fall has
one parameter; an item is taken to be equally wanted wherever it stands, so a ranker that moves it
up for exactly those who want it makes the fall look steeper than it is; that people trust what
stands high is not modelled. Items at one place only say nothing; where all are such, there is no
estimate and the weights are 1. Not here: which lists, and what is done with the weights (`stages`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

STEEPEST = 4.0
MOST = 10.0  # a single outcome's weight
Z95 = 1.959964


@dataclass(frozen=True)
class Examination:
    """How looking falls with the place; the interval is 95 %."""

    eta: float
    low: float
    high: float
    told: int  # outcomes that said something: of items that stood at several places

    def at(self, shown_X: np.ndarray) -> np.ndarray:
        """The chance to be looked at, beside the first place's."""
        return np.maximum(shown_X, 1).astype(np.float64) ** -self.eta

    def told_as(self) -> str:
        """The estimate in a line."""
        if not self.told:
            return "no item was shown at two places with an outcome: all places count alike"
        ten = min(10.0**self.eta, MOST)
        sure = f"[{self.low:.2f}, {self.high:.2f}], {self.told} outcomes"
        return f"looked at as place^-{self.eta:.2f} {sure}: one at place 10 counts {ten:.1f} times"


NOT_TOLD = Examination(0.0, 0.0, STEEPEST, 0)


def fit_examination(item_N: np.ndarray, shown_N: np.ndarray, came_N: np.ndarray) -> Examination:
    """See the module's docstring; N are candidates, `shown_N` from 1, below it: not shown."""
    there_N = shown_N >= 1
    pair_P2, which_N = np.unique(
        np.stack([item_N[there_N], shown_N[there_N]], 1), axis=0, return_inverse=True
    )
    which_N = which_N.reshape(-1)
    n_P = np.bincount(which_N, minlength=len(pair_P2)).astype(np.float64)
    c_P = np.bincount(which_N, weights=came_N[there_N] > 0, minlength=len(pair_P2))
    _, item_P = np.unique(pair_P2[:, 0], return_inverse=True)
    item_P = item_P.reshape(-1)
    clicks_I, places_I = np.bincount(item_P, weights=c_P), np.bincount(item_P)
    kept_P = (places_I[item_P] > 1) & (clicks_I[item_P] > 0)
    if not kept_P.any():
        return NOT_TOLD
    log_P, n_P, c_P = np.log(pair_P2[kept_P, 1]), n_P[kept_P], c_P[kept_P]
    _, item_P = np.unique(item_P[kept_P], return_inverse=True)
    clicks_I = np.bincount(item_P, weights=c_P)

    def moments(eta: float) -> tuple[float, float]:
        """Slope and curvature (its negative) of the log-likelihood."""
        mass_P = n_P * np.exp(-eta * log_P)
        mass_I = np.bincount(item_P, weights=mass_P)
        mean_I = np.bincount(item_P, weights=mass_P * log_P) / mass_I
        square_I = np.bincount(item_P, weights=mass_P * log_P**2) / mass_I
        slope = float((clicks_I * mean_I).sum() - (c_P * log_P).sum())
        return slope, float((clicks_I * np.maximum(square_I - mean_I**2, 0.0)).sum())

    low, high = 0.0, STEEPEST
    if moments(low)[0] <= 0.0:
        eta = low  # further down is looked at no less
    elif moments(high)[0] >= 0.0:
        eta = high
    else:
        for _ in range(60):  # the slope falls
            middle = (low + high) / 2
            low, high = (middle, high) if moments(middle)[0] > 0.0 else (low, middle)
        eta = (low + high) / 2
    curvature = moments(eta)[1]
    half = Z95 / math.sqrt(curvature) if curvature > 0 else STEEPEST
    told = int(clicks_I.sum())
    return Examination(eta, max(0.0, eta - half), min(STEEPEST, eta + half), told)


def weights(examination: Examination, shown_X: np.ndarray, most: float = MOST) -> np.ndarray:
    """Inverse propensities, float64; 1 at the first place and for what was not shown.

    >>> weights(Examination(1.0, 0.8, 1.2, 50), np.array([1, 2, 4, 99, 0])).tolist()
    [1.0, 2.0, 4.0, 10.0, 1.0]
    """
    return np.where(shown_X >= 1, np.minimum(1.0 / examination.at(shown_X), most), 1.0)
