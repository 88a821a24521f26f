"""Adapters in a stock model: under training, and for whoever reads its weights.

Contract: `attach(module, adapter, arrays)` freezes a stock model and gives every target matrix an
adapter (`Adapted`); what trains from then on is the adapters alone. A gated one adds where the
input is the mask token: in the module's own forward by a gate that a hook on the trunk sets, in
forwards of ours (`product`) at the rows that are named. A forward without a mask is the base's, bit
for bit, and in any other the clean positions' products are. With shifted alignment the same holds:
the position that computes decides, by its own input, not the position that is predicted, so a
prediction that stands at a clean token is the base's. `folded` are plain weights that stand for an
adapter that is active everywhere; of a gated one there are none. Not here: files (`adapter`), the
lean forward and the graph, which read what is attached here.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffgr2.model.adapter import Adapter, matrices, refuse_merge
from diffgr2.model.family import sizes_of

MARK = "diffgr2_adapter"
"""The attribute of a module that says which adapter it has."""

_GATE: ContextVar[Tensor | None] = ContextVar("gate", default=None)
"""Where the forward under way is masked, [B, T]; each thread has its own."""


class Adapted(nn.Linear):
    """A frozen product, and what an adapter adds to it."""

    def __init__(self, plain: nn.Linear, adapter: Adapter) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight, self.bias = plain.weight, plain.bias
        self.scale, self.gated = adapter.scale, adapter.mask_id is not None
        how: dict[str, Any] = {"device": plain.weight.device, "dtype": torch.float32}
        self.lora_A = nn.Linear(plain.in_features, adapter.rank, bias=False, **how)
        self.lora_B = nn.Linear(adapter.rank, plain.out_features, bias=False, **how)

    def more(self, x: Tensor) -> Tensor:
        """What is added to the product of x where it is active."""
        return self.lora_B(self.lora_A(x)) * self.scale

    def forward(self, input: Tensor) -> Tensor:
        made = F.linear(input, self.weight, self.bias)
        if not self.gated:
            return made + self.more(input)
        gate_BT = _GATE.get()
        if gate_BT is None:
            return made
        return made + self.more(input) * gate_BT[..., None].to(made.dtype)


class _Gate:
    """Hooks of the trunk: which positions of its input are masked."""

    def __init__(self, mask_id: int) -> None:
        self.mask_id = mask_id

    def open(self, trunk: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids_BT = kwargs.get("input_ids", args[0] if args else None)
        assert ids_BT is not None, "a gated model is asked with token ids"
        masked_BT = ids_BT == self.mask_id
        # Looking costs an accelerator a wait; adding nothing gives the same. In training all
        # processes need a gradient of every weight, also of texts without a mask.
        looks = ids_BT.device.type == "cpu" and not torch.is_grad_enabled()
        none = looks and not bool(masked_BT.any())
        _GATE.set(None if none else masked_BT)

    def close(self, trunk: nn.Module, args: Any, output: Any) -> None:
        _GATE.set(None)


class Kept:
    """A context with the gate of where it was made: a layer that is computed again on the way back,
    in whatever thread, is gated as it was the first time."""

    def __init__(self) -> None:
        self._gate = _GATE.get()

    def __enter__(self) -> None:
        self._token = _GATE.set(self._gate)

    def __exit__(self, *_: object) -> None:
        _GATE.reset(self._token)


def attach(module: Any, adapter: Adapter, arrays: Mapping[str, np.ndarray]) -> Any:
    """See the module's docstring; in place."""
    module.requires_grad_(False)
    for name in matrices(sizes_of(module.config.to_dict())):
        parent, _, last = name.rpartition(".")
        if last not in adapter.targets:
            continue
        owner = module.get_submodule(parent)
        adapted = Adapted(getattr(owner, last), adapter)
        for part in ("lora_A", "lora_B"):
            matrix = getattr(adapted, part).weight
            with torch.no_grad():
                matrix.copy_(torch.from_numpy(arrays[f"{name}.{part}.weight"]))
        setattr(owner, last, adapted)
    if adapter.mask_id is not None:
        gate = _Gate(adapter.mask_id)
        module.model.register_forward_pre_hook(gate.open, with_kwargs=True)
        module.model.register_forward_hook(gate.close, always_call=True)
    setattr(module, MARK, adapter)
    return module


def adapter_in(module: Any) -> Adapter | None:
    """The adapter that a module has."""
    return getattr(module, MARK, None)


def product(matrix: nn.Linear, x_ND: Tensor, masked_M: Tensor | None) -> Tensor:
    """A matrix's product; `masked_M` are the rows at which a gated adapter is active."""
    made = F.linear(x_ND, matrix.weight, matrix.bias)
    if not isinstance(matrix, Adapted):
        return made
    if not matrix.gated:
        return made + matrix.more(x_ND)
    if masked_M is None:
        return made
    return made.index_add(0, masked_M, matrix.more(x_ND[masked_M]).to(made.dtype))


def apart(matrix: nn.Linear) -> bool:
    """Whether an adapter stays beside its matrix: a gated one, and one whose sum with a matrix in
    bf16 would be lost in rounding."""
    half = matrix.weight.dtype != torch.float32
    return isinstance(matrix, Adapted) and (matrix.gated or half)


def factors(matrix: nn.Linear) -> tuple[Tensor, Tensor] | None:
    """A, and B times the scale, of an adapter that stays beside this matrix."""
    if not isinstance(matrix, Adapted) or not apart(matrix):
        return None
    low, high = matrix.lora_A.weight.detach(), matrix.lora_B.weight.detach() * matrix.scale
    return low.to(matrix.weight.dtype), high.to(matrix.weight.dtype)


def folded(matrix: nn.Linear) -> Tensor:
    """The matrix with an adapter on it that is active everywhere, in fp32: what is added is small
    beside it. As it is with a gated one, or none."""
    weight = matrix.weight.detach()
    if not isinstance(matrix, Adapted) or matrix.gated:
        return weight
    high, low = matrix.lora_B.weight.detach().float(), matrix.lora_A.weight.detach().float()
    return weight.float() + matrix.scale * (high @ low)


def plain_state(module: Any) -> dict[str, Tensor]:
    """A module's tensors by name, for a forward that adds gated adapters itself."""
    state = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    for name, part in module.named_modules():
        if isinstance(part, Adapted) and not part.gated:
            state[f"{name}.weight"] = folded(part)
            for which in ("lora_A", "lora_B"):
                del state[f"{name}.{which}.weight"]
    return state


def adapter_arrays(module: Any) -> dict[str, np.ndarray]:
    """The adapter's tensors by name."""
    state = module.state_dict().items()
    return {name: t.detach().float().cpu().numpy() for name, t in state if ".lora_" in name}


def merge(module: Any) -> Any:
    """In place, a plain model in fp32 with the same logits everywhere; refuses a gated adapter."""
    adapter = adapter_in(module)
    if adapter is None:
        return module
    refuse_merge(adapter)
    for name, part in list(module.named_modules()):
        if isinstance(part, Adapted):
            parent, _, last = name.rpartition(".")
            how: dict[str, Any] = {"device": "meta", "bias": part.bias is not None}
            plain = nn.Linear(part.in_features, part.out_features, **how)
            plain.weight, plain.bias = nn.Parameter(folded(part)), part.bias
            setattr(module.get_submodule(parent), last, plain)
    delattr(module, MARK)
    for parameter in module.parameters():  # frozen ones may have been held in bf16
        parameter.data = parameter.data.float()
    return module.requires_grad_(True)
