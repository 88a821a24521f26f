"""Micros side by side: on a CPU each thread takes whole forwards of a small model.

Contract: `Lanes(model).backward(jobs, loss)` adds the gradients of all jobs to the parameters and
returns what `loss` keeps of each, in their order. Two threads inside a forward of a million weights
bring a fifth at most; two forwards at once take hardly longer than one. Which lane has which job,
and in which order sums are made, follows from their numbers alone, so equal runs stay equal bit for
bit; another number of lanes moves gradients by rounding. `micro_rows` cuts a step into as many
micros as there are lanes. Not here: what a micro is (`loop`), lanes of decoding (`decode.batch`).
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffgr2.config import TrainConfig
from diffgr2.model.ort import SMALL, TINY
from diffgr2.train import dist

Kept = Any


def lanes_of(model: nn.Module) -> int:
    """One per thread, where a forward is too small to be shared and Python is not all its work."""
    weights = list(model.parameters())
    plain = all(w.device.type == "cpu" and w.dtype == torch.float32 for w in weights)
    alone = dist.world().size == 1 and plain
    fits = TINY < sum(weight.numel() for weight in weights) <= SMALL
    return torch.get_num_threads() if alone and fits else 1


def micro_rows(config: TrainConfig, model: nn.Module) -> int:
    """Rows per forward: the recipe's at most, fewer where lanes would stand idle."""
    return min(config.micro_rows, -(-config.rows // lanes_of(model)))


def _settle() -> None:
    """A lane's own settings, which a thread does not take over from another."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


class Lanes:
    """See the module's docstring; close it when the last step is done."""

    def __init__(self, model: nn.Module) -> None:
        self.n = lanes_of(model)
        self._model = model
        self._pool = ThreadPoolExecutor(self.n, "train", _settle) if self.n > 1 else None

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Where there are lanes, whatever torch does here it does with one thread: two would cost
        more than they give. Its number is the process's, not a thread's."""
        before = torch.get_num_threads()
        if self._pool is not None:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def backward(
        self, jobs: Sequence[int], loss: Callable[[int], tuple[Tensor, Kept]]
    ) -> list[Kept]:
        """`loss(job)`: (what is differentiated, what is kept); `at_work` all the while."""
        if self._pool is None or len(jobs) < 2:
            return [self._alone(*loss(job)) for job in jobs]
        wanted = [weight for weight in self._model.parameters() if weight.requires_grad]
        runs = [
            self._pool.submit(_lane, jobs[lane :: self.n], loss, wanted)
            for lane in range(min(self.n, len(jobs)))
        ]
        wait(runs)  # all of them: one that fails must not leave others at work
        kept: dict[int, Kept] = {}
        for run in runs:
            sums, part = run.result()
            kept |= part
            for weight, gradient in zip(wanted, sums, strict=True):
                if gradient is not None:
                    weight.grad = _added(weight.grad, gradient)
        return [kept[job] for job in jobs]

    @staticmethod
    def _alone(total: Tensor, kept: Kept) -> Kept:
        if total.requires_grad:
            total.backward()
        return kept


def _lane(
    jobs: Sequence[int], loss: Callable[[int], tuple[Tensor, Kept]], wanted: Sequence[Tensor]
) -> tuple[list[Tensor | None], dict[int, Kept]]:
    """One lane's jobs: the sum of their gradients, and what is kept of each."""
    sums: list[Tensor | None] = [None] * len(wanted)
    kept: dict[int, Kept] = {}
    for job in jobs:
        total, kept[job] = loss(job)
        if not total.requires_grad:
            continue
        found = torch.autograd.grad(total, wanted, allow_unused=True)
        for at, gradient in enumerate(found):
            if gradient is not None:
                sums[at] = _added(sums[at], gradient)
    return sums, kept


def _added(held: Tensor | None, gradient: Tensor) -> Tensor:
    """Memory of its own: what autograd returns may be a view of one number, or another's, too."""
    return gradient.clone() if held is None else held.add_(gradient)
