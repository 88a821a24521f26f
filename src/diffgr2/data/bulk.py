"""Interactions of a parquet table, a column at a time: no row becomes an object of its own.

Contract: `interactions(path, find, source, one, intake)` reads what `columns.read_interactions`
promises. A column is checked whole where its type says enough (whole numbers, dates, plain ASCII
ids); any other value is read by the function of `values` that reads a single one, once for every
distinct value. A row that cannot be used is then looked up alone and handed to `one`, which says
why, so messages, counts and the rows put aside are those of a row-by-row reader. One column is held
at a time beside what is made of it: numbers of ids, times, places. Not here: text files
(`columns`), and repeats, filters and order (`split`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from diffgr2.data.columns import guarded
from diffgr2.data.gather import RawData, coded
from diffgr2.data.lines import BadLine, Intake
from diffgr2.data.values import (
    LATEST_MS,
    LONGEST_ID,
    MILLISECONDS_FROM,
    identifier,
    milliseconds,
    whole_number,
)
from diffgr2.errors import DataError

ROWS = 1 << 18
"""Rows that are looked at together, where some cannot be used."""

PLAIN_ID = rf"^[!-~](?:[ -~]{{0,{LONGEST_ID - 2}}}[!-~])?$"
DIGITS = r"^[0-9]{1,15}$"
SIMPLE = (pl.String, pl.Boolean, pl.Date, pl.Datetime)
"""Types of columns, beside whole numbers, whose values are equal where they read alike."""

Names = dict[str, str]


def opened(
    path: Path, find: Callable[[Collection[str]], Names]
) -> tuple[pl.LazyFrame, Names, list[str]]:
    """A parquet file's rows, our names for its columns, and all its columns."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    known = guarded(path, lambda: list(pl.read_parquet_schema(path)))
    return pl.scan_parquet(path, glob=False), find(known), known


def interactions(
    path: Path,
    find: Callable[[Collection[str]], Names],
    unit: str,
    once: bool,
    one: Callable[[Names, Mapping[str, Any]], Any],
    intake: Intake,
) -> RawData:
    """See the module's docstring; `once`: without a clock a row that stood before is marked."""
    rows, names, known = opened(path, find)
    readers = {
        "user": ids,
        "item": ids,
        "timestamp": partial(times, unit=unit),
        "position": places,
    }
    timed = "timestamp" in names
    shown = known if once and not timed else list(dict.fromkeys(names.values()))

    def column(name: str) -> pl.Series:
        return guarded(path, lambda: rows.select(pl.col(name)).collect())[name]

    read = {word: readers[word](column(name), name) for word, name in names.items()}
    events = pl.DataFrame({word: column.rename(word) for word, column in read.items()})
    intake.lines = len(events)
    good = events.select(pl.all_horizontal(pl.all().is_not_null()))[:, 0]
    again = repeated(path, rows) if once and not timed else None
    if not good.all():
        put_aside(path, rows.select(shown), good, partial(one, names), intake)
        events = events.filter(good)
        again = None if again is None else again.filter(good)
    intake.finish()
    if not len(events):
        raise DataError(f"{intake.name}: holds no usable interactions")
    placed = "position" in names
    events = events.with_columns(
        *([] if timed else [pl.lit(0, pl.Int64).alias("time")]),
        *([] if placed else [pl.int_range(pl.len(), dtype=pl.Int64).alias("position")]),
    ).rename({"timestamp": "time"} if timed else {})
    events = coded(events.select("user", "item", "time", "position"))
    again = again if again is not None and again.any() else None
    return RawData(intake.name, events, timed, again=again, placed=placed)


def put_aside(
    path: Path,
    rows: pl.LazyFrame,
    good: pl.Series,
    one: Callable[[Mapping[str, Any]], Any],
    intake: Intake,
) -> None:
    """Say of each row that is not good why it is not."""
    for begin in range(0, len(good), ROWS):
        poor = (~good.slice(begin, ROWS)).arg_true()
        if not len(poor):
            continue
        part = guarded(path, rows.slice(begin, ROWS).collect)[poor]
        for at, record in zip(poor.to_list(), part.iter_rows(named=True), strict=True):
            try:
                one(record)
            except BadLine as bad:
                intake.reject(begin + at + 1, bad, repr(record))
            else:
                raise AssertionError(f"row {begin + at + 1} can be used after all")


