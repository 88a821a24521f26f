"""Single values of a shop's own lists: moments, places, outcomes, histories, features.

Contract: each function takes a value as a file holds it and returns ours, or raises `BadLine` with
the reason. A cell that says nothing (empty, `na`, `nan`, `null`, `none`, `-`) is a missing value. A
moment is a time (ISO text, a date, or seconds or milliseconds since 1970) or, where it is a whole
number that is too small for one, a position in the user's history. `resolved` finds out what a
feature's column holds, number, category or flag, unless the recipe says so, and makes numbers of
it: a value that the column's kind cannot be is missing, and named. Not here: which column is which
(`own_rows`), buckets (`candidates`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any, Literal

import numpy as np

from diffgr2.data.lines import BadLine
from diffgr2.data.values import LONGEST_ID, clean, identifier, milliseconds

NOTHING = {"", "na", "n/a", "nan", "null", "none", "-"}
FLAGS = {"true": 1, "false": 0, "t": 1, "f": 0, "yes": 1, "no": 0, "y": 1, "n": 0, "1": 1, "0": 0}
TIMES_FROM = 100_000_000
"""Smaller whole numbers are positions; as seconds this is the year 1973."""
LONGEST_HISTORY, LONGEST_WORD, MOST_WORDS = 10_000, 100, 10_000
LARGEST = float(np.finfo(np.float32).max)
NUMERIC_FROM = 0.9
"""Share of a column's values that must be numbers for the others to be mistakes."""

Kind = Literal["number", "category", "flag"]


def plain(value: Any) -> Any:
    """A parquet DECIMAL as the number that it is, whole ones as such; all else as it came.

    >>> plain(Decimal("12.50")), plain(Decimal("3.00")), plain("3.00")
    (12.5, 3, '3.00')
    """
    if not isinstance(value, Decimal):
        return value
    whole = value.is_finite() and value == value.to_integral_value()
    return int(value) if whole else float(value)


def missing(value: Any) -> bool:
    """Whether a cell says nothing."""
    if isinstance(value, str):
        return value.strip().lower() in NOTHING
    return value is None or (isinstance(value, float) and math.isnan(value))


def real(value: Any, name: str) -> float:
    """A finite number; NaN where nothing is said."""
    if missing(value):
        return math.nan
    number = value
    if isinstance(value, str):
        try:
            number = float(value.strip())
        except ValueError:
            raise BadLine(f"{name} is not a number ({_shown(value)!r})") from None
        if "_" in value:  # Python's own way to write numbers, and no file's
            raise BadLine(f"{name} is not a number ({_shown(value)!r})")
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise BadLine(f"{name} is not a number ({_shown(value)})")
    if abs(number) > LARGEST or (isinstance(number, float) and not math.isfinite(number)):
        raise BadLine(f"{name} is not a finite number ({_shown(value)})")
    return float(number)


