"""From a raw order to a permutation: failure kinds and the two repair policies.

Contract: `classify` names every way in which a written order is not a permutation of range(k);
`repair` and `keep_floor` return a permutation whatever they are given. Raw
validity is what `classify` says, before any repair. Not here: reading tokens (`compact`, `gr2`).
"""

from collections.abc import Sequence

import numpy as np

from diffgr2.types import FAILURES, Answer

OUT_OF_SET = -1
"""Stands in an order for something that is no candidate of the request."""


def classify(order: Sequence[int], k: int) -> tuple[str, ...]:
    """Failure kinds of a parsed order, in FAILURES' order.

    >>> classify([0, 2, 2, -1], 3)
    ('duplicate', 'missing', 'out_of_set')
    """
    inside = [position for position in order if 0 <= position < k]
    distinct = len(set(inside))
    found = {
        "out_of_set": len(inside) < len(order),
        "duplicate": distinct < len(inside),
        "missing": distinct < k,
    }
    return tuple(kind for kind in FAILURES if found.get(kind))


def make_answer(order: Sequence[int], k: int, reasoning: str = "") -> Answer:
    """An answer from a parsed order."""
    return Answer(tuple(int(p) for p in order), classify(order, k), reasoning)


def repair(order: Sequence[int], k: int) -> np.ndarray:
    """Drop duplicates and strangers, append the missing in floor order.

    >>> repair([2, 2, 7], 4).tolist()
    [2, 0, 1, 3]
    """
    kept = list(dict.fromkeys(p for p in order if 0 <= p < k))
    rest = sorted(set(range(k)) - set(kept))
    return np.array(kept + rest, dtype=np.int64)


def keep_floor(order: Sequence[int], k: int) -> np.ndarray:
    """The paper's policy: an invalid order counts as the floor."""
    return np.arange(k) if classify(order, k) else np.array(order, dtype=np.int64)


POLICIES = {"repair": repair, "floor": keep_floor}