def repeated(path: Path, rows: pl.LazyFrame) -> pl.Series:
    """Of each row whether the very same stood before."""
    kinds = guarded(path, rows.collect_schema).dtypes()
    if all(kind.is_integer() or kind in SIMPLE for kind in kinds):
        return ~guarded(path, rows.select(pl.struct(pl.all()).is_first_distinct()).collect)[:, 0]
    seen, found = set[int](), list[bool]()
    for row in guarded(path, rows.collect).iter_rows():
        before = len(seen)
        seen.add(hash(repr(row)))
        found.append(len(seen) == before)
    return pl.Series(found, dtype=pl.Boolean)


# ------------------------------------------------------------------------------ single columns


def ids(column: pl.Series, name: str) -> pl.Series:
    """Ids as text, null where there is none."""
    if column.dtype.is_integer():
        return column.cast(pl.String)
    column = texts(column)
    if column.dtype != pl.String:
        return nothing(column, pl.String)
    known = column.unique().drop_nulls()
    odd = known.filter(~known.str.contains(PLAIN_ID))
    return renamed(column, odd, partial(identifier, name=name, numbers=True))


def times(column: pl.Series, name: str, *, unit: str) -> pl.Series:
    """Milliseconds since 1970, null where there are none."""
    column = texts(column)
    kind = column.dtype
    if kind == pl.String:
        digits = column.str.contains(DIGITS)
        numbers = scaled(column.set(~digits, None).cast(pl.Int64), unit)
        others = column.set(digits, None)
        if others.null_count() == len(others):
            return numbers
        read = partial(milliseconds, name=name, unit=unit)
        return numbers.zip_with(digits.fill_null(value=False), each(others, read, pl.Int64))
    if kind in (pl.Date, pl.Datetime):
        since = column.cast(pl.Datetime("ms")).to_physical().set(column.to_physical() < 0, None)
        return since.set(since > LATEST_MS, None)
    if kind.is_integer() or kind.is_float():
        return scaled(column, unit)
    return nothing(column, pl.Int64)


def scaled(column: pl.Series, unit: str) -> pl.Series:
    """Numbers in this unit as milliseconds."""
    floats = column.dtype.is_float()
    column = column.cast(pl.Float64 if floats else pl.Int64, strict=False)
    column = column.set((column < 0) | (column > LATEST_MS), None)
    if floats:
        column = column.set(~column.is_finite(), None)
    fine = column >= {"ms": 0, "auto": MILLISECONDS_FROM}.get(unit, LATEST_MS + 1)
    found = column.zip_with(fine.fill_null(value=True), column * 1000).cast(pl.Int64)
    return found.set(found > LATEST_MS, None)


def places(column: pl.Series, name: str) -> pl.Series:
    """Positions, null where there are none."""
    column = texts(column)
    if column.dtype == pl.String:
        return each(column, partial(whole_number, name=name), pl.Int64)
    if not column.dtype.is_integer():
        return nothing(column, pl.Int64)
    column = column.cast(pl.Int64, strict=False)
    return column.set((column < 0) | (column >= 2**62), None)


def texts(column: pl.Series) -> pl.Series:
    """The column, as text where its values are words of a list."""
    return column.cast(pl.String) if column.dtype in (pl.Categorical, pl.Enum) else column


def nothing(column: pl.Series, kind: Any) -> pl.Series:
    """A column of which no value can be used."""
    return pl.Series(column.name, [None], dtype=kind).new_from_index(0, len(column))


def each(column: pl.Series, read: Callable[[Any], Any], kind: Any) -> pl.Series:
    """What `read` makes of every distinct value; null where it rejects one."""
    known = column.unique().drop_nulls()
    if not len(known):
        return nothing(column, kind)
    made = pl.Series([value_or_none(read, value) for value in known.to_list()], dtype=kind)
    return column.replace_strict(known, made, default=None, return_dtype=kind)


def renamed(column: pl.Series, odd: pl.Series, read: Callable[[Any], Any]) -> pl.Series:
    """The column with what `read` makes of these values of it."""
    if not len(odd):
        return column
    made = pl.Series([value_or_none(read, value) for value in odd.to_list()], dtype=pl.String)
    return column.replace(odd, made)


def value_or_none(read: Callable[[Any], Any], value: Any) -> Any:
    try:
        return read(value)
    except BadLine:
        return None
