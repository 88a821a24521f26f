"""The one way in which weights reach a forward of ours: part by part.

Contract: a `Whole` makes a part of a model whole: within `whole(part)` the weights of that part are
there, in the precision that computes; behind it they may be gone. A reader takes each part once, in
the module's order, and keeps what it needs: `detach()` is enough, so a gathered tensor is not
copied. `HERE` is for models that stand whole anyway; whoever reads those shares their memory. Every
process of a group reads the same parts in the same order. Not here: gathering (`train.lending`).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from torch import nn


class Whole(Protocol):
    """See the module's docstring."""

    def __call__(self, part: nn.Module, /) -> AbstractContextManager[Any]: ...


HERE: Whole = nullcontext


def parts_of(module: Any) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a stock model and their names: tables, layers one by one, the last norm."""
    inner = module.model
    yield "model.embed_tokens", inner.embed_tokens
    for number, layer in enumerate(inner.layers):
        yield f"model.layers.{number}", layer
    yield "model.norm", inner.norm
    yield "lm_head", module.lm_head
