"""What a loss of ours has to agree with: a plain one, in value and gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def assert_same_loss(
    loss: torch.Tensor, wanted: torch.Tensor, leaves: Sequence[torch.Tensor], scale: float = 1.0
) -> None:
    """Both in value and, multiplied by `scale`, in the gradients of these leaves."""
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-4)
    ours = torch.autograd.grad(loss * scale, leaves)
    theirs = torch.autograd.grad(wanted * scale, leaves)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
