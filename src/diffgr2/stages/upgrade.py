"""A bundle of an earlier format, written in today's: `diffgr2 upgrade`.

Contract: `upgrade(bundle, out)` checks the old bundle's files against its manifest, lifts a copy
from format to format (`STEPS`), opens what came out, and gives it its name in one rename; the old
bundle is only read. It ranks as before: weights, semantic IDs, counts, bucket edges and calibration
are those that it had. Needs the packages of training. Not here: format 1, whose prompts are gone
(`rerank.bundle`), new purchases (`stages.refresh`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer

from diffgr2.artifacts import (
    MANIFEST,
    finish,
    fsync_path,
    load_arrays,
    read_json,
    save_arrays,
    write_json,
)
from diffgr2.candidates.fields import as_json, counted_named, pair_kinds
from diffgr2.candidates.index import read_fields
from diffgr2.data import columnar
from diffgr2.data.store import ITEMS, REPORT, USERS, read_dataset
from diffgr2.errors import ConfigError
from diffgr2.model.backends import write_graphs
from diffgr2.prompts.vocab import Vocabulary, VocabularySpec
from diffgr2.recipe import validate
from diffgr2.rerank.bundle import (
    FORMAT,
    NOTE,
    SECTIONS,
    UPGRADED,
    OtherError,
    check_format,
    format_of,
    listed_files,
    opened,
    read_strict,
)
from diffgr2.rerank.reranker import Reranker

OLD_KINDS = ("together", "forward", "session")
"""The pair counts of formats before 5, whichever fields read them."""

ROWS = 64
"""Embeddings come in multiples of it."""


def upgrade(bundle: Path, out: Path | None = None) -> Path:
    """See the module's docstring; where the new bundle stands."""
    bundle = bundle if bundle.name else bundle.resolve()
    final = out or bundle.with_name(f"{bundle.name}-format-{FORMAT}")
    if final.exists():
        raise ConfigError(f"{final}: stands already (give --out another name)")
    if final.resolve().is_relative_to(bundle.resolve()):
        raise ConfigError(f"{final}: lies within the old bundle")
    if not final.absolute().parent.is_dir():
        raise ConfigError(f"{final.parent}: no such directory")
    temporary = final.with_name(f".{final.name}.upgrade")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        opened(bundle, lambda old: _lift(old, temporary), _older)
        opened(temporary, Reranker)
        os.rename(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    fsync_path(final.absolute().parent)
    return final


def _older(directory: Path) -> dict[str, dict[str, Any]]:
    """The listed files of a bundle that can be lifted; what cannot says what to do instead."""
    path = directory / NOTE
    note = read_strict(path)
    if format_of(note) not in UPGRADED:
        check_format(path, note)
        files = listed_files(directory)
        if has_all_tokens(directory):
            raise OtherError(f"{path}: a bundle of format {format_of(note)} already")
        return files
    return listed_files(directory)


def _lift(old: Path, new: Path) -> None:
    """Copy all files and take them through the steps from their format on."""
    found, manifest = read_strict(old / NOTE), read_strict(old / MANIFEST)
    for name in listed_files(old):
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(old / name, new / name)
    for step in STEPS[found["format"] - UPGRADED.start :]:
        step(new)
    if not has_all_tokens(new):
        tokens_of_the_missing(new)
    recipe = validate(found["recipe"], str(old / NOTE)).model_dump(include=set(SECTIONS))
    fields = read_fields(new / "evidence")
    recipe["evidence"]["fields"] = [field.name for field in fields if field.counted]
    write_json(new / NOTE, {**found, "format": FORMAT, "recipe": recipe})
    write_graphs(new)
    about = {name: manifest[name] for name in manifest if name not in ("files", "seal")}
    finish(new, {**about, "upgraded": found["format"]})


def data_as_arrays(bundle: Path) -> None:
    """2 to 3: catalogue and users were tables."""
    columnar.pack(bundle / "data", read_dataset(bundle / "data"))
    for name in (ITEMS, USERS, REPORT):
        (bundle / "data" / name).unlink()


def fields_with_kinds(bundle: Path) -> None:
    """3 to 4: all fields were counted ones, by their names alone."""
    path = bundle / "evidence" / "index.json"
    about = read_json(path)
    names = [field["name"] for field in about["fields"]]
    write_json(path, {**about, "fields": [as_json(field) for field in counted_named(names)]})


def counts_that_are_read(bundle: Path) -> None:
    """4 to 5: every index counted three kinds of pairs, whichever its fields read."""
    path = bundle / "evidence" / "index.safetensors"
    arrays, kinds = load_arrays(path), pair_kinds(read_fields(path.parent))
    columns = [OLD_KINDS.index(kind) for kind in kinds]
    arrays["value_PV"] = np.ascontiguousarray(arrays["value_PV"][:, columns])
    save_arrays(path, **arrays)


def has_all_tokens(bundle: Path) -> bool:
    """Whether what is missing has tokens of its own, which the first bundles of 5 did without."""
    spec = read_strict(bundle / "vocabulary.json")
    return isinstance(spec, dict) and (
        bool(spec.get("words")) or "missing" in spec.get("bases", ())
    )


def tokens_of_the_missing(bundle: Path) -> None:
    """Tokens for what is missing; no prompt of a model that was trained without has them now."""
    spec = read_json(bundle / "vocabulary.json")
    tokenizer, start = Tokenizer.from_file(str(bundle / "tokenizer.json")), spec["size"]
    tokenizer.add_special_tokens(
        [AddedToken(f"<no_{name}>", special=True) for name in spec["fields"]]
    )
    more = {"size": tokenizer.get_vocab_size(), "bases": {**spec["bases"], "missing": start}}
    vocabulary = Vocabulary(
        tokenizer, VocabularySpec(**{**spec, **more, "fields": tuple(spec["fields"])})
    )
    vocabulary.save(bundle)
    grow(bundle, more["size"], spec["mask_id"])


def grow(bundle: Path, size: int, mask_id: int) -> None:
    """Rows for that many tokens; new ones are like the mask's, which was never to be written."""
    config = read_json(bundle / "config.json")
    more = -(-size // ROWS) * ROWS - config["vocab_size"]
    if more <= 0:
        return
    for path in bundle.glob("*.safetensors"):
        tensors = load_file(path)
        for name in {"model.embed_tokens.weight", "lm_head.weight"} & tensors.keys():
            known = tensors[name]
            tensors[name] = torch.cat([known, known[mask_id].repeat(more, 1)])
        save_file(tensors, path, metadata={"format": "pt"})
    write_json(bundle / "config.json", {**config, "vocab_size": config["vocab_size"] + more})


STEPS: tuple[Callable[[Path], None], ...] = (
    data_as_arrays,
    fields_with_kinds,
    counts_that_are_read,
)
"""From each of `UPGRADED` to the next."""
