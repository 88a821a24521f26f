"""How many bytes torch holds at most while something runs, by its own account of every allocation.

Contract: `peak(work)` runs it and returns the most that was allocated above what stood before, on
the CPU: torch's profiler reports each allocation and release with its size, in order. What earlier
work left for the garbage collector goes first, or its release would count against this one. Not
here: what Python or a library holds beside tensors.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def peak(work: Callable[[], object]) -> int:
    """Bytes of the highest moment, above those of the beginning."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    found = seen.profiler
    assert found is not None
    assert found.kineto_results is not None
    events: list[Any] = [e for e in found.kineto_results.events() if e.name() == "[memory]"]
    assert events, "nothing was allocated"
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


def held(tensors: Iterable[Tensor]) -> int:
    """Bytes of these tensors, each storage once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
