"""The fault battery of a training stage: resume, kills, corruption, as functions of a factory.

A factory is a function without arguments that returns a fresh `(task, model, config)`; it must
give the same ones each time. `check_*` functions raise AssertionError where the promise of
`train.checkpoint` is broken. `check_kills` needs the factory as `FILE.py:FUNCTION`, because it runs
in other processes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffgr2 import artifacts
from diffgr2.config import TrainConfig
from diffgr2.progress import Progress
from diffgr2.train import checkpoint, dist
from diffgr2.train.log import without_wall
from diffgr2.train.loop import Task, fit
from diffgr2.train.optimizer import Optimizer

Factory = Callable[[], tuple[Task, nn.Module, TrainConfig]]
SEED = 0


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    lines: list[dict[str, Any]]  # metrics without clock fields
    weights: str  # sha256 over all tensors
    said: str  # progress lines


def weights_digest(model: nn.Module) -> str:
    state = hashlib.sha256()
    for name, tensor in sorted(dist.full_tensors(model).items()):
        state.update(name.encode())
        state.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def run(factory: Factory, work: Path, **update: Any) -> Outcome:
    """One `fit` of a fresh model in `work`, with changed config keys."""
    task, model, config = factory()
    said = io.StringIO()
    config = config.model_copy(update=update)
    lines = fit(task, model, config, work, SEED, Progress(said))
    return Outcome(without_wall(lines), weights_digest(model), said.getvalue())


def same(found: Outcome, wanted: Outcome) -> None:
    assert found.lines == wanted.lines
    assert found.weights == wanted.weights


def check_resume_from_every_step(factory: Factory, folder: Path) -> int:
    """Resume from each checkpoint of an uninterrupted run; returns how many there were."""
    whole = run(factory, folder / "whole", checkpoint_every=1, keep=10_000)
    plain = run(factory, folder / "plain", checkpoint_every=10_000)
    same(plain, whole)  # how often a run saves must not matter
    saved = sorted((folder / "whole" / "checkpoints").iterdir())
    for path in saved:
        work = folder / f"from-{path.name}"
        shutil.copytree(path, work / "checkpoints" / path.name)
        same(run(factory, work, checkpoint_every=10_000), whole)
        log = [json.loads(text) for text in (work / "metrics.jsonl").read_text().splitlines()]
        assert without_wall(log) == whole.lines
    return len(saved)


def check_finished_is_noop(factory: Factory, folder: Path) -> None:
    """A finished run that is run again changes no file and gives the same result."""
    first = run(factory, folder)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.rglob("*")}
    same(run(factory, folder), first)
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.rglob("*")} == before


# -------------------------------------------------------------------------------------------- kills


@contextmanager
def _server(spec: str) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("killable.py")), spec],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        assert server.stdout.readline() == "ready\n"
        try:
            yield server
        finally:
            server.stdin.close()


def _ask(
    server: subprocess.Popen[str],
    work: Path,
    mode: str = "none",
    at: int = 0,
    signal_after: tuple[int, float] | None = None,
    factory: str = "",
    **update: Any,
) -> int:
    """One run; `signal_after` = (signal number, seconds) is sent to it from outside.

    `factory` names another factory of the server's file than the one it was started with.
    """
    assert server.stdout is not None
    assert server.stdin is not None
    request = {"work": str(work), "mode": mode, "at": at, "update": update}
    request["factory"] = factory
    work.mkdir(parents=True, exist_ok=True)
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    pid = json.loads(server.stdout.readline())["pid"]
    if signal_after is not None:
        time.sleep(signal_after[1])
        # The child stays a zombie until the server has waited for it; if it is already gone, the
        # kill fails and the run simply counts as finished.
        with suppress(ProcessLookupError):
            os.kill(pid, signal_after[0])
    return json.loads(server.stdout.readline())["status"]


def _result(work: Path) -> Outcome:
    value = json.loads((work / "result.json").read_text())
    return Outcome(value["lines"], value["weights"], "")


def check_kills(
    spec: str,
    folder: Path,
    kills: int = 25,
    draw: int = 0,
    from_outside: bool = False,
    modes: tuple[str, ...] = ("line", "save", "torn"),
    server: subprocess.Popen[str] | None = None,
    **update: Any,
) -> dict[str, int]:
    """SIGKILL runs at random points until `kills` have died, resume each; count kills by kind.

    Points are drawn over executed lines of the package, over lines of the saving code, inside a
    half-written tensor file, and (`rollout`) over lines of decoding and rollouts, so they do not
    depend on the machine's speed. With `from_outside` the signal comes from another process at a
    random time instead. A `server` of the same file may be lent; else one is started.
    """
    draws = random.Random(draw)
    done: dict[str, int] = {}
    with ExitStack() as stack:
        server = server or stack.enter_context(_server(spec))
        ask = partial(_ask, server, factory=spec.rpartition(":")[2])
        begin = time.monotonic()
        how = (
            "none" if from_outside else "count"
        )  # counting slows a run, which would skew the times
        assert ask(folder / "reference", how, **update) == 0
        duration = time.monotonic() - begin
        wanted = _result(folder / "reference")
        counts = json.loads((folder / "reference" / "result.json").read_text())["counts"]
        work, number = folder / "killed-0", 0
        while sum(done.values()) < kills:
            if from_outside:
                mode, at = "outside", 0
                status = ask(work, signal_after=(9, draws.uniform(0, duration)), **update)
            else:
                mode = modes[sum(done.values()) % len(modes)]
                at = draws.randint(1, 5 if mode == "torn" else counts[mode] // 2)
                status = ask(work, mode, at, **update)
            assert status in (0, -9), f"{mode} {at}: exit status {status}"
            if status == 0:
                same(_result(work), wanted)
                number += 1
                work = folder / f"killed-{number}"
            else:
                done[mode] = done.get(mode, 0) + 1
        assert ask(work, **update) == 0
        same(_result(work), wanted)
        assert not list((work / "checkpoints").glob(".tmp*"))
    return done


# --------------------------------------------------------------------------------------- corruption


def forge(path: Path, **changes: Any) -> None:
    """Rewrite a manifest with changed keys and a fresh seal, hashes of its files included."""
    manifest = json.loads((path / "manifest.json").read_text())
    manifest = {**manifest, "files": artifacts.list_files(path), **changes}
    artifacts.write_json(path / "manifest.json", artifacts.sealed(manifest))


def _edit_manifest(path: Path, draws: random.Random) -> None:
    file = path / "manifest.json"
    manifest = json.loads(file.read_text())
    kind = draws.randrange(6)
    if kind == 0:
        manifest["step"] += draws.randint(1, 5)
    elif kind == 1:
        manifest["world_size"] += 1
    elif kind == 2:
        manifest["files"][draws.choice(sorted(checkpoint.FILES))]["sha256"] = "0" * 64
    elif kind == 3:
        manifest["files"][draws.choice(sorted(checkpoint.FILES))]["size"] += 1
    elif kind == 4:
        manifest.pop(draws.choice(sorted(manifest)))
    else:
        manifest["seed"] = draws.randint(1, 9)
    artifacts.write_json(file, manifest)


DEEDS = (
    *("flip", "flip", "flip", "truncate", "truncate", "append", "missing", "extra", "rename"),
    *("edit", "edit", "invert", "swap", "link", "folder", "resized"),
)
"""Ways to damage a checkpoint; the likelier ones stand more than once."""


def corrupt(path: Path, draws: random.Random) -> str:
    """Damage a checkpoint in one random way; returns what was done."""
    names = [*sorted(checkpoint.FILES), "manifest.json"]
    name = draws.choice(names)
    file = path / name
    raw = bytearray(file.read_bytes())
    kind = draws.choice(DEEDS)
    if kind == "flip":
        at = draws.randrange(len(raw))
        raw[at] ^= 1 << draws.randrange(8)
        file.write_bytes(raw)
    elif kind == "truncate":
        file.write_bytes(raw[: draws.randrange(len(raw))])
    elif kind == "append":
        file.write_bytes(raw + draws.randbytes(draws.randint(1, 9)))
    elif kind == "missing":
        file.unlink()
    elif kind == "extra":
        (path / draws.choice(["x.pt", "model-2.safetensors", ".hidden"])).write_bytes(b"x")
    elif kind == "rename":
        file.rename(path / f"{name}.bak")
    elif kind == "edit":
        _edit_manifest(path, draws)
    elif kind == "invert":
        start = draws.randrange(len(raw) - 1)
        raw[start:] = bytes(255 - byte for byte in raw[start:])
        file.write_bytes(raw)
    elif kind == "swap":
        a, b = (path / n for n in draws.sample(names, 2))
        first, second = a.read_bytes(), b.read_bytes()
        a.write_bytes(second)
        b.write_bytes(first)
    elif kind == "link":
        file.rename(path.parent / "elsewhere")
        file.symlink_to(path.parent / "elsewhere")
    elif kind == "folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(raw[len(raw) // 2 :] + raw[: len(raw) // 2] + b"\0")
    return f"{kind} {name}"


def check_corruptions(factory: Factory, folder: Path, number: int = 200, draw: int = 0) -> None:
    """Damage the newest one or two checkpoints; each time the newest whole one must be loaded."""
    whole = run(factory, folder / "whole", checkpoint_every=1, keep=3)
    root = folder / "whole" / "checkpoints"
    steps = sorted((int(p.name[5:]) for p in root.iterdir()), reverse=True)
    wanted = {step: _loaded(factory, folder / "one", root, [step])[1] for step in steps}
    assert len(set(wanted.values())) == len(steps) == 3
    draws = random.Random(draw)
    for case in range(number):
        work = folder / "damaged"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(root, work / "checkpoints")
        hurt = steps[: 1 + case % 2]
        deeds = [corrupt(checkpoint._path(work / "checkpoints", step), draws) for step in hurt]
        step, weights, said = _loaded(factory, work, None, [])
        assert step == steps[len(hurt)], (deeds, said)
        assert weights == wanted[step], deeds
        assert len(said) == len(hurt), (deeds, said)
        for bad, line in zip(hurt, said, strict=True):
            assert line.startswith(f"checkpoint of step {bad} skipped: "), line
            assert f"step-{bad:08d}" in line
        if case % 20 == 0:  # the run as a whole still ends as if nothing had happened
            same(run(factory, work), whole)


def _loaded(
    factory: Factory, work: Path, source: Path | None, steps: list[int]
) -> tuple[int, str, list[str]]:
    """Resume into a fresh model; (step, weights and moments, warnings)."""
    if source is not None:
        shutil.rmtree(work, ignore_errors=True)
        for step in steps:
            shutil.copytree(
                checkpoint._path(source, step), checkpoint._path(work / "checkpoints", step)
            )
    task, model, config = factory()
    optimizer = Optimizer(model, config)
    mark = checkpoint.identity(task.name, SEED, config, model)
    said: list[str] = []
    step, _ = checkpoint.resume(work / "checkpoints", mark, model, optimizer, said.append)
    moments = hashlib.sha256(weights_digest(model).encode())
    for name, tensor in checkpoint._optimizer_tensors(model, optimizer).items():
        moments.update(name.encode() + tensor.numpy().tobytes())
    return step, moments.hexdigest(), said
