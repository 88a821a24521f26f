"""A shop's own lists as their file holds them: one row per candidate, grouped by list.

    list,user,moment,item,place,score,click,purchase,price
    r1,u7,2026-11-01T10:00:00,i3,1,.93,1,0,19.90

Contract: `read_own(path, config, intake)` reads parquet, csv, tsv or JSON lines, plain or gzip, and
gives the lists in the order of their first rows, each with its candidates in the shop's order: by
place, without places by falling score, without scores as they stand. Our words are looked up as the
recipe maps them, else under their own names or with `_id` behind (`list_id`). What cannot be used
is put aside with a reason: a row alone (its item at a second place, no place, a value that is
none), or all rows of a list (two candidates at one place, two users, two moments, two histories).
An item's second row in a list adds what came of it. A list of one candidate has nothing to rank and
is left out, which is no mistake. A row that has an outcome and no place says what came of the list
outside it. Not here: whose history a list sees (`own_lists`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from diffgr2.data.columns import kind_of_table, open_table
from diffgr2.data.lines import BadLine, Intake
from diffgr2.data.own_values import (
    MOST_WORDS,
    Feature,
    Moment,
    history_of,
    moment_of,
    noted,
    outcome_of,
    place_of,
    plain,
    real,
    resolved,
)
from diffgr2.data.values import identifier
from diffgr2.errors import ConfigError, DataError
from diffgr2.own import LIST_WORDS, ListsConfig

ID_WORDS = ("list", "user", "item")
NEEDED = ("list", "item")


@dataclass
class RawList:
    """One list, under raw ids; its candidates in the shop's order."""

    name: str
    line: int  # of its first row
    text: str = ""
    user: str | None = None
    moment: Moment | None = None
    history: tuple[str, ...] | None = None
    items: list[str] = field(default_factory=list)
    places: list[int | None] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)  # from 1; 0: nobody saw it
    firsts: int = 0  # candidates that are said to have been shown at place 0
    rows: list[int] = field(default_factory=list)  # where each candidate's features stand
    outside: tuple[str, float] | None = None  # item and gain of the best outcome out of the list
    unplaced: int = 0  # rows of outcomes that stand out of the list
    lines: int = 0  # rows that it took
    problem: str = ""

    def agree(self, name: str, value: Any) -> None:
        """What every row of a list says alike; a row may say nothing."""
        if value is None:
            return
        known = getattr(self, name)
        if known is None:
            setattr(self, name, value)
        elif known != value:
            self.problem = self.problem or f"its rows have two {_PLURAL[name]}"

    def sort(self, placed: bool) -> None:
        """Put the candidates into the shop's order."""
        if placed:
            order = sorted(range(len(self.items)), key=lambda at: self.places[at] or 0)
            twins = [a for a, b in pairwise(order) if self.places[a] == self.places[b]]
            if twins and not self.problem:
                self.problem = f"two candidates at place {self.places[twins[0]]}"
        else:
            order = sorted(range(len(self.items)), key=lambda at: -_low(self.scores[at]))
        for column in ("items", "places", "scores", "gains", "shown", "rows"):
            values = getattr(self, column)
            setattr(self, column, [values[at] for at in order])


_PLURAL = {"user": "users", "moment": "moments", "history": "histories"}


def _low(score: float) -> float:
    return -math.inf if math.isnan(score) else score


@dataclass(frozen=True)
class RawLists:
    """What a file of lists holds."""

    file: str
    lists: list[RawList]
    features: list[Feature]  # by row
    names: dict[str, str]  # our word -> the file's column
    single: int  # lists of one candidate, left out
    merged: int  # rows of an item that its list had already

    @property
    def order(self) -> str:
        """What says in which order the shop had its candidates."""
        return next((word for word in ("place", "score") if word in self.names), "file")


def finder(config: ListsConfig, file: str) -> Any:
    """The function from a file's columns to the ones that are read."""

    def find(known: Collection[str]) -> dict[str, str]:
        names = {}
        for word in LIST_WORDS:
            wanted = config.columns.get(word)
            tried = [wanted] if wanted else [word, *([f"{word}_id"] if word in ID_WORDS else [])]
            name = next((name for name in tried if name in known), None)
            if name is None and (wanted or word in NEEDED):
                raise DataError(_lacking(file, f"columns.{word}", tried[0], known))
            if name is not None:
                names[word] = name
        for outcome in config.gains:
            if outcome not in known:
                raise DataError(_lacking(file, f"gains.{outcome}", outcome, known))
            names[f"gains.{outcome}"] = outcome
        for feature, own in config.features.items():
            if (column := own.column or feature) not in known:
                raise DataError(_lacking(file, f"features.{feature}", column, known))
            names[f"features.{feature}"] = column
        _check_told_before(config, names)
        return names

    return find


def _check_told_before(config: ListsConfig, names: Mapping[str, str]) -> None:
    """No feature may be what came of a list, or what the list goes by."""
    words = {names[word]: word for word in LIST_WORDS if word in names and word != "score"}
    for feature, own in config.features.items():
        column, key = own.column or feature, f"lists.features.{feature}"
        if column in config.gains:
            raise ConfigError(
                f"{key}: column {column!r} is an outcome (lists.gains), which nobody knows when a "
                "list is ranked"
            )
        if column in words:
            told = f"the lists' {words[column]} (lists.columns.{words[column]})"
            raise ConfigError(f"{key}: column {column!r} is {told} and no feature")


def _lacking(file: str, key: str, column: str, known: Collection[str]) -> str:
    shown = ", ".join(sorted(known)[:30])
    return f"{file}: lists.{key}: no column {column!r} (it has: {shown})"


