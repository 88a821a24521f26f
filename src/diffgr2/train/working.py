"""The model that computes, where that is not the one whose weights are kept.

Contract: `prepare` sets a stock model up as its config says: attention over joined rows, layers
that are computed again on the way back, frozen weights in bf16. `Working(model, config).net` is
what a task is given. With `weights: bf16` in one process it is a copy in bf16 beside an fp32
master: gradients of each weight are added to the master's in fp32 as soon as they are made, the
optimizer steps the master, and `refresh` rounds it again. Frozen weights are shared by both, so a
run that trains few of them holds the others once, in two bytes. Sharded models need no copy: FSDP2
rounds what it gathers (`dist.policy_of`). Not here: which weights are trained (`requires_grad`).
"""

import copy
import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from diffgr2.config import TrainConfig
from diffgr2.model import joined
from diffgr2.model.family import FAMILIES, sizes_of
from diffgr2.model.gated import Kept
from diffgr2.train import dist


def prepare(model: Any, config: TrainConfig) -> None:
    """Before the model is sharded; what the recipe leaves alone stays as it is.

    A frozen model beside the one that is trained is set up alike, so that they differ by what was
    learned only. Weights alone are rounded: tables of positions would lose their places in bf16.
    """
    stock = getattr(getattr(model, "config", None), "model_type", None) in FAMILIES
    if stock and (config.attention == "flex" or (config.attention == "auto" and _flexible(model))):
        joined.use(model)
    if config.checkpoint_activations:
        recompute(model)
    if config.weights == "bf16":
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()


def _flexible(model: Any) -> bool:
    """Whether flex attention may be taken unasked: on GPUs that are seen to get it right."""
    if next(model.parameters()).device.type != "cuda":
        return False
    own = sizes_of(model.config.to_dict())
    doubt = joined.trusted(own.head_dim, own.kv_heads, own.heads)
    if doubt:
        warnings.warn(
            f"attention: auto is dense here; flex attention failed ({doubt})", stacklevel=2
        )
    return not doubt


def recompute(model: nn.Module) -> None:
    """Layers keep their input alone and are computed again on the way back; none draws numbers."""
    how: dict[str, Any] = {"preserve_rng_state": False, "context_fn": _contexts}
    again: Any = partial(checkpoint, use_reentrant=False, **how)
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.gradient_checkpointing = True
            module._gradient_checkpointing_func = again


def _contexts() -> tuple[AbstractContextManager[None], Kept]:
    """What surrounds a layer the first time and the second."""
    return nullcontext(), Kept()


class Working:
    """See the module's docstring."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.net = model
        self._pairs: list[tuple[Tensor, Tensor]] = []  # (rounded, master)
        if config.weights == "fp32" or dist.is_sharded(model):
            return
        memo: dict[int, Any] = {}
        for master in model.parameters():
            memo[id(master)] = master
            if master.requires_grad:
                rounded = nn.Parameter(master.detach().bfloat16())
                rounded.register_post_accumulate_grad_hook(_handed_to(master))
                memo[id(master)] = rounded
                self._pairs.append((rounded, master))
        self.net = copy.deepcopy(model, memo)

    @torch.no_grad()
    def refresh(self) -> None:
        """After the master has changed."""
        for rounded, master in self._pairs:
            rounded.copy_(master)


def _handed_to(master: Tensor) -> Any:
    def hand(rounded: Tensor) -> None:
        assert rounded.grad is not None
        gradient, rounded.grad = rounded.grad.float(), None
        master.grad = gradient if master.grad is None else master.grad.add_(gradient)

    return hand
