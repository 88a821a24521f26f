"""Damaged, foreign and hostile checkpoints are refused; write errors leave the old one intact."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import shutil
import signal

import pytest
import torch
from safetensors.torch import save_file

from diffgr2 import artifacts
from diffgr2.errors import CheckpointError
from diffgr2.progress import Progress
from diffgr2.train import checkpoint
from diffgr2.train.loop import fit
from diffgr2.train.optimizer import Optimizer
from support import battery, toy


def test_corruptions_are_detected_and_the_newest_valid_checkpoint_is_used(tmp_path):
    battery.check_corruptions(toy.make, tmp_path, number=240)


def test_every_single_byte_of_a_manifest_matters(tmp_path):
    battery.run(toy.make, tmp_path)
    path = checkpoint._path(tmp_path / "checkpoints", 12)
    raw = (path / "manifest.json").read_bytes()
    for at in range(len(raw)):
        changed = bytearray(raw)
        changed[at] ^= 1
        (path / "manifest.json").write_bytes(changed)
        with pytest.raises(CheckpointError, match="step-00000012"):
            checkpoint.verify(path, 12)


def test_all_corrupt_starts_from_the_beginning(tmp_path):
    whole = battery.run(toy.make, tmp_path)
    for path in (tmp_path / "checkpoints").iterdir():
        (path / "model.safetensors").write_bytes(b"")
    again = battery.run(toy.make, tmp_path)
    battery.same(again, whole)
    assert again.said.count("skipped") == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.5}, "config.lr is 0.01 there, 0.5 here"),
        ({"steps": 13}, "config.steps is 12 there, 13 here"),
    ],
)
def test_checkpoint_of_another_config_is_refused(change, message, tmp_path):
    battery.run(toy.make, tmp_path)
    with pytest.raises(CheckpointError) as error:
        battery.run(toy.make, tmp_path, **change)
    path = tmp_path / "checkpoints" / "step-00000012"
    assert str(error.value) == f"{path}: belongs to another run ({message})"


def test_checkpoint_of_another_seed_task_or_model_is_refused(tmp_path):
    battery.run(toy.make, tmp_path)
    task, model, config = toy.make()
    with pytest.raises(CheckpointError, match="seed is 0 there, 1 here"):
        fit(task, model, config, tmp_path, 1, Progress())
    task.name = "other"
    with pytest.raises(CheckpointError, match="task is 'toy' there, 'other' here"):
        fit(task, model, config, tmp_path, 0, Progress())
    task.name = "toy"
    with pytest.raises(CheckpointError, match=r"model\.parameters is 432 there, 296 here"):
        fit(task, toy.ToyModel(tied=True), config, tmp_path, 0, Progress())
    turned = toy.ToyModel()  # as many numbers in another shape
    turned.head = torch.nn.Linear(toy.VOCAB, toy.DIM, bias=False)
    with pytest.raises(CheckpointError, match=r"model\.shapes"):
        fit(task, turned, config, tmp_path, 0, Progress())


# ------------------------------------------------------------------------------------------ hostile


class Bomb:
    """Unpickled, it would leave a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def _pickle_as_weights(path, mark):
    (path / "model.safetensors").write_bytes(pickle.dumps(Bomb(mark)))
    battery.forge(path)


def _pickle_beside(path, mark):
    (path / "training_args.bin").write_bytes(pickle.dumps(Bomb(mark)))
    battery.forge(path)


def _torch_file(path, mark):
    torch.save({"x": Bomb(mark)}, path / "optimizer.safetensors")
    battery.forge(path)


def _header(raw):
    def change(path, mark):
        (path / "model.safetensors").write_bytes(raw)
        battery.forge(path)

    return change


def _traversal(name):
    def change(path, mark):
        files = {**artifacts.list_files(path), name: {"sha256": "0" * 64, "size": 1}}
        battery.forge(path, files=files)

    return change


def _manifest(raw):
    return lambda path, mark: (path / "manifest.json").write_bytes(raw)


def _linked(name):
    def change(path, mark):
        outside = path.parent.parent / f"outside-{name}"
        (path / name).rename(outside)
        (path / name).symlink_to(outside)

    return change


def _linked_folder(path, mark):
    outside = path.parent.parent / "outside"
    path.rename(outside)
    path.symlink_to(outside)


def _pipe(path, mark):
    (path / "metrics.jsonl").unlink()
    os.mkfifo(path / "metrics.jsonl")


def _length(n):
    return n.to_bytes(8, "little")


def _one_tensor(entry):
    text = json.dumps({"embed.weight": entry}).encode()
    return _length(len(text)) + text + bytes(16)


