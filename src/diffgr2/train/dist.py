"""One process or several: the same loop under `torchrun`, weights sharded by FSDP2.

Contract: without a process group every function here is the identity, so the loop has one code
path. With one, `shard` splits the parameters over the ranks, `full` gathers a tensor back, and
`rollout_model` lends an ordinary replicated copy: rollouts have uneven lengths, and a collective
inside them would wait for ever.
Run: `torchrun --nproc-per-node 2 -m diffgr2.cli run RECIPE`; `start` picks gloo on CPUs and nccl
on GPUs. Not here: what is trained (`loop`) and where it is stored (`checkpoint`).
"""

import copy
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
import torch.distributed as td
from torch import Tensor, nn
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from diffgr2.config import TrainConfig
from diffgr2.errors import CheckpointError

_TWINS: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


@dataclass(frozen=True)
class World:
    """Who this process is among how many."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0


def world() -> World:
    """This process's place; (0, 1) without a process group."""
    return World(td.get_rank(), td.get_world_size()) if td.is_initialized() else World()


def start() -> World:
    """Join the process group that torchrun describes, if there is one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not td.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        td.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return world()


def stop() -> None:
    """Leave the process group, all ranks together: one that leaves early takes the others down."""
    if td.is_initialized():
        td.barrier()
        td.destroy_process_group()


def leave(code: int = 0) -> NoReturn:
    """End a process that was launched as one of several.

    gloo's threads outlive the group for as long as a sharded model is referenced. One that asks for
    the interpreter while it shuts down aborts the process, so a rank leaves without that part.
    """
    stop()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def unique_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, a tied one under its first name only."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(p, DTensor) for p in model.parameters())


def policy_of(config: TrainConfig) -> MixedPrecisionPolicy:
    """What is gathered and reduced in which precision.

    What autocast would round at every product is rounded before it is gathered, at half the bytes;
    gradients are summed over ranks in fp32, and each rank's shard stays fp32.
    """
    if "bf16" not in (config.precision, config.weights):
        return MixedPrecisionPolicy()
    half, inputs = torch.bfloat16, config.weights == "bf16"
    return MixedPrecisionPolicy(half, torch.float32, cast_forward_inputs=inputs)


def shard(model: nn.Module, config: TrainConfig | None = None) -> None:
    """Split the parameters over all ranks, in place; a no-op for one process.

    A frozen parameter is split like a trained one, and has no gradient and no optimizer state.

    Units: each entry of a ModuleList (decoder layers), then each child of the model (trunk, head)
    as a root of its own, so that a task may call trunk and head apart. It must call the modules:
    `F.linear(x, model.lm_head.weight)` would see a shard. Tied weights make the model one unit,
    whose weights are whole only inside its own call or inside `model.around(work)`.
    """
    if world().size == 1 or is_sharded(model):
        return
    policy = MixedPrecisionPolicy() if config is None else policy_of(config)
    half = config is not None and config.weights == "bf16"
    twin = hollow(model, torch.bfloat16 if half else None)
    tied = len(unique_tensors(model)) < len(model.state_dict())
    own = next(model.parameters(recurse=False), None) is not None
    for module in list(model.modules()):
        if isinstance(module, nn.ModuleList):
            for layer in module:
                fully_shard(layer, mp_policy=policy)
    children = [c for c in model.children() if not isinstance(c, nn.ModuleList)]
    for unit in [model] if tied or own else children:
        if next(unit.parameters(), None) is not None:
            fully_shard(unit, mp_policy=policy)
    if tied or own:
        model.around = lambda work: work()  # type: ignore[assignment]
        register_fsdp_forward_method(model, "around")
    _TWINS[model] = twin


def hollow(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """A copy of the module whose parameters hold nothing, of a type of their own; ties are kept."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = torch.empty(0, dtype=dtype or parameter.dtype, device=parameter.device)
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=False)
    return copy.deepcopy(model, memo)


def _drop_weights(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)


def full(tensor: Tensor) -> Tensor:
    """The whole tensor, detached; a collective for a sharded one, no copy otherwise."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def place_like(whole: Tensor, like: Tensor) -> Tensor:
    """`whole` on the device and with the sharding of `like`; every rank holds `whole`."""
    whole = whole.to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
    return whole


def full_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All weights in full, by name: what a stage writes (on the first rank) after `fit`."""
    return {name: full(tensor) for name, tensor in unique_tensors(model).items()}


@contextmanager
def rollout_model(model: nn.Module) -> Iterator[nn.Module]:
    """The model to roll out with: in eval mode, without gradients, free of collectives."""
    inner = _TWINS.get(model, model)
    training = inner.training
    try:
        if inner is not model:
            mine = unique_tensors(inner)
            for name, tensor in unique_tensors(model).items():
                mine[name].data = full(tensor).to(mine[name].dtype)
        inner.eval()
        with torch.no_grad():
            yield inner
    finally:
        inner.train(training)
        if inner is not model:
            _drop_weights(inner)


def gather(value: Any) -> list[Any]:
    """Every rank's value, in rank order, on every rank."""
    answers = [value] * world().size
    if len(answers) > 1:
        td.all_gather_object(answers, value)
    return answers


def on_first(work: Callable[[], Any]) -> Any:
    """Run `work` on the first rank; all ranks get its result, or an error."""
    answer: Any = None
    failure: Exception | None = None
    if world().first:
        try:
            answer = work()
        except Exception as error:  # told to the other ranks, then raised here as it was
            failure = error
    answer, problem = gather((answer, failure and str(failure)))[0]
    if failure is not None:
        raise failure
    if problem is not None:
        raise CheckpointError(f"first process: {problem}")
    return answer
