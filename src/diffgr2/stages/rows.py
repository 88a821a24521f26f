"""The rows of the results table: which model is decoded how, as data (DESIGN §7).

Contract: `ROWS` names every decoded row, the stage whose model it uses and its decode settings;
`settings_of` turns a row into decode settings under a model directory's contract. Diffusion rows
stand twice: under the recipe's recommended setting, and (`_raw`) under the paper's rule at τ = .9.
Not here: decoding them (`score`), baselines without a model (`report`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffgr2.errors import CheckpointError

if TYPE_CHECKING:  # the table of stages reads ROWS, and `--help` must not wait for torch
    from diffgr2.decode.settings import DecodeSettings
    from diffgr2.stages.corpus import Corpus


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
RAW_THRESHOLD = 0.9


def settings_of(corpus: Corpus, directory: Path, how: str, **overrides: Any) -> DecodeSettings:
    """Decode settings of a row for the model in `directory`."""
    from diffgr2.model.contract import contract_of
    from diffgr2.stages.rollouts import settings_for

    config = corpus.recipe.decode
    if how == "ar":
        return settings_for(corpus, decoder="ar", **overrides)
    contract = contract_of(directory)
    if contract is None:
        raise CheckpointError(f"{directory}: not a converted checkpoint, cannot decode as {how}")
    if how == "verify":
        mine: dict[str, Any] = {"decoder": "verify", "canvas": config.canvas}
    elif how == "raw":
        mine = {"decoder": "block", "rule": "raw", "threshold": RAW_THRESHOLD}
    else:
        mine = {
            "decoder": "block",
            "accept": config.accept,
            "threshold": config.threshold,
            "per_step": config.per_step,
            "entropy_bound": config.entropy_bound,
            "rule": config.rule,
        }
    return settings_for(corpus, **{**contract.decoding(config.clean_kv), **mine, **overrides})
