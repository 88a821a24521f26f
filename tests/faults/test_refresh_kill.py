"""kill -9 at random moments of a refresh: the old bundle is whole, the new one is whole or absent.

Every child dies right before a random act on a file (`support.run_child`); the same command is then
given again and ends as an undisturbed one.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from signal import SIGKILL

import pytest

import support
from diffgr2.artifacts import list_files
from diffgr2.rerank.bundle import check, opened
from diffgr2.rerank.world import World
from support.micro_shop import shared


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared(tmp_path_factory) / "bundle"


class Child:
    """Commands in forked children that kill themselves."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(support.__file__).with_name("run_child.py"))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, **pipes)  # type: ignore

    def ask(self, arguments: list[str], root: Path, at: int = 0) -> dict[str, int]:
        """One command; it dies before its `at`-th act on a file below `root` (0: never)."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"arguments": arguments, "root": str(root), "at": at}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        self.process.stdout.readline()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def child():
    one = Child()
    yield one
    assert one.process.stdin is not None
    one.process.stdin.close()
    one.process.wait()


def arguments_of(root: Path, in_place: bool) -> list[str]:
    target = ["--in-place"] if in_place else ["--out", str(root / "fresh")]
    files = ["--interactions", str(root / "sales.csv"), "--items", str(root / "items.csv")]
    return ["refresh", str(root / "bundle"), *files, *target]


def begun(bundle: Path, root: Path) -> Path:
    """A folder with the bundle and what came."""
    root.mkdir()
    shutil.copytree(bundle, root / "bundle")
    world = World(bundle)
    last = int(world.histories.timestamps_N.max()) + 1
    rows = [f"{user},new,{last}" for user in world.raw_users[:20]]
    (root / "sales.csv").write_text("\n".join(["user,item,timestamp", *rows]))
    (root / "items.csv").write_text("item,title\nnew,A new thing\nmore,More of it\n")
    return root


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    "kills", [6, pytest.param(60, marks=pytest.mark.slow)], ids=["six", "sixty"]
)
def test_killed_refreshes_leave_whole_bundles(
    child: Child, bundle: Path, tmp_path: Path, in_place: bool, kills: int
) -> None:
    whole = begun(bundle, tmp_path / "whole")
    done = child.ask(arguments_of(whole, in_place), whole)
    assert done["status"] == 0
    old = list_files(bundle)
    new = list_files(whole / ("bundle" if in_place else "fresh"))
    rng, seen = random.Random(in_place), set()
    for number in range(kills):
        root = begun(bundle, tmp_path / f"killed{number}")
        # The exchange and what follows are the last few acts.
        late = number % 2 and done["count"] - rng.randrange(12)
        at = late or rng.randrange(1, done["count"] + 1)
        assert child.ask(arguments_of(root, in_place), root, at)["status"] == -SIGKILL
        places = {
            name: list_files(root / name)
            for name in ("bundle", "fresh", "bundle.before")
            if (root / name).exists()
        }
        for name in places:
            check(root / name)
            assert places[name] in (old, new), name
        assert in_place or places["bundle"] == old
        hidden = root / ".bundle.refresh"
        kept = [*places.values(), list_files(hidden) if hidden.exists() else None]
        assert old in kept, "the old bundle is there, whatever its name"
        seen.add(tuple(places))
        again = child.ask(arguments_of(root, in_place), root)
        finished = places.get("bundle" if in_place else "fresh") == new
        assert again["status"] == (2 if finished and not in_place else 0)
        assert list_files(root / ("bundle" if in_place else "fresh")) == new
        opened(root / ("bundle" if in_place else "fresh"), World)
        if in_place:
            assert list_files(root / "bundle.before") == old
            assert not hidden.exists()
        shutil.rmtree(root)
    assert ("bundle",) in seen
