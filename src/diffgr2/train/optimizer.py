"""What turns gradients into steps: AdamW alone, or Muon for the hidden matrices beside it.

Contract: `Optimizer` is one or two of torch's optimizers over disjoint parameters, on one schedule;
Muon's peak is its own, in AdamW's units (at one rate both move a weight about as far). `state_of`
is a parameter's state, which is all that a checkpoint stores. Muon orthogonalises whole matrices,
so it takes the matrices inside decoder layers; embeddings, which are tables of rows, norms and
biases stay with AdamW. Not here: the schedule (`loop`).
"""

from typing import Any

import torch
from torch import Tensor, nn

from diffgr2.config import TrainConfig
from diffgr2.errors import ConfigError
from diffgr2.train import dist

BETAS = (0.9, 0.95)
MOMENTUM = 0.95


class Optimizer:
    """See the module's docstring."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        matrices = _hidden(model) if config.optimizer == "muon" else []
        if matrices and dist.is_sharded(model):
            raise ConfigError(
                "optimizer: muon works in one process, several need adamw "
                "(--set sft.optimizer=adamw cft.optimizer=adamw)"
            )
        taken = {id(p) for p in matrices}
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
        groups = [
            # Norm gains and biases are scales, not features: no decay.
            {"params": [p for p in rest if p.dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
        ]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=config.lr, betas=BETAS, fused=True)
        ]
        self._share = [1.0, config.muon_lr / config.lr]  # of the schedule's rate
        if matrices:
            how: dict[str, Any] = {"momentum": MOMENTUM, "adjust_lr_fn": "match_rms_adamw"}
            decay = config.weight_decay * config.lr / config.muon_lr  # as fast as the others'
            self.parts.append(torch.optim.Muon(matrices, config.lr, weight_decay=decay, **how))
        self._part_of = {
            id(p): part
            for part in self.parts
            for group in part.param_groups
            for p in group["params"]
        }

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def step(self, rate: float) -> None:
        """One update at this rate of the schedule."""
        for part, share in zip(self.parts, self._share, strict=False):
            for group in part.param_groups:
                group["lr"] = rate * share
            part.step()

    def state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """Moments and counts, to read and to fill; empty before the first step."""
        part = self._part_of.get(id(parameter))
        return {} if part is None else part.state[parameter]


def _hidden(model: nn.Module) -> list[nn.Parameter]:
    """The trained matrices inside the layers of the model's lists of layers."""
    layers = [layer for m in model.modules() if isinstance(m, nn.ModuleList) for layer in m]
    found = [p for layer in layers for p in layer.parameters() if p.requires_grad and p.dim() == 2]
    return list({id(p): p for p in found}.values())
