"""The rows of the results table: which model is decoded how and read how, as data.

Contract: `ROWS` names every decoded row there is, the stage whose model it uses, its way of
decoding (`decode.settings.PRESETS`) and its read-out. Where responses can hold both, a plain name
is the order of the strengths that the model states, `_written` the permutation that it spells out
after them; `_raw` is the papers' way: nothing held to the grammar, τ = .9, written, and an invalid
list falls to the floor. `rows_of_recipe` are the rows that a recipe's responses allow. Not here:
decoding them (`score`), baselines without a model (`report`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from diffgr2.choices import Answering

if TYPE_CHECKING:
    from diffgr2.config import Recipe

How = Literal["ar", "ar_raw", "recommended", "raw", "verify"]
RAW: tuple[How, ...] = ("ar_raw", "raw")
SAYING = ("compact", "brief")
"""Templates that state strengths; the others have a written answer alone."""


@dataclass(frozen=True)
class RowSpec:
    """One decoded row."""

    name: str
    model: str  # stage whose model is decoded
    how: How
    reasoning: bool = True
    answer: Answering = "said"

    def policy(self, repair: str) -> str:
        """What becomes of an invalid written answer, where the recipe says `repair`."""
        return "floor" if self.how in RAW else repair

    @property
    def mended(self) -> bool:
        """Whether the recipe's policy for written answers touches this row."""
        return self.answer == "written" and self.how not in RAW


DIFFUSION = {
    "naive": "convert",
    "cft": "cft",
    "cft_opd": "opd",
    "cft_opd_rl": "block_rl",
    "cft_rl": "cft_rl",
}


def _both(name: str, model: str, how: How, reasoning: bool = True) -> tuple[RowSpec, RowSpec]:
    """A row as it says and as it writes."""
    said = RowSpec(name, model, how, reasoning)
    return said, replace(said, name=f"{name}_written", answer="written")


ROWS = (
    *_both("ar_direct", "direct_rl", "ar", reasoning=False),
    RowSpec("block_direct", "block_rl", "recommended", reasoning=False),
    RowSpec("ar_sft", "sft", "ar"),
    *_both("ar", "rl", "ar"),
    RowSpec("ar_raw", "rl", "ar_raw", answer="written"),
    *(row for name, model in DIFFUSION.items() for row in _both(name, model, "recommended")),
    *(RowSpec(f"{name}_raw", model, "raw", answer="written") for name, model in DIFFUSION.items()),
    RowSpec("student_ar", "block_rl", "ar"),
    *_both("verify", "block_rl", "verify"),
)


def rows_of_recipe(recipe: Recipe) -> tuple[RowSpec, ...]:
    """The rows that the recipe's responses allow, as they are read there: without a permutation
    behind the strengths nothing is written, without strengths the plain names are what is."""
    if recipe.prompt.template not in SAYING:
        kept = [row for row in ROWS if not row.name.endswith("_written")]
        return tuple(replace(row, answer="written") for row in kept)
    return tuple(row for row in ROWS if row.answer in ("said", recipe.prompt.answer))


def read_row(recipe: Recipe, name: str) -> str:
    """The row of this name, or its `_written` one where the recipe reads answers so."""
    rows = {spec.name for spec in rows_of_recipe(recipe)}
    written = f"{name}_written"
    return written if recipe.decode.answer == "written" and written in rows else name