def _shown(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 40 else text[:37] + "..."


def place_of(value: Any, name: str) -> int | None:
    """A whole number from 0, None where nothing is said; 3.0 is 3."""
    number = real(value, name)
    if math.isnan(number):
        return None
    if number < 0 or number != int(number) or number > 2**53:
        raise BadLine(f"{name} is not a whole number from 0 ({_shown(value)})")
    return int(number)


def outcome_of(value: Any, name: str) -> bool:
    """Whether something came of it: yes or no, or a count of it."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in FLAGS:
        return bool(FLAGS[value.strip().lower()])
    number = real(value, name)
    if number < 0:
        raise BadLine(f"{name} is negative ({_shown(value)})")
    return number > 0  # NaN: nothing is said, and nothing came of it


@dataclass(frozen=True)
class Moment:
    """When a list was shown: a time in milliseconds, or a position in the user's history."""

    kind: Literal["time", "position"]
    value: int


def moment_of(value: Any, name: str) -> Moment | None:
    """See the module's docstring; None where nothing is said."""
    if missing(value):
        return None
    if isinstance(value, date):
        return Moment("time", milliseconds(value, name))
    try:
        number = real(value, name)
    except BadLine:
        if not isinstance(value, str):
            raise
        return Moment("time", milliseconds(value, name))
    if number < 0:
        raise BadLine(f"{name} is negative ({_shown(value)})")
    if number >= TIMES_FROM:
        return Moment("time", milliseconds(number, name))
    if number != int(number):
        raise BadLine(f"{name} is neither a time nor a position ({_shown(value)})")
    return Moment("position", int(number))


def history_of(value: Any, name: str) -> tuple[str, ...] | None:
    """Item ids, oldest first: a list, a JSON list, or text with one of `|`, `;`, `,`, else spaces
    between them. None where there is no such cell; an empty list is an empty history."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                raise BadLine(f"{name} is not a JSON list") from None
        else:
            sign = next((sign for sign in "|;," if sign in text), None)
            value = [part for part in text.split(sign) if part.strip()]
    if not isinstance(value, list | tuple):
        raise BadLine(f"{name} is neither a list nor text")
    if len(value) > LONGEST_HISTORY:
        raise BadLine(f"{name} has more than {LONGEST_HISTORY} items")
    return tuple(identifier(item, f"{name}: an item", numbers=True) for item in value)


# -------------------------------------------------------------------------------------- features


@dataclass(frozen=True)
class Feature:
    """What a feature's column holds, as numbers; NaN is missing."""

    name: str
    kind: Kind
    words: tuple[str, ...]  # of a category, in the order of their numbers
    value_N: np.ndarray  # float32
    bad: tuple[tuple[int, str], ...]  # rows whose value was dropped, and why


def word_of(value: Any, name: str) -> str:
    """A category's value as the word that it goes by, in a file and in a request alike: 3, 3.0 and
    "3" are one; "" is missing.

    >>> [word_of(value, "badge") for value in (3.0, True, " Best&amp;Sold ", "n/a")]
    ['3', 'true', 'Best&Sold', '']
    """
    value = plain(value)
    if missing(value):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if not isinstance(value, str | int | float):
        raise BadLine(f"{name} is no word")
    word = clean(str(value), LONGEST_ID)
    if len(word) > LONGEST_WORD:
        raise BadLine(f"{name} is longer than {LONGEST_WORD} characters")
    return word


def word_in(text: str) -> str:
    """A word that a recipe names, as `word_of` has it; one that no column can hold as it came.

    >>> word_in(" Best&amp;Sold ")
    'Best&Sold'
    """
    try:
        return word_of(text, "") or text
    except BadLine:
        return text


def flag_of(value: Any, name: str) -> float:
    """1 or 0; NaN where nothing is said."""
    if missing(value):
        return math.nan
    key = str(value).strip().lower().removesuffix(".0")
    if key not in FLAGS:
        raise BadLine(f"{name} is neither true nor false ({_shown(value)})")
    return float(FLAGS[key])


def guessed(values: Sequence[Any]) -> Kind:
    """The kind of a column by what it holds."""
    known = [value for value in values if not missing(value)]
    signs = {str(value).strip().lower().removesuffix(".0") for value in known}
    both = signs <= FLAGS.keys() and {FLAGS[sign] for sign in signs} == {0, 1}
    if both or (known and all(isinstance(value, bool) for value in known)):
        return "flag"
    numbers = sum(_like_a_number(value) for value in known)
    return "number" if numbers >= NUMERIC_FROM * len(known) else "category"


def _like_a_number(value: Any) -> bool:
    """Whether it is a number, or one that is none: too large, or infinite."""
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return not isinstance(value, bool)


def resolved(name: str, values: Sequence[Any], kind: Kind | None) -> Feature:
    """A feature's column; `kind` where the recipe says it."""
    kind, words = kind or guessed(values), dict[str, int]()
    value_N = np.full(len(values), np.nan, np.float32)
    bad = []
    for row, value in enumerate(values):
        try:
            if kind == "category":
                word = word_of(value, name)
                value_N[row] = words.setdefault(word, len(words)) if word else math.nan
            else:
                value_N[row] = flag_of(value, name) if kind == "flag" else real(value, name)
        except BadLine as reason:
            bad.append((row, str(reason)))
    return Feature(name, kind, *_sorted(words, value_N), tuple(bad))


def _sorted(words: dict[str, int], value_N: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Words and their numbers in an order that no file decides."""
    if not words:
        return (), value_N
    ranked = sorted(words)
    place_W = np.empty(len(words), np.float32)
    place_W[[words[word] for word in ranked]] = np.arange(len(ranked))
    held_N = ~np.isnan(value_N)
    value_N[held_N] = place_W[value_N[held_N].astype(np.int64)]
    return tuple(ranked), value_N


def noted(features: Sequence[Feature]) -> Iterator[tuple[int, str]]:
    """(row, reason) of every value that was dropped, by row."""
    yield from sorted(entry for feature in features for entry in feature.bad)
