"""Cross-entropy over all items and over a sample of them, without logits that exist as a whole.

Contract: `FullCrossEntropy` is the sum over positions of the exact loss, `SampledCrossEntropy` has
a sample in the catalogue's place, each item counted as often as it is told, so that the sum of
exponentials is right on average; with every item once it is the exact loss. Both make their
gradients in the forward pass, chunk by chunk. Not here: which items are drawn (`sampled`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LOGIT_ROWS = 256  # positions whose logits exist at one time


class FullCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies over all items; gradients are made in the forward pass.

    The N x I logits never exist as a whole and are computed once instead of twice.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden_NC: Tensor, weight_IC: Tensor, target_N: Tensor, bf16: bool
    ) -> Tensor:
        kind = torch.bfloat16 if bf16 else torch.float32
        weight = weight_IC.to(kind)
        grad_NC, grad_IC = torch.empty_like(hidden_NC), torch.zeros_like(weight_IC)
        loss = torch.zeros((), dtype=torch.float64, device=target_N.device)
        for begin in range(0, len(target_N), LOGIT_ROWS):
            rows = slice(begin, begin + LOGIT_ROWS)
            hidden, target = hidden_NC[rows].to(kind), target_N[rows]
            p_RI = torch.softmax(hidden @ weight.T, 1)
            own_R = p_RI.gather(1, target[:, None]).float()
            loss -= own_R.clamp_min(1e-30).log().double().sum()
            p_RI.scatter_(1, target[:, None], (own_R - 1.0).to(kind))
            grad_NC[rows] = (p_RI @ weight).float()
            if bf16:
                grad_IC += (p_RI.T @ hidden).float()
            else:
                grad_IC.addmm_(p_RI.T, hidden)
        ctx.save_for_backward(grad_NC, grad_IC)
        return loss.float()

    @staticmethod
    def backward(ctx: Any, scale: Tensor):  # type: ignore[override]
        grad_NC, grad_IC = ctx.saved_tensors
        return grad_NC * scale, grad_IC * scale, None, None


class SampledCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies over target and sample; gradients are made in the forward pass.

    All items are rows of a table of what the batch touches. A target that is also in the sample
    counts once, as the target.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden_NC: Tensor,
        table_RC: Tensor,
        target_N: Tensor,
        sample_M: Tensor,
        weight_M: Tensor,
        bf16: bool,
    ) -> Tensor:
        kind = torch.bfloat16 if bf16 else torch.float32
        sample_MC = table_RC[sample_M].to(kind)
        grad_NC, grad_RC = torch.empty_like(hidden_NC), torch.zeros_like(table_RC)
        grad_MC = torch.zeros_like(sample_MC, dtype=torch.float32)
        # Where in the sample each row of the table stands; the column behind it is for nobody.
        place_R = torch.full((len(table_RC),), len(sample_M), device=target_N.device)
        place_R[sample_M] = torch.arange(len(sample_M), device=target_N.device)
        loss = torch.zeros((), dtype=torch.float64, device=target_N.device)
        for begin in range(0, len(target_N), LOGIT_ROWS):
            rows = slice(begin, begin + LOGIT_ROWS)
            hidden_PC, target_P = hidden_NC[rows], target_N[rows]
            own_PC = table_RC[target_P]
            own_P = (hidden_PC * own_PC).sum(1)
            logit_PM = (hidden_PC.to(kind) @ sample_MC.T).float() + weight_M
            place_P = place_R[target_P]
            hit_P = (place_P < len(sample_M)).nonzero()[:, 0]
            logit_PM[hit_P, place_P[hit_P]] = -torch.inf
            top_P = torch.maximum(logit_PM.amax(1), own_P)
            p_PM = logit_PM.sub_(top_P[:, None]).exp_()
            own_exp_P = (own_P - top_P).exp()
            total_P = p_PM.sum(1) + own_exp_P
            loss += (total_P.log() + top_P - own_P).double().sum()
            p_PM = p_PM.div_(total_P[:, None]).to(kind)
            less_P1 = (own_exp_P / total_P - 1.0)[:, None]
            grad_NC[rows] = (p_PM @ sample_MC).float().addcmul_(less_P1, own_PC)
            grad_MC += (p_PM.T @ hidden_PC.to(kind)).float()
            grad_RC.index_add_(0, target_P, less_P1 * hidden_PC)
        grad_RC.index_add_(0, sample_M, grad_MC)
        ctx.save_for_backward(grad_NC, grad_RC)
        return loss.float()

    @staticmethod
    def backward(ctx: Any, scale: Tensor):  # type: ignore[override]
        grad_NC, grad_RC = ctx.saved_tensors
        return grad_NC * scale, grad_RC * scale, None, None, None, None
