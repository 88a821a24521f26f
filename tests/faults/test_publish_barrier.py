"""A shared stage is published only when every process has written its last byte."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from diffgr2.artifacts import read_manifest
from support import two_writers


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_slow_second_process_still_finds_its_directories(tmp_path: Path) -> None:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    path = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    root = tmp_path / "run"
    children = [
        subprocess.Popen(
            [sys.executable, str(Path(two_writers.__file__).resolve()), str(root)],
            env={**os.environ, **address, **path, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [child.communicate(timeout=120)[1] for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0, 0], said
    manifest = read_manifest(root / "a", verify=True)
    assert manifest["metrics"] == {"rank": 0}
    assert (root / "a" / "out.txt").read_text() == "of 0"
    assert list(manifest["files"]) == ["out.txt"]
    assert not list(root.glob(".*.partial"))
