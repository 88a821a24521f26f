"""The Amazon review sets of 2014, 2018 and 2023, in their publishers' own files.

    2014  reviews_*.json.gz (JSON lines), meta_*.json.gz (Python-dict lines)
    2018  *.json.gz, meta_*.json.gz (JSON lines)
    2023  *.jsonl[.gz] or the benchmark's csv `user_id,parent_asin,rating,timestamp[,history]`,
          meta_*.jsonl[.gz]; items are keyed by parent_asin, times are milliseconds

Contract: `read_interactions` and `read_texts` stream, reject malformed lines into the intake and
hold nothing but ids, integers and the text of wanted items. Not here: repeats, filters and order
(`data.split`).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from diffgr2.data.gather import RowGatherer
from diffgr2.data.lines import (
    BadLine,
    Intake,
    csv_header,
    csv_records,
    each,
    json_object,
    python_dict,
    read_header,
    read_lines,
)
from diffgr2.data.split import ItemText, RawData
from diffgr2.data.values import identifier, item_text, milliseconds, milliseconds_of_text
from diffgr2.errors import DataError

REVIEW_KEYS = {
    "amazon2014": ("reviewerID", "asin", "unixReviewTime", "s"),
    "amazon2018": ("reviewerID", "asin", "unixReviewTime", "s"),
    "amazon2023": ("user_id", "parent_asin", "timestamp", "ms"),
}

META_ID = {"amazon2014": "asin", "amazon2018": "asin", "amazon2023": "parent_asin"}

META_NAMES = {
    "amazon2014": {
        "title": "title",
        "brand": "brand",
        "categories": "categories",
        "price": "price",
        "description": "description",
    },
    "amazon2018": {
        "title": "title",
        "brand": "brand",
        "categories": "category",
        "price": "price",
        "description": "description",
    },
    "amazon2023": {
        "title": "title",
        "brand": "store",
        "categories": "categories",
        "price": "price",
        "description": "description",
    },
}


def read_interactions(path: Path, source: str, intake: Intake) -> RawData:
    """All reviews of a file as interactions."""
    if path.name.removesuffix(".gz").endswith(".csv"):
        if source != "amazon2023":
            raise DataError(f"{path.name}: {source} is JSON lines; a csv goes through source table")
        return _read_csv(path, intake)
    user_key, item_key, time_key, unit = REVIEW_KEYS[source]

    def parse(text: str) -> tuple[str, str, int]:
        record = json_object(text)
        for key in (user_key, item_key, time_key):
            if key not in record:
                raise BadLine(f"key {key} is missing")
        return (
            identifier(record[user_key], user_key),
            identifier(record[item_key], item_key),
            milliseconds(record[time_key], time_key, unit),
        )

    rows = RowGatherer()
    for _, (user, item, time_ms) in each(read_lines(path, intake), intake, parse):
        rows.add(user, item, time_ms)
    intake.finish()
    return rows.finish(intake.name, timed=True)


def _read_csv(path: Path, intake: Intake) -> RawData:
    """The 2023 benchmark's csv."""
    lines = read_lines(path, intake)
    header = read_header(lines, intake, lambda text: csv_header(text, ","))
    for name in ("user_id", "parent_asin", "timestamp"):
        if name not in header:
            raise DataError(f"{intake.name}: line 1: column {name} is missing")
    user_at, item_at, time_at = (header.index(n) for n in ("user_id", "parent_asin", "timestamp"))
    rows = RowGatherer()
    for number, text, fields in csv_records(lines, intake, ","):
        try:
            if len(fields) != len(header):
                raise BadLine(f"{len(fields)} fields, expected {len(header)}")
            rows.add(
                identifier(fields[user_at], "user_id"),
                identifier(fields[item_at], "parent_asin"),
                milliseconds_of_text(fields[time_at], "timestamp", "ms"),
            )
        except BadLine as bad:
            intake.reject(number, str(bad), text)
    intake.finish()
    return rows.finish(intake.name, timed=True)


_STARTS_WITH_ASIN = re.compile(r"""\{\s*['"]asin['"]\s*:\s*['"]([^'"\\]{1,64})['"]""")


def read_texts(
    path: Path, source: str, intake: Intake, wanted: Collection[str]
) -> dict[str, ItemText]:
    """Metadata of the wanted items; the first record of an item counts."""
    key, names = META_ID[source], META_NAMES[source]
    decode: Callable[[str], dict[str, Any]] = python_dict if source == "amazon2014" else json_object

    def parse(text: str) -> tuple[str, ItemText] | None:
        # The metadata holds many times more items than the reviews; most lines name theirs first
        # and need not be parsed (and so are not checked either).
        start = _STARTS_WITH_ASIN.match(text) if key == "asin" else None
        if start and start.group(1) not in wanted:
            return None
        record = decode(text)
        if key not in record:
            raise BadLine(f"key {key} is missing")
        return identifier(record[key], key), item_text(record, names)

    texts: dict[str, ItemText] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd escapes in Python-dict lines are harmless
        for _, found in each(read_lines(path, intake), intake, parse):
            if found and found[0] in wanted:
                texts.setdefault(found[0], found[1])
    intake.finish()
    return texts
