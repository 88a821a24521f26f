"""Counts as they were at each list's own moment.

Contract: `TimedCounts.build(histories, window, kinds)` remembers when every count came about; what
`at(moment_L)` gives looks up, of list l, exactly what `PairCounts` built from all purchases
strictly before `moment_L[l]` would say, its own user left out. A pair of purchases is known once
the later one is made. Equal times are not "before". `features_at` is `EvidenceIndex.features` with
those counts; the number of users, which `lift` divides by, stays that of all. Histories have to be
in the order of their times. Not here: what is counted (`pairs`), and counts for serving, which know
everything (`index`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.candidates.index import LISTS_PER_CHUNK, EvidenceIndex
from diffgr2.candidates.pairs import (
    PairCounts,
    first_purchases,
    firsts,
    near_pairs,
    pair_values,
)
from diffgr2.candidates.pieces import Pieces
from diffgr2.candidates.retrieval import prefixes
from diffgr2.candidates.sales import Sales
from diffgr2.types import CandidateLists, Histories


@dataclass(frozen=True)
class TimedCounts:
    """Everything that was ever counted, with its time."""

    n_items: int
    window: int
    time_T: np.ndarray  # int64, the distinct times, rising
    pair_P: np.ndarray  # int64, sorted by (pair, time): first * n_items + second
    when_P: np.ndarray  # int64, place of its time in `time_T`
    sum_P1V: np.ndarray  # float64, running sums of the values, zeros first
    item_M: np.ndarray  # int64, sorted by (item, time), each user's first purchase
    item_when_M: np.ndarray
    own: PairCounts  # each user's first purchases; its pairs are empty
    own_when_M: np.ndarray  # of `own.key_M`

    @staticmethod
    def build(
        histories: Histories, window: int, kinds: tuple[str, ...], work: Path | None = None
    ) -> TimedCounts:
        """With `work` what grows with pairs lies in files there, not in memory."""
        n = histories.n_items
        key_M, position_M, day_M = first_purchases(histories)
        stamp_M = histories.timestamps_N[firsts(histories)[1]]
        time_T = np.unique(stamp_M)
        when_M, item_M = np.searchsorted(time_T, stamp_M), key_M % n
        keys, whens, sums = Pieces.several(3, work, "moments")
        last_1V = np.zeros((1, len(kinds)))
        sums.add(last_1V)
        for near in near_pairs(n, window, key_M, position_M, day_M):
            early_R, late_R = near.places
            when_R = np.maximum(when_M[early_R], when_M[late_R])  # known once both are bought
            order_R = np.lexsort((when_R, near.key_R))
            value_RV = np.stack(pair_values(near.steps_R, near.days_R, window, kinds), 1)
            running = np.cumsum(np.concatenate([last_1V, value_RV[order_R]], dtype=np.float64), 0)
            keys.add(near.key_R[order_R])
            whens.add(when_R[order_R])
            sums.add(running[1:])
            last_1V = running[-1:]
        by_item = np.lexsort((when_M, item_M))
        nothing = np.empty(0, np.int64)
        own = PairCounts(
            n, window, nothing, np.empty((0, len(kinds)), np.float32), key_M,
            position_M.astype(np.int32), day_M.astype(np.int32), np.zeros(n, np.int32), kinds,
        )  # fmt: skip
        return TimedCounts(
            n, window, time_T, keys.whole(nothing), whens.whole(nothing),
            sums.whole(np.empty((0, len(kinds)))),
            item_M[by_item].astype(np.int64), when_M[by_item], own, when_M,
        )  # fmt: skip

    @cached_property
    def pairs(self) -> Timed:
        """Of `pair_P`."""
        return Timed.of(self.pair_P, self.when_P, len(self.time_T))

    @cached_property
    def sold(self) -> Timed:
        """Of `item_M`."""
        return Timed.of(self.item_M, self.item_when_M, len(self.time_T))

    def at(self, moment_L: np.ndarray) -> MomentCounts:
        """The counts for these lists, in their order."""
        return MomentCounts(self, np.searchsorted(self.time_T, moment_L))


@dataclass(frozen=True)
class MomentCounts:
    """Looks like `PairCounts` to whoever asks about exactly these lists."""

    all: TimedCounts
    before_L: np.ndarray  # how many of the distinct times lie before each list

    @property
    def n_items(self) -> int:
        return self.all.n_items

    @property
    def kinds(self) -> tuple[str, ...]:
        return self.all.own.kinds

    @property
    def sales(self) -> Sales:
        """All of them: who asks looks at days before the newest purchase of a list alone."""
        return self.all.own.sales

    def lookup(
        self, history_LH: np.ndarray, items_LK: np.ndarray, exclude_user_L: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `PairCounts.lookup`."""
        told, width = self.all, history_LH.shape[1]
        items_LX = np.concatenate([history_LH, items_LK], 1, dtype=np.int64)
        counted_LX = (items_LX >= 0) & (items_LX < told.n_items)
        known_LX = np.where(counted_LX, items_LX, 0)
        before_L1 = self.before_L[:, None]
        count_LX = told.sold.between(known_LX, before_L1)
        count_LX = np.where(counted_LX, count_LX[1] - count_LX[0], 0)
        first_LH1, second_L1K = known_LX[:, :width, None], known_LX[:, None, width:]
        wanted = first_LH1 * told.n_items + second_L1K
        start, end = told.pairs.between(wanted, before_L1[:, :, None])
        found = counted_LX[:, :width, None] & counted_LX[:, None, width:]
        value = np.where(found[..., None], told.sum_P1V[end] - told.sum_P1V[start], 0.0)
        value[value < 1e-6] = 0.0  # differences of running sums leave rounding dust
        value_VLHK = np.moveaxis(value, -1, 0).astype(np.float32)
        self._leave_out(value_VLHK, count_LX, items_LX, counted_LX, exclude_user_L, found)
        return value_VLHK, count_LX.astype(np.float32)

    def _leave_out(
        self,
        value_VLHK: np.ndarray,
        count_LX: np.ndarray,
        items_LX: np.ndarray,
        counted_LX: np.ndarray,
        user_L: np.ndarray,
        found: np.ndarray,
    ) -> None:
        """Take the lists' own users' purchases before the moment out again, in place."""
        own, width = self.all.own, found.shape[1]
        if not (user_L >= 0).any() or not len(own.key_M):
            return
        wanted_LX = user_L[:, None] * own.n_items + items_LX
        index_LX = np.minimum(own.key_M.searchsorted(wanted_LX), len(own.key_M) - 1)
        mine_LX = (user_L[:, None] >= 0) & counted_LX & (own.key_M[index_LX] == wanted_LX)
        mine_LX &= self.all.own_when_M[index_LX] < self.before_L[:, None]
        count_LX -= mine_LX
        at, h, k = np.nonzero(found & mine_LX[:, :width, None] & mine_LX[:, None, width:])
        if not len(at):
            return
        second, place_LX = k + width, own.position_M[index_LX]
        day_LX = own.day_M[index_LX]
        steps = place_LX[at, second] - place_LX[at, h]
        days = day_LX[at, second] - day_LX[at, h]
        own_VX = pair_values(steps, days, own.window, own.kinds)
        rest_VX = value_VLHK[:, at, h, k] - own_VX
        value_VLHK[:, at, h, k] = np.where(rest_VX < 1e-4, 0.0, rest_VX)


