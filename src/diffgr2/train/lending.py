"""A model under training as rollouts decode with it: the weights as they are now, in one piece.

Contract: `lent(model)` gives the module that rolls out, in eval mode and without gradients, and the
`Whole` that its parts are read with (`model.whole`). One process lends the model itself. Of a
sharded one a part is gathered when it is read, each shard rounded first to the precision of what
computes, and given up behind it: what a reader keeps is all that stands. Reading is collective, and
begins when all ranks have come; decoding is not: rollouts have uneven lengths. `policy(model)` is
the backend that has read all of it. Not here: how ranks share the rollouts (`shares`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffgr2.model.backend import Backend
from diffgr2.model.backends import backend_of
from diffgr2.model.whole import HERE, Whole
from diffgr2.train import dist


@dataclass(frozen=True)
class Gathered:
    """See `model.whole.Whole`, of a hollow module whose weights lie sharded elsewhere."""

    shards: dict[int, Tensor]  # of each of the hollow module's parameters, by identity

    @contextmanager
    def __call__(self, part: nn.Module, /) -> Iterator[None]:
        mine = list(part.parameters())
        with torch.no_grad():
            for parameter in mine:
                parameter.data = dist.full(self.shards[id(parameter)].to(parameter.dtype))
        try:
            yield
        finally:
            for parameter in mine:
                parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)


@contextmanager
def lent(model: nn.Module) -> Iterator[tuple[nn.Module, Whole]]:
    """See the module's docstring."""
    inner, whole = dist.twin(model), HERE
    if inner is not model:
        shards = dist.unique_tensors(model)
        whole = Gathered({id(p): shards[name] for name, p in inner.named_parameters()})
        dist.meet()
    training = inner.training
    inner.eval()
    try:
        with torch.no_grad():
            yield inner, whole
    finally:
        inner.train(training)


@contextmanager
def policy(model: Any) -> Iterator[Backend]:
    """The model as it is now, ready to decode."""
    with lent(model) as (inner, whole):
        yield backend_of(inner, whole=whole)
