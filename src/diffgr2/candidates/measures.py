"""The counted fields, each as one (lists, candidates) array.

Contract: `MEASURES` has a function for every field of `COUNTED`; `Measured` holds some lists and
what several fields share, looked up once and only where a wanted field needs it. In between, values
are laid out as lists x history x candidates. Whoever `exclude_L` names is left out of every count.
A cosine divides a count by the root of both items' numbers of buyers. Fields of sales look at days
before the one of the newest purchase, or of the request, and are NaN where that is not known. Not
here: buckets
(`edges`), what a field means (`fields`), which are wanted (`index`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from diffgr2.candidates.attributes import Attributes, category_match
from diffgr2.candidates.fields import OF_NEWEST, PAIRED, SOLD
from diffgr2.candidates.pairs import DAY, UNDATED
from diffgr2.candidates.sales import NEVER
from diffgr2.candidates.titles import TitleWords

SEASON, EVER = 90, 1 << 40
"""Days that `trend` and `buyers_now` look back."""


class Counted(Protocol):
    """What an index knows."""

    @property
    def pairs(self) -> Any: ...  # PairCounts, or what looks like it

    @property
    def attributes(self) -> Attributes: ...

    @property
    def titles(self) -> TitleWords | None: ...

    @property
    def n_users(self) -> int: ...

    @property
    def history(self) -> int: ...

    @property
    def late_from(self) -> int | None: ...

    @property
    def decay(self) -> float: ...

    def attributes_of(self, items: np.ndarray) -> Attributes: ...


class Measured:
    """Some lists; see the module's docstring."""

    def __init__(
        self,
        index: Counted,
        history_LH: np.ndarray,
        length_L: np.ndarray,
        times_L2: np.ndarray,
        items_LK: np.ndarray,
        scores_LK: np.ndarray,
        exclude_L: np.ndarray,
    ) -> None:
        """`times_L2` are those of the newest purchase and of the request, 0 where unknown."""
        self.index, self.history_LH, self.items_LK = index, history_LH, items_LK
        self.scores_LK, self.exclude_L = scores_LK, exclude_L
        self.then_L, self.moment_L = times_L2.T
        steps_H = np.arange(index.history)
        age_LH = np.maximum(length_L[:, None] - steps_H, 0)
        # By age, 1 for the newest; 0 stands for padding.
        weight_A = np.append(0.0, index.decay**steps_H).astype(np.float32)
        self.weight_LH1 = weight_A[age_LH][:, :, None]
        self.newest = (np.arange(len(items_LK)), np.maximum(length_L - 1, 0))

    def value(self, name: str) -> np.ndarray:
        """A field by name; NaN in place of counts of late items that say nothing of them yet."""
        value_LK = MEASURES[name](self)
        if self.index.late_from is None or name not in (*PAIRED, *SOLD):
            return value_LK
        open_LK = ~self._known_LX[:, self.index.history :]
        if name in PAIRED:
            open_LK = open_LK | self._alone_L1
        if name in OF_NEWEST:
            open_LK = open_LK | ~self._known_LX[self.newest][:, None]
        return np.where(open_LK, np.float32(np.nan), value_LK)

    # ------------------------------------------------------------------------- of late items

    @cached_property
    def _known_LX(self) -> np.ndarray:  # noqa: N802
        """Whether an item was there in training, or somebody bought it since."""
        assert self.index.late_from is not None
        items_LX = np.concatenate([self.history_LH, self.items_LK], 1)
        return np.asarray((self._looked[1] > 0) | np.less(items_LX, self.index.late_from))

    @cached_property
    def _alone_L1(self) -> np.ndarray:  # noqa: N802
        """Lists whose history holds only items of which nothing is known."""
        real_LH = self.history_LH >= 0
        past_LH = self._known_LX[:, : self.index.history] & real_LH
        alone_L1 = real_LH.any(1, keepdims=True) & ~past_LH.any(1, keepdims=True)
        return np.asarray(alone_L1)

    # ----------------------------------------------------- what others bought together with it

    @cached_property
    def _looked(self) -> tuple[np.ndarray, np.ndarray]:
        """Counts of pairs (V, L, H, K), and buyers of history and candidates (L, H + K)."""
        return self.index.pairs.lookup(self.history_LH, self.items_LK, self.exclude_L)

    def pairs_of(self, name: str) -> np.ndarray:
        """The kind of counts that a field reads, (L, H, K)."""
        return self._looked[0][self.index.pairs.kinds.index(PAIRED[name])]

    def summed(self, name: str) -> np.ndarray:
        """Counts with all of the history, newer items more."""
        return (self.weight_LH1 * self.pairs_of(name)).sum(1)

    @cached_property
    def bought(self) -> tuple[np.ndarray, np.ndarray]:
        """Buyers of the history's items (L, H, 1) and of the candidates (L, K); can divide."""
        buyers_LX, width = np.maximum(self._looked[1], 0.5), self.index.history
        return buyers_LX[:, :width, None], buyers_LX[:, width:]

    @cached_property
    def roots(self) -> tuple[np.ndarray, np.ndarray]:
        """Roots of `bought`."""
        return np.sqrt(self.bought[0]), np.sqrt(self.bought[1])

    def cosine(self, name: str) -> np.ndarray:
        """`summed` with cosines in place of counts."""
        weight_LH1 = self.weight_LH1 / self.roots[0]
        return (weight_LH1 * self.pairs_of(name)).sum(1) / self.roots[1]

    def newest_cosine(self, name: str) -> np.ndarray:
        """The newest item's cosine alone."""
        return self.pairs_of(name)[self.newest] / self.roots[0][self.newest] / self.roots[1]

    @property
    def buyers(self) -> np.ndarray:
        return self._looked[1][:, self.index.history :]

    @cached_property
    def copurchase(self) -> np.ndarray:
        return self.summed("copurchase")

    def lift(self) -> np.ndarray:
        """Co-purchase by what the items' buyers would give."""
        past_LH1, items_LK = self.bought
        expected_LK = (self.weight_LH1 * past_LH1).sum(1) * items_LK / self.index.n_users
        return self.copurchase / np.maximum(expected_LK, 1e-9)

    # ------------------------------------------------------------------ what the items are like

    @cached_property
    def past(self) -> Attributes:
        return self.index.attributes_of(self.history_LH)

    @cached_property
    def items(self) -> Attributes:
        return self.index.attributes_of(self.items_LK)

    @cached_property
    def total_L1(self) -> np.ndarray:  # noqa: N802
        return np.maximum(self.weight_LH1.sum(1), 1e-9)

    def brand(self) -> np.ndarray:
        """Share of the history that is of the candidate's brand."""
        brand_LH1 = self.past.brand_I[:, :, None]
        brand_LHK = (brand_LH1 >= 0) & (brand_LH1 == self.items.brand_I[:, None])
        return (self.weight_LH1 * brand_LHK).sum(1) / self.total_L1

    def category(self) -> np.ndarray:
        """How much of the category path is shared, over the history."""
        alike_LHK = category_match(self.past, self.items)
        return (self.weight_LH1 * alike_LHK).sum(1) / self.total_L1

    def text(self) -> np.ndarray:
        """The history's mean text vector first, so that there is one product per candidate."""
        mean_LE = (self.weight_LH1 * self.past.vectors_IE).sum(1) / self.total_L1
        return np.einsum("le,lke->lk", mean_LE, self.items.vectors_IE)

    @cached_property
    def titles_LHK(self) -> np.ndarray:  # noqa: N802
        assert self.index.titles is not None, "no field of titles was wanted"
        return self.index.titles.alike(self.history_LH, self.items_LK)

    # ------------------------------------------------------------------------ when it was sold

    @cached_property
    def bought_on(self) -> np.ndarray:
        """The day of the newest purchase; of one without a date the day after all sales."""
        return np.where(self.then_L == UNDATED, self.index.pairs.sales.end, self.then_L // DAY)

    def fresh(self, day_L: np.ndarray, time_L: np.ndarray) -> np.ndarray:
        """1 for a sale on the day before, less the longer it is; 0 where there was none."""
        days_LK = self.index.pairs.sales.since(self.items_LK, day_L, self.exclude_L)
        value_LK = np.where(days_LK == NEVER, 0.0, 1.0 / np.maximum(days_LK, 1))
        return np.where(time_L[:, None] != 0, value_LK, np.nan)

    def sold(self, day_L: np.ndarray, time_L: np.ndarray, days: int) -> np.ndarray:
        """Sales of so many days."""
        count_LK = self.index.pairs.sales.within(self.items_LK, day_L, days, self.exclude_L)
        return np.where(time_L[:, None] != 0, count_LK, np.nan)

    def away(self) -> np.ndarray:
        """Days from the newest purchase to the request, the same for all candidates."""
        days_L = np.maximum(self.moment_L // DAY - self.then_L // DAY, 0)
        known_L = (self.moment_L != 0) & (self.then_L != 0) & (self.then_L != UNDATED)
        value_L1 = np.where(known_L, days_L, np.nan)[:, None]
        return np.broadcast_to(value_L1, self.items_LK.shape)

    # -------------------------------------------------------------------- what the list says

    def rank(self) -> np.ndarray:
        rank_K = np.arange(self.items_LK.shape[1], dtype=np.float32)
        return np.broadcast_to(rank_K, self.items_LK.shape)

    def gap(self) -> np.ndarray:
        """Score below the list's best; NaN where a candidate has none."""
        known_LK = (self.items_LK >= 0) & ~np.isnan(self.scores_LK)
        there_LK = np.where(known_LK, self.scores_LK, -np.inf)
        return there_LK.max(1, keepdims=True) - self.scores_LK


MEASURES: dict[str, Callable[[Measured], np.ndarray]] = {
    "rank": Measured.rank,
    "gap": Measured.gap,
    "copurchase": lambda lists: lists.copurchase,
    "lift": Measured.lift,
    "last": lambda lists: lists.newest_cosine("last"),
    "next": lambda lists: lists.summed("next"),
    "session": lambda lists: lists.pairs_of("session")[lists.newest],
    "brand": Measured.brand,
    "category": Measured.category,
    "text": Measured.text,
    "title": lambda lists: lists.titles_LHK.max(1, initial=0.0),
    "title_last": lambda lists: lists.titles_LHK[lists.newest],
    "after": lambda lists: lists.cosine("after"),
    "buyers": lambda lists: lists.buyers,
    "fresh": lambda lists: lists.fresh(lists.bought_on, lists.then_L),
    "before_last": lambda lists: lists.newest_cosine("before_last"),
    "before": lambda lists: lists.cosine("before"),
    "right_after": lambda lists: lists.newest_cosine("right_after"),
    "month": lambda lists: lists.cosine("month"),
    "later": lambda lists: lists.cosine("later"),
    "trend": lambda lists: lists.sold(lists.bought_on, lists.then_L, SEASON),
    "range": lambda lists: lists.index.attributes.brand_sizes[lists.items.brand_I],
    "away": Measured.away,
    "buyers_now": lambda lists: lists.sold(lists.moment_L // DAY, lists.moment_L, EVER),
    "fresh_now": lambda lists: lists.fresh(lists.moment_L // DAY, lists.moment_L),
    "trend_now": lambda lists: lists.sold(lists.moment_L // DAY, lists.moment_L, SEASON),
}
