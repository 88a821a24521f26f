"""What a column of the evidence is: the fields that can be counted, and a shop's own.

Contract: `COUNTED` are the fields that `index` counts, in the order that they have wherever several
of them stand. Of a counted field a larger value is stronger evidence, but for `rank` and `gap` (0
is best). `carried` gives those that some data can tell: nothing is "on the same day" where there
are no days. A shop's own field (`kind` other than counted) stands behind them and has its English
from the recipe. `as_json` and `field_of` write and read one. Not here: values and buckets
(`index`), where own fields come from (`own_fields`), wording (`prompts.english`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from diffgr2.choices import MOMENT
from diffgr2.own import FEATURE_NAME, phrase_problem
from diffgr2.types import Catalogue, Histories

Kind = Literal["counted", "number", "category", "flag"]
Good = Literal["high", "low", "neither"]


@dataclass(frozen=True)
class Field:
    """One column of the evidence."""

    name: str
    meaning: str
    zero_is_none: bool = True  # 0 = "no such evidence", which gets bucket 0 to itself
    kind: Kind = "counted"
    good: Good = "neither"  # own: which end speaks for a candidate
    phrase: str | None = None  # own: its English with {grade}; None = by its name
    words: tuple[str, ...] = ()  # category: the words with a bucket of their own, in this order
    rest: bool = False  # category: all other words share the last bucket
    liked: tuple[str, ...] = ()  # category: words that speak for a candidate
    disliked: tuple[str, ...] = ()  # category: words that speak against one

    @property
    def counted(self) -> bool:
        return self.kind == "counted"


COUNTED = (
    Field("rank", "place in the retriever's list", zero_is_none=False),
    Field("gap", "retriever score below the list's best", zero_is_none=False),
    Field("copurchase", "users who bought it near a history item, recent items count more"),
    Field("lift", "co-purchase relative to what the items' popularity would give"),
    Field("last", "co-purchase with the newest item, as a cosine"),
    Field("next", "users who bought it soon after a history item, by closeness"),
    Field(
        "session", "users who bought it soon after the newest item on the same day, by closeness"
    ),
    Field("brand", "history of the same brand"),
    Field("category", "history of like categories"),
    Field("text", "words shared with the history", zero_is_none=False),
    Field("title", "title words shared with the history item whose title is nearest"),
    Field("title_last", "title words shared with the newest item's title"),
    Field("after", "users who bought it soon after a history item, as a cosine"),
    Field("buyers", "users who bought it"),
    Field("fresh", "how short before the newest purchase's day it was last sold"),
    Field("before_last", "users who bought it soon before the newest item, as a cosine"),
    Field("before", "users who bought it soon before a history item, as a cosine"),
    Field("right_after", "users who bought it as the very next after the newest item, as a cosine"),
    Field("month", "users who bought it within a month of a history item, as a cosine"),
    Field("later", "users who bought it on a later day than a history item, as a cosine"),
    Field("trend", "its sales in the 90 days before the newest purchase's day"),
    Field("range", "items of its brand"),
    Field("away", "days from the newest purchase to the request", zero_is_none=False),
    Field("buyers_now", "users who bought it before the day of the request"),
    Field("fresh_now", "how short before the day of the request it was last sold"),
    Field("trend_now", "its sales in the 90 days before the day of the request"),
)

PAIRED = {
    "copurchase": "together",
    "lift": "together",
    "last": "together",
    "next": "forward",
    "session": "session",
    "after": "forward",
    "before_last": "backward",
    "before": "backward",
    "right_after": "adjacent",
    "month": "month",
    "later": "later",
}
"""The fields that count pairs of purchases, and which kind of count each reads."""

OF_NEWEST = ("last", "session", "before_last", "right_after")
"""Those of the pairs that the newest purchase is in."""

TITLED = ("title", "title_last")
"""The fields that read words of titles."""

SOLD = ("buyers", "fresh", "trend", "buyers_now", "fresh_now", "trend_now")
"""The fields that count sales of the candidate alone."""


def names_of(fields: Sequence[Field]) -> tuple[str, ...]:
    return tuple(field.name for field in fields)


def pair_kinds(fields: Sequence[Field]) -> tuple[str, ...]:
    """The kinds of pair counts that these fields read; one at least, which says which pairs are."""
    return tuple(dict.fromkeys(["together", *(PAIRED[n] for n in names_of(fields) if n in PAIRED)]))


def counted_named(names: Sequence[str]) -> tuple[Field, ...]:
    """The counted fields of these names, in this order."""
    known = {field.name: field for field in COUNTED}
    return tuple(known[name] for name in names)


def carried(train: Histories, catalogue: Catalogue, vectors_IE: np.ndarray) -> tuple[Field, ...]:
    """The counted fields that this data can tell, in the order of `COUNTED`.

    Without times the order is the file's. With times, purchases that one user made at one time have
    no order: where that is so of everybody's, nothing is the latest and nothing comes after.
    """
    timed = bool(train.timestamps_N.any())
    user_N = np.repeat(np.arange(train.n_users), train.lengths_U)
    later_N = (np.diff(train.timestamps_N) != 0) & (np.diff(user_N) == 0)
    in_order = not timed or bool(later_N.any())
    ordered = ("last", "next", "after", "before_last", "before", "right_after")
    told = dict.fromkeys(ordered, in_order) | {
        "session": in_order and timed,
        "brand": any(catalogue.brands),
        "category": any(catalogue.categories),
        "text": bool(np.any(vectors_IE)),
        "title": any(catalogue.titles),
        "title_last": in_order and any(catalogue.titles),
        "fresh": timed,
        "month": in_order and timed,
        "later": in_order and timed,
        "trend": timed,
        **dict.fromkeys(MOMENT, timed),
        "range": any(catalogue.brands),
    }
    return tuple(field for field in COUNTED if told.get(field.name, True))


# ------------------------------------------------------------------------------------------ files

_TEXTS = ("words", "liked", "disliked")
LONGEST = 400
"""Characters of any text about a field."""


def as_json(field: Field) -> dict[str, Any]:
    """A field as JSON; a counted one is its name and what that means."""
    if field.counted:
        return {"name": field.name, "kind": field.kind, "meaning": field.meaning}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in vars(field).items()}


def field_of(value: Any) -> Field:
    """What `as_json` wrote; ValueError says what else it is."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError("fields: expected objects with a name")
    name = value["name"][:LONGEST]
    known = {field.name: field for field in COUNTED}
    if value.get("kind") == "counted":
        if name not in known or value != as_json(known[name]):
            raise ValueError(f"fields: {name!r} is not counted by this version")
        return known[name]
    if value.keys() != Field.__dataclass_fields__.keys():
        raise ValueError(f"fields: {name!r}: expected {', '.join(Field.__dataclass_fields__)}")
    if name in known or re.fullmatch(FEATURE_NAME, name) is None:
        raise ValueError(f"fields: {name!r} is no name of an own field")
    if value["kind"] not in get_args(Kind) or value["good"] not in get_args(Good):
        raise ValueError(f"fields: {name}: unknown kind or direction")
    if type(value["zero_is_none"]) is not bool or type(value["rest"]) is not bool:
        raise ValueError(f"fields: {name}: expected true or false")
    if not isinstance(value["meaning"], str) or len(value["meaning"]) > LONGEST:
        raise ValueError(f"fields: {name}: meaning: expected text")
    if value["phrase"] is not None and (problem := phrase_problem(value["phrase"])):
        raise ValueError(f"fields: {name}: phrase: {problem}")
    for key in _TEXTS:
        words = value[key]
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"fields: {name}: {key}: expected a list of texts")
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    return Field(**given)


def fields_of(values: Any) -> tuple[Field, ...]:
    """Fields of an index, each once, the counted ones first and in their order."""
    if not isinstance(values, list) or not values:
        raise ValueError("fields: expected a list of fields")
    fields = tuple(field_of(value) for value in values)
    counted = [field.name for field in fields if field.counted]
    wanted = [field.name for field in COUNTED if field.name in counted]
    if len({*names_of(fields)}) < len(fields) or list(names_of(fields))[: len(counted)] != wanted:
        raise ValueError("fields: one stands twice, or they are not in order")
    return fields
