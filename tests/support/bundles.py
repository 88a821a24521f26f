"""Bundles for tests: changed copies, sealed again, so that only the change itself is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from diffgr2.artifacts import MANIFEST, json_text, list_files, load_arrays, save_arrays, sealed

NOTE = "diffgr2.json"
WEIGHTS = "model.safetensors"


def copy_of(bundle: Path, to: Path) -> Path:
    """A copy whose files are its own."""
    return shutil.copytree(bundle, to)


def seal(bundle: Path) -> Path:
    """A manifest that lists what is there."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    del manifest["seal"]
    manifest["files"] = list_files(bundle)
    (bundle / MANIFEST).write_text(json_text(sealed(manifest)))
    return bundle


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file; numbers that JSON does not have are written all the same."""
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value) or value))


def edit_arrays(path: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Change the arrays of a part."""
    arrays = load_arrays(path)
    change(arrays)
    save_arrays(path, **arrays)


def edit_weights(bundle: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the model's tensors."""
    tensors = load_file(bundle / WEIGHTS)
    change(tensors)
    save_file(tensors, bundle / WEIGHTS, metadata={"format": "pt"})


def private(bundle: Path, to: Path) -> Path:
    """The same bundle, not said to be simulated: its shoppers are somebody's."""
    copy = copy_of(bundle, to)
    edit_json(copy / NOTE, lambda note: note.pop("shoppers") and None)
    return seal(copy)


def other_weights(bundle: Path, to: Path, seed: int = 1) -> Path:
    """The same bundle with weights that rank otherwise."""
    copy = copy_of(bundle, to)
    source = torch.Generator().manual_seed(seed)

    def shake(tensors: dict[str, torch.Tensor]) -> None:
        for tensor in tensors.values():
            tensor += 0.3 * tensor.std().nan_to_num() * torch.randn(tensor.shape, generator=source)

    edit_weights(copy, shake)
    return seal(copy)


def put_in_place(source: Path, target: Path) -> None:
    """Exchange a served bundle for another one, file by file, the manifest last."""
    for path in sorted(source.rglob("*"), key=lambda path: path.name == MANIFEST):
        if path.is_file():
            new = target / path.relative_to(source).with_name(f".{path.name}.new")
            shutil.copyfile(path, new)
            new.rename(target / path.relative_to(source))
