"""What a response says, read back: strengths, cited evidence, and a permutation where one stands.

Contract: a `Reading` is what every read-out, table and sentence is made of. `levels_K` are expected
strengths where the decoder knew the distribution, the written levels otherwise, NaN for a candidate
that was not judged. `said_order` is the ranking they imply: ties, and what was not judged, in floor
order. Not here: reading tokens (`compact`, `gr2`), English (`english`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from diffgr2.config import Answering
from diffgr2.types import Answer


@dataclass(frozen=True)
class Reading:
    """One response; fields are numbers of evidence fields, in the order in which they stand."""

    levels_K: np.ndarray  # float64
    cites: tuple[tuple[int, ...], ...]  # of each candidate
    written: Answer | None = None  # the permutation, where the response has one
    told: str = ""  # free text in the model's own words

    @property
    def complete(self) -> bool:
        """Every candidate was judged."""
        return not bool(np.isnan(self.levels_K).any())

    def answer(self, how: Answering) -> Answer:
        """The ranking by this read-out, with what is wrong with it."""
        if how == "written":
            return self.written or Answer((), ("unparseable",))
        failures = () if self.complete else ("missing",)
        return Answer(tuple(self.said_order().tolist()), failures)

    def said_order(self, floor_K: np.ndarray | None = None) -> np.ndarray:
        """Positions by falling strength; `floor_K` is each shown candidate's place in the floor."""
        return order_by_level(self.levels_K, floor_K)

    def restored(self, order_K: np.ndarray) -> Reading:
        """Of a request shown as `request.taken(order_K)`: the same in the request's order."""
        shown_K = np.argsort(order_K)
        cites = tuple(self.cites[shown] for shown in shown_K.tolist())
        written = self.written
        if written is not None:
            k, place = len(order_K), order_K.tolist()
            moved = tuple(place[i] if 0 <= i < k else i for i in written.order)
            written = replace(written, order=moved)
        return replace(self, levels_K=self.levels_K[shown_K], cites=cites, written=written)


def order_by_level(levels_K: np.ndarray, floor_K: np.ndarray | None = None) -> np.ndarray:
    """Positions by falling level, ties and NaN in floor order.

    >>> order_by_level(np.array([1.0, np.nan, 3.0, 3.0])).tolist()
    [2, 3, 0, 1]
    """
    floor = np.arange(len(levels_K)) if floor_K is None else floor_K
    falling = np.where(np.isnan(levels_K), np.inf, -np.round(levels_K, 4))
    return np.lexsort((floor, falling))


def mean_reading(readings: Sequence[Reading]) -> Reading:
    """Several views of one request, all in its order: strengths averaged, evidence of the first."""
    levels_VK = np.stack([reading.levels_K for reading in readings])
    judged_K = ~np.isnan(levels_VK).all(0)
    levels_K = np.full(levels_VK.shape[1], np.nan)
    levels_K[judged_K] = np.nanmean(levels_VK[:, judged_K], axis=0)
    return replace(readings[0], levels_K=levels_K)
