"""Ways to change a bundle that stands: its manifest, files, settings, arrays and texts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffgr2.artifacts import MANIFEST, json_text, sealed
from diffgr2.data.columnar import packed_texts, texts_of
from support.bundles import edit_arrays, edit_json, edit_weights

Change = Callable[[Path], object]


def in_manifest(change: Callable[[dict], object], *, again: bool = True) -> Change:
    """Change the manifest; `again`: with a seal that fits."""

    def apply(bundle: Path) -> None:
        manifest = json.loads((bundle / MANIFEST).read_text())
        change(manifest)
        if again:
            manifest = sealed({key: value for key, value in manifest.items() if key != "seal"})
        (bundle / MANIFEST).write_text(json_text(manifest))

    return apply


def in_files(change: Callable[[dict], object]) -> Change:
    return in_manifest(lambda manifest: change(manifest["files"]))


def listed_as(name: str) -> Change:
    """A further entry that points at a file which is there and as it says."""
    return in_files(lambda files: files.update({name: files["config.json"]}))


def in_text(name: str, old: str, new: str) -> Change:
    """Change a file's text, whatever it is; the manifest stays."""

    def apply(bundle: Path) -> None:
        text = (bundle / name).read_text()
        assert old in text
        (bundle / name).write_text(text.replace(old, new, 1))

    return apply


def flip(name: str) -> Change:
    """One bit; size and time stay."""

    def apply(bundle: Path) -> None:
        path = bundle / name
        facts, data = path.stat(), bytearray(path.read_bytes())
        data[-3] ^= 4
        path.write_bytes(data)
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))

    return apply


def as_link(name: str) -> Change:
    def apply(bundle: Path) -> None:
        (bundle / name).rename(bundle.parent / "elsewhere")
        (bundle / name).symlink_to(bundle.parent / "elsewhere")

    return apply


def as_directory(name: str) -> Change:
    def apply(bundle: Path) -> None:
        (bundle / name).unlink()
        (bundle / name).mkdir()

    return apply


def as_pipe(name: str) -> Change:
    def apply(bundle: Path) -> None:
        (bundle / name).unlink()
        os.mkfifo(bundle / name)

    return apply


def add(name: str) -> Change:
    return lambda bundle: (bundle / name).write_text("{}")


def config(**values: Any) -> Change:
    return lambda b: edit_json(b / "config.json", lambda c: c.update(values))


def contract(**values: Any) -> Change:
    return lambda b: edit_json(
        b / "config.json", lambda c: c["block_diffusion"].update(values) and None
    )


def note(**values: Any) -> Change:
    return lambda b: edit_json(b / "diffgr2.json", lambda n: n.update(values))


def recipe(section: str, **values: Any) -> Change:
    return lambda b: edit_json(
        b / "diffgr2.json", lambda n: n["recipe"][section].update(values) and None
    )


def vocabulary(**values: Any) -> Change:
    return lambda b: edit_json(b / "vocabulary.json", lambda v: v.update(values))


def arrays(name: str, key: str, change: Callable[[np.ndarray], Any]) -> Change:
    """Put other values in an array's place (a change in place returns None)."""

    def apply(found: dict[str, np.ndarray]) -> None:
        array = found[key].copy()
        changed = change(array)
        found[key] = array if changed is None else changed

    return lambda b: edit_arrays(b / name, apply)


def put(value: float) -> Callable[[np.ndarray], None]:
    def apply(array: np.ndarray) -> None:
        array.reshape(-1)[-1] = value

    return apply


def weight(name: str, change: Callable[[torch.Tensor], Any]) -> Change:
    def apply(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = change(tensors[name]).contiguous()

    return lambda b: edit_weights(b, apply)


def texts(name: str, column: str, change: Callable[[list[str]], list[str]]) -> Change:
    """Put other texts in a column's place; the columns beside it stay."""

    def apply(found: dict[str, np.ndarray]) -> None:
        found.update(packed_texts(column, change(texts_of(column, found))))

    return lambda b: edit_arrays(b / name, apply)


def without(name: str, key: str) -> Change:
    return lambda b: edit_arrays(b / name, lambda found: found.pop(key))
