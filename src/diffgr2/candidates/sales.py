"""On which days each item was bought, with exact leave-one-user-out.

Contract: `Sales.of` orders each user's first purchase of every item by item and day. `since` gives
the days from an item's last sale on an earlier day to a given day, `within` how many sales lie in
so many days before it; both look at whole days strictly before, so that nothing of that day or
later is known, and leave one user out as if that user had bought nothing. An item number of -1 or
from `n_items` on was never sold. Not here: purchases of pairs (`pairs`), fields (`measures`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NEVER = -1
"""Days since the last sale of what was not sold before."""


@dataclass(frozen=True)
class Sales:
    """Sorted by item, then day, then user."""

    n_items: int
    begin: int  # the first day of any sale
    span: int  # days to the last one, and two more
    sale_M: np.ndarray  # int64, item * span + day since `begin`
    user_M: np.ndarray  # int64
    key_M: np.ndarray  # int64, user * n_items + item, sorted
    place_M: np.ndarray  # int64, of each key in `sale_M`

    @staticmethod
    def of(n_items: int, key_M: np.ndarray, day_M: np.ndarray) -> Sales:
        """From `PairCounts`' arrays."""
        user_M, item_M = np.divmod(key_M, n_items)
        begin = int(day_M.min()) if len(day_M) else 0
        span = int(day_M.max(initial=begin)) - begin + 2
        sale_M = item_M * span + (day_M - begin)
        order_M = np.lexsort((user_M, sale_M))
        place_M = np.empty(len(order_M), np.int64)
        place_M[order_M] = np.arange(len(order_M))
        return Sales(n_items, begin, span, sale_M[order_M], user_M[order_M], key_M, place_M)

    @property
    def end(self) -> int:
        """The day after the last sale."""
        return self.begin + self.span - 1

    def _before(self, items_LK: np.ndarray, day_L: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(items as int64, place behind their sales before the day); of no item, item 0."""
        item_LK = np.where(self._known(items_LK), items_LK, 0).astype(np.int64)
        day_L1 = np.clip(day_L - self.begin, 0, self.span - 1)[:, None]
        return item_LK, self.sale_M.searchsorted(item_LK * self.span + day_L1)

    def _known(self, items_LK: np.ndarray) -> np.ndarray:
        return (items_LK >= 0) & (items_LK < self.n_items)

    def since(
        self, items_LK: np.ndarray, day_L: np.ndarray, exclude_user_L: np.ndarray
    ) -> np.ndarray:
        """Days from the last sale to these days, int64 (L, K); NEVER where there was none."""
        none_LK = np.full(items_LK.shape, NEVER, np.int64)
        if not len(self.sale_M):
            return none_LK
        item_LK, after_LK = self._before(items_LK, day_L)
        # A user has one first purchase of an item, so the one before is somebody else's.
        place_LK = after_LK - 1 - (self.user_M[after_LK - 1] == exclude_user_L[:, None])
        last_LK = self.sale_M[np.maximum(place_LK, 0)] - item_LK * self.span
        sold_LK = (place_LK >= 0) & (last_LK >= 0) & self._known(items_LK)
        return np.where(sold_LK, day_L[:, None] - self.begin - last_LK, none_LK)

    def within(
        self, items_LK: np.ndarray, day_L: np.ndarray, days: int, exclude_user_L: np.ndarray
    ) -> np.ndarray:
        """Sales in the `days` before these days, int64 (L, K)."""
        item_LK, after_LK = self._before(items_LK, day_L)
        _, first_LK = self._before(items_LK, day_L - days)
        count_LK = after_LK - first_LK
        if len(self.key_M) and (exclude_user_L >= 0).any():
            wanted_LK = exclude_user_L[:, None] * self.n_items + item_LK
            at_LK = np.minimum(self.key_M.searchsorted(wanted_LK), len(self.key_M) - 1)
            own_LK = (exclude_user_L[:, None] >= 0) & (self.key_M[at_LK] == wanted_LK)
            place_LK = self.place_M[at_LK]
            count_LK = count_LK - (own_LK & (place_LK >= first_LK) & (place_LK < after_LK))
        return np.where(self._known(items_LK), count_LK, 0)
