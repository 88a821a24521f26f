"""Pair counts of items over the train part, with exact leave-one-user-out.

Contract: `PairCounts.build(train, window, kinds)` counts, for every two items that one user bought
within `window` positions of each other, what `KINDS` names; it does so in parts by the first item,
so that memory holds the purchases, one part and the result, or the result lies in files. `lookup`
gives the values of (history item, candidate) pairs with one user's own share taken out, exactly as
if that user's history had never been counted. A user's repeated purchases count once, at the first.
An item number of -1 (padding) or from `n_items` on (nobody's yet) has no counts. Not here: how
counts become evidence fields (`measures`), which kinds those need (`fields`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from diffgr2.candidates.pieces import Pieces
from diffgr2.candidates.sales import Sales
from diffgr2.types import Histories

DAY = 86_400
UNDATED = -1
"""The time of a purchase of which nobody knows when it was made, but that it was the latest."""

MONTH = 30
FADES = 60
"""Days within which two purchases are of one month, and after which a later day counts a third."""

PART = 1 << 21
"""Pairs of purchases that are counted at a time."""

KINDS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "together": lambda steps, days: np.ones(steps.shape),
    "forward": lambda steps, days: np.maximum(steps, 0) / steps**2,
    "session": lambda steps, days: np.maximum(steps, 0) / steps**2 * (days == 0),
    "backward": lambda steps, days: np.maximum(-steps, 0) / steps**2,
    "adjacent": lambda steps, days: steps == 1,
    "month": lambda steps, days: np.abs(days) <= MONTH,
    "later": lambda steps, days: np.where(days > 0, np.exp(-np.maximum(days, 0) / FADES), 0.0),
}
"""What one user adds to a pair whose second item came `steps` purchases and `days` days after the
first (fewer than 0: before it): to have both, how soon the second followed, the same within a day,
how soon it went before, whether it was the very next, whether it fell into the same month, how soon
it came on a later day."""


def firsts(train: Histories) -> tuple[np.ndarray, np.ndarray]:
    """(key_M, first_M): each user's distinct items as user * n_items + item, sorted, and which
    interaction was the first with each."""
    user_N = np.repeat(np.arange(train.n_users, dtype=np.int64), train.lengths_U)
    return np.unique(user_N * train.n_items + train.items_N, return_index=True)


def first_purchases(train: Histories) -> tuple[np.ndarray, ...]:
    """(key_M, position_M, day_M): each user's distinct items, sorted by user then item.

    `key` is user * n_items + item; `position` counts a user's distinct items in order from 0.
    """
    key_M, first_M = firsts(train)
    user_M = key_M // train.n_items
    # Distinct purchases before this one, without those of the users before.
    position_M = np.argsort(np.argsort(first_M)) - np.searchsorted(user_M, user_M)
    day_M = train.timestamps_N[first_M] // DAY
    return key_M, position_M, day_M


def pair_values(
    steps: np.ndarray, days: np.ndarray, window: int, kinds: Sequence[str]
) -> list[np.ndarray]:
    """One user's share in a pair, per kind; 0 beyond the window and for an item beside itself."""
    near = (np.abs(steps) <= window) & (steps != 0)
    steps = np.where(near, steps, 1)
    return [np.where(near, KINDS[kind](steps, days), 0.0).astype(np.float32) for kind in kinds]


@dataclass(frozen=True)
class Near:
    """Pairs of purchases that one user made within the window of each other, both ways round."""

    key_R: np.ndarray  # int64, first * n_items + second
    steps_R: np.ndarray  # int32, purchases from the first to the second; below 0: it went before
    days_R: np.ndarray  # int32
    places: tuple[np.ndarray, np.ndarray]  # of both in the arrays that were given, [R] in M


def near_pairs(
    n: int, window: int, key_M: np.ndarray, position_M: np.ndarray, day_M: np.ndarray
) -> Iterator[Near]:
    """All of them, in parts: every first item is in one part, and first items rise.

    Those of one key stand in a fixed order, whatever the parts: by distance, the second after the
    first before the other way round, then by user. A part has about PART rows, and needs memory
    for no others.
    """
    user_M, item_M = (part.astype(np.int32) for part in np.divmod(key_M, n))
    order_M = np.lexsort((position_M, user_M)).astype(np.int32)
    user, item, day = user_M[order_M], item_M[order_M], day_M[order_M].astype(np.int32)
    size_U = np.bincount(user)
    first_U = np.cumsum(size_U) - size_U
    before = (np.arange(len(user)) - first_U[user]).astype(np.int32)
    after = (size_U[user] - 1 - before).astype(np.int32)
    rows = np.minimum(before, window) + np.minimum(after, window)
    until_I = np.cumsum(np.bincount(item, rows, n))
    # Cut where another PART is full; an item is never cut.
    ends = np.searchsorted(until_I, np.arange(PART, until_I[-1], PART)) + 1
    by_item = np.argsort(item, kind="stable")
    start_I1 = np.cumsum([0, *np.bincount(item, minlength=n)])
    cuts = np.unique([0, *ends, n])
    for low, high in pairwise(cuts.tolist()):
        here = np.sort(by_item[start_I1[low] : start_I1[high]])
        firsts, seconds, steps = [here[:0]], [here[:0]], [np.empty(0, np.int32)]
        for distance in range(1, window + 1):
            for room, sign in ((after, 1), (before, -1)):
                found = here[room[here] >= distance]
                firsts.append(found)
                seconds.append(found + sign * distance)
                steps.append(np.full(len(found), sign * distance, np.int32))
        one, two = np.concatenate(firsts), np.concatenate(seconds)
        key_R = item[one].astype(np.int64) * n + item[two]
        yield Near(key_R, np.concatenate(steps), day[two] - day[one], (order_M[one], order_M[two]))


