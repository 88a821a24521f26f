"""Divergences between teacher and student distributions over the full vocabulary.

Contract: per-position values [N], they and their gradients finite also where both distributions
have zeros (the mask token is −inf on both sides and adds nothing). Directions in words: `forward`
is KL(teacher ‖ student), the student must cover the teacher (paper §3.5); `reverse` is
KL(student ‖ teacher); `jsd` is the generalised Jensen-Shannon divergence with mixture weight β.
Not here: which positions.
"""

import math

import torch
from torch import Tensor


def kl(p_logp_NV: Tensor, q_logp_NV: Tensor) -> Tensor:
    """KL(p ‖ q) [N] from log-probabilities; entries with p = 0 add 0."""
    empty_NV = p_logp_NV == -torch.inf
    gap_NV = (p_logp_NV - q_logp_NV).masked_fill(empty_NV, 0.0)
    return (p_logp_NV.exp() * gap_NV).sum(-1)


def divergence(
    teacher_logp_NV: Tensor, student_logp_NV: Tensor, kind: str, beta: float = 0.5
) -> Tensor:
    """One of forward, reverse, jsd [N]."""
    if kind == "forward":
        return kl(teacher_logp_NV, student_logp_NV)
    if kind == "reverse":
        return kl(student_logp_NV, teacher_logp_NV)
    # The slope of logaddexp at (−inf, −inf) is NaN, so those entries go round it.
    empty_NV = (teacher_logp_NV == -torch.inf) & (student_logp_NV == -torch.inf)
    mixture_NV = torch.logaddexp(
        teacher_logp_NV.masked_fill(empty_NV, 0.0) + math.log(beta),
        student_logp_NV.masked_fill(empty_NV, 0.0) + math.log1p(-beta),
    ).masked_fill(empty_NV, -torch.inf)
    return beta * kl(teacher_logp_NV, mixture_NV) + (1 - beta) * kl(student_logp_NV, mixture_NV)
