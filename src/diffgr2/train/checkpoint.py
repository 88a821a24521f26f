"""Training checkpoints: whole or absent, verified before use, newest valid wins.

Contract: a checkpoint is a directory `step-XXXXXXXX` with `model.safetensors`,
`optimizer.safetensors`, `metrics.jsonl` and a sealed manifest that lists their sizes and sha256,
published in one rename. `resume` removes stray temporaries, sets corrupt directories aside (one
warning each, naming step and file) and loads the newest valid one; a valid one of another run or
model is a CheckpointError. Tensors are stored in full, so the number of processes may change
between save and load; frozen parameters are not stored but hashed. Nothing is pickled and no name
in a manifest is ever used as a path. Not here: random state (there is none) and rollouts (they are
made again; see `loop.Task.round_steps`).
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
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
from diffgr2.train.log import METRICS
from diffgr2.train.optimizer import Optimizer

FORMAT = 1
MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
FILES = frozenset({MODEL, OPTIMIZER, METRICS})
FREE_KEYS = {"checkpoint_every", "keep"}  # may change between runs: no result depends
NAME = re.compile(r"step-(\d{8})")
TEMPORARY = ".tmp-"
Mark = dict[str, Any]


def identity(task: str, seed: int, config: TrainConfig, model: nn.Module) -> Mark:
    """What a checkpoint belongs to; equal identities give bit-identical runs."""
    tensors = dist.unique_tensors(model)
    shapes = {n: [str(t.dtype), list(t.shape)] for n, t in tensors.items()}
    parameters = sum(p.numel() for p in model.parameters())
    facts = {"parameters": parameters, "shapes": artifacts.digest(shapes)}
    frozen = {name: tensor for name, tensor in tensors.items() if _is_frozen(tensor)}
    if frozen:  # what no checkpoint holds must be what it was
        facts["frozen"] = artifacts.digest({name: _hash(t) for name, t in frozen.items()})
    return {
        "task": task,
        "seed": seed,
        "config": config.model_dump(mode="json", exclude=FREE_KEYS),
        "model": facts,
    }


def _is_frozen(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and not tensor.requires_grad


def _hash(tensor: Tensor) -> str:
    raw = dist.full(tensor).cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(raw.numpy().tobytes()).hexdigest()


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds of a model: all but frozen parameters."""
    return {n: t for n, t in dist.unique_tensors(model).items() if not _is_frozen(t)}


# ------------------------------------------------------------------------------------------ writing


def save(
    root: Path, step: int, mark: Mark, model: nn.Module, optimizer: Optimizer, log: bytes, keep: int
) -> None:
    """Write one checkpoint, then drop all but the newest `keep`; all ranks call it."""
    manifest = {"format": FORMAT, "step": step, "world_size": dist.world().size, **mark}
    # Gathering is collective, so every rank walks all tensors; only the first one keeps them.
    model_tensors = _gathered(_trained(model))
    optimizer_tensors = _gathered(_optimizer_tensors(model, optimizer))

    def write() -> None:
        final = _path(root, step)
        temporary = root / f"{TEMPORARY}{final.name}"
        try:
            temporary.mkdir(parents=True)
            save_file(model_tensors, temporary / MODEL)
            save_file(optimizer_tensors, temporary / OPTIMIZER)
            (temporary / METRICS).write_bytes(log)
            artifacts.publish(temporary, final, manifest)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(f"{final}: step {step} cannot be written ({error})") from None
        for old in _steps(root)[keep:]:
            shutil.rmtree(_path(root, old), ignore_errors=True)

    dist.on_first(write)


