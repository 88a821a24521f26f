"""How a stage without a training loop of its own uses the processes of a torchrun.

Contract: `together(large, work)` is what `work(ranks)` gives on every process: large work is shared
by all of them; what is small is done by the first alone, bit for bit as one process does it, while
the others wait. Not here: what is large (`candidates.extent`).
"""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as td

from diffgr2.candidates.ranks import ALONE, Ranks
from diffgr2.train import dist

T = TypeVar("T")


def together(large: bool, work: Callable[[Ranks], T]) -> T:
    """See the module's docstring."""
    here = dist.world()
    if large and here.size > 1:
        return work(Ranks(here.rank, here.size, dist.gather, td.all_reduce))
    return dist.on_first(lambda: work(ALONE))