HOSTILE = {
    "pickle as weights": _pickle_as_weights,
    "pickle beside": _pickle_beside,
    "torch.save file": _torch_file,
    "header length 2^63": _header(_length(2**63) + b"{}"),
    "header longer than file": _header(_length(10**6) + b"{}"),
    "header not JSON": _header(_length(4) + b"\x00\x01\x02\x03"),
    "header deep": _header(_length(20000) + b"[" * 20000),
    "header empty file": _header(b""),
    "offsets outside": _header(
        _one_tensor({"dtype": "F32", "shape": [4], "data_offsets": [0, 1 << 40]})
    ),
    "offsets negative": _header(
        _one_tensor({"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]})
    ),
    "shape overflow": _header(
        _one_tensor({"dtype": "F32", "shape": [1 << 62, 8], "data_offsets": [0, 16]})
    ),
    "shape against bytes": _header(
        _one_tensor({"dtype": "F32", "shape": [5], "data_offsets": [0, 16]})
    ),
    "unknown dtype": _header(_one_tensor({"dtype": "PY", "shape": [4], "data_offsets": [0, 16]})),
    "traversal up": _traversal("../../../etc/passwd"),
    "traversal absolute": _traversal("/etc/passwd"),
    "traversal inside": _traversal("x/../model.safetensors"),
    "manifest list": _manifest(b"[]\n"),
    "manifest NaN": _manifest(b'{"step": NaN}\n'),
    "manifest deep": _manifest(b"[" * 100_000),
    "manifest huge": _manifest(b" " * (2 << 20)),
    "manifest bad text": _manifest(b"\xff\xfe"),
    "linked weights": _linked("model.safetensors"),
    "linked manifest": _linked("manifest.json"),
    "linked folder": _linked_folder,
    "pipe": _pipe,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return folder, battery.run(toy.make, folder)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_checkpoint_is_refused_before_any_effect(name, trained, tmp_path):
    folder, whole = trained
    shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
    path = checkpoint._path(tmp_path / "checkpoints", 12)
    mark = tmp_path / "executed"
    HOSTILE[name](path, mark)
    again = battery.run(toy.make, tmp_path)
    assert not mark.exists()
    assert again.said.startswith(f"checkpoint of step 12 skipped: {path}")
    assert again.said.count("skipped") == 1
    battery.same(again, whole)


def test_foreign_tensors_under_a_true_seal_are_refused(trained, tmp_path):
    """A forger who can recompute seals still cannot slip in other shapes or names."""
    folder, _ = trained
    for tensors in ({"embed.weight": torch.zeros(3)}, {}):
        shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
        shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
        path = checkpoint._path(tmp_path / "checkpoints", 12)
        save_file(tensors, path / "model.safetensors")
        battery.forge(path)
        with pytest.raises(CheckpointError, match="tensors differ"):
            battery.run(toy.make, tmp_path)


# ------------------------------------------------------------------------------------- write errors

CALLS = [
    (checkpoint, "save_file"),
    (checkpoint.os, "rename"),
    (artifacts, "fsync_path"),
    (artifacts, "write_json"),
    (artifacts, "list_files"),
    (artifacts, "sha256_of"),
    (artifacts.os, "fsync"),
    (artifacts.os, "replace"),
    (checkpoint.Path, "mkdir"),
    (checkpoint.Path, "write_bytes"),
]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize(
    ("owner", "name"), CALLS, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_failed_write_leaves_the_old_checkpoint(owner, name, code, tmp_path, monkeypatch):
    """Each call of each function that writes fails once, during the second save of the run."""
    _, model, config = toy.make()
    optimizer = Optimizer(model, config)
    mark = checkpoint.identity("toy", 0, config, model)
    root = tmp_path / "checkpoints"
    checkpoint.save(root, 1, mark, model, optimizer, b"", 2)
    wanted = battery.weights_digest(model)
    real, count = getattr(owner, name), [0, -1]

    def failing(*args, **kwargs):
        count[0] += 1
        if count[0] == count[1]:
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)
    messages: list[str] = []
    for count[1] in range(1, 30):
        count[0] = 0
        try:
            checkpoint.save(root, 2, mark, model, optimizer, b"", 2)
        except CheckpointError as error:
            messages.append(str(error))
            checkpoint.verify(root / "step-00000001", 1)
            # only the very last sync comes after the rename: then the new one is whole as well
            if (root / "step-00000002").exists():
                checkpoint.verify(root / "step-00000002", 2)
                shutil.rmtree(root / "step-00000002")
        else:
            break
    monkeypatch.undo()
    assert messages
    for message in messages:
        assert message.startswith(f"{root / 'step-00000002'}: step 2 cannot be written")
        assert os.strerror(code) in message
    shutil.rmtree(root / "step-00000002")
    _, fresh, _ = toy.make()
    assert checkpoint.resume(root, mark, fresh, optimizer, print) == (1, b"")
    assert battery.weights_digest(fresh) == wanted


def test_a_full_disk_at_any_byte_leaves_the_old_checkpoint(tmp_path):
    """The kernel itself refuses writes past a limit (EFBIG), wherever in a file it lies."""
    _, model, config = toy.make()
    optimizer = Optimizer(model, config)
    mark = checkpoint.identity("toy", 0, config, model)
    root = tmp_path / "checkpoints"
    checkpoint.save(root, 1, mark, model, optimizer, b"x" * 3000, 2)
    sizes = [p.stat().st_size for p in (root / "step-00000001").iterdir()]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    refused = 0
    try:
        for limit in range(0, max(sizes), max(sizes) // 60):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            try:
                checkpoint.save(root, 2, mark, model, optimizer, b"x" * 3000, 2)
            except CheckpointError:
                refused += 1
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            checkpoint.verify(root / "step-00000001", 1)
            assert [p.name for p in root.iterdir()] == ["step-00000001"]
    finally:
        signal.signal(signal.SIGXFSZ, previous)
    assert refused >= 50


def test_retention_keeps_the_last_k_and_strays_are_removed(tmp_path):
    root = tmp_path / "checkpoints"
    (root / ".tmp-step-00000003").mkdir(parents=True)
    (root / ".tmp-step-00000003" / "model.safetensors").write_bytes(b"half")
    battery.run(toy.make, tmp_path, keep=3)
    assert sorted(p.name for p in root.iterdir()) == [f"step-{s:08d}" for s in (8, 10, 12)]