def _gathered(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    whole = ((name, dist.full(tensor)) for name, tensor in tensors.items())
    return {name: tensor.cpu().contiguous() for name, tensor in whole if dist.world().first}


def _optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Moments and counts as flat named tensors: `exp_avg/NAME`."""
    return {
        f"{key}/{name}": value
        for name, parameter in model.named_parameters()
        for key, value in sorted(optimizer.state_of(parameter).items())
    }


# ------------------------------------------------------------------------------------------ reading


def resume(
    root: Path, mark: Mark, model: nn.Module, optimizer: Optimizer, warn: Callable[[str], None]
) -> tuple[int, bytes]:
    """Load the newest valid checkpoint into model and optimizer; its step and its metrics log.

    (0, b"") is the beginning. All ranks call it; the files must be visible to all of them.
    """
    step = dist.on_first(lambda: _choose(root, mark, warn))
    if step == 0:
        return 0, b""
    path = _path(root, step)
    try:
        _load_model(path / MODEL, model)
        _load_optimizer(path / OPTIMIZER, model, optimizer)
        return step, (path / METRICS).read_bytes()
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: step {step} cannot be read ({error})") from None


def _choose(root: Path, wanted: Mark, warn: Callable[[str], None]) -> int:
    for stray in root.glob(f"{TEMPORARY}*"):
        shutil.rmtree(stray, ignore_errors=True)
    for step in _steps(root):
        path = _path(root, step)
        try:
            manifest = verify(path, step)
        except CheckpointError as error:
            warn(f"checkpoint of step {step} skipped: {error}")
            with suppress(OSError):  # so that retention never counts it and people can look at it
                aside = path.with_name(f"corrupt-{path.name}")
                shutil.rmtree(aside, ignore_errors=True)
                os.rename(path, aside)
            continue
        found = {key: manifest.get(key) for key in wanted}
        if found != wanted:
            raise CheckpointError(f"{path}: belongs to another run ({_gap('', found, wanted)})")
        return step
    return 0


def _gap(key: str, found: Any, wanted: Any) -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        name = next(name for name in {**wanted, **found} if found.get(name) != wanted.get(name))
        return _gap(f"{key}.{name}".lstrip("."), found.get(name), wanted.get(name))
    return f"{key} is {found!r} there, {wanted!r} here"


def verify(path: Path, step: int) -> dict[str, Any]:
    """The manifest of a checkpoint that is exactly what was written; CheckpointError otherwise."""
    try:
        if path.is_symlink():
            raise CheckpointError(f"{path}: not a directory")
        for entry in os.scandir(path):
            if not entry.is_file(follow_symlinks=False):
                raise CheckpointError(f"{path / entry.name}: not a regular file")
        manifest = _read_sealed(path / MANIFEST)
        for key, wanted in (("format", FORMAT), ("step", step)):
            if manifest.get(key) != wanted:
                raise CheckpointError(f"{path / MANIFEST}: {key} is not {wanted}")
        found, listed = artifacts.list_files(path), manifest["files"]
        for name in sorted({*FILES, *found, *listed}):
            if name not in FILES:
                raise CheckpointError(f"{path}: {name} does not belong there")
            if name not in found or found[name] != listed.get(name):
                raise CheckpointError(f"{path / name}: is missing or was changed")
        for name in (MODEL, OPTIMIZER):
            with safe_open(path / name, "pt"):
                pass  # its header is read
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    return manifest


def _read_sealed(path: Path) -> dict[str, Any]:
    """A manifest whose every byte is as written."""
    raw = path.read_bytes()
    try:
        manifest = json.loads(raw)
        whole = artifacts.json_text(artifacts.sealed(manifest)).encode() == raw
    except (ValueError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise CheckpointError(f"{path}: manifest was changed after it was written")
    return manifest


def _load_model(path: Path, model: nn.Module) -> None:
    mine = _trained(model)
    with safe_open(path, "pt") as file, torch.no_grad():
        if set(file.keys()) != set(mine):
            raise CheckpointError(f"{path}: tensors differ from the model's")
        for name, tensor in mine.items():
            stored = file.get_tensor(name)
            if stored.shape != tensor.shape or stored.dtype != tensor.dtype:
                raise CheckpointError(f"{path}: tensor {name} differs in shape or type")
            tensor.copy_(dist.place_like(stored, tensor))


def _load_optimizer(path: Path, model: nn.Module, optimizer: Optimizer) -> None:
    parameters = dict(model.named_parameters())
    with safe_open(path, "pt") as file:
        for full_name in file.keys():  # noqa: SIM118 (not a dict)
            key, _, name = full_name.partition("/")
            value, parameter = file.get_tensor(full_name), parameters[name]
            value = dist.place_like(value, parameter) if value.dim() else value.to(parameter.device)
            # The file is mapped memory that a later retention removes: own the bytes.
            optimizer.state_of(parameter)[key] = value.clone()


# -------------------------------------------------------------------------------------- directories


def _path(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def _steps(root: Path) -> list[int]:
    """Steps that have a directory (or what poses as one), newest first."""
    names = os.listdir(root) if root.is_dir() else []
    return sorted((int(m[1]) for n in names if (m := NAME.fullmatch(n))), reverse=True)
