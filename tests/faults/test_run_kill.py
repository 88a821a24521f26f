"""kill -9 at random moments of a whole run: what stands at the end equals an undisturbed run.

Some kills come right before a random act on a file (from inside), some after a random time (from
outside). Every run after a kill goes on in the same directory. `speed` and `probes` hold timings
and are left out of the comparison; nothing else is.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

import support
from diffgr2.artifacts import read_manifest
from diffgr2.stages.plan import STAGES

SHORT = [
    *("items.min_steps=10", "retriever.epochs=2", "data.shop.n_users=150", "midtrain.steps=4"),
    *("sft.steps=12", "sft.checkpoint_every=3", "cft.steps=6", "cft.checkpoint_every=2"),
    *("distill.lists=24", "distill.keep=all", "opd.checkpoint_every=1", "evaluate.max_users=6"),
    *("evaluate.lengths=[16]", "evaluate.thresholds=[0.5]", "evaluate.frontier_lists=4"),
]
TEXT = [
    *("data.shop.n_items=300", "items.min_unique=0.5", "threads=1", "midtrain.steps=4"),
    *("rl.steps=2", "direct_rl.steps=1", "opd.steps=2", "block_rl.steps=1", "cft_rl.steps=1"),
]
"""What of the recipe text_small is shorter still."""

TIMED = {"speed", "pace", "probes"}
EVERYTHING = set(STAGES) - TIMED - {"bundle_ar", "tutor"}  # what the recipe micro has
ROWS_ONLY = EVERYTHING - {"calibrate", "bundle", "rival", "timely"}


@contextmanager
def server(log: Path) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with (
        log.open("w") as said,
        subprocess.Popen(
            [sys.executable, str(Path(support.__file__).with_name("run_child.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=environment,
        ) as process,
    ):
        assert process.stdin is not None
        try:
            yield process
        finally:
            process.stdin.close()
            process.terminate()


def ask(
    process: subprocess.Popen[str],
    verb: str,
    root: Path,
    at: int = 0,
    after: float | None = None,
    recipe: str = "micro",
) -> dict[str, Any]:
    """One run; `after` seconds it is killed from outside if it still runs."""
    assert process.stdin is not None
    assert process.stdout is not None
    wanted = [*SHORT, *(TEXT if recipe == "text_small" else ())]
    changes = [part for text in wanted for part in ("--set", text)]
    arguments = [verb, recipe, "--runs", str(root), *changes]
    request = {"arguments": arguments, "root": str(root), "at": at}
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    child = json.loads(process.stdout.readline())["pid"]
    if after is not None:
        time.sleep(after)
        with suppress(ProcessLookupError):
            os.kill(child, SIGKILL)
    return json.loads(process.stdout.readline())


def hashes(root: Path, stages: set[str]) -> dict[str, Any]:
    """Every stage's files, contents checked against the manifests."""
    return {name: read_manifest(root / name, verify=True)["files"] for name in stages}


@pytest.mark.parametrize(
    ("recipe", "verb", "stages", "kills", "seed"),
    [
        pytest.param("micro", "score", ROWS_ONLY, 6, 1, id="six"),
        pytest.param("micro", "run", EVERYTHING, 20, 2, id="twenty", marks=pytest.mark.slow),
        pytest.param("text_small", "run", EVERYTHING, 10, 3, id="text", marks=pytest.mark.slow),
    ],
)
def test_killed_runs_end_as_an_undisturbed_one(
    tmp_path: Path, recipe: str, verb: str, stages: set[str], kills: int, seed: int
) -> None:
    rng = random.Random(seed)
    log = tmp_path / "log.txt"
    with server(log) as process:
        start = time.monotonic()
        whole = ask(process, verb, tmp_path / "whole", recipe=recipe)
        seconds = time.monotonic() - start
        assert whole["status"] == 0, log.read_text()[-3000:]
        assert whole["count"] > 500, "the audit hook saw the run's files"
        root = tmp_path / "killed"
        died = 0
        for n in range(kills):
            if n % 3 == 2:
                how: Any = {"after": rng.uniform(0, 2 * seconds / kills)}
            else:
                how = {"at": rng.randrange(1, whole["count"] // kills)}
            answer = ask(process, verb, root, recipe=recipe, **how)
            assert answer["status"] in (0, -SIGKILL), log.read_text()[-3000:]
            died += answer["status"] == -SIGKILL
            for name in stages:  # whatever stands is whole
                if (root / name / "manifest.json").exists():
                    read_manifest(root / name, verify=True)
        assert died >= kills // 2
        assert ask(process, verb, root, recipe=recipe)["status"] == 0, log.read_text()[-3000:]
    assert hashes(root, stages) == hashes(tmp_path / "whole", stages)
    assert not list(root.glob(".*.partial"))
