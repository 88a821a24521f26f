"""Columns of lists that say what came of a candidate, and those that only looked back tell.

Contract: `outcomes_of(peek)` finds columns of outcomes, 0 or 1, counts, or amounts of money or time
that are mostly nothing, and what each may be worth; `told_by(peek, outcomes)` finds columns that
say something (almost) only where an outcome does: as evidence they would give the answer away.
Not here: every other column (`guess`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from diffgr2.data.lines import BadLine
from diffgr2.data.own_values import FLAGS, missing, outcome_of
from diffgr2.data.peek import Column, Peek

OUTCOMES = {  # an outcome's name -> its worth, beside others
    "click": 1.0, "clicked": 1.0, "clicks": 1.0, "tap": 1.0, "cart": 2.0, "add_to_cart": 2.0,
    "atc": 2.0, "basket": 2.0, "wishlist": 2.0, "purchase": 3.0, "purchased": 3.0, "bought": 3.0,
    "buy": 3.0, "order": 3.0, "ordered": 3.0, "conversion": 3.0, "converted": 3.0, "sale": 3.0,
    "sold": 3.0, "label": 1.0, "target": 1.0, "relevance_label": 1.0,
}  # fmt: skip
AMOUNTS = {  # names of what an outcome amounted to; of an item they may be its past
    "revenue": 3.0, "sales": 3.0, "gmv": 3.0, "turnover": 3.0, "spend": 3.0, "spent": 3.0,
    "dwell": 1.0, "watch": 1.0, "session_duration": 1.0,
}  # fmt: skip
ASIDE = ("is", "was", "has", "did", "flag")
UNITS = ("seconds", "secs", "sec", "ms", "time", "amount", "value", "total", "sum", "eur", "usd",
         "gbp", "count", "qty", "quantity")  # fmt: skip
MOSTLY = 0.5  # share of lines without an amount, at least
ALMOST = 0.95  # share of a column's values that stand where an outcome does
BY_CHANCE = 1e-4  # how likely so many may stand there by chance, at most


def parts_of(name: str) -> list[str]:
    """A column's name as words: `CustomerID` and `customer_id` are customer, id."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return [part for part in re.split(r"[^a-z0-9]+", spaced.lower()) if part]


def outcomes_of(peek: Peek) -> dict[str, float]:
    """Columns that say what came of a candidate, and what each may be worth."""
    found = flags_of(peek)
    for words in (OUTCOMES, AMOUNTS):
        amounts = [n for n, c in peek.columns.items() if n not in found and _amount(n, c, words)]
        # Sales that stand without any outcome beside them may be an item's past.
        sure = told_by(peek, list(found), amounts) if found and words is AMOUNTS else amounts
        found |= {name: words[_bare(name, words)] for name in sure}
    found = {name: found[name] for name in peek.columns if name in found}
    return found if len(found) > 1 else dict.fromkeys(found, 1.0)


def flags_of(peek: Peek) -> dict[str, float]:
    """Those that are 0 or 1, or small counts."""
    return {n: OUTCOMES[_whole(n)] for n, column in peek.columns.items() if _plain(n, column)}


def why_outcome(column: Column) -> str:
    """Why a column of `outcomes_of` is one, for people."""
    if column.kind == "flag" or {*column.counts} <= {"0", "1"}:
        return "0 or 1, by its name"
    return f"by its name; above 0 counts as one ({column.range})"


def why_unread(name: str, column: Column) -> str:
    """Why a column that is named like an outcome is none, and no feature either; "" otherwise."""
    named = _bare(name, OUTCOMES) or _bare(name, AMOUNTS)
    if not named or column.kind not in ("whole", "number") or _nothing(column) < MOSTLY:
        return ""
    if min(column.numbers, default=0) < 0:
        return f"named like an outcome, but below 0 in places ({column.range}): not read"
    return f"known only afterwards? if it was known before: --map lists.feature={name}"


def told_by(peek: Peek, outcomes: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Of these columns those that stand with an outcome, and with which: what they hold elsewhere
    is nothing, or one value.

    Few such values may be chance, as may many where nearly every candidate has an outcome.
    """
    won = {name: [_came(value) for value in peek.columns[name].values] for name in outcomes}
    anything = [any(row) for row in zip(*won.values(), strict=True)]
    base = sum(anything) / max(len(anything), 1)
    found = {}
    for name in names if won else ():
        told = [at for at, value in enumerate(_said(peek.columns[name].values)) if value]
        with_it = sum(anything[at] for at in told)
        if told and with_it >= ALMOST * len(told) and base**with_it < BY_CHANCE:
            found[name] = max(won, key=lambda one: sum(won[one][at] for at in told))
    return found


def _whole(name: str) -> str:
    return "_".join(part for part in parts_of(name) if part not in ASIDE)


def _bare(name: str, words: dict[str, float]) -> str:
    """The word of these that a column is named by, without its unit; "" for none."""
    whole = _whole(name)
    bare = "_".join(part for part in whole.split("_") if part not in UNITS)
    return next((word for word in (whole, bare) if word in words), "")


def _plain(name: str, column: Column) -> bool:
    """0 or 1, or a small count, under an outcome's name."""
    if _whole(name) not in OUTCOMES:
        return False
    counts = column.kind == "whole" and min(column.numbers) >= 0 and column.distinct <= 20
    return column.kind == "flag" or {*column.counts} <= {"0", "1"} or counts


def _amount(name: str, column: Column, words: dict[str, float]) -> bool:
    """An amount of what came of it: nothing of most candidates, of nobody below 0."""
    if column.kind not in ("whole", "number") or not _bare(name, words):
        return False
    return min(column.numbers, default=-1) >= 0 and _nothing(column) >= MOSTLY


def _nothing(column: Column) -> float:
    """Share of lines in which a column of numbers is 0 or empty."""
    return 1 - sum(number != 0 for number in column.numbers) / max(len(column.values), 1)


def _came(value: Any) -> bool:
    try:
        return outcome_of(value, "")
    except BadLine:
        return False


def _said(values: Sequence[Any]) -> list[bool]:
    """Which values are neither missing nor 0 nor the one that is by far the commonest."""
    words = [_word(value) for value in values]
    commonest = Counter(words).most_common(1)
    return [bool(word) and word != commonest[0][0] for word in words]


def _word(value: Any) -> str:
    """A value as text, "" where it says nothing, or no."""
    word = "" if missing(value) else str(value).strip().lower()
    if FLAGS.get(word) == 0:
        return ""
    try:
        return "" if float(word) == 0 else word
    except ValueError:
        return word
