"""The memory that a model's CUDA graphs share, for as long as there are any.

Contract: torch gives a pool back when the last graph in it is freed, and nothing may be recorded
into it again. So each graph holds its `Pool`, and `Pools` gives out the one that graphs live in, or
a new one where none does. Not here: recording and replaying (`static`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import ref

import torch


class Pool:
    """One pool; whoever records into it holds it together with the graph."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle


class Pools:
    """See the module's docstring."""

    def __init__(self, handle: Callable[[], Any] | None = None) -> None:
        self._handle = handle or torch.cuda.graph_pool_handle
        self._last: ref[Pool] | None = None

    def get(self) -> Pool:
        """What graphs live in now; a new one if they are all gone."""
        pool = None if self._last is None else self._last()
        if pool is None:
            pool = Pool(self._handle())
            self._last = ref(pool)
        return pool
