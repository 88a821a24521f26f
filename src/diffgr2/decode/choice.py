"""Which token a decoder wants, given what is allowed: greedy, sampled, or the mean of a scale.

Contract: `among` chooses for N positions out of sets of allowed tokens, given their unfiltered
log-probabilities. Log-probabilities are renormalised over what is allowed. Greedy is the most
likely token (the lowest id of equals); where a strength stands, the level nearest to the expected
one, so that what is written and the ranking, which follows the expectation, agree. `sure` is the
unfiltered probability that decides whether a position commits: of the token, or at a strength of
the level and its neighbours. Pure numpy. Not here: what is allowed (`grammar`), who commits
(`accept`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from diffgr2.model.backend import NO_TOKEN
from diffgr2.model.sampling import inverse_transform, log_normalised

HALF = 0.5 + 5e-7
"""Rounds to the nearest level; half-way between two it goes up, whatever the last digit says."""


@dataclass(frozen=True)
class Choices:
    """What N positions want."""

    token_N: np.ndarray
    logp_N: np.ndarray  # among what was allowed, at the temperature
    sure_N: np.ndarray
    level_N: np.ndarray  # expected level, NaN where no strength stands
    probability_NA: np.ndarray | None = None  # of the allowed tokens, at temperature 1


def among(
    raw_NA: np.ndarray,
    tokens_NA: np.ndarray,
    scale_N: np.ndarray,
    temperature: float = 0.0,
    uniform_N: np.ndarray | None = None,
) -> Choices:
    """See the module's docstring; NO_TOKEN fills gaps."""
    raw_NA = raw_NA.astype(np.float64)  # −inf where no token is
    top_N1 = raw_NA.max(-1, keepdims=True)
    shifted_NA = raw_NA - top_N1 if np.isfinite(top_N1).all() else _hopeless(raw_NA, tokens_NA)
    weight_NA = np.exp(shifted_NA)
    total_N1 = weight_NA.sum(-1, keepdims=True)
    probability_NA, logp_NA = weight_NA / total_N1, shifted_NA - np.log(total_N1)
    levels_A, hot_NA, scaled = np.arange(raw_NA.shape[1]), logp_NA, bool(scale_N.any())
    level_N = probability_NA @ levels_A
    if not scaled or not scale_N.all():
        level_N = np.where(scale_N, level_N, np.nan)
    if temperature == 0.0 or uniform_N is None:
        pick_N = _first(shifted_NA, tokens_NA)
        if scaled:
            nearest_N = np.floor(np.where(scale_N, level_N, 0.0) + HALF)
            pick_N = np.where(scale_N, nearest_N.astype(np.int64), pick_N)
    else:
        hot_NA = log_normalised(logp_NA / temperature) if temperature != 1.0 else logp_NA
        pick_N = inverse_transform(hot_NA, uniform_N)
    near_NA = np.abs(levels_A - pick_N[:, None]) <= scale_N[:, None]
    sure_N = (weight_NA * near_NA).sum(-1) * np.exp(top_N1[:, 0])
    every = np.arange(len(raw_NA))
    token_N, hot_N = tokens_NA[every, pick_N], hot_NA[every, pick_N]
    return Choices(token_N, hot_N, sure_N, level_N, probability_NA)


class Choice(NamedTuple):
    """What one position wants."""

    token: int
    logp: float
    sure: float
    level: float


def one(raw_A: list[float], tokens_A: list[int], *, scale: bool) -> Choice:
    """Greedy `among` for a single position, in plain arithmetic: there NumPy is mostly calls."""
    top = max(raw_A)
    if top == -math.inf:
        found = among(np.array([raw_A]), np.array([tokens_A]), np.array([scale]))
        parts = (found.logp_N, found.sure_N, found.level_N)
        return Choice(int(found.token_N[0]), *(float(part[0]) for part in parts))
    weight_A = [math.exp(raw - top) for raw in raw_A]
    total = sum(weight_A)
    if not scale:
        token = min(t for t, raw in zip(tokens_A, raw_A, strict=True) if raw == top)
        return Choice(token, -math.log(total), math.exp(top), math.nan)
    level = sum(at * weight for at, weight in enumerate(weight_A)) / total
    pick = math.floor(level + HALF)
    near = sum(weight_A[max(pick - 1, 0) : pick + 2]) * math.exp(top)
    return Choice(tokens_A[pick], raw_A[pick] - top - math.log(total), near, level)


def _hopeless(raw_NA: np.ndarray, tokens_NA: np.ndarray) -> np.ndarray:
    """Where all that is allowed has probability zero, it is alike; else less the row's best."""
    top_N1 = raw_NA.max(-1, keepdims=True)
    lost_N1 = ~np.isfinite(top_N1)
    alike_NA = np.where(tokens_NA != NO_TOKEN, 0.0, -np.inf)
    return np.where(lost_N1, alike_NA, raw_NA - np.where(lost_N1, 0.0, top_N1))


def _first(score_NA: np.ndarray, tokens_NA: np.ndarray) -> np.ndarray:
    """The best entry of each row; the lowest id of equals."""
    pick_N = score_NA.argmax(-1)
    best_NA = score_NA == 0.0  # scores are relative to the best
    if np.count_nonzero(best_NA) > len(pick_N):
        pick_N = np.where(best_NA, tokens_NA, np.iinfo(np.int64).max).argmin(-1)
    return pick_N
