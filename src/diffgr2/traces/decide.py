"""The evidence teacher: a listwise scorer's verdicts, and the evidence that moved them.

Contract: from scores and per-field contributions of L lists, `plain` states every list's verdicts;
`targeted` knows the target and puts it above all others; `rejection` hides it, adds Gumbel noise to
the scores and keeps the first of `attempts` that ranks the target first among the first k
candidates. A verdict is a level of strength per candidate, on one `Scale` for all lists, and the
fields that count: those whose contribution is not small and has the sign of the side on which a
person puts their grade. Deterministic in the seed. Not here: words (`prompts`), the scorer itself
(`candidates.scorers`), LLM teachers (`llm`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffgr2.artifacts import load_arrays, save_arrays
from diffgr2.config import TracesConfig
from diffgr2.prompts.request import NONE, Trace
from diffgr2.streams import generator
from diffgr2.types import MISS

LEAST = 0.06
"""Share of the whole scale that a field has to move a score by to count: about one level of 16."""

ALONE = LEAST / 4
"""The same of the weightiest field where none moves that much, so that few lack a reason."""

BULK = (0.001, 0.999)
"""Quantiles of the scores that the lowest and the highest level stand for."""


@dataclass(frozen=True)
class Scale:
    """Which scores the lowest and the highest of `strengths` levels stand for."""

    low: float
    high: float
    strengths: int

    @staticmethod
    def of(score_X: np.ndarray, strengths: int) -> Scale:
        """The scale of these scores' bulk; NaN is none."""
        low, high = (float(q) for q in np.quantile(score_X[~np.isnan(score_X)], BULK))
        return Scale(low, high, strengths)

    @property
    def step(self) -> float:
        """What a score rises by from one level to the next."""
        return max(self.high - self.low, 1e-9) / (self.strengths - 1)

    def levels(self, score_X: np.ndarray) -> np.ndarray:
        """Verdicts between 0 and strengths − 1, as fine as ties are told apart (4 digits)."""
        level_X = (score_X.astype(np.float64) - self.low) / self.step
        return np.round(np.clip(level_X, 0, self.strengths - 1), 4)

    def save(self, path: Path) -> None:
        save_arrays(path, **{name: np.array(value) for name, value in vars(self).items()})

    @classmethod
    def load(cls, path: Path) -> Scale:
        return cls(**{name: array.item() for name, array in load_arrays(path).items()})


@dataclass(frozen=True)
class Traces:
    """Decisions on N of a split's lists; `row_N` says which."""

    row_N: np.ndarray  # int32
    level_NK: np.ndarray  # float32, NaN behind the candidates that were judged
    cites_NKC: np.ndarray  # int8, all fields that count, the weightiest first, ended by NONE

    def __len__(self) -> int:
        return len(self.row_N)

    def at(self, n: int) -> Trace:
        """The n-th decision, on the candidates that were judged (a list's first ones)."""
        judged = int((~np.isnan(self.level_NK[n])).sum())
        return Trace(self.level_NK[n, :judged], self.cites_NKC[n, :judged])

    def save(self, path: Path) -> None:
        save_arrays(path, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Traces:
        return cls(**load_arrays(path))


def counting(contribution_LKF: np.ndarray, side_LKF: np.ndarray, scale: Scale) -> np.ndarray:
    """The fields that count for or against each candidate, int8 (L, K, F); see `Traces`.

    Those that moved it enough; where none did, the one that moved it most, if by anything much.
    """
    span = scale.high - scale.low
    moved_LKF = contribution_LKF * side_LKF  # positive where both say the same
    most_LK1 = moved_LKF.max(-1, keepdims=True)
    least_LK1 = np.minimum(LEAST * span, np.maximum(most_LK1, ALONE * span))
    counts_LKF = (moved_LKF > 0) & (moved_LKF >= least_LK1)
    order_LKF = np.argsort(-np.where(counts_LKF, moved_LKF, 0.0), axis=-1, kind="stable")
    in_order_LKF = np.take_along_axis(counts_LKF, order_LKF, axis=-1)
    return np.where(in_order_LKF, order_LKF, NONE).astype(np.int8)


def decide(
    row_N: np.ndarray,
    score_LK: np.ndarray,
    cites_LKC: np.ndarray,
    hit_L: np.ndarray,
    scale: Scale,
    config: TracesConfig,
    *,
    k: int,
    seed: int,
) -> Traces:
    """Traces of those of these lists that the mode accepts.

    `hit_L` is read by targeted and rejection only, and is MISS beyond the first k candidates. A
    score is NaN behind the end of a shorter list, and so is its level.
    """
    score_NK = score_LK[row_N].astype(np.float64)
    if config.mode == "rejection":
        level_NK = _rejection(score_NK, hit_L[row_N], scale, config, k=k, seed=seed)
    else:
        level_NK = scale.levels(score_NK)
    if config.mode == "targeted":
        level_NK = _targeted(level_NK, hit_L[row_N], scale.strengths - 1)
    kept_N = ~np.isnan(level_NK[:, 0])
    rows = row_N[kept_N].astype(np.int32)
    return Traces(rows, level_NK[kept_N].astype(np.float32), cites_LKC[rows])


def _targeted(level_NK: np.ndarray, hit_N: np.ndarray, top: int) -> np.ndarray:
    """Targets a level above all others; where the scale ends, the others give way."""
    each_N, others_NK = np.arange(len(hit_N)), level_NK.copy()
    others_NK[each_N, hit_N] = -np.inf
    own_N = np.minimum(np.nanmax(others_NK, 1) + 1, top)
    result_NK = np.minimum(others_NK, own_N[:, None] - 1)
    result_NK[each_N, hit_N] = own_N
    result_NK[hit_N == MISS] = np.nan
    return result_NK


def _rejection(
    score_NK: np.ndarray,
    hit_N: np.ndarray,
    scale: Scale,
    config: TracesConfig,
    *,
    k: int,
    seed: int,
) -> np.ndarray:
    """Levels of the first accepted attempt; NaN for lists without one."""
    level_NK = np.full(score_NK.shape, np.nan)
    for attempt in range(config.attempts):
        # The first attempt is the scorer's own order; noise comes only where that was wrong.
        noise = config.noise if attempt else 0.0
        gumbel_NK = generator(seed, "traces", "rejection", attempt).gumbel(size=score_NK.shape)
        trial_NK = scale.levels(score_NK + noise * gumbel_NK)
        right_N = (hit_N != MISS) & (np.nanargmax(trial_NK[:, :k], 1) == hit_N)
        right_N &= np.isnan(level_NK[:, 0])
        level_NK[right_N] = trial_NK[right_N]
    return level_NK
