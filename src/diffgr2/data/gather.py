"""What an importer hands over: interactions, gathered one by one, and texts of items.

Contract: ids are kept once and interactions as integers while they are gathered, so that a million
of them need some 30 MB. Polars is imported where a table of them is made, so that who only gathers
needs none. Not here: parsing, and what becomes of them (`data.split`, `data.arrivals`).
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from diffgr2.errors import DataError

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class ItemText:
    """What a metadata file says about one item."""

    title: str = ""
    brand: str = ""
    categories: tuple[str, ...] = ()
    price: float = float("nan")
    description: str = ""


@dataclass(frozen=True)
class RawData:
    """Well-formed interactions in file order: user, item (raw ids), time, position.

    Ids are numbers of words in sorted order (an `Enum`), so that sorting and counting them is
    arithmetic. Times are milliseconds, so that sources with finer clocks than seconds keep their
    order; without a clock (`timed` false) they are all 0. The position is the source's own order
    among equal times; without one it is the place in the file.
    """

    source: str  # the file's name, for messages
    events: pl.DataFrame
    timed: bool
    texts: dict[str, ItemText] = field(default_factory=dict)  # by raw item id
    again: pl.Series | None = None  # of each: whether its line stood before, where that tells
    placed: bool = False  # the positions are the source's own


class Gatherer:
    """Collects interactions one at a time."""

    def __init__(self) -> None:
        self.users: dict[str, int] = {}
        self.items: dict[str, int] = {}
        self._user, self._item, self._time, self._position = (array("q") for _ in range(4))
        self._again = array("b")
        self._placed = False

    def add(
        self,
        user: str,
        item: str,
        time_ms: int = 0,
        position: int | None = None,
        again: bool = False,
    ) -> None:
        """One interaction; without a position its place in the file counts."""
        self._again.append(again)
        self._placed = position is not None
        self._position.append(len(self._user) if position is None else position)
        self._user.append(self.users.setdefault(user, len(self.users)))
        self._item.append(self.items.setdefault(item, len(self.items)))
        self._time.append(time_ms)

    def arrays(self) -> tuple[np.ndarray, ...]:
        """(user, item, time, position) of each, int64; ids are numbered as in `users`, `items`."""
        columns = (self._user, self._item, self._time, self._position)
        return tuple(np.array(column, np.int64) for column in columns)

    def finish(self, source: str, *, timed: bool) -> RawData:
        """All of them."""
        import polars as pl

        if not self._user:
            raise DataError(f"{source}: holds no usable interactions")
        events = pl.DataFrame(
            {
                "user": pl.Series(list(self.users)).gather(pl.Series(self._user)),
                "item": pl.Series(list(self.items)).gather(pl.Series(self._item)),
                "time": pl.Series(self._time),
                "position": pl.Series(self._position),
            }
        )
        again = pl.Series(self._again) == 1 if any(self._again) else None
        return RawData(source, coded(events), timed, again=again, placed=self._placed)


def coded(events: pl.DataFrame) -> pl.DataFrame:
    """The same interactions with users and items as numbers of words in sorted order."""
    import polars as pl

    words = {kind: events[kind].unique().sort() for kind in ("user", "item")}
    return events.cast({kind: pl.Enum(known) for kind, known in words.items()})


def renamed(raw: RawData, users: dict[str, str], items: dict[str, str]) -> RawData:
    """The same interactions under other ids where the maps know them; two must not become one."""
    import polars as pl

    named = raw.events.cast({"user": pl.String, "item": pl.String})
    events = named.with_columns(pl.col("user").replace(users), pl.col("item").replace(items))
    for kind in ("user", "item"):
        if events[kind].n_unique() != raw.events[kind].n_unique():
            raise DataError(f"{raw.source}: the id map gives two {kind}s the same name")
    return replace(raw, events=coded(events))
