"""Pair counts of items over the train part, with exact leave-one-user-out.

Contract: `PairCounts.build(train, window)` counts, for every two items that one user bought within
`window` positions of each other, how many users did (`together`), how soon the second came after
the first (`forward`, 1/distance each), and the same within one day (`session`). `lookup` gives the
values of (history item, candidate) pairs with one user's own share taken out, exactly as if that
user's history had never been counted. A user's repeated purchases count once, at the first. An item
number of -1 (padding) or from `n_items` on (nobody's yet) has no counts. Not here: how counts
become evidence fields (`index`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffgr2.types import Histories

DAY = 86_400
KINDS = ("together", "forward", "session")  # the counts, in the order of `value_PV`'s columns


def first_purchases(train: Histories) -> tuple[np.ndarray, ...]:
    """(key_M, position_M, day_M, item_M): each user's distinct items, sorted by user then item.

    `key` is user * n_items + item; `position` counts a user's distinct items in order from 0.
    """
    user_N = np.repeat(np.arange(train.n_users, dtype=np.int64), train.lengths_U)
    key_N = user_N * train.n_items + train.items_N
    key_M, first_M = np.unique(key_N, return_index=True)
    user_M = user_N[first_M]
    # Distinct purchases before this one, without those of the users before.
    position_M = np.argsort(np.argsort(first_M)) - np.searchsorted(user_M, user_M)
    day_M = train.timestamps_N[first_M] // DAY
    return key_M, position_M, day_M, train.items_N[first_M]


def pair_values(distance: np.ndarray, same_day: np.ndarray, window: int) -> list[np.ndarray]:
    """One user's share in a pair, per kind; distance = position(second) - position(first)."""
    near = (np.abs(distance) <= window) & (distance != 0)
    forward = np.where(near & (distance > 0), 1.0 / np.maximum(distance, 1), 0.0)
    return [kind.astype(np.float32) for kind in (near, forward, forward * same_day)]


@dataclass(frozen=True)
class PairCounts:
    """Sorted pair keys with values, and each user's first purchases for leaving one out."""

    n_items: int
    window: int
    pair_P: np.ndarray  # int64, first * n_items + second, sorted
    value_PV: np.ndarray  # float32, one column per kind
    key_M: np.ndarray  # int64, user * n_items + item, sorted
    position_M: np.ndarray  # int32
    day_M: np.ndarray  # int32
    buyers_I: np.ndarray  # int32, users who have the item

    @staticmethod
    def build(train: Histories, window: int) -> PairCounts:
        key_M, position_M, day_M, item_M = first_purchases(train)
        n = train.n_items
        user_M = key_M // n
        order_M = np.lexsort((position_M, user_M))
        user, item, day = user_M[order_M], item_M[order_M].astype(np.int64), day_M[order_M]
        keys, values = [], []
        for distance in range(1, window + 1):
            inside = user[distance:] == user[:-distance]
            early, late = item[:-distance][inside], item[distance:][inside]
            same_day = (day[:-distance] == day[distance:])[inside]
            for first, second, sign in ((early, late, 1), (late, early, -1)):
                keys.append(first * n + second)
                steps = np.full(len(first), sign * distance)
                values.append(np.stack(pair_values(steps, same_day, window), 1))
        key_R, value_RV = np.concatenate(keys), np.concatenate(values).astype(np.float64)
        pair_P, row_R = np.unique(key_R, return_inverse=True)
        columns = [np.bincount(row_R, value_RV[:, v], len(pair_P)) for v in range(len(KINDS))]
        value_PV = np.stack(columns, 1).astype(np.float32)
        buyers_I = np.bincount(item_M, minlength=n).astype(np.int32)
        position_M, day_M = position_M.astype(np.int32), day_M.astype(np.int32)
        return PairCounts(n, window, pair_P, value_PV, key_M, position_M, day_M, buyers_I)

    def counted(self, items: np.ndarray) -> np.ndarray:
        """Which of these numbers are items that were counted."""
        return (items >= 0) & (items < self.n_items)

    def place(self, user_L: np.ndarray, items_LX: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(position_LX, day_LX) of items in a user's train part; position -1 where absent.

        A negative user is absent everywhere.
        """
        wanted_LX = user_L[:, None].astype(np.int64) * self.n_items + items_LX
        index_LX = np.minimum(np.searchsorted(self.key_M, wanted_LX), len(self.key_M) - 1)
        valid_LX = (user_L[:, None] >= 0) & self.counted(items_LX)
        found_LX = valid_LX & (self.key_M[index_LX] == wanted_LX)
        position_LX = np.where(found_LX, self.position_M[index_LX], -1)
        return position_LX, self.day_M[index_LX]

    def lookup(
        self, history_LH: np.ndarray, items_LK: np.ndarray, exclude_user_L: np.ndarray
    ) -> np.ndarray:
        """Values of every (history item, candidate) without the excluded user: (V, L, H, K).

        An excluded user of -1 excludes nobody.
        """
        wanted = history_LH[:, :, None].astype(np.int64) * self.n_items + items_LK[:, None, :]
        value_VLHK = np.zeros((len(KINDS), *wanted.shape), np.float32)
        if not len(self.pair_P):
            return value_VLHK
        index = np.minimum(np.searchsorted(self.pair_P, wanted), len(self.pair_P) - 1)
        valid = self.counted(history_LH)[:, :, None] & self.counted(items_LK)[:, None, :]
        found = valid & (self.pair_P[index] == wanted)
        value_VLHK[:, found] = self.value_PV[index[found]].T
        place_LH, day_LH = self.place(exclude_user_L, history_LH)
        place_LK, day_LK = self.place(exclude_user_L, items_LK)
        both = found & (place_LH[:, :, None] >= 0) & (place_LK[:, None, :] >= 0)
        at, h, k = np.nonzero(both)
        steps, same_day = place_LK[at, k] - place_LH[at, h], day_LK[at, k] == day_LH[at, h]
        rest_VX = value_VLHK[:, at, h, k] - pair_values(steps, same_day, self.window)
        # Differences of sums of 1/distance leave rounding dust around zero.
        value_VLHK[:, at, h, k] = np.where(rest_VX < 1e-4, 0.0, rest_VX)
        return value_VLHK

    def buyers(self, items_LX: np.ndarray, exclude_user_L: np.ndarray) -> np.ndarray:
        """How many users other than the excluded one have each item."""
        place_LX, _ = self.place(exclude_user_L, items_LX)
        counted_LX = self.counted(items_LX)
        count_LX = np.where(counted_LX, self.buyers_I[np.where(counted_LX, items_LX, 0)], 0)
        return (count_LX - (place_LX >= 0)).astype(np.float32)
