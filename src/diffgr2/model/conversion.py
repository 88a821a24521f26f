"""Conversion: an AR checkpoint becomes a block-diffusion checkpoint (paper §3.2).

Contract: the weight files are copied byte for byte, whatever their number type; only config.json
gains the block-diffusion section and the mask token an id. A foreign Qwen3-family directory
converts the same way, with the mask id its tokenizer has or the first free row of its embeddings.
Not here: training (`stages.cft`).
"""

import shutil
from pathlib import Path

from diffgr2.artifacts import read_json, write_json
from diffgr2.config import ConvertConfig
from diffgr2.errors import CheckpointError
from diffgr2.model.contract import (
    MASK,
    SECTION,
    VOCABULARY_FILES,
    BlockContract,
    read_config,
    read_contract,
)
from diffgr2.model.load import load

BESIDE = (*VOCABULARY_FILES, "generation_config.json")
"""Files that go along with the weights where the source has them."""


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
    if free < rows:
        return free
    raise CheckpointError(f"{directory}: no free embedding row for the mask token ({rows} rows)")


def convert(source: Path, out: Path, config: ConvertConfig) -> BlockContract:
    """Write the block-diffusion twin of an AR model directory."""
    rows = load(source).config.vocab_size  # refuses what is no whole Qwen3-family checkpoint
    section = {**config.model_dump(), "mask_token_id": mask_id_of(source, rows)}
    contract = read_contract({SECTION: section}, rows, str(source))
    out.mkdir(parents=True, exist_ok=True)
    weights = [*source.glob("*.safetensors"), *source.glob("*.safetensors.index.json")]
    for path in [*weights, *(source / name for name in BESIDE)]:
        if path.is_file():
            shutil.copyfile(path, out / path.name)
    values = read_config(source)
    # Repeated at top level: engines that read it there would fall back to a default.
    parameters = values.get("rope_parameters") or {}
    values.setdefault("rope_theta", parameters.get("rope_theta", 10_000.0))
    write_json(out / "config.json", {**values, SECTION: section})
    return contract
