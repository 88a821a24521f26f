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

from dataclasses import dataclass

import numpy as np

from diffgr2.model.backend import NO_TOKEN
from diffgr2.model.sampling import inverse_transform, log_normalised


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
    """See the module's docstring; sets are padded with NO_TOKEN."""
    there_NA = tokens_NA != NO_TOKEN
    raw_NA = np.where(there_NA, raw_NA, -np.inf).astype(np.float64)
    hopeless_N1 = ~np.isfinite(raw_NA).any(-1, keepdims=True)  # all allowed have probability zero
    logp_NA = log_normalised(np.where(hopeless_N1 & there_NA, 0.0, raw_NA))
    probability_NA = np.exp(logp_NA)
    every, levels_A = np.arange(len(raw_NA)), np.arange(raw_NA.shape[1])
    level_N = np.where(scale_N, probability_NA @ levels_A, np.nan)
    if temperature == 0.0 or uniform_N is None:
        best_NA = logp_NA == logp_NA.max(-1, keepdims=True)
        pick_N = np.where(best_NA, tokens_NA, np.iinfo(np.int64).max).argmin(-1)
        # Rounded first: half-way between two levels it goes up, whatever the last digit says.
        pick_N[scale_N] = np.floor(np.round(level_N[scale_N], 6) + 0.5).astype(np.int64)
        hot_NA = logp_NA
    else:
        hot_NA = log_normalised(logp_NA / temperature) if temperature != 1.0 else logp_NA
        pick_N = inverse_transform(hot_NA, uniform_N)
    near_NA = levels_A == pick_N[:, None]
    near_NA |= scale_N[:, None] & (np.abs(levels_A - pick_N[:, None]) <= 1)
    sure_N = np.where(near_NA, np.exp(raw_NA), 0.0).sum(-1)
    token_N, hot_N = tokens_NA[every, pick_N], hot_NA[every, pick_N]
    return Choices(token_N, hot_N, sure_N, level_N, probability_NA)
