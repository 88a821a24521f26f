"""A retriever trained by two processes, each with its share of every batch, against one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffgr2.artifacts import load_arrays, read_json
from diffgr2.candidates.ranks import ALONE
from support import two_processes_retriever

pytestmark = pytest.mark.slow  # starts two more interpreters


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    two, one = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("one")
    script = str(Path(two_processes_retriever.__file__).resolve())
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, script, str(two)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return two, one


@pytest.mark.parametrize("name", two_processes_retriever.LOSSES)
def test_two_processes_train_and_search_as_one_does(name: str, folders) -> None:
    two, one = folders
    two_processes_retriever.train(one, name, ALONE)
    for found, wanted in zip(
        read_json(two / f"{name}.json"), read_json(one / f"{name}.json"), strict=True
    ):
        assert found == pytest.approx(wanted, rel=1e-6)
    found, wanted = (load_arrays(folder / f"{name}.found") for folder in folders)
    assert found.keys() == wanted.keys()
    for key, array in wanted.items():
        if key != "items_LK":  # Adam makes the last bit of a tiny gradient a step of a bias
            np.testing.assert_allclose(found[key], array, rtol=1e-3, atol=2e-5)
    assert (found["items_LK"] == wanted["items_LK"]).mean() > 0.99
