"""The evidence fields: what each says about a candidate, in names and in English.

Contract: `FIELDS` is the order of the F axis everywhere. A larger value is stronger evidence, but
for `rank` and `gap` (0 is best). `zero_is_none` fields have 0 = "no such evidence", which gets
bucket 0 to itself. `phrase` is what an explanation says in favour of a candidate; `{what}` is what
`refers` names: a history item, the newest one, the brand or the category. Not here: how values are
computed (`evidence`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Refers = Literal["item", "last_item", "brand", "category", "nothing"]


@dataclass(frozen=True)
class Field:
    """One column of the evidence."""

    name: str
    meaning: str
    phrase: str
    refers: Refers
    zero_is_none: bool


FIELDS = (
    Field("rank", "place in the retriever's list", "ranked high at first", "nothing", False),
    Field("gap", "retriever score below the list's best", "scored near the best", "nothing", False),
    Field(
        "copurchase",
        "users who bought it near a history item, recent items count more",
        "often bought with {what}",
        "item",
        True,
    ),
    Field(
        "lift",
        "co-purchase relative to what the items' popularity would give",
        "bought with {what} far more than chance",
        "item",
        True,
    ),
    Field(
        "last",
        "co-purchase with the newest item, as a cosine",
        "often bought with the latest item, {what}",
        "last_item",
        True,
    ),
    Field(
        "next",
        "users who bought it soon after a history item, by closeness",
        "often bought after {what}",
        "item",
        True,
    ),
    Field(
        "session",
        "users who bought it soon after the newest item on the same day, by closeness",
        "often bought right after the latest item, {what}",
        "last_item",
        True,
    ),
    Field("brand", "history of the same brand", "same brand: {what}", "brand", True),
    Field("category", "history of like categories", "same kind: {what}", "category", True),
    Field("text", "words shared with the history", "described like {what}", "item", False),
)

NAMES = tuple(field.name for field in FIELDS)
