"""The block-diffusion section of a checkpoint's config.json, and its check at load.

Contract: a converted checkpoint records `{block_size, mask_token_id, alignment, clean_attention,
origin}`; `read_contract` returns it validated, and a section that is missing, incomplete or at odds
with the weights is a CheckpointError, never a warning. `contract_of` asks a model directory. Not
here: what the fields do (`layout`, `decode`, `stages.cft`), and weights (`load`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from diffgr2.artifacts import read_json
from diffgr2.errors import ArtifactError, CheckpointError

FAMILY = ("qwen3", "sdar")
SECTION = "block_diffusion"
VOCABULARY_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocabulary.json",
)
"""What every model directory holds beside weights and config.json."""


MASK = "<|MASK|>"
"""The mask token's name in every tokenizer."""


class BlockContract(BaseModel):
    """How a block-diffusion checkpoint was trained, hence how it must be decoded."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    block_size: int = Field(ge=1, le=4096)
    mask_token_id: int = Field(ge=0)
    alignment: Literal["same_position", "shifted"] = "same_position"
    clean_attention: Literal["either", "causal", "block_causal"] = "either"
    origin: Literal["document", "response"] = "document"

    def decoding(self, clean_kv: str = "causal") -> dict[str, Any]:
        """The decode settings that training fixed; `clean_kv` is a choice if it drew both."""
        both = self.clean_attention == "either"
        return {
            "block_size": self.block_size,
            "alignment": self.alignment,
            "origin": self.origin,
            "clean_kv": clean_kv if both else self.clean_attention,
        }


def read_contract(config: dict[str, Any], vocab_size: int, source: str) -> BlockContract:
    """The validated section of a config.json's values."""
    section = config.get(SECTION)
    if not isinstance(section, dict):
        raise CheckpointError(f"{source}: no {SECTION} section: not a converted checkpoint")
    try:
        contract = BlockContract.model_validate(section)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{source}: {SECTION}.{key}: {first['msg']}") from None
    if contract.mask_token_id >= vocab_size:
        raise CheckpointError(
            f"{source}: {SECTION}.mask_token_id {contract.mask_token_id} is outside the "
            f"vocabulary of {vocab_size}"
        )
    return contract


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a checkpoint directory."""
    path = directory / "config.json"
    try:
        values = read_json(path)
    except ArtifactError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected an object")
    return values


def check_plain(config: Mapping[str, Any], source: str = "") -> None:
    """Refuse what is no plain Qwen3 model: other families compute other things of such weights."""
    kind, where = config.get("model_type"), f"{source}: " if source else ""
    if kind not in FAMILY:
        raise CheckpointError(f"{where}model_type {kind!r} is not of the Qwen3 family")
    other_act = config.get("hidden_act", "silu") != "silu"
    if config.get("attention_bias") or other_act or config.get("use_sliding_window"):
        raise CheckpointError(
            f"{where}attention_bias, use_sliding_window and activations other than silu are not "
            "supported: this is no plain Qwen3 model"
        )


def contract_of(directory: Path) -> BlockContract | None:
    """The contract of a model directory, None for an AR model."""
    values = read_config(directory)
    if SECTION not in values:
        return None
    return read_contract(values, int(values["vocab_size"]), str(directory))
