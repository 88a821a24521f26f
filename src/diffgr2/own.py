"""What a recipe says of lists that the shop's own ranker made: the section `lists`.

    lists:
      file: lists.parquet            # parquet, csv, tsv or jsonl, one row per candidate
      columns: {list: request_id, moment: shown_at}
      gains: {click: 1, purchase: 3}
      features: [price, ctr]         # or {ctr: {good: high, phrase: "clicked {grade} often"}}

Contract: the schema alone, strict like every section (`config`); a recipe without `lists.file` has
lists of its retriever. Not here: reading the file (`data.own_lists`), features as evidence
(`candidates`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

LIST_WORDS = ("list", "user", "moment", "item", "place", "score", "history")
"""What `columns` may map: the list's id, who saw it, when, and per candidate its item, its place
in the shop's order, the score behind that; `history` names purchases inline, oldest first."""


Part = Annotated[float, Field(gt=0.0, lt=1.0)]
Worth = Annotated[float, Field(gt=0.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class OwnFeature(_Section):
    """A column of the lists that becomes evidence."""

    column: str | None = None  # of the file; null = the feature's own name
    kind: Literal["number", "category", "flag"] | None = None  # null = by what the column holds
    good: Literal["high", "low", "neither"] = "high"  # which end speaks for a candidate
    phrase: str | None = None  # in English, {grade} stands for how much; null = by its name


class ListsConfig(_Section):
    """The shop's own lists (lists.*); they take the retriever's place where `file` is given."""

    file: str | None = None
    columns: dict[str, str] = {}  # our word -> column of the file
    gains: dict[str, Worth] = {"bought": 1.0}  # outcome column -> worth
    features: dict[str, OwnFeature] = {}
    split: Literal["list", "time", "user"] = "list"  # user: each one's last list is a test list
    validation: Part | str = 0.1  # share, or a moment (time)
    test: Part | str = 0.2  # share, or a moment (time)
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
