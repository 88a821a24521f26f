"""Group-relative policy gradient: advantages and the clipped token-level objective.

Contract: `advantages` normalises rewards within groups and marks groups without variance, which
carry no gradient and are refilled by the caller; `clipped_objective` is DAPO's (paper §3.6, E.7):
tokens weigh equally over the whole batch, the ratio is clipped at 1 − low and 1 + high. Sums only;
the loop divides by the global token count. Not here: rollouts and replay (`stages.rl`).
"""

import numpy as np
import torch
from torch import Tensor

LOG_RATIO_LIMIT = 10.0


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
