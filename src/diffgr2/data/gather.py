"""Interactions gathered row by row, or column by column, into `RawData`.

Contract: ids are kept once and rows as integers, so a million interactions need some 30 MB; the
result has its ids sorted, whatever the order of the rows. Not here: parsing.
"""

from __future__ import annotations

from array import array

import numpy as np

from diffgr2.data.split import ItemText, RawData
from diffgr2.errors import DataError


class RowGatherer:
    """Collects interactions one at a time."""

    def __init__(self) -> None:
        self.users: dict[str, int] = {}
        self.items: dict[str, int] = {}
        self._user, self._item, self._time, self._position = (array("q") for _ in range(4))

    def add(self, user: str, item: str, time_ms: int = 0, position: int | None = None) -> None:
        """One interaction; without a position its place in the file counts."""
        self._position.append(len(self._user) if position is None else position)
        self._user.append(self.users.setdefault(user, len(self.users)))
        self._item.append(self.items.setdefault(item, len(self.items)))
        self._time.append(time_ms)

    def finish(self, source: str, *, timed: bool) -> RawData:
        """All rows, ids sorted."""
        if not self._user:
            raise DataError(f"{source}: holds no usable interactions")
        columns = [np.array(c, dtype=np.int64) for c in (self._time, self._position)]
        users, user_N = _sorted_ids(self.users, np.array(self._user, dtype=np.int64))
        items, item_N = _sorted_ids(self.items, np.array(self._item, dtype=np.int64))
        return RawData(source, users, items, user_N, item_N, columns[0], columns[1], timed)


def _sorted_ids(numbers: dict[str, int], codes_N: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Ids in sorted order and the codes that fit them."""
    ids = sorted(numbers)
    place = np.empty(len(ids), dtype=np.int64)
    place[[numbers[raw] for raw in ids]] = np.arange(len(ids))
    return ids, place[codes_N]


def renamed(raw: RawData, users: dict[str, str], items: dict[str, str]) -> RawData:
    """The same rows under other ids where the maps know them; two ids must not become one."""
    result = []
    for kind, ids, names in (("user", raw.users, users), ("item", raw.items, items)):
        new = [names.get(old, old) for old in ids]
        if len(set(new)) != len(new):
            raise DataError(f"{raw.source}: the id map gives two {kind}s the same name")
        order = sorted(range(len(new)), key=new.__getitem__)
        place = np.empty(len(new), dtype=np.int64)
        place[order] = np.arange(len(new))
        result.append(([new[i] for i in order], place))
    (new_users, user_place), (new_items, item_place) = result
    return RawData(
        raw.source,
        new_users,
        new_items,
        user_place[raw.user_N],
        item_place[raw.item_N],
        raw.time_N,
        raw.position_N,
        raw.timed,
    )


def with_texts(raw: RawData, texts: dict[str, ItemText]) -> RawData:
    """The same rows with item metadata."""
    return RawData(
        raw.source,
        raw.users,
        raw.items,
        raw.user_N,
        raw.item_N,
        raw.time_N,
        raw.position_N,
        raw.timed,
        texts,
    )
