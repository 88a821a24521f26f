"""Threads of linear algebra: as many as a recipe says, one where products are tiny."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from diffgr2.blas import VARIABLE

HEAD = """
import numpy
from diffgr2 import blas
from threadpoolctl import threadpool_info

def counts():
    return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}
"""


def printed(lines: str, **env: str) -> list[str]:
    bare = {name: value for name, value in os.environ.items() if "THREADS" not in name}
    done = subprocess.run(
        [sys.executable, "-c", HEAD + lines],
        env=bare | env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


@pytest.mark.parametrize(
    ("env", "wanted"), [({}, "1"), ({VARIABLE: "2"}, "2"), ({"OMP_NUM_THREADS": "2"}, "2")]
)
def test_as_many_as_said_also_of_what_is_loaded_later(env: dict[str, str], wanted: str) -> None:
    lines = "blas.keep(2)\nblas.keep(1)\nimport os, scipy.linalg\n"
    *seen, told = printed(lines + "print(*counts(), os.environ.get(blas.VARIABLE))", **env)
    assert told == str(env.get(VARIABLE, None if env else wanted))
    assert set(seen) == {str(min(int(wanted), os.cpu_count() or 1))}


def test_one_inside_and_as_many_as_before_behind() -> None:
    lines = "import scipy.linalg\nbefore = counts()\nwith blas.single():\n    print(*counts())\n"
    assert printed(lines + "print(before == counts())") == ["1", "True"]
