"""How to decode: one frozen dataclass for all three decoders.

Contract: settings say everything that influences an output besides the model, the prompt and the
row's random key. Not here: recipes (`config.DecodeConfig` is turned into settings by
`from_config`) and the checkpoint's contract, which is checked where a checkpoint is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from diffgr2.config import DecodeConfig
from diffgr2.errors import ConfigError


@dataclass(frozen=True)
class DecodeSettings:
    """See config.DecodeConfig for the meaning of each field."""

    decoder: Literal["ar", "block", "verify"] = "ar"
    block_size: int = 32
    mask_id: int = -1
    end_id: int = -1
    alignment: Literal["same_position", "shifted"] = "same_position"
    origin: Literal["document", "response"] = "document"
    accept: Literal["threshold", "static", "entropy"] = "threshold"
    threshold: float = 0.9
    per_step: int = 8
    entropy_bound: float = 0.3
    rule: Literal["raw", "permutation"] = "raw"
    clean_kv: Literal["causal", "block_causal"] = "causal"
    canvas: int = 32
    temperature: float = 0.0
    max_tokens: int = 192
    fused: bool = True  # commit of a block shares the forward of the next block's first step

    def __post_init__(self) -> None:
        if self.mask_id < 0 or self.end_id < 0:
            raise ConfigError("decode: mask_id and end_id must be given")
        if not 0.0 <= self.threshold <= 1.0:
            raise ConfigError(f"decode.threshold: {self.threshold} is not within 0 … 1")
        if min(self.block_size, self.per_step, self.canvas, self.max_tokens) < 1:
            raise ConfigError("decode: block_size, per_step, canvas and max_tokens must be ≥ 1")
        if not self.temperature >= 0.0:
            raise ConfigError(f"decode.temperature: {self.temperature} is negative")


def from_config(config: DecodeConfig, **contract: object) -> DecodeSettings:
    """Settings of a recipe's decode section plus the checkpoint's contract."""
    values = config.model_dump(exclude={"repair"})
    return DecodeSettings(**{**values, **contract})  # type: ignore[arg-type]
