"""Preferences between two texts under a masked model: likelihood bounds, and a loss over them.

Contract: a masked model has no likelihood to compare, only a bound on it, the mean over random
masks of the log-probabilities of what is masked: of a block's L open tokens as many as a uniform
draw from 1 … L says are masked, and each masked one counts L over that many (`bound_masks`,
`bounds`); the estimate is unbiased, and a token that a grammar forced is never masked. With
antithetic draws every second mask is the far end of the order that the first took its near end
from, so that a pair covers all tokens. `preference_loss` is DPO's with these bounds in place of
likelihoods (VRPO of LLaDA 1.5, which shares the draws between policy and reference). Not here:
where pairs come from and whose draws are shared (`stages.preferring`).

Letters: R response tokens, C noisy copies, N predictions, P pairs.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def bound_masks(
    block_R: np.ndarray, open_R: np.ndarray, draws: int, rng: np.random.Generator, antithetic: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(masked [C, R], weight [C, R]) of so many draws; weights are 0 where nothing is masked.

    The bound's estimate is the sum of weight × log-probability over what is masked.
    """
    weight_CR = np.zeros((draws, len(block_R)))
    for block in np.unique(block_R):
        own = np.flatnonzero((block_R == block) & open_R)
        size = len(own)
        for c in range(0, draws, 2 if antithetic else 1) if size else ():
            count, order = int(rng.integers(1, size + 1)), rng.permutation(own)
            weight_CR[c, order[:count]] = size / count
            if antithetic and c + 1 < draws:
                weight_CR[c + 1, order[count - 1 :]] = size / (size + 1 - count)
    return weight_CR > 0, weight_CR / draws


def bounds(logp_N: Tensor, weight_N: Tensor, text_N: Tensor, n_texts: int) -> Tensor:
    """The estimated bound of every text [n_texts] from its masked tokens' log-probabilities."""
    zero = torch.zeros(n_texts, dtype=logp_N.dtype, device=logp_N.device)
    return zero.index_add(0, text_N, logp_N * weight_N.to(logp_N.dtype))


def preference_loss(policy_P2: Tensor, reference_P2: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """(loss [P], margin [P]) of pairs (preferred, other), given bounds of both under both models.

    By hand: policy gains (2, −1) on the reference with β = .5: margin .5 · 3 = 1.5, loss
    −log σ(1.5) = .2014.
    """
    gain_P2 = policy_P2 - reference_P2
    margin_P = beta * (gain_P2[:, 0] - gain_P2[:, 1])
    return -F.logsigmoid(margin_P), margin_P.detach()
