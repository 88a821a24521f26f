"""Tiny models with adapters, and what an adapter means, spelled out position by position.

Contract: `reference(module, adapter, arrays)` is a plain model whose target matrices are, for each
position by itself, the base's or the sum of base and adapter, so that autograd and the stock
forward give what any faster forward must. Not here: anything of `model.gated`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffgr2.model.adapter import Adapter, matrices
from diffgr2.model.family import sizes_of
from support.tiny_qwen import VOCAB

MASK = VOCAB - 1
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GATED = Adapter(3, 5.0, ALL, MASK)


def drawn(module: Any, adapter: Adapter, seed: int = 0) -> dict[str, np.ndarray]:
    """Factors that change what a model writes: none of them zero."""
    rng = np.random.default_rng(seed)
    shapes = adapter.shapes(sizes_of(module.config.to_dict()))
    return {n: rng.normal(0, 0.2, shape).astype(np.float32) for n, shape in shapes.items()}


class _ByPosition(nn.Module):
    def __init__(self, plain: nn.Linear, low: Tensor, high: Tensor, adapter: Adapter, asked: list):
        super().__init__()
        self.plain, self.adapter, self.asked = plain, adapter, asked
        self.low, self.high = nn.Parameter(low), nn.Parameter(high)

    def forward(self, x_BTD: Tensor) -> Tensor:
        base = self.plain.weight
        whole = base + (self.adapter.alpha / self.adapter.rank) * (self.high @ self.low)
        rows = []
        for x_TD, ids_T in zip(x_BTD, self.asked[-1].tolist(), strict=True):
            every = self.adapter.mask_id is None
            out = [
                (whole if every or token == self.adapter.mask_id else base) @ x_D
                for x_D, token in zip(x_TD, ids_T, strict=True)
            ]
            rows.append(torch.stack(out))
        made = torch.stack(rows)
        return made if self.plain.bias is None else made + self.plain.bias


def reference(module: Any, adapter: Adapter, arrays: Mapping[str, np.ndarray]) -> Any:
    """See the module's docstring; the module itself stays as it is."""
    twin, asked = copy.deepcopy(module).requires_grad_(False), []
    for name in matrices(sizes_of(module.config.to_dict())):
        parent, _, last = name.rpartition(".")
        if last in adapter.targets:
            low, high = (torch.from_numpy(arrays[f"{name}.lora_{w}.weight"].copy()) for w in "AB")
            owner = twin.get_submodule(parent)
            setattr(owner, last, _ByPosition(getattr(owner, last), low, high, adapter, asked))
    twin.model.register_forward_pre_hook(
        lambda _, args, kwargs: asked.append(kwargs["input_ids"]), with_kwargs=True
    )
    return twin


def gradients_of(twin: Any) -> dict[str, Tensor]:
    """A reference's gradients, by the names of the factors."""
    found = {}
    for name, part in twin.named_modules():
        if isinstance(part, _ByPosition):
            assert part.low.grad is not None
            assert part.high.grad is not None
            found |= {f"{name}.lora_A.weight": part.low.grad}
            found |= {f"{name}.lora_B.weight": part.high.grad}
    return found
