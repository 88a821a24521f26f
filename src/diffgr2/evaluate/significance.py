"""Paired bootstrap over users, Wilson's interval of a share, exact McNemar, Holm, equivalence.

Contract: every row of a table is resampled with the *same* users, so differences are paired; the
draws are a function of the key given. Intervals are 95 % percentiles. A difference whose interval
holds 0 is called "none", whatever its size. Memory stays small: resamples are drawn in chunks as
counts, and users whose values are all 0 (misses) are never materialised, only how many of the
draws fell on the others (a binomial draw, so the distribution is exactly the plain bootstrap's).
Not here: which rows are compared (`results`).
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import bdtr

from diffgr2.streams import generator

LEVEL = (2.5, 97.5)
CELLS = 2_000_000  # counts held at once
Z = 1.959963984540054  # of a two-sided 95 %
MARGIN = 0.01  # set beforehand: what R@1 and NDCG@3 may differ by and still be level
SURE = 0.05  # an adjusted p below this is one to build on
DIGITS = 12  # sums of the same users in another order differ by about 1e-17


def bootstrap_means(values_UC: np.ndarray, resamples: int, *key: str | int) -> np.ndarray:
    """`means_BC`: the mean of every column over each resample of the U users."""
    n_users, n_columns = values_UC.shape
    support_UC = values_UC[(values_UC != 0).any(1)]
    n_support = len(support_UC)
    means_BC = np.zeros((resamples, n_columns))
    if n_support == 0:
        return means_BC
    rng = generator(*key)
    draws_B = np.full(resamples, n_users)
    if n_support < n_users:
        draws_B = rng.binomial(n_users, n_support / n_users, resamples)
    chunk = max(1, CELLS // n_support)
    for start in range(0, resamples, chunk):
        draws_b = draws_B[start : start + chunk]
        row_D = np.repeat(np.arange(len(draws_b)), draws_b)
        user_D = rng.integers(0, n_support, len(row_D))
        counts = np.bincount(row_D * n_support + user_D, minlength=len(draws_b) * n_support)
        counts_bU = counts.reshape(len(draws_b), n_support).astype(np.float64)
        means_BC[start : start + len(draws_b)] = counts_bU @ support_UC / n_users
    return means_BC


def interval(samples_B: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of resampled statistics."""
    low, high = np.round(np.percentile(samples_B, LEVEL), DIGITS)
    return float(low), float(high)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, with a width at 0 and 1 too.

    By hand: 100 of 100 gives [100 / (100 + z²), 1] = [.9630, 1].
    """
    share, spread = successes / n, Z * Z / n
    centre = (share + spread / 2) / (1 + spread)
    reach = np.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    low, high = np.round((centre - reach, centre + reach), DIGITS)
    return max(float(low), 0.0), min(float(high), 1.0)


def ratio_interval(
    top_L: np.ndarray, bottom_L: np.ndarray, resamples: int, *key: str | int
) -> tuple[float, float] | None:
    """The 95 % bootstrap interval of a ratio of sums over lists; resamples without any of the
    bottom say nothing. None where all do."""
    pair_LC = np.stack([top_L, bottom_L], axis=1).astype(np.float64)
    means_BC = bootstrap_means(pair_LC, resamples, *key)
    kept_BC = means_BC[means_BC[:, 1] > 0]
    return interval(kept_BC[:, 0] / kept_BC[:, 1]) if len(kept_BC) else None


def equivalence(low: float, high: float, p: float = 0.0, margin: float = MARGIN) -> str:
    """level where the margin holds the whole interval, else gain, loss, or no difference shown."""
    if -margin <= low and high <= margin:
        return "level"
    return verdict(low, high, p).replace("none", "no difference shown")


def verdict(low: float, high: float, p: float = 0.0) -> str:
    """gain, loss, or none where the interval holds 0, or where p (adjusted, if there is a family of
    tests) is not below .05."""
    if low > 0 and p < SURE:
        return "gain"
    return "loss" if high < 0 and p < SURE else "none"


def mcnemar(before_U: np.ndarray, after_U: np.ndarray) -> tuple[int, int, float]:
    """Users gained, users lost, and the exact two-sided p of that split.

    By hand: 5 gained and 1 lost have p = 2 · (C(6,0) + C(6,1)) / 2^6 = 14/64 = .21875.
    """
    before_U, after_U = before_U.astype(bool), after_U.astype(bool)
    diff_U = after_U.astype(np.int8) - before_U.astype(np.int8)
    return int((diff_U > 0).sum()), int((diff_U < 0).sum()), split_p(diff_U)


def split_p(diff_U: np.ndarray) -> float:
    """The exact two-sided p of so many gains and losses, whatever their size."""
    gained, lost = int((diff_U > 0).sum()), int((diff_U < 0).sum())
    if gained == lost:
        return 1.0
    return min(1.0, 2.0 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


def sign_flips(diff_UC: np.ndarray, resamples: int, *key: str | int) -> np.ndarray:
    """p per column: how often differences whose signs are drawn at random have a mean as large.

    By hand: one difference of 1 and no other has p near 1, for either sign is as large; five of the
    same sign have p near 2 / 2^5.
    """
    support_UC = diff_UC[(diff_UC != 0).any(1)]
    seen_C, rng = np.abs(support_UC.sum(0)), generator(*key)
    chunk, reached_C = max(1, CELLS // max(len(support_UC), 1)), np.zeros(diff_UC.shape[1])
    for start in range(0, resamples, chunk):
        draws = min(chunk, resamples - start)
        sign_bU = 2.0 * rng.integers(0, 2, (draws, len(support_UC)), dtype=np.int8) - 1.0
        reached_C += (np.abs(sign_bU @ support_UC) >= seen_C - 10.0**-DIGITS).sum(0)
    return (1.0 + reached_C) / (1.0 + resamples)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given.

    By hand: (.01, .04, .03) -> sorted .01·3, .03·2, .04·1 -> running maximum .03, .06, .06.
    """
    p_N = np.array(p_values)
    order_N = np.argsort(p_N, kind="stable")
    scaled_N = np.minimum(p_N[order_N] * np.arange(len(p_N), 0, -1), 1.0)
    return np.maximum.accumulate(scaled_N)[np.argsort(order_N)].tolist()
