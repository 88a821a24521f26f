"""Any csv, tsv, parquet or JSON-lines file whose columns are named in the recipe.

    columns: {user: user_id, item: item_id, timestamp: ts, title: name}

Contract: `columns` maps our words to the files' columns; a word that is not mapped is looked up
under its own name. `user` and `item` must be found in the interactions and `item` in the item
file; `timestamp` (seconds, milliseconds, ISO text or a parquet date) and `position` (whole numbers)
order the rows and may be absent. Not here: joins or expressions; prepare such a file beforehand.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl

from diffgr2.data.gather import RowGatherer
from diffgr2.data.lines import (
    BadLine,
    Intake,
    csv_header,
    csv_records,
    each,
    json_object,
    read_header,
    read_lines,
)
from diffgr2.data.split import ItemText, RawData
from diffgr2.data.values import (
    TEXT_WORDS,
    identifier,
    item_text,
    milliseconds,
    milliseconds_of_moment,
    milliseconds_of_text,
    whole_number,
)
from diffgr2.errors import DataError

BATCH = 65_536  # parquet rows turned into Python values at a time

Records = Iterator[tuple[int, Any, Mapping[str, Any]]]  # number, raw text, column -> value


def kind_of(path: Path) -> str:
    """csv, tsv, parquet or jsonl, by the file's name."""
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind not in (".csv", ".tsv", ".parquet", ".jsonl"):
        raise DataError(
            f"{path.name}: unknown kind of table "
            "(expected .csv, .tsv, .jsonl, each also with .gz, or .parquet)"
        )
    return kind[1:]


def resolve(
    columns: Mapping[str, str], known: Collection[str], words: Collection[str], file: str
) -> dict[str, str]:
    """Our words that this file has, mapped to its columns."""
    names: dict[str, str] = {}
    for word in words:
        name = columns.get(word, word)
        if name in known:
            names[word] = name
        elif word in columns or word in ("user", "item"):
            shown = ", ".join(sorted(known)[:20])
            raise DataError(f"{file}: columns.{word}: no column {name!r} (it has: {shown})")
    return names


def read_interactions(path: Path, columns: Mapping[str, str], intake: Intake) -> RawData:
    """Interactions of a table."""
    wanted = ("user", "item", "timestamp", "position")
    names, records = _records(path, columns, wanted, intake)
    rows = RowGatherer()
    user_key, item_key = names["user"], names["item"]
    time_key, place_key = names.get("timestamp"), names.get("position")
    for number, text, record in records:
        try:
            user = identifier(record.get(user_key), "user", numbers=True)
            item = identifier(record.get(item_key), "item", numbers=True)
            time_ms = _time(record.get(time_key)) if time_key else 0
            place = whole_number(record.get(place_key), "position") if place_key else None
        except BadLine as bad:
            intake.reject(number, str(bad), text if text is not None else repr(dict(record)))
            continue
        rows.add(user, item, time_ms, place)
    intake.finish()
    return rows.finish(intake.name, timed=time_key is not None)


def read_texts(
    path: Path, columns: Mapping[str, str], intake: Intake, wanted: Collection[str]
) -> dict[str, ItemText]:
    """Metadata of the wanted items; the first record of an item counts."""
    names, records = _records(path, columns, ("item", *TEXT_WORDS), intake)
    texts: dict[str, ItemText] = {}
    for number, text, record in records:
        try:
            item = identifier(record.get(names["item"]), "item", numbers=True)
            if item in wanted and item not in texts:
                texts[item] = item_text(record, names)
        except BadLine as bad:
            intake.reject(number, str(bad), text if text is not None else repr(dict(record)))
    intake.finish()
    return texts


def _time(value: Any) -> int:
    if isinstance(value, str):
        return milliseconds_of_text(value, "timestamp")
    if isinstance(value, date):
        return milliseconds_of_moment(value, "timestamp")
    return milliseconds(value, "timestamp", "auto")


def _records(
    path: Path, columns: Mapping[str, str], words: Collection[str], intake: Intake
) -> tuple[dict[str, str], Records]:
    """Resolved names and the records of any kind of table."""
    kind = kind_of(path)
    if kind == "parquet":
        return _parquet(path, columns, words, intake)
    lines = read_lines(path, intake)
    if kind == "jsonl":
        # JSON lines have no header: the first usable one says which unmapped words there are.
        parsed = each(lines, intake, lambda text: (text, json_object(text)))
        first = next(parsed, None)
        known = first[1][1] if first else {}
        names = {
            word: columns.get(word, word)
            for word in words
            if word in columns or word in known or word in ("user", "item")
        }
        chained = chain([first] if first else [], parsed)
        return names, ((number, text, record) for number, (text, record) in chained)
    delimiter = "," if kind == "csv" else "\t"
    header = read_header(lines, intake, lambda text: csv_header(text, delimiter))
    return resolve(columns, header, words, intake.name), _cells(lines, header, delimiter, intake)


def _cells(
    lines: Iterator[tuple[int, str]], header: list[str], delimiter: str, intake: Intake
) -> Records:
    for number, text, fields in csv_records(lines, intake, delimiter):
        if len(fields) != len(header):
            intake.reject(number, f"{len(fields)} fields, expected {len(header)}", text)
            continue
        yield number, text, dict(zip(header, fields, strict=True))


def _parquet(
    path: Path, columns: Mapping[str, str], words: Collection[str], intake: Intake
) -> tuple[dict[str, str], Records]:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        header = list(pl.read_parquet_schema(path))
        names = resolve(columns, header, words, intake.name)
        table = pl.read_parquet(path, columns=list(dict.fromkeys(names.values())))
    except DataError:
        raise
    except (Exception, pl.exceptions.PanicException) as error:
        # The reader of a foreign binary file can fail in any way; all of them mean the same here.
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise DataError(f"{path.name}: not a readable parquet file ({reason})") from None
    return names, _rows(table, intake)


def _rows(table: pl.DataFrame, intake: Intake) -> Records:
    """Rows as plain values; the number is the row's, from 1."""
    number = 0
    for batch in table.iter_slices(BATCH):
        for record in batch.iter_rows(named=True):
            number += 1
            intake.lines += 1
            yield number, None, record
