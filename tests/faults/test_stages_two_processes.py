"""The stages' own tasks under two processes with sharded weights, against one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffgr2.progress import Progress
from diffgr2.train.loop import fit
from support import tiny_stages, two_processes_stages

pytestmark = pytest.mark.slow  # starts two more interpreters


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(two processes' folder, one process's folder); the child reads the weights trained here."""
    two, one = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("one")
    given = os.environ.get("DIFFGR2_TINY")
    os.environ["DIFFGR2_TINY"] = given or str(tmp_path_factory.mktemp("tiny"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    tiny_stages.trained.cache_clear()
    tiny_stages.trained("block")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = str(Path(two_processes_stages.__file__).resolve())
    done = subprocess.run(
        [*command, "--nproc-per-node", "2", script, str(two)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    yield two, one
    torch.set_num_threads(before)
    if given is None:
        del os.environ["DIFFGR2_TINY"]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


@pytest.mark.parametrize("name", two_processes_stages.CASES)
def test_two_processes_train_the_stage_as_one_does(name, folders):
    two, one = folders
    task, net, config = two_processes_stages.made(*two_processes_stages.CASES[name])
    wanted = fit(task, net, config, one / name, 0, Progress())
    found = lines_of(two / name / "metrics.jsonl")
    assert len(found) == len(wanted) == two_processes_stages.STEPS
    assert sum(line["grad_norm"] > 0 for line in wanted) >= 3
    for line, other in zip(found, wanted, strict=True):
        assert line.keys() == other.keys()
        for key in line.keys() - {"step_time"}:
            # Sums in another order: the last bits of a gradient's norm differ.
            near = 1e-5 if key == "grad_norm" else 1e-6
            assert line[key] == pytest.approx(other[key], rel=near, abs=1e-6), (key, line["step"])
    weights = load_file(two / f"{name}.safetensors")
    mine = {key: tensor.detach() for key, tensor in net.named_parameters()}
    assert mine.keys() <= weights.keys()
    gap = torch.cat([(weights[k] - mine[k]).flatten() for k in mine]).norm()
    size = torch.cat([mine[k].flatten() for k in mine]).norm()
    assert gap / size < 1e-6
