"""Conversion: an AR checkpoint becomes a block-diffusion checkpoint (paper §3.2).

Contract: every tensor is copied bit for bit; only config.json gains the block-diffusion section and
the mask token an id. A foreign Qwen3-family directory converts the same way, with the mask id its
tokenizer has or the first free row of its embeddings. Not here: training (`cft`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from diffgr2.artifacts import read_json
from diffgr2.config import ConvertConfig
from diffgr2.errors import CheckpointError
from diffgr2.model.contract import SECTION, BlockContract, read_contract
from diffgr2.model.load import load, read_config
from diffgr2.pipeline import StageContext
from diffgr2.prompts.vocab import MASK
from diffgr2.stages.common import write_model


def mask_id_of(directory: Path, rows: int) -> int:
    """The id of the mask token: recorded, known to the tokenizer, or the first free row."""
    if (directory / "vocabulary.json").exists():
        return int(read_json(directory / "vocabulary.json")["mask_id"])
    path = directory / "tokenizer.json"
    if not path.exists():
        raise CheckpointError(f"{path}: file is missing, so the mask id is unknown")
    tokenizer = read_json(path)
    added = {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens", [])}
    if MASK in added:
        return int(added[MASK])
    known = [*tokenizer["model"]["vocab"].values(), *added.values()]
    free = max(known) + 1
    if free >= rows:
        raise CheckpointError(
            f"{directory}: no free embedding row for the mask token ({rows} rows)"
        )
    return free


def convert(source: Path, out: Path, config: ConvertConfig) -> BlockContract:
    """Write the block-diffusion twin of an AR model directory."""
    model = load(source)
    rows = model.config.vocab_size
    section = {**config.model_dump(), "mask_token_id": mask_id_of(source, rows)}
    write_model(model, source, out, {SECTION: section})
    twin = load(out)
    for (name, before), (_, after) in zip(
        model.state_dict().items(), twin.state_dict().items(), strict=True
    ):
        if not torch.equal(before, after):
            raise CheckpointError(f"{out}: tensor {name} changed in conversion")
    return read_contract(read_config(out), rows, str(out))


def run(ctx: StageContext) -> dict[str, Any]:
    contract = convert(ctx.inputs["rl"], ctx.out, ctx.recipe.convert)
    return contract.model_dump()
