"""One process or several: the same loop under `torchrun`, weights sharded by FSDP2.

Contract: without a process group every function here is the identity, so the loop has one code
path. With one, `shard` splits the parameters over the ranks and `full` gathers a tensor back;
`in_shares` has each rank do its part of a list of work, and `gather`, `on_first` and it wait for
the others by looking (`crew`): however long one works, no collective has to last as long.
Run: `torchrun --nproc-per-node 2 -m diffgr2.cli run RECIPE`; `start` picks gloo on CPUs and nccl
on GPUs. Not here: what is trained (`loop`), where it is stored (`checkpoint`), and how weights come
back in one piece for rollouts (`lending`).
"""

import copy
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar
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
from diffgr2.errors import CheckpointError, Diffgr2Error, LostError, first_line
from diffgr2.train.crew import Crew

T = TypeVar("T")

PATIENCE_S = 3.0
"""How long a rank whose collective broke looks for who is gone."""

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


@dataclass
class _Group:
    """This process's own."""

    crew: Crew | None = None


_group = _Group()


def start(timeout_s: float | None = None) -> World:
    """Join the process group that torchrun describes, if there is one.

    The timeout is that of one collective; no waiting for work is within one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not td.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        limit = None if timeout_s is None else timedelta(seconds=timeout_s)
        td.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=limit)
        here = world()
        _group.crew = Crew(here.rank, here.size)
    return world()


def stop() -> None:
    """Leave the process group, all ranks together: one that leaves early takes the others down."""
    crew, _group.crew = _group.crew, None
    if crew is not None:
        crew.part()
    if td.is_initialized():
        td.destroy_process_group()


@contextmanager
def together() -> Iterator[World]:
    """Between `start` and `stop`; an error of one rank ends all of them, with its line."""
    here = start()
    try:
        yield here
    except SystemExit:  # all of them were stopped
        stop()
        raise
    except BaseException as error:
        lost = _abandoned(error)
        if lost is not None:
            raise lost from None
        raise
    stop()


def _abandoned(error: BaseException) -> LostError | None:
    """Leave without the others; who was gone, where that is what broke."""
    crew, _group.crew = _group.crew, None
    if crew is None:
        return None
    # A collective that broke says what it saw of a connection, not that somebody died.
    broken = isinstance(error, RuntimeError) and not isinstance(error, Diffgr2Error)
    lost = crew.lost(PATIENCE_S) if broken else None
    crew.abandon("" if lost or isinstance(error, LostError) else first_line(error))
    with suppress(RuntimeError):
        td.destroy_process_group()
    return lost


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


def twin(model: nn.Module) -> nn.Module:
    """The model whose whole weights compute: its hollow copy where it is sharded, else itself."""
    return _TWINS.get(model, model)


def gather(value: Any) -> list[Any]:
    """Every rank's value, in rank order, on every rank; waits for the last one."""
    answers = [value] * world().size
    if len(answers) > 1:
        meet()
        td.all_gather_object(answers, value)
    return answers


def meet() -> None:
    """Wait for all ranks; what follows may be a collective."""
    if _group.crew is not None:
        _group.crew.meet()


def share(n: int, here: World | None = None) -> range:
    """This rank's part of n pieces of work: neighbours stay together, sizes differ by one."""
    here = here or world()
    return range(n * here.rank // here.size, n * (here.rank + 1) // here.size)


def in_shares(n: int, work: Callable[[range], Sequence[T]]) -> list[T]:
    """`work(share)` gives a result for each piece of the share; all of them in order, everywhere.

    An error of one rank is an error of all.
    """
    mine = share(n)
    parts = _told(lambda: list(work(mine)))
    return [result for part in parts for result in part]


def on_first(work: Callable[[], Any]) -> Any:
    """Run `work` on the first rank; all ranks get its result, or an error."""
    return _told(work if world().first else lambda: None)[0]


def _told(work: Callable[[], Any]) -> list[Any]:
    """Every rank's answer; an error is told to the others, then raised as it was."""
    answer: Any = None
    failure: Exception | None = None
    try:
        answer = work()
    except Exception as error:
        failure = error
    told = gather((answer, failure and str(failure)))
    if failure is not None:
        raise failure
    for rank, (_, problem) in enumerate(told):
        if problem is not None:
            raise CheckpointError(
                f"{'first process' if rank == 0 else f'process {rank}'}: {problem}"
            )
    return [answer for answer, _ in told]