@dataclass(frozen=True)
class PairCounts:
    """Sorted pair keys with values, and each user's first purchases for leaving one out."""

    n_items: int
    window: int
    pair_P: np.ndarray  # int64, first * n_items + second, sorted
    value_PV: np.ndarray  # float32, a column for each of `kinds`
    key_M: np.ndarray  # int64, user * n_items + item, sorted
    position_M: np.ndarray  # int32
    day_M: np.ndarray  # int32
    buyers_I: np.ndarray  # int32, users who have the item
    kinds: tuple[str, ...]  # of KINDS

    @staticmethod
    def build(
        train: Histories,
        window: int,
        kinds: tuple[str, ...] = tuple(KINDS),
        work: Path | None = None,
    ) -> PairCounts:
        """The counts of these histories; with `work` they lie in files there, not in memory."""
        key_M, position_M, day_M = first_purchases(train)
        given = (train.n_items, window, kinds, key_M, position_M, day_M)
        return PairCounts.counted(*given, work=work)

    @staticmethod
    def counted(
        n: int,
        window: int,
        kinds: tuple[str, ...],
        key_M: np.ndarray,
        position_M: np.ndarray,
        day_M: np.ndarray,
        *,
        work: Path | None = None,
    ) -> PairCounts:
        """The counts of these first purchases, of n items; keys are sorted."""
        position_M, day_M = position_M.astype(np.int32), day_M.astype(np.int32)
        keys, values = Pieces.several(2, work, "pairs")
        for near in near_pairs(n, window, key_M, position_M, day_M):
            pair_P, row_R = np.unique(near.key_R, return_inverse=True)
            value_PV = np.empty((len(pair_P), len(kinds)), np.float32)
            for v, kind in enumerate(kinds):  # summed in the order of the rows, in float64
                (share_R,) = pair_values(near.steps_R, near.days_R, window, [kind])
                value_PV[:, v] = np.bincount(row_R, share_R, len(pair_P))
            keys.add(pair_P)
            values.add(value_PV)
        pair_P = keys.whole(np.empty(0, np.int64))
        value_PV = values.whole(np.empty((0, len(kinds)), np.float32))
        buyers_I = np.bincount(key_M % n, minlength=n).astype(np.int32)
        return PairCounts(n, window, pair_P, value_PV, key_M, position_M, day_M, buyers_I, kinds)

    @cached_property
    def sales(self) -> Sales:
        """On which days each item was bought."""
        return Sales.of(self.n_items, self.key_M, self.day_M)

    def lookup(
        self, history_LH: np.ndarray, items_LK: np.ndarray, exclude_user_L: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the lists' items have in common without the excluded user (-1 excludes nobody).

        The values of every (history item, candidate), (V, L, H, K), and how many users have each
        item of the history and each candidate behind it, float32 (L, H + K).
        """
        width = history_LH.shape[1]
        items_LX = np.concatenate([history_LH, items_LK], 1, dtype=np.int64)
        counted_LX = (items_LX >= 0) & (items_LX < self.n_items)
        count_LX = np.where(counted_LX, self.buyers_I[np.where(counted_LX, items_LX, 0)], 0)
        first_LH1, second_L1K = items_LX[:, :width, None], items_LX[:, None, width:]
        wanted = first_LH1 * self.n_items + second_L1K
        value_VLHK = np.zeros((len(self.kinds), *wanted.shape), np.float32)
        found = counted_LX[:, :width, None] & counted_LX[:, None, width:]
        if len(self.pair_P):
            index = self.pair_P.searchsorted(wanted)
            # What lies behind the last pair is none, and may be compared with the last.
            found &= self.pair_P.take(index, mode="clip") == wanted
            value_VLHK[:, found] = self.value_PV[index[found]].T
        if (exclude_user_L >= 0).any():
            place_LX, day_LX = self._place(exclude_user_L, items_LX, counted_LX)
            own_LX = place_LX >= 0
            count_LX = count_LX - own_LX
            if len(self.pair_P):
                both = found & own_LX[:, :width, None] & own_LX[:, None, width:]
                self._leave_out(value_VLHK, both, place_LX, day_LX)
        return value_VLHK, count_LX.astype(np.float32)

    def _place(
        self, user_L: np.ndarray, items_LX: np.ndarray, counted_LX: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(position_LX, day_LX) of items in a user's train part; position -1 where absent."""
        wanted_LX = user_L[:, None] * self.n_items + items_LX
        if not len(self.key_M):  # nobody bought anything
            return np.full(items_LX.shape, -1), np.zeros(items_LX.shape, np.int32)
        index_LX = np.minimum(self.key_M.searchsorted(wanted_LX), len(self.key_M) - 1)
        found_LX = (user_L[:, None] >= 0) & counted_LX & (self.key_M[index_LX] == wanted_LX)
        return np.where(found_LX, self.position_M[index_LX], -1), self.day_M[index_LX]

    def _leave_out(
        self, value_VLHK: np.ndarray, both: np.ndarray, place_LX: np.ndarray, day_LX: np.ndarray
    ) -> None:
        """Take a user's own share out of the pairs of which that user has `both` items."""
        at, h, k = np.nonzero(both)
        if not len(at):
            return
        second = k + both.shape[1]
        steps = place_LX[at, second] - place_LX[at, h]
        days = day_LX[at, second] - day_LX[at, h]
        own_VX = pair_values(steps, days, self.window, self.kinds)
        rest_VX = value_VLHK[:, at, h, k] - own_VX
        # Differences of sums of 1/distance leave rounding dust around zero.
        value_VLHK[:, at, h, k] = np.where(rest_VX < 1e-4, 0.0, rest_VX)
