"""A look at a file of records: its columns, and what stands in them.

Contract: `peek(path)` reads the head of a csv, tsv, JSON lines, parquet or RecBole file (at most
MOST_ROWS) and returns a `Peek`; a file that is no table is one DataError line. Nothing is decided
here: what a column is for is guessed by `guess`. Not here: imports (`columns`), which read whole
files and set lines aside.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from diffgr2.data.columns import Records, cells, guarded, separated
from diffgr2.data.lines import (
    BadLine,
    Intake,
    each,
    json_object,
    python_dict,
    read_header,
    read_lines,
)
from diffgr2.data.values import milliseconds
from diffgr2.errors import DataError

MOST_ROWS = 200_000
LOOKED_AT = 5_000  # values of a column that tell its kind
ATOMIC = (".inter", ".item")
FLAGS = {"0", "1", "true", "false", "yes", "no", "0.0", "1.0"}
DAY_MS = 86_400_000
TIMES_MS = (631_152_000_000, 2_208_988_800_000)  # 1990 to 2040: numbers that may be moments

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One column of the rows that were read."""

    name: str
    values: list[Any]  # of every row, None where there is nothing

    @cached_property
    def texts(self) -> list[str]:
        """The values that are there, as text."""
        return [_text(value) for value in self.values if value is not None]

    @cached_property
    def counts(self) -> Counter[str]:
        return Counter(self.texts)

    @property
    def distinct(self) -> int:
        return len(self.counts)

    @property
    def filled(self) -> float:
        return len(self.texts) / max(len(self.values), 1)

    @property
    def unique(self) -> float:
        """Share of its values that are distinct."""
        return self.distinct / max(len(self.texts), 1)

    @cached_property
    def kind(self) -> str:
        """empty, list, flag, whole, number, time or text: what nearly all values are."""
        looked = [value for value in self.values if value is not None][:LOOKED_AT]
        if not looked:
            return "empty"
        kinds = Counter(map(_kind, looked))
        if kinds["whole"] + kinds["number"] >= 0.98 * len(looked):
            flags = self.distinct == 2 and set(map(str.lower, self.counts)) <= FLAGS
            numbers = "number" if kinds["number"] else "whole"
            return "flag" if flags else numbers
        kind, most = kinds.most_common(1)[0]
        flag = kind == "flag" or (self.distinct == 2 and {*map(str.lower, self.counts)} <= FLAGS)
        if flag and most >= 0.98 * len(looked):
            return "flag"
        return kind if most >= 0.98 * len(looked) and kind != "flag" else "text"

    @cached_property
    def numbers(self) -> list[float]:
        """Of a column of numbers."""
        return [number for text in self.texts if (number := _number(text)) is not None]

    @cached_property
    def moments_ms(self) -> list[int]:
        """The values as moments; empty where one of those looked at is none."""
        found = []
        for value in [value for value in self.values if value is not None][:LOOKED_AT]:
            try:
                found.append(milliseconds(value, self.name))
            except BadLine:
                return []
        inside = all(TIMES_MS[0] <= moment <= TIMES_MS[1] for moment in found)
        return found if inside else []

    @property
    def dates(self) -> str:
        """From which day to which."""
        moments = self.moments_ms
        return f"{_day(min(moments))} to {_day(max(moments))}" if moments else self.range

    @property
    def words(self) -> float:
        """Mean number of words of a value."""
        looked = self.texts[:LOOKED_AT]
        return sum(len(text.split()) for text in looked) / max(len(looked), 1)

    @property
    def range(self) -> str:
        """The values in words: from, to, or the commonest."""
        if self.kind == "list":
            return next((" > ".join(map(str, v)) for v in self.values if v is not None), "")
        if self.kind in ("whole", "number") and self.numbers:
            return f"{min(self.numbers):g} to {max(self.numbers):g}"
        if self.kind == "time":
            return self.dates
        return ", ".join(text[:24] for text, _ in self.counts.most_common(3))


