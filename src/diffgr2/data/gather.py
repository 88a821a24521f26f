"""Interactions gathered one by one into `RawData`.

Contract: ids are kept once and interactions as integers, so a million of them need some 30 MB; the
result has its ids sorted, whatever the order of the interactions. Not here: parsing.
"""

from __future__ import annotations

from array import array
from dataclasses import replace

import numpy as np

from diffgr2.data.split import RawData
from diffgr2.errors import DataError


class Gatherer:
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
        """All of them, ids sorted."""
        if not self._user:
            raise DataError(f"{source}: holds no usable interactions")
        users, user_N = _sorted_ids(self.users, np.array(self._user, dtype=np.int64))
        items, item_N = _sorted_ids(self.items, np.array(self._item, dtype=np.int64))
        time_N = np.array(self._time, dtype=np.int64)
        position_N = np.array(self._position, dtype=np.int64)
        return RawData(source, users, items, user_N, item_N, time_N, position_N, timed)


def _sorted_ids(numbers: dict[str, int], codes_N: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Ids in sorted order and the codes that fit them."""
    ids = sorted(numbers)
    place = np.empty(len(ids), dtype=np.int64)
    place[[numbers[raw] for raw in ids]] = np.arange(len(ids))
    return ids, place[codes_N]


def renamed(raw: RawData, user_names: dict[str, str], item_names: dict[str, str]) -> RawData:
    """The same interactions under other ids where the maps know them; two must not become one."""
    new_users = {user_names.get(old, old): number for number, old in enumerate(raw.users)}
    new_items = {item_names.get(old, old): number for number, old in enumerate(raw.items)}
    for kind, old, new in (("user", raw.users, new_users), ("item", raw.items, new_items)):
        if len(new) != len(old):
            raise DataError(f"{raw.source}: the id map gives two {kind}s the same name")
    users, user_N = _sorted_ids(new_users, raw.user_N)
    items, item_N = _sorted_ids(new_items, raw.item_N)
    return replace(raw, users=users, items=items, user_N=user_N, item_N=item_N)
