"""Training checkpoints: whole or absent, verified before use, newest valid wins.

Contract: a checkpoint is a directory `step-XXXXXXXX` with `model.safetensors`,
`optimizer.safetensors`, `metrics.jsonl` and a manifest that lists their sizes and sha256 and is
itself sealed, written to a temporary directory, synced and renamed once. `resume` removes stray
temporaries, sets corrupt directories aside (one warning each, naming step and file) and loads the
newest valid one; a valid one of another run or model is a CheckpointError. Tensors are stored in
full, so the number of processes may change between save and load. Nothing is pickled and no name
in a manifest is ever used as a path. Not here: random state (there is none) and rollouts (they are
made again; see `loop.Task.round_steps`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from diffgr2 import artifacts
from diffgr2.artifacts import MANIFEST
from diffgr2.config import TrainConfig
from diffgr2.errors import CheckpointError
from diffgr2.train import dist

FORMAT = 1
MODEL, OPTIMIZER, METRICS = "model.safetensors", "optimizer.safetensors", "metrics.jsonl"
FILES = frozenset({MODEL, OPTIMIZER, METRICS})
MANIFEST_LIMIT = 1 << 20  # bytes; a larger one is not ours
FREE_KEYS = frozenset({"checkpoint_every", "keep"})  # may change between runs: no result depends
_NAME = re.compile(r"step-(\d{8})")
_TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class Resumed:
    """Where a run goes on."""

    step: int
    metrics: bytes  # the log up to this step


def identity(task: str, seed: int, config: TrainConfig, model: nn.Module) -> dict[str, Any]:
    """What a checkpoint belongs to; equal identities give bit-identical runs."""
    tensors = {
        name: [str(tensor.dtype), list(tensor.shape)]
        for name, tensor in dist.unique_tensors(model).items()
    }
    return {
        "task": task,
        "seed": seed,
        "config": config.model_dump(mode="json", exclude=set(FREE_KEYS)),
        "model": {
            "parameters": sum(p.numel() for p in model.parameters()),
            "shapes": artifacts.digest(tensors),
        },
    }


# ------------------------------------------------------------------------------------------ writing


def save(
    root: Path,
    step: int,
    identity: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    metrics: bytes,
    keep: int,
) -> None:
    """Write and verify one checkpoint, then drop all but the newest `keep`; all ranks call it."""
    here = dist.world()
    # Gathering is collective, so every rank walks all tensors; only the first one keeps them.
    model_tensors = _gathered(dist.unique_tensors(model))
    optimizer_tensors = _gathered(_optimizer_tensors(model, optimizer))

    def write() -> None:
        manifest = {"format": FORMAT, "step": step, "world_size": here.size, **identity}
        _write(root, step, manifest, model_tensors, optimizer_tensors, metrics)
        for old in _steps(root)[keep:]:
            shutil.rmtree(_path(root, old), ignore_errors=True)

    dist.on_first(write)


def _gathered(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    result = {}
    for name, tensor in tensors.items():
        whole = dist.full(tensor)
        if dist.world().first:
            result[name] = whole.cpu().contiguous()
    return result


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments and counts as flat named tensors: `exp_avg/NAME`."""
    return {
        f"{key}/{name}": value
        for name, parameter in model.named_parameters()
        for key, value in sorted(optimizer.state.get(parameter, {}).items())
    }


def _write(
    root: Path,
    step: int,
    manifest: dict[str, Any],
    model_tensors: dict[str, Tensor],
    optimizer_tensors: dict[str, Tensor],
    metrics: bytes,
) -> None:
    final = _path(root, step)
    temporary = root / f"{_TEMPORARY}{final.name}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        save_file(model_tensors, temporary / MODEL)
        save_file(optimizer_tensors, temporary / OPTIMIZER)
        (temporary / METRICS).write_bytes(metrics)
        manifest = {**manifest, "files": artifacts.list_files(temporary)}
        manifest["seal"] = artifacts.digest(manifest)
        artifacts.write_json(temporary / MANIFEST, manifest)
        for name in (*sorted(FILES), MANIFEST, "."):
            artifacts.fsync_path(temporary / name)
        verify(temporary, step)
        _set_aside(final)  # a run never reaches a step twice unless that checkpoint was refused
        os.rename(temporary, final)
        artifacts.fsync_path(root)
    except (OSError, SafetensorError, CheckpointError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"{final}: step {step} cannot be written ({error})") from None


# ------------------------------------------------------------------------------------------ reading


def resume(
    root: Path,
    identity: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    warn: Callable[[str], None],
) -> Resumed | None:
    """Load the newest valid checkpoint into model and optimizer; None to start from the beginning.

    All ranks call it; the files must be visible to all of them.
    """
    step = dist.on_first(lambda: _choose(root, identity, warn))
    if step is None:
        return None
    path = _path(root, step)
    try:
        _load_model(path / MODEL, model)
        _load_optimizer(path / OPTIMIZER, model, optimizer)
        return Resumed(step, (path / METRICS).read_bytes())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: step {step} cannot be read ({error})") from None


