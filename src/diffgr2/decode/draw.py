"""From logits to probabilities and tokens: the checks and the one sampling function.

Contract: `prepare` turns raw logits into log-probabilities with the mask id at −inf, or raises a
DecodeError for logits that no distribution has (NaN, +inf, nothing finite); `draw` picks tokens
greedily or by inverse transform from given uniforms, so that randomness stays with the caller.
Not here: which positions commit (`accept`).
"""

import numpy as np
import torch
from torch import Tensor

from diffgr2.errors import DecodeError

IMPOSSIBLE = -1e30
"""Stands for −inf where a renormalisation must stay defined."""


def prepare(logits_BTV: Tensor, mask_id: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """(log-probabilities in fp32, top token [B, T], its log-probability); overwrites fp32 input."""
    logits_BTV = logits_BTV.float()
    logits_BTV[..., mask_id] = -torch.inf
    logp_BTV = torch.log_softmax(logits_BTV, -1)
    if logp_BTV.device.type == "cpu":  # five times faster than torch's maximum with indices
        logp = logp_BTV.numpy()
        top_BT = logp.argmax(-1)  # the lowest id of equals
        top_logp_BT = np.take_along_axis(logp, top_BT[..., None], -1)[..., 0]
    else:
        top_logp_BT, top_BT = (part.cpu().numpy() for part in logp_BTV.max(-1))
    # A softmax over NaN, over +inf, or over nothing finite is NaN everywhere.
    if np.isnan(top_logp_BT).any():
        raise DecodeError("logits hold NaN, +inf or no finite value: the model's output is broken")
    return logp_BTV, top_BT, top_logp_BT


def tempered(logp_TV: Tensor, temperature: float) -> Tensor:
    """Log-probabilities at a temperature (0 and 1 leave them as they are)."""
    if temperature in (0.0, 1.0):
        return logp_TV
    return torch.log_softmax(logp_TV / temperature, -1)


def among(logp_TA: Tensor) -> Tensor:
    """Log-probabilities renormalised over A allowed tokens; uniform if all had probability zero."""
    return torch.log_softmax(logp_TA.clamp_min(IMPOSSIBLE), -1)


def draw(logp_TV: Tensor, uniform_T: np.ndarray | None) -> Tensor:
    """Tokens [T]: the most likely ones, or by inverse transform of one uniform per position.

    Ties go to the lowest id; a token of probability zero is never drawn.
    """
    if uniform_T is None:
        return logp_TV.argmax(-1)
    # NumPy has a tenth of torch's overhead per call on arrays of this size.
    logp = logp_TV.cpu().numpy()
    cumulative_TV = np.cumsum(np.exp(logp, dtype=np.float64), axis=-1)
    total_T = cumulative_TV[:, -1]
    target_T = np.minimum(uniform_T * total_T, np.nextafter(total_T, 0.0))  # never past the last
    return torch.from_numpy((cumulative_TV <= target_T[:, None]).sum(-1)).to(logp_TV.device)


def entropy(logp_TV: Tensor) -> Tensor:
    """Entropy [T] in nats; −inf log-probabilities count 0."""
    return -(logp_TV.exp() * logp_TV.masked_fill(logp_TV == -torch.inf, 0.0)).sum(-1)
