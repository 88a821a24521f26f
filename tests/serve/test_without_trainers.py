"""A bundle is ranked and served where nothing of training is installed.

Each case is a fresh interpreter in which these packages cannot be imported at all.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diffgr2.errors import TRAINING

ROOT = Path(__file__).parents[2]

ENV = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}


def asked(bundle: Path, banned: tuple[str, ...], what: str) -> dict[str, Any]:
    """What such an interpreter answers (see `support.banned`)."""
    command = [sys.executable, "-m", "support.banned", str(bundle), ",".join(banned), what]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["bundle", "bundle_ar"])
def test_a_request_is_made_of_numpy_alone(name: str, run_dir: Path) -> None:
    told = asked(run_dir / name, TRAINING, "request")
    assert told["loaded"] == []
    assert told["prompt"] > 10
    assert told["planned"] > 0
    assert "#" not in told["told"], "items are told by name"


def test_every_door_answers_without_what_training_needs(run_dir: Path) -> None:
    told = asked(run_dir / "bundle", TRAINING, "all")
    assert told["loaded"] == []
    assert told["code"] == 0
    assert told["order"] == told["served"] == told["paired"]
    assert sorted(told["order"]) == list(range(5))
    assert set(told["pages"].values()) == {200}


@pytest.mark.parametrize(
    "verb", [["run", "demo"], ["data", "demo"], ["report", "demo"], ["sft", "demo"]]
)
def test_a_training_verb_says_in_one_line_what_to_install(verb: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom support.banned import Banned\n"
        f"sys.meta_path.insert(0, Banned({TRAINING!r}))\n"
        "from diffgr2.cli import run\nsys.exit(run(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *verb]
    done = subprocess.run(
        command, env=ENV, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    line = r"error: \w+ is missing: pip install 'diffgr2\[train\]'\n"
    assert re.fullmatch(line, done.stderr), done.stderr
    assert not list(tmp_path.iterdir()), "nothing was begun"


def test_a_bundle_is_refreshed_without_them(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "sales.csv").write_text("user,item,timestamp\nsomebody,novel,2000000000\n")
    (tmp_path / "items.jsonl").write_text('{"item": "novel", "title": "A novel thing"}\n')
    code = (
        "import sys\nfrom support.banned import Banned\n"
        f"sys.meta_path.insert(0, Banned({TRAINING!r}))\n"
        "from diffgr2.cli import run\nsys.exit(run(sys.argv[1:]))"
    )
    files = ["--interactions", "sales.csv", "--items", "items.jsonl", "--out", "fresh"]
    command = [sys.executable, "-c", code, "refresh", str(run_dir / "bundle"), *files]
    done = subprocess.run(command, env=ENV, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "items      1 new (0 without text, 0 without a counted purchase)" in done.stdout
    (tmp_path / "sales.parquet").write_bytes(b"PAR1")
    command = [*command[:5], "--interactions", "sales.parquet"]
    done = subprocess.run(command, env=ENV, cwd=tmp_path, capture_output=True, text=True)
    told = "error: polars is missing: pip install 'diffgr2[train]'\n"
    assert (done.returncode, done.stderr) == (2, told)
