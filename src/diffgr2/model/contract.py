"""The block-diffusion section of a checkpoint's config.json, and its check at load.

Contract: a converted checkpoint records `{block_size, mask_token_id, alignment, clean_attention,
origin, format}` and whether it diffuses by an adapter; `read_contract` returns it validated, and a
section that is missing, incomplete or at odds with the weights is a CheckpointError, never a
warning. `contract_of` asks a model directory, also one of another project's format (`FORMATS`),
whose config says less. Not here: what the fields do (`layout`, `decode`, `stages.cft`), weights
(`load`), families (`family`), adapters (`adapter`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from diffgr2.artifacts import read_json
from diffgr2.errors import ArtifactError, CheckpointError

SECTION = "block_diffusion"
VOCABULARY_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocabulary.json",
)
"""What every model directory holds beside weights and config.json."""

CHAT_TEMPLATE = "chat_template.jinja"
"""Held besides, where the base checkpoint has one."""

MASK = "<|MASK|>"
"""The mask token's name in every tokenizer."""


@dataclass(frozen=True)
class Format:
    """How another project's block-diffusion checkpoints are decoded."""

    name: str
    alignment: str
    masks: tuple[str, ...]  # what its tokenizers call the mask token
    sizes: tuple[str, ...]  # keys of its config for the block's size


FORMATS = {
    "sdar": Format("sdar", "same_position", (MASK,), ("block_size", "block_length")),
    "Fast_dLLM_Qwen": Format("fast_dllm_v2", "shifted", ("|<MASK>|", MASK), ("bd_size",)),
}
"""By model_type. Both count blocks from the document's start and let clean blocks see themselves
whole."""


class BlockContract(BaseModel):
    """How a block-diffusion checkpoint was trained, hence how it must be decoded."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, defer_build=True)

    block_size: int = Field(ge=1, le=4096)
    mask_token_id: int = Field(ge=0)
    alignment: Literal["same_position", "shifted"] = "same_position"
    clean_attention: Literal["either", "causal", "block_causal"] = "either"
    origin: Literal["document", "response"] = "document"
    format: Literal["diffgr2", "sdar", "fast_dllm_v2"] = "diffgr2"  # whose checkpoint it was
    adapter: Literal["masks"] | None = None  # it diffuses by the folder `adapter`, at masks only

    @model_serializer(mode="wrap")
    def _dumped(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if value is not None}

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


def added_tokens(directory: Path) -> dict[str, int]:
    """Names and ids of what tokenizer.json adds to its model's vocabulary."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        return {}
    try:
        entries = read_json(path).get("added_tokens") or []
        return {entry["content"]: int(entry["id"]) for entry in entries}
    except (ArtifactError, AttributeError, KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path}: not a tokenizer") from None


def foreign_section(
    directory: Path, values: dict[str, Any], block_size: int | None = None
) -> dict[str, Any]:
    """The section that a checkpoint of another project's format would have in ours."""
    form = FORMATS[values["model_type"]]
    beside = directory / "generation_config.json"
    said = read_json(beside) if beside.is_file() else {}
    sizes = [where[key] for where in (values, said) for key in form.sizes if where.get(key)]
    size = block_size or (sizes[0] if sizes else None)
    if size is None:
        raise CheckpointError(
            f"{directory}: config.json does not say its block size "
            f"({' or '.join(form.sizes)}; `diffgr2 base import` takes --block-size)"
        )
    known = added_tokens(directory)
    masks = [known[name] for name in form.masks if name in known]
    mask_id = values.get("mask_token_id", masks[0] if masks else None)
    if mask_id is None:
        raise CheckpointError(
            f"{directory}: neither config.json (mask_token_id) nor the tokenizer "
            f"({' or '.join(form.masks)}) says which token is the mask"
        )
    if masks and mask_id not in masks:
        raise CheckpointError(
            f"{directory}: mask_token_id is {mask_id}, the tokenizer's mask is {masks[0]}"
        )
    fixed = {"clean_attention": "block_causal", "origin": "document", "format": form.name}
    return {"block_size": size, "mask_token_id": mask_id, "alignment": form.alignment, **fixed}


def diffuses(values: dict[str, Any]) -> bool:
    """Whether a config.json is that of a block-diffusion checkpoint, ours or another format's."""
    return SECTION in values or values.get("model_type") in FORMATS


def contract_of(directory: Path) -> BlockContract | None:
    """The contract of a model directory, None for an AR model."""
    values = read_config(directory)
    if not diffuses(values):
        return None
    if SECTION not in values:
        values = {**values, SECTION: foreign_section(directory, values)}
    return read_contract(values, int(values["vocab_size"]), str(directory))
