"""Single values of foreign records: ids, times, titles, prices, category paths.

Contract: each function takes a value as a file holds it and returns ours, or raises
`BadLine(reason)` naming the field. Ids and times are strict, because they decide what an
interaction is; descriptive text is cleaned (HTML entities and tags, control characters, runs of
spaces) and cut, because a long title is no reason to lose an item. Not here: which field of which
format holds what.
"""

import html
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache, partial
from typing import Any

from diffgr2.data.gather import ItemText
from diffgr2.data.lines import BadLine

LONGEST_ID = 256  # characters
LONGEST_TITLE, LONGEST_BRAND, LONGEST_DESCRIPTION = 500, 200, 4_000
LATEST_MS = 253_402_300_799_999  # the year 9999
MILLISECONDS_FROM = 100_000_000_000  # `auto`: larger numbers are milliseconds (as seconds: 5138)

_NUMBER = re.compile(r"[+-]?\d{1,20}(\.\d{0,20})?([eE][+-]?\d{1,3})?", re.ASCII)
_PRICE = re.compile(r"\d[\d,]{0,15}(?:\.\d{1,6})?")
_TAG = re.compile(r"<[^<>]{0,300}>")


def identifier(value: Any, name: str, *, numbers: bool = False) -> str:
    """A user or item id; `numbers` admits integers too."""
    if numbers and isinstance(value, int) and not isinstance(value, bool):
        value = str(value) if abs(value) < 10**40 else ""
    if value is None:
        raise BadLine(f"{name} is missing")
    if not isinstance(value, str):
        raise BadLine(f"{name} is not text")
    value = value.strip()
    if not value:
        raise BadLine(f"{name} is empty")
    if len(value) > LONGEST_ID:
        raise BadLine(f"{name} is longer than {LONGEST_ID} characters")
    if not value.isprintable():
        raise BadLine(f"{name} holds unprintable characters")
    return value


def milliseconds(value: Any, name: str, unit: str = "auto", *, text: bool = True) -> int:
    """A time in milliseconds since 1970: a number in this unit (`s`, `ms`, or `auto`: by its size),
    a date or date-time (UTC unless it says otherwise) or, if `text`, a cell that spells one."""
    if isinstance(value, str) and text:
        value = _number_or_date(value.strip(), name)
    if isinstance(value, date):
        if not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day)
        moment = value if value.tzinfo else value.replace(tzinfo=UTC)
        value, unit = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1), "ms"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadLine(f"{name} is {'missing' if value is None else 'not a number'}")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadLine(f"{name} is not finite")
    if value < 0:
        raise BadLine(f"{name} is negative")
    fine = unit == "ms" or (unit == "auto" and value >= MILLISECONDS_FROM)
    if value > LATEST_MS or (result := int(value if fine else value * 1000)) > LATEST_MS:
        raise BadLine(f"{name} is beyond the year 9999")
    return result


def _number_or_date(text: str, name: str) -> int | float | datetime | None:
    if not text:
        return None
    if _NUMBER.fullmatch(text):
        return int(text) if text.isdigit() else float(text)
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise BadLine(f"{name} is neither a number nor an ISO date") from None


def whole_number(value: Any, name: str) -> int:
    """A position: an integer, or a cell that spells one."""
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        value = int(value) if len(value) <= 18 else -1
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
        raise BadLine(f"{name} is not a whole number from 0")
    return value


def clean(text: str, longest: int) -> str:
    """Readable text on one line."""
    text = _TAG.sub(" ", html.unescape(text[: 8 * longest]))
    text = " ".join(text.split())
    if not text.isprintable():
        text = "".join(char for char in text if char.isprintable())
    return text[:longest].strip()


@lru_cache(1 << 14)
def _name(text: str) -> str:
    """`clean` of a name that many items share."""
    return clean(text, LONGEST_BRAND)


def words(value: Any, name: str, longest: int) -> str:
    """Descriptive text: a string, a list of strings, or nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        return clean(value, longest)
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return clean(" ".join(value), longest)
    raise BadLine(f"{name} is not text")


def category_path(value: Any, name: str) -> tuple[str, ...]:
    """A path from general to specific: a list or the longest of several; a text is one name."""
    if value is None:
        return ()
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple):
        raise BadLine(f"{name} is not a list")
    if value and all(isinstance(part, list | tuple) for part in value):
        value = max(value, key=len)
    if not all(isinstance(part, str) for part in value):
        raise BadLine(f"{name} is not a list of text")
    cleaned = (_name(part) for part in value[:20])
    return tuple(part for part in cleaned if part)


def price(value: Any, name: str) -> float:
    """A price; the lower one of a range, NaN where there is none to read."""
    if value is None:
        return math.nan
    if isinstance(value, str):
        match = _PRICE.search(value[:100])
        return float(match.group().replace(",", "")) if match else math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadLine(f"{name} is not a number")
    if isinstance(value, int) and value > 10**15:
        return math.nan
    return float(value) if math.isfinite(value) and value >= 0 else math.nan


_READERS: dict[str, Callable[[Any, str], Any]] = {
    "title": partial(words, longest=LONGEST_TITLE),
    "brand": partial(words, longest=LONGEST_BRAND),
    "price": price,
    "description": partial(words, longest=LONGEST_DESCRIPTION),
}


def item_text(
    record: Mapping[str, Any], names: Mapping[str, str], categories: tuple[str, ...]
) -> ItemText:
    """What a record says about its item, and its categories; `names` maps our words to keys."""
    said = {w: read(record.get(names[w]), names[w]) for w, read in _READERS.items() if w in names}
    return ItemText(categories=categories, **said)
