"""The evidence teacher: a listwise scorer's decision, verbalised from the evidence that moved it.

Contract: from scores and per-field contributions of L lists, `plain` writes every list's decision;
`targeted` knows the target and ranks it first; `rejection` hides it, draws orders by adding Gumbel
noise to the scores and keeps the first of `attempts` that ranks the target first. A decision is a
strength per candidate (quantised score), the order it implies, and the fields that speak most for
and most against each candidate. Deterministic in the seed. Not here: words (`prompts`), the scorer
itself (`candidates.scorers`), LLM teachers (`llm`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffgr2.artifacts import load_arrays, save_arrays
from diffgr2.config import TracesConfig
from diffgr2.prompts.request import Trace, order_by_strength
from diffgr2.streams import generator


@dataclass(frozen=True)
class Traces:
    """Decisions on N of a split's lists; `row_N` says which."""

    row_N: np.ndarray
    order_NK: np.ndarray
    strength_NK: np.ndarray
    for_NKC: np.ndarray
    against_NKA: np.ndarray

    def __len__(self) -> int:
        return len(self.row_N)

    def at(self, n: int) -> Trace:
        return Trace(self.order_NK[n], self.strength_NK[n], self.for_NKC[n], self.against_NKA[n])

    def save(self, path: Path) -> None:
        save_arrays(path, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Traces:
        return cls(**load_arrays(path))


def strength_edges(score_LK: np.ndarray, levels: int) -> np.ndarray:
    """Inner edges of evenly spaced strength levels over the bulk of the scores."""
    low, high = np.quantile(score_LK, [0.005, 0.995])
    return np.linspace(low, high, levels + 1)[1:-1].astype(np.float64)


def strengths(score_LK: np.ndarray, edges_S: np.ndarray) -> np.ndarray:
    """Level of each score."""
    return np.searchsorted(edges_S, score_LK, side="right").astype(np.int32)


def cited(contribution_LKF: np.ndarray, cites: int) -> tuple[np.ndarray, np.ndarray]:
    """Fields for (strongest first) and against (strongest first) each candidate, never the same."""
    order_LKF = np.argsort(-contribution_LKF, axis=-1, kind="stable").astype(np.int32)
    against = max(1, min(cites - 1, contribution_LKF.shape[-1] - cites))
    return order_LKF[..., :cites], order_LKF[..., ::-1][..., :against]


def decide(
    score_LK: np.ndarray,
    contribution_LKF: np.ndarray,
    hit_L: np.ndarray,
    edges_S: np.ndarray,
    config: TracesConfig,
    *,
    cites: int,
    seed: int,
) -> Traces:
    """Traces of the lists that the mode accepts; `hit_L` is used by targeted and rejection only."""
    rows = np.arange(len(score_LK))
    score_LK = score_LK.astype(np.float64)
    if config.mode == "targeted":
        rows = rows[hit_L >= 0]
        score_LK = score_LK[rows].copy()
        step = edges_S[1] - edges_S[0] if len(edges_S) > 1 else 1.0
        score_LK[np.arange(len(rows)), hit_L[rows]] = score_LK.max(1) + step
    elif config.mode == "rejection":
        rows, score_LK = _rejection(score_LK, hit_L, config, seed)
    strength_NK = strengths(score_LK, edges_S)
    for_NKC, against_NKA = cited(contribution_LKF[rows], cites)
    order_NK = order_by_strength(strength_NK).astype(np.int32)
    return Traces(rows.astype(np.int32), order_NK, strength_NK, for_NKC, against_NKA)


def _rejection(
    score_LK: np.ndarray, hit_L: np.ndarray, config: TracesConfig, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Lists accepted within the attempts, and the noisy scores that were accepted."""
    kept = np.full(len(score_LK), False)
    drawn_LK = score_LK.copy()
    for attempt in range(config.attempts):
        # The first attempt is the scorer's own order; noise comes only where that was wrong.
        scale = config.noise if attempt else 0.0
        gumbel_LK = generator(seed, "traces", "rejection", attempt).gumbel(size=score_LK.shape)
        trial_LK = score_LK + scale * gumbel_LK
        good_L = (hit_L >= 0) & (trial_LK.argmax(1) == hit_L) & ~kept
        drawn_LK[good_L] = trial_LK[good_L]
        kept |= good_L
    return np.flatnonzero(kept), drawn_LK[kept]