@dataclass(frozen=True)
class Peek:
    """A file's head."""

    path: Path
    columns: dict[str, Column]
    rows: int  # read
    whole: bool  # whether that is all of them
    bad: int = 0  # lines that could not be read
    source: str = "table"  # the importer that knows the shape

    @property
    def size(self) -> str:
        return f"{self.rows:,} lines" if self.whole else f"more than {self.rows:,} lines"


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return value.strip() if isinstance(value, str) else str(value)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "flag"
    if isinstance(value, list | tuple | dict):
        return "list"
    if isinstance(value, date):
        return "time"
    text = _text(value)
    if text.lstrip("-").isdigit():
        return "whole"
    if _number(text) is not None:
        return "number"
    if text[:4].isdigit() and text[4:5] in ("-", "/"):
        try:
            milliseconds(text, "")
        except BadLine:
            return "text"
        return "time"
    return "text"


def _day(moment_ms: int) -> str:
    return datetime.fromtimestamp(moment_ms / 1000, UTC).date().isoformat()


# ------------------------------------------------------------------------------------ reading


def suffix_of(path: Path) -> str:
    """What kind of file its name says it is, packed or not."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def peek(path: Path) -> Peek:
    """See the module's docstring."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    intake = Intake(path.name, None, 1.0)
    kind = suffix_of(path)
    if kind == ".parquet":
        return _of_rows(path, *_parquet(path))
    if kind == ".txt":
        return Peek(path, {}, 0, False, source="p5")
    if kind in (".jsonl", ".json"):  # Amazon's older metadata are Python dicts, under .json
        parse = json_object if kind == ".jsonl" else python_dict
        rows = (value for _, _, value in each(read_lines(path, intake), intake, parse))
    elif kind in (".csv", ".tsv", *ATOMIC):
        rows = (value for _, _, value in _records(path, kind, intake))
    else:
        known = ".csv, .tsv, .jsonl (each also .gz), .parquet, .inter and .item"
        raise DataError(f"{path}: its name tells no format (known: {known})")
    head = list(islice(rows, MOST_ROWS + 1))
    if not head:
        first = (
            f" but {intake.rejected} that cannot be read: {intake.first[0]}"
            if intake.rejected
            else ""
        )
        raise DataError(f"{path.name}: holds no lines{first}")
    if intake.rejected > len(head):
        raise DataError(
            f"{path.name}: {intake.rejected} of {intake.rejected + len(head)} lines cannot be "
            f"read; first: {intake.first[0]}"
        )
    whole = len(head) <= MOST_ROWS
    return _of_rows(path, head[:MOST_ROWS], whole, intake.rejected)


def _of_rows(path: Path, rows: list[Row], whole: bool, bad: int = 0) -> Peek:
    names = list(dict.fromkeys(name for row in rows[:1_000] for name in row))
    columns = {name: Column(name, [_value(row.get(name)) for row in rows]) for name in names}
    return Peek(path, columns, len(rows), whole, bad, shape_of(path, set(names)))


def shape_of(path: Path, names: set[str]) -> str:
    """The publisher's format that a file has, by its name and columns, or `table`."""
    if suffix_of(path) in ATOMIC:
        return "recbole"
    if {"parent_asin", "timestamp", "user_id"} <= names or {
        "parent_asin",
        "main_category",
    } <= names:
        return "amazon2023"
    if suffix_of(path) != ".json":
        return "table"
    reviews = {"reviewerID", "asin", "unixReviewTime"} <= names
    if reviews or ("asin" in names and names & {"title", "categories", "category", "salesRank"}):
        return "amazon2018" if names & {"verified", "style", "vote", "category"} else "amazon2014"
    return "table"


def _value(value: Any) -> Any:
    """None for what says nothing."""
    if isinstance(value, str):
        return None if value.strip().lower() in ("", "nan", "null", "none", "n/a") else value
    if isinstance(value, float) and math.isnan(value):
        return None
    return None if isinstance(value, list | tuple) and not value else value


def _records(path: Path, kind: str, intake: Intake) -> Records:
    lines = read_lines(path, intake)
    if kind in ATOMIC:
        named = read_header(lines, intake, lambda text: text.split("\t"))
        header = [name.partition(":")[0] for name in named]
        return cells(((n, text, text.split("\t")) for n, text in lines), header, intake)
    return separated(lines, kind[1:], intake)[1]


def _parquet(path: Path) -> tuple[list[Row], bool]:
    import polars as pl

    table = guarded(path, lambda: pl.scan_parquet(path).head(MOST_ROWS + 1).collect())
    if not len(table):
        raise DataError(f"{path.name}: holds no lines")
    return [*table.head(MOST_ROWS).to_dicts()], len(table) <= MOST_ROWS
