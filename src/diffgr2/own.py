"""What a recipe says of lists that the shop's own ranker made: the section `lists`.

    lists:
      file: lists.parquet            # parquet, csv, tsv or jsonl, one row per candidate
      columns: {list: request_id, moment: shown_at}
      gains: {click: 1, purchase: 3}
      features: [price, ctr]         # or {ctr: {good: high, phrase: "clicked {often}"}}

Contract: the schema alone, strict like every section (`config`); a recipe without `lists.file` has
lists of its retriever. Not here: reading the file (`data.own_lists`), features as evidence
(`candidates`).
"""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from diffgr2.choices import MOMENT, Counted

LIST_WORDS = ("list", "user", "moment", "item", "place", "score", "history", "shown")
"""What `columns` may map: the list's id, who saw it, when, and per candidate its item, its place
in the shop's order, the score behind that; `history` names purchases inline, oldest first; `shown`
is the place at which it was shown (from 1), where that is another one."""

K_MAX = 20
"""Longest list of one prompt, where a recipe does not say it."""


def _cut(value: object) -> object:
    """A share below 1, or a moment as text; YAML reads an unquoted date as a date."""
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, str) or (isinstance(value, float) and 0.0 < value < 1.0):
        return value
    told = "expected a share between 0 and 1, or a moment such as 2026-09-01"
    raise ValueError(f"{told} (got {str(value)[:80]!r})")


Cut = Annotated[float | str, BeforeValidator(_cut)]
Worth = Annotated[float, Field(gt=0.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class _Section(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True
    )


FEATURE_NAME = r"[^\W_][\w-]{0,39}"
"""A feature's name: it stands in tokens and, where no phrase is given, in sentences."""

SLOTS = ("{grade}", "{often}", "{height}")
"""What a phrase says how much with: low to high, rarely to often, or (of places) high to low."""

_PHRASE = re.compile(r"(?:[^\W_]|[ '’%,/&+$€£-]){2,120}")


def phrase_problem(phrase: object) -> str | None:
    """Why an English phrase cannot be told and read back; None where it can."""
    if not isinstance(phrase, str):
        return "expected text"
    parts = re.split("|".join(map(re.escape, SLOTS)), phrase)
    if len(parts) != 2:
        return f"expected one {' or '.join(SLOTS)} in it, for how much"
    words = "".join(parts)
    if _PHRASE.fullmatch(words) is None or phrase != " ".join(phrase.split()):
        return "expected up to 120 letters, digits, single blanks and ' % , / & + $ € £ -"
    return None


class OwnFeature(_Section):
    """A column of the lists that becomes evidence."""

    column: str | None = None  # of the file; null = the feature's own name
    kind: Literal["number", "category", "flag"] | None = None  # null = by what the column holds
    good: Literal["high", "low", "neither"] | list[str] = "high"  # what speaks for a candidate:
    # high or low numbers, a flag that is set (high) or is not, or the words of a category
    bad: list[str] = []  # words of a category that speak against a candidate
    phrase: str | None = None  # in English, {grade} stands for how much; null = by its name

    @model_validator(mode="after")
    def _sayable(self) -> OwnFeature:
        if self.phrase is not None and (problem := phrase_problem(self.phrase)):
            raise ValueError(f"phrase: {problem} (got {self.phrase[:80]!r})")
        words = self.good if isinstance(self.good, list) else []
        if (words or self.bad) and self.kind in ("number", "flag"):
            raise ValueError(f"good: words are for a category, this is a {self.kind}")
        if twice := sorted({*words} & {*self.bad}):
            raise ValueError(f"bad: {twice[0][:80]!r} is good, too")
        return self


class ListsConfig(_Section):
    """The shop's own lists (lists.*); they take the retriever's place where `file` is given."""

    file: str | None = None  # table of lists, one row per candidate; null = the retriever's
    columns: dict[str, str] = {}  # our word -> column of the file
    gains: dict[str, Worth] = {"bought": 1.0}  # outcome column -> worth
    features: dict[str, OwnFeature] = {}  # name -> how a column becomes evidence
    split: Literal["list", "time", "user"] = "list"  # user: each one's last list is a test list
    validation: Cut = 0.1  # share, or a moment (time)
    test: Cut = 0.2  # share, or a moment (time)
    folds: Annotated[int, Field(ge=2, le=100)] | None = None  # split list: how many parts
    fold: Annotated[int, Field(ge=0)] = 0  # which of them is the test lists
    propensity: Literal["none", "position"] = "none"  # position: what came far down counts more
    point_in_time: bool = False  # evidence from what lies strictly before each list's moment
    max_bad_share: Share = 0.01  # above, the import stops

    @model_validator(mode="before")
    @classmethod
    def _names_alone(cls, values: object) -> object:
        """`features: [price, ctr]` names columns whose kinds the file tells."""
        if isinstance(values, dict) and isinstance(values.get("features"), list):
            names = values["features"]
            if all(isinstance(name, str) for name in names):
                return {**values, "features": {name: {} for name in names}}
        return values

    @model_validator(mode="after")
    def _told_apart(self) -> ListsConfig:
        for name in self.features:
            if re.fullmatch(FEATURE_NAME, name) is None:
                told = f"features: {name[:80]!r}: a name is up to 40 letters, digits, _ and -"
                raise ValueError(f"{told} (`column` says how the file calls it)")
            if name in (*get_args(Counted), *MOMENT):
                told = f"features: {name}: evidence of that name is counted already"
                raise ValueError(f"{told} (give it another, and `column: {name}`)")
        return self

    @model_validator(mode="after")
    def _one_kind_of_cut(self) -> ListsConfig:
        if isinstance(self.validation, str) != isinstance(self.test, str):
            raise ValueError("test: a moment and a share cannot cut together with validation")
        if self.folds is not None and self.split != "list":
            raise ValueError("folds: only split: list has them")
        if self.fold >= (self.folds or 1):
            raise ValueError(f"fold: below lists.folds ({self.folds or 1}) (got {self.fold})")
        return self

    @model_validator(mode="after")
    def _shown_somewhere(self) -> ListsConfig:
        if self.propensity == "position" and self.file is None:
            raise ValueError(
                "propensity: only lists of your own (lists.file) were shown to anybody"
            )
        return self

    @model_validator(mode="after")
    def _known_words(self) -> ListsConfig:
        for word in self.columns:
            if word not in LIST_WORDS:
                raise ValueError(f"columns: unknown word {word} (known: {', '.join(LIST_WORDS)})")
        parts = (self.validation, self.test)
        if self.split != "time" and any(isinstance(part, str) for part in parts):
            raise ValueError("validation: a moment as cut-off needs split: time")
        if sum(part for part in parts if isinstance(part, float)) >= 1.0:
            raise ValueError("test: with validation, nothing is left to train on")
        return self


def with_own_lists(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe's values with what own lists settle: they are as long as they are (up to
    `candidates.k_max`), and without interactions their histories come with them."""
    lists, data = values.get("lists"), values.get("data") or {}
    if not isinstance(lists, dict) or not lists.get("file") or not isinstance(data, dict):
        return values
    candidates = values.get("candidates") or {}
    if isinstance(candidates, dict):
        longest = candidates.get("k_max", K_MAX)
        values = {**values, "candidates": {**candidates, "k": longest}}
    if not data.get("interactions"):
        values = {**values, "data": {**data, "source": "lists"}}
    return values
