"""The rows of the results table: which model is decoded how, as data.

Contract: `ROWS` names every decoded row, the stage whose model it uses and its way of decoding
(`decode.settings.PRESETS`). Diffusion rows stand twice: under the recipe's recommended setting, and
(`_raw`) under the paper's rule at τ = .9. Not here: decoding them (`score`), baselines without a
model (`report`).
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RowSpec:
    """One decoded row."""

    name: str
    model: str  # stage whose model is decoded
    how: Literal["ar", "recommended", "raw", "verify"]
    reasoning: bool = True


DIFFUSION = {
    "naive": "convert",
    "cft": "cft",
    "cft_opd": "opd",
    "cft_opd_rl": "block_rl",
    "cft_rl": "cft_rl",
}

ROWS = (
    RowSpec("ar_direct", "direct_rl", "ar", reasoning=False),
    RowSpec("ar_sft", "sft", "ar"),
    RowSpec("ar", "rl", "ar"),
    *(RowSpec(name, model, "recommended") for name, model in DIFFUSION.items()),
    *(RowSpec(f"{name}_raw", model, "raw") for name, model in DIFFUSION.items()),
    RowSpec("student_ar", "block_rl", "ar"),
    RowSpec("verify", "block_rl", "verify"),
)