@dataclass(frozen=True)
class Timed:
    """Keys with times as single numbers, rising."""

    both_P: np.ndarray
    base: int

    @staticmethod
    def of(key_P: np.ndarray, when_P: np.ndarray, times: int) -> Timed:
        """Of arrays that are sorted by (key, time)."""
        return Timed(key_P * (times + 1) + when_P, times + 1)

    def between(self, wanted: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(start, end) of a key's entries before a time."""
        start = self.both_P.searchsorted(wanted * self.base)
        return start, self.both_P.searchsorted(wanted * self.base + before)


def moments_of(histories: Histories, lists: CandidateLists) -> np.ndarray:
    """When each list was asked for, int64 (L); 0 or less where nobody knows.

    A list of ours was asked for when its target was bought.
    """
    if lists.moment is not None:
        return lists.moment
    at_L = histories.offsets_U1[lists.user_L] + lists.end_L
    inside_L = at_L < histories.offsets_U1[lists.user_L + 1]
    return np.where(inside_L, np.append(histories.timestamps_N, 0)[at_L], 0)


def features_at(
    index: EvidenceIndex,
    timed: TimedCounts,
    histories: Histories,
    lists: CandidateLists,
    own_LKG: np.ndarray | None = None,
) -> np.ndarray:
    """float32 (L, K, F): `index.features` of these lists, each with the counts of its moment."""
    assert lists.moment is not None
    parts = []
    for begin in range(0, max(len(lists), 1), LISTS_PER_CHUNK):
        part = lists.take(np.arange(begin, min(begin + LISTS_PER_CHUNK, len(lists))))
        assert part.moment is not None
        then: Any = timed.at(part.moment)
        queries = prefixes(histories, part.user_L, part.end_L)
        values = None if own_LKG is None else own_LKG[begin : begin + LISTS_PER_CHUNK]
        given = (part.items_LK, part.scores_LK, part.owner_L, values, part.moment)
        parts.append(replace(index, pairs=then).features(queries, *given))
    return np.concatenate(parts)
