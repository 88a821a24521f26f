"""Conversion: an AR checkpoint becomes a block-diffusion checkpoint (paper §3.2).

Contract: the weight files are copied byte for byte, whatever their number type; only config.json
gains the block-diffusion section and the mask token an id. With an adapter the folder of one is
written too, which adds nothing yet (`adapter`). A foreign directory of any family
converts the same way, its chat template and tokens kept, with the mask that its tokenizer has, or
one that is added to it and takes the first free row of the embeddings; where none is free they grow
(`grown`), old rows bit for bit. Not here: training (`stages.cft`).
"""

import shutil
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from diffgr2.artifacts import read_json, write_json
from diffgr2.config import ConvertConfig
from diffgr2.errors import CheckpointError, first_line
from diffgr2.model.adapter import Adapter, write_adapter
from diffgr2.model.contract import (
    CHAT_TEMPLATE,
    MASK,
    SECTION,
    VOCABULARY_FILES,
    BlockContract,
    added_tokens,
    read_config,
    read_contract,
)
from diffgr2.model.family import rope_of, sizes_of
from diffgr2.model.grown import grow
from diffgr2.model.load import load

BESIDE = (
    *VOCABULARY_FILES,
    CHAT_TEMPLATE,
    "generation_config.json",
    "vocab.json",
    "merges.txt",
)
"""Files that go along with the weights where the source has them."""

PAD_TO = 64
"""Embeddings that grow, grow to a multiple of so many rows."""


def mask_id_of(directory: Path) -> int | None:
    """The id of the mask token: recorded, or known to the tokenizer; None if it has none."""
    if (directory / "vocabulary.json").exists():
        return int(read_json(directory / "vocabulary.json")["mask_id"])
    path = directory / "tokenizer.json"
    if not path.exists():
        raise CheckpointError(f"{path}: file is missing, so the mask id is unknown")
    return added_tokens(directory).get(MASK)


def with_mask(source: Path, out: Path) -> int:
    """Write the source's tokenizer with a mask token added; its id."""
    path = source / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise CheckpointError(f"{path}: not a tokenizer ({first_line(error)})") from None
    taken = {*tokenizer.get_vocab().values()}
    tokenizer.add_special_tokens([AddedToken(MASK, special=True)])
    number = tokenizer.token_to_id(MASK)
    if number is None or number in taken:
        raise CheckpointError(f"{path}: its ids have gaps, so no mask token can be added")
    tokenizer.save(str(out / "tokenizer.json"))
    _named(source / "tokenizer_config.json", out, number, declared=True)
    _named(source / "special_tokens_map.json", out, number, declared=False)
    if (source / "added_tokens.json").is_file():
        write_json(
            out / "added_tokens.json", read_json(source / "added_tokens.json") | {MASK: number}
        )
    return number


def _named(source: Path, out: Path, number: int, *, declared: bool) -> None:
    """A file of special tokens, the mask among them."""
    if not source.is_file():
        return
    values: dict[str, Any] = read_json(source)
    values["mask_token"] = MASK
    if declared and "added_tokens_decoder" in values:
        facts = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
        entry = {"content": MASK, **facts, "special": True}
        values["added_tokens_decoder"] = values["added_tokens_decoder"] | {str(number): entry}
    write_json(out / source.name, values)


def convert(source: Path, out: Path, config: ConvertConfig, seed: int = 0) -> BlockContract:
    """Write the block-diffusion twin of an AR model directory; the seed is an adapter's."""
    rows = load(source).config.vocab_size  # refuses what is no whole checkpoint of a family
    known = mask_id_of(source)
    section = config.model_dump(exclude={"adapter"})
    section |= {"adapter": "masks"} if config.adapter is not None else {}
    if known is not None:  # what is at odds is told before anything is written
        read_contract({SECTION: {**section, "mask_token_id": known}}, rows, str(source))
    out.mkdir(parents=True, exist_ok=True)
    try:
        contract = _written(source, out, section, rows, known)
        if config.adapter is not None:
            adapter = Adapter.of(config.adapter, contract.mask_token_id)
            write_adapter(out, adapter, adapter.initial(sizes_of(read_config(out)), seed))
        return contract
    except BaseException:
        if not any(out.iterdir()):
            out.rmdir()
        raise


def _written(
    source: Path, out: Path, section: dict[str, Any], rows: int, known: int | None
) -> BlockContract:
    mask_id = with_mask(source, out) if known is None else known
    for name in BESIDE:
        if (source / name).is_file() and not (out / name).exists():
            shutil.copyfile(source / name, out / name)
    values = read_config(source)
    if mask_id >= rows:
        values["vocab_size"] = rows = -(-(mask_id + 1) // PAD_TO) * PAD_TO
        grow(source, out, rows)
    else:
        for path in (*source.glob("*.safetensors"), *source.glob("*.safetensors.index.json")):
            shutil.copyfile(path, out / path.name)
    section = {**section, "mask_token_id": mask_id}
    # Repeated at top level: engines that read it there would fall back to a default.
    values.setdefault("rope_theta", rope_of(values)["rope_theta"])
    write_json(out / "config.json", {**values, SECTION: section})
    return read_contract({SECTION: section}, rows, str(source))
