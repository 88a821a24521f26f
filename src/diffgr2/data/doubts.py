"""What an import finds that can hardly be meant: one line each, and nothing is changed for it.

Contract: `doubts` looks at what was read and what was made of it and returns warnings, most
important first; only an item file that names none of the items is an error. Not here: lines that
cannot be used (`data.lines`), and what is only worth knowing (the report).
"""

from __future__ import annotations

from typing import Any

import polars as pl

from diffgr2.data.gather import RawData
from diffgr2.errors import DataError

MANY_WITHOUT = 0.05  # share of items without a record that is said
MOST_LOST = 0.5  # share of interactions that a k-core takes before it is said
MANY_ITEMS = 0.8  # items per interaction: each was bought about once
SAYING = ("title", "brand", "categories", "description")
"""What tells items apart; a price alone does not."""


def item_file(raw: RawData, name: str, lines: int, told: list[str]) -> list[str]:
    """Of an item file that had so many lines and columns for these words."""
    items = raw.events["item"].unique()
    missing = items.filter(~items.is_in(list(raw.texts))).sort()
    if len(missing) == len(items):
        raise DataError(
            f"{name}: none of its {lines} lines is about one of the {len(items)} items of "
            f"{raw.source} (there: {_some(items.sort())}); do item_columns name the column of ids?"
        )
    found = []
    if not any(word in told for word in SAYING):
        each = lines / max(len(raw.texts), 1)
        twice = f", and each item stands {each:.1f} times in it" if each >= 2 else ""
        found.append(
            f"{name} says no title, brand, category or description of any item{twice}: "
            "is it the item file, do item_columns name its columns?"
        )
    elif not any(text.title or text.brand or text.categories for text in raw.texts.values()):
        found.append(f"{name} has columns for {', '.join(told)}, but no text in them")
    if len(missing) >= MANY_WITHOUT * len(items):
        found.append(
            f"{len(missing)} of {len(items)} items ({len(missing) / len(items):.1%}) have no "
            f"record in {name}, for example {_some(missing)}"
        )
    return found


def _some(ids: pl.Series) -> str:
    return ", ".join(text[:40] for text in ids.head(3).to_list())


def doubts(raw: RawData, report: dict[str, Any]) -> list[str]:
    """Of the interactions and what became of them."""
    found = []
    if not raw.timed and (dropped := report["duplicates_dropped"]):
        found.append(
            f"{dropped} of {report['interactions_in']} lines of {raw.source} stood in it before, "
            "word for word, and are dropped (repeats: keep takes them as repeated purchases)"
        )
    used, outside = report["interactions_used"], report["interactions_outside_core"]
    if outside > MOST_LOST * used:
        found.append(
            f"the {report['k_core']}-core takes {outside} of {used} interactions away "
            f"({outside / used:.0%}); a smaller k_core keeps more"
        )
    if report["items"] > MANY_ITEMS * report["interactions"]:
        found.append(
            f"{report['items']} items share {report['interactions']} interactions: "
            "is `item` the column of products, not of orders?"
        )
    return found
