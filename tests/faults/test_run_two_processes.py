"""A run by several processes: what they publish together, and what is left where one is killed."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from diffgr2.artifacts import read_json, read_manifest
from support.crew import ended, launch

pytestmark = pytest.mark.slow

CHANGES = [
    *("items.min_steps=10", "retriever.epochs=1", "data.shop.n_users=100", "midtrain.steps=3"),
    *("sft.steps=4", "sft.micro_rows=8", "distill.lists=16", "distill.keep=all", "cft.steps=3"),
    *("cft.micro_rows=4", "opd.micro_rows=4", "block_rl.micro_rows=4", "evaluate.max_users=7"),
    *("evaluate.frontier_lists=3", "sft.checkpoint_every=1", "rl.checkpoint_every=1"),
    *("opd.checkpoint_every=1", "threads=1"),
]
STAGES = ("midtrain", "sft", "rl", "distill", "convert", "cft", "opd", "block_rl")
DECODED = ("distill", "calibrate", "score_ar", "score_cft_opd_rl", "score_verify", "probes")
SOON_S = 60.0
"""Within which a process ends whose neighbour was killed, on a busy machine."""


def words(root: Path, goal: str) -> list[str]:
    sets = [part for text in CHANGES for part in ("--set", text)]
    return ["diffgr2.cli", "run", "micro", "--goal", goal, "--runs", str(root), *sets]


def run(root: Path, goal: str, *launcher: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *words(root, goal)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("one")
    run(root, "story")
    run(root, "probes")
    return root


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("two")
    run(root, "block-rl", *TORCHRUN)
    return root


def test_two_processes_build_what_one_builds(one: Path, two: Path) -> None:
    for name in ("data", "items", "candidates", "evidence", "vocabulary", "traces"):
        mine, theirs = (read_manifest(side / name, verify=True) for side in (one, two))
        assert mine["files"] == theirs["files"], name
    for name in STAGES:
        manifest = read_manifest(two / name, verify=True)
        assert set(manifest["files"]) == set(read_manifest(one / name)["files"])
    # Sums are rounded in another order, so weights agree but for the last bits while training is
    # short and nothing was sampled yet.
    mine, theirs = (load_file(side / "sft" / "model.safetensors") for side in (one, two))
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert abs(mine[name] - theirs[name]).max() < 1e-4, name
    assert not list(two.glob(".*.partial"))


def test_what_is_decoded_in_shares_is_what_one_process_decodes(one: Path, tmp_path: Path) -> None:
    """The same models, so the same texts; with whom a row shares a forward moves the last bits."""
    root = tmp_path / "shared"
    shutil.copytree(one, root)
    for name in DECODED:
        shutil.rmtree(root / name)
    run(root, "story", *TORCHRUN)
    run(root, "probes", *TORCHRUN)
    for name in DECODED:
        mine, theirs = (read_manifest(side / name, verify=True) for side in (one, root))
        assert mine["files"].keys() == theirs["files"].keys()
        assert near(mine["metrics"], theirs["metrics"]), name
        for file in mine["files"]:
            if file.endswith(".safetensors"):
                check_arrays(one / name / file, root / name / file)
            elif name != "probes":  # it holds seconds
                assert near(read_json(one / name / file), read_json(root / name / file)), file
    assert not list(root.glob(".*.partial"))


def near(mine: Any, theirs: Any) -> bool:
    """Whether all numbers agree to 1e-6."""
    if isinstance(mine, dict):
        return mine.keys() == theirs.keys() and all(near(mine[k], theirs[k]) for k in mine)
    if isinstance(mine, float):
        return abs(mine - theirs) <= 1e-6 * max(1.0, abs(mine))
    return mine == theirs


def check_arrays(mine: Path, theirs: Path) -> None:
    """Whole numbers are the same, others to 1e-6."""
    found, wanted = load_file(theirs), load_file(mine)
    assert found.keys() == wanted.keys()
    for key, array in wanted.items():
        rough = 1e-6 if array.dtype.kind == "f" else 0.0
        np.testing.assert_allclose(found[key], array, rtol=rough, atol=rough, err_msg=key)


def kill_within(root: Path, stage: str, who: int, rng: random.Random) -> list[tuple[int, str]]:
    """Kill one of two processes some time after the stage has begun; how each ended."""
    children = launch(["-m", *words(root, "block-rl")])
    try:
        end = time.monotonic() + 300
        while not (root / f".{stage}.partial" / "work").is_dir():
            assert time.monotonic() < end, f"{stage} was not reached"
            assert all(child.poll() is None for child in children), ended(children, 10)
            time.sleep(0.02)
        time.sleep(rng.uniform(0.0, 1.5))
        children[who].kill()
    except BaseException:
        for child in children:
            child.kill()
        raise
    return ended(children, SOON_S)


def test_a_run_goes_on_identically_where_a_process_was_killed(two: Path, tmp_path: Path) -> None:
    rng, root, told = random.Random(4), tmp_path / "killed", 0
    for number, stage in enumerate(("sft", "rl", "distill", "opd", "block_rl")):
        who = 1 - number % 2
        done: Any = kill_within(root, stage, who, rng)
        code, said = done[1 - who]
        assert code in (0, 5), (stage, said[-3000:])  # 0: all was done before
        told += code == 5
        if code == 5:
            lines = [line for line in said.splitlines() if line.startswith("error: ")]
            assert len(lines) == 1, said[-3000:]
            assert "gone" in lines[0]
            assert "Traceback" not in said
    assert told >= 3
    run(root, "block-rl", *TORCHRUN)
    for name in STAGES:
        mine, theirs = (read_manifest(side / name, verify=True) for side in (root, two))
        assert mine["files"] == theirs["files"], name
        assert mine["metrics"] == theirs["metrics"], name
    assert not list(root.glob(".*.partial"))
