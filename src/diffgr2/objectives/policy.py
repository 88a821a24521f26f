"""Reinforcement learning: the re-ranking reward, advantages, the clipped token-level objective.

Contract: `reward` is R_rank = (rank_before − rank_after) / K of the target, or with `gains` what
the whole list's NDCG rose by (as in Rearank; several outcomes, each by its worth), plus GR2's
format reward α where that is above 0 or the best order there is was kept, so copying the input
order earns nothing; an invalid or over-long output earns −1. `advantages` normalises rewards within
groups and marks groups without variance, which carry no gradient and are refilled by the caller;
`clipped_objective` is DAPO's (paper §3.6, E.7): tokens weigh equally over the whole batch, the
ratio is clipped at 1 − low and 1 + high. Sums only; the loop divides by the global token count. Not
here: parsing (`prompts`), rollouts and replay (`stages.rl`).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LOG_RATIO_LIMIT = 10.0
INVALID = -1.0


def ndcg(gains: Sequence[float]) -> float:
    """NDCG of a whole list whose candidates have these gains, best first; some gain is above 0.

    >>> round(ndcg([0.0, 3.0, 1.0]), 4), ndcg([3.0, 1.0, 0.0])
    (0.659, 1.0)
    """
    discount_K = 1.0 / np.log2(np.arange(len(gains)) + 2.0)
    made, best = np.asarray(gains, np.float64), -np.sort(-np.asarray(gains, np.float64))
    return float(made @ discount_K) / float(best @ discount_K)


def reward(
    order: Sequence[int],
    failures: Sequence[str],
    target: int,
    k: int,
    alpha: float,
    gains: Sequence[float] | None = None,
) -> float:
    """Reward of one output; `target` is the target's position in the shown list, `gains` are its
    candidates'.

    >>> reward([2, 0, 1], (), 2, 3, .2), reward([0, 1, 2], (), 2, 3, .2)
    (0.8666666666666667, 0.0)
    >>> reward([0, 1, 2], (), 0, 3, .2), reward([0, 0, 1], ("duplicate", "missing"), 2, 3, .2)
    (0.2, -1.0)
    >>> round(reward([1, 2, 0], (), 1, 3, 0.2, [0.0, 3.0, 1.0]), 4)  # .6590 became 1
    0.541
    """
    if failures:
        return INVALID
    if gains is None:
        after = list(order).index(target)
        gained, kept = (target - after) / k, target == after == 0
    else:
        before, now = ndcg(gains), ndcg([gains[at] for at in order])
        gained, kept = now - before, before == now == 1.0
    return gained + (alpha if gained > 0 or kept else 0.0)


def overlong_penalty(length: int, limit: int, cache: int) -> float:
    """DAPO's soft over-long shaping: 0 up to limit − cache, then linear down to −1 at the limit.

    >>> [overlong_penalty(n, 100, 20) for n in (80, 90, 100)]
    [0.0, -0.5, -1.0]
    """
    free = limit - cache
    if length <= free:
        return 0.0
    return max(-1.0, (free - length) / cache) if cache else -1.0


def advantages(reward_PG: np.ndarray, eps: float = 1e-4) -> tuple[np.ndarray, np.ndarray]:
    """(A [P, G], kept [P]): (R − mean) / (std + eps) per group; std with G − 1, as in TRL.

    >>> a, kept = advantages(np.array([[1., 0.], [.5, .5]]))
    >>> a.round(3).tolist(), kept.tolist()
    ([[0.707, -0.707], [0.0, 0.0]], [True, False])
    """
    mean_P1 = reward_PG.mean(1, keepdims=True)
    std_P1 = reward_PG.std(1, ddof=1, keepdims=True)
    kept_P = std_P1[:, 0] > 1e-9
    return np.where(kept_P[:, None], (reward_PG - mean_P1) / (std_P1 + eps), 0.0), kept_P


def clipped_objective(
    logp_N: Tensor, old_logp_N: Tensor, advantage_N: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss per token [N], clipped-low [N], clipped-high [N]); the loss is minimised."""
    log_ratio_N = (logp_N - old_logp_N).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio_N = log_ratio_N.exp()
    clipped_N = ratio_N.clamp(1.0 - low, 1.0 + high)
    loss_N = -torch.minimum(ratio_N * advantage_N, clipped_N * advantage_N)
    too_low_N = (ratio_N < 1.0 - low) & (advantage_N < 0)
    too_high_N = (ratio_N > 1.0 + high) & (advantage_N > 0)
    return loss_N, too_low_N, too_high_N
