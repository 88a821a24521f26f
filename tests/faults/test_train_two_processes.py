"""Two processes with sharded weights train as one does, and read each other's checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import support
from diffgr2.progress import Progress
from diffgr2.train.loop import fit
from support import toy


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """One launch for all tests: starting two interpreters is the slow part."""
    folder = tmp_path_factory.mktemp("two")
    single(folder / "one", steps=10, keep=100)
    resume_at(folder / "one", folder / "one-then-two", 4)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = str(Path(support.__file__).with_name("two_processes.py"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, "--nproc-per-node", "2", script, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def single(work: Path, rounds: int = 1, tied: bool = False, **update: object) -> list[dict]:
    config = toy.config_of(**update)
    return fit(
        toy.ToyTask(config, rounds=rounds), toy.ToyModel(tied=tied), config, work, 0, Progress()
    )


def resume_at(source: Path, work: Path, step: int) -> None:
    name = f"step-{step:08d}"
    shutil.copytree(source / "checkpoints" / name, work / "checkpoints" / name)


def lines_of(work: Path) -> list[dict]:
    return [json.loads(text) for text in (work / "metrics.jsonl").read_text().splitlines()]


def check_equal(found: Path, wanted: Path, steps: int = 10) -> None:
    """Losses to 1e-6 relative; weights to Adam's amplification of the last bits."""
    assert len(lines_of(found)) == len(lines_of(wanted)) == steps
    for line, other in zip(lines_of(found), lines_of(wanted), strict=True):
        for key in ("loss", "accuracy", "num_tokens", "learning_rate"):
            assert line[key] == pytest.approx(other[key], rel=1e-6), (key, line["step"])
        assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=5e-6)
    name = f"checkpoints/step-{steps:08d}/model.safetensors"
    mine, theirs = load_file(found / name), load_file(wanted / name)
    assert mine.keys() == theirs.keys()
    difference = torch.cat([(mine[k] - theirs[k]).flatten() for k in mine]).norm()
    size = torch.cat([theirs[k].flatten() for k in mine]).norm()
    assert difference / size < 1e-6


def test_two_processes_equal_one_over_10_steps(launched):
    check_equal(launched / "two", launched / "one")


def test_micros_that_do_not_divide_are_padded_with_weight_0(launched, tmp_path):
    single(tmp_path, steps=10, rows=9, micro_rows=1)
    check_equal(launched / "odd", tmp_path)


def test_tied_weights_and_rollouts_in_rounds(launched, tmp_path):
    single(tmp_path, rounds=2, tied=True, steps=4)
    check_equal(launched / "tied", tmp_path, 4)


def test_saved_by_one_resumed_by_two(launched):
    check_equal(launched / "one-then-two", launched / "one")


def test_saved_by_two_resumed_by_one(launched, tmp_path):
    path = launched / "two" / "checkpoints" / "step-00000008"
    assert json.loads((path / "manifest.json").read_text())["world_size"] == 2
    resume_at(launched / "two", tmp_path, 8)
    single(tmp_path, steps=10)
    check_equal(tmp_path, launched / "one")


def test_one_bad_rank_stops_all_with_a_dump(launched):
    dump = json.loads((launched / "bad" / "nonfinite.json").read_text())
    assert dump["culprit"] == "loss of micro 1"
    assert dump["losses"]["1"] == "nan"
