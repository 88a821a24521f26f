"""Soft targets: a list's strengths against the worth that its teacher gave each candidate.

Contract: a strength stands at M places, several of which belong to one list. `expected_levels` is
the mean level under a model's distribution over levels alone, as decoders read it; `listwise_kl` is
KL(softmax of the teacher's worth ‖ softmax of the strengths) of every list, both in the units of
the teacher's score: a level is worth `step`. A shift of all strengths of a list changes nothing:
what a level says by itself is learned elsewhere (`likelihood`). Not here: which places those are
(`stages.batches`), sums over lists.

Letters: M places of strengths, S levels, Q lists, W places of the longest list.
"""

import torch
from torch import Tensor

from diffgr2.objectives.divergence import kl


def expected_levels(logits_MS: Tensor) -> Tensor:
    """Mean level [M] of distributions over levels 0 to S − 1."""
    level_S = torch.arange(logits_MS.shape[-1], device=logits_MS.device, dtype=logits_MS.dtype)
    return (torch.softmax(logits_MS, -1) * level_S).sum(-1)  # a product of matrices would be bf16


def listwise_kl(level_M: Tensor, wanted_M: Tensor, list_M: Tensor, step: float) -> Tensor:
    """KL [Q] of every list, in the order of their numbers; `list_M` need not be sorted.

    >>> wanted = torch.tensor([1.0, 3.0, 0.0, 2.0])
    >>> listwise_kl(wanted + 1, wanted, torch.tensor([4, 4, 9, 9]), 0.5).tolist()
    [0.0, 0.0]
    """
    if not len(list_M):
        return level_M.new_zeros(0)
    number_M = torch.unique(list_M, return_inverse=True)[1]
    length_Q = torch.bincount(number_M)
    order_M = torch.argsort(number_M, stable=True)
    row_M = number_M[order_M]
    at_M = torch.arange(len(row_M), device=row_M.device) - (length_Q.cumsum(0) - length_Q)[row_M]
    shape = (len(length_Q), int(length_Q.max()))

    def logp_of(value_M: Tensor) -> Tensor:
        empty_QW = value_M.new_full(shape, -torch.inf)
        score_QW = empty_QW.index_put((row_M, at_M), step * value_M[order_M])
        return torch.log_softmax(score_QW, -1)

    return kl(logp_of(wanted_M), logp_of(level_M))
