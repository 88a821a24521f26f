"""Several processes of one group, started and waited for.

Contract: `launch(script, n, *words)` starts n interpreters with what torchrun would tell them,
`ended` waits for all and gives (exit code, stderr) of each; what still runs then is killed.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

Children = list[subprocess.Popen[str]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    told |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **told, "PYTHONPATH": os.pathsep.join(sys.path)}


def launch(
    command: Sequence[str], size: int = 2, more: Mapping[str, str] | None = None
) -> Children:
    """`command` as the interpreter takes it."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env={**environment(rank, size, port), **(more or {})},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(size)
    ]


def ended(children: Children, within_s: float) -> list[tuple[int, str]]:
    try:
        said = [child.communicate(timeout=within_s)[1] for child in children]
    finally:
        for child in children:
            child.kill()
    return [(child.returncode, text) for child, text in zip(children, said, strict=True)]


def script(module: str) -> str:
    return str(Path(__file__).with_name(f"{module}.py").resolve())
