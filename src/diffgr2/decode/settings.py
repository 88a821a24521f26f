"""What to decode and how: requests, settings, and the one way from a recipe to settings.

Contract: settings say everything that influences an output besides the model, the prompt and the
writer's random stream. `settings_of` makes them for evaluation, rollouts, the command line and the
server alike: the recipe's decode section, as far as the decoder reads it, under the checkpoint's
contract, changed by a preset (`how`) and by what is given. So a served answer is the evaluated one.
Not here: the contract itself (`model.contract`).
"""

from dataclasses import dataclass
from typing import Any, Literal

from diffgr2.config import DECODERS, DecodeConfig, Decoder, Rule
from diffgr2.decode.grammar import Grammar
from diffgr2.errors import ConfigError
from diffgr2.model.contract import BlockContract

PRESETS: dict[str, dict[str, Any]] = {
    "recommended": {},
    "ar": {"decoder": "ar"},
    "verify": {"decoder": "verify"},
    "raw": {"decoder": "block", "accept": "threshold", "threshold": 0.9, "rule": "raw"},
    "ar_raw": {"decoder": "ar", "rule": "raw"},
}
"""Ways to decode by name; `raw` is the papers' plain rule at their τ, without any grammar."""


@dataclass(frozen=True)
class DecodeSettings:
    """See config.DecodeConfig for the meaning of each field."""

    decoder: Decoder = "ar"
    block_size: int = 32
    mask_id: int = -1
    end_id: int = -1
    alignment: Literal["same_position", "shifted"] = "same_position"
    origin: Literal["document", "response"] = "document"
    accept: Literal["threshold", "static", "entropy"] = "threshold"
    threshold: float = 0.9
    per_step: int = 8
    entropy_bound: float = 0.3
    rule: Rule = "grammar"
    clean_kv: Literal["causal", "block_causal"] = "causal"
    canvas: int = 32
    temperature: float = 0.0
    max_tokens: int = 192
    fused: bool = True  # commit of a block shares the forward of the next block's first step
    details: bool = False  # keep the distribution of every decision

    def __post_init__(self) -> None:
        if self.mask_id < 0 or self.end_id < 0:
            raise ConfigError("decode: mask_id and end_id must be given")
        if not 0.0 <= self.threshold <= 1.0:
            raise ConfigError(f"decode.threshold: {self.threshold} is not within 0 … 1")
        if min(self.block_size, self.per_step, self.canvas, self.max_tokens) < 1:
            raise ConfigError("decode: block_size, per_step, canvas and max_tokens must be ≥ 1")
        if not self.temperature >= 0.0:
            raise ConfigError(f"decode.temperature: {self.temperature} is negative")


@dataclass(frozen=True)
class Frame:
    """What vocabulary and template fix: reserved ids, and the most tokens an answer takes."""

    mask_id: int
    end_id: int
    longest: int


@dataclass(frozen=True)
class DecodeRequest:
    """One prompt; `stream` names its random stream (sampling only)."""

    prompt: list[int]
    grammar: Grammar | None = None
    stream: tuple[str | int, ...] = ("decode",)


def settings_of(
    config: DecodeConfig,
    contract: BlockContract | None,
    frame: Frame,
    how: str = "recommended",
    **given: Any,
) -> DecodeSettings:
    """Settings for a model with this contract (None: autoregressive); see the module's docstring.

    `max_tokens` None means as many as the template needs, and never are there more.
    """
    chosen = {**PRESETS[how], **given}
    decoder = chosen.setdefault("decoder", config.decoder)
    limit = chosen.pop("max_tokens", config.max_tokens)
    values = {key: getattr(config, key) for key in DECODERS[decoder]}
    if decoder != "ar":
        if contract is None:
            raise ConfigError(f"decode.decoder: this model is autoregressive, not {decoder}")
        values |= contract.decoding(config.clean_kv)
    return DecodeSettings(
        mask_id=frame.mask_id,
        end_id=frame.end_id,
        max_tokens=min(limit or frame.longest, frame.longest),
        **{**values, **chosen},
    )