def _choose(root: Path, wanted: Mapping[str, Any], warn: Callable[[str], None]) -> int | None:
    for stray in root.glob(f"{_TEMPORARY}*"):
        _remove(stray)
    for step in _steps(root):
        path = _path(root, step)
        try:
            manifest = verify(path, step)
        except CheckpointError as error:
            warn(f"checkpoint of step {step} skipped: {error}")
            with contextlib.suppress(OSError):
                _set_aside(path)
            continue
        for key, value in wanted.items():
            found = manifest.get(key)
            if found != value:
                raise CheckpointError(f"{path}: belongs to another run ({_gap(key, found, value)})")
        return step
    return None


def _gap(key: str, found: Any, wanted: Any) -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for inner in sorted(found.keys() | wanted.keys()):
            if found.get(inner) != wanted.get(inner):
                return _gap(f"{key}.{inner}", found.get(inner), wanted.get(inner))
    return f"{key} is {found!r} there, {wanted!r} here"


def verify(path: Path, step: int) -> dict[str, Any]:
    """The manifest of a checkpoint that is exactly what was written; CheckpointError otherwise."""
    try:
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise CheckpointError(f"{path}: not a directory")
        names = set(os.listdir(path))
        for name in sorted(names ^ (FILES | {MANIFEST})):
            problem = "does not belong there" if name in names else "file is missing"
            raise CheckpointError(f"{path / name}: {problem}")
        for name in sorted(names):
            if not stat.S_ISREG((path / name).lstat().st_mode):
                raise CheckpointError(f"{path / name}: not a regular file")
        manifest = _read_sealed(path / MANIFEST, step)
        for name in sorted(FILES):
            entry = manifest["files"][name]
            if (path / name).stat().st_size != entry["size"]:
                raise CheckpointError(f"{path / name}: size differs from the manifest")
            if artifacts.sha256_of(path / name) != entry["sha256"]:
                raise CheckpointError(f"{path / name}: content differs from the manifest")
        for name in (MODEL, OPTIMIZER):
            _check_header(path / name)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    return manifest


def _read_sealed(path: Path, step: int) -> dict[str, Any]:
    """A manifest whose every byte is as written: canonical form, and a seal over its content."""
    if path.stat().st_size > MANIFEST_LIMIT:
        raise CheckpointError(f"{path}: too large for a manifest")
    raw = path.read_bytes()
    try:
        manifest = json.loads(raw)
        if not isinstance(manifest, dict):
            raise ValueError
        canonical = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False) + "\n"
        content = {key: value for key, value in manifest.items() if key != "seal"}
        sealed = manifest.get("seal") == artifacts.digest(content)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: not valid JSON") from None
    if raw != canonical.encode() or not sealed:
        raise CheckpointError(f"{path}: manifest was changed after it was written")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format {manifest.get('format')!r} is not {FORMAT}")
    if manifest.get("step") != step:
        raise CheckpointError(f"{path}: manifest is of step {manifest.get('step')!r}, not {step}")
    files = manifest.get("files")
    if not isinstance(files, dict) or files.keys() != FILES:
        raise CheckpointError(f"{path}: manifest lists other files than a checkpoint has")
    if not all(isinstance(e, dict) and e.keys() == {"sha256", "size"} for e in files.values()):
        raise CheckpointError(f"{path}: manifest lacks sizes or hashes")
    return manifest


def _check_header(path: Path) -> None:
    try:
        with safe_open(path, "pt") as file:
            file.keys()
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None


def _load_model(path: Path, model: nn.Module) -> None:
    with safe_open(path, "pt") as file, torch.no_grad():
        mine = dist.unique_tensors(model)
        if set(file.keys()) != set(mine):
            raise CheckpointError(f"{path}: tensors differ from the model's")
        for name, tensor in mine.items():
            stored = file.get_tensor(name)
            if stored.shape != tensor.shape or stored.dtype != tensor.dtype:
                raise CheckpointError(f"{path}: tensor {name} differs in shape or type")
            tensor.copy_(dist.place_like(stored, tensor))


def _load_optimizer(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    parameters = dict(model.named_parameters())
    with safe_open(path, "pt") as file:
        for full_name in file.keys():  # noqa: SIM118 (not a dict)
            key, _, name = full_name.partition("/")
            value = file.get_tensor(full_name)
            if name not in parameters:
                raise CheckpointError(f"{path}: {full_name} is of no parameter of this model")
            if value.dim():
                value = dist.place_like(value, parameters[name])
                if value.shape != parameters[name].shape:
                    raise CheckpointError(f"{path}: {full_name} differs in shape")
            elif optimizer.defaults.get("fused"):
                value = value.to(parameters[name].device)
            # The file is mapped memory that a later retention removes: own the bytes.
            optimizer.state[parameters[name]][key] = value.clone()


# -------------------------------------------------------------------------------------- directories


def _path(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def _steps(root: Path) -> list[int]:
    """Steps that have a directory (or what poses as one), newest first."""
    names = os.listdir(root) if root.is_dir() else []
    return sorted((int(m[1]) for n in names if (m := _NAME.fullmatch(n))), reverse=True)


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _set_aside(path: Path) -> None:
    """Rename a refused checkpoint, so that retention never counts it and people can look at it."""
    if path.is_symlink() or path.exists():
        aside = path.with_name(f"corrupt-{path.name}")
        _remove(aside)
        os.rename(path, aside)
