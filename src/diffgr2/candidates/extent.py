"""How much a data set asks of a retriever, and what is chosen by it.

Contract: pure functions of the recipe's section and the data's size. Below the sizes named here
everything is exact and done by one process; above, `auto` means a loss over a sample of the items
and approximate search, and several processes share the work. All users decide, so that retrievers
of some of them (cross-fitting) are trained as that of all is. Not here: losses and searches.
"""

import numpy as np

from diffgr2.config import RetrieverConfig
from diffgr2.types import Histories

FULL_UP_TO = 10_000_000_000
"""Items times next items of an epoch that a loss over all items takes about 100 CPU-seconds for, at
64 dimensions."""

EXACT_UP_TO = 100_000
"""Items that are all scored for every list in about half a millisecond."""


def positions_of(length_U: np.ndarray, config: RetrieverConfig) -> int:
    """Next items that an epoch over histories of these lengths asks for."""
    return int(np.maximum(np.minimum(length_U, config.max_len + 1) - 1, 0).sum())


def large(histories: Histories, config: RetrieverConfig) -> bool:
    """Whether an epoch over all items is too much for one process."""
    asked = positions_of(histories.lengths_U - 2, config)
    return asked * histories.n_items > FULL_UP_TO


def samples(histories: Histories, config: RetrieverConfig) -> bool:
    """Whether SASRec's loss is over a sample of the items."""
    return large(histories, config) if config.loss == "auto" else config.loss == "sampled"


def approximates(n_items: int, config: RetrieverConfig) -> bool:
    """Whether lists are searched for in a part of the catalogue."""
    return n_items > EXACT_UP_TO if config.search == "auto" else config.search == "approximate"
