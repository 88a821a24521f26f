"""Several processes that train or search together, as a retriever sees them.

Contract: `Ranks` is this process's number among how many, and two collectives: `gather` gives every
process all processes' values in order, `add` sums a tensor in place. `ALONE` is one process. Not
here: who starts the processes and how they talk (the training room, which stands above this one).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """One process among others."""

    rank: int = 0
    size: int = 1
    gather: Callable[[Any], list[Any]] = lambda value: [value]
    add: Callable[[Tensor], object] = lambda tensor: None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, n: int) -> slice:
        """This process's part of n things; the parts follow each other."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)


ALONE = Ranks()


@dataclass(frozen=True)
class ShareOfNoise:
    """The bytes of this process's rows, out of those that one process would draw for all rows."""

    source: np.random.Generator
    rows: int  # of the whole batch
    mine: slice

    def bytes(self, count: int) -> bytes:
        row = count // (self.mine.stop - self.mine.start)
        return self.source.bytes(row * self.rows)[row * self.mine.start : row * self.mine.stop]