def read_own(path: Path, config: ListsConfig, intake: Intake) -> RawLists:
    """See the module's docstring."""
    reader = _Reader(config)
    assumed = _assumed(config)
    names, records = open_table(
        path, kind_of_table(path), finder(config, intake.name), intake, assumed
    )
    reader.named(names)
    for number, text, record in records:
        try:
            reader.row(number, text, record)
        except BadLine as bad:
            intake.reject(number, bad, text or repr(record))
    reader.check_columns(intake.name)
    features = reader.features(intake)
    kept, single = [], 0
    for one in reader.lists.values():
        one.sort("place" in names)
        if "shown" not in names:  # then it was shown in the shop's order
            one.shown = list(range(1, len(one.items) + 1))
        if one.problem:
            intake.reject(one.line, f"list {one.name[:80]}: {one.problem}", one.text)
            intake.rejected += one.lines - 1
        elif len(one.items) > 1:
            kept.append(one)
        else:
            single += len(one.items)
    intake.finish()
    if not kept:
        raise DataError(f"{intake.name}: holds no list of two candidates or more")
    return RawLists(intake.name, kept, features, names, single, reader.merged)


def _assumed(config: ListsConfig) -> set[str]:
    """Columns of JSON lines that the first one may leave out."""
    own = {feature.column or name for name, feature in config.features.items()}
    return {*config.columns.values(), *config.gains, *own}


class _Reader:
    """Takes rows one at a time."""

    def __init__(self, config: ListsConfig) -> None:
        self.config, self.names = config, dict[str, str]()
        self.unmet, self.known = set[str](), set[str]()  # columns that no row held yet, and all
        self.lists: dict[str, RawList] = {}
        self.places: dict[str, dict[str, int]] = {}  # list -> item -> where it stands in it
        self.raw: dict[str, list[Any]] = {name: [] for name in config.features}
        self.line: list[int] = []  # of each feature row
        self.merged = 0

    def named(self, names: dict[str, str]) -> None:
        """Which columns are read."""
        self.names, self.unmet = names, {*names.values()}

    def check_columns(self, file: str) -> None:
        """JSON lines have no header: a column that no line held is a mistyped name."""
        for key, column in self.names.items() if self.known else ():
            if column in self.unmet:
                told = key if "." in key else f"columns.{key}"
                raise DataError(_lacking(file, told, column, self.known))

    def _cell(self, record: Mapping[str, Any], word: str) -> Any:
        return plain(record.get(self.names[word])) if word in self.names else None

    def row(self, number: int, text: str, record: Mapping[str, Any]) -> None:
        """One candidate."""
        if not self.known or self.unmet:
            self.known |= record.keys()
            self.unmet -= record.keys()
        name = identifier(self._cell(record, "list"), self.names["list"], numbers=True)
        item = identifier(self._cell(record, "item"), self.names["item"], numbers=True)
        user, said = None, self._cell(record, "user")
        if said is not None and said != "":
            user = identifier(said, self.names["user"], numbers=True)
        moment = moment_of(self._cell(record, "moment"), self.names.get("moment", "moment"))
        history = history_of(self._cell(record, "history"), self.names.get("history", "history"))
        place = place_of(self._cell(record, "place"), self.names.get("place", "place"))
        score = real(self._cell(record, "score"), self.names.get("score", "score"))
        shown = place_of(self._cell(record, "shown"), self.names.get("shown", "shown"))
        gain = self._gain(record)
        if "place" in self.names and place is None and not gain:
            raise BadLine(f"{self.names['place']} is missing")

        one = self.lists.setdefault(name, RawList(name, number, text))
        one.lines += 1
        for word, value in (("user", user), ("moment", moment), ("history", history)):
            one.agree(word, value)
        if "place" in self.names and place is None:
            one.unplaced += 1
            if one.outside is None or gain > one.outside[1]:
                one.outside = (item, gain)
            return
        stands = self.places.setdefault(name, {})
        if item in stands:
            at = stands[item]
            one.gains[at] = max(one.gains[at], gain)
            if one.places[at] != place:
                raise BadLine(f"item {item[:80]} stands at two places in list {name[:80]}")
            self.merged += 1
            return
        stands[item] = len(one.items)
        one.items.append(item)
        one.places.append(place)
        one.scores.append(score)
        one.gains.append(gain)
        one.shown.append(shown or 0)
        one.firsts += shown == 0
        one.rows.append(len(self.line))
        self.line.append(number)
        for feature in self.raw:
            self.raw[feature].append(self._cell(record, f"features.{feature}"))

    def _gain(self, record: Mapping[str, Any]) -> float:
        """What came of a candidate; of several outcomes the one that is worth most counts."""
        found = (
            worth
            for outcome, worth in self.config.gains.items()
            if outcome_of(plain(record.get(outcome)), outcome)
        )
        return max(found, default=0.0)

    def features(self, intake: Intake) -> list[Feature]:
        """The features of all rows; values that are none are noted."""
        made = []
        for name, values in self.raw.items():
            feature = resolved(name, values, self.config.features[name].kind)
            if feature.kind == "category" and len(feature.words) > MOST_WORDS:
                raise ConfigError(
                    f"lists.features.{name}: {len(feature.words)} different words are ids and no "
                    f"categories (at most {MOST_WORDS})"
                )
            made.append(feature)
        last = -1
        for row, reason in noted(made):
            intake.reject(self.line[row], f"{reason}: taken as missing", "")
            intake.rejected -= row == last  # a row with two of them is one row
            last = row
        return made
